"""``pinnace export``: real exports, catalog names without a network, missing extras."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from pinnace.cli.main import main
from tests.conftest import DATA
from tests.test_cli import process

ROOT = DATA.parent.parent


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def test_export_tells_all_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "tûrk 🚢 it's"
    words = ["export", str(DATA / "tiny-classify"), "--task", "sentiment", f"--output={output}", "--json"]
    assert main([*words, "--target", "onnx", "--static", "batch=1,sequence=16"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["path"] == str(output) and (output / "manifest.json").is_file()
    assert told["task"] == "text-classification" and told["unexpected"] == told["fresh"] == []
    variant = told["variants"]["fp32"]
    assert (variant["target"], variant["verdict"]) == ("onnx", "passed") and 0 <= variant["largest_difference"] < 1e-4
    assert told["certificate"] == json.loads((output / "certificate.json").read_text())
    assert "checking fp32 against PyTorch" in shown.err
    assert f"next: pinnace run '{tmp_path}/tûrk 🚢 it'\"'\"'s' " in shown.err
    assert main(["verify", str(output)]) == 0
    assert "ok    numbers fp32" in capsys.readouterr().out
    assert main(["run", str(output), "fine"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["label"]


def test_module_is_the_same_command(tmp_path: Path) -> None:
    words = ["-m", "pinnace.export", DATA / "tiny-embed", "--task", "embed", "-o", "out", "--no-validate"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = process(*words, cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out\n  BertModel for feature-extraction, from tiny-embed\n")
    assert "fp32 (ort, opset " in done.stdout and "model.onnx" in done.stdout and "not validated" in done.stdout
    assert done.stderr.splitlines()[-1] == 'next: pinnace run out "It works."'
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert main(["verify", str(tmp_path / "out"), "--strict"]) == 1


def test_fresh_and_unexpected_weights_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["export", str(DATA / "tiny-mlm"), "-o", str(tmp_path / "out"), "--no-validate", "--task", "ner"]
    assert main(words) == 3
    assert "--init-missing" in capsys.readouterr().err
    assert main([*words, "--init-missing"]) == 0
    err = capsys.readouterr().err
    assert "warning: 2 weights are random" in err and "classifier.weight" in err
    assert "warning: the model has no place for" in err and "cls.predictions" in err


def test_random_weights_need_no_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "bert", "--task", "classify", "--random-weights", "--no-validate", "-o", "out"]
    words += ["--config", "num_hidden_layers=1,hidden_size=16,num_attention_heads=2,intermediate_size=8,vocab_size=9"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "bert (random weights)" in shown.out
    assert shown.err.splitlines()[-1] == "next: pinnace inspect out"  # it has no tokenizer, so it cannot be run


def test_labels_come_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    words = ["export", str(DATA / "tiny-mlm"), "--task", "ner", "-o", "out", "--no-validate", "--init-missing"]
    words += ["--labels", f"@{labels}"]
    assert main(words) == 2
    assert f"cannot read the labels' file {labels}" in capsys.readouterr().err
    labels.write_text("O\nTERM\nDEF\n")
    assert main(words) == 2
    assert "3 labels are given, and the model has 2" in capsys.readouterr().err
    assert main([*words, "--config", "num_labels=3"]) == 0
    assert json.loads(Path("out/manifest.json").read_text())["labels"] == ["O", "TERM", "DEF"]
    assert json.loads(Path("out/config.json").read_text())["label2id"] == {"O": 0, "TERM": 1, "DEF": 2}
    labels.write_text("O\nO\n")
    assert main(words) == 2
    assert "twice: ['O']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "needles"),
    [
        (["bert", "--task", "qa"], 3, ["deepset/bert-base-cased-squad2", "--random-weights", "local folder"]),
        (["bert"], 2, ["catalog name", "--task qa"]),
        (["brt", "--task", "qa"], 3, ["no folder brt", "Did you mean the catalog name 'bert'?"]),
        ([f"{DATA}/bert-glosary-qa", "--task", "qa"], 2, ["bert-glosary-qa", "Did you mean", "bert-glossary-qa"]),
        ([str(DATA), "--task", "qa"], 3, ["config.json"]),
        ([str(DATA / "tiny-mlm"), "--config", "num_hiden_layers=2"], 3, ["num_hiden_layers"]),
        ([str(DATA / "tiny-mlm"), "--opset", "99"], 2, ["opset 99"]),
        ([str(DATA / "tiny-mlm"), "--subfolder", "lost"], 3, ["lost"]),
        ([str(DATA / "tiny-mlm"), "--task", "QA"], 2, ["unknown task 'QA'", "Did you mean 'qa'?"]),
        ([str(DATA / "tiny-mlm"), "--static", "batch=1,batch=2"], 2, ["gives batch twice"]),
        ([str(DATA / "tiny-classify"), "--task", "qa"], 3, [
            "got num_labels=3", "tiny-classify was saved as BertForSequenceClassification, which has no head for "
            "question-answering; it serves: text-classification, text-ranking, zero-shot-classification",
        ]),
        ([str(DATA / "tiny-classify"), "--task", "ner"], 3, [
            "of the same names and another meaning", "was saved as BertForSequenceClassification", "'architectures'",
        ]),
        ([str(DATA / "bert-glossary-ner"), "--task", "zero-shot"], 3, ["was saved as BertForTokenClassification"]),
        ([str(DATA / "tiny-rerank"), "--task", "pretraining"], 3, [
            "--init-missing", "was saved as BertForSequenceClassification, which has no head for pretraining",
        ]),
        ([str(DATA / "tiny-mlm"), "-o", str(DATA)], 2, ["is not a bundle", "choose another output folder"]),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else None,
)  # fmt: skip
def test_wrong_models_and_words(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, needles: list[str]
) -> None:
    got = main(["export", *words])
    shown = capsys.readouterr()
    assert (got, shown.out) == (code, "") and "Traceback" not in shown.err
    assert all(needle in shown.err for needle in needles), shown.err


def test_a_checkpoint_of_another_architecture_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "roberta").mkdir()
    (tmp_path / "roberta" / "config.json").write_text('{"model_type": "roberta"}')
    assert main(["export", str(tmp_path / "roberta"), "--task", "qa"]) == 3
    err = capsys.readouterr().err
    assert f"{tmp_path}/roberta: the model_type is 'roberta'; Pinnace has: apertus, bert" in err
    assert "Did you mean" not in err


def test_an_adapter_and_a_pointer_of_git_lfs_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert main(["export", str(tmp_path / "lora"), "--task", "qa"]) == 3
    assert "lora holds an adapter (adapter_config.json)" in capsys.readouterr().err
    shutil.copytree(DATA / "tiny-classify", tmp_path / "cloned")
    (tmp_path / "cloned" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\n")
    assert main(["export", str(tmp_path / "cloned"), "-o", "out"]) == 3
    assert "cloned/tokenizer.json is a pointer of Git LFS" in capsys.readouterr().err


def test_the_next_command_does_not_take_a_folder_for_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(DATA / "tiny-embed"), "--output=-x", "--no-validate"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == 'next: pinnace run ./-x "It works."'


def test_a_head_for_a_checkpoint_that_may_have_no_problem_type(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["export", str(DATA / "tiny-multilabel"), "--no-validate", "-o", "out", "--config"]
    assert main([*words, "problem_type=multi_label_classification,classifier_dropout=0.1"]) == 0
    assert json.loads(Path("out/manifest.json").read_text())["problem_type"] == "multi_label_classification"
    assert main([*words, "problem_type=null,pad_token_id=none"]) == 0
    assert json.loads(Path("out/manifest.json").read_text())["problem_type"] is None


@pytest.mark.parametrize(
    ("blocked", "model", "line"),
    [
        ("torch", "bert", "pip install 'pinnace[export]'"),
        ("onnx_ir", "bert", "pip install 'pinnace[export]'"),
        ("huggingface_hub", "bert", "pip install 'pinnace[hub]'"),
    ],
)
def test_a_missing_extra_has_its_line(blocked: str, model: str, line: str) -> None:
    code = (
        f"import sys; sys.modules[{blocked!r}] = None; from pinnace.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = process("-c", code, "export", model, "--task", "qa", cwd=ROOT)
    assert done.returncode == 4 and line in done.stderr and "Traceback" not in done.stderr


def test_a_machine_that_cannot_write(capsys: pytest.CaptureFixture[str]) -> None:
    if sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    assert main(["export", str(DATA / "tiny-mlm"), "-o", "/proc/out", "--no-validate"]) == 5
    assert "cannot write /proc/out" in capsys.readouterr().err
