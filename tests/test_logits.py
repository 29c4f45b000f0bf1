"""Score processors: each one's result, and their order, are those of transformers on fixed scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from transformers.generation import logits_process as oracle

from pinnace.errors import InputError
from pinnace.runtime.generation import logits, logits_filters
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.logits import Processor, processors

torch.set_num_threads(1)
V, ROWS, LENGTH = 97, 5, 12
Scores = NDArray[np.float32]


def scores(seed: int, vocabulary: int = V, rows: int = ROWS) -> Scores:
    return (np.random.default_rng(seed).normal(size=(rows, vocabulary)) * 4).astype(np.float32)


def ids(seed: int, length: int = LENGTH, vocabulary: int = V) -> NDArray[np.int64]:
    """Rows with many repeats, so that n-grams and penalties have something to find."""
    return np.random.default_rng(seed).integers(0, min(vocabulary, 9), size=(ROWS, length))


def theirs(processor: Any, rows: NDArray[np.int64], given: Scores) -> Scores:
    return np.asarray(processor(torch.from_numpy(rows), torch.from_numpy(given.copy())).numpy())


FILTERS: list[tuple[Callable[[int], Any], Callable[[int], Any]]] = [
    (lambda _: logits_filters.temperature(0.3), lambda _: oracle.TemperatureLogitsWarper(0.3)),
    (lambda k: logits_filters.top_k(7, k), lambda k: oracle.TopKLogitsWarper(7, min_tokens_to_keep=k)),
    (lambda k: logits_filters.top_k(1, k), lambda k: oracle.TopKLogitsWarper(1, min_tokens_to_keep=k)),
    (lambda k: logits_filters.top_k(9999, k), lambda k: oracle.TopKLogitsWarper(9999, min_tokens_to_keep=k)),
    (lambda k: logits_filters.top_p(0.9, k), lambda k: oracle.TopPLogitsWarper(0.9, min_tokens_to_keep=k)),
    (lambda k: logits_filters.top_p(0.001, k), lambda k: oracle.TopPLogitsWarper(0.001, min_tokens_to_keep=k)),
    (lambda k: logits_filters.min_p(0.1, k), lambda k: oracle.MinPLogitsWarper(0.1, min_tokens_to_keep=k)),
    (lambda k: logits_filters.min_p(1.0, k), lambda k: oracle.MinPLogitsWarper(1.0, min_tokens_to_keep=k)),
    (lambda k: logits_filters.typical_p(0.6, k), lambda k: oracle.TypicalLogitsWarper(0.6, min_tokens_to_keep=k)),
    (lambda k: logits_filters.typical_p(0.05, k), lambda k: oracle.TypicalLogitsWarper(0.05, min_tokens_to_keep=k)),
]


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("index", range(len(FILTERS)))
@pytest.mark.parametrize("seed", range(5))
def test_filters(seed: int, index: int, keep: int) -> None:
    mine, other = (make(keep) for make in FILTERS[index])
    for vocabulary in (V, 5000):
        given = scores(seed, vocabulary)
        before = given.copy()
        np.testing.assert_array_equal(mine(given), theirs(other, ids(0), given))
        np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("mass", [0.2, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("sharpness", [0.05, 1.0, 2.0])
def test_a_nucleus_of_a_large_vocabulary(mass: float, sharpness: float) -> None:
    """Small enough to be found among the likeliest tokens alone, and too large for that."""
    given = scores(0, 20_000, 2) * np.float32(sharpness)
    expected = theirs(oracle.TopPLogitsWarper(mass), ids(0)[:2], given)
    differ = np.isfinite(logits_filters.top_p(mass)(given)) != np.isfinite(expected)
    # Where 10,000 shares are nearly equal, rounding decides at which of them the mass is reached.
    assert differ.sum(axis=1).max() <= 2


@pytest.mark.parametrize("index", range(len(FILTERS)))
def test_filters_behind_another(index: int) -> None:
    """Most scores are minus infinity already."""
    mine, other = (make(1) for make in FILTERS[index])
    given = logits_filters.top_k(20)(scores(3, 1000))
    np.testing.assert_array_equal(mine(given), theirs(other, ids(0), given))


RULES: list[tuple[str, Callable[[], Processor], Callable[[], Any]]] = [
    ("repetition", lambda: logits.repetition_penalty(1.7), lambda: oracle.RepetitionPenaltyLogitsProcessor(1.7)),
    ("unigrams", lambda: logits.no_repeat_ngrams(1), lambda: oracle.NoRepeatNGramLogitsProcessor(1)),
    ("bigrams", lambda: logits.no_repeat_ngrams(2), lambda: oracle.NoRepeatNGramLogitsProcessor(2)),
    ("trigrams", lambda: logits.no_repeat_ngrams(3), lambda: oracle.NoRepeatNGramLogitsProcessor(3)),
    ("long ngrams", lambda: logits.no_repeat_ngrams(50), lambda: oracle.NoRepeatNGramLogitsProcessor(50)),
    (
        "bias",
        lambda: logits.sequence_bias([((5,), 2.5), ((1, 2), -3.0), ((7, 2), 1.0), ((3, 4, 96), -np.inf)], V),
        lambda: oracle.SequenceBiasLogitsProcessor({(5,): 2.5, (1, 2): -3.0, (7, 2): 1.0, (3, 4, 96): -float("inf")}),
    ),
    ("suppress", lambda: logits.forbid([3, 5, 500]), lambda: oracle.SuppressTokensLogitsProcessor([3, 5, 500])),
    (
        "suppress at the beginning",
        lambda: logits.forbid_at([3, 5], np.full(ROWS, LENGTH)),
        lambda: oracle.SuppressTokensAtBeginLogitsProcessor([3, 5], LENGTH),
    ),
    (
        "suppress at another place",
        lambda: logits.forbid_at([3, 5], np.full(ROWS, LENGTH + 1)),
        lambda: oracle.SuppressTokensAtBeginLogitsProcessor([3, 5], LENGTH + 1),
    ),
    (
        "no end yet",
        lambda: logits.forbid_until([3, 9], np.full(ROWS, LENGTH + 1)),
        lambda: oracle.MinLengthLogitsProcessor(LENGTH + 1, [3, 9]),
    ),
    (
        "an end may come",
        lambda: logits.forbid_until([3, 9], np.full(ROWS, LENGTH)),
        lambda: oracle.MinNewTokensLengthLogitsProcessor(LENGTH - 2, 2, [3, 9]),
    ),
    (
        "forced end",
        lambda: logits.force_at([3, 9], np.full(ROWS, LENGTH), V),
        lambda: oracle.ForcedEOSTokenLogitsProcessor(LENGTH + 1, [3, 9]),
    ),
]


@pytest.mark.parametrize(("name", "make", "make_theirs"), RULES, ids=[rule[0] for rule in RULES])
@pytest.mark.parametrize("seed", range(5))
def test_rules(seed: int, name: str, make: Callable[[], Processor], make_theirs: Callable[[], Any]) -> None:
    rows, given = ids(seed), scores(seed)
    before = given.copy()
    np.testing.assert_array_equal(make()(list(rows), given), theirs(make_theirs(), rows, given))
    np.testing.assert_array_equal(given, before)


def test_the_forced_first_token() -> None:
    one, given = ids(0, length=1), scores(0)
    expected = theirs(oracle.ForcedBOSTokenLogitsProcessor(4), one, given)
    made = processors(GenerationConfig(forced_bos_token_id=4), [1] * ROWS, V)
    np.testing.assert_array_equal(made(list(one), given), expected)
    np.testing.assert_array_equal(made(list(ids(0, length=2)), given), given)


def everything(sampled: bool, beams: int) -> dict[str, Any]:
    return {
        "max_new_tokens": 6,
        "min_new_tokens": 2,
        "min_length": 4,
        "sequence_bias": [[[5], 2.5], [[1, 2], -3.0]],
        "bad_words_ids": [[8], [3, 4], [2]],
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [6, 7],
        "begin_suppress_tokens": [11],
        "forced_eos_token_id": 10,
        "eos_token_id": [2, 10],
        "num_beams": beams,
        **({"do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.95, "min_p": 0.01} if sampled else {}),
        **({"typical_p": 0.9} if sampled else {}),
    }


class Model(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """Only there to make transformers choose and order its processors."""

    config_class = transformers.PretrainedConfig
    main_input_name = "input_ids"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("step", range(6))
def test_all_together_in_their_order(step: int, sampled: bool, beams: int) -> None:
    options = everything(sampled, beams)
    prompt = LENGTH - step
    config = transformers.GenerationConfig(**options, max_length=prompt + 6)
    config._eos_token_tensor = torch.tensor([2, 10])
    chain = Model(transformers.PretrainedConfig(vocab_size=V))._get_logits_processor(
        config, input_ids_seq_length=prompt, model_kwargs={}
    )
    assert len(chain) == (14 if sampled else 9)
    mine = processors(GenerationConfig(**options), [prompt] * ROWS, V)
    for seed in range(5):
        rows, given = ids(seed), scores(seed)
        np.testing.assert_array_equal(mine(list(rows), given), theirs(chain, rows, given))


def test_a_row_in_a_ragged_batch_gets_what_it_gets_alone() -> None:
    options = everything(True, 1) | {"presence_penalty": 0.5, "frequency_penalty": 0.25}
    config = GenerationConfig(**options)
    source = np.random.default_rng(5)
    prompts = [1, 3, 7, 2, 30]
    rows = [source.integers(0, 9, size=prompt + new) for prompt, new in zip(prompts, [0, 5, 2, 4, 0], strict=True)]
    given = scores(1)
    together = processors(config, prompts, V)(rows, given)
    for index, prompt in enumerate(prompts):
        alone = processors(config, [prompt], V)([rows[index]], given[index : index + 1])
        np.testing.assert_array_equal(alone[0], together[index])


def test_presence_and_frequency_as_openai_defines_them() -> None:
    config = GenerationConfig(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((90, 100.0), (91, -100.0)))
    row = np.array([1, 1, 1, 4, 4, 5])
    given = scores(2)[:1]
    out = processors(config, [3], V)([row], given)
    expected = given.copy()
    expected[0, 4] -= 2 * 0.25 + 0.5
    expected[0, 5] -= 0.25 + 0.5
    expected[0, 90] += 100
    expected[0, 91] -= 100
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_new_tokens_come_before_the_length_in_all() -> None:
    config = GenerationConfig(min_length=50, min_new_tokens=2, eos_token_id=(2,))
    for new, forbidden in ((1, True), (2, False)):
        out = processors(config, [3], V)([np.ones(3 + new, np.int64)], scores(0)[:1])
        assert np.isneginf(out[0, 2]) == forbidden


def test_the_end_is_forced_where_the_model_takes_no_more() -> None:
    config = GenerationConfig(forced_eos_token_id=(2,))
    row = [np.ones(9, np.int64)]
    assert processors(config, [5], V, [10])(row, scores(0)[:1]).argmax() == 2
    assert np.isfinite(processors(config, [5], V)(row, scores(0)[:1])).all()


def test_tokens_that_the_output_lacks() -> None:
    """An embedding may have more rows than there are scores."""
    rows = [np.array([1, 500, 2, 500, 2])] * ROWS
    config = GenerationConfig(repetition_penalty=1.2, no_repeat_ngram_size=2, frequency_penalty=0.1)
    out = processors(config, [1] * ROWS, V)(rows, scores(0))
    assert out.shape == (ROWS, V)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {V: 1.0}},
        {"sequence_bias": [[[1, V], 1.0]]},
        {"bad_words_ids": [[V]]},
        {"forced_bos_token_id": V},
        {"forced_eos_token_id": V},
    ],
)
def test_an_option_that_names_a_token_outside_the_vocabulary(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"token {V}, expected ids from 0 to {V - 1}"):
        processors(GenerationConfig().merged(**options), [1], V)


def test_without_options_the_scores_pass_untouched() -> None:
    given = scores(0)
    assert processors(GenerationConfig(), [3] * ROWS, V)(list(ids(0)), given) is given


def test_log_softmax() -> None:
    given = scores(4, 5000)
    given[:, 7] = -np.inf
    expected = torch.log_softmax(torch.from_numpy(given), dim=-1).numpy()
    np.testing.assert_allclose(logits_filters.log_softmax(given), expected, atol=1e-5)
    np.testing.assert_allclose(logits_filters.softmax(given).sum(axis=1), 1, atol=1e-6)


def test_a_token_suppressed_at_the_beginning_comes_after_a_forced_one() -> None:
    made = processors(GenerationConfig(begin_suppress_tokens=(3,), forced_bos_token_id=4), [1], V)
    given = scores(0)[:1]
    assert np.isfinite(made([np.array([5])], given)).sum() == 1
    assert np.flatnonzero(np.isneginf(made([np.array([5, 4])], given))).tolist() == [3]
    assert made([np.array([5, 4, 1])], given) is given
