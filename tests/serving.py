"""A service in a thread of the test's own process or in one of its own, a client of it, and bundles to serve."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from pinnace.runtime.server.serving import Serving
from pinnace.runtime.server.settings import Settings
from tests.generation_bundles import MakeBundle
from tests.tiny_bundle import facts_by_hand, file_facts

PATIENCE: Final = 60.0
"""Seconds after which a test gives up: nothing is judged by them."""
CHAT: Final = "/v1/chat/completions"
TEXT: Final = "/v1/completions"
ON: Final[dict[str, Any]] = {"logit_bias": {"2": -1000}}
"""The decoders' end token does not come."""


class Client:
    """Asks a service."""

    def __init__(self, address: str) -> None:
        self.address = address
        host, _, port = address.removeprefix("http://").partition(":")
        self.place = (host, int(port))

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Send a request (``body`` as JSON unless it is bytes) and read the whole answer."""
        connection = http.client.HTTPConnection(*self.place, timeout=PATIENCE)
        with contextlib.closing(connection):
            told = {name.replace("_", "-"): value for name, value in headers.items()}
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json", **told})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """Post JSON, and return the status and the answer's JSON."""
        status, headers, answer = self.request("POST", path, body)
        assert headers["content-type"] == "application/json", answer
        return status, json.loads(answer)

    def get(self, path: str) -> Any:
        """The JSON of an address."""
        status, _, answer = self.request("GET", path)
        assert status == 200, answer
        return json.loads(answer)

    def good(self, path: str, **body: Any) -> Any:
        """The answer to a request that must succeed."""
        status, answer = self.post(path, **body)
        assert status == 200, answer
        return answer

    def refused(self, status: int, path: str, **body: Any) -> dict[str, Any]:
        """The error of a request that must fail so."""
        got, answer = self.post(path, **body)
        assert got == status, answer
        assert list(answer) == ["error"] and set(answer["error"]) == {"message", "type", "param", "code"}
        error: dict[str, Any] = answer["error"]
        return error

    def events(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream; its last one, ``[DONE]``, as a text."""
        status, headers, answer = self.request("POST", path, {**body, "stream": True})
        assert status == 200 and headers["content-type"].startswith("text/event-stream"), answer
        parts = answer.decode().split("\n\n")
        assert parts.pop() == "" and all(part.startswith("data: ") for part in parts)
        return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all lines that have these labels."""
        status, _, text = self.request("GET", "/metrics")
        assert status == 200
        total = 0.0
        for found, inside, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text.decode(), re.MULTILINE):
            if found == name and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', inside)).items():
                total += float(value)
        return total

    def wait(self, what: Callable[[], bool]) -> None:
        """Wait until something is so."""
        until = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < until, "it did not come to pass"
            time.sleep(0.01)

    def begin(self, path: str, **body: Any) -> socket.socket:
        """Send a request and read nothing; who closes the socket goes away."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        made = socket.create_connection(self.place, PATIENCE)
        made.sendall(head.encode() + data)
        return made


@dataclasses.dataclass
class Served:
    """A service that runs."""

    client: Client
    serving: Serving
    records: list[dict[str, Any]]
    faults: list[BaseException]


@contextlib.contextmanager
def served(bundles: dict[str, Path], **settings: Any) -> Iterator[Served]:
    """Serve bundles in a thread for the length of the block."""
    opened, addresses = threading.Event(), []
    records: list[dict[str, Any]] = []
    faults: list[BaseException] = []

    def ready(address: str) -> None:
        addresses.append(address)
        opened.set()

    chosen = Settings(port=0, threads=1, **{"grace": 0.2, **settings})
    serving = Serving({name: str(path) for name, path in bundles.items()}, chosen, records.append, faults.append, ready)

    def run() -> None:
        try:
            serving.run()
        finally:
            opened.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert opened.wait(PATIENCE) and addresses
        yield Served(Client(addresses[0]), serving, records, faults)
    finally:
        serving.end()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def with_words(folder: Path, words: list[str]) -> Path:
    """Give a bundle that was made by hand a tokenizer, whose ids are the words' places."""
    made = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    manifest = facts_by_hand(folder)
    manifest["files"] = {
        name: {**manifest["files"].get(name, {}), **dataclasses.asdict(fact)}
        for name, fact in file_facts(folder).items()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def ranking(bundle_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a classifier, said to be for ranking."""
    folder = shutil.copytree(bundle_of("tiny-rerank"), tmp_path_factory.mktemp("ranking") / "rank")
    return said_to_be_for(folder, "text-ranking")


def said_to_be_for(folder: Path, task: str) -> Path:
    """Change a bundle's task to another that its head serves."""
    manifest = facts_by_hand(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "task": task}))
    return folder


@pytest.fixture(scope="module")
def service(decoder_of: MakeBundle, bundle_of: Callable[[str], Path], ranking: Path) -> Iterator[Served]:
    """A service of five models, for the tests of one file."""
    bundles = {
        "glossary-lm": decoder_of("apertus-ort"), "my-embed": bundle_of("tiny-embed"), "my-rank": ranking,
        "glossary-qa": bundle_of("bert-glossary-qa"), "org/mlm": bundle_of("tiny-mlm"),
    }  # fmt: skip
    with served(bundles, max_request_bytes=100_000) as made:
        yield made


@pytest.fixture
def client(service: Served) -> Client:
    """A client of the service."""
    return service.client


Start: TypeAlias = Callable[..., tuple["subprocess.Popen[str]", Client]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command in a process of its own, and wait until it serves."""
    children: list[subprocess.Popen[str]] = []

    def begun(*words: str) -> tuple[subprocess.Popen[str], Client]:
        command = [sys.executable, "-m", "pinnace", "serve", *words, "--port", "0", "--threads", "1"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PINNACE_")}
        child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        children.append(child)
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("next: curl "):  # the last line before the first request's
                return child, Client(line.split()[2].partition("/v1/")[0])
        raise AssertionError(f"it ended with {child.wait()}")

    yield begun
    for child in children:
        child.kill()
        child.communicate()
