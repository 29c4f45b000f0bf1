"""What every reference model can do: start from a configuration, load, save, tie and count its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from pinnace.errors import UsageError
from pinnace.models.checkpoints.hub import HubOptions
from pinnace.models.checkpoints.names import NameRules
from pinnace.models.outputs import ModelOutput

if TYPE_CHECKING:
    from pinnace.models.loading import LoadReport


class PreTrainedModel(nn.Module):
    """Base of the models.

    Attributes:
        config: the model's configuration.
        config_class: its class.
        base_model_prefix: the attribute under which a head keeps the model without a head.
        name_rules: how stored names become the model's.
        tied_weights: names of parameters that are other parameters where ``config.tie_word_embeddings``.
        load_report: what `from_pretrained` found; None for a model that was not loaded.
    """

    config_class: ClassVar[type[Any]]
    base_model_prefix: ClassVar[str] = ""
    name_rules: ClassVar[NameRules]
    tied_weights: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise UsageError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(config).__name__}.\n"
                f"  use {type(self).__name__}.from_pretrained(folder) to start from a checkpoint"
            )
        self.config = config
        self.load_report: LoadReport | None = None

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Build the model with fresh random weights, in evaluation mode."""
        return cls(config).eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: Any = None,
        dtype: str | torch.dtype | None = None,
        init_missing: bool = False,
        allow_pickle: bool = False,
        revision: str = "main",
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        add_pooling_layer: bool | None = None,
        **config_changes: Any,
    ) -> Self:
        """Build the model from a checkpoint, in evaluation mode; its ``load_report`` says what was found.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            config: use this configuration instead of the checkpoint's.
            dtype: type of the weights, such as ``"float16"``; ``"auto"`` keeps the checkpoint's; None is float32.
            init_missing: make weights that the checkpoint lacks afresh instead of raising.
            allow_pickle: read a pickle file, with PyTorch's restricted reader, where there are no safetensors.
            revision: of the Hub repository; this and the four after ``subfolder`` are those of `HubOptions`.
            subfolder: folder of the repository that holds the checkpoint.
            add_pooling_layer: for models that can do without a pooler.
            **config_changes: fields of the configuration to set, such as ``num_labels=3``.

        Raises:
            CheckpointError: no such checkpoint, or it is unsafe, damaged, or lacks weights of the model.
            ConfigError: its configuration is not valid.
            UsageError: a word or combination of arguments that does not exist.
        """
        from pinnace.models.loading import load_model

        return load_model(
            cls,
            os.fspath(pretrained_model_name_or_path),
            config=config, dtype=dtype, init_missing=init_missing, allow_pickle=allow_pickle,
            hub=HubOptions(revision, cache_dir, force_download, local_files_only, token), subfolder=subfolder,
            model_options={} if add_pooling_layer is None else {"add_pooling_layer": add_pooling_layer},
            config_changes=config_changes,
        )  # fmt: skip

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, max_shard_size: int | str = "5GB") -> None:
        """Write ``config.json`` and the weights as safetensors, tied weights once.

        Args:
            save_directory: made where there is none; an older checkpoint in it is replaced file by file.
            max_shard_size: bytes, or a text such as ``"5GB"``; a larger model is cut into shards with an index.

        Raises:
            UsageError: not a size.
            MachineError: the folder cannot be written, or the disk is full.
        """
        from pinnace.models.saving import save_model

        save_model(self, Path(save_directory), max_shard_size)

    def post_init(self) -> None:
        """Initialize what this constructor added and tie; the last step of every constructor."""
        for child in self.children():
            # A model inside this one has been through its own post_init.
            if not isinstance(child, PreTrainedModel):
                child.apply(self.init_weights)
        self.tie_weights()

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Give one module fresh weights: normal with ``config.initializer_range``, biases 0, norms 1."""
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()

    def tie_weights(self) -> None:
        """Make each tied name the same parameter as its source."""
        if not self.config.tie_word_embeddings:
            return
        for name, source in self.tied_weights.items():
            owner, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(owner), attribute, self.get_parameter(source))

    def _finish(self, output: ModelOutput, return_dict: bool | None) -> Any:
        """The output as the caller, or else the configuration, wants it: named, or a plain tuple."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    @property
    def base_model(self) -> PreTrainedModel:
        """The model without a head; itself where it has none."""
        return cast(PreTrainedModel, getattr(self, self.base_model_prefix, self))

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.base_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings; tie again afterwards where the output shares them."""
        self.base_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear | None:
        """The layer that scores words, or None."""
        return None

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the numbers in the weights, tied ones once.

        Args:
            only_trainable: leave out frozen parameters.
            exclude_embeddings: leave out the weights of every embedding table.
        """
        left_out = set(self._embedding_weights()) if exclude_embeddings else set()
        return sum(
            weight.numel()
            for weight in self.parameters()
            if weight not in left_out and (weight.requires_grad or not only_trainable)
        )

    def _embedding_weights(self) -> Iterator[Tensor]:
        return (module.weight for module in self.modules() if isinstance(module, nn.Embedding))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first weight."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first weight."""
        return next(self.parameters()).device
