"""Checkpoints from strangers: pickles, links, headers, indexes and configurations that mean harm."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pinnace.errors import CheckpointError, MissingExtra
from pinnace.models.bert import BertModel
from pinnace.models.checkpoints import pickles
from pinnace.models.checkpoints.checkpoint import INDEX_NAME, SINGLE_NAME, Checkpoint
from pinnace.models.configs.bert import BertConfig

from .bert_oracle import SMALL

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def single(tmp_path: Path) -> Path:
    folder = tmp_path / "single"
    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    BertModel(BertConfig(**SMALL)).save_pretrained(folder, max_shard_size=3000)
    return folder


def _index(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / INDEX_NAME).read_text())
    return content


# -- 1: pickles --------------------------------------------------------------------------------------------------------


class _Touch:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl"])
def test_pickles_are_refused_and_the_safe_form_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(_Touch(tmp_path / "ran")))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    for words in (name, SINGLE_NAME, "--allow-pickle", "2.10"):
        assert words in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt"])
@pytest.mark.parametrize("form", ["bare", "zip"])
def test_code_in_a_pickle_never_runs_even_when_allowed(name: str, form: str, tmp_path: Path) -> None:
    harm = {"weight": _Touch(tmp_path / "ran")}
    if form == "zip":
        torch.save(harm, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(harm))
    with pytest.raises(CheckpointError, match="cannot be read as plain weights") as caught:
        Checkpoint.open(tmp_path, allow_pickle=True)
    # PyTorch advises to read the file without the restriction, which is to run what is in it.
    assert "it holds more than plain tensors" in str(caught.value) and "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_an_allowed_pickle_of_plain_weights_becomes_safetensors(single: Path, wrapper: str | None) -> None:
    weights = load_file(single / SINGLE_NAME)
    expected = BertModel.from_pretrained(single).state_dict()
    (single / SINGLE_NAME).unlink()
    halves = [dict(list(weights.items())[:5]), dict(list(weights.items())[5:])]
    # A transposed view: a pickle keeps strides, the format does not.
    halves[0] = {n: t.T.contiguous().T if t.ndim == 2 else t for n, t in halves[0].items()}
    for number, half in enumerate(halves, 1):
        torch.save({wrapper: half} if wrapper else half, single / f"pytorch_model-{number:05d}-of-00002.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        BertModel.from_pretrained(single)
    loaded = BertModel.from_pretrained(single, allow_pickle=True).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    checkpoint = Checkpoint.open(single, allow_pickle=True)
    temporary = checkpoint.files[0].parent
    assert temporary.is_dir()
    assert single not in temporary.parents
    del checkpoint
    assert not temporary.exists()


def test_the_pickles_of_a_trainer_are_left_alone(single: Path) -> None:
    torch.save(load_file(single / SINGLE_NAME), single / "pytorch_model.bin")
    (single / SINGLE_NAME).unlink()
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (single / name).write_bytes(pickle.dumps(_Touch(single / "ran")))
    assert BertModel.from_pretrained(single, allow_pickle=True).num_parameters() > 0
    assert not (single / "ran").exists()


def test_safetensors_win_over_a_pickle_beside_them(single: Path) -> None:
    (single / "pytorch_model.bin").write_bytes(pickle.dumps(_Touch(single / "ran")))
    assert Checkpoint.open(single, allow_pickle=True).files == (single / SINGLE_NAME,)
    assert not (single / "ran").exists()


@pytest.mark.parametrize("version", ["2.9.1+cpu", "1.13", "unknown"])
def test_an_older_pytorch_may_not_read_pickles(version: str, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"torch 2\.10 or newer; this is"):
        pickles.converted([tmp_path / "pytorch_model.bin"], torch_version=version)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.ones(2)}, torch.ones(3)])
def test_a_pickle_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        Checkpoint.open(tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("tensor", "word"), [(torch.eye(3).to_sparse(), "as torch.sparse_coo"), (torch.ones(2, device="meta"), "meta")]
)
def test_a_tensor_that_is_not_all_there_is_named(tensor: torch.Tensor, word: str, tmp_path: Path) -> None:
    torch.save({"odd.weight": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"holds 'odd.weight' .*{word}"):
        Checkpoint.open(tmp_path, allow_pickle=True)


def test_a_pickle_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    for number in (1, 3):
        torch.save({f"{number}.weight": torch.ones(2)}, tmp_path / f"pytorch_model-0000{number}-of-00003.bin")
    with pytest.raises(CheckpointError, match=r"no pytorch_model-00002-of-00003\.bin; download it again"):
        Checkpoint.open(tmp_path, allow_pickle=True)


def test_a_whole_pickle_counts_before_its_shards(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "pytorch_model-00001-of-00001.bin")
    assert Checkpoint.open(tmp_path, allow_pickle=True).tensors["a.weight"].shape == (2,)


# -- 4: the cache of the Hub -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_snapshot_made_of_links_loads(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(kind)
    expected = BertModel.from_pretrained(source).state_dict()
    repository = tmp_path / "models--someone--something"
    snapshot = repository / "snapshots" / ("a1" * 20)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.move(file, repository / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a1" * 20)
    by_id = BertModel.from_pretrained("someone/something", cache_dir=tmp_path, local_files_only=True)
    for model in (BertModel.from_pretrained(snapshot), by_id):
        assert model.load_report is not None
        assert model.load_report.revision == "a1" * 20
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_broken_link_is_named(single: Path) -> None:
    (single / SINGLE_NAME).unlink()
    (single / SINGLE_NAME).symlink_to("../../blobs/gone")
    with pytest.raises(CheckpointError, match=r"links to files that are gone: model\.safetensors"):
        Checkpoint.open(single)


# -- 5: headers --------------------------------------------------------------------------------------------------------


def _bloated() -> bytes:
    rows = (b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(280_000))
    text = b"{" + b",".join(rows) + b"}"
    return len(text).to_bytes(8, "little") + text


HEADERS: dict[str, Callable[[], bytes]] = {
    "length-2^63": lambda: (2**63).to_bytes(8, "little") + b"{}",
    "length-over-limit": lambda: (17 << 20).to_bytes(8, "little") + b" " * (17 << 20),
    "many-empty-tensors": _bloated,
    "deep": lambda: (200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995,
    "empty": lambda: b"",
    "not-a-tensor-file": lambda: b"<html>404</html>",
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_headers_are_refused_in_bounded_time_and_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / SINGLE_NAME).write_bytes(HEADERS[name]())
    code = """
        import sys, time
        from pinnace.errors import CheckpointError
        from pinnace.models.checkpoints.checkpoint import Checkpoint
        began = time.process_time()
        try:
            Checkpoint.open(sys.argv[1])
        except CheckpointError as error:
            print(error)
        else:
            sys.exit("was accepted")
        if time.process_time() - began > 1:
            sys.exit("took too long")
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=20, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SINGLE_NAME in done.stdout


# -- 6: shard indexes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors", "/etc/passwd", "nested/model.safetensors", "model.safetensors/..",
        "..\\x.safetensors", "x.safetensors\x00", "x.safetensors\n",
        "model.bin", "", "café.safetensors", ".safetensors/x.safetensors", ".hidden.safetensors",
    ],
)  # fmt: skip
def test_a_shard_outside_the_folder_is_refused(shard: str, sharded: Path) -> None:
    shutil.copy(sharded / _index(sharded)["weight_map"]["pooler.dense.bias"], sharded.parent / "outside.safetensors")
    index = _index(sharded)
    index["weight_map"]["pooler.dense.bias"] = shard
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names the file"):
        Checkpoint.open(sharded)


def test_a_shard_that_is_not_there_is_named(sharded: Path) -> None:
    gone = sorted(sharded.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=f"names {gone.name}, which is not in the folder"):
        Checkpoint.open(sharded)


def test_an_index_that_disagrees_with_its_shards_is_refused(sharded: Path) -> None:
    true = _index(sharded)
    first, last = sorted(set(true["weight_map"].values()))[:: len(set(true["weight_map"].values())) - 1]
    for name, shard in (("pooler.dense.bias", first), ("never.stored", last)):
        changed = {**true, "weight_map": {**true["weight_map"], name: shard}}
        (sharded / INDEX_NAME).write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=f"disagrees with its shards on 1 weight: '{name}'"):
            Checkpoint.open(sharded)
    del true["weight_map"]["pooler.dense.bias"]
    (sharded / INDEX_NAME).write_text(json.dumps(true))
    with pytest.raises(CheckpointError, match="in no file says the index"):
        Checkpoint.open(sharded)


def test_a_weight_in_two_shards_is_refused(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    save_file({**load_file(shards[0]), **load_file(shards[1])}, shards[0])
    with pytest.raises(CheckpointError, match="is both in"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 200_000,
        '{"weight_map": {"a": "\\ud800.safetensors"}}', '{"weight_map": {"a": "' + "x" * 300 + '.safetensors"}}',
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Checkpoint.open(tmp_path)


def test_a_huge_index_is_not_parsed(tmp_path: Path) -> None:
    with (tmp_path / INDEX_NAME).open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(CheckpointError, match="larger than"):
        Checkpoint.open(tmp_path)


# -- 7: configurations -------------------------------------------------------------------------------------------------


def test_code_beside_a_checkpoint_never_runs(single: Path) -> None:
    config = json.loads((single / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    (single / "config.json").write_text(json.dumps(config))
    (single / "evil.py").write_text(
        f"import os\nos.mkdir({str(single / 'ran')!r})\nclass Model: pass\nConfig = Model\n"
    )
    assert isinstance(BertModel.from_pretrained(single), BertModel)
    assert not (single / "ran").exists()
    assert "evil" not in sys.modules
