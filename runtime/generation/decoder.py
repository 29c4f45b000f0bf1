"""A decoder's graph, run over a batch of rows whose buffers are bound once: prompts and steps alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import BundleError, InputError, UsageError
from pinnace.runtime.engine.cancellation import RunLimit
from pinnace.runtime.engine.native import run_error
from pinnace.runtime.engine.session import Session
from pinnace.runtime.generation.kvcache import BLOCK, make_cache
from pinnace.runtime.generation.kvcache_base import Cache, RowState
from pinnace.spec import PAST, is_cached

# Logits of one run may take this many bytes; longer prompts are run in pieces where the graph gives all positions.
LOGITS_BYTES: Final = 64 << 20
# A processor runs prompts by so many tokens: none is compared with those behind its piece, and what lies between the
# products stays in the caches. 166 million weights, one AVX2 core, of the time that whole ones take: 512 tokens 0.9
# (int8, int4) to 1 (fp32), 2,048 tokens 0.7 to 0.85, eight rows of 8 to 300 tokens 0.65, also for want of padding. From
# 128 to 256 it is all the same. A GPU, and a cache of fixed size, which is compared with whole, gain nothing.
PIECE: Final = 192
WHOLE: Final = 1 << 20
_FLOATS: Final = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class Stopped(Exception):
    """A run was stopped from outside; what was there before it is unchanged."""


class Decoder:
    """A bundle with a cache, opened in a session.

    Args:
        session: the open bundle.

    Raises:
        UsageError: the bundle has no cache, or its shapes are fixed.
        BundleError: its logits do not say how large the vocabulary is.

    Attributes:
        spec: what the model caches.
        limit: most tokens of a row.
        vocabulary: how many tokens there are, and logits of each position.
        every_position: whether the graph gives logits for all new positions rather than each row's last.
        piece: tokens of prompts that are run at once, most.
        cut_up_to: tokens of a row up to which a key does not depend on how long the row is; None where it never does.
    """

    def __init__(self, session: Session) -> None:
        manifest = session.bundle.manifest
        logits = next((spec for spec in manifest.outputs if spec.name == "logits"), None)
        if manifest.cache is None or logits is None:
            raise UsageError(
                f"the bundle {session.bundle.path.name} is for {manifest.task} and keeps no keys and values; "
                "export the model with --task text-generation"
            )
        if len(logits.shape) != 3 or not isinstance(logits.shape[-1], int):
            raise BundleError(
                f"the logits of {session.bundle.path.name} have the shape {list(logits.shape)}; expected three "
                "dimensions, of which the last is the size of the vocabulary. Export it again"
            )
        for spec in manifest.inputs:
            # Heads and head size are facts of the model, and so may be the capacity; rows and tokens must be free.
            new = spec.name in ("input_ids", "position_ids")
            tokens = spec.shape[2 if len(spec.shape) == 4 else 1]
            if isinstance(spec.shape[0], int) or (isinstance(tokens, int) and (new or not manifest.cache.fixed)):
                raise UsageError(
                    f"{spec.name} has the fixed shape {list(spec.shape)}; export without --static to generate"
                )
        self.session = session
        self.spec = manifest.cache
        self.limit = min(manifest.limits.sequence, manifest.cache.capacity)
        self.vocabulary = int(logits.shape[-1])
        self.input_vocabulary = manifest.limits.vocabulary
        self.every_position = logits.shape[1] != 1
        self.piece = PIECE if session.device == "cpu" and not self.spec.fixed else WHOLE
        if self.every_position:
            self.piece = min(self.piece, max(1, LOGITS_BYTES // (4 * self.vocabulary)))
        self.cut_up_to = session.bundle.manifest.limits.in_pieces
        self.extra_inputs = [
            spec.name
            for spec in manifest.inputs
            if spec.name not in ("input_ids", "attention_mask", "position_ids") and not is_cached(spec.name)
        ]
        native = session.native
        types = {value.name: value.type for value in (*native.get_inputs(), *native.get_outputs())}
        self.cache_dtype = _FLOATS[types[f"{PAST}.0.key"]]
        self.logits_dtype = np.dtype(_FLOATS[types["logits"]])

    def check(self, row: Array, place: str, least: int = 1) -> None:
        """Check the ids of one row.

        Raises:
            InputError: too few or too many tokens, or an id that the model does not have.
        """
        if len(row) < least:
            raise InputError(
                f"{place} has {len(row) or 'no'} token; expected at least {least}. Begin with the model's first token"
            )
        if len(row) > self.limit:
            raise InputError(f"{place} has {len(row):,} tokens, the model takes {self.limit:,}. Shorten it")
        wrong = np.flatnonzero((row < 0) | (row >= self.input_vocabulary))
        if len(wrong):
            raise InputError(
                f"{place} has the id {int(row[wrong[0]])} at {int(wrong[0])}; expected 0 to "
                f"{self.input_vocabulary - 1:,}. Use the tokenizer of this bundle"
            )

    def check_memory(self, rows: int, tokens: int, prompt: int) -> None:
        """Refuse rows that could not be held, before anything is allocated.

        Args:
            rows: rows that run together.
            tokens: tokens of the longest, at its end.
            prompt: tokens of the longest prompt.

        Raises:
            InputError: keys and values need more than the process may use.
            MachineError: with weights and activations they need more than the session's ``memory_limit``.
        """
        spec = self.spec
        sets = 1 if spec.in_place else 2
        slots = spec.capacity if spec.fixed else -(-tokens // BLOCK) * BLOCK
        if spec.in_place:
            slots = min(slots, spec.capacity)
        numbers = 2 * sets * spec.layers * spec.heads * spec.head_size * slots * rows
        needed = numbers * np.dtype(self.cache_dtype).itemsize + rows * self.vocabulary * 4
        if self.session.memory is not None and needed > self.session.memory:
            raise InputError(
                f"{rows:,} rows of {tokens:,} tokens need {needed / 1e9:,.1f} GB of keys and values, the process may "
                f"use {self.session.memory / 1e9:,.1f} GB. Ask for fewer rows or tokens"
            )
        if self.session.memory_limit is not None:
            piece = self.piece if self.splits(prompt) else max(self.piece, prompt)
            new = max(rows, min(rows * prompt, piece))
            self.session.footprint.check_rows(rows, tokens, needed, new, self.session.memory_limit)

    def splits(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens may be read in pieces, with the same keys as when it is read whole."""
        return self.cut_up_to is None or tokens <= self.cut_up_to

    def batch(self, rows: int, tokens: int = 0) -> Batch:
        """Return an empty batch.

        Args:
            rows: rows, all without a token.
            tokens: tokens that each may soon have, so that the buffers need not grow at once.
        """
        device = self.session.device
        return Batch(self, make_cache(self.spec, self.cache_dtype, device, rows, min(tokens, self.limit)))

    def prompt(self, rows: Sequence[Array], limit: RunLimit, tokens: int = 0) -> tuple[Batch, Array]:
        """Run whole prompts, right-padded, and return the batch and each row's last logits [rows, V].

        Raises:
            Stopped: the limit was reached.
        """
        widest = max(map(len, rows))
        groups = self._groups([len(row) for row in rows])
        if len(groups) > 1:
            states, parts = [], []
            for group in groups:
                batch, last = self.prompt(rows[group], limit)
                states += [batch.cache.read(row) for row in range(batch.cache.rows)]
                parts.append(last)
            batch = self.batch(0, max(widest, tokens))
            batch.cache.load(states)
            return batch, np.concatenate(parts)
        batch = self.batch(len(rows), max(widest, tokens))
        if len(rows) == 1:
            return batch, batch.extend(rows[0], limit)[-1:].copy()
        ids = np.zeros((len(rows), widest), np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
        counts = np.array([len(row) for row in rows], np.int64)
        logits = batch.run(ids, counts, limit)
        return batch, logits[np.arange(len(rows)), (counts - 1 if self.every_position else 0)].copy()

    def _groups(self, lengths: Sequence[int]) -> list[slice]:
        """Cut rows into groups that are run at once: no more tokens than a piece, and no more padding than tokens."""
        groups, first, widest, total = [], 0, 0, 0
        for row, length in enumerate(lengths):
            padded = (row + 1 - first) * max(widest, length)
            if row > first and (padded > self.piece or padded > 2 * (total + length)):
                groups.append(slice(first, row))
                first, widest, total = row, 0, 0
            widest, total = max(widest, length), total + length
        return [*groups, slice(first, len(lengths))]


class Batch:
    """Rows that run together, their cache and their bindings. Not for several threads at once.

    Attributes:
        cache: keys and values of the rows.
    """

    def __init__(self, decoder: Decoder, cache: Cache) -> None:
        self.decoder = decoder
        self.cache = cache
        self._binding = decoder.session.native.io_binding()
        self._bound: tuple[int, ...] = ()  # what the cache and the logits are bound for
        self._fed: tuple[int, ...] = ()  # the mask that the feeds are bound with; a new binding has none
        self._feeds: dict[str, Array] = {}
        self._logits: Array = np.empty(0, decoder.logits_dtype)

    def step(self, tokens: Array, limit: RunLimit) -> Array:
        """Add one token [rows] to every row and return the next logits [rows, V], valid until the next run.

        Raises:
            Stopped: the limit was reached; the rows are as before.
        """
        return self.run(tokens[:, None], np.ones(len(tokens), np.int64), limit)[:, 0]

    def extend(self, ids: Array, limit: RunLimit) -> Array:
        """Add many tokens to a batch of one row and return logits [positions, V]: all new ones, or the last.

        Where the graph gives all positions and they are too large together, only those of the last run are returned.
        """
        decoder, pieces = self.decoder, 1
        if decoder.splits(int(self.cache.lengths[0]) + len(ids)):
            pieces = -(-len(ids) // decoder.piece)
        for piece in np.array_split(ids, pieces):  # alike in size: a piece of a few tokens would cost as much as a step
            logits: Array = self.run(piece[None], np.array([len(piece)]), limit)[0]
        return logits

    def run(self, ids: Array, counts: Array, limit: RunLimit) -> Array:
        """Run the graph once.

        Args:
            ids: new tokens [rows, T], padded on the right.
            counts: how many of them are real, [rows].
            limit: what may stop the run.

        Returns:
            Float32 logits [rows, T or 1, V], valid until the next run.

        Raises:
            Stopped: the limit was reached; the rows are as before.
            InputError: a row would be longer than the model takes.
            MachineError: not enough memory.
        """
        cache, decoder = self.cache, self.decoder
        rows, tokens = ids.shape
        if limit.reason() is not None:
            raise Stopped
        cache.reserve(tokens)
        mask = cache.mask(counts, tokens)
        bound = (cache.version, rows, tokens)
        fed = (mask.shape[1], int(mask.ctypes.data))
        if bound != self._bound:
            self._bind(rows, tokens)
        feeds = self._feeds
        feeds["attention_mask"] = mask
        np.copyto(feeds["input_ids"], ids)
        places = feeds["position_ids"]
        np.add(cache.lengths[:, None], np.arange(tokens), out=places)
        if tokens > 1:
            # Padding stays at its row's last place: dynamic scaling takes the largest of a row for its length.
            np.minimum(places, (cache.lengths + counts - 1)[:, None], out=places)
        # A device gets a copy of each feed when it is bound; the CPU reads the arrays themselves.
        if fed != self._fed or cache.device != "cpu":
            self._bind_feeds()
        try:
            decoder.session.native.run_with_iobinding(self._binding, limit.options)
        except Exception as error:
            self._bound = self._fed = ()
            if limit.reason() is not None:
                raise Stopped from None
            raise run_error(error) from None
        self._bound, self._fed = bound, fed
        cache.advance(counts, tokens)
        return self._logits if self._logits.dtype == np.float32 else self._logits.astype(np.float32)

    def join(self, state: RowState) -> None:
        """Let a row enter behind the others."""
        self.cache.load([state])

    def _bind(self, rows: int, tokens: int) -> None:
        decoder = self.decoder
        shape = (rows, tokens if decoder.every_position else 1, decoder.vocabulary)
        if self._logits.shape != shape:
            self._logits = np.empty(shape, decoder.logits_dtype)
        if not self._feeds or self._feeds["input_ids"].shape != (rows, tokens):
            self._feeds = {
                name: np.zeros((rows, tokens), np.int64)
                for name in ("input_ids", "position_ids", *decoder.extra_inputs)
            }
        self.cache.bind(self._binding, tokens)
        self._fed = ()
        logits = self._logits
        self._binding.bind_output("logits", "cpu", 0, logits.dtype.type, logits.shape, logits.ctypes.data)

    def _bind_feeds(self) -> None:
        for name, feed in self._feeds.items():
            self._binding.bind_input(name, "cpu", 0, np.int64, feed.shape, feed.ctypes.data)
