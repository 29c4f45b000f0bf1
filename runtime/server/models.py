"""The models of a service: opened and warmed once, then one view of them for each request."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from pinnace.errors import UsageError, unknown_word
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.inputs import example_inputs
from pinnace.runtime.pipelines.base import Pipeline
from pinnace.runtime.pipelines.shared_runs import SharedRuns
from pinnace.runtime.pipelines.table import pipeline
from pinnace.runtime.pipelines.text_generation import TextGenerationPipeline
from pinnace.runtime.server.failures import Refused
from pinnace.runtime.server.scheduler import Scheduler
from pinnace.runtime.server.settings import Settings
from pinnace.runtime.server.slot_generator import SlotGenerator
from pinnace.runtime.server.views import encoder_view, view
from pinnace.runtime.server.work import Call

_NAME: Final = re.compile(r"[\w.:@+-]+(/[\w.:@+-]+)*")


def read_names(words: Sequence[str]) -> dict[str, str]:
    """Read ``PATH`` and ``NAME=PATH``; a path's name is that of its folder.

    Returns:
        Name to path.

    Raises:
        UsageError: a name twice, or one that does not fit into an address.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = Path(word).resolve().name, word
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for a model: letters, digits and ._-:@+/ are; give NAME={path}")
        if name in found:
            raise UsageError(f"two models are called {name!r}; give one of them another name: NAME={path}")
        found[name] = str(Path(path).expanduser())
    return found


class Model:
    """One opened model.

    Args:
        name: what clients call it.
        path: the bundle's folder.
        settings: those of the service.

    Raises:
        PinnaceError: as `pipeline`, or the first run failed.

    Attributes:
        pipe: its pipeline.
        executor: threads for its requests, as many as it takes at once.
    """

    def __init__(self, name: str, path: str, settings: Settings) -> None:
        self.name = name
        bundle = Bundle.open(path, verify=settings.verify)
        self.pipe: Pipeline[Any] = pipeline(
            bundle.manifest.task, bundle, precision=settings.precision, device=settings.device,
            threads=settings.threads, replicas=settings.replicas,
        )  # fmt: skip
        self.executor = ThreadPoolExecutor(settings.max_concurrent, thread_name_prefix=f"pinnace-{name}")
        self._most = settings.max_concurrent
        self._requests = 0
        self._lock = threading.Lock()
        self._warm(settings.timeout)
        self._queue: Scheduler | SharedRuns = self.pipe.shared_runs
        if isinstance(self.pipe, TextGenerationPipeline):
            self._queue = Scheduler(self.pipe.generator.decoder, settings.slots)
            self._generator = SlotGenerator(self.pipe.generator, self._queue)

    @property
    def task(self) -> str:
        """What it is for."""
        return self.pipe.task

    @property
    def requests(self) -> int:
        """Requests at work or waiting."""
        return self._requests

    @property
    def waiting(self) -> int:
        """Rows that wait for their turn."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        """Rows of the runs under way."""
        return self._queue.running

    def view(self, call: Call) -> Any:
        """Return the pipeline as one request sees it: its runs are shared with others, and end with its ``call``."""
        if isinstance(self._queue, SharedRuns):
            return encoder_view(self.pipe, call)
        return view(self.pipe, generator=self._generator.counting(call))

    def admit(self) -> None:
        """Count a request in.

        Raises:
            Refused: 429, there are as many as may be.
        """
        with self._lock:
            if self._requests >= self._most:
                raise Refused(
                    429, f"{self.name} is at work on {self._most} requests, as many as it takes; come back later",
                    code="queue_full",
                )  # fmt: skip
            self._requests += 1

    def release(self) -> None:
        """Count a request out."""
        with self._lock:
            self._requests -= 1

    def _warm(self, timeout: float) -> None:
        """Run once, so that the first request finds everything opened."""
        if isinstance(self.pipe, TextGenerationPipeline):
            first = self.pipe.tokenizer.bos_token_id or 0
            self.pipe.generator.generate([[first]], max_new_tokens=1, timeout=timeout)
            _ = self.pipe.template  # here, so that all views share it
        else:
            session = self.pipe.session
            types = {spec.name: spec.dtype for spec in session.inputs}
            session.run(example_inputs(self.pipe.manifest, types), timeout=timeout)


def find_model(models: Mapping[str, Model], name: Any, task: str | None = None) -> Model:
    """Return the model that a request names; one that names none gets the only one there is for its task.

    Raises:
        Refused: 404 for an unknown name, 400 for a model of another task or none named where there are several.
    """
    fitting = [model for model in models.values() if task in (None, model.task)]
    if name is None and len(fitting) == 1:
        return fitting[0]
    if not isinstance(name, str):
        known = ", ".join(model.name for model in fitting) or f"none here is for {task}"
        raise Refused(400, f"model is {str(name)[:80]!r}; expected one of: {known}", param="model")
    if name not in models:
        error = unknown_word("model", name[:200], models)
        raise Refused(404, str(error), code="model_not_found", param="model")
    if models[name] not in fitting:
        raise Refused(
            400,
            f"{name} is for {models[name].task}, and this address is for {task}; use /v1/pipelines/{name}, or another "
            "model",
            param="model",
        )
    return models[name]
