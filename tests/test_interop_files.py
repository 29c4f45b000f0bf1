"""Files of a bundle that other programs read: what they look for must be where they look."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pinnace.export.tokenizer_files import complete_tokenizer, copy_settings
from tests.conftest import DATA


@pytest.mark.parametrize(("checkpoint", "length"), [("tiny-embed", 24), ("tiny-classify", None)])
def test_fastembed_finds_a_sentence_models_length(checkpoint: str, length: int | None, tmp_path: Path) -> None:
    copy_settings(DATA / checkpoint, tmp_path)
    complete_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert settings.get("max_length") == length
    assert settings["model_max_length"] == 128


def test_a_length_that_is_none_is_not_written(tmp_path: Path) -> None:
    copy_settings(DATA / "tiny-embed", tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": null}', "utf-8")
    complete_tokenizer(tmp_path)
    assert "max_length" not in json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
