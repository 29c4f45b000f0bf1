"""The tokenizer of any ``tokenizer.json``: text to numbered tokens and back.

The stock library keeps padding and truncation as state of one shared object, so two threads with different settings get
each other's. Here nothing changes after loading: texts are encoded bare, in one parallel call that lets other threads
run, and each call cuts, frames with special tokens and pads its own rows. No lock is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, processors

from pinnace.errors import BundleError, InputError, UsageError
from pinnace.runtime.tokenization.encoding import BatchEncoding
from pinnace.runtime.tokenization.files import TokenizerSettings, guarded
from pinnace.runtime.tokenization.rows import Plan, Row, Text, explain_refusal, make_plan, make_rows
from pinnace.runtime.tokenization.special_tokens import Layout, SpecialTokens

_CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
             (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


class Tokenizer(SpecialTokens):
    """Encodes and decodes as transformers' fast tokenizers do. Safe to share between threads; picklable.

    Args:
        backend: the pipeline of a ``tokenizer.json``; it is taken over, not copied.
        settings: what ``tokenizer_config.json`` adds.

    Raises:
        BundleError: the two do not fit together.

    Source: behaviour of transformers' TokenizersBackend (5.23) and PreTrainedTokenizerFast (4.57).
    """

    is_fast = True
    """Offsets and word numbers are known."""

    _plan_type = Plan
    _input_names: tuple[str, ...] = ("input_ids", "attention_mask")

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings | None = None) -> None:
        settings = settings or TokenizerSettings()
        super().__init__(backend, settings)
        self.model_max_length = settings.model_max_length
        self.padding_side = settings.padding_side
        self.truncation_side = settings.truncation_side
        self.pad_token_type_id = settings.pad_token_type_id
        self.clean_up_tokenization_spaces = settings.clean_up_tokenization_spaces
        self.model_input_names = list(settings.model_input_names or self._input_names)
        self._kept = dict(settings.kept)
        with guarded(BundleError, "tokenizer"):
            backend.no_padding()
            backend.no_truncation()
            backend.encode_special_tokens = settings.split_special_tokens
            # Framing is a separate step after truncation; an empty model is enough to run it.
            self._framer = tokenizers.Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))  # noqa: S106
            self._framer.post_processor = backend.post_processor or self._default_framing()
            backend.post_processor = None
            self._layouts = {pair: Layout.of(self._framer, pair) for pair in (False, True)}

    def _default_framing(self) -> processors.PostProcessor:
        return processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Encode one text or a batch.

        Args:
            text: string, list of strings or of pairs; with ``is_split_into_words`` a list of words, or of such lists.
            text_pair: the second texts, in the same form.
            add_special_tokens: frame each row as the model was trained, as in ``[CLS] a [SEP] b [SEP]``.
            padding: False; True or ``"longest"`` of the batch; ``"max_length"``.
            truncation: True or ``"longest_first"``, ``"only_first"``, ``"only_second"``, ``"do_not_truncate"``.
            max_length: tokens of a row with its special tokens; by default ``model_max_length``.
            stride: tokens that a window repeats of the one before it.
            is_split_into_words: the texts are lists of words.
            pad_to_multiple_of: round the padded length up.
            padding_side: ``"left"`` or ``"right"``; by default the tokenizer's own.
            return_tensors: None for lists, ``"np"`` for int64 arrays ``[rows, tokens]``.
            return_token_type_ids: 0 and 1 for first and second text; by default if the model takes them.
            return_attention_mask: 1 for tokens, 0 for padding; by default if the model takes it.
            return_overflowing_tokens: parts cut off become rows, and ``overflow_to_sample_mapping`` names their text.
            return_special_tokens_mask: 1 for special tokens.
            return_offsets_mapping: ``(start, end)`` characters of each token.
            return_length: tokens of each row.

        Raises:
            InputError: an input that cannot be encoded, or options that contradict each other.
            UsageError: an unknown strategy.
        """
        plan = make_plan(
            self._plan_type, padding, truncation, max_length, stride, pad_to_multiple_of,
            padding_side or self.padding_side, self.truncation_side, self.model_max_length,
        )  # fmt: skip
        if plan.padding and self.pad_token_id is None:
            raise InputError(
                "padding: got a tokenizer without a padding token, expected one.\n"
                "  Set it: tokenizer.pad_token = tokenizer.eos_token."
            )
        if return_offsets_mapping and not self.is_fast:
            raise InputError("return_offsets_mapping: the legacy tokenizer keeps no offsets; use BertTokenizer.")
        rows, batched = make_rows(text, text_pair, is_split_into_words, empty_pair_counts=not self.is_fast)
        encodings = self._encode_rows(rows, is_split_into_words, add_special_tokens, plan, return_overflowing_tokens)
        families = [[row, *row.overflowing] if return_overflowing_tokens else [row] for row in encodings]
        flat = [encoding for family in families for encoding in family]
        data: dict[str, Any] = {"input_ids": [encoding.ids for encoding in flat]}
        if self._wanted("token_type_ids", return_token_type_ids):
            data["token_type_ids"] = [encoding.type_ids for encoding in flat]
        if self._wanted("attention_mask", return_attention_mask):
            data["attention_mask"] = [encoding.attention_mask for encoding in flat]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [encoding.special_tokens_mask for encoding in flat]
        if return_offsets_mapping:
            data["offset_mapping"] = [encoding.offsets for encoding in flat]
        if return_length:
            data["length"] = [len(encoding) for encoding in flat]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [i for i, family in enumerate(families) for _ in family]
        elif not batched and return_tensors is None:
            data = {name: value[0] if isinstance(value[0], list) else value for name, value in data.items()}
        return BatchEncoding(data, flat if self.is_fast else None, return_tensors)

    def _wanted(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _encode_rows(
        self, rows: Sequence[Row], split: bool, framed: bool, plan: Plan, overflowing: bool
    ) -> list[tokenizers.Encoding]:
        seconds = [second for _, second in rows if second is not None]
        bare = self._encode_bare([*(first for first, _ in rows), *seconds], split)
        partners = iter(bare[len(rows) :])
        encodings = []
        with guarded(InputError, "text"):
            for (_, second), first_encoding in zip(rows, bare, strict=False):
                partner = None if second is None else next(partners)
                added = self.num_special_tokens_to_add(partner is not None) if framed else 0
                kept = plan.keep(len(first_encoding), None if partner is None else len(partner), added)
                if second is not None and partner is not None and overflowing and kept[1] < len(partner):
                    # Framing gives types to what is kept; what is cut off must bring its own.
                    partner = self._encode_bare([second], split, as_partner=True)[0]
                for encoding, length in zip((first_encoding, partner), kept, strict=True):
                    if encoding is not None and length < len(encoding):
                        encoding.truncate(length, stride=plan.stride, direction=plan.truncation_side)
                encodings.append(self._framer.post_process(first_encoding, partner, framed))
            if plan.padding:
                length = plan.padded_length(max(map(len, encodings)))
                for encoding in encodings:
                    encoding.pad(
                        length, direction=plan.padding_side, pad_id=self.pad_token_id,
                        pad_type_id=self.pad_token_type_id, pad_token=self.pad_token,
                    )  # fmt: skip
        return encodings

    def _encode_bare(self, texts: list[Text], split: bool, as_partner: bool = False) -> list[tokenizers.Encoding]:
        """Encode texts on their own, without special tokens, padding or truncation; partners with type 1."""
        nothing: Text = [] if split else ""
        inputs = [(nothing, text) for text in texts] if as_partner else texts
        try:
            with guarded(InputError, "text"):
                return list(self._backend.encode_batch(inputs, is_pretokenized=split, add_special_tokens=False))
        except InputError:
            explain_refusal(texts)
            raise

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The ``input_ids`` of ``self(text, text_pair, **options)``."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: Any, pair: Any = None, add_special_tokens: bool = False, **options: Any) -> list[str]:
        """The token strings of one text."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Turn ids back into text; a list of lists gives a list of texts.

        Args:
            token_ids: an id, a list of ids ``[tokens]``, or a batch ``[rows, tokens]``; lists or arrays.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: close up spaces before punctuation; by default as the tokenizer says. It does
                not apply to byte-pair tokenizers, whose text is exact as it is.

        Raises:
            InputError: something that is not an id.
        """
        ids = token_ids["input_ids"] if isinstance(token_ids, Mapping) else token_ids
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        clean = clean_up_tokenization_spaces
        clean = self.clean_up_tokenization_spaces if clean is None else clean
        if (
            isinstance(ids, (list, tuple))
            and ids
            and (isinstance(ids[0], (list, tuple)) or getattr(ids[0], "shape", ()))
        ):
            return [self.decode(row, skip_special_tokens, clean) for row in ids]
        text = self._decode(self._check_ids(ids), skip_special_tokens)
        return self.clean_up_tokenization(text) if clean and not isinstance(self._backend.model, models.BPE) else text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """``decode`` for a batch; always a list."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        with guarded(InputError, "ids"):
            return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Close up the spaces that splitting put before punctuation and English contractions."""
        for spaced, closed in _CLEAN_UP:
            text = text.replace(spaced, closed)
        return text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join token strings into text."""
        if self._backend.decoder is None:
            return " ".join(tokens)
        with guarded(InputError, "tokens"):
            return str(self._backend.decoder.decode(tokens))

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the model's vocabulary (``vocab.txt``, or ``vocab.json`` and ``merges.txt``) into an existing folder.

        Raises:
            UsageError: no such folder, or a prefix that is not part of a file name.
        """
        folder = self._vocabulary_path(save_directory, filename_prefix).parent
        with guarded(UsageError, str(folder)):
            return tuple(self._backend.model.save(str(folder), filename_prefix))

    @staticmethod
    def _vocabulary_path(save_directory: str | Path, filename_prefix: str | None) -> Path:
        folder = Path(save_directory)
        if not folder.is_dir():
            raise UsageError(f"save_directory: got {str(folder)!r}, expected an existing folder.")
        if filename_prefix and Path(filename_prefix).name != filename_prefix:
            raise UsageError(f"filename_prefix: got {filename_prefix!r}, expected the beginning of a file name.")
        return folder / f"{filename_prefix}-vocab.txt" if filename_prefix else folder / "vocab.txt"

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Write ``tokenizer.json``, ``tokenizer_config.json``, ``special_tokens_map.json`` and the vocabulary.

        transformers and ``load_tokenizer`` read them back to the same tokenizer.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        pipeline = json.loads(self._backend.to_str())
        pipeline["post_processor"] = json.loads(self._framer.to_str())["post_processor"]
        config = {
            **self._kept,
            **self.special_tokens_map,
            "extra_special_tokens": self.extra_special_tokens,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "pad_token_type_id": self.pad_token_type_id,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "split_special_tokens": self._backend.encode_special_tokens,
            "model_input_names": self.model_input_names,
        }
        contents = {
            "tokenizer.json": pipeline,
            "tokenizer_config.json": config,
            "special_tokens_map.json": self.special_tokens_map,
        }
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return (*(str(folder / name) for name in contents), *self.save_vocabulary(folder))
