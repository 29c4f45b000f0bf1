"""What a generation is asked to do: transformers' own words, checked once, contradictions refused by name.

Source: the documented fields of ``GenerationConfig`` (transformers 5); presence and frequency penalties and
``logit_bias`` are those of OpenAI's completions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, InputError, UsageError, nearest_word, unknown_word
from pinnace.runtime.bundles import integrity
from pinnace.runtime.generation.fields import FIELDS, contradiction

CONFIG_NAME: Final = "generation_config.json"
MAX_CONFIG_BYTES: Final = 1 << 20
# What transformers takes of a model's configuration where no file of options was saved: when a row ends.
_MODEL_CONFIG: Final = "config.json"
_MODEL_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
DEFAULT_NEW_TOKENS: Final = 256
"""How many tokens are generated where neither ``max_new_tokens`` nor ``max_length`` is given."""

# Keys that a file may hold and that say nothing about which tokens come out here.
_BOOKKEEPING: Final = frozenset(
    {
        "_commit_hash", "_from_model_config", "assistant_confidence_threshold", "assistant_early_exit",
        "assistant_lookbehind", "cache_config", "cache_implementation", "chat_format", "compile_config",
        "continuous_batching_config", "decoder_start_token_id", "disable_compile", "is_assistant", "low_memory",
        "max_cache_len", "max_matching_ngram_size", "max_window_size", "num_assistant_tokens",
        "num_assistant_tokens_schedule", "output_attentions", "output_hidden_states", "output_logits",
        "output_scores", "prefill_chunk_size", "return_dict_in_generate", "speculation_type", "target_lookbehind",
        "trust_remote_code", "transformers_version", "use_cache", "use_mtp",
    }
)  # fmt: skip
# Words of transformers that Pinnace does not have and that change the result, with the values that do not.
_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {
    "assistant_ensemble_weight": (),
    "constraints": (),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "token_healing": (False,),
    "top_h": (),
    "watermarking_config": (),
}
# A word on the left replaces the one on the right, wherever that one was said before.
_INSTEAD: Final = (
    ("max_new_tokens", "max_length"),
    ("max_length", "max_new_tokens"),
    ("min_new_tokens", "min_length"),
    ("min_length", "min_new_tokens"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The options of one generation. Values are checked when it is made; lengths count tokens, times seconds.

    Attributes:
        max_new_tokens: most tokens to add; overrides ``max_length``, which counts the prompt too.
        top_k: as in transformers, 50 unless said otherwise, and 0 for all; used only with ``do_sample``.
        sequence_bias: token sequences and what is added to the score of their last token when the others precede it.
        logit_bias: single tokens and what is added to their scores.
        eos_token_id: every id that ends a row.
        seed: makes sampling repeatable; None draws a fresh one.
        max_time: a row ends when this many seconds have passed.
        prompt_lookup_num_tokens: how many draft tokens to look up in the prompt at each step; None for no speculation.

    Raises:
        UsageError: a wrong type, a value out of range, or options that contradict one another.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    max_time: float | None = None
    stop_strings: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    prompt_lookup_num_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, read in FIELDS.items():
            # None stands for the default, as in transformers.
            value = getattr(self, name)
            object.__setattr__(self, name, _DEFAULTS[name] if value is None else read(name, value))
        problem = contradiction({name: getattr(self, name) for name in FIELDS})
        if problem:
            raise UsageError(problem)

    @classmethod
    def from_folder(cls, path: str | Path) -> GenerationConfig:
        """Read ``generation_config.json`` of a checkpoint or bundle.

        A folder without one gives the defaults, with the begin, end and padding tokens of its ``config.json``.

        Raises:
            BundleError: not a small JSON object, a value that is wrong, or an option that changes the result and that
                Pinnace does not have.
        """
        file = Path(path) / CONFIG_NAME
        if not file.exists():
            file = Path(path) / _MODEL_CONFIG
        facts = integrity.read_object(file, MAX_CONFIG_BYTES) if file.exists() else {}
        if file.name == _MODEL_CONFIG:
            facts = {name: facts.get(name) for name in _MODEL_TOKENS}
        origin = f"the checkpoint's {file.name}, and export again."
        options = {}
        for name, value in facts.items():
            if name in _DEFAULTS:
                options[name] = value
            elif name in _UNSUPPORTED:
                if value is not None and value not in _UNSUPPORTED[name]:
                    raise BundleError(
                        f"{file}: {name} is {str(value)[:80]!r}, which changes the result, and Pinnace does not have "
                        f"it.\n  Remove {name} from {origin}"
                    )
            elif name not in _BOOKKEEPING and (near := nearest_word(name, _DEFAULTS, 0.85)):
                # Other programs' keys change nothing in transformers either; a misspelt option is meant to.
                raise BundleError(f"{file}: unknown option {name!r}. Did you mean {near!r}?\n  Correct it in {origin}")
        try:
            return cls(**options)
        except UsageError as error:
            raise BundleError(f"{file}: {error}\n  Correct it in {origin}") from None

    def merged(self, **overrides: Any) -> GenerationConfig:
        """Return these options with some replaced; an option of None goes back to its default, but for ``top_k``.

        That of None is no filter at all, as in a call of transformers, whose default of 50 is that of files.

        ``max_new_tokens`` replaces a ``max_length`` said before and the reverse, and so do the two minima.

        Raises:
            UsageError: an unknown option (the text names the nearest), a wrong value, options that contradict one
                another, or an option that is said here and has no effect.
        """
        for name in overrides:
            if name not in _DEFAULTS:
                raise known_elsewhere(name) or unknown_word("generation option", name, _DEFAULTS)
        said = {name for name, value in overrides.items() if value is not None}
        options = {name: getattr(self, name) for name in _DEFAULTS} | overrides
        for word, other in _INSTEAD:
            if word in said and other not in said:
                options[other] = None
        if "top_k" in overrides and overrides["top_k"] is None:
            options["top_k"] = 0
        merged = GenerationConfig(**options)
        changed = {name for name in said if getattr(merged, name) != _DEFAULTS[name]}
        problem = contradiction({name: getattr(merged, name) for name in _DEFAULTS}, changed)
        if problem:
            raise UsageError(problem)
        return merged

    def length_limit(self, prompt_length: int, capacity: int | None = None) -> int:
        """Return how many tokens a row may have in all, its prompt included.

        Args:
            prompt_length: tokens of the row's prompt.
            capacity: most tokens that the model can take, if it has a limit.

        Raises:
            InputError: the prompt leaves no room for a new token.
        """
        limit = prompt_length + (self.max_new_tokens or DEFAULT_NEW_TOKENS)
        if self.max_new_tokens is None and self.max_length is not None:
            limit = self.max_length
        if capacity is not None and prompt_length >= capacity:
            raise InputError(
                f"the prompt has {prompt_length} tokens, and the model takes {capacity} in all: no room for a new "
                "one.\n  Shorten the prompt."
            )
        if capacity is not None:
            limit = min(limit, capacity)
        if limit <= prompt_length:
            raise InputError(
                f"the prompt has {prompt_length} tokens, and a row may have {limit} in all: no room for a new one.\n"
                "  Shorten the prompt, or raise max_length."
            )
        return limit

    def new_tokens(self, prompt_length: int, capacity: int | None = None) -> int:
        """Return how many tokens a row may add; see `length_limit`."""
        return self.length_limit(prompt_length, capacity) - prompt_length


_DEFAULTS: Final[Mapping[str, Any]] = {field.name: field.default for field in dataclasses.fields(GenerationConfig)}


def known_elsewhere(name: str) -> UsageError | None:
    """Build the error for an option of a call that transformers has and Pinnace does not; None for other words."""
    if name in _UNSUPPORTED:
        return UsageError(f"Pinnace does not have {name}, which changes the result in transformers; leave it out")
    if name in _BOOKKEEPING:
        return UsageError(f"{name} changes nothing here; leave it out")
    return None
