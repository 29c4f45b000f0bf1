"""``AutoConfig``: the configuration class that a file's ``model_type`` names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, overload

from pinnace.errors import ConfigError, UsageError, unknown_word
from pinnace.models.configs.config import PreTrainedConfig
from pinnace.models.registry import ARCHS, MODEL_TYPES

# model_type -> configuration class that a user registered; those of Pinnace's own architectures stand in ARCHS.
REGISTERED: dict[str, type[PreTrainedConfig]] = {}


class AutoConfig:
    """Builds the right configuration for a checkpoint; has no instances."""

    def __init__(self) -> None:
        raise UsageError("AutoConfig has no instances; use AutoConfig.from_pretrained or AutoConfig.for_model")

    @staticmethod
    def for_model(model_type: str, **kwargs: Any) -> PreTrainedConfig:
        """Build a configuration from keyword arguments.

        Raises:
            UsageError: no such ``model_type``; the text names the nearest.
            ConfigError: see the class.
        """
        return config_class(model_type)(**{"model_type": model_type, **kwargs})

    @overload
    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        return_unused_kwargs: Literal[False] = False,
        **kwargs: Any,
    ) -> PreTrainedConfig: ...

    @overload
    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str], *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[PreTrainedConfig, dict[str, Any]]: ...

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str], *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> PreTrainedConfig | tuple[PreTrainedConfig, dict[str, Any]]:
        """Read a configuration of any known architecture; the arguments are those of ``PreTrainedConfig``.

        ``name_or_path`` of the result is ``pretrained_model_name_or_path``.

        Raises:
            CheckpointError: the file cannot be found.
            ConfigError: the file is not valid, has no ``model_type`` or an unknown one.
        """
        values, unused = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        unused.setdefault("name_or_path", os.fspath(pretrained_model_name_or_path))
        try:
            config, unused = class_of(values).from_dict(values, return_unused_kwargs=True, **unused)
        except (ConfigError, UsageError) as error:
            raise ConfigError(f"{os.fspath(pretrained_model_name_or_path)}: {error}") from None
        return (config, unused) if return_unused_kwargs else config

    @staticmethod
    def register(model_type: str, config: type[PreTrainedConfig], exist_ok: bool = False) -> None:
        """Add a configuration class.

        Args:
            model_type: the word in ``config.json``, equal to ``config.model_type``.
            config: the class.
            exist_ok: replace the class that has this ``model_type``.

        Raises:
            UsageError: an empty or different ``model_type``, or one that is taken.
        """
        if not model_type or model_type != config.model_type:
            raise UsageError(
                f"{config.__name__}.model_type is {config.model_type!r}, "
                f"expected the word to register, {model_type!r}, and not empty"
            )
        taken = config_class(model_type) if model_type in known_model_types() else config
        if taken is not config and not exist_ok:
            raise UsageError(
                f"model_type {model_type!r} belongs to {taken.__name__}; "
                "choose another word, or pass exist_ok=True to AutoConfig.register"
            )
        REGISTERED[model_type] = config


def known_model_types() -> list[str]:
    """Return every ``model_type`` that has a class."""
    return sorted(ARCHS.keys() | REGISTERED.keys())


def config_class(model_type: str) -> type[PreTrainedConfig]:
    """Return the class for a ``model_type``.

    Raises:
        UsageError: there is none; the text names the nearest.
    """
    if model_type in REGISTERED:
        return REGISTERED[model_type]
    if model_type not in MODEL_TYPES:
        raise unknown_word("model_type", str(model_type), known_model_types())
    return MODEL_TYPES[model_type].config_class()


def class_of(values: Mapping[str, Any]) -> type[PreTrainedConfig]:
    """Return the class for the keys of a configuration file.

    Raises:
        ConfigError: the file has no ``model_type``.
        UsageError: an unknown ``model_type``.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(f"model_type is missing, expected one of {', '.join(known_model_types())}")
    return config_class(model_type)
