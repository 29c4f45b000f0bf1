"""Configurations as dicts, JSON text and update strings, and the text part of a composite configuration."""

from __future__ import annotations

import copy
import typing
from collections.abc import Mapping
from typing import Any, Final, Literal, Self, overload

from pinnace.errors import ConfigError
from pinnace.models.configs.base import ConfigBase, dtype_name, nested_class
from pinnace.models.configs.fields import fields_of, wrong
from pinnace.models.configs.json_file import to_json_text
from pinnace.models.configs.keys import NEVER_ACTED_ON

TRUE_WORDS: Final = ("true", "1", "y", "yes")
FALSE_WORDS: Final = ("false", "0", "n", "no")
NULL_WORDS: Final = ("none", "null")
PLAIN: Final = (int, float, bool, str)  # types whose values are read from text
DECODER_PARTS: Final = ("decoder", "generator", "text_config")
ENCODER_PARTS: Final = ("text_encoder",)


class ConfigDicts(ConfigBase):
    """Conversions of a configuration; see ``PreTrainedConfig``."""

    @overload
    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[False] = False, **kwargs: Any
    ) -> Self: ...

    @overload
    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Build from a dict of keys.

        Args:
            config_dict: as ``to_dict`` or ``get_config_dict`` give it; not changed.
            return_unused_kwargs: also return those ``kwargs`` that are no keys of the configuration, which are
                otherwise left out silently.
            **kwargs: keys that replace those of ``config_dict``; for a nested configuration a dict replaces only
                the keys it holds.

        Returns:
            The configuration, or ``(configuration, unused)`` with ``return_unused_kwargs``.

        Raises:
            ConfigError: see the constructor.
        """
        values = {cls.attribute_map.get(name, name): value for name, value in config_dict.items()}
        unused: dict[str, Any] = {}
        for alias, value in kwargs.items():
            name = cls.attribute_map.get(alias, alias)
            if name in ("dtype", "torch_dtype"):
                if value != "auto":
                    values.pop("torch_dtype", None)
                    values["dtype"] = value
            elif cls._accepts(name) or name in values:
                values[name] = cls._merged(name, values.get(name), value)
            elif name not in NEVER_ACTED_ON:
                unused[name] = value
        config = cls(**values)
        return (config, unused) if return_unused_kwargs else config

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set several keys at once; either all are set and the result is valid, or nothing changes.

        Raises:
            ConfigError: an unknown key, a wrong type, or an impossible combination.
        """
        before = dict(self.__dict__)
        try:
            for name, value in config_dict.items():
                if not isinstance(name, str):
                    raise self._unknown(name)
                setattr(self, name, value)
            self.validate()
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def update_from_string(self, update_str: str) -> None:
        """Set keys from text such as ``"hidden_size=384,hidden_act=relu,use_cache=false"``.

        Each value is read as the type that the key holds now: int, float, bool (true, 1, y, yes, false, 0, n, no)
        or str; where it holds None, as the first of these that it may hold. ``none`` and ``null`` are None where the
        key may be None.

        Raises:
            ConfigError: not ``key=value`` parts, an unknown key, a value that does not read as the key's type, or
                an impossible combination; nothing is changed then.
        """
        changes = {}
        for part in update_str.split(","):
            name, equals, text = part.partition("=")
            if not equals or "=" in text:
                raise ConfigError(f"{self._owner}: {part!r} is not of the form key=value")
            if not self.knows(name):
                raise self._unknown(name)
            changes[name] = self._parsed(name, text)
        self.update(changes)

    def to_dict(self) -> dict[str, Any]:
        """Return every key and its value as plain data, nested configurations as dicts, ``dtype`` as a word."""
        output: dict[str, Any] = {}
        for name, value in self.__dict__.items():
            if isinstance(value, ConfigDicts):
                output[name] = value.to_dict()
                output[name].pop("transformers_version", None)
            else:
                output[name] = _without_tuples(copy.deepcopy(value))
        output["model_type"] = self.model_type
        if output["transformers_version"] is None:
            del output["transformers_version"]
        self.dict_dtype_to_str(output)
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the keys of this architecture, and of the common keys those that differ from their defaults."""
        common = ConfigDicts().to_dict()
        defaults = {name: facts.make_default() for name, facts in fields_of(type(self)).items()}
        output = {}
        for name, value in self.to_dict().items():
            part = self.__dict__.get(name)
            if isinstance(part, ConfigDicts):
                output[name] = part.to_diff_dict() | {"model_type": part.model_type}
                output[name].pop("transformers_version", None)
            elif name not in common or value != common[name] or not _is_default(name, value, defaults):
                output[name] = value
        output.pop("_name_or_path", None)
        return output

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return sorted JSON of ``to_diff_dict`` or, without ``use_diff``, of ``to_dict``."""
        return to_json_text(self.to_diff_dict() if use_diff else self.to_dict())

    def dict_dtype_to_str(self, d: dict[str, Any]) -> None:
        """Replace, in place and at any depth, a torch type under the key ``dtype`` by its word, such as ``float32``."""
        dtype = d.get("dtype")
        if isinstance(dtype, dict):
            d["dtype"] = {name: dtype_name(value) for name, value in dtype.items()}
        elif dtype is not None:
            d["dtype"] = dtype_name(dtype)
        for value in d.values():
            if isinstance(value, dict):
                self.dict_dtype_to_str(value)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> ConfigDicts:
        """Return the part of a composite configuration that describes text; most configurations are that part.

        Args:
            decoder: look only at the part that writes text.
            encoder: look only at the part that reads text.

        Returns:
            The nested configuration, or this one. For a flat encoder-decoder and one side asked for, a copy whose
            ``encoder_*`` (or ``decoder_*``) keys have lost the prefix.

        Raises:
            ConfigError: several nested parts describe text.
        """
        one_side = bool(decoder) != bool(encoder)
        one = DECODER_PARTS if decoder else ENCODER_PARTS
        names = one if one_side else ENCODER_PARTS + DECODER_PARTS
        found = [name for name in names if self.__dict__.get(name) is not None]
        if len(found) > 1:
            raise ConfigError(
                f"{self._owner} has several text parts: {', '.join(found)}; "
                "say decoder=True or encoder=True, or take the part by its name"
            )
        if found:
            part: ConfigDicts = self.__dict__[found[0]]
            return part
        if one_side and self.is_encoder_decoder:
            return self._one_side("decoder" if decoder else "encoder")
        return self

    def __repr__(self) -> str:
        return f"{self._owner} {self.to_json_string()}"

    def _one_side(self, prefix: str) -> ConfigDicts:
        side = copy.deepcopy(self)
        renamed = {"layers": "num_hidden_layers", "attention_heads": "num_attention_heads"}
        for name in [name for name in side.__dict__ if name.startswith(f"{prefix}_")]:
            stem = name.removeprefix(f"{prefix}_")
            target = renamed.get(stem, stem)
            # The plain name need not be a declared field of a two-sided configuration, so it is set without a check.
            side.__dict__[self.attribute_map.get(target, target)] = side.__dict__.pop(name)
        return side

    def _parsed(self, name: str, text: str) -> Any:
        current = getattr(self, name)
        facts = fields_of(type(self)).get(self.attribute_map.get(name, name))
        options = typing.get_args(facts.hint) if facts is not None else ()
        if type(None) in options:
            if text.lower() in NULL_WORDS:
                return None
            if current is None and (kind := next((each for each in options if each in PLAIN), None)):
                current = kind()
        if isinstance(current, bool):
            if text.lower() not in TRUE_WORDS + FALSE_WORDS:
                raise wrong(self._owner, name, text, f"one of {', '.join(TRUE_WORDS + FALSE_WORDS)}")
            return text.lower() in TRUE_WORDS
        if isinstance(current, int | float):
            try:
                return type(current)(text)
            except ValueError:
                raise wrong(self._owner, name, text, f"text that reads as {type(current).__name__}") from None
        if isinstance(current, str):
            return text
        raise ConfigError(
            f"{self._owner}: {name} holds {type(current).__name__}, expected a key that holds int, float, bool or str; "
            "set others in config.json, or from Python with a mapping"
        )

    @classmethod
    def _accepts(cls, name: str) -> bool:
        return name in fields_of(cls) or name in ("num_labels", "name_or_path")

    @classmethod
    def _merged(cls, name: str, old: Any, new: Any) -> Any:
        facts = fields_of(cls).get(name)
        if facts is None or not isinstance(new, Mapping) or nested_class(facts.hint) is None:
            return new
        return {**(old.to_dict() if isinstance(old, ConfigDicts) else old or {}), **new}


def _is_default(name: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    return name in ("id2label", "label2id") or name not in defaults or value == defaults[name]


def _without_tuples(value: Any) -> Any:
    return [_without_tuples(item) for item in value] if isinstance(value, tuple) else value
