"""The keys and values that a decoder keeps between steps."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class KeyValueCache(tuple[tuple[Tensor, ...], ...]):
    """One entry per layer: ``(key, value)``, and with cross-attention ``(key, value, cross_key, cross_value)``.

    Keys and values are (B, K, P, D): batch, key/value heads, past tokens, head size. The cache is never changed in
    place: every step returns a new one, so a failed or repeated step cannot spoil what came before.
    """

    __slots__ = ()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens a layer has seen."""
        return self[layer_idx][0].shape[2] if len(self) else 0

    def to_legacy_cache(self) -> tuple[tuple[Tensor, ...], ...]:
        """The same tensors as a plain tuple."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Iterable[Iterable[Tensor]] | None) -> KeyValueCache:
        """Take over a plain tuple of layers; None gives the empty cache."""
        return cls(tuple(layer) for layer in past_key_values or ())

    def reorder(self, rows: Tensor) -> KeyValueCache:
        """Keep and repeat the rows named by ``rows`` (new B,), as beam search does."""
        return KeyValueCache(tuple(tensor.index_select(0, rows) for tensor in layer) for layer in self)
