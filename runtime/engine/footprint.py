"""How much memory a run needs, told before anything is allocated: weights, activations, attention scores, outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import MachineError, UsageError
from pinnace.spec import Manifest

# In 4-byte numbers for each token, as measured on BERT at two sizes (shapes from 1 x 512 to 64 x 128): eight times the
# hidden size and twice the width of the feed-forward part are alive at the widest place of a layer.
_HIDDEN_COPIES: Final = 8
_INNER_COPIES: Final = 2
# What the arena takes beyond that, in steps of powers of two.
_SLACK: Final = 1.4
MB: Final = 1e6


def check_memory_limit(value: Any) -> None:
    """Check that a memory limit is a whole number of bytes of at least 1, or None.

    Raises:
        UsageError: it is not.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UsageError(f"memory_limit is {value!r}; expected bytes, such as 2 * 10**9, or None")


@dataclasses.dataclass(frozen=True)
class Footprint:
    """The memory of one model, in bytes.

    Attributes:
        weights: the weights as the runtime holds them.
        token: for each token of a run.
        pair: for each pair of tokens of a row, over all heads: the attention scores.
    """

    weights: int
    token: int
    pair: int

    @classmethod
    def of(cls, manifest: Manifest, precision: str, config: Mapping[str, Any]) -> Footprint:
        """Estimate from the sizes in ``config.json`` and in the manifest; what is not said counts as in BERT."""
        variant = manifest.variants[precision]
        weights = sum(manifest.files[name].bytes for name in {variant.graph, *variant.weights})
        hidden = _size(config, "hidden_size", 768)
        inner = _size(config, "intermediate_size", 4 * hidden)
        heads = _size(config, "num_attention_heads", max(1, hidden // 64))
        outputs = sum(
            math.prod(dim for dim in spec.shape if isinstance(dim, int))
            for spec in manifest.outputs
            if "sequence" in spec.shape
        )
        token = 4 * (_HIDDEN_COPIES * hidden + _INNER_COPIES * inner + outputs)
        return cls(weights, int(_SLACK * token), int(_SLACK * 4 * heads))

    def run_bytes(self, rows: int, tokens: int) -> int:
        """Bytes of one run beyond the weights.

        Args:
            rows: rows of the batch.
            tokens: tokens of a row, padding counted.
        """
        return rows * tokens * (self.token + tokens * self.pair)

    def check_weights(self, limit: int, name: str) -> None:
        """Check that the weights leave room for a run.

        Raises:
            MachineError: they do not.
        """
        if self.weights + self.run_bytes(1, 1) > limit:
            raise MachineError(
                f"the weights of {name} take {self.weights / MB:,.0f} MB, memory_limit is {limit / MB:,.0f} MB; "
                "allow more, or take a smaller precision"
            )

    def check_run(self, rows: int, tokens: int, limit: int) -> None:
        """Check that a run fits beside the weights.

        Raises:
            MachineError: it does not.
        """
        if self.weights + self.run_bytes(rows, tokens) > limit:
            raise MachineError(
                f"a run of {rows:,} rows of {tokens:,} tokens takes about {self.run_bytes(rows, tokens) / MB:,.0f} MB "
                f"beside {self.weights / MB:,.0f} MB of weights, memory_limit is {limit / MB:,.0f} MB; "
                "send fewer or shorter rows, or allow more"
            )

    def check_rows(self, rows: int, tokens: int, kept: int, new: int, limit: int) -> None:
        """Check that a decoder's rows fit beside the weights: what they keep, and their largest run.

        Args:
            rows: rows that run together.
            tokens: tokens of the longest, at its end.
            kept: bytes of all rows' keys, values and scores.
            new: tokens of all rows that one run adds, most.
            limit: bytes for weights and rows.

        Raises:
            MachineError: they do not.
        """
        needed = kept + new * (self.token + tokens * self.pair)
        if self.weights + needed > limit:
            raise MachineError(
                f"{rows:,} rows of {tokens:,} tokens take about {needed / MB:,.0f} MB of keys, values and activations "
                f"beside {self.weights / MB:,.0f} MB of weights, memory_limit is {limit / MB:,.0f} MB; "
                "ask for fewer rows or tokens, or allow more"
            )

    def rows_within(self, tokens: int, limit: int, runs: int = 1) -> int:
        """Return how many rows of so many tokens a run may have, 0 where not even one fits.

        Args:
            tokens: tokens of a row.
            limit: bytes for weights and runs.
            runs: how many runs go on at once.
        """
        room = (limit - self.weights) // max(1, runs)
        return max(0, room // self.run_bytes(1, max(1, tokens)))


def _size(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    return value if type(value) is int and value > 0 else default
