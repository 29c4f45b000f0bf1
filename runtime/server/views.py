"""A pipeline as one request sees it: the same in all but a few parts, which the service takes over."""

from __future__ import annotations

from typing import Any

from pinnace.runtime.pipelines.base import Pipeline
from pinnace.runtime.server.work import Call


def view(pipe: Pipeline[Any], **replaced: Any) -> Any:
    """Return a pipeline that shares everything with ``pipe`` but for the named attributes and methods.

    So every pipeline's own code reads and checks what a request gives and shapes what it gets.

    Args:
        pipe: an opened pipeline.
        **replaced: what the view has instead.
    """
    made = object.__new__(type(pipe))
    vars(made).update(vars(pipe), **replaced)
    return made


def encoder_view(pipe: Pipeline[Any], call: Call) -> Any:
    """Return an encoder's pipeline as a request sees it: its tokens are counted, and its runs end with its ``call``."""

    def batches(encodings: Any, options: Any) -> Any:
        call.tokens_in += sum(map(len, encodings))
        return pipe.batches(encodings, options)

    counted = view(pipe, batches=batches)
    return view(pipe, answer=lambda items, options: counted.answer(items, options.ended_by(call)))
