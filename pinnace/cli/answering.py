"""Answers to lines, in their order: neighbours share batches, and a line that has no answer may leave its error."""

from __future__ import annotations

import collections
import itertools
import re
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
        options: options of every call, over which a line's own go.
        records: each answer is the ``"answer"`` of an object, which holds the line's kept fields too.
        write_errors: a line that cannot be answered leaves its error; else the first such line ends the run.

    Attributes:
        failed: lines that left an error.
    """

    def __init__(self, pipe: Any, options: Mapping[str, Any], *, records: bool, write_errors: bool) -> None:
        self._pipe, self._options = pipe, options
        self._records, self._write_errors = records, write_errors
        self._passed: Mapping[str, Any] | None = None  # options of a line that were found right
        self.failed = 0

    def answers(self, items: Iterable[Item]) -> Iterator[Any]:
        """Answer items as they come, in their order; neighbours with the same options share their batches.

        Raises:
            InputError: an item that cannot be answered, where errors are not written; those before it are answered.
            NumericalError: an item that the model fails on, where errors are not written.
            PinnaceError: what concerns more than one line.
        """
        for own, group in itertools.groupby(items, key=lambda item: item.options):
            yield from self._stream(group, {**self._options, **own})

    def _stream(self, items: Iterator[Item], options: Mapping[str, Any]) -> Iterator[Any]:
        """Answer items with the same options; behind a piece that failed, with a new call of the pipeline."""
        for head in items:
            first = self._checked(head)
            if first.error is not None:
                yield self._failure(first)
                continue
            waiting: collections.deque[Item] = collections.deque()  # read, and not answered yet
            rest = itertools.chain([first], map(self._checked, items))
            try:
                for answer in self._pipe(self._values(rest, waiting), **options):
                    yield from self._leading_failures(waiting)
                    yield self._record(waiting.popleft(), answer)
            except (InputError, NumericalError):
                # The call may have failed before it read anything.
                yield from self._apart([*waiting] or [first], options)
            else:
                yield from self._leading_failures(waiting)

    def _values(self, items: Iterator[Item], waiting: collections.deque[Item]) -> Iterator[Any]:
        for item in items:
            waiting.append(item)
            if item.error is None:
                yield item.value
            elif not self._write_errors:
                return  # those before it are answered first

    def _leading_failures(self, waiting: collections.deque[Item]) -> Iterator[Any]:
        while waiting and waiting[0].error is not None:
            yield self._failure(waiting.popleft())

    def _apart(self, items: list[Item], options: Mapping[str, Any]) -> Iterator[Any]:
        """Answer items of which some may fail: all together, else each half by itself."""
        good = [item for item in items if item.error is None]
        answers: Iterator[Any] = iter(())
        try:
            if good:
                answers = iter(self._pipe([item.value for item in good], **options))
        except (InputError, NumericalError) as error:
            if len(good) > 1:
                middle = len(items) // 2
                yield from self._apart(items[:middle], options)
                yield from self._apart(items[middle:], options)
                return
            items = [item.failed(_placed(error, item.place)) if item is good[0] else item for item in items]
        for item in items:
            yield self._failure(item) if item.error is not None else self._record(item, next(answers))

    def _checked(self, item: Item) -> Item:
        """The item, with its error if its form or an option of its own is wrong."""
        if item.error is not None:
            return item
        try:
            if item.options != self._passed:
                self._pipe.check_options({**self._options, **item.options})
                self._passed = item.options
            self._pipe.check_input(item.value, item.place)  # so that the message names the line
        except InputError as error:
            return item.failed(error)
        except UsageError as error:
            return item.failed(InputError(f"{item.place}: {error}"))
        return item

    def _failure(self, item: Item) -> dict[str, Any]:
        """The record of an item that cannot be answered.

        Raises:
            PinnaceError: its error, where errors are not written.
        """
        if item.error is not None and not self._write_errors:
            raise item.error
        self.failed += 1
        return {"error": str(item.error), "line": item.line, **item.kept}

    def _record(self, item: Item, answer: Any) -> Any:
        return {**item.kept, "answer": answer} if self._records else answer


def _placed(error: PinnaceError, place: str) -> PinnaceError:
    """The error of an input that was asked alone, in which the pipeline counts it as its first."""
    text = re.sub(r"^input 0\b", place, str(error))
    return type(error)(text if place in text else f"{place}: {text}")
