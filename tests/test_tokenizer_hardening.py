"""What must not hurt: hostile tokenizer files and hostile texts (bounded time and memory, typed errors)."""

# ruff: noqa: S106
# Tokens are no passwords.

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pinnace.errors import BundleError, InputError, PinnaceError, UsageError
from pinnace.runtime.tokenization.files import guarded
from pinnace.runtime.tokenization.tokenizer import (
    MAX_FILE_BYTES,
    MAX_TEXT_CHARS,
    BertTokenizer,
    Tokenizer,
    load_tokenizer,
)

VOCAB = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "b"])}


@pytest.fixture(scope="module")
def small() -> BertTokenizer:
    return BertTokenizer(VOCAB)


@pytest.fixture
def folder(small: BertTokenizer, tmp_path: Path) -> Path:
    small.save_pretrained(tmp_path)
    return tmp_path


def _edit(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def _nested(kind: str, key: str, leaf: str, depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": leaf}
    for _ in range(depth):
        inner = {"type": kind, key: [inner]}
    return inner


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"version": "1.0"', b"[" * 100_000, b'{"model":' * 100_000,
    b'{"version":"1.0","model":{"type":"WordPiece","vocab":{"a":-1}}}',
    b'{"version":"1.0","model":{"type":"Unigram","vocab":[],"unk_id":7}}',
    b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[["x","y"]]}}',
])  # fmt: skip
def test_a_damaged_tokenizer_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize("changes", [
    {"normalizer": _nested("Sequence", "normalizers", "Lowercase", 200)},
    {"pre_tokenizer": _nested("Sequence", "pretokenizers", "Whitespace", 200)},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
    {"added_tokens": [{"id": 2**40, "content": "x"}]},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": "(((("}, "content": ""}},
])  # fmt: skip
def test_hostile_parts_are_refused_or_harmless(folder: Path, changes: dict[str, Any]) -> None:
    started = time.monotonic()
    try:
        load_tokenizer(_edit(folder, **changes))("a b", max_length=8)
    except PinnaceError as error:
        assert isinstance(error, (BundleError, InputError))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("config", [
    "[]", "{", '{"padding_side": "up"}', '{"model_max_length": "long"}', '{"pad_token": 5}',
    '{"added_tokens_decoder": {"x": {}}}', '{"added_tokens_decoder": {"1": 5}}', '{"extra_special_tokens": 5}',
    '{"model_input_names": 5}', '{"do_lower_case": "yes"}', '{"pad_token_type_id": -1}', "[" * 100_000,
    '{"additional_special_tokens": "<ab>"}', '{"added_tokens_decoder": {"' + "1" * 5000 + '": {"content": "<a>"}}}',
    '{"model_max_length": NaN}', '{"cls_token": {"content": "[CLS]", "lstrip": "no"}}',
])  # fmt: skip
def test_a_damaged_config_is_named(folder: Path, config: str) -> None:
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(BundleError, match=r"tokenizer_config\.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_an_oversized_file_is_not_read(folder: Path, name: str) -> None:
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    with (folder / name).open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(BundleError, match=f"more than {MAX_FILE_BYTES} bytes"):
        load_tokenizer(folder)


def test_only_regular_files_are_read(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(BundleError, match="regular file"):
        load_tokenizer(folder)


def test_paths_inside_files_are_ignored(folder: Path, small: BertTokenizer) -> None:
    secret = folder.parent / f"{folder.name}-secret.txt"
    secret.write_text("stolen\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    paths = ("vocab_file", "tokenizer_file", "merges_file", "special_tokens_map_file", "name_or_path", "auto_map")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | dict.fromkeys(paths, str(secret))))
    opened = load_tokenizer(folder)
    assert opened.get_vocab() == small.get_vocab()
    out = folder / "out"
    assert {Path(path).parent for path in opened.save_pretrained(out)} == {out}
    assert "secret" not in "".join(path.read_text() for path in out.iterdir())
    for prefix in ("../x", "/x", "a/b"):
        with pytest.raises(UsageError, match="filename_prefix"):
            opened.save_vocabulary(out, prefix)
    with pytest.raises(UsageError, match="existing folder"):
        opened.save_vocabulary(folder / "absent")


@pytest.mark.parametrize(("text", "names"), [
    (5, "int"), (None, "NoneType"), (b"a", "bytes"), ([], "empty list"), (["a", 5], r"text\[1\]"),
    (["a", None], "NoneType"), ([["a", "b", "c"]], r"text\[0\]"), ("\ud800", "lone surrogate"),
    (["a", "b\udfffc"], "character 1"), (("a" * (MAX_TEXT_CHARS + 1)), "Split the text"),
])  # fmt: skip
def test_texts_that_cannot_be_encoded_are_named(small: BertTokenizer, text: Any, names: str) -> None:
    with pytest.raises(InputError, match=names):
        small(text)
    assert small("a")["input_ids"] == [2, 5, 3]


@pytest.mark.parametrize("options", [
    {"padding": "longset"}, {"truncation": "first"}, {"padding": 1.5}, {"max_length": -1}, {"max_length": 2.5},
    {"max_length": 1}, {"max_length": 5, "stride": 3}, {"max_length": 2**70}, {"stride": -1}, {"padding_side": "up"},
    {"pad_to_multiple_of": 0}, {"pad_to_multiple_of": 4, "max_length": 6, "padding": True, "truncation": True},
    {"return_tensors": "pt"}, {"text_pair": ["a"]}, {"text_pair": 5}, {"is_split_into_words": True},
    {"truncation": "only_second", "max_length": 4},
    {"truncation": "only_first", "max_length": 4, "text_pair": "a a a a a"},
])  # fmt: skip
def test_wrong_options_are_named(small: BertTokenizer, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"got|unknown"):
        small("a b a b a b", **options)


def test_arrays_need_equal_rows_and_padding_needs_a_token(small: BertTokenizer) -> None:
    with pytest.raises(InputError, match="padding=True"):
        small(["a", "a b"], return_tensors="np")
    with pytest.raises(InputError, match=r"text_pair: got 1 texts, expected a list of 2"):
        small(["a", "b"], ["a"])
    bare = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "u": 1}, unk_token="u")))
    assert bare("a", "a")["input_ids"] == [0, 0]
    with pytest.raises(InputError, match="pad_token"):
        bare(["a"], padding=True)


def test_extreme_texts_survive(small: BertTokenizer) -> None:
    for text in ("", "\0", "\x1b[31m", "\u202e" * 50, "́" * 1000, "a" * 10**6, "\U0010ffff", "\ufeff", "\r\n"):
        ids = small(text, truncation=True, max_length=16)["input_ids"]
        assert ids[0] == 2 and ids[-1] == 3 and len(ids) <= 16
    assert small("")["input_ids"] == [2, 3]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=30))
def test_any_string_gives_ids_or_an_input_error(text: str) -> None:
    tokenizer = BertTokenizer(VOCAB)
    try:
        ids = tokenizer(text)["input_ids"]
    except InputError as error:
        assert "surrogate" in str(error) and any("\ud800" <= char <= "\udfff" for char in text)
    else:
        assert ids[0] == 2 and ids[-1] == 3


def test_a_panic_becomes_an_error_and_an_interrupt_stays() -> None:
    panicking = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    panicking.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    tokenizer = Tokenizer(panicking)
    with pytest.raises(InputError, match="retry-limit"):
        tokenizer("a" * 40 + "b")
    assert tokenizer("b")["input_ids"] == [0]
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind), guarded(InputError, "text"):
            raise kind


BOMB = """
import sys
from pinnace.errors import PinnaceError
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
for text in ("a" * 4000 + "!", "ab" * 2000, "a " * 4000):
    try:
        tokenizer(text, truncation=True, max_length=16)
    except PinnaceError as error:
        print(type(error).__name__)
assert tokenizer("b")["input_ids"][0] == 2
print("answered")
"""


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(a|a)*b!", "^(([a-z])+.)+[A-Z]([a-z])+$", r"(\w+\s?)+\d"])
def test_a_backtracking_pattern_ends_in_time_and_memory(folder: Path, pattern: str) -> None:
    _edit(
        folder, pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    )
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(folder)], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)),
        env=os.environ | {"RUST_BACKTRACE": "0", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("answered\n"), done.stderr[-2000:]
