"""``pinnace run --resume``: a run that was killed goes on where whole lines ended; the output is that of one run."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pinnace.cli.answering import Answering
from pinnace.cli.answers import AnswersFile, Kept, whole_lines
from pinnace.cli.inputs import Item
from pinnace.cli.main import main
from pinnace.cli.output import Console
from pinnace.cli.progress import Progress
from pinnace.errors import MachineError
from tests.conftest import DATA

Bundles = Callable[[str], Path]


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.partial"))


def run(*words: object) -> int:
    return main(["run", *map(str, words), "-q"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"the plant {i} is green\n\n" for i in range(6000)))
    return path


@pytest.fixture
def whole(bundle_of: Bundles, source: Path, tmp_path: Path) -> list[str]:
    target = tmp_path / "whole.jsonl"
    assert run(bundle_of("tiny-classify"), "-i", source, "-o", target) == 0
    return target.read_text().splitlines()


@pytest.mark.parametrize("first", [[], ["--resume"]])
def test_a_killed_run_goes_on(
    bundle_of: Bundles, source: Path, whole: list[str], tmp_path: Path, first: list[str]
) -> None:
    words = ["run", bundle_of("tiny-classify"), "-i", source, "-o", tmp_path / "out.jsonl"]
    child = subprocess.Popen(
        [sys.executable, "-m", "pinnace", *map(str, words), *first],
        cwd=DATA.parent.parent, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(p.stat().st_size for p in partials(tmp_path)):
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (partial,) = partials(tmp_path)
    assert not (tmp_path / "out.jsonl").exists()
    with partial.open("a") as file:
        file.write('{"label": "torn')
    kept = whole_lines(os.open(partial, os.O_RDONLY))[1]
    assert 0 < kept < len(whole)
    assert run(*words[1:], "--resume") == 0
    assert len(whole) == 6000
    found = (tmp_path / "out.jsonl").read_text().splitlines()
    assert found[:kept] == whole[:kept]
    assert [json.loads(line)["label"] for line in found] == [json.loads(line)["label"] for line in whole]
    assert partials(tmp_path) == []


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """Let a run end after so many answers; the list tells how many inputs each run was given."""
    real, given = Answering.answers, []

    def few(self: Answering, items: Iterable[Item]) -> Iterator[Any]:
        for number, answer in enumerate(real(self, items)):
            given.append(number)
            if number == count:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(Answering, "answers", few)
    return given


def test_only_what_is_missing_is_answered(
    bundle_of: Bundles, source: Path, whole: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [bundle_of("tiny-classify"), "-i", source, "-o", tmp_path / "out.jsonl", "--resume"]
    with monkeypatch.context() as patch:
        stop_after(patch, 1500)
        assert run(*words) == 130
    assert len(partials(tmp_path)) == 1
    with monkeypatch.context() as patch:
        given = stop_after(patch, -1)
        assert run(*words) == 0
    assert 0 < len(given) <= len(whole) - 1400
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(whole)


def test_each_answer_is_in_the_file_when_the_next_one_is_made(
    bundle_of: Bundles, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = []

    def watched(*_arguments: object) -> Iterator[dict[str, int]]:
        for number in range(5):
            there.append(sum(path.read_bytes().count(b"\n") for path in partials(tmp_path)))
            yield {"number": number}

    monkeypatch.setattr(Answering, "answers", watched)
    assert run(bundle_of("tiny-classify"), "-i", source, "-o", tmp_path / "out.jsonl", "--resume") == 0
    assert there == [0, 1, 2, 3, 4]


def test_answers_of_another_run_are_not_mixed_in(
    bundle_of: Bundles, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [bundle_of("tiny-classify"), "-i", source, "-o", tmp_path / "out.jsonl", "--resume"]
    with monkeypatch.context() as patch:
        stop_after(patch, 100)
        assert run(*words) == 130
    assert run(*words, "--option", "top_k=2") == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == 6000 and all(len(json.loads(line)) == 2 for line in lines)
    assert partials(tmp_path) == []  # what nobody will ask for any more is cleaned up


def test_without_resume_a_failed_run_leaves_nothing(
    bundle_of: Bundles, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 10)
    assert run(bundle_of("tiny-classify"), "-i", source, "-o", tmp_path / "out.jsonl") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_what_cannot_be_resumed(
    bundle_of: Bundles, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of("tiny-classify")
    for words in (
        ["-i", source],
        ["a", "-o", "x"],
        ["-i", source, "-o", "/dev/null"],
        ["-i", source, "-o", "x", "--json"],
    ):
        assert run(bundle, *words, "--resume") == 2
        assert "--resume goes with" in capsys.readouterr().err
    assert run(bundle, "-i", "-", "-o", tmp_path / "x", "--resume") == 2
    assert "not standard input" in capsys.readouterr().err


def test_answers_before_a_bad_line_are_kept_and_said_to_be(
    bundle_of: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('"a"\n"b"\n{bad\n"c"\n')
    words = [bundle_of("tiny-classify"), "-i", source, "-o", target]
    assert run(*words) == 2
    assert "--resume" not in capsys.readouterr().err and partials(tmp_path) == []
    assert run(*words, "--resume") == 2
    (partial,) = partials(tmp_path)
    err = capsys.readouterr().err
    assert "line 3" in err and f"2 answers are kept in {partial}" in err and "with --resume" in err
    source.write_text(source.read_text().replace("{bad", '"bad"'))
    assert main(["run", *map(str, words), "--resume"]) == 0
    assert "2 answers are there already" in capsys.readouterr().err
    assert target.read_text().count("\n") == 4 and partials(tmp_path) == []
    source.write_text("{bad\n")
    assert run(*words, "--resume") == 2
    assert "are kept" not in capsys.readouterr().err


def test_a_source_that_is_answered_already_is_not_called_empty(
    bundle_of: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('"a"\n{bad\n')
    words = ["run", str(bundle_of("tiny-classify")), "-i", str(source), "-o", str(target), "--resume"]
    assert main(words) == 2
    source.write_text('"a"\n')
    assert main(words) == 0
    assert "nothing to answer" not in capsys.readouterr().err and target.read_text().count("\n") == 1


def test_two_processes_do_not_write_the_same_answers(tmp_path: Path) -> None:
    one, two = (AnswersFile(tmp_path / "out", {"a": 1}, resume=resume) for resume in (False, False))
    with one.opened() as file:
        file.write("1\n")
        with pytest.raises(MachineError, match="another process writes"), two.opened():
            pytest.fail("both hold the file")
    assert (tmp_path / "out").read_text() == "1\n" and partials(tmp_path) == []


def test_a_full_disk_keeps_what_can_be_resumed(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\nfrom pathlib import Path\n"
        "from pinnace.cli.answers import AnswersFile\nfrom pinnace.errors import MachineError\n"
        "try:\n    with AnswersFile(Path(sys.argv[1]), {}, resume=True).opened() as file:\n"
        "        [file.write('line\\n') for _ in range(4000)]\n"
        "except MachineError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, timeout=60)
    assert "File too large" in done.stdout and "--resume goes on" in done.stdout, done.stderr
    assert not (tmp_path / "out").exists()
    answers = AnswersFile(tmp_path / "out", {}, resume=True)
    with answers.opened() as file:
        file.write("last\n")
    assert answers.kept == Kept(819)
    assert (tmp_path / "out").read_text() == "line\n" * 819 + "last\n"


def test_answers_to_a_full_device(bundle_of: Bundles, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle_of("tiny-classify"), "-i", source, "-o", "/dev/full") == 5
    assert "No space left" in capsys.readouterr().err


def test_the_bar() -> None:
    console = Console({})
    console.err = io.StringIO()
    progress = Progress(console, 1000, 10)
    progress.read, progress.skipped = 600, 200
    assert progress.text(40, 20) == f"[{'█' * 14:<24}]  60%  50 answered, 2/s, 0:20 left"
    assert Progress(console, None).text(3, 1.5) == "3 answered, 2/s"
    assert list(Progress(console, 10).watch(iter("ab"))) == ["a", "b"]
