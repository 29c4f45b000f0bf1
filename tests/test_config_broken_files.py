"""Damaged, hostile and missing configuration files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from pinnace.errors import CheckpointError, ConfigError, UsageError
from pinnace.models.auto_config import AutoConfig
from pinnace.models.configs.bert import BertConfig
from tests.test_config_files import CORE, written

BROKEN = {
    "not JSON": b'{"hidden_size": ',
    "cut": json.dumps(CORE).encode()[:-5],
    "list": b"[1, 2]",
    "number": b"7",
    "empty": b"",
    "not UTF-8": b'{"hidden_act": "\xff\xfe"}',
    "deep": b'{"task_specific_params": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "less deep": b'{"task_specific_params": ' + b"[" * 100 + b"]" * 100 + b"}",
    "digits": b'{"hidden_size": ' + b"9" * 10_000 + b"}",
    "large": b'{"prefix": "' + b"x" * (5 << 20) + b'"}',
    "unknown key": b'{"hiden_size": 3}',
    "wrong type": b'{"hidden_size": "3"}',
    "NaN": b'{"layer_norm_eps": NaN}',
    "other model": b'{"model_type": "roberta"}',
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_a_config_error_that_names_it(fault: str, tmp_path: Path) -> None:
    file = written(tmp_path, BROKEN[fault])
    for read, path in (
        (BertConfig.from_pretrained, tmp_path),
        (BertConfig.from_pretrained, file),
        (BertConfig.from_json_file, file),
        (AutoConfig.from_pretrained, tmp_path),
    ):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(tmp_path) in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_repeated_keys_take_the_last_and_special_floats_come_back(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '{"hidden_size": 1, "hidden_size": 24, "task_specific_params": {"a": {"__float__": "-Infinity"},'
        ' "b": {"__float__": "NaN"}, "c": {"__float__": "?"}}}',
    )
    config = BertConfig.from_json_file(file)
    assert config.hidden_size == 24
    params = config.task_specific_params
    assert params["a"] == -math.inf
    assert math.isnan(params["b"])
    assert params["c"] == {"__float__": "?"}


def test_a_missing_file_says_what_would_work(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        BertConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        BertConfig.from_json_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        BertConfig.from_pretrained(tmp_path, subfolder="inner")
    with pytest.raises(UsageError, match="neither an existing folder nor a Hub id"):
        BertConfig.from_pretrained(tmp_path / "missing")
    with pytest.raises(UsageError, match="subfolder"):
        BertConfig.from_pretrained(tmp_path, subfolder="../x")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError):
        BertConfig.from_pretrained(tmp_path)
