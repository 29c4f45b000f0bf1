"""What every reference model can do: start from a configuration, load, save, tie and count its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pinnace.errors import UsageError


class PreTrainedModel(nn.Module):
    """Base of the models.

    Attributes:
        config: the model's configuration.
        config_class: its class.
        base_model_prefix: the attribute under which a head keeps the model without a head.
        tied_weights: names of parameters that are other parameters where ``config.tie_word_embeddings``.
    """

    config_class: ClassVar[type[Any]]
    base_model_prefix: ClassVar[str] = ""
    tied_weights: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise UsageError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(config).__name__}.\n"
                f"  use {type(self).__name__}.from_pretrained(folder) to start from a checkpoint"
            )
        self.config = config

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Build the model with fresh random weights, in evaluation mode."""
        return cls(config).eval()

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

    @property
    def base_model(self) -> PreTrainedModel:
        """The model without a head; itself where it has none."""
        base = getattr(self, self.base_model_prefix, self)
        assert isinstance(base, PreTrainedModel)
        return base

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
