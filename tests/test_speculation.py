"""Prompt lookup: where guesses come from, how many are made, and that no more are made than have paid lately."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import UsageError
from pinnace.export.builder import export
from pinnace.runtime.engine.session import load
from pinnace.runtime.generation import decoder as decoder_module
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.generation.speculation import PRICE, Trust, find_draft

VOCABULARY = 64
SHAPE = (
    f"vocab_size={VOCABULARY},hidden_size=32,num_hidden_layers=2,num_attention_heads=4,num_key_value_heads=2,"
    "intermediate_size=48,max_position_embeddings=512"
)
# Runs and tokens are counted, so nothing may end a row early.
COUNT: dict[str, Any] = {"max_new_tokens": 60, "eos_token_id": ()}


@pytest.mark.parametrize(
    ("ids", "count", "draft", "size"),
    [
        ([1, 2, 3, 4, 5, 2, 3, 4], 3, [5, 2, 3], 3),  # three tokens match
        ([2, 3, 9, 2, 3, 8, 7, 2, 3], 1, [8], 2),  # the latest of two places
        ([9, 3, 4, 5, 3], 8, [4, 5, 3], 1),  # no more than there is
        ([7, 7, 7, 7], 2, [7], 3),
        ([1, 2, 3], 4, [], 0),
        ([1], 4, [], 0),
    ],
)
def test_a_draft_is_what_followed_the_longest_match(ids: list[int], count: int, draft: list[int], size: int) -> None:
    found = find_draft(np.array(ids), count)
    assert (found[0].tolist(), found[1]) == (draft, size)


def test_as_many_guesses_are_made_as_pay() -> None:
    def best(share: float, most: int) -> int:
        rates = [sum(share**i for i in range(w + 1)) / (1 + PRICE * w) for w in range(most + 1)]
        return int(np.argmax(rates))

    for share in (0.0, 0.05, 0.3, 0.6, 0.9, 1.0):
        trust = Trust()
        trust._right = [share] * 4
        for most in (0, 1, 4, 50):
            assert trust.width(2, most) == best(share, most), (share, most)


def test_trust_is_lost_and_won_by_what_comes_and_kept_for_each_length_of_match() -> None:
    trust = Trust()
    assert trust.width(3, 8) > 0
    for _ in range(20):
        trust.learn(1, 0, wrong=True)
    assert (trust.width(1, 8), trust.width(3, 8)) == (0, Trust().width(3, 8))
    trust.learn(1, 2, wrong=False)
    assert trust.width(1, 8) > 0
    trust.learn(3, 20, wrong=False)
    assert trust.width(3, 8) == 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speculation")
    options: dict[str, Any] = {"task": "generate", "random_weights": True, "config": SHAPE, "validate": False}
    export("apertus", output=folder / "last", **options)
    return export("apertus", output=folder / "all", all_logits=True, **options).path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Lengths of the runs of a test, the prompt's first."""
    found: list[int] = []
    run = decoder_module.Batch.run

    def counted(batch: Any, ids: Any, *rest: Any) -> Any:
        found.append(ids.shape[1])
        return run(batch, ids, *rest)

    monkeypatch.setattr(decoder_module.Batch, "run", counted)
    yield found


def ring(size: int) -> dict[str, Any]:
    """Options that make the tokens from 8 on follow each other in a ring."""
    pairs = [[[8 + i, 8 + (i + 1) % size], 1e4] for i in range(size)]
    return {"sequence_bias": pairs, **COUNT}


def test_a_text_that_repeats_is_guessed_in_full(bundle: Path, runs: list[int]) -> None:
    generator = Generator(load(bundle))
    prompt = np.array([*range(8, 18), 8, 9, 10])
    plain = generator.generate([prompt], **ring(10))[0][0].ids
    runs.clear()
    fast = generator.generate([prompt], prompt_lookup_num_tokens=8, **ring(10))[0][0].ids
    assert fast.tolist() == plain.tolist() == [8 + (3 + i) % 10 for i in range(60)]
    assert max(runs[1:]) == 9
    assert len(runs) <= 12


def test_guesses_that_are_always_wrong_are_soon_left_out(bundle: Path, runs: list[int]) -> None:
    generator = Generator(load(bundle))
    # Every token stood there before, and none may be followed by what followed it.
    never: dict[str, Any] = {"no_repeat_ngram_size": 2, "suppress_tokens": list(range(40, VOCABULARY)), **COUNT}
    prompt = np.arange(40)
    plain = generator.generate([prompt], **never)[0][0].ids
    runs.clear()
    found = generator.generate([prompt], prompt_lookup_num_tokens=8, **never)[0][0].ids
    assert found.tolist() == plain.tolist()
    assert len(runs) == 60
    wrong = [length - 1 for length in runs[1:] if length > 1]
    assert 0 < sum(wrong) < 15
    assert set(runs[-30:]) == {1}


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_more_guesses_than_one_run_gives_logits_for_are_cut(
    bundle: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    monkeypatch.setattr(decoder_module, "LOGITS_BYTES", 4 * VOCABULARY * positions)
    generator = Generator(load(bundle))
    prompt = np.array([*range(8, 18), 8, 9, 10])
    found = generator.generate([prompt], prompt_lookup_num_tokens=50, **ring(10))[0][0].ids
    assert found.tolist() == [8 + (3 + i) % 10 for i in range(60)]
    assert max(runs) == positions


def test_without_all_logits_the_error_gives_the_command(bundle: Path) -> None:
    generator = Generator(load(bundle.parent / "last"))
    command = r"pinnace export apertus --random-weights --task text-generation --all-logits -o last"
    with pytest.raises(UsageError, match=command):
        generator.generate([[8]], prompt_lookup_num_tokens=2)
    # Asked before anything is run, also where there is nothing to generate from.
    with pytest.raises(UsageError, match="--all-logits"):
        generator.generate([], prompt_lookup_num_tokens=2)
