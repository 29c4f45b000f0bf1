"""Text-generation, text to text: pieces, stop strings, conversations, and the shapes of transformers' pipeline."""

from __future__ import annotations

import copy
import json
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pinnace.errors import DeadlineExceeded, InputError, NumericalError, UsageError
from pinnace.runtime.engine.cancellation import Cancellation
from pinnace.runtime.generation.row import Row
from pinnace.runtime.generation.streaming import RowDecoder, RowText, new_text
from pinnace.runtime.pipelines import base as pipeline_base
from pinnace.runtime.pipelines.table import pipeline
from pinnace.runtime.pipelines.text_generation import TextGenerationPipeline
from tests.conftest import DATA
from tests.generation_bundles import Opened, decoder_of, opened

__all__ = ["decoder_of", "opened"]

TALK = [{"role": "user", "content": "a boat"}]
TEXTS = [
    "plain words, and more.",
    "日本語の文章です。",
    "naïve façade — “quoted”…",
    "👩‍👩‍👧‍👦 family 🇪🇺 flags 👍🏽",
    "नमस्ते दुनिया",
    "a\u0000b\ufffdc\ufffd",
    "",
]


@pytest.fixture(scope="module")
def pipe(opened: Opened) -> TextGenerationPipeline:
    made: Any = pipeline("generate", opened.make("ort"), threads=1)
    return made  # type: ignore[no-any-return]


def byte_tokenizer() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def word_tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(DATA / "bert-glossary-ner" / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_never_cut_a_character_and_join_to_the_text(text: str) -> None:
    backend = byte_tokenizer()
    row = RowText(backend.decode)
    pieces = [row.push(token) for token in backend.encode(text).ids]
    assert "".join([*pieces, row.flush()]) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)
        assert sum(map(bool, pieces)) == len(text)


def test_any_bytes_join_to_what_decoding_them_at_once_gives() -> None:
    backend, source = byte_tokenizer(), random.Random(4)
    for _ in range(300):
        tokens = [source.randrange(256) for _ in range(source.randrange(40))]
        cut = source.randrange(len(tokens) + 1)
        assert new_text(backend.decode, [], tokens) == backend.decode(tokens)
        prompt = [*backend.encode("né").ids]
        assert new_text(backend.decode, prompt, tokens[:cut]) == backend.decode(tokens[:cut])


def test_what_follows_a_whole_character_is_decoded_at_once(
    pipe: TextGenerationPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ByteFallback makes all bytes of a run replacement characters where the last of them are no character."""
    backend = tokenizers.Tokenizer(models.BPE({f"<0x{i:02X}>": i for i in range(256)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [*"é€".encode(), *"😀".encode()[:2]]
    assert backend.decode(bytes_) == "\ufffd" * 7
    for cut in range(len(bytes_)):
        known = backend.decode(bytes_[:cut]).rstrip("\ufffd")
        assert new_text(backend.decode, bytes_[:cut], bytes_[cut:]) == ("\ufffd" * 7)[len(known) :]
    assert new_text(backend.decode, bytes_[:1], []) == ""
    # A call's text is that of all its tokens, whatever its stream gave.
    of_bytes: Any = SimpleNamespace(decode=lambda ids, *_: backend.decode(ids), special_token_ids={})
    monkeypatch.setattr(pipe.generator, "_decode", RowDecoder(of_bytes))
    row, ids = list(b"n"), iter(bytes_)
    monkeypatch.setattr(Row, "_choose", lambda _self, _logits: next(ids))
    [[found]] = pipe.generator.generate([row], max_new_tokens=len(bytes_))
    assert found.text == backend.decode([*row, *bytes_])[1:]


def test_words_keep_their_spaces_and_parts_theirs() -> None:
    backend = word_tokenizer()
    tokens = backend.encode("a photographer, unbelievably happy.", add_special_tokens=False).ids
    whole = backend.decode(tokens)
    for cut in range(1, len(tokens)):
        assert backend.decode(tokens[:cut]) + new_text(backend.decode, tokens[:cut], tokens[cut:]) == whole


def test_the_shapes_of_transformers(pipe: TextGenerationPipeline) -> None:
    one = pipe("a boat", max_new_tokens=8)
    assert [list(record) for record in one] == [["generated_text"]]
    assert one[0]["generated_text"].startswith("a boat") and len(one[0]["generated_text"]) > 6
    new = pipe("a boat", max_new_tokens=8, return_full_text=False)
    assert "a boat" + new[0]["generated_text"] == one[0]["generated_text"]
    assert pipe(["a boat", "a boat"], max_new_tokens=8) == [one, one]
    several = pipe("a boat", max_new_tokens=8, do_sample=True, seed=1, num_return_sequences=3)
    assert len({record["generated_text"] for record in several}) == 3
    ids = pipe("a boat", max_new_tokens=8, return_tensors=True)[0]["generated_token_ids"]
    assert pipe.tokenizer.decode(ids) == one[0]["generated_text"]
    # Without max_new_tokens, the bundle's generation_config.json decides.
    assert len(pipe("a boat", return_tensors=True)[0]["generated_token_ids"]) == 6 + 12


def test_greedy_text_is_that_of_transformers(pipe: TextGenerationPipeline) -> None:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.pipelines import pipeline as transformers_pipeline

    torch.set_num_threads(1)
    folder = DATA / "tiny-generate"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs = transformers_pipeline(
        "text-generation", model=model, tokenizer=PreTrainedTokenizerFast.from_pretrained(folder)
    )
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    for given in ("a boat", "Ärger 日本", TALK, [*TALK, {"role": "assistant", "content": "is"}]):
        assert pipe(given, **options) == theirs(given, **options)
        options["return_full_text"] = False
        assert pipe(given, **options) == theirs(given, **options)
        del options["return_full_text"]


def test_streams_are_the_call_in_pieces(pipe: TextGenerationPipeline) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "return_full_text": False}
    want = pipe("a boat", **options)[0]["generated_text"]
    pieces = list(pipe.stream("a boat", **options))
    assert len(pieces) > 10 and "".join(pieces) == want
    rows: dict[int, str] = {}
    for place, piece in pipe.stream(["a boat", TALK, "x"], batch_size=2, **options):
        rows[place] = rows.get(place, "") + piece
    assert [rows[i] for i in range(3)] == [
        pipe(given, **options)[0]["generated_text"] for given in ("a boat", TALK, "x")
    ]
    with pytest.raises(UsageError, match="num_return_sequences"):
        pipe.stream("a boat", do_sample=True, num_return_sequences=2)
    asked: dict[str, Any]
    for asked in (
        {"logprobs": 2}, {"logprobs": 0}, {"return_full_text": True}, {"return_tensors": True},
        {"clean_up_tokenization_spaces": True},
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"{next(iter(asked))} is for calls"):
            pipe.stream("a boat", **asked)


def test_a_prefix_can_be_cancelled(pipe: TextGenerationPipeline) -> None:
    switch = Cancellation()
    assert len(pipe.prefix("a boat", cancellation=switch)) > 1
    switch.cancel()
    with pytest.raises(DeadlineExceeded):
        pipe.prefix("a boat", cancellation=switch)


def test_a_stop_string_ends_the_text_across_tokens(pipe: TextGenerationPipeline) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "return_full_text": False}
    whole = pipe("a boat", **options)[0]["generated_text"]
    # Every token is a byte, so that a stop string of several characters always spans some.
    stop = whole[12:15]
    want = whole[: whole.index(stop)]
    assert want
    stopped = {**options, "stop_strings": [stop, "never said"]}
    assert pipe("a boat", **stopped)[0]["generated_text"] == want
    assert "".join(pipe.stream("a boat", **stopped)) == want
    result = pipe.generator.generate([pipe.tokenizer.encode("a boat")], max_new_tokens=40, stop_strings=[stop])[0][0]
    assert result.reason == "stop_string" and result.text == want
    # One that is begun and not ended is text after all.
    assert "".join(pipe.stream("a boat", **options, stop_strings=[whole[-2:] + "z"])) == whole
    beams = pipe("a boat", num_beams=2, **stopped)[0]["generated_text"]
    assert stop not in beams


@pytest.mark.parametrize("beams", [1, 2])
def test_a_stop_string_that_is_a_special_token_ends_the_text(pipe: TextGenerationPipeline, beams: int) -> None:
    special = pipe.tokenizer.pad_token_id
    assert special is not None and special not in pipe.generator.config.eos_token_id
    options: dict[str, Any] = {"sequence_bias": {(special,): 1e4}, "max_new_tokens": 5, "num_beams": beams}
    ids = [pipe.tokenizer.encode("a boat")]
    result = pipe.generator.generate(ids, stop_strings=["<pad>"], **options)[0][0]
    assert (result.ids.tolist(), result.reason, result.text) == ([special], "stop_string", "")
    assert len(pipe.generator.generate(ids, stop_strings=["<pa"], **options)[0][0].ids) == 5
    assert pipe("a boat", stop_strings=["<pad>"], return_full_text=False, **options)[0]["generated_text"] == ""


def test_messages_in_messages_out(pipe: TextGenerationPipeline) -> None:
    answer = pipe(TALK, max_new_tokens=8)[0]["generated_text"]
    assert answer[:1] == TALK and answer[1]["role"] == "assistant" and TALK == [{"role": "user", "content": "a boat"}]
    written = pipe("user: a boat\nassistant: ", max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    assert answer[1]["content"] == written
    assert pipe(TALK, max_new_tokens=8, return_full_text=False)[0]["generated_text"] == written
    assert pipe([TALK, TALK], max_new_tokens=8) == [pipe(TALK, max_new_tokens=8)] * 2
    begun = [*TALK, {"role": "assistant", "content": "it is"}]
    longer = pipe(begun, max_new_tokens=8)[0]["generated_text"]
    assert len(longer) == 2 and longer[1]["content"].startswith("it is") and len(longer[1]["content"]) > 5
    parts: list[Any] = [*TALK, {"role": "assistant", "content": [{"type": "text", "text": "it is"}]}]
    content = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] or m['content'] }}\n{% endfor %}"
    added = pipe(parts, max_new_tokens=8, chat_template=content)[0]["generated_text"]
    assert added[1]["content"] == [{"type": "text", "text": longer[1]["content"]}]
    assert parts[1]["content"] == [{"type": "text", "text": "it is"}]
    other = pipe(TALK, max_new_tokens=8, chat_template="{{ messages[0]['content'] }}")[0]["generated_text"]
    assert other[1]["content"] == pipe("a boat", max_new_tokens=8, return_full_text=False)[0]["generated_text"]


def test_a_misspelt_name_is_no_template(pipe: TextGenerationPipeline) -> None:
    with pytest.raises(UsageError, match="chat template"):
        pipe(TALK, chat_template="tool_use")
    with pytest.raises(UsageError, match="chat_template_kwargs"):
        pipe(TALK, chat_template_kwargs={1: 2})


def test_a_timeout_is_that_of_the_whole_list(pipe: TextGenerationPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_base, "CHUNK", 1)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.3 s"):
        pipe(["a boat"] * 100_000, max_new_tokens=1, timeout=0.3)
    assert time.monotonic() - began < 30
    # A stream may last for days: there it is that of each piece.
    assert len(list(pipe((text for text in ["a boat"] * 3), max_new_tokens=1, timeout=60))) == 3


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([{"content": "x"}], "'role'"),
        ([{"role": "user"}, 3], "expected"),
        ([["a"]], "expected"),
        ({"role": "user", "content": "x"}, "expected"),
    ],
)
def test_what_is_neither_text_nor_messages(pipe: TextGenerationPipeline, given: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        pipe(given, max_new_tokens=2)


def test_long_prompts(pipe: TextGenerationPipeline) -> None:
    long = "a long sentence. " * 30
    with pytest.raises(InputError, match="the model takes 128"):
        pipe(long, max_new_tokens=8)
    with pytest.raises(UsageError, match="no room"):
        pipe(long, max_new_tokens=128, handle_long_generation="hole")
    cut = pipe(long, max_new_tokens=8, handle_long_generation="hole", return_tensors=True)[0]["generated_token_ids"]
    kept = pipe.tokenizer.encode(long)[-120:]
    assert cut[:120] == kept and len(cut) == 128
    # What the call does not say is left half a row at most; a prompt that leaves room stays whole.
    for said, file, kept, new in (
        ({}, {}, 116, 12),
        ({}, {"max_new_tokens": 5000}, 64, 64),
        ({"max_new_tokens": None}, {}, 64, 64),
        ({"max_new_tokens": 100}, {"max_new_tokens": 5000}, 28, 100),
        ({"max_length": 30}, {}, 15, 15),
        ({}, {"max_new_tokens": None, "max_length": 5000}, 64, 64),
    ):
        made: Any = copy.copy(pipe)
        made.generator = copy.copy(pipe.generator)
        made.generator.config = pipe.generator.config.merged(**file)
        options: dict[str, Any] = {"eos_token_id": [], "handle_long_generation": "hole", "return_tensors": True, **said}
        cut = made(long, **options)[0]["generated_token_ids"]
        assert cut[:kept] == pipe.tokenizer.encode(long)[-kept:] and len(cut) == kept + new, (said, file)
        with_room = made(long[:20], **options)
        assert with_room == made(long[:20], **options | {"handle_long_generation": None})
    # An empty text begins with the first token of all.
    assert pipe("", max_new_tokens=4, return_tensors=True)[0]["generated_token_ids"][0] == pipe.tokenizer.bos_token_id


def test_a_shared_beginning_is_computed_once(pipe: TextGenerationPipeline) -> None:
    system = [{"role": "system", "content": "speak of boats"}]
    prefix = pipe.prefix(system)
    talks: list[Any] = [[*system, *TALK], [*system, {"role": "user", "content": "why?"}], "something else"]
    for talk in talks[:2]:
        prompt = pipe._prompt(talk, pipe._read_options({}))
        assert prefix.shared(prompt, pipe.generator.decoder) == len(prefix)
    assert pipe(talks, max_new_tokens=8, shared_prefix=prefix) == pipe(talks, max_new_tokens=8)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 128),
        ({"batch_size": 2}, 16),
        ({"num_return_sequences": 5, "do_sample": True}, 24),
        ({"num_return_sequences": 40, "do_sample": True}, 8),
        ({"num_beams": 2}, 8),
    ],
)
def test_a_streams_answers_come_after_a_few_rounds(
    pipe: TextGenerationPipeline, options: dict[str, Any], size: int
) -> None:
    taken: list[str] = []

    def texts() -> Iterator[str]:
        for number in range(200):
            taken.append(str(number))
            yield f"a boat {number}"

    stream = pipe(texts(), max_new_tokens=1, **options)
    assert next(stream) and len(taken) == size
    stream.close()
    # Rows that look up their guesses run one by one too.
    assert pipe.piece_size(pipe._read_options({"prompt_lookup_num_tokens": 3})) == 8


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [{"type": "function"}]},
        {"documents": [{"text": "x"}]},
        {"chat_template": "{{ messages }}"},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"continue_final_message": False},
    ],
)
def test_options_of_messages_are_refused_for_a_text(pipe: TextGenerationPipeline, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(options))} is for messages, and the input is a text"):
        pipe("a boat", max_new_tokens=2, **options)
    with pytest.raises(UsageError, match="is for messages"):
        pipe.stream("a boat", max_new_tokens=2, **options)
    assert pipe(TALK, max_new_tokens=2, **options)


def test_options_that_contradict_each_other_or_are_of_another_kind(pipe: TextGenerationPipeline) -> None:
    with pytest.raises(UsageError, match=r"shared_prefix is str; expected what the pipeline's prefix\(\) computed"):
        pipe("a boat", shared_prefix="x")
    for full in (True, False):
        with pytest.raises(UsageError, match="return_tensors gives ids and return_full_text asks for a text"):
            pipe("a boat", return_tensors=True, return_full_text=full)
    assert "generated_token_ids" in pipe("a boat", max_new_tokens=2, return_tensors=True)[0]
    assert pipe("a boat", max_new_tokens=2, return_full_text=None) == pipe("a boat", max_new_tokens=2)


def test_words_of_transformers_are_told_from_misspelt_ones(pipe: TextGenerationPipeline) -> None:
    for name in ("force_words_ids", "constraints", "exponential_decay_length_penalty", "penalty_alpha"):
        with pytest.raises(UsageError, match=f"^Pinnace does not have {name}"):
            pipe("a boat", **{name: 1})
    with pytest.raises(UsageError, match="output_scores changes nothing here"):
        pipe("a boat", output_scores=True)
    with pytest.raises(UsageError, match="Did you mean 'max_new_tokens'"):
        pipe("a boat", max_new_token=1)


def test_logprobs_come_with_the_text(pipe: TextGenerationPipeline) -> None:
    record = pipe("a boat", max_new_tokens=4, logprobs=2)[0]
    assert list(record) == ["generated_text", "logprobs", "top_logprobs"]
    assert [max(step.values()) for step in record["top_logprobs"]] == pytest.approx(record["logprobs"])
    json.dumps(record)


def test_a_text_without_a_next_token_fails_alone(pipe: TextGenerationPipeline) -> None:
    texts = ["a boat", "the sea", "sails"]
    options: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": ()}
    want = pipe(texts, **options)
    last = pipe.tokenizer.encode(texts[1])[-1]
    assert all(pipe.tokenizer.encode(text)[-1] != last for text in (texts[0], texts[2]))
    options["bad_words_ids"] = [[last, token] for token in range(pipe.generator.decoder.vocabulary)]
    with pytest.raises(NumericalError, match="prompt 1: the options forbid every token") as caught:
        pipe(texts, **options)
    results = caught.value.results
    assert (results[0], results[2]) == (want[0], want[2])
    assert results[1][0]["generated_text"] == texts[1] and "forbid" in results[1][0]["error"]
    pieces: list[str] = []
    with pytest.raises(NumericalError, match="forbid every token"):
        for place, piece in pipe.stream(texts, **options):
            pieces.append(piece if place == 2 else "")
    assert texts[2] + "".join(pieces) == want[2][0]["generated_text"]


def test_cancelled_calls_keep_what_is_there(pipe: TextGenerationPipeline) -> None:
    cancellation = Cancellation()
    pieces = []
    for piece in pipe.stream("a boat", max_new_tokens=60, cancellation=cancellation):
        pieces.append(piece)
        if len(pieces) == 5:
            cancellation.cancel()
    assert "".join(pipe.stream("a boat", max_new_tokens=60)).startswith("".join(pieces).rstrip("\ufffd"))
    assert pipe("a boat", cancellation=cancellation) == [{"generated_text": "a boat"}]


def test_it_pickles_after_use(pipe: TextGenerationPipeline) -> None:
    want = pipe(TALK, max_new_tokens=4)
    assert pickle.loads(pickle.dumps(pipe))(TALK, max_new_tokens=4) == want  # noqa: S301


def test_messages_without_a_template(opened: Opened, tmp_path: Path) -> None:
    import shutil

    from pinnace.runtime.bundles.bundle import Bundle

    folder = tmp_path / "b"
    shutil.copytree(opened.make("ort"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = pipeline("generate", Bundle.open(folder, verify=False), threads=1, verify=False)
    with pytest.raises(UsageError, match="no chat template"):
        made(TALK)
    assert made(TALK, max_new_tokens=2, chat_template="{{ messages[0].content }}")
