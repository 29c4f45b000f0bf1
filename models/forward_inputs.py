"""What every model's forward takes, brought into one form: options, masks, positions, and which logits are wanted.

Shapes: B batch, T new tokens, P past tokens, S = P + T, N heads, C hidden size.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from pinnace.errors import InputError
from pinnace.models.cache import KeyValueCache
from pinnace.models.semantic import is_tracing

PastKeyValues = KeyValueCache | tuple[tuple[Tensor, ...], ...]

# Additive masks mark a hidden key with a number at most this large.
_HIDDEN_AT_MOST = -1e4


class OutputOptions(TypedDict, total=False):
    """What every forward takes besides its tensors; None asks the configuration."""

    output_attentions: bool | None
    output_hidden_states: bool | None
    return_dict: bool | None


def one_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one of both that was given."""
    if input_ids is not None and inputs_embeds is None:
        return input_ids
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    raise InputError(f"got {'both' if input_ids is not None else 'neither'} of input_ids and inputs_embeds; give one")


def check_positions(tokens: Tensor, position_ids: Tensor | None, limit: int) -> None:
    """Raise where a position lies beyond the model's last.

    Args:
        tokens: (B, T) or (B, T, C), read for its shape.
        position_ids: positions, or None for 0 to T - 1.
        limit: positions that the model has.

    Raises:
        InputError: the text has both numbers.
    """
    last = tokens.shape[1] - 1 if position_ids is None else int(position_ids.max()) if position_ids.numel() else 0
    if last >= limit:
        raise InputError(f"position {last} is asked for, but the model has positions 0 to {limit - 1}.\n  truncate")


def as_cache(past_key_values: PastKeyValues | None, layers: int) -> KeyValueCache | None:
    """The past as a cache, None where there is none.

    Raises:
        InputError: it has another number of layers than the model.
    """
    past = KeyValueCache(past_key_values) if past_key_values else None
    if past is not None and len(past) != layers:
        raise InputError(f"past_key_values has {len(past)} layers, expected {layers}")
    return past


def count_on(
    position_ids: Tensor | None, cache_position: Tensor | None, tokens: Tensor, past: KeyValueCache | None
) -> Tensor | None:
    """Positions of the new tokens where they follow from the past: (1, T); None for 0 to T - 1."""
    if position_ids is None and cache_position is not None:
        return cache_position[None]
    if position_ids is None and past is not None:
        P = past.get_seq_length()
        return torch.arange(P, P + tokens.shape[1], device=tokens.device)[None]
    return position_ids


def visible_keys(mask: Tensor | None, tokens: Tensor, past: KeyValueCache | None, *, causal: bool) -> Tensor | None:
    """Bring a mask into the form of `ops.attention` and `ops.cached_attention`; a causal model always gets one.

    Args:
        mask: (B, S), (B, T, S) or (B, N, T, S), 1 where a key may be seen; one of four axes with floating-point
            numbers holds 0 where it may, a large negative number elsewhere.
        tokens: (B, T) or (B, T, C), read for its shape.
        past: the cache given.
        causal: whether None becomes a mask of ones.

    Raises:
        InputError: another shape, or a floating-point mask with other numbers.
    """
    if mask is None and not causal:
        return None
    B, T = tokens.shape[:2]
    S = T + (past.get_seq_length() if past is not None else 0)
    if mask is None:
        return torch.ones(B, S, dtype=torch.long, device=tokens.device)
    if is_tracing():
        return mask
    if mask.ndim not in (2, 3, 4) or mask.shape[-1] != S:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}, expected ({B}, {S}), ({B}, {T}, {S}) "
            f"or ({B}, heads, {T}, {S}): past and new tokens together"
        )
    if mask.ndim == 4 and mask.is_floating_point():
        hidden = mask <= _HIDDEN_AT_MOST
        if bool((~hidden & (mask != 0)).any()):
            raise InputError("a floating-point attention_mask of four axes may hold 0 (visible) and -inf only")
        return ~hidden
    return mask


def keep_positions(x: Tensor, which: int | Tensor) -> Tensor:
    """Choose the positions whose logits are wanted: x (B, T, C) -> (B, kept, C).

    Args:
        x: what the head reads.
        which: how many last positions, 0 for all; or positions (kept,) or (B, kept), or booleans (B, T), which give
            (chosen, C).
    """
    if isinstance(which, int):
        return x[:, -which:] if which else x
    if which.ndim == 2 and which.dtype != torch.bool:
        return x.gather(1, which[..., None].expand(-1, -1, x.shape[-1]))
    return x[which] if which.ndim == 2 else x[:, which]
