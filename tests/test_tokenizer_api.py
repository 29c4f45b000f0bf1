"""The tokenizer's own promises: sources, frames, ids, positions, threads, errors."""

# ruff: noqa: S105, S106
# Tokens are no passwords.

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from pinnace.errors import BundleError, InputError, UsageError
from pinnace.runtime.tokenization.tokenizer import BatchEncoding, BertTokenizer, Tokenizer, load_tokenizer
from tests.test_tokenizer import minilm


@pytest.fixture(scope="module")
def small() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", ",", "Cat", "caf", "##e", "##é"]
    return BertTokenizer({word: number for number, word in enumerate(words)}, do_lower_case=True)


def test_every_source_of_a_vocabulary(small: BertTokenizer, tmp_path: Path) -> None:
    (vocab_file,) = small.save_vocabulary(tmp_path, "x")
    assert Path(vocab_file).name == "x-vocab.txt"
    small.save_pretrained(tmp_path)
    text = "The cats sat, café"
    sources: list[Any] = [tmp_path, tmp_path / "tokenizer.json", str(tmp_path / "tokenizer.json")]
    for source in sources:
        assert BertTokenizer(source).encode(text) == small.encode(text)
    bare = BertTokenizer(tmp_path / "vocab.txt")
    assert bare.tokenize("Cat café") == ["Cat", "caf", "##é"]
    assert BertTokenizer(tmp_path, do_lower_case=False).tokenize("Cat café") == ["Cat", "caf", "##é"]
    assert BertTokenizer(vocab_file=vocab_file, do_lower_case=True).tokenize("Cat café") == ["cat", "caf", "##e"]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == small.encode(text) == load_tokenizer(tmp_path).encode(text)
    only = tmp_path / "only"
    only.mkdir()
    (only / "vocab.txt").write_bytes((tmp_path / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(only).encode(text) == small.encode(text)
    assert BertTokenizer.from_pretrained(only, cls_token="the").encode("cat") == [5, 6, 3]


def test_frames(small: BertTokenizer) -> None:
    assert small.build_inputs_with_special_tokens([5, 6]) == [2, 5, 6, 3]
    assert small.build_inputs_with_special_tokens([5], [6, 7]) == [2, 5, 3, 6, 7, 3]
    assert small.create_token_type_ids_from_sequences([5], [6, 7]) == [0, 0, 0, 1, 1, 1]
    assert small.get_special_tokens_mask([5], [6, 7]) == [1, 0, 1, 0, 0, 1]
    assert small.get_special_tokens_mask([2, 5, 3, 6, 3], already_has_special_tokens=True) == [1, 0, 1, 0, 1]
    assert [small.num_special_tokens_to_add(pair) for pair in (False, True)] == [2, 3]
    with pytest.raises(InputError, match="token_ids_1"):
        small.get_special_tokens_mask([2], [3], already_has_special_tokens=True)


def test_tokens_and_ids(small: BertTokenizer) -> None:
    assert small.convert_tokens_to_ids(["cat", "dog"]) == [6, 1]
    assert small.convert_tokens_to_ids("cat") == small.convert_tokens_to_ids(small.convert_ids_to_tokens(6) or "")
    assert small.convert_ids_to_tokens([2, 6, 99], skip_special_tokens=True) == ["cat", None]
    scalars: list[Any] = [6, np.int64(6), np.array(6)]
    assert [small.convert_ids_to_tokens(one) for one in scalars] == ["cat"] * 3
    assert small.convert_tokens_to_string(["cat", "##s", "sat"]) == "cats sat"
    assert small.decode(np.array([[2, 6, 8, 3], [2, 5, 9, 3]]), skip_special_tokens=True) == ["cats", "the,"]
    assert small.batch_decode([6, 8]) == ["cats"]
    assert (small.mask_token, small.mask_token_id, small.bos_token, small.bos_token_id) == ("[MASK]", 4, None, None)
    assert small.continuing_subword_prefix == "##"
    for wrong in (-1, "cat", 1.5, [2**32]):
        with pytest.raises(InputError, match="ids: got"):
            small.decode(wrong)
    copy: Tokenizer = pickle.loads(pickle.dumps(small))  # noqa: S301
    assert copy("the cats")["input_ids"] == small("the cats")["input_ids"]
    copy.pad_token = "cat"
    assert copy.pad_token_id == 6 and small.pad_token_id == 0
    with pytest.raises(InputError, match="pad_token"):
        copy.pad_token = "unheard"


def test_positions(small: BertTokenizer) -> None:
    got = small(["the cats, sat", "cat"], ["cats sat", "the"], padding=True, return_tensors="np")
    assert isinstance(got, BatchEncoding) and got.input_ids.dtype == np.int64 and got["input_ids"].shape == (2, 11)
    assert got.char_to_token(4) == 2 and got.char_to_token(0, 8) == 4 and got.char_to_token(3) is None
    assert got.token_to_chars(0, 3) == (7, 8) and got.token_to_chars(0, 0) is None and got.token_to_chars(-2) == (5, 8)
    assert got.char_to_word(0, 7) == 1 and got.word_to_chars(0, 1) == (4, 8) and got.word_to_tokens(0, 1) == (2, 4)
    assert got.word_to_chars(0, 0, sequence_index=1) == (0, 4) and got.token_to_word(0, 3) == 1
    assert got.token_to_sequence(0, 7) == 1 and got.n_sequences == 2 and got.is_fast
    copy: BatchEncoding = pickle.loads(pickle.dumps(got))  # noqa: S301
    assert copy.word_ids(1) == got.word_ids(1)
    with pytest.raises(InputError, match="row: got 5"):
        got.token_to_chars(5, 0)
    with pytest.raises(AttributeError, match="input_ids"):
        _ = got.nothing


def test_threads_do_not_disturb_each_other() -> None:
    ours = load_tokenizer(minilm())
    texts = [" ".join(["word"] * (20 + 3 * i)) for i in range(12)]
    plans: list[dict[str, Any]] = [
        {"truncation": True, "max_length": 8 + i, "padding": "max_length" if i % 2 else False, "padding_side": side}
        for i, side in enumerate(["left", "right"] * 4)
    ]
    expected = [dict(ours(texts, **plan)) for plan in plans]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(60):
            if dict(ours(texts, **plans[number])) != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_importing_and_encoding_need_no_torch() -> None:
    code = (
        "import sys; from pinnace.runtime.tokenization.tokenizer import load_tokenizer;"
        f"assert load_tokenizer({str(minilm())!r})('hello')['input_ids'] == [101, 7592, 102];"
        "assert not {'torch', 'onnx', 'transformers', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json or vocab\.txt"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"tokenizer\.json or vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(UsageError, match="vocab: got none"):
        BertTokenizer()
    with pytest.raises(BundleError, match="UNK"):
        BertTokenizer({"a": 0})
    with pytest.raises(UsageError, match="expected tokens and their ids"):
        BertTokenizer({"a": -1})
