"""``pinnace serve`` as a process: names of models, its start, its end by a signal, and what ends it before that."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pinnace.cli.main import main
from pinnace.errors import UsageError
from pinnace.runtime.server.models import read_names
from tests.generation_bundles import MakeBundle, decoder_of
from tests.serving import PATIENCE, TEXT, Start, served, start

__all__ = ["decoder_of", "start"]


def test_names_of_models(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "a=b").mkdir()
    assert read_names([str(tmp_path / "my-model"), f"org/x={tmp_path}"]) == {
        "my-model": str(tmp_path / "my-model"), "org/x": str(tmp_path),
    }  # fmt: skip
    with pytest.raises(UsageError, match="two models"):
        read_names(["x=a", "x=b"])
    for word in (str(tmp_path / "a=b"), "a b", "/"):
        with pytest.raises(UsageError, match="no name for a model"):
            read_names([word])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_in_order(start: Start, decoder_of: MakeBundle, number: signal.Signals) -> None:
    child, client = start(f"lm={decoder_of('apertus-ort')}")
    with client.begin(TEXT, prompt="river (noun):", max_tokens=200, logit_bias={"2": -1000}, stream=True) as stream:
        begun = b""
        while b"data: " not in begun:
            begun += stream.recv(1 << 16)
        child.send_signal(number)
        while part := stream.recv(1 << 16):  # what is under way is finished
            begun += part
        assert b"data: [DONE]" in begun and begun.count(b"data: ") > 150
    out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (0, "")
    assert f"POST {TEXT} lm 200 " in err and "Traceback" not in err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal hangs up here")
def test_a_terminal_that_is_closed_ends_the_service_unless_it_is_told_otherwise(
    start: Start, bundle_of: Callable[[str], Path]
) -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        child, _ = start(str(bundle_of("tiny-embed")))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        other, staying = start(str(bundle_of("tiny-embed")))
    finally:
        signal.signal(signal.SIGHUP, before)
    for one in (child, other):
        one.send_signal(signal.SIGHUP)
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0 and err.endswith("shut down cleanly\n")
    assert staying.get("/healthz") and other.poll() is None


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no limits of other processes here")
def test_connections_for_which_there_are_no_files(start: Start, bundle_of: Callable[[str], Path]) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
        child, client = start(str(bundle_of("tiny-embed")))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (before[1], before[1])
    few = len([*Path(f"/proc/{child.pid}/fd").iterdir()]) + 4
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (few, few))
    idle = [socket.create_connection(client.place, PATIENCE) for _ in range(20)]
    assert child.stderr is not None
    line = child.stderr.readline()
    assert "no more connections can be taken: Too many open files" in line
    for one in idle:
        one.close()
    assert client.get("/healthz") == {"status": "alive"}
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=PATIENCE)
    assert "no more connections" not in err and "Traceback" not in err and err.count("\n") == 2


def test_a_program_reads_the_address_in_one_line(start: Start, bundle_of: Callable[[str], Path]) -> None:
    child, client = start(f"vectors={bundle_of('tiny-embed')}", "--json")
    assert child.stdout is not None
    assert json.loads(child.stdout.readline()) == {
        "address": client.address, "models": {"vectors": "feature-extraction"},
    }  # fmt: skip
    client.good("/v1/embeddings", input="a boat")
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=PATIENCE)
    record = next(json.loads(line) for line in err.splitlines() if line.startswith("{"))
    assert (out, record["status"], record["route"]) == ("", 200, "/v1/embeddings") and record["tokens_in"] > 0


def test_a_bundle_that_cannot_be_opened_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"x={tmp_path}", "--port", "0"]) == 3
    assert "manifest.json" in capsys.readouterr().err


def test_a_port_that_is_taken(bundle_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    with served({"embed": bundle_of("tiny-embed")}) as made:
        assert main(["serve", str(bundle_of("tiny-embed")), "--port", str(made.client.place[1])]) == 5
    assert "Give another --host or --port" in capsys.readouterr().err
    assert main(["serve", "x", "--host", "no such host"]) == 5
    assert main(["serve", "x", "--host", ""]) == 2
    assert "--host is empty" in capsys.readouterr().err


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "x"]) == 4
    assert "pip install 'pinnace[serve]'" in capsys.readouterr().err


def test_other_commands_import_no_server() -> None:
    code = (
        "import sys; from pinnace.cli.main import main; main(['--help']); "
        "print({'starlette', 'uvicorn', 'asyncio'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] == "set()"
