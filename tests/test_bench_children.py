"""Processes that ``pinnace bench`` starts: those that are not there, those that fail, and those that must end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pinnace.bench.children import ChildFailed, Server, run_child
from pinnace.cli.main import main

BundleOf = Callable[[str], Path]
WORKER = (sys.executable, "-m", "pinnace.bench.worker", "pinnace")
QUICK = ("--rounds", "1", "--starts", "1", "--round-seconds", "10ms", "--threads", "1", "--length", "4", "-q")


@pytest.mark.parametrize("start", [run_child, Server])
def test_a_program_that_is_not_there_is_named(start: Callable[[list[str]], object], tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="did not start: No such file") as caught:
        start([str(tmp_path / "python"), "-c", "pass"])
    assert str(tmp_path / "python") in caught.value.said
    assert (caught.value.code, caught.value.exit_code) == (None, 5)


def test_a_peer_whose_python_is_not_there_is_left_out(bundle_of: BundleOf, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(bundle_of("tiny-embed")), "--peers", "transformers=no/python", *QUICK, "--json"]
    assert main(words) == 0
    own, peer = json.loads(capsys.readouterr().out)["candidates"]
    assert (own["missing"], peer["name"]) == ("", "transformers")
    assert f"No such file or directory: {Path.cwd() / 'no' / 'python'}" in peer["missing"]


def test_an_error_of_pinnace_keeps_its_text_and_exit_code(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed) as caught:
        run_child([*WORKER, json.dumps({"model": str(tmp_path)})])
    assert str(caught.value) == f"{tmp_path} is not a bundle: manifest.json is missing."
    assert caught.value.exit_code == 3
    assert caught.value.said == str(caught.value)
    assert "Traceback" in "".join(caught.value.__notes__)
    with pytest.raises(ChildFailed) as other:
        run_child([sys.executable, "-c", "raise ValueError('a fault')"])
    assert other.value.exit_code == 5
    assert "Traceback" not in str(other.value)


def test_tracebacks_of_processes_are_shown_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, bundle_of: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("no place to fill\n")
    words = ["bench", str(bundle_of("tiny-mlm")), "--input", str(lines), *QUICK[:-3]]
    assert main([*words, "-q"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: input 0 has no mask")
    assert "Traceback" not in said
    assert main([*words, "-v"]) == 2
    assert "in _work" in capsys.readouterr().err


def test_a_failed_export_keeps_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--random-weights", "bert", "--config", "nope=1", "-q"]) == 3
    said = capsys.readouterr().err
    assert "nope" in said
    assert "Traceback" not in said
    assert "ended with" not in said


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_an_export_ends_with_the_command_that_started_it(tmp_path: Path, seconds: float) -> None:
    """As a container ends while random weights are exported: no process and no temporary folder stays."""
    words = [sys.executable, "-m", "pinnace", "bench", "--random-weights", "bert", "-q"]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, start_new_session=True) as command:
        try:
            deadline = time.monotonic() + 60
            while not any(_children(command.pid)) and time.monotonic() < deadline and command.poll() is None:
                time.sleep(0.01)
            (export,) = _children(command.pid)
            time.sleep(seconds)
            command.send_signal(signal.SIGTERM)
            said = command.communicate(timeout=60)[1]
            assert not _runs(export)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
    assert (command.returncode, said.strip()) == (143, b"error: terminated")
    assert not any(tmp_path.iterdir())


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
