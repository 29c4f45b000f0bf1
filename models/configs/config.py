"""``PreTrainedConfig``: read from a folder, a file or the Hub; written to a folder or the Hub.

The behaviour follows ``configuration_utils.py`` of transformers 5, except that every value is checked and that a file
can never name code to run.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, overload

from pinnace.errors import ConfigError, MachineError, UsageError, unknown_word
from pinnace.models.checkpoints.hub import HubOptions, locate_file
from pinnace.models.checkpoints.hub_upload import upload_folder
from pinnace.models.configs.dicts import ConfigDicts
from pinnace.models.configs.json_file import read_json_object
from pinnace.replacing import replacing

CONFIG_NAME: Final = "config.json"
# Arguments that callers written for transformers pass, and that mean nothing here.
IGNORED_ARGUMENTS: Final = ("_commit_hash", "_from_auto", "_from_pipeline", "proxies")


class PreTrainedConfig(ConfigDicts):
    """Base of all configurations: the fields that every model has, and how they are read and written.

    Class attributes of a subclass: ``model_type`` (the word in ``config.json``), ``attribute_map`` (other names for
    fields), ``base_config_key`` (the key of a composite file that holds this part).

    Args:
        name_or_path: where the configuration came from.
        output_hidden_states: whether models return every layer's output.
        output_attentions: whether models return attention probabilities.
        return_dict: whether models return named outputs rather than tuples.
        is_encoder_decoder: whether the model has both sides.
        chunk_size_feed_forward: tokens that the feed-forward layers take at a time; 0 is all.
        architectures: names of the model classes that the weights belong to.
        id2label: label of each output of a classification head.
        label2id: the reverse; made from ``id2label`` where it is not given.
        num_labels: number of labels, where ``id2label`` is not given; 2 by default.
        problem_type: ``regression``, ``single_label_classification`` or ``multi_label_classification``.
        dtype: type of the weights as a word, such as ``float16``; ``torch_dtype`` and torch objects are understood.
        transformers_version: the version that wrote the file; kept as it was.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range or an impossible combination; the text names
            the keys.
    """

    base_config_key: ClassVar[str] = ""

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        *,
        return_unused_kwargs: Literal[False] = False,
        **kwargs: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        *,
        return_unused_kwargs: Literal[True],
        **kwargs: Any,
    ) -> tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Read a configuration.

        Args:
            pretrained_model_name_or_path: a folder with ``config.json``, a JSON file, or a Hub id.
            cache_dir: where the Hub's files are kept; by default the cache of ``huggingface_hub``.
            force_download: fetch again what the cache holds.
            local_files_only: use the cache alone.
            token: access token for private repositories.
            revision: branch, tag or commit.
            return_unused_kwargs: also return those ``kwargs`` that are no keys of the configuration.
            **kwargs: ``subfolder``, and keys of the configuration that replace those of the file.

        Returns:
            The configuration, or ``(configuration, unused)`` with ``return_unused_kwargs``.

        Raises:
            CheckpointError: no such file, repository or revision, or the Hub cannot be reached.
            ConfigError: the file or a replaced key is not valid.
            UsageError: neither an existing path nor a possible Hub id.
        """
        values, unused = cls.get_config_dict(
            pretrained_model_name_or_path,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
            **kwargs,
        )
        values = cls._own_part(values)
        try:
            config, unused = cls.from_dict(values, return_unused_kwargs=True, **unused)
        except ConfigError as error:
            raise ConfigError(f"{pretrained_model_name_or_path}: {error}") from None
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the keys of a configuration without building it.

        Args:
            pretrained_model_name_or_path: a folder, a JSON file or a Hub id.
            **kwargs: ``cache_dir``, ``force_download``, ``local_files_only``, ``token``, ``revision``, ``subfolder``.

        Returns:
            The keys of the file, and the arguments that were not used.

        Raises:
            CheckpointError: see ``from_pretrained``.
            ConfigError: not a JSON object of reasonable size.
            UsageError: ``trust_remote_code`` was asked for, or no such path.
        """
        if kwargs.pop("trust_remote_code", None):
            raise UsageError("trust_remote_code: Pinnace never runs code of a checkpoint; leave the argument out")
        for name in IGNORED_ARGUMENTS:
            kwargs.pop(name, None)
        options = HubOptions(
            revision=kwargs.pop("revision", None) or "main",
            cache_dir=kwargs.pop("cache_dir", None),
            force_download=kwargs.pop("force_download", False),
            local_files_only=kwargs.pop("local_files_only", False),
            token=kwargs.pop("token", None),
        )
        path = Path(pretrained_model_name_or_path)
        subfolder = kwargs.pop("subfolder", "") or ""
        if not path.is_file():
            path = locate_file(os.fspath(pretrained_model_name_or_path), CONFIG_NAME, options, subfolder=subfolder).path
        return read_json_object(path), kwargs

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Read a configuration from a JSON file.

        Raises:
            CheckpointError: no such file.
            ConfigError: the file is not a valid configuration.
        """
        values = read_json_object(json_file)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{os.fspath(json_file)}: {error}") from None

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write the JSON of ``to_diff_dict`` or, without ``use_diff``, of ``to_dict``; whole or not at all.

        Raises:
            MachineError: the file cannot be written.
        """
        with replacing(Path(json_file_path)) as file:
            file.write(self.to_json_string(use_diff=use_diff).encode())

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write ``config.json`` into a folder, which is made where there is none.

        Args:
            save_directory: the folder.
            push_to_hub: also upload, to ``repo_id`` or by default a repository named like the folder.
            **kwargs: ``repo_id`` and the arguments of ``push_to_hub``.

        Raises:
            ConfigError: the configuration has become invalid.
            UsageError: the path is a file, or an argument has no meaning.
            MachineError: the file cannot be written.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise UsageError(f"{folder} is a file; give a folder to save the configuration in")
        if kwargs and not push_to_hub:
            raise UsageError(f"{', '.join(kwargs)}: only has a meaning together with push_to_hub=True")
        self.validate()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot make {folder}: {error.strerror or error}") from error
        self.to_json_file(folder / CONFIG_NAME)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.absolute().name), **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: list[str] | None = None,
    ) -> str:
        """Upload ``config.json`` to a repository of the Hub, which is made where there is none.

        Args:
            repo_id: the repository, with its organization.
            commit_message: first line of the commit, by default ``Upload config``.
            commit_description: the rest of it.
            private: make a new repository private.
            token: access token; by default the saved one.
            revision: branch to write to.
            create_pr: open a pull request instead.
            max_shard_size: has a meaning for weights only; accepted so that one call serves all.
            tags: tags to add to the model card.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: the Hub refused or cannot be reached.
            MissingExtra: ``huggingface_hub`` is not installed.
        """
        self.validate()
        with tempfile.TemporaryDirectory() as folder:
            self.to_json_file(Path(folder) / CONFIG_NAME)
            return upload_folder(
                Path(folder),
                repo_id,
                files=(CONFIG_NAME,),
                commit_message=commit_message or "Upload config",
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                tags=tags,
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoConfig") -> None:
        """Let ``AutoConfig`` build this class for files of its ``model_type``.

        Raises:
            UsageError: another auto class, no ``model_type``, or a ``model_type`` that is taken.
        """
        from pinnace.models.auto_config import AutoConfig

        name = auto_class if isinstance(auto_class, str) else auto_class.__name__
        if name != "AutoConfig":
            raise unknown_word("auto class", name, ["AutoConfig"])
        AutoConfig.register(cls.model_type, cls)

    @classmethod
    def _own_part(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the part of a composite file that this class describes; mostly the whole."""
        if isinstance(part := values.get(cls.base_config_key), dict):
            values = part
        if values.get("model_type", cls.model_type) != cls.model_type:
            for part in values.values():
                if isinstance(part, dict) and cls.model_type and part.get("model_type") == cls.model_type:
                    return part
        return values
