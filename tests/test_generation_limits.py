"""What stops a generation: bad input before anything runs, the user, the clock, and numbers that are none."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pinnace.errors import BundleError, DeadlineExceeded, InputError, MachineError, NumericalError, UsageError
from pinnace.runtime.engine.cancellation import Cancellation, RunLimit
from pinnace.runtime.engine.session import load
from pinnace.runtime.generation import decoder as decoder_module
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.generation.row import Row
from pinnace.runtime.generation.slots import Slots
from pinnace.runtime.pipelines.table import pipeline
from pinnace.spec import TensorSpec
from tests.generation_bundles import LENGTH, VOCABULARY, Opened, decoder_of, opened, prompts, uncached
from tests.tiny_bundle import facts_by_hand, make_bundle, write_manifest

__all__ = ["decoder_of", "opened"]

BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([[]], {}, InputError, "no token"),
    ([[3, VOCABULARY]], {}, InputError, f"id {VOCABULARY} at 1; expected 0 to {VOCABULARY - 1}"),
    ([[3], [-1]], {}, InputError, "prompt 1 has the id -1"),
    ([[3] * (LENGTH + 1)], {}, InputError, f"the model takes {LENGTH}"),
    ([[3] * LENGTH], {}, InputError, "no room"),
    ([[3] * 100], {"max_new_tokens": LENGTH - 99}, InputError, f"ask for at most {LENGTH - 100}"),
    ([[3] * LENGTH], {"max_new_tokens": 1}, InputError, "shorten it"),
    ([[3]], {"eos_token_id": [1, VOCABULARY]}, UsageError, f"eos_token_id has {VOCABULARY}"),
    ([[3]], {"stop_strings": ["</s>x"]}, UsageError, "special token '</s>'"),
    ([[3]], {"max_new_tokens": 2**31 - 1}, InputError, f"the {LENGTH} tokens that the model takes"),
    ([[3]], {"max_new_tokens": 2**63}, UsageError, "max_new_tokens"),
    ([[3]], {"max_length": LENGTH + 1}, InputError, f"max_length is {LENGTH + 1}, .*ask for at most {LENGTH}"),
    ([[3]], {"num_return_sequences": 2**40}, UsageError, "num_return_sequences"),
    ([[3]], {"logprobs": 10**9}, UsageError, "at most 100"),
    ([[3.5]], {}, InputError, "expected a row of token ids"),
    ([["a"]], {}, InputError, "expected a row of token ids"),
    ([[[3]]], {}, InputError, "expected a row of token ids"),
    ([[2**64]], {}, InputError, "prompt 0"),
    (np.array([[2**63]], np.uint64), {}, InputError, "no token"),
    ("text", {}, InputError, "tokenize texts first"),
    (np.array(5), {}, InputError, "rows of token ids, got ndarray"),
    ([[3]], {"attention_mask": np.array(1)}, InputError, "attention_mask"),
    ([[3]], {"cancellation": True}, UsageError, "cancellation is True"),
    ([[3]], {"prefix": 5}, UsageError, "prefix is int"),
    ([[3]], {"max_tokens": 3}, UsageError, "Did you mean"),
    ([[3]], {"batch_size": 0}, UsageError, "batch_size"),
    ([[3]], {"timeout": -1.0}, UsageError, "timeout"),
    ([[3]], {"attention_mask": [[1, 1]]}, InputError, "attention_mask"),
    ([[3]], {"attention_mask": 5}, InputError, "attention_mask"),
    ([[3]], {"attention_mask": [[0]]}, InputError, "no token"),
    ([[3]], {"bad_words_ids": [[VOCABULARY]], "do_sample": True}, InputError, f"token {VOCABULARY}"),
    ([[3]], {"do_sample": False, "num_beams": 2, "prompt_lookup_num_tokens": 2}, UsageError, "prompt_lookup"),
    ([[3]], {"num_beams": 2, "logprobs": 1}, UsageError, "logprobs"),
]


@pytest.mark.parametrize("name", ["ort", "onnx", "static"])
@pytest.mark.parametrize(("given", "options", "error", "text"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_bad_input_is_refused_before_anything_runs(
    opened: Opened, name: str, given: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    generator = opened.generator(name)
    began = time.process_time()
    with pytest.raises(error, match=text):
        generator.generate(given, **options)
    assert time.process_time() - began < 1
    with pytest.raises(error, match=text):
        list(generator.stream(given, **options))


def most_running(monkeypatch: pytest.MonkeyPatch, generator: Generator, rows: list[Any], **options: Any) -> int:
    """Generate beside a generator without a limit, whose ids must come out; return how many rows ran at once."""
    seen, step = [0], Slots.step

    def counting(self: Slots) -> Any:
        seen.append(self.running)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Slots, "step", counting)
        got = generator.generate(rows, **options)
    want = Generator(load(generator.decoder.session.bundle.path, threads=1)).generate(rows, **options)
    assert [[one.ids.tolist() for one in row] for row in got] == [[one.ids.tolist() for one in row] for row in want]
    return max(seen)


def test_rows_that_would_not_fit_the_memory_wait_and_one_that_cannot_is_refused(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = opened.generator("ort")
    monkeypatch.setattr(opened.session("ort"), "_memory", 100_000)
    assert 1 <= most_running(monkeypatch, generator, prompts(5, 5, 5, 5), max_new_tokens=40) < 4
    monkeypatch.setattr(opened.session("ort"), "_memory", 10_000)
    with pytest.raises(InputError, match="1 rows of 105 tokens"):
        generator.generate(prompts(5, 5), max_new_tokens=100)


@pytest.mark.parametrize("name", ["ort", "onnx", "static"])
def test_a_memory_limit_lets_fewer_rows_run_and_refuses_what_cannot(
    opened: Opened, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened.make(name)
    weights = load(folder, threads=1, memory_limit=1 << 30).footprint.weights
    generator = Generator(load(folder, threads=1, memory_limit=weights + 300_000))
    assert len(generator.generate(prompts(5), max_new_tokens=5)) == 1
    for asked in (None, 12):
        ran = most_running(monkeypatch, generator, prompts(*[5] * 16), max_new_tokens=100, batch_size=asked)
        assert 1 <= ran < 12
    roomy = Generator(load(folder, threads=1, memory_limit=1 << 30))
    assert most_running(monkeypatch, roomy, prompts(*[5] * 20), max_new_tokens=100) == 16
    with monkeypatch.context() as patch:
        patch.setattr(decoder_module, "make_cache", lambda *_: pytest.fail("keys and values were allocated"))
        with pytest.raises(MachineError, match=r"16 rows of 105 tokens take about .* memory_limit is .* fewer rows"):
            generator.generate(prompts(5), max_new_tokens=100, num_beams=16)
    few = Generator(load(folder, threads=1, memory_limit=weights + 100_000))
    with pytest.raises(MachineError, match="1 rows of 125 tokens"):
        few.generate(prompts(120, 5), max_new_tokens=5)
    for refused in (few.score, lambda rows: few.prefix(rows[0])):
        with pytest.raises(MachineError, match="1 rows of 120 tokens"):
            refused(prompts(120))


def test_too_short_a_row_to_score_is_told_its_length(opened: Opened) -> None:
    for rows, words in (([[3]], "row 0 has 1 token; expected at least 2"), ([[3, 4], []], "row 1 has no token")):
        with pytest.raises(InputError, match=words):
            opened.generator("ort").score(rows)


def test_a_timer_that_is_early_is_right() -> None:
    with RunLimit(max_time=60.0) as limit:
        assert limit.reason() is None
        limit._stop()
        assert limit.reason() == "time" and limit.options.terminate
    with RunLimit(timeout=60.0, max_time=90.0) as limit:
        limit._stop()
        with pytest.raises(DeadlineExceeded, match="60 s"):
            limit.reason()


def test_stop_strings_need_a_tokenizer(opened: Opened) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        Generator(opened.session("ort")).generate([[3]], stop_strings=["a"])


@pytest.mark.parametrize("name", ["ort", "onnx", "static"])
def test_cancelled_within_a_token_and_what_is_there_is_kept(opened: Opened, name: str) -> None:
    generator = opened.generator(name)
    rows = prompts(5, 9)
    want = [uncached(opened.session("ort"), row, 12) for row in rows]
    cancellation = Cancellation()
    got: list[Any] = []
    for token in generator.stream(rows, max_new_tokens=100, cancellation=cancellation):
        got.append(token)
        if len(got) == 12:
            cancellation.cancel()
    assert [[token.id for token in got if token.prompt == i and token.id is not None] for i in (0, 1)] == [
        row[:6] for row in want
    ]
    assert [token.reason for token in got[-2:]] == ["cancelled", "cancelled"]
    with_none = generator.generate(rows, max_new_tokens=5, cancellation=cancellation)
    assert [(one[0].reason, len(one[0].ids)) for one in with_none] == [("cancelled", 0)] * 2
    beams = generator.generate(rows, max_new_tokens=5, num_beams=2, cancellation=cancellation)
    assert [one[0].reason for one in beams] == ["cancelled"] * 2
    with pytest.raises(DeadlineExceeded, match="cancelled"):
        generator.score(rows, cancellation=cancellation)


def test_a_single_row_can_leave_its_batch(opened: Opened) -> None:
    decoder = opened.generator("ort").decoder
    given = prompts(5, 9, 4)
    rows = [Row(prompt, GenerationConfig(), 30, VOCABULARY, (i, 0)) for i, prompt in enumerate(given)]
    with RunLimit() as limit:
        slots = Slots(decoder, limit)
        list(slots.enter(rows[:2]))
        list(slots.step())
        slots.leave(rows[0])
        list(slots.step())
        list(slots.enter(rows[2:]))
        for _ in range(4):
            list(slots.step())
    assert slots.rows == rows[1:] and slots.running == 2
    for row, prompt, count in zip(rows, given, (2, 7, 5), strict=True):
        assert row.ids[len(prompt) :].tolist() == uncached(opened.session("ort"), prompt, count)


@pytest.mark.parametrize("name", ["ort", "onnx"])
def test_rows_that_ended_leave_later_where_they_cannot_now(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    generator = opened.generator(name)
    given = prompts(5, 9, 4)
    want = generator.generate(given, max_new_tokens=8)
    rows = [Row(p, GenerationConfig(), most, VOCABULARY) for p, most in zip(given, (2, 8, 8), strict=True)]

    def none_left(_order: Any) -> None:
        raise MachineError("not enough memory to move")

    with RunLimit() as limit:
        slots = Slots(generator.decoder, limit)
        list(slots.enter(rows))
        list(slots.step())
        assert slots._batch is not None and rows[0].reason == "length"
        with monkeypatch.context() as patch:
            patch.setattr(slots._batch.cache, "keep", none_left)
            with pytest.raises(MachineError, match="to move"):
                list(slots.step())
        assert slots.running == 2
        slots.leave(rows[2])
        while slots.running:
            list(slots.step())
    assert rows[1].ids[len(given[1]) :].tolist() == want[1][0].ids.tolist()


def test_a_stream_that_is_closed_ends_its_generation(opened: Opened) -> None:
    before = threading.active_count()
    stream: Any = opened.generator("ort").stream(prompts(5), max_new_tokens=50, timeout=60.0)
    assert next(stream).id is not None
    assert threading.active_count() == before + 1
    stream.close()
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before


def decoder_bundle(
    folder: Path, nodes: Callable[[], Sequence[onnx.NodeProto]], initializers: Sequence[TensorProto] = ()
) -> Path:
    """A bundle whose ``logits`` come from the given nodes, which may read ``ids``, the new ids as floats."""
    cache = {"layers": 1, "heads": 1, "head_size": 1, "capacity": 64, "in_place": False}

    def change(model: onnx.ModelProto) -> None:
        names = ("input_ids", "attention_mask", "position_ids")
        graph = helper.make_graph(
            [
                helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
                helper.make_node("ReduceSum", ["floats", "one"], ["summed"], keepdims=1),
                helper.make_node("Unsqueeze", ["summed", "two"], ["ids"]),
                helper.make_node("Unsqueeze", ["floats", "ends"], ["new"]),
                helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
                helper.make_node("Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2),
                *nodes(),
            ],
            "main",
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", f"{name}_width"]) for name in names]
            + [
                helper.make_tensor_value_info(f"past_key_values.0.{part}", TensorProto.FLOAT, ["batch", 1, "past", 1])
                for part in ("key", "value")
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 3])]
            + [
                helper.make_tensor_value_info(f"present.0.{part}", TensorProto.FLOAT, ["batch", 1, "total", 1])
                for part in ("key", "value")
            ],
            [
                helper.make_tensor("one", TensorProto.INT64, [1], [1]),
                helper.make_tensor("two", TensorProto.INT64, [1], [2]),
                helper.make_tensor("ends", TensorProto.INT64, [2], [1, 3]),
                *initializers,
            ],
        )
        model.graph.CopyFrom(graph)

    make_bundle(folder, change_graph=change, golden=False)

    def facts(manifest: dict[str, Any]) -> None:
        state = ["batch", 1, "past_sequence", 1]
        total = ["batch", 1, "total_sequence", 1]
        parts = ("key", "value")
        inputs = [["input_ids", ["batch", "sequence"]], ["attention_mask", ["batch", "total_sequence"]],
                  ["position_ids", ["batch", "sequence"]]]  # fmt: skip
        manifest["task"], manifest["cache"] = "text-generation", cache
        manifest["limits"] = {"sequence": 64, "vocabulary": 3, "token_types": 1}
        manifest["inputs"] = [{"name": name, "dtype": "int64", "shape": shape} for name, shape in inputs] + [
            {"name": f"past_key_values.0.{part}", "dtype": "float32", "shape": state} for part in parts
        ]
        manifest["outputs"] = [{"name": "logits", "dtype": "float32", "shape": ["batch", 1, 3]}] + [
            {"name": f"present.0.{part}", "dtype": "float32", "shape": total} for part in parts
        ]

    write_manifest(folder, facts)
    return folder


Change = Callable[[dict[str, Any]], None]


def cached(**facts: Any) -> Change:
    return lambda manifest: manifest["cache"].update(facts)


def reshaped(part: str, place: int, shape: list[int | str]) -> Change:
    return lambda manifest: manifest[part][place].update(shape=shape)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cached(layers=99), "the cache has 99 layers, and 4 tensors past_key_values"),
        (cached(layers=1), "the cache has 1 layers"),
        (cached(layers=1 << 60), "layers"),
        (cached(layers=0), "the cache has 0 layers"),
        (cached(heads=2), r"past_key_values.0.key has the shape .*, and the cache 2 heads of 8"),
        (cached(head_size=-8), "4 heads of -8 numbers"),
        (cached(fixed=True), f"fixed to {LENGTH} tokens"),
        (reshaped("outputs", 0, ["batch", 1, "V"]), "output 'logits' has the shape .*manifest.json says .*'V'"),
        (reshaped("outputs", 0, ["batch", 1, 17]), "manifest.json says .*17"),
        (reshaped("inputs", 0, []), "input 'input_ids' has the shape"),
        (reshaped("inputs", -1, ["batch", 3, "past_sequence", 8]), "input 'past_key_values.1.value' has the shape"),
    ],
)
def test_a_manifest_that_speaks_of_another_cache_or_shape(
    opened: Opened, tmp_path: Path, change: Change, words: str
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(opened.make("ort"), folder)
    facts = facts_by_hand(folder)
    change(facts)
    (folder / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(BundleError, match=words):
        load(folder, threads=1)


def endless() -> list[onnx.NodeProto]:
    """Logits of a loop of 2^62 rounds, run only where the newest id is 2."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["state", "step"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    return [
        helper.make_node("ReduceMax", ["ids"], ["largest"], keepdims=0),
        helper.make_node("Equal", ["largest", "endless"], ["condition"]),
        helper.make_node("Add", ["ids", "step"], ["start"]),
        helper.make_node("Loop", ["rounds", "condition", "start"], ["logits"], body=body),
    ]


@pytest.fixture
def endless_bundle(tmp_path: Path) -> Path:
    return decoder_bundle(
        tmp_path / "endless",
        endless,
        [
            helper.make_tensor("endless", TensorProto.FLOAT, [], [2.0]),
            helper.make_tensor("rounds", TensorProto.INT64, [], [1 << 62]),
            # Token 1 is the likeliest; the ids are added to all three.
            helper.make_tensor("step", TensorProto.FLOAT, [3], [0.0, 1.0, 0.5]),
        ],
    )


def test_an_endless_graph_is_stopped(endless_bundle: Path) -> None:
    generator = Generator(load(endless_bundle, threads=1))
    assert generator.generate([[0]], max_new_tokens=4)[0][0].ids.tolist() == [1] * 4
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"0\.3 s"):
        generator.generate([[2]], max_new_tokens=4, timeout=0.3)
    kept = generator.generate([[2], [0]], max_new_tokens=4, max_time=0.3)
    assert [(one[0].reason, len(one[0].ids)) for one in kept] == [("time", 0)] * 2
    cancellation = Cancellation()
    threading.Timer(0.3, cancellation.cancel).start()
    assert generator.generate([[2]], max_new_tokens=4, cancellation=cancellation)[0][0].reason == "cancelled"
    with pytest.raises(DeadlineExceeded):
        generator.score([[2, 1]], timeout=0.3)
    with pytest.raises(DeadlineExceeded):
        generator.prefix([2], timeout=0.3)
    assert time.monotonic() - began < 20
    # The session works on.
    assert generator.generate([[0]], max_new_tokens=4)[0][0].ids.tolist() == [1] * 4


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_an_error_and_no_token(tmp_path: Path, number: float) -> None:
    folder = decoder_bundle(
        tmp_path / "b",
        lambda: [helper.make_node("Add", ["ids", "wrong"], ["logits"])],
        [helper.make_tensor("wrong", TensorProto.FLOAT, [3], [0.0, number, 0.5])],
    )
    generator = Generator(load(folder, threads=1))
    with pytest.raises(NumericalError, match="pinnace verify"):
        generator.generate([[0]], max_new_tokens=4)


def poisoned(folder: Path, at: int) -> Path:
    """A bundle whose logits are [id, NaN where the newest id is ``at`` else 0, -1]."""
    return decoder_bundle(
        folder,
        lambda: [
            helper.make_node("Equal", ["ids", "at"], ["hit"]),
            helper.make_node("Where", ["hit", "wrong", "good"], ["logits"]),
        ],
        [
            helper.make_tensor("at", TensorProto.FLOAT, [1, 1, 1], [float(at)]),
            helper.make_tensor("wrong", TensorProto.FLOAT, [1, 1, 3], [0.0, float("nan"), 0.5]),
            helper.make_tensor("good", TensorProto.FLOAT, [1, 1, 3], [0.5, 1.0, 0.0]),
        ],
    )


OF_ALL: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": ()}


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_row_of_numbers_that_are_none_fails_alone(tmp_path: Path, together: int, beams: int) -> None:
    generator = Generator(load(poisoned(tmp_path / "b", at=2), threads=1))
    options: dict[str, Any] = {**OF_ALL, "batch_size": together, "num_beams": beams}
    want = [[one.ids.tolist() for one in rows] for rows in generator.generate([[0], [1]], **options)]
    with pytest.raises(NumericalError, match=r"prompt 1: (?s:.*)pinnace verify(?s:.*)1 of 3 rows failed") as caught:
        generator.generate([[0], [2], [1]], **options)
    results = caught.value.results
    assert [[one.ids.tolist() for one in results[i]] for i in (0, 2)] == want
    assert [one[0].reason for one in results] == ["length", "error", "length"]
    assert results[1][0].ids.size == 0 and isinstance(results[1][0].error, NumericalError)
    # The generator is as it was.
    assert [one[0].ids.tolist() for one in generator.generate([[0], [1]], **options)] == [one[0] for one in want]


def test_a_stream_tells_the_failed_row_and_goes_on(tmp_path: Path) -> None:
    generator = Generator(load(poisoned(tmp_path / "b", at=1), threads=1))
    # Both rows write a 1 first, and nothing behind it; the second enters when the first has failed.
    found = list(generator.stream([[0], [2]], batch_size=1, **OF_ALL))
    rows = [[token for token in found if token.prompt == place] for place in (0, 1)]
    assert [[token.id for token in row] for row in rows] == [[1, None], [1, None]]
    for row in rows:
        assert [token.reason for token in row] == [None, "error"]
        assert "NaN" in str(row[-1].error)


def test_options_that_forbid_one_row_every_token_fail_it_alone(opened: Opened) -> None:
    rows = prompts(5, 9, 4)
    generator = opened.generator("ort-all")
    want = ids_of(generator.generate(rows, **OF_ALL))
    second = want[1][:2]
    # Behind the middle row's own first two tokens nothing may come; the other rows never write those.
    never: dict[str, Any] = {
        **OF_ALL,
        "bad_words_ids": [[*rows[1][-1:].tolist(), *second, i] for i in range(VOCABULARY)],
    }
    ways: list[dict[str, Any]] = [{}, {"batch_size": 1}, {"prompt_lookup_num_tokens": 3}]
    for more in ways:
        with pytest.raises(NumericalError, match="prompt 1: the options forbid every token") as caught:
            generator.generate(rows, **never, **more)
        results = caught.value.results
        assert ids_of(results) == [want[0], second, want[2]]
        assert [one[0].reason for one in results] == ["length", "error", "length"]
    with pytest.raises(NumericalError, match="forbid every token") as caught:
        generator.generate(rows[1:2], **never)
    assert caught.value.results is None


def ids_of(results: list[Any]) -> list[list[int]]:
    return [one[0].ids.tolist() for one in results]


def test_scores_and_prefixes_of_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    generator = Generator(load(poisoned(tmp_path / "b", at=2), threads=1))
    assert np.isfinite(generator.score([[0, 1, 0]])[0]).all()
    for call in (lambda: generator.score([[0, 2, 0]]), lambda: generator.prefix([2])):
        with pytest.raises(NumericalError, match="pinnace verify"):
            call()


def test_a_bundle_without_a_cache_cannot_generate(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", golden=False)
    with pytest.raises(UsageError, match="keeps no keys and values"):
        Generator(load(folder, threads=1))
    with pytest.raises(UsageError, match="text-generation"):
        pipeline("generate", folder)


@pytest.mark.parametrize(("name", "place"), [("input_ids", 1), ("attention_mask", 0), ("past_key_values.0.key", 2)])
def test_a_graph_of_fixed_shape_cannot_generate(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, name: str, place: int
) -> None:
    session = opened.session("ort")
    manifest = session.bundle.manifest

    def fixed(spec: TensorSpec) -> TensorSpec:
        shape = tuple(7 if i == place else axis for i, axis in enumerate(spec.shape))
        return dataclasses.replace(spec, shape=shape) if spec.name == name else spec

    changed = dataclasses.replace(manifest, inputs=tuple(map(fixed, manifest.inputs)))
    monkeypatch.setattr(session.bundle, "manifest", changed)
    with pytest.raises(UsageError, match=f"{name} has the fixed shape"):
        Generator(session)


def test_memory_stays_flat_over_many_short_and_aborted_generations(opened: Opened) -> None:
    generator = opened.generator("ort")

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def work(times: int) -> None:
        for i in range(times):
            generator.generate(prompts(5 + i % 7, 3), max_new_tokens=4)
            aborted = generator.stream(prompts(3 + i % 5), max_new_tokens=20)
            next(aborted)
            del aborted

    work(30)
    before = resident()
    work(150)
    assert resident() < before * 1.1, json.dumps({"before": before, "after": resident()})
