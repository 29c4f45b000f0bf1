"""Profiles: every microsecond is somewhere, every node finds its layer, and nothing is left on the disk."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pinnace.bench.profile import run as profiling
from pinnace.bench.profile.events import read_runs
from pinnace.bench.profile.nodes import ATTENTION, BESIDE, HEAD, MLP, NORMS, OTHER, OUTSIDE, NodeMap
from pinnace.bench.profile.records import AROUND, BETWEEN_NODES, NOT_LAYERS, Profile, group
from pinnace.bench.profile.run import profile_bundle
from pinnace.bench.profile.table import render
from pinnace.bench.profile.work import ProfiledSession
from pinnace.cli.main import main
from pinnace.errors import InputError, MachineError, UsageError
from pinnace.runtime.bundles.onnx_graph import Graph, GraphFunction, GraphModel, GraphNode
from tests.generation_bundles import MakeBundle, decoder_of

__all__ = ["decoder_of"]

Export = Callable[[str], Path]
NER = "bert-glossary-ner"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all temporary files; nothing of ours may be left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.glob("pinnace*")) == []


def event(name: str, ts: int, dur: int, **facts: Any) -> dict[str, Any]:
    category = "Session" if name == "model_run" else "Node"
    name = name if name == "model_run" else f"{name}_kernel_time"
    return {"cat": category, "name": name, "ts": ts, "dur": dur, "args": facts}


def node(op_type: str, name: str, inputs: str, outputs: str, domain: str = "") -> GraphNode:
    return GraphNode(op_type, domain, name, tuple(inputs.split()), tuple(outputs.split()), {}, (), ())


def graph(*nodes: GraphNode, functions: tuple[GraphFunction, ...] = ()) -> GraphModel:
    return GraphModel(10, {"": 23}, Graph((), (), nodes, ()), functions, {}, ())


def seconds_of(profile: Profile, phase: int = 0) -> dict[str, float]:
    return {name: cost.seconds for name, cost in group(profile.phases[phase].costs, lambda cost: cost.layer).items()}


def test_events_become_runs_with_their_nodes(tmp_path: Path) -> None:
    shapes = [{"float": [1, 8, 4]}, {"int64": [2]}]
    events = [
        event("a", 0, 5, op_name="MatMul", input_type_shape=shapes, output_type_shape=[{"float": [1, 8, 2]}]),
        event("model_run", 0, 9),
        event("a", 20, 6, op_name="MatMul"),
        event("b", 26, 1, op_name="Add"),
        event("model_run", 19, 12),
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    first, second = read_runs(path)
    assert (first.seconds, second.seconds) == (9e-6, 12e-6)
    assert [one.name for one in second.nodes] == ["a", "b"]
    assert first.nodes[0].inputs == ((1, 8, 4), (2,))
    assert first.nodes[0].outputs == ((1, 8, 2),)


def test_the_inside_of_a_loop_is_not_counted_twice(tmp_path: Path) -> None:
    # The inner nodes' events are written before that of the node that holds them.
    events = [event("in", 11, 4), event("in", 15, 5), event("loop", 10, 10), event("next", 20, 3)]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([*events, event("model_run", 9, 20)]))
    (run,) = read_runs(path)
    assert [(one.name, one.seconds) for one in run.nodes] == [("loop", 10e-6), ("next", 3e-6)]


@pytest.mark.parametrize("content", ["", '[{"cat": "Node"', None])
def test_a_profile_that_is_cut_off_is_an_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MachineError, match="fewer runs"):
        read_runs(path)


ORIGINAL = graph(
    node("Gather", "/m/embed/Gather", "table ids", "h"),
    node("MatMul", "/m/layers.0/self_attn/MatMul", "h w0", "q"),
    node("Act", "/m/layers.0/mlp/act/Act", "q", "act", "pinnace"),
    node("MatMul", "/m/layers.0/mlp/MatMul", "act w1", "up"),
    node("Add", "/m/layers.0/mlp/Add", "up bias", "biased"),
    node("RMSNormalization", "/m/layers.0/RMSNormalization", "biased g", "normed"),
    node("Angles", "/m/Angles", "places", "cos", "pinnace"),
    node("MatMul", "/MatMul", "normed head", "logits"),
    functions=(GraphFunction("pinnace", "Act", ()), GraphFunction("pinnace", "Angles", ())),
)
OPTIMISED = graph(
    node("Gather", "/m/embed/Gather", "table ids", "h"),
    node("MatMul", "/m/layers.0/self_attn/MatMul", "h w0", "q"),
    node("Exp", "_inlfunc_Act_Exp", "q", "_inner"),
    node("Mul", "_inlfunc_Act_Mul", "_inner q", "_outer"),
    node("Gemm", "fused_1", "_outer w1 bias", "biased"),
    node("Cast", "inserted_weight", "g", "g_cast"),
    node("RMSNormalization", "/m/layers.0/RMSNormalization", "biased g_cast", "normed"),
    node("Reorder", "inserted_last", "normed", "reordered"),
    node("MatMul", "/MatMul", "reordered head", "logits"),
    node("Cast", "after_all", "logits", "_unused"),
    node("Shape", "alone", "nothing", "_nobody"),
)


@pytest.mark.parametrize(
    ("name", "layer", "part", "operator"),
    [
        ("/m/embed/Gather", "embed", OTHER, "Gather"),
        ("/m/layers.0/self_attn/MatMul", "layer 0", ATTENTION, "MatMul"),
        # Inside a function: by the input that its result feeds, two steps on.
        ("_inlfunc_Act_Exp", "layer 0", MLP, "Exp"),
        # Fused from MatMul and Add: by its output.
        ("fused_1", "layer 0", MLP, "Gemm"),
        # A cast of a weight belongs to the node that reads it.
        ("inserted_weight", "layer 0", NORMS, "Cast"),
        # A change of layout belongs to the node whose result it is.
        ("inserted_last", "layer 0", NORMS, "Reorder"),
        ("/MatMul", HEAD, OTHER, "MatMul"),
        ("after_all", HEAD, OTHER, "Cast"),
        ("alone", OUTSIDE, OTHER, "Shape"),
        ("/m/Angles", BESIDE, OTHER, "Angles"),
        ("never seen", OUTSIDE, OTHER, "Shape"),
    ],
)
def test_nodes_are_traced_to_the_model(name: str, layer: str, part: str, operator: str) -> None:
    names = NodeMap(ORIGINAL, OPTIMISED)
    kernel = next((one.op_type for one in OPTIMISED.graph.nodes if one.name == name), operator)
    assert (names.layer(name), names.part(name, [(1, 8, 4)])) == (layer, part)
    assert names.operator(name, kernel) == operator


def test_the_inside_of_a_function_has_the_functions_name() -> None:
    kept = graph(*(one for one in OPTIMISED.graph.nodes if one.name != "fused_1"),
                 node("MatMul", "/m/layers.0/mlp/MatMul", "_outer w1", "up"))  # fmt: skip
    names = NodeMap(ORIGINAL, kept)
    assert [names.operator(f"_inlfunc_Act_{op}", op) for op in ("Exp", "Mul")] == ["Act", "Act"]


def test_a_sum_of_two_activations_is_a_residual_and_a_bias_is_not() -> None:
    names = NodeMap(ORIGINAL, None)
    assert names.part("/m/layers.0/mlp/Add", [(1, 8, 4), (1, 8, 4)]) == NORMS
    assert names.part("/m/layers.0/mlp/Add", [(1, 8, 4), (4,)]) == MLP


def test_an_encoders_time_is_all_there(bundle_of: Export, scratch: Path) -> None:
    B, T = 2, 24
    path = bundle_of(NER)
    profile = profile_bundle(path, threads=1, batch=B, length=T, runs=6, limits=lambda _threads: (1e11, 1e10))
    (phase,) = profile.phases
    assert (profile.sizes, phase.name, phase.runs) == ({"batch": B, "length": T}, "run", 6)
    assert profile.fused
    assert phase.outside == {}
    assert math.isclose(math.fsum(cost.seconds for cost in phase.costs), phase.seconds, rel_tol=1e-9)
    assert list(seconds_of(profile)) == ["embeddings", "layer 0", "layer 1", "head", BETWEEN_NODES, AROUND]
    assert all(seconds > 0 for name, seconds in seconds_of(profile).items() if name not in NOT_LAYERS)
    assert {ATTENTION, MLP, NORMS} == {cost.part for cost in phase.costs if cost.layer == "layer 1"}
    assert phase.overhead == pytest.approx(phase.seconds / phase.plain_seconds - 1)


def test_flops_are_those_of_the_configuration(bundle_of: Export, scratch: Path) -> None:
    B, T = 3, 16
    path = bundle_of(NER)
    config = json.loads((path / "config.json").read_text())
    H, I = config["hidden_size"], config["intermediate_size"]  # noqa: E741
    profile = profile_bundle(path, threads=1, batch=B, length=T, runs=2)
    layers = group(profile.phases[0].costs, lambda cost: cost.layer)
    assert layers["layer 0"].flops == B * T * (2 * H * (4 * H + 2 * I) + 4 * T * H)
    assert layers["head"].flops == 2 * B * T * H * len(config["id2label"])
    assert layers["embeddings"].flops == 0
    # fp32 weights of four projections and of the MLP, each read once.
    assert layers["layer 1"].weight_bytes == 4 * (4 * H * H + 2 * H * I)


@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_a_decoders_prompt_and_steps_stand_apart(decoder_of: MakeBundle, scratch: Path, target: str) -> None:
    profile = profile_bundle(decoder_of(f"apertus-{target}"), threads=1, prompt=12, decode_steps=3, runs=3)
    prompt, step = profile.phases
    assert [(phase.name, phase.runs) for phase in profile.phases] == [("prompt", 3), ("step", 9)]
    assert profile.sizes == {"batch": 1, "prompt": 12, "decode_steps": 3}
    for phase in profile.phases:
        layers = group(phase.costs, lambda cost: cost.layer)
        assert {f"layer {place}" for place in range(4)} | {"embed_tokens", HEAD, BESIDE} < set(layers)
        assert phase.outside == {}
        assert math.isclose(math.fsum(cost.seconds for cost in phase.costs), phase.seconds, rel_tol=1e-9)
        assert {"XIELU"} < {cost.operator for cost in phase.costs if cost.part == MLP}
    # The same projections for 12 tokens and for one.
    many, one = (
        next(cost for cost in phase.costs if cost.layer == "layer 2" and cost.part == MLP and cost.flops)
        for phase in (prompt, step)
    )
    assert many.flops == 12 * one.flops


@pytest.mark.parametrize("target", ["ort", "onnx", "static"])
def test_a_decoders_attention_is_counted_by_what_its_tokens_see(
    decoder_of: MakeBundle, scratch: Path, target: str
) -> None:
    """Whatever the kernel is given: the new keys, a buffer of the whole capacity, masks."""
    B, T, steps, layers, width = 2, 12, 3, 4, 256  # every token has the sum of its heads' widths
    profile = profile_bundle(decoder_of(f"apertus-{target}"), threads=1, batch=B, prompt=T, decode_steps=steps, runs=1)
    kernels = {"ort": "GroupQueryAttention", "onnx": "Attention", "static": "Attention"}
    prompt, step = (
        group(phase.costs, lambda cost: cost.operator)[kernels[target]].flops / (4 * B * layers * width)
        for phase in profile.phases
    )
    assert prompt == T * (T + 1) / 2
    assert step == T + (steps + 1) / 2  # in the mean of the steps, each with one token more


def test_without_the_optimised_graph_no_time_is_dropped(
    decoder_of: MakeBundle, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ProfiledSession.__init__

    def refuse(self: ProfiledSession, *given: Any, keep_graph: bool) -> None:
        if keep_graph:
            raise MachineError("no space left")
        made(self, *given, keep_graph=False)

    monkeypatch.setattr(ProfiledSession, "__init__", refuse)
    profile = profile_bundle(decoder_of("apertus-ort"), threads=1, prompt=4, decode_steps=1, runs=2)
    phase = profile.phases[0]
    assert not profile.fused
    assert seconds_of(profile)[OUTSIDE] > 0
    assert phase.outside["Exp"] == 4  # one in the activation of each layer
    assert math.isclose(math.fsum(cost.seconds for cost in phase.costs), phase.seconds, rel_tol=1e-9)
    assert "outside the model: " in render(profile)
    assert "Exp x4" in render(profile)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"prompt": 4}, UsageError, "give --length"),
        ({"decode_steps": 4}, UsageError, "give --length"),
        ({"length": 513}, InputError, "513 tokens"),
    ],
)
def test_what_an_encoder_cannot_do(
    bundle_of: Export, scratch: Path, given: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        profile_bundle(bundle_of(NER), threads=1, **given)


def test_what_a_decoder_cannot_do(decoder_of: MakeBundle, scratch: Path) -> None:
    path = decoder_of("ort")
    with pytest.raises(UsageError, match="not by --length"):
        profile_bundle(path, length=4)
    with pytest.raises(UsageError, match=r"130 tokens; this model takes 128"):
        profile_bundle(path, prompt=120, decode_steps=10)


def test_files_go_when_the_user_interrupts(bundle_of: Export, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def interrupt(*_given: Any) -> None:
        seen.extend(path.name for path in scratch.rglob("*.onnx"))
        raise KeyboardInterrupt

    monkeypatch.setattr(profiling, "_measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        profile_bundle(bundle_of(NER), threads=1)
    assert seen == ["optimised.onnx"]


def test_the_table_adds_up(bundle_of: Export, scratch: Path) -> None:
    profile = profile_bundle(bundle_of(NER), threads=1, length=8, runs=4, limits=lambda _threads: (1e11, 1e10))
    text = render(profile)
    sections = re.split(r"^by \w+.*$", text, flags=re.MULTILINE)[1:]
    assert len(sections) == 3
    for lines in sections:
        shares = [float(found) for found in re.findall(r"^  .*?(-?\d+\.\d) %", lines, re.MULTILINE)]
        assert abs(sum(shares) - 100) <= 0.05 * len(shares) + 1e-9
    assert re.search(r"which adds -?[\d,.]+ %", text)


def test_the_command_writes_json_and_a_page(
    bundle_of: Export, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "profile.html"
    words = ["profile", str(bundle_of(NER)), "--json", "--length", "8", "--runs", "2", "--threads", "1"]
    assert main([*words, "--html", str(page)]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["phases"][0]["seconds"] > 0
    assert found["gemm_flops"] > 1e8
    assert found["memory_bytes_s"] > 1e7
    assert {"layer", "part", "operator", "calls", "seconds", "flops", "weight_bytes"} == set(
        found["phases"][0]["costs"][0]
    )
    assert "<svg" in page.read_text("utf-8")
    assert str(page) in captured.err


def test_a_picture_needs_its_extra(
    bundle_of: Export,
    scratch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert main(["profile", str(bundle_of(NER)), "--png", str(tmp_path / "a.png")]) == 4
    assert "pip install 'pinnace[report]'" in capsys.readouterr().err
    assert list(tmp_path.glob("*.png")) == []
