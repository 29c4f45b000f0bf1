"""The command line: words, flags, variables, exit codes, and what is written where."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from pinnace import __version__
from pinnace.bench.request import Request
from pinnace.cli import machine as cli_machine
from pinnace.cli.commands import CALIBRATIONS, COMMANDS, EXPORT_PRECISIONS, LAYOUTS, QUANTIZED_PRECISIONS, SCHEME_NAMES
from pinnace.cli.flags import COMMON, Command, Flag, read_arguments
from pinnace.cli.main import main
from pinnace.cli.output import Console
from pinnace.errors import NumericalError, UsageError
from pinnace.json_text import to_json
from pinnace.quantize.judging.latency import NEW_TOKENS
from pinnace.quantize.request import MIN_SPEEDUP
from pinnace.runtime.checks import doctor
from pinnace.runtime.server.settings import Settings as ServeSettings
from tests.conftest import DATA
from tests.tiny_bundle import make_bundle

Cli = Callable[..., tuple[int, str, str]]
FLAGS = [
    pytest.param(command, flag, id=f"{command.name}-{flag.name}")
    for command in COMMANDS.values()
    for flag in command.all_flags
    if flag.name != "help"
]
# Forms that values take; the first that a flag accepts stands for them all.
FORMS_OF_VALUES = ("some", "2", "5%", "100ms", "name=some")
GOOD = {"--opset": "21", "--static": "batch=1,sequence=8", "--threads": "2", "--batch-tokens": "64", "--config": "a=1"}


def accepted(flag: Flag) -> str:
    for word in FORMS_OF_VALUES:
        with contextlib.suppress(UsageError):
            flag.read(word, f"--{flag.name}")
            return word
    raise AssertionError(f"--{flag.name} takes none of {FORMS_OF_VALUES}")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("PINNACE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process; returns exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def process(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, **options)


def test_version_overview_and_help(cli: Cli) -> None:
    assert cli("--version") == cli("-V") == (0, f"pinnace {__version__}\n", "")
    code, out, err = cli()
    assert (code, err) == (0, "") and all(f"  {name} " in out for name in COMMANDS)
    assert cli("--help")[1] == out == cli("help")[1]
    assert cli("help", "run") == cli("run", "--help") == cli("run", "-h")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_help_names_every_flag(cli: Cli, command: Command) -> None:
    code, out, _ = cli(command.name, "--help")
    assert code == 0 and command.usage in out and command.examples[0] in out
    assert all(flag.shown in out and flag.help in out for flag in command.all_flags)


@pytest.mark.parametrize(
    ("words", "code", "needles"),
    [
        (["exprt", "bert"], 2, ["'exprt'", "Did you mean 'export'?"]),
        (["--jsn"], 2, ["--jsn comes with a command", "export, quantize, run"]),
        (["version"], 2, ["unknown command 'version'", "pinnace --version"]),
        (["run", "--version"], 2, ["--version stands before the command", "pinnace --version"]),
        (["serve", "x", "--timeout", "0"], 2, ["--timeout is '0'", "a time such as"]),
        (["serve", "x", "--grace", "5m"], 2, ["--grace is '5m'", "a time such as"]),
        (["bench", "x", "--latency-bound", "5"], 2, ["--latency-bound is '5'", "with its unit"]),
        (["run", "", "text"], 2, ["needs BUNDLE"]),
        (["export", "bert", "--output="], 2, ["--output is empty"]),
        (["export"], 2, ["needs MODEL", "for example: pinnace export bert --task qa"]),
        (["export", "bert", "--tsk", "qa"], 2, ["'--tsk'", "Did you mean '--task'?"]),
        (["export", "bert", "--task=qaa"], 2, ["'qaa'", "Did you mean 'qa'?"]),
        (["export", "bert", "--task"], 2, ["--task needs a value"]),
        (["export", "bert", "--prec", "fp16"], 2, ["'--prec'", "Did you mean '--precision'?"]),
        (["export", "bert", "--precision", "fp15"], 2, ["precision 'fp15'", "Did you mean 'fp16'?"]),
        (["export", "bert", "--target", "onx"], 2, ["Did you mean 'onnx'?"]),
        (["export", "bert", "--layout", "hug"], 2, ["Did you mean 'hub'?"]),
        (["export", "bert", "--opset", "new"], 2, ["--opset is 'new'", "whole number"]),
        (["export", "bert", "--opset", "0"], 2, ["--opset is '0'"]),
        (["export", "bert", "--static", "batch"], 2, ["--static is 'batch'", "batch=1,sequence=128"]),
        (["export", "bert", "--static", "batch=x"], 2, ["batch of --static", "'x'"]),
        (["export", "bert", "--random-weights=yes"], 2, ["--random-weights is a switch", "'yes'"]),
        (["export", "bert", "two"], 2, ["'two' is one argument too many", "usage: pinnace export MODEL"]),
        (["tasks", "--device", "cpu"], 2, ["unknown flag of tasks '--device'"]),
        (["run"], 2, ["needs BUNDLE"]),
        (["run", "nowhere", "text"], 3, ["no folder", "nowhere", "pinnace export MODEL"]),
        (["verify", "nowhere"], 3, ["no folder", "nowhere"]),
        (["inspect", DATA / "tiny-mlm"], 3, ["is a checkpoint, not a bundle"]),
        (["run", DATA.parent, "text"], 3, ["is not a bundle", "manifest.json"]),
    ],
    ids=lambda value: " ".join(map(str, value))[-40:] if isinstance(value, list) else None,
)  # fmt: skip
def test_wrong_words_name_the_right_ones(cli: Cli, words: list[Any], code: int, needles: list[str]) -> None:
    got, out, err = cli(*words)
    assert (got, out) == (code, "")
    assert all(needle in err for needle in needles), err
    assert "error: " in err and "Traceback" not in err


@pytest.mark.parametrize(("command", "flag"), FLAGS)
def test_every_flag_has_a_variable_and_wins_over_it(command: Command, flag: Flag) -> None:
    words = ["x" for positional in command.positionals if positional.required]
    name = f"--{flag.name}"
    if flag.value or flag.choices:
        good = flag.choices[-1] if flag.choices else GOOD.get(name) or accepted(flag)
        want = flag.read(good, name)
        want = [want] if flag.repeated else want
        assert getattr(read_arguments(command, [*words, name, good], {}), flag.key) == want
        assert getattr(read_arguments(command, words, {flag.variable: good}), flag.key) == want
        assert getattr(read_arguments(command, words, {}), flag.key) is None
        assert getattr(read_arguments(command, words, {flag.variable: ""}), flag.key) is None
        if flag.choices:
            first = read_arguments(command, [*words, name, flag.choices[0]], {flag.variable: good})
            assert getattr(first, flag.key) == flag.choices[0]
            with pytest.raises(UsageError, match=flag.variable):
                read_arguments(command, words, {flag.variable: "nonsense"})
    else:
        assert getattr(read_arguments(command, [*words, name], {flag.variable: "0"}), flag.key) is True
        assert getattr(read_arguments(command, words, {flag.variable: "Yes"}), flag.key) is True
        assert getattr(read_arguments(command, words, {flag.variable: "off"}), flag.key) is False
        assert getattr(read_arguments(command, words, {flag.variable: ""}), flag.key) is False
        with pytest.raises(UsageError, match=f"{flag.variable} is 'perhaps'"):
            read_arguments(command, words, {flag.variable: "perhaps"})
    if flag.short:
        given = [f"-{flag.short}"] + (["some"] if flag.value else [])
        assert getattr(read_arguments(command, [*words, *given], {}), flag.key) in (True, "some")


def test_flags_stand_anywhere_and_two_dashes_end_them() -> None:
    read = read_arguments(COMMANDS["run"], ["-q", "folder", "--task", "qa", "text", "-v"], {})
    assert (read.bundle, read.text, read.task, read.quiet, read.verbose) == ("folder", "text", "qa", True, True)
    read = read_arguments(COMMANDS["run"], ["folder", "--", "--task"], {})
    assert (read.text, read.task) == ("--task", None)
    with pytest.raises(UsageError, match="goes after --"):
        read_arguments(COMMANDS["run"], ["folder", "-5 degrees"], {})


def test_a_bare_time_counts_seconds() -> None:
    serve = read_arguments(COMMANDS["serve"], ["x", "--timeout", "5", "--grace", "1.5"], {})
    assert (serve.timeout, serve.grace) == (5, 1.5)
    bench = read_arguments(COMMANDS["bench"], ["x", "--round-seconds", "0.2", "--latency-bound", "100ms"], {})
    assert (bench.round_seconds, bench.latency_bound) == (0.2, 0.1)


def test_home_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    read = read_arguments(COMMANDS["export"], ["bert", "--output=~/out", "--cache-dir", "~/cache"], {})
    assert (read.output, read.cache_dir) == ("/somewhere/out", "/somewhere/cache")
    assert read_arguments(COMMANDS["run"], ["b", "-o", "-"], {}).output == "-"


def test_common_flags_may_come_first(cli: Cli) -> None:
    assert cli("-q", "tasks") == cli("tasks", "-q")
    assert json.loads(cli("--json", "tasks")[1]) == json.loads(cli("tasks", "--json")[1])


def test_choices_are_those_of_the_builder() -> None:
    from pinnace.export import builder

    assert set(EXPORT_PRECISIONS) == set(builder.WRITTEN)
    assert set(LAYOUTS) == set(builder.FOLDERS)


def test_choices_are_those_of_the_quantizer() -> None:
    from pinnace.quantize import request, schemes, thresholds

    assert set(SCHEME_NAMES) == set(schemes.SCHEMES)
    assert set(QUANTIZED_PRECISIONS) == set(request.DEFAULTS)
    assert set(CALIBRATIONS) == set(thresholds.METHODS)


def raiser(error: BaseException) -> Callable[..., int]:
    def run(*_arguments: Any) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "needles"),
    [
        (ZeroDivisionError("a fault"), 1, ["unexpected ZeroDivisionError: a fault", "-v shows where"]),
        (MemoryError(), 5, ["not enough memory"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 5, ["not enough memory"]),
        (ImportError("libx.so: failed to map segment from shared object"), 5, ["not enough memory"]),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 5, ["No space left on device (/x)"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (NumericalError("NaN in logits"), 1, ["NaN in logits"]),
        (type("PanicException", (BaseException,), {})("rust"), 1, ["unexpected PanicException: rust"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_error_is_a_line_and_a_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, needles: list[str]
) -> None:
    monkeypatch.setattr(cli_machine, "tasks", raiser(error))
    got, out, err = cli("tasks")
    assert (got, out) == (code, "") and "Traceback" not in err
    assert all(needle in err for needle in needles), err
    if code == 1:
        assert "Traceback" in cli("tasks", "-v")[2]
        monkeypatch.setenv("PINNACE_VERBOSE", "1")
        assert "Traceback" in cli("tasks")[2]


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "moving", "coloured"),
    [
        ({}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"CI": "true"}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
    ids=["plain", "no-color", "ci", "dumb"],
)
def test_progress_and_colour_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], moving: bool, coloured: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    console = Console(environ)
    console.stage("tracing")
    console.log("done")
    console.error("bad")
    text = terminal.getvalue()
    assert ("\r\x1b[K" in text, "\x1b[31m" in text) == (moving, coloured)
    assert text.endswith("bad\n") and "tracing" in text
    console.quiet = True
    console.stage("more")
    console.log("more")
    assert terminal.getvalue() == text


def test_no_progress_line_where_there_is_no_terminal(cli: Cli, tmp_path: Path) -> None:
    _, _, err = cli("verify", make_bundle(tmp_path / "bundle"))
    assert "\r" not in err and "\x1b" not in err and "reading every file\n" in err


@pytest.mark.parametrize("name", ["inspect", "verify", "tasks", "doctor", "run"])
def test_every_command_names_the_next_one(
    cli: Cli, bundle_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    words: list[Any] = [name]
    if name in ("inspect", "verify"):
        words.append(make_bundle(tmp_path / "bundle"))
    elif name == "run":
        words += [bundle_of("tiny-classify"), "some text"]
    _, out, err = cli(*words)
    following = err.strip().splitlines()[-1].partition(": ")
    assert following[0].startswith("next") and following[2].split()[:2] in [["pinnace", c] for c in COMMANDS]
    assert out and cli(*words, "--quiet")[2] == ""


def test_json_is_one_object(cli: Cli, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    said = {name: json.loads(cli(name, bundle, "--json")[1]) for name in ("inspect", "verify")}
    assert said["inspect"]["task"] == "feature-extraction" and "fp32" in said["inspect"]["variants"]
    assert said["verify"]["ok"] is True and {"name", "ok", "detail", "exit_code"} <= set(said["verify"]["checks"][0])
    tasks = {row["task"]: row for row in json.loads(cli("tasks", "--json")[1])["tasks"]}
    assert tasks["question-answering"]["takes"] == ["TEXT", "--context"]
    assert {"level", "findings"} == set(json.loads(cli("doctor", "--json")[1]))


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">/dev/full"])
def test_closed_and_full_streams(closed: str) -> None:
    command = f"exec {sys.executable} -m pinnace tasks {closed}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, encoding="utf-8", cwd=DATA.parent.parent)
    assert done.returncode == (5 if "full" in closed else 0)
    assert "Traceback" not in done.stderr
    assert ("No space left" in done.stderr) == ("full" in closed)
    assert ("question-answering" in done.stdout) == (closed == "2>&-")


def test_json_never_holds_nan() -> None:
    with pytest.raises(NumericalError, match="NaN"):
        to_json({"score": float("nan")})
    assert to_json(["é", "\udc80"], ascii_only=True).isascii()


def test_verify_tells_damage(cli: Cli, bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle_of("tiny-nsp"), copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    code, out, err = cli("verify", copy)
    assert code == 3 and "FAIL  files" in out and "model.safetensors" in out
    assert "failed" in err and "files" in err
    assert "pinnace export MODEL" in err and "pinnace doctor" not in err
    code, out, err = cli("run", copy, "--text-pair", "b", "a")
    assert (code, out) == (3, "") and "model.safetensors" in err


def test_verify_tells_the_machine_from_the_bundle(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    code, _, err = cli("verify", make_bundle(tmp_path / "bundle"), "--device", "cuda")
    assert code == 5 and "pinnace doctor" in err and "pinnace export" not in err


@pytest.mark.parametrize("word", ["gpu", "GPU:1", "nvidia", "CUDA"])
def test_other_names_of_cuda_lead_to_it(cli: Cli, tmp_path: Path, word: str) -> None:
    code, _, err = cli("verify", make_bundle(tmp_path / "bundle"), "--device", word)
    assert code == 2 and "Did you mean 'cuda'?" in err and "cuda:N" in err


def test_doctor_fails_where_something_must_be_done(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor.Finding(doctor.FAIL, "disk", "it is full", "free some")
    monkeypatch.setattr(doctor, "diagnose", lambda: [finding])
    code, out, err = cli("doctor")
    assert code == 5 and "fail  disk  it is full" in out and "-> free some" in out and "pinnace doctor" in err


def test_common_flags_are_those_of_the_contract() -> None:
    assert [flag.name for flag in COMMON] == ["json", "quiet", "verbose", "help"]


def test_no_variable_asks_for_help_in_place_of_a_command() -> None:
    verify = COMMANDS["verify"]
    assert read_arguments(verify, ["x"], {"PINNACE_HELP": "1"}).bundle == "x"
    assert read_arguments(verify, ["x", "--help"], {}).help is True


def test_tasks_tell_which_checkpoints_lack_the_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "--init-missing" in line] == ["BertForMultipleChoice,"]
    assert main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tasks"]
    assert {row["task"]: row["untrained"] for row in rows if row["untrained"]} == {"multiple-choice": ["bert"]}


DEFAULTS = {
    ("quantize", "min-speedup"): MIN_SPEEDUP,
    ("quantize", "new-tokens"): NEW_TOKENS,
    **{("serve", name): getattr(ServeSettings, name.replace("-", "_")) for name in (
        "host", "port", "replicas", "slots", "max-concurrent", "timeout", "grace", "max-request-bytes",
    )},
    **{("bench", name): getattr(Request, name) for name in ("percentile", "rounds", "starts", "seed")},
    ("bench", "round-seconds"): Request.round_s,
}  # fmt: skip


@pytest.mark.parametrize(("place", "default"), DEFAULTS.items(), ids=["-".join(place) for place in DEFAULTS])
def test_the_help_states_the_default(place: tuple[str, str], default: Any) -> None:
    (flag,) = [flag for flag in COMMANDS[place[0]].flags if flag.name == place[1]]
    (said,) = re.findall(r"([\w.%]+)(?:, [^;]+,)? by default", flag.help)
    assert flag.read(said, "the help") == default


def test_tasks_and_version_import_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "numpy", "transformers", "tokenizers", "huggingface_hub")
    code = (
        f"import sys; from pinnace.cli.main import main; main(['tasks', '-q']); print({{*{heavy}}} & {{*sys.modules}})"
    )
    assert process("-c", code, cwd=DATA.parent.parent).stdout.strip().endswith("set()")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(("words", "code"), [("tasks", 0), ("frobnicate", 2), ("inspect nothere", 3)])
def test_logs_that_cannot_be_written_change_no_exit_code(words: str, code: int) -> None:
    command = f"exec {sys.executable} -m pinnace {words} 2>/dev/full"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, encoding="utf-8", cwd=DATA.parent.parent)
    assert done.returncode == code
    assert ("question-answering" in done.stdout) == (words == "tasks")


def test_an_interruption_while_the_program_is_loaded_is_told_like_a_later_one() -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pinnace.cli.commands': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from pinnace.__main__ import run\n"
        "sys.exit(run())"
    )
    done = process("-c", code, cwd=DATA.parent.parent)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
