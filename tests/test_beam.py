"""Beam search: transformers' own sequences from tables of fixed scores, and groups against an independent oracle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from pinnace.errors import NumericalError
from pinnace.runtime.generation.beam import BeamSearch
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.logits import processors
from pinnace.runtime.generation.logits_filters import log_softmax
from tests.conftest import DATA

torch.set_num_threads(1)
V, END, PAD = 13, 3, 1
Table = NDArray[np.float32]


def table(seed: int, sharpness: float = 2.0) -> Table:
    """Scores of the next token given the last two ``(V, V, V)``."""
    return (np.random.default_rng(seed).normal(size=(V, V, V)) * sharpness).astype(np.float32)


class TableModel(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """A language model for transformers' generate that looks its scores up."""

    config_class = transformers.PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, scores: Table) -> None:
        super().__init__(transformers.PretrainedConfig(vocab_size=V, eos_token_id=END, pad_token_id=PAD))
        self.scores = torch.nn.Parameter(torch.from_numpy(scores), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        previous = torch.roll(input_ids, 1, dims=1)
        logits = self.scores[previous, input_ids]
        return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}


def theirs(scores: Table, prompts: NDArray[np.int64], **options: Any) -> tuple[list[list[int]], list[float]]:
    model = TableModel(scores)
    out = model.generate(
        torch.from_numpy(prompts),
        use_cache=False,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    rows = [row[prompts.shape[1] :].tolist() for row in out.sequences]
    return rows, out.sequences_scores.tolist()


def ours(scores: Table, prompts: NDArray[np.int64], limits: list[int], **options: Any) -> BeamSearch:
    config = GenerationConfig(eos_token_id=(END,), pad_token_id=PAD).merged(**options)
    search = BeamSearch(config, len(prompts), limits)
    start = np.repeat(prompts, config.num_beams, axis=0)
    apply = processors(config, [prompts.shape[1]] * len(start), V)
    rows = start
    while not search.finished:
        log_probs = apply(list(rows), log_softmax(scores[rows[:, -2], rows[:, -1]]))
        tokens, parents = search.step(log_probs)
        rows = np.concatenate([rows[parents], tokens[:, None]], axis=1)
        assert np.array_equal(rows[:, prompts.shape[1] :], search.sequences)
    return search


def same(search: BeamSearch, expected: tuple[list[list[int]], list[float]]) -> None:
    found = [one for prompt in search.results() for one in prompt]
    assert len(found) == len(expected[0])
    for one, tokens, score in zip(found, *expected, strict=True):
        padded = one.tokens.tolist() + [PAD] * (len(tokens) - len(one.tokens))
        assert padded == tokens
        assert one.score == pytest.approx(score, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, -1.0, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_sequences_are_those_of_transformers(seed: int, penalty: float, early: bool | str) -> None:
    scores = table(seed)
    prompts = np.random.default_rng(seed + 100).integers(4, V, size=(3, 4))
    options = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": penalty, "early_stopping": early}
    options = {"max_new_tokens": 12, **options}
    same(ours(scores, prompts, [12] * 3, **options), theirs(scores, prompts, **options))


@pytest.mark.parametrize("ends", [(), (3,), (3, 5, 7)])
@pytest.mark.parametrize("beams", [2, 5])
def test_any_number_of_end_tokens_and_processors(beams: int, ends: tuple[int, ...]) -> None:
    scores = table(9, sharpness=1.0)
    prompts = np.array([[4, 5, 6], [8, 2, 1]])
    options: dict[str, Any] = {
        "num_beams": beams,
        "num_return_sequences": beams,
        "max_new_tokens": 9,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.3,
        "min_new_tokens": 3,
        "eos_token_id": list(ends),
    }
    expected = theirs(scores, prompts, **{**options, "eos_token_id": list(ends) or None, "pad_token_id": PAD})
    same(ours(scores, prompts, [9, 9], **options), expected)


def test_a_prompt_alone_gets_what_it_gets_in_a_batch() -> None:
    scores = table(3)
    prompts = np.random.default_rng(4).integers(4, V, size=(5, 2))
    limits = [3, 12, 1, 7, 12]
    for sampled in (False, True):
        options = {"num_beams": 3, "num_return_sequences": 3, "do_sample": sampled, "seed": 5 if sampled else None}
        together = ours(scores, prompts, limits, **options).results()
        for index, limit in enumerate(limits):
            alone = ours(scores, prompts[index : index + 1], [limit], **options).results()[0]
            assert [one.tokens.tolist() for one in alone] == [one.tokens.tolist() for one in together[index]]
            assert max(len(one.tokens) for one in alone) <= limit


def test_sampled_beams_change_with_the_seed_and_stay_in_the_filter() -> None:
    scores = table(5, sharpness=0.5)
    prompts = np.array([[4, 5]])
    options = {"num_beams": 3, "do_sample": True, "top_k": 4, "max_new_tokens": 8}
    drawn = {tuple(ours(scores, prompts, [8], seed=seed, **options).results()[0][0].tokens) for seed in range(8)}
    assert len(drawn) > 4
    for tokens in drawn:
        row = [4, 5, *tokens]
        for place in range(2, len(row)):
            assert row[place] in np.argsort(-scores[row[place - 2], row[place - 1]])[:4]


def diverse(scores: Table, prompt: list[int], groups: int, width: int, limit: int, penalty: float) -> list[list[int]]:
    """Diverse beam search from its definition, without an end token: each group a plain loop over all continuations."""
    beams = [[(0.0, list(prompt))] for _ in range(groups)]
    for _ in range(limit):
        chosen: list[int] = []
        for index in range(groups):
            options = []
            for total, tokens in beams[index]:
                logs = log_softmax(scores[tokens[-2], tokens[-1]])
                for token in range(V):
                    options.append((total + float(logs[token]) - penalty * chosen.count(token), [*tokens, token]))
            beams[index] = sorted(options, key=lambda pair: -pair[0])[:width]
            chosen += [tokens[-1] for _, tokens in beams[index]]
    found = sorted((pair for group in beams for pair in group), key=lambda pair: -pair[0])
    return [tokens[len(prompt) :] for _, tokens in found]


@pytest.mark.parametrize(("groups", "width"), [(2, 2), (3, 1), (2, 3)])
def test_groups_follow_the_definition(groups: int, width: int) -> None:
    scores = table(11)
    prompts = np.array([[4, 5], [6, 7]])
    options = {"num_beams": groups * width, "num_beam_groups": groups, "diversity_penalty": 0.7}
    search = ours(
        scores, prompts, [6, 6], **options, num_return_sequences=groups * width, eos_token_id=[], max_new_tokens=6
    )
    for prompt, found in zip(prompts.tolist(), search.results(), strict=True):
        assert [one.tokens.tolist() for one in found] == diverse(scores, prompt, groups, width, 6, 0.7)


GROUPS = json.loads((DATA / "group_beam.transformers-4.57.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: "{seed}-{groups}-{beams}-{sharpness}".format(**case))
def test_groups_with_an_end_token_are_those_of_the_last_transformers_that_had_them(case: dict[str, Any]) -> None:
    scores = table(case["seed"], case["sharpness"])
    # Padding, which that program's groups penalise once one of them is done, is never chosen.
    scores[:, :, PAD] = -30
    prompts = np.random.default_rng(case["seed"] + 100).integers(4, V, size=(2, 3))
    options: dict[str, Any] = {"num_beams": case["beams"], "num_return_sequences": case["beams"]}
    options |= {"num_beam_groups": case["groups"], "diversity_penalty": 0.6, "early_stopping": True}
    found = [one for prompt in ours(scores, prompts, [8, 8], **options).results() for one in prompt]
    assert [one.tokens.tolist() for one in found] == case["sequences"]
    assert [one.score for one in found] == pytest.approx(case["scores"], abs=2e-5)


def test_a_strong_penalty_makes_groups_differ() -> None:
    search = ours(
        table(2), np.array([[4, 5]]), [5], num_beams=4, num_beam_groups=4, diversity_penalty=1e4, num_return_sequences=4
    )
    first = [int(one.tokens[0]) for one in search.results()[0]]
    assert len(set(first)) == 4


def test_a_caller_can_end_candidates_and_the_search() -> None:
    scores = table(1)
    config = GenerationConfig(num_beams=3, num_return_sequences=3, eos_token_id=(END,))
    search = BeamSearch(config, 1, [50])
    seen: list[tuple[int, list[int]]] = []

    def stopped(prompt: int, tokens: NDArray[np.int64]) -> bool:
        seen.append((prompt, tokens.tolist()))
        return int(tokens[-1]) % 2 == 0

    search.step(log_softmax(np.tile(scores[4, 5], (3, 1))), stopped)
    assert {prompt for prompt, _ in seen} == {0}
    assert (search.sequences % 2 == 1).all()
    search.step(log_softmax(scores[5, search.sequences[:, -1]]), last=True)
    assert search.finished
    assert len(search.results()[0]) == 3


def test_scores_that_are_no_numbers_are_refused() -> None:
    search = BeamSearch(GenerationConfig(num_beams=2), 1, [5])
    with pytest.raises(NumericalError, match="NaN"):
        search.step(np.full((2, V), np.nan, dtype=np.float32))
    with pytest.raises(NumericalError, match="forbid every token"):
        search.step(np.full((2, V), -np.inf, dtype=np.float32))


def test_fewer_continuations_than_beams() -> None:
    scores = np.full((4, V), -np.inf, dtype=np.float32)
    scores[:, :2] = np.log(0.5)
    search = BeamSearch(GenerationConfig(num_beams=4, num_return_sequences=4), 1, [1])
    search.step(scores)
    assert sorted(one.tokens.tolist() for one in search.results()[0]) == [[0], [1]]
