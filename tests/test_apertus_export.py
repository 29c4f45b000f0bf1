"""Exported Apertus in ONNX Runtime, held to transformers: logits and every key and value, in both targets."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import pinnace
from pinnace.errors import CheckFailed, UsageError
from pinnace.export import functions, lowering_onnx, lowering_ort, validate
from pinnace.export.builder import Exported, export
from pinnace.export.graph import lower
from pinnace.export.interface import Options, interface
from pinnace.export.passes import tidy
from pinnace.export.tasks import find_task
from pinnace.export.tracer import trace
from pinnace.export.weights import unbound
from pinnace.models.apertus import ApertusForCausalLM
from pinnace.models.configs.apertus import ApertusConfig
from pinnace.models.configs.bert import BertConfig
from pinnace.runtime.bundles.hygiene import check_graph
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.generation.generator import Generator
from pinnace.safetensors_header import read_header
from tests.apertus_oracle import ROTARY, pair
from tests.export_oracle import run

Array = npt.NDArray[Any]
DATA = Path(__file__).parent / "data"
ATOL = 2e-5
KV = ("key", "value")
VARIANTS: dict[str, dict[str, Any]] = {
    **{kind: {"rope_parameters": dict(rope)} for kind, rope in ROTARY.items()},
    "one group": {"num_key_value_heads": 1},
    "no groups, one layer": {"num_key_value_heads": 4, "num_hidden_layers": 1},
    "tied, v4 dialect": {
        "tie_word_embeddings": True,
        "rope_theta": 1e4,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "own head size, biases": {"head_dim": 16, "attention_bias": True},
    "head size no kernel takes": {"head_dim": 6},
    "relu2": {"hidden_act": "relu2"},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def exported(folder: Path, head: str, settings: Mapping[str, Any], **options: Any) -> tuple[Any, Exported]:
    """Save a random model of transformers and export it, unchecked: (the model, what the export made)."""
    theirs, _ = pair(head, **settings)
    theirs.save_pretrained(folder / "checkpoint")
    return theirs, export(folder / "checkpoint", output=folder / "bundle", **{"validate": False, **options})


def empty_past(made: Exported, rows: int) -> dict[str, Array]:
    cache = made.manifest.cache
    assert cache is not None
    shape = (rows, cache.heads, 0, cache.head_size)
    names = (f"past_key_values.{i}.{part}" for i in range(cache.layers) for part in ("key", "value"))
    return {name: np.zeros(shape, np.float32) for name in names}


def presents(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The cache that a run gave, as the next run takes it."""
    return {name.replace("present", "past_key_values"): a for name, a in outputs.items() if name.startswith("present")}


@pytest.mark.parametrize("target", ["ort", "onnx"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_and_step(variant: str, target: str, tmp_path: Path) -> None:
    theirs, made = exported(tmp_path, "ApertusForCausalLM", VARIANTS[variant], target=target)
    rng = np.random.default_rng(0)
    lengths = np.array([40, 37, 1])
    T = 40
    mask = (np.arange(T) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(4, 41, (3, T)), 3)
    places = np.arange(T) * mask
    prompt = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    got = run(made, {**prompt, **empty_past(made, 3)})
    given = {name: torch.from_numpy(array) for name, array in prompt.items()}
    with torch.inference_mode():
        want = theirs(**given, use_cache=True)
        np.testing.assert_allclose(got["logits"][:, 0], want.logits[range(3), lengths - 1], rtol=0, atol=ATOL)
        for i, layer in enumerate(want.past_key_values.layers):
            for row, n in enumerate(lengths):
                for part, tensor in (("key", layer.keys), ("value", layer.values)):
                    np.testing.assert_allclose(
                        got[f"present.{i}.{part}"][row, :, :n], tensor[row, :, :n], rtol=0, atol=ATOL
                    )
        # One more token in each row, behind that row's own end.
        step = {
            "input_ids": rng.integers(4, 41, (3, 1)),
            "attention_mask": np.concatenate([mask, np.ones((3, 1), np.int64)], 1),
            "position_ids": lengths[:, None],
        }
        after = run(made, {**step, **presents(got)})
        given = {name: torch.from_numpy(array) for name, array in step.items()}
        expected = theirs(**given, past_key_values=want.past_key_values)
    np.testing.assert_allclose(after["logits"], expected.logits, rtol=0, atol=ATOL)
    newest = expected.past_key_values.layers[0].keys[:, :, -1]
    cache = made.manifest.cache
    assert cache is not None
    at = lengths if cache.in_place else np.full(3, T)
    np.testing.assert_allclose(after["present.0.key"][np.arange(3), :, at], newest, rtol=0, atol=ATOL)


def test_left_padded_rows_in_the_standard_target(tmp_path: Path) -> None:
    theirs, made = exported(tmp_path, "ApertusForCausalLM", {}, target="onnx", all_logits=True)
    mask = (np.arange(9) >= np.array([[0], [4], [8]])).astype(np.int64)
    ids = np.random.default_rng(1).integers(4, 41, (3, 9))
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": np.clip(np.cumsum(mask, 1) - 1, 0, None)}
    got = run(made, {**given, **empty_past(made, 3)})
    with torch.inference_mode():
        want = theirs(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
    np.testing.assert_allclose(got["logits"][mask == 1], want[mask == 1], rtol=0, atol=ATOL)


@pytest.mark.parametrize("target", ["ort", "onnx"])
@pytest.mark.parametrize(
    ("head", "task"), [("ApertusForTokenClassification", "ner"), ("ApertusModel", "embed")], ids=["tokens", "vectors"]
)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_heads_without_a_cache(head: str, task: str, target: str, padding: str, tmp_path: Path) -> None:
    theirs, made = exported(tmp_path, head, {"num_labels": 5}, task=task, target=target)
    assert [spec.name for spec in made.manifest.inputs] == ["input_ids", "attention_mask", "position_ids"]
    places = np.arange(11)
    starts = np.array([[0], [4], [10]])
    mask = ((places >= starts) if padding == "left" else (places < 11 - starts)).astype(np.int64)
    ids = np.random.default_rng(2).integers(4, 41, (3, 11))
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": np.clip(np.cumsum(mask, 1) - 1, 0, None)}
    (got,) = run(made, given).values()
    with torch.inference_mode():
        want = theirs(**{name: torch.from_numpy(array) for name, array in given.items()})[0].numpy()
    np.testing.assert_allclose(got[mask == 1], want[mask == 1], rtol=0, atol=ATOL)


@pytest.mark.parametrize("opset", [18, 22, 24])
def test_older_and_newer_operators(opset: int, tmp_path: Path) -> None:
    theirs, made = exported(tmp_path, "ApertusForCausalLM", {}, target="onnx", opset=opset, all_logits=True)
    onnx.checker.check_model(tmp_path / "bundle" / "model.onnx", full_check=opset != 24)
    ids = np.random.default_rng(3).integers(4, 41, (2, 12))
    ones = np.ones_like(ids)
    given = {"input_ids": ids, "attention_mask": ones, "position_ids": np.arange(12) * ones}
    got = run(made, {**given, **empty_past(made, 2)})["logits"]
    with torch.inference_mode():
        np.testing.assert_allclose(got, theirs(torch.from_numpy(ids)).logits.numpy(), rtol=0, atol=ATOL)


def test_a_row_longer_than_trained_for_is_stretched_in_the_graph(tmp_path: Path) -> None:
    settings = {"rope_parameters": dict(ROTARY["dynamic"]), "max_position_embeddings": 16}
    theirs, made = exported(tmp_path, "ApertusForTokenClassification", settings)
    assert made.manifest.limits.sequence == 32
    ids = np.random.default_rng(4).integers(4, 41, (1, 32))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(32)[None]}
    with torch.inference_mode():
        want = theirs(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
    np.testing.assert_allclose(run(made, given)["logits"], want, rtol=0, atol=ATOL)


@pytest.fixture(scope="module", params=["ort", "onnx"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("trained") / "bundle"
    return export(DATA / "apertus-glossary", target=request.param, output=folder)


def test_the_trained_checkpoint_passes_its_own_checks(trained: Exported) -> None:
    outputs = trained.certificate["variants"]["fp32"]["outputs"]
    assert outputs["logits"]["max_abs"] < 1e-4
    assert max(found["max_abs"] for name, found in outputs.items() if name != "logits") < 1e-5
    assert len(outputs) == 9
    cache = trained.manifest.cache
    assert cache is not None
    assert (cache.layers, cache.heads, cache.head_size, cache.capacity) == (4, 2, 32, 2048)


def test_the_trained_checkpoint_writes_what_transformers_writes(trained: Exported) -> None:
    recorded = json.loads((DATA / "lm_greedy.transformers.json").read_text("utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "apertus-glossary")
    assert len(recorded) == 6
    for prompt, want in recorded.items():
        ids = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        assert want["ids"][: len(ids)] == ids
        past, new = empty_past(trained, 1), list(ids)
        while len(ids) < len(want["ids"]):
            first = len(ids) - len(new)
            given = {
                "input_ids": np.array([new]), "attention_mask": np.ones((1, len(ids)), np.int64),
                "position_ids": np.arange(first, len(ids))[None],
            }  # fmt: skip
            outputs = run(trained, {**given, **past})
            past, new = presents(outputs), [int(outputs["logits"][0, -1].argmax())]
            ids += new
        assert ids == want["ids"], prompt


def test_the_graph_reads_as_the_model(trained: Exported) -> None:
    check_graph(trained.path, "model.onnx", known=frozenset(trained.manifest.files))
    model = onnx.load(trained.path / "model.onnx", load_external_data=False)
    assert sorted(function.name for function in model.functions) == ["RotaryAngles", "XIELU"]
    nodes = [node.op_type for node in model.graph.node]
    assert (nodes.count("XIELU"), nodes.count("RotaryAngles"), nodes.count("RotaryEmbedding")) == (4, 1, 8)
    # In the standard target 25 of them turn a weight, and nine a layer bring heads that share keys together and apart.
    assert len(nodes) <= {"ort": 160, "onnx": 180}[trained.manifest.variants["fp32"].target]
    assert not {"Softplus", "Where", "Exp"} & set(nodes)
    # The trained numbers are attributes now; nothing is left of the four small tensors, and no table of positions.
    stored = {tensor.name for tensor in model.graph.initializer}
    assert not [name for name in stored if "act_fn" in name]
    inline = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(len(t.raw_data) for t in inline) < 1000
    one = next(node for node in model.graph.node if node.op_type == "XIELU")
    assert one.name == "/model/layers.0/mlp/act_fn/XIELU"
    assert {a.name for a in one.attribute} == {"alpha_p", "alpha_n", "beta"}
    # The weights file is still a checkpoint, so it has them.
    assert "model.layers.3.mlp.act_fn.alpha_n" in read_header(trained.path / "model.safetensors")


def test_the_bundle_is_a_checkpoint_of_its_own(trained: Exported) -> None:
    ids = torch.arange(4, 30)[None]
    with torch.inference_mode():
        again = ApertusForCausalLM.from_pretrained(trained.path)(ids).logits
        first = ApertusForCausalLM.from_pretrained(DATA / "apertus-glossary")(ids).logits
        theirs = transformers.ApertusForCausalLM.from_pretrained(trained.path).eval()(ids).logits
    assert torch.equal(again, first)
    torch.testing.assert_close(again, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_random_weights_and_every_layer_given_out(target: str, tmp_path: Path) -> None:
    made = export(
        "apertus", task="generate", target=target, random_weights=True, output=tmp_path / "bundle",
        config="vocab_size=53,hidden_size=32,num_attention_heads=4,num_key_value_heads=2,num_hidden_layers=2,"
        "intermediate_size=64,max_position_embeddings=80",
        hidden_states=True, attentions=True, all_logits=True,
    )  # fmt: skip
    assert made.certificate["variants"]["fp32"]["outputs"].keys() >= {
        "hidden_states.2",
        "attentions.1",
        "present.1.key",
    }
    weights = transformers.ApertusForCausalLM.from_pretrained(tmp_path / "bundle").state_dict()
    assert float(weights["model.layers.1.self_attn.q_norm.weight"].min()) == 1.0
    assert float(weights["model.layers.0.mlp.act_fn.eps"]) == pytest.approx(-1e-6)


@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_half_precision_passes_its_gate(target: str, tmp_path: Path) -> None:
    _, made = exported(tmp_path, "ApertusForCausalLM", {}, target=target, precision="fp16", validate=True)
    found = made.certificate["variants"]["fp16"]["outputs"]
    assert found["logits"]["cosine"] >= 0.999
    assert made.manifest.variants["fp16"].graph == "model_fp16.onnx"
    assert verify_bundle(made.path).ok


@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_a_cache_in_half_precision_is_read_and_written_as_it_is(target: str, tmp_path: Path) -> None:
    made = export(
        DATA / "apertus-glossary", task="generate", output=tmp_path / "bundle", target=target, precision="fp16"
    )
    graph = onnx.load(made.path / "model_fp16.onnx", load_external_data=False).graph
    cache = {v.name for v in (*graph.input, *graph.output) if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    assert cache == {f"{way}.{i}.{part}" for way in ("past_key_values", "present") for i in range(4) for part in KV}
    # No Cast between the graph's cache and the attention: in place means in place.
    casts = {name for node in graph.node if node.op_type == "Cast" for name in (*node.input, *node.output)}
    assert not cache & casts
    session = pinnace.load(made.path, precision="fp16", threads=1)
    assert {spec.dtype for spec in (*session.inputs, *session.outputs) if spec.name in cache} == {"float16"}
    generator = Generator(session)
    rows = [np.arange(4, 4 + length) for length in (3, 17, 9)]
    together = [row[0].ids.tolist() for row in generator.generate(rows, max_new_tokens=24)]
    assert together == [generator.generate([row], max_new_tokens=24)[0][0].ids.tolist() for row in rows]
    wide = Generator(pinnace.load(made.path, threads=1)).generate(rows, max_new_tokens=24)
    same = [a == b for one, other in zip(together, wide, strict=True) for a, b in zip(one, other[0].ids, strict=False)]
    assert sum(same) >= 0.9 * len(same)


def test_other_words_stay_errors() -> None:
    with pytest.raises(UsageError, match="apertus has no head for 'fill-mask'"):
        find_task("fill-mask", "apertus")
    with pytest.raises(UsageError, match="the model takes at most 65536 tokens"):
        interface(
            find_task("generate", "apertus")[0],
            ApertusConfig(),
            Options({"sequence": 65537}),
            target="ort",
            pooler=False,
        )
    assert find_task("ner", "bert")[0].inputs_of(BertConfig.model_type)[2].name == "token_type_ids"


# -- functions ---------------------------------------------------------------------------------------------------------

ALPHAS = [(0.8, 0.8), (0.3, 2.0), (3.1, 0.51)]


def run_xielu(form: Any, x: Array, alpha_p: float, alpha_n: float, eps: float | None = -1e-6) -> Array:
    """Run the function alone; numbers as in the trained model."""
    function = form(23)
    given = {} if eps is None else {"eps": eps}
    kind = ir.DataType.from_numpy(x.dtype)
    value = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(["n"]))
    call = ir.node(
        function.name, [value], domain=function.domain,
        attributes={"alpha_p": alpha_p, "alpha_n": alpha_n, "beta": 0.5, **given},
    )  # fmt: skip
    call.outputs[0].name, call.outputs[0].type, call.outputs[0].shape = "y", value.type, value.shape
    graph = ir.Graph([value], call.outputs, nodes=[call], opset_imports={"": 23, function.domain: 1}, name="main")
    model = ir.Model(graph, ir_version=10, functions=[function])
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def true_xielu(x: Array, a: float, b: float, eps: float = -1e-6) -> npt.NDArray[np.float64]:
    x = x.astype(np.float64)
    a, b = (float(np.float32(number)) for number in (a, b))  # as the graph holds them
    return np.where(x > 0, a * x * x + 0.5 * x, (np.expm1(np.minimum(x, eps)) - x) * b + 0.5 * x)


def steps_apart(one: Array, other: Array) -> Array:
    """How many fp16 numbers lie between."""

    def place(x: Array) -> Array:
        bits: Array = x.view(np.int16).astype(np.int32)
        return np.asarray(np.where(bits < 0, -32768 - bits, bits))

    return np.asarray(np.abs(place(one) - place(other)))


@pytest.mark.parametrize(("a", "b"), ALPHAS)
def test_xielu_in_half_precision_is_right_to_the_last_place(a: float, b: float) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = every[np.isfinite(every)]
    got = run_xielu(functions.accurate_xielu, x, a, b)
    with np.errstate(over="ignore"):
        want = true_xielu(x, a, b).astype(np.float16)
    assert got.dtype == np.float16
    assert np.array_equal(np.isfinite(got), np.isfinite(want))  # finite wherever the value is
    finite = np.isfinite(want)
    assert steps_apart(got, want)[finite].max() <= 1


AROUND_ZERO = [0.0, -0.0, 1e-30, -1e-30, 1e-7, -1e-7, -9e-7, -2e-6, -0.1, -0.25, 1e18, -1e18]
SINGLE = np.array([*np.linspace(-60, 60, 5001), *AROUND_ZERO], np.float32)


@pytest.mark.parametrize(("a", "b"), ALPHAS)
def test_xielu_in_single_precision(a: float, b: float) -> None:
    got = run_xielu(functions.xielu, SINGLE, a, b, eps=None)
    np.testing.assert_allclose(got, true_xielu(SINGLE, a, b, eps=0.0), rtol=2e-6, atol=4e-7)
    np.testing.assert_allclose(got, true_xielu(SINGLE, a, b), rtol=2e-6, atol=4e-7 + 1e-6 * b)


@pytest.mark.parametrize("eps", [-1e-6, -0.2])
@pytest.mark.parametrize("form", [functions.clamped_xielu, functions.accurate_xielu])
@pytest.mark.parametrize(("a", "b"), ALPHAS)
def test_xielu_with_its_eps(form: Any, a: float, b: float, eps: float) -> None:
    np.testing.assert_allclose(run_xielu(form, SINGLE, a, b, eps), true_xielu(SINGLE, a, b, eps), rtol=2e-6, atol=4e-7)


def test_one_layer_with_a_larger_eps_keeps_it(tmp_path: Path) -> None:
    theirs, _ = pair("ApertusForCausalLM")
    theirs.model.layers[0].mlp.act_fn.eps.fill_(-0.3)
    theirs.save_pretrained(tmp_path / "checkpoint")
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle", validate=False)
    graph = onnx.load(made.path / "model.onnx", load_external_data=False)
    assert sorted(function.name for function in graph.functions) == ["ClampedXIELU", "RotaryAngles", "XIELU"]
    ids = np.random.default_rng(0).integers(4, 41, (1, 20))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(20)[None]}
    got = run(made, {**given, **empty_past(made, 1)})
    with torch.inference_mode():
        want = theirs(input_ids=torch.from_numpy(ids)).logits[:, -1:]
    np.testing.assert_allclose(got["logits"], want, rtol=0, atol=ATOL)


def test_constants_that_a_checkpoint_lacks_are_not_random(tmp_path: Path) -> None:
    theirs, _ = pair("ApertusForCausalLM")
    theirs.save_pretrained(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    constants = [name for name in tensors if name.endswith(("act_fn.beta", "act_fn.eps"))]
    assert len(constants) == 4
    save_file({name: tensor for name, tensor in tensors.items() if name not in constants}, file, {"format": "pt"})
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle", validate=False, init_missing=True)
    assert made.fresh == ()
    save_file({name: t for name, t in tensors.items() if "layers.0.mlp.act_fn" not in name}, file, {"format": "pt"})
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle", validate=False, init_missing=True)
    assert [name.rpartition(".")[2] for name in made.fresh] == ["alpha_n", "alpha_p"]  # these are trained


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_the_8b_shape_is_traced_without_a_weight(target: str) -> None:
    config = ApertusConfig(intermediate_size=21504, num_key_value_heads=8, num_hidden_layers=4, is_decoder=True)
    face = interface(find_task("generate", "apertus")[0], config, Options(), target=target, pooler=False)
    tracemalloc.start()
    model = trace(lambda: ApertusForCausalLM(config), face.call, face.inputs, face.outputs)
    rows = lowering_ort.CPU_ROWS if target == "ort" else lowering_onnx.ROWS
    folded = lower(model, rows, 23, lambda _name: np.array(0.3))
    tidy(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # bytes; its weights would be 14 GB
    weights = unbound(model)
    assert sum(math.prod(value.shape.numpy()) for value in weights.values() if value.shape is not None) > 1.9e9
    assert len(folded) == 16
    assert not folded & weights.keys()


@pytest.mark.parametrize("target", ["ort", "onnx"])
@pytest.mark.parametrize("kind", ["llama3", "yarn", "dynamic"])
def test_the_last_positions_are_compared_and_a_wrong_angle_there_is_found(
    kind: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"rope_parameters": dict(ROTARY[kind]), "max_position_embeddings": 8192}
    _, made = exported(tmp_path, "ApertusForCausalLM", settings, target=target, validate=True)
    record = made.certificate["variants"]["fp32"]
    assert record["verdict"] == "passed"
    assert record["longest_row"] == 2048
    assert record["cases"][-1] == "batch1-length9-pad-none-last"
    places: list[int] = []
    reference = validate.run_reference

    def wrong_far_away(model: Any, face: Any, inputs: Mapping[str, Array]) -> Any:
        places.append(int(inputs["position_ids"].max()))
        # As a table of angles would have it that ends where the longest row does.
        return reference(model, face, {**inputs, "position_ids": np.minimum(inputs["position_ids"], 2047)})

    monkeypatch.setattr(validate, "run_reference", wrong_far_away)
    with pytest.raises(CheckFailed, match=r"length9-pad-none-last"):
        export(tmp_path / "checkpoint", output=tmp_path / "again", target=target)
    assert max(places) == (2 * 8192 if kind == "dynamic" else 8192) - 1
