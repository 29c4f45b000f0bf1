"""The generator: however rows are run, each gets the tokens that computing everything anew gives it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from pinnace.errors import UsageError
from pinnace.runtime.generation import decoder as decoder_module
from pinnace.runtime.generation import kvcache
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.result import Generated
from tests.generation_bundles import LENGTH, VOCABULARY, Opened, decoder_of, full_logits, opened, prompts, uncached

__all__ = ["decoder_of", "opened"]

TARGETS = ["ort", "onnx"]
EVERY = ["ort", "onnx", "static", "ort-all", "onnx-all", "static-all"]
COUNT = 24
every_bundle = pytest.mark.parametrize("name", EVERY)
every_target = pytest.mark.parametrize("name", TARGETS)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers grow several times in every test."""
    monkeypatch.setattr(kvcache, "BLOCK", 8)
    monkeypatch.setattr(kvcache, "MAX_HOLES", 4)


def ids(results: list[list[Generated]]) -> list[list[int]]:
    return [row.ids.tolist() for rows in results for row in rows]


@pytest.fixture(scope="module")
def rows() -> list[Any]:
    found = prompts(7, 3, 12, 1, 30)
    found[4][15:] = found[4][:15]
    return found


@pytest.fixture(scope="module")
def expected(opened: Opened, rows: list[Any]) -> list[list[int]]:
    """Greedy tokens of each row, computed anew at every step."""
    found = [uncached(opened.session("ort"), row, COUNT) for row in rows]
    assert all(len(set(row)) > 8 for row in found), "rows that repeat one token would show nothing"
    return found


@every_bundle
def test_alone_in_a_batch_and_through_slots(
    opened: Opened, rows: list[Any], expected: list[list[int]], name: str
) -> None:
    generator = opened.generator(name)
    assert [ids(generator.generate([row], max_new_tokens=COUNT))[0] for row in rows] == expected
    assert ids(generator.generate(rows, max_new_tokens=COUNT)) == expected
    for size in (1, 2, 3):
        assert ids(generator.generate(rows, max_new_tokens=COUNT, batch_size=size)) == expected


@every_target
def test_rows_that_end_at_different_times_leave_the_others_as_they_are(
    opened: Opened, rows: list[Any], expected: list[list[int]], name: str
) -> None:
    generator = opened.generator(name)
    # A token of one row ends it early; what it means for each row is known beforehand.
    end = expected[0][5]
    cut = [row[: row.index(end) + 1] if end in row else row for row in expected]
    assert len({len(row) for row in cut}) > 2
    for size in (2, 5):
        found = generator.generate(rows, max_new_tokens=COUNT, eos_token_id=end, batch_size=size)
        assert ids(found) == cut
        assert [one[0].reason for one in found] == ["eos" if end in row else "length" for row in expected]


@every_target
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_arrays_with_a_mask(
    opened: Opened, rows: list[Any], expected: list[list[int]], name: str, side: str
) -> None:
    widest = max(map(len, rows))
    array, mask = np.full((len(rows), widest), 2), np.zeros((len(rows), widest), np.int64)
    for place, row in enumerate(rows):
        columns = slice(widest - len(row), None) if side == "left" else slice(len(row))
        array[place, columns], mask[place, columns] = row, 1
    assert ids(opened.generator(name).generate(array, attention_mask=mask, max_new_tokens=COUNT)) == expected


@pytest.mark.parametrize("piece", [1, 4, 7, 12, 24])
@every_target
def test_prompts_that_are_read_in_pieces(
    opened: Opened, rows: list[Any], expected: list[list[int]], name: str, piece: int
) -> None:
    """Long ones are cut, and short ones are run together up to the size of a piece."""
    generator = opened.generator(name)
    assert generator.decoder.piece == decoder_module.PIECE
    generator.decoder.piece = piece
    assert [ids(generator.generate([row], max_new_tokens=COUNT))[0] for row in rows] == expected
    assert ids(generator.generate(rows, max_new_tokens=COUNT, prefix=generator.prefix(rows[0][:5]))) == expected


def test_what_is_run_at_once(opened: Opened, rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours together while their padded tokens fit a piece; a longer prompt in equal pieces, never in a scrap."""
    generator, shapes, run = opened.generator("ort"), [], decoder_module.Batch.run

    def seen(batch: Any, tokens: Any, *rest: Any) -> Any:
        shapes.append(tokens.shape)
        return run(batch, tokens, *rest)

    monkeypatch.setattr(decoder_module.Batch, "run", seen)
    generator.decoder.piece = 28
    generator.generate(rows, max_new_tokens=1)
    assert [len(row) for row in rows] == [7, 3, 12, 1, 30]
    assert shapes == [(2, 7), (2, 12), (1, 15), (1, 15)]


@every_bundle
def test_streamed(opened: Opened, rows: list[Any], expected: list[list[int]], name: str) -> None:
    generator = opened.generator(name)
    found: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for token in generator.stream(rows, max_new_tokens=COUNT, batch_size=3):
        assert token.id is not None
        found.setdefault(token.prompt, []).append(token.id)
        texts[token.prompt] = texts.get(token.prompt, "") + token.text
    assert [found[i] for i in range(len(rows))] == expected
    whole = generator.generate(rows, max_new_tokens=COUNT)
    assert [texts[i] for i in range(len(rows))] == [one[0].text for one in whole]


@pytest.mark.parametrize("name", ["ort-all", "onnx-all"])
@pytest.mark.parametrize("drafts", [1, 4, 50])
def test_speculated(opened: Opened, rows: list[Any], expected: list[list[int]], name: str, drafts: int) -> None:
    generator = opened.generator(name)
    found = generator.generate(rows, max_new_tokens=COUNT, prompt_lookup_num_tokens=drafts)
    assert ids(found) == expected
    penalty: dict[str, Any] = {"max_new_tokens": COUNT, "repetition_penalty": 1.3, "eos_token_id": expected[0][9]}
    plain = ids(generator.generate(rows, **penalty))
    assert ids(generator.generate(rows, prompt_lookup_num_tokens=drafts, **penalty)) == plain


@pytest.mark.parametrize("name", ["ort-all", "onnx-all"])
def test_speculation_saves_runs_on_text_that_repeats(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    generator = opened.generator(name)
    a, b, c = 50, 60, 70
    # A cycle that no score of the model's breaks, but for the places where it is left to the model again.
    cycle: dict[str, Any] = {
        "sequence_bias": [[[a, b], 1e4], [[b, c], 1e4], [[c, a], 1e4]],
        "logprobs": 0,
        "max_new_tokens": 40,
    }
    prompt = np.concatenate([prompts(20)[0], [a, b, c, a]])
    plain = generator.generate([prompt], no_repeat_ngram_size=30, **cycle)[0][0]
    runs: list[int] = []
    run = decoder_module.Batch.run

    def counted(batch: Any, tokens: Any, *rest: Any) -> Any:
        runs.append(tokens.shape[1])
        return run(batch, tokens, *rest)

    monkeypatch.setattr(decoder_module.Batch, "run", counted)
    fast = generator.generate([prompt], no_repeat_ngram_size=30, prompt_lookup_num_tokens=8, **cycle)[0][0]
    assert fast.ids.tolist() == plain.ids.tolist() and set(fast.ids[:20]) == {a, b, c} != set(fast.ids)
    assert len(runs) < 20
    # The forced tokens say nothing about the cache; the model's own probabilities of them do.
    assert fast.logprobs is not None and plain.logprobs is not None
    np.testing.assert_allclose(fast.logprobs, plain.logprobs, atol=1e-5)


def test_speculation_needs_all_positions(opened: Opened, rows: list[Any]) -> None:
    with pytest.raises(UsageError, match="--all-logits"):
        opened.generator("ort").generate(rows, prompt_lookup_num_tokens=3)


@every_bundle
def test_up_to_the_last_token_that_the_model_takes(opened: Opened, name: str) -> None:
    row = prompts(LENGTH - 40)[0]
    short = prompts(5)[0]
    generator = opened.generator(name)
    want = uncached(opened.session("ort"), row, 40)
    assert ids(generator.generate([row], max_new_tokens=40)) == [want]
    assert ids(generator.generate([row, short], max_new_tokens=40))[0] == want
    # A default longer than the room is cut to it, as the model's own files often say more than fits.
    says_more = opened.generator(name, config=GenerationConfig(max_length=10_000))
    assert len(ids(says_more.generate([row]))[0]) == 40


@every_target
def test_seeds_reproduce_and_rows_do_not_depend_on_each_other(opened: Opened, rows: list[Any], name: str) -> None:
    generator = opened.generator(name)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
    first = generator.generate(rows, seed=5, **options)
    assert ids(generator.generate(rows, seed=5, batch_size=3, **options)) == ids(first)
    assert [ids(generator.generate([row], seed=5, **options)) for row in rows] == [ids([one]) for one in first]
    assert ids(generator.generate(rows, seed=6, **options)) != ids(first)
    assert first[0][0].ids.tolist() != first[0][1].ids.tolist()


@every_target
def test_logprobs_are_the_models_and_scoring_agrees(opened: Opened, rows: list[Any], name: str) -> None:
    generator = opened.generator(name)
    found = generator.generate(rows, max_new_tokens=6, logprobs=3, temperature=0.5, do_sample=True, seed=1)
    whole = [np.concatenate([row, one[0].ids]) for row, one in zip(rows, found, strict=True)]
    scores = generator.score(whole)
    for row, one, score, text in zip(rows, found, scores, whole, strict=True):
        assert score.shape == (len(text) - 1,)
        assert one[0].logprobs is not None and one[0].top_logprobs is not None
        np.testing.assert_allclose(one[0].logprobs, score[-6:], atol=1e-5)
        logits = full_logits(opened.session("ort"), row).astype(np.float64)
        logs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert abs(one[0].logprobs[0] - logs[one[0].ids[0]]) < 1e-4
        assert [i for i, _ in one[0].top_logprobs[0]] == np.argsort(-logs)[:3].tolist()


def test_scores_do_not_depend_on_how_the_text_is_cut(
    opened: Opened, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = np.concatenate(rows)
    want = opened.generator("ort").score([row])[0]
    for name in ("ort-all", "onnx-all", "static-all", "onnx"):
        for size in (1 << 20, 7 * 4 * VOCABULARY):
            monkeypatch.setattr(decoder_module, "LOGITS_BYTES", size)
            np.testing.assert_allclose(opened.generator(name).score([row])[0], want, atol=1e-4)
            assert ids(opened.generator(name).generate([row], max_new_tokens=8)) == [
                uncached(opened.session("ort"), row, 8)
            ]


@every_target
def test_beams_continue_the_right_rows(opened: Opened, rows: list[Any], name: str) -> None:
    """Every beam's score is the sum of its tokens' log-probabilities, computed anew."""
    generator = opened.generator(name)
    found = generator.generate(rows, max_new_tokens=8, num_beams=4, num_return_sequences=3)
    for row, one in zip(rows, found, strict=True):
        totals = [generator.score([np.concatenate([row, beam.ids])])[0][-8:].sum() for beam in one]
        assert totals == sorted(totals, reverse=True)
        greedy = uncached(opened.session("ort"), row, 8)
        assert totals[0] >= generator.score([np.concatenate([row, greedy])])[0][-8:].sum() - 1e-4
        assert len({tuple(beam.ids) for beam in one}) == 3
    assert ids(opened.generator("ort").generate(rows, max_new_tokens=8, num_beams=4, num_return_sequences=3)) == ids(
        found
    )


def test_one_generator_serves_many_threads(opened: Opened, rows: list[Any], expected: list[list[int]]) -> None:
    generator = opened.generator("ort")
    found: list[Any] = [None] * 4

    def work(place: int) -> None:
        found[place] = ids(generator.generate(rows, max_new_tokens=COUNT, batch_size=1 + place))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@every_bundle
@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_of_rows_gives_each_what_it_is_alone(opened: Opened, name: str, seed: int) -> None:
    source = np.random.default_rng(seed)
    generator = opened.generator(name)
    given = prompts(*source.integers(1, [6, 60][seed % 2], 9), seed=seed)
    ends = source.integers(3, VOCABULARY, 12).tolist()
    options: dict[str, Any] = {"max_new_tokens": int(source.integers(5, 60)), "eos_token_id": ends}
    alone = [ids(opened.generator("ort").generate([row], **options))[0] for row in given]
    assert len({len(row) for row in alone}) > 1
    prefix = generator.prefix(given[0])
    for size in (2, 4, 9):
        assert ids(generator.generate(given, batch_size=size, **options)) == alone
        assert ids(generator.generate(given, batch_size=size, prefix=prefix, **options)) == alone
