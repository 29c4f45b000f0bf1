"""The generator: token ids in, token ids out, for any number of rows, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import DeadlineExceeded, InputError, NumericalError, UsageError
from pinnace.runtime.arguments import check_seconds
from pinnace.runtime.engine.cancellation import Cancellation, RunLimit
from pinnace.runtime.engine.session import Session
from pinnace.runtime.generation.beam_generation import generate_beams
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.decoder import Decoder, Stopped
from pinnace.runtime.generation.logits_filters import log_softmax
from pinnace.runtime.generation.prefix import Prefix, fingerprint
from pinnace.runtime.generation.request import Request, read_request, read_rows
from pinnace.runtime.generation.result import Generated, whole
from pinnace.runtime.generation.row import Row, Token
from pinnace.runtime.generation.sampling import check_scores
from pinnace.runtime.generation.slots import Slots
from pinnace.runtime.generation.speculation import speculate
from pinnace.runtime.generation.stopping import Deadline, StopStrings
from pinnace.runtime.generation.streaming import RowDecoder, new_text
from pinnace.runtime.tokenization.tokenizer import Tokenizer


class Generator:
    """Generates with a decoder's bundle. Threads may share it: all state belongs to the calls.

    Args:
        session: an open bundle of the task text-generation.
        tokenizer: needed for texts and stop strings.
        config: default options; None takes the bundle's ``generation_config.json``.

    Raises:
        UsageError: the bundle keeps no keys and values.
        BundleError: a damaged ``generation_config.json``.
    """

    def __init__(
        self, session: Session, tokenizer: Tokenizer | None = None, config: GenerationConfig | None = None
    ) -> None:
        self.decoder = Decoder(session)
        self.config = GenerationConfig.from_folder(session.bundle.path) if config is None else config
        self._decode = None if tokenizer is None else RowDecoder(tokenizer)

    def generate(
        self,
        prompts: Any,
        *,
        attention_mask: Any = None,
        prefix: Prefix | None = None,
        logprobs: int | None = None,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[list[Generated]]:
        """Generate from every prompt; each row is exactly what it is alone.

        Args:
            prompts: a list of rows of ids, or an array [rows, tokens].
            attention_mask: [rows, tokens], 0 where an array of prompts is padded, on either side.
            prefix: keys and values of a beginning, which prompts that share it need not compute.
            logprobs: give log-probabilities of the tokens, and of this many likeliest ones too (0 for none).
            timeout: seconds after which the call fails. For an end in order, use the option ``max_time``.
            cancellation: a switch to end it from another thread; what is there is returned.
            batch_size: most rows at once; others enter as these end. Where the memory holds fewer, fewer run.
            **options: fields of `GenerationConfig`, over the generator's own.

        Returns:
            For each prompt a list of ``num_return_sequences`` results.

        Raises:
            UsageError: an unknown option, or options that contradict each other or the bundle.
            InputError: an empty prompt, one beyond the model's limit, or an id that the model does not have.
            MachineError: a row, or the beams of one, needs more than the session's ``memory_limit``.
            DeadlineExceeded: the timeout passed.
            NumericalError: the model gave NaN or infinity in a row, or the options forbid it every token. The other
                rows were brought to their end first: the error's ``results`` are what would have been returned, with
                the reason ``error`` where a row failed.
        """
        request = self._read(
            prompts, attention_mask, prefix=prefix, logprobs=logprobs, batch_size=batch_size, options=options
        )
        check_seconds("timeout", timeout)
        with RunLimit(cancellation, request.config.max_time, timeout) as limit:
            if request.config.num_beams > 1:
                return whole(self._beams(request, limit))
            rows: dict[tuple[int, int], list[Token]] = {}
            for token in self._tokens(request, limit):
                rows.setdefault((token.prompt, token.sequence), []).append(token)
        sequences = request.config.num_return_sequences
        return whole(
            [
                [self._generated(rows[place, sequence], prompt, request) for sequence in range(sequences)]
                for place, prompt in enumerate(request.prompts)
            ]
        )

    def stream(
        self,
        prompts: Any,
        *,
        attention_mask: Any = None,
        prefix: Prefix | None = None,
        logprobs: int | None = None,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[Token]:
        """Yield tokens of all rows as they come; arguments and errors are those of `generate`.

        The texts of a row's tokens, joined, are its text, and none cuts a character. Closing the iterator ends the
        generation. A row that fails ends with a token whose reason is ``error``, and the others go on.

        Raises:
            UsageError: also for beams, whose tokens are known only at the end.
        """
        request = self._read(
            prompts, attention_mask, prefix=prefix, logprobs=logprobs, batch_size=batch_size, options=options
        )
        check_seconds("timeout", timeout)
        if request.config.num_beams > 1:
            raise UsageError("beam search knows its tokens only at the end; stream with num_beams=1, or use generate")
        return self._stream(request, cancellation, timeout)

    def score(
        self, rows: Any, *, timeout: float | None = None, cancellation: Cancellation | None = None
    ) -> list[Array]:
        """Return the log-probability of each token of given rows, given those before it.

        One run a row where the bundle gives logits of all positions, else one run a token.

        Args:
            rows: a list of rows of ids, each of two tokens at least.
            timeout: seconds after which the call fails.
            cancellation: a switch to end it from another thread.

        Returns:
            For each row float32 [tokens - 1]: the first token has none before it.

        Raises:
            InputError: too short or too long a row, or an id that the model does not have.
            UsageError: a row whose keys depend on its length, and a bundle without the logits of all positions.
            DeadlineExceeded: the timeout passed, or the call was cancelled.
            NumericalError: the model gave NaN or infinity.
        """
        check_seconds("timeout", timeout)
        checked = read_rows(self.decoder, rows, least=2, kind="row")
        for row in checked:
            self._check_scored(row)
            self.decoder.check_memory(1, len(row), len(row))
        with RunLimit(cancellation, None, timeout) as limit:
            try:
                return [self._score(row, limit) for row in checked]
            except Stopped:
                raise _cancelled(limit) from None

    def prefix(self, ids: Any, *, timeout: float | None = None, cancellation: Cancellation | None = None) -> Prefix:
        """Compute the keys and values of a beginning that many prompts share.

        Raises:
            InputError: as `generate`.
            DeadlineExceeded: the timeout passed, or the call was cancelled.
            NumericalError: the model gave NaN or infinity.
        """
        check_seconds("timeout", timeout)
        row = read_rows(self.decoder, [ids], kind="prefix")[0]
        self.decoder.check_memory(1, len(row), len(row))
        with RunLimit(cancellation, None, timeout) as limit:
            try:
                batch, logits = self.decoder.prompt([row], limit)
            except Stopped:
                raise _cancelled(limit) from None
        check_scores(logits)
        return Prefix(row, batch.cache.read(0), fingerprint(self.decoder))

    def load_prefix(self, path: str | Path) -> Prefix:
        """Read a prefix that was saved; arguments and errors are those of `Prefix.load`."""
        return Prefix.load(path, self.decoder)

    def _read(
        self,
        prompts: Any,
        mask: Any,
        *,
        prefix: Prefix | None,
        logprobs: int | None,
        batch_size: int | None,
        options: Mapping[str, Any],
    ) -> Request:
        request = read_request(
            self.decoder, self.config, self._decode, prompts, mask,
            prefix=prefix, logprobs=logprobs, batch_size=batch_size, options=options,
        )  # fmt: skip
        self._admit(request)
        return request

    def _admit(self, request: Request) -> None:
        """Refuse or count a request that was read; here every one is welcome."""

    def _check_scored(self, row: Array) -> None:
        if not self.decoder.every_position and not self.decoder.splits(len(row)):
            raise UsageError(
                f"a row of {len(row):,} tokens cannot be scored one token at a time: above {self.decoder.cut_up_to:,} "
                "this model's keys depend on how long the row is (dynamic rotary). Export it with --all-logits"
            )
        wrong = np.flatnonzero(row[1:] >= self.decoder.vocabulary)
        if len(wrong):
            raise InputError(f"the id {int(row[1 + wrong[0]])} can be read, but the model never writes it: no score")

    def _stream(self, request: Request, cancellation: Cancellation | None, timeout: float | None) -> Iterator[Token]:
        with RunLimit(cancellation, request.config.max_time, timeout) as limit:
            yield from self._tokens(request, limit)

    def _tokens(self, request: Request, limit: RunLimit) -> Iterator[Token]:
        config, waiting = request.config, self._rows(request)
        everyone = list(waiting)
        try:
            if config.prompt_lookup_num_tokens:
                for row in waiting:
                    yield from speculate(self.decoder, row, limit, config.prompt_lookup_num_tokens, request.prefix)
                return
            slots = Slots(self.decoder, limit)
            while waiting or slots.running:
                free = request.batch_size - slots.running
                if waiting and free:
                    entering, waiting = waiting[:free], waiting[free:]
                    yield from slots.enter(entering, request.prefix)
                yield from slots.step()
        except Stopped:
            reason = limit.reason()
            if reason is None:
                raise
            for row in everyone:
                if row.reason is None:
                    yield row.end(reason)

    def _rows(self, request: Request) -> list[Row]:
        config, deadline = request.config, Deadline(request.config.max_time)
        return [
            Row(prompt, config, most, self.decoder.vocabulary, (place, i), self._decode, request.logprobs, deadline)
            for place, (prompt, most) in enumerate(zip(request.prompts, request.limits, strict=True))
            for i in range(config.num_return_sequences)
        ]

    def _beams(self, request: Request, limit: RunLimit) -> list[list[Generated]]:
        found = []
        for prompt, most in zip(request.prompts, request.limits, strict=True):
            try:
                rows = generate_beams(self.decoder, prompt, most, request.config, limit, request.prefix, self._decode)
            except NumericalError as error:
                text = None if self._decode is None else ""
                none = Generated(np.empty(0, np.int64), text, "error", error=error)
                found.append([none] * request.config.num_return_sequences)
                continue
            found.append([Generated(ids, self._text(prompt, ids, request.config), reason) for ids, reason in rows])
        return found

    def _text(self, prompt: Array, ids: Array, config: GenerationConfig) -> str | None:
        if self._decode is None:
            return None
        strings = StopStrings(config.stop_strings)
        return strings.feed(new_text(self._decode, prompt.tolist(), ids.tolist())) + strings.flush()

    def _generated(self, tokens: list[Token], prompt: Array, request: Request) -> Generated:
        new, logprobs = [token for token in tokens if token.id is not None], request.logprobs
        ids = np.array([token.id for token in new], np.int64)
        return Generated(
            ids=ids,
            text=self._text(prompt, ids, request.config),
            reason=str(tokens[-1].reason),
            logprobs=None if logprobs is None else np.array([token.logprob for token in new], np.float32),
            top_logprobs=tuple(token.top_logprobs for token in new) if logprobs else None,
            error=tokens[-1].error,
        )

    def _score(self, row: Array, limit: RunLimit) -> Array:
        decoder = self.decoder
        batch = decoder.batch(1, len(row))
        # Nothing comes after the last token; it is read only where the other keys depend on it.
        fed, size = row[:-1], decoder.piece if decoder.every_position else 1
        if not decoder.splits(len(row)):
            fed, size = row, len(row)
        scores = []
        for first in range(0, len(fed), size):
            targets = row[first + 1 : first + 1 + size]
            logits = batch.extend(fed[first : first + size], limit)[: len(targets)]
            check_scores(logits)
            scores.append(log_softmax(logits)[np.arange(len(targets)), targets])
        return np.concatenate(scores)


def _cancelled(limit: RunLimit) -> DeadlineExceeded:
    return DeadlineExceeded(f"the call was stopped before its end: {limit.reason()}")
