"""What a sentence-transformers folder says of texts: how long they may be, their case, and the prompts before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, unknown_word
from pinnace.runtime.bundles.bundle import Bundle

TEXTS_FILE: Final = "sentence_bert_config.json"
PROMPTS_FILE: Final = "config_sentence_transformers.json"
# sentence-transformers has both names for every model.
_KNOWN_PROMPTS: Final[Mapping[str, str]] = {"query": "", "document": ""}


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """What a folder says.

    Attributes:
        length: tokens to which a text is cut; None for the model's limit.
        lower_case: texts are put into lower case before they are tokenized.
        prompts: what is put before a text, by name.
        default_prompt: the name of the prompt for calls that name none; None for no prompt.
    """

    length: int | None
    lower_case: bool
    prompts: Mapping[str, str]
    default_prompt: str | None

    @classmethod
    def of(cls, bundle: Bundle) -> SentenceSettings:
        """Read a bundle's settings; those of files that it does not have are none.

        Raises:
            BundleError: a damaged file, or a value of the wrong type.
        """
        return cls.parse(bundle.path, _read(bundle, TEXTS_FILE), _read(bundle, PROMPTS_FILE))

    @classmethod
    def parse(cls, folder: Path, texts: Mapping[str, Any], prompts: Mapping[str, Any]) -> SentenceSettings:
        """Check what was read of a folder's two files, of which either may have been empty.

        Raises:
            BundleError: a value of the wrong type; the text names the file.
        """
        length = texts.get("max_seq_length")
        if length is not None and (type(length) is not int or length < 1):
            raise BundleError(
                f"{folder / TEXTS_FILE}: max_seq_length is {length!r}, expected a whole number of at least 1, or null"
            )
        lower = texts.get("do_lower_case") or False
        if not isinstance(lower, bool):
            raise BundleError(f"{folder / TEXTS_FILE}: do_lower_case is {lower!r}, expected true or false")
        named, default = prompts.get("prompts") or {}, prompts.get("default_prompt_name")
        if not isinstance(named, dict) or not all(isinstance(text, str | None) for text in named.values()):
            raise BundleError(f"{folder / PROMPTS_FILE}: prompts is {named!r}, expected an object of texts")
        known = {**_KNOWN_PROMPTS, **{name: text or "" for name, text in named.items()}}
        if default is not None and default not in [*known]:
            raise BundleError(
                f"{folder / PROMPTS_FILE}: default_prompt_name is {default!r}, expected one of {', '.join(known)}, "
                "or null"
            )
        return cls(length, lower, known, default)

    def prompt(self, name: str | None) -> str:
        """Return the prompt of this name; None for the default one, which may be empty.

        Raises:
            UsageError: there is none of this name.
        """
        if name is None:
            return self.prompts[self.default_prompt] if self.default_prompt is not None else ""
        if name not in self.prompts:
            raise unknown_word("prompt_name", str(name), self.prompts)
        return self.prompts[name]


def _read(bundle: Bundle, name: str) -> dict[str, Any]:
    return bundle.read_object(name) if (bundle.path / name).exists() else {}
