"""Renders chat templates in a process of its own, with its memory and processor time limited.

A template is code from a stranger. Fuel stops its loops, but a handful of steps that double a string use up any memory,
and that ends a process; so it is this one, which `pinnace.runtime.chat.process` starts, feeds and replaces. Nothing of
Pinnace is imported, so that it starts quickly.

One JSON object a line on standard input: first ``{"template": ...}`` with the limits, which an empty line answers, then
for each rendering the template's variables, answered by one JSON object.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from datetime import datetime
from typing import Any

import minijinja

# The tag by which transformers marks an assistant's text for training; its content is rendered as if the tag were not.
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

# What jinja2 has and minijinja does not, or with other arguments.
_LACKING = ("UnknownFilter", "UnknownTest", "UnknownFunction", "UnknownMethod", "TooManyArguments")
_METHOD = re.compile(r"(\w+) has no method named (\w+)")
# minijinja's words for the types of Python that a template may think it has.
_TYPES = {"string": str, "map": dict, "sequence": list}


class Refusal(Exception):
    """The template itself called ``raise_exception``."""


def environment(fuel: int) -> minijinja.Environment:
    """Make an environment that behaves as transformers' jinja2 environment does."""

    def raise_exception(message: Any = "") -> None:
        raise Refusal(str(message))

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # Not the built-in filter, which escapes HTML.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=None if separators is None else tuple(separators),
            sort_keys=sort_keys,
        )

    def as_text(value: Any) -> str:
        if value is None:  # none and undefined, which jinja2 writes in two ways
            raise TypeError("a filter was given none or an undefined value")
        return str(value)

    def truncate(text: Any, length: int = 255, killwords: bool = False, end: str = "...", leeway: int = 5) -> str:
        whole = as_text(text)
        if len(whole) <= length + leeway:
            return whole
        kept = whole[: max(length - len(end), 0)]
        return (kept if killwords else kept.rsplit(" ", 1)[0]) + end

    made = minijinja.Environment(trim_blocks=True, lstrip_blocks=True, debug=False, fuel=fuel)
    made.add_filter("tojson", to_json)
    made.add_filter("truncate", truncate)
    made.add_filter("center", lambda text, width=80: as_text(text).center(width))
    made.add_filter("wordcount", lambda text: len(re.findall(r"\w+", as_text(text))))
    # In Python a text is a sequence too.
    made.add_test("sequence", lambda value: isinstance(value, (str, list, tuple, dict)))
    made.add_global("raise_exception", raise_exception)
    made.add_global("strftime_now", lambda layout: datetime.now().strftime(layout))
    made.add_global("dict", lambda *pairs, **items: dict(*pairs, **items))
    return made


def compiled(source: str, fuel: int) -> minijinja.Environment:
    """Make an environment that holds the template as ``chat``."""
    made = environment(fuel)
    # As jinja2 reads a template; what the messages hold stays as it is.
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    opening = {None: "with", "end": "endwith"}
    made.add_template("chat", _GENERATION.sub(lambda m: f"{{%{m[1]} {opening[m[2]]} {m[3]}%}}", source))
    return made


def answer(made: minijinja.Environment, variables: dict[str, Any], longest: int) -> dict[str, Any]:
    """Render once; the result or what went wrong, ready for JSON."""
    try:
        text = made.render_template("chat", **variables)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (Refusal, MemoryError)):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, Refusal):
            return {"refused": str(cause)[:2000]}
        kind = "Memory" if cause else getattr(error, "kind", None)
        words = _words(error)
        if kind in _LACKING and not _lacks_in_python(words):
            kind = "Lacking"
        return {"failed": words or type(error).__name__, "kind": kind}
    if len(text) > longest:
        return {"failed": f"{len(text)} characters", "kind": "Output"}
    return {"text": text}


def _words(error: Exception) -> str:
    """The first line of an error; the others quote the template."""
    return str(error).split("\n", 1)[0][:500]


def _lacks_in_python(words: str) -> bool:
    """Whether Python lacks the method too: the value has another type than the template takes it for."""
    found = _METHOD.search(words)
    return found is not None and not hasattr(_TYPES.get(found[1]), found[2])


def main() -> None:
    """Serve until standard input closes."""
    limits = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Beyond its processor time the process ends: the default of this signal.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    made: minijinja.Environment | None = None
    print(flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        try:
            made = made or compiled(limits["template"], limits["fuel"])
            result = answer(made, json.loads(line), limits["output"])
        except minijinja.TemplateError as error:
            result = {"failed": _words(error), "kind": "Syntax"}
        except (MemoryError, RecursionError) as error:
            result = {"failed": type(error).__name__, "kind": "Memory"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
