"""``pinnace serve``: bundles as an HTTP service, until it is asked to end."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
from types import SimpleNamespace
from typing import Any, Final

from pinnace.cli.output import Console
from pinnace.errors import MissingExtra

_PACKAGES: Final = ("starlette", "uvicorn")
_EXAMPLES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "text-generation": ("completions", {"prompt": "The boat reached the", "max_tokens": 32}),
    "text-ranking": ("rerank", {"query": "how to moor a boat", "documents": ["Tie it to a bollard.", "Bread."]}),
}
_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "fill-mask": {"inputs": "The boat reached the [MASK]."},
    "multiple-choice": {"inputs": {"prompt": "The boat reached the", "choices": ["shore.", "sky."]}},
    "zero-shot-classification": {"inputs": "It failed.", "parameters": {"candidate_labels": ["machines", "cooking"]}},
}


def run(arguments: SimpleNamespace, console: Console) -> int:
    """Serve bundles; the flags are those of the command table."""
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise MissingExtra("serve", "a service")
    from pinnace.runtime.server.models import read_names
    from pinnace.runtime.server.serving import Serving
    from pinnace.runtime.server.settings import Settings

    names = ("host", "port", "precision", "device", "threads", "replicas", "max_concurrent", "slots", "timeout",
             "grace", "max_request_bytes", "api_key")  # fmt: skip
    said = {name: getattr(arguments, name) for name in names}
    settings = Settings(
        **{name: value for name, value in said.items() if value is not None}, verify=not arguments.no_verify
    )

    def log(record: dict[str, Any]) -> None:
        console.log(json.dumps(record) if console.json else _line(record))

    def fault(error: BaseException) -> None:
        console.error(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", error)

    def ready(address: str) -> None:
        if console.json:
            models = {name: model.task for name, model in serving.service.models.items()}
            # In one line: what reads it from a pipe must see its end while the service runs.
            console.result(console.to_json({"address": address, "models": models}))
            console.out.flush()
        for model in serving.service.models.values():
            console.log(f"{model.name}: {model.pipe!r}")
        console.log(f"serving on {address}, metrics at {address}/metrics")
        console.next(_example(address, next(iter(serving.service.models.values())), settings.api_key is not None))

    bundles = read_names(arguments.bundle)
    serving = Serving(bundles, settings, log, fault, ready)
    _allow_open_files()
    console.stage(f"opening {', '.join(bundles)}")
    serving.run()
    console.log("shut down cleanly")
    return 0


def _allow_open_files() -> None:
    """Let the process open as many files as it may: each connection is one, and the usual limit is for programs."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit, macOS allows fewer
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _line(record: dict[str, Any]) -> str:
    tokens = f" {record['tokens_in']}+{record['tokens_out']} tokens" if record["tokens_in"] else ""
    model = f" {record['model']}" if record["model"] else ""
    return f"{record['method']} {record['route']}{model} {record['status']} {record['ms']:g} ms{tokens}"


def _example(address: str, model: Any, with_key: bool) -> str:
    """A request that the model answers, as a command of a shell."""
    from pinnace.forms import FORMS

    if model.task in _EXAMPLES:
        route, body = _EXAMPLES[model.task]
        body = {"model": model.name, **body}
    else:
        form = FORMS[model.task]
        plain: Any = dict.fromkeys((form.text, *form.required), "It works.") if form.required else "It works."
        route, body = f"pipelines/{model.name}", _INPUTS.get(model.task, {"inputs": plain})
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    return f"curl {address}/v1/{route}{key} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
