"""Answers to lines, in their order: neighbours share batches, and a line that has no answer may leave its error."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pinnace.cli.inputs import Item
from pinnace.errors import InputError, NumericalError, PinnaceError, UsageError

STOP, WRITE = "stop", "write"
# What a record of a line says beside the fields that were kept.
ANSWER_FIELDS: Final = ("answer", "error", "line")


class Answering:
    """A pipeline that answers the lines of a source.

    Args:
        pipe: the pipeline.
        options: options of every call.
        shared: those of them that a line may have in its own way.
        records: each answer is the ``"answer"`` of an object, which holds the line's kept fields too.
        write_errors: a line that cannot be answered leaves its error; else the first such line ends the run.

    Attributes:
        failed: lines that left an error.
    """

    def __init__(
        self, pipe: Any, options: Mapping[str, Any], shared: Mapping[str, Any], *, records: bool, write_errors: bool
    ) -> None:
        self._pipe, self._options, self._shared = pipe, options, shared
        self._records, self._write_errors = records, write_errors
        self.failed = 0

    def answers(self, items: Iterable[Item]) -> Iterator[Any]:
        """Answer items as they come, in their order; neighbours with the same options share their batches.

        Raises:
            InputError: an item that cannot be answered, where errors are not written.
            PinnaceError: what concerns more than one line.
        """
        for own, group in itertools.groupby(items, key=lambda item: item.options):
            yield from self._stream(group, own)

    def _stream(self, items: Iterator[Item], own: Mapping[str, Any]) -> Iterator[Any]:
        """Answer items with the same options; behind a piece that failed, with a new call of the pipeline."""
        for head in items:
            waiting: collections.deque[Item] = collections.deque()  # read, and not answered yet
            rest = itertools.chain([head], items)
            try:
                for answer in self._pipe(self._values(rest, waiting), **{**self._options, **own}):
                    yield from self._leading_failures(waiting)
                    yield self._record(waiting.popleft(), answer)
            except self._of_a_line(own):
                if not self._write_errors:
                    raise
                # The call may have failed before it read anything.
                yield from self._apart([*waiting] or [self._checked(head)], own)
            else:
                yield from self._leading_failures(waiting)

    def _values(self, items: Iterator[Item], waiting: collections.deque[Item]) -> Iterator[Any]:
        for read in items:
            item = self._checked(read)
            waiting.append(item)
            if item.error is None:
                yield item.value

    def _leading_failures(self, waiting: collections.deque[Item]) -> Iterator[Any]:
        while waiting and waiting[0].error is not None:
            yield self._failure(waiting.popleft())

    def _apart(self, items: list[Item], own: Mapping[str, Any]) -> Iterator[Any]:
        """Answer items of which some may fail: all together, else each half by itself."""
        good = [item for item in items if item.error is None]
        answers: Iterator[Any] = iter(())
        try:
            if good:
                answers = iter(self._pipe([item.value for item in good], **{**self._options, **own}))
        except self._of_a_line(own) as error:
            if len(good) > 1:
                middle = len(items) // 2
                yield from self._apart(items[:middle], own)
                yield from self._apart(items[middle:], own)
                return
            items = [item.failed(error) if item is good[0] else item for item in items]
        for item in items:
            yield self._failure(item) if item.error is not None else self._record(item, next(answers))

    def _checked(self, item: Item) -> Item:
        """The item, with its error if its form is wrong.

        Raises:
            InputError: that error, where errors are not written.
        """
        if item.error is None:
            try:
                self._pipe.check_input(item.value, item.place)  # so that the message names the line
            except InputError as error:
                item = item.failed(error)
        if item.error is not None and not self._write_errors:
            raise item.error
        return item

    def _of_a_line(self, own: Mapping[str, Any]) -> tuple[type[PinnaceError], ...]:
        """The errors that one line is to blame for; a line with options of its own for those too."""
        return (InputError if own == self._shared else UsageError, NumericalError)

    def _failure(self, item: Item) -> dict[str, Any]:
        self.failed += 1
        return {"error": str(item.error), "line": item.line, **item.kept}

    def _record(self, item: Item, answer: Any) -> Any:
        return {**item.kept, "answer": answer} if self._records else answer
