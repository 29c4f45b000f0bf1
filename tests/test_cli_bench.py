"""``pinnace bench`` and ``pinnace compare``: flags that do not fit, gates, and files that are written."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

import pinnace.bench.profile.run
import pinnace.bench.run
import pinnace.quantize
from pinnace.bench.plan import make_plan
from pinnace.bench.report.files import write_whole
from pinnace.bench.request import Request
from pinnace.bench.results import Candidate, Measure, Result
from pinnace.bench.run import against
from pinnace.cli.bench_flags import as_counts, as_pairs, as_percentile, as_seed, as_words
from pinnace.cli.commands import COMMANDS
from pinnace.cli.flags import read_arguments
from pinnace.cli.main import main
from pinnace.errors import UsageError
from tests.bench_result import encoder_result
from tests.tiny_bundle import make_bundle, write_manifest

BundleOf = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("PINNACE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "tiny"))


def never(*_arguments: Any, **_options: Any) -> NoReturn:
    raise AssertionError("the work began")


def measured(monkeypatch: pytest.MonkeyPatch, result: Result) -> None:
    """Let ``pinnace bench`` find a result without measuring."""
    monkeypatch.setattr(pinnace.bench.run, "bench", lambda *_arguments: result)


def candidate(name: str, model: str, precision: str) -> Candidate:
    return Candidate(name, "pinnace", model, precision, "cpu", 1, {}, "", {"bundle_bytes": Measure(8.0)})


def two_bundles(first: Sequence[str], other: Sequence[str], names: tuple[str, str] = ("new", "old")) -> Result:
    labels = names if len(set(names)) == 2 else ("after", "before")
    sides = zip(labels, names, (first, other), strict=True)
    made = tuple(candidate(f"{label} {one}", name, one) for label, name, side in sides for one in side)
    return dataclasses.replace(encoder_result(), candidates=made, points=(), checks={})


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (["fp32", "int8"], ["int8"]),
        (["fp32"], ["fp32", "int8", "fp16"]),
        (["fp32", "int8", "fp16", "int4"], ["int4", "fp32"]),
        (["fp32", "int8"], ["fp32", "int8"]),
    ],
)
@pytest.mark.parametrize("names", [("new", "old"), ("before", "old"), ("same", "same")])
def test_bundles_of_other_variants_are_compared_at_those_they_share(
    first: list[str], other: list[str], names: tuple[str, str]
) -> None:
    rows = against(two_bundles(first, other, names))
    labels = names if len(set(names)) == 2 else ("after", "before")
    shared = [one for one in first if one in other]
    assert [row.candidate for row in rows] == [f"{labels[0]} {one}" for one in shared]
    assert [row.other for row in rows] == [f"{labels[1]} {one}" for one in shared]


def test_bundles_without_a_common_variant_are_refused(tiny: str, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", golden=False)
    write_manifest(other, lambda data: data.update(variants={"fp16": data["variants"]["fp32"]}))
    with pytest.raises(UsageError, match=r"no variant in common: tiny has fp32; other has fp16"):
        make_plan(tiny, Request(against=str(other)), tmp_path / "texts.json")


def test_a_gate_does_not_pass_what_was_not_judged(
    monkeypatch: pytest.MonkeyPatch, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "few.json"
    file.write_text(encoder_result().to_json())
    assert main(["compare", str(file), str(file), "-q"]) == 0
    assert main(["compare", str(file), str(file), "--fail-above", "5%", "-q"]) == 1
    said = capsys.readouterr().err
    assert "load_s of int8 was not judged" in said
    assert "--starts 5" in said
    assert "--rounds 5" in said
    measured(monkeypatch, two_bundles(["fp32"], ["fp32"]))
    assert main(["bench", tiny, "--against", tiny, "--fail-above", "5%", "-q"]) == 0
    measured(monkeypatch, two_bundles(["fp32"], []))
    assert main(["bench", tiny, "--against", tiny, "--fail-above", "5%", "-q"]) == 1
    assert "nothing was judged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fail-above", "5%"], "--fail-above (or PINNACE_FAIL_ABOVE) has no effect without --against"),
        (["--length", "8", "--input", "texts.txt"], "--length has no effect"),
        (["--length", "mixed", "--input", "texts.txt"], "--length has no effect"),
        (["--latency-bound", "1s"], "without --scenario server"),
        (["--percentile", "90%", "--scenario", "offline"], "without --scenario server"),
        (["--config", "num_hidden_layers=1"], "without --random-weights"),
        (["--task", "qa"], "without --random-weights"),
        (["--peer-model", "llama.cpp=some.gguf"], "add --peers llama.cpp=PYTHON"),
        (["--peer-model", "lama.cpp=some.gguf"], "Did you mean 'llama.cpp'?"),
        (["--percentile", "100%"], "--percentile is '100%'"),
        (["--percentile", "0"], "--percentile is '0'"),
        (["--scenario", ","], "--scenario is ','"),
        (["--device", " , "], "--device is ' , '"),
        (["--output", "nodir/r.json"], "cannot write --output nodir/r.json: there is no folder nodir"),
        (["--csv", "nodir/r.csv"], "cannot write --csv"),
        (["--markdown", "."], "--markdown . is a folder"),
        (["--html", "-"], "--html - is standard output"),
        (["--png", "nodir/r.png"], "cannot write --png"),
    ],
)
def test_what_would_have_no_effect_or_no_place_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tiny: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.setattr(pinnace.bench.run, "measure", never)
    assert main(["bench", tiny, *words, "-q"]) == 2
    assert said in capsys.readouterr().err


def test_reports_of_other_commands_have_a_place_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pinnace.bench.profile.run, "profile_bundle", never)
    monkeypatch.setattr(pinnace.quantize, "quantize", never)
    assert main(["profile", tiny, "--html", "nodir/p.html"]) == 2
    assert main(["quantize", tiny, "--report", "nodir/r.json"]) == 2
    assert capsys.readouterr().err.count("there is no folder nodir") == 2


def test_a_result_is_shown_although_a_file_fails(
    monkeypatch: pytest.MonkeyPatch, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()

    def bench(*_arguments: Any) -> Result:
        folder.rmdir()
        return encoder_result()

    monkeypatch.setattr(pinnace.bench.run, "bench", bench)
    assert main(["bench", tiny, "--output", "gone/r.json", "-q"]) == 5
    shown = capsys.readouterr()
    assert "each process" in shown.out
    assert "cannot write gone/r.json" in shown.err


def test_files_are_written_although_nobody_reads_the_result(
    monkeypatch: pytest.MonkeyPatch, tiny: str, tmp_path: Path
) -> None:
    def closed(*_arguments: Any) -> NoReturn:
        raise BrokenPipeError

    measured(monkeypatch, encoder_result())
    monkeypatch.setattr("pinnace.bench.tables.render", closed)
    monkeypatch.setattr(os, "dup2", lambda *_arguments: None)
    assert main(["bench", tiny, "--output", "r.json", "-q"]) == 0
    assert Result.read(tmp_path / "r.json").run == encoder_result().run


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Open at both ends, so that a failure does not wait for ever.
    descriptor = os.open(pipe, os.O_RDWR)
    try:
        write_whole(pipe, "text")
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert os.read(descriptor, 10) == b"text"
    finally:
        os.close(descriptor)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_paths_of_peers_do_not_depend_on_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("HOME", str(tmp_path))
    read = as_pairs("--peers", "a=peers/python,b=~/peers/python,c=python3")
    assert read == {"a": str(tmp_path / "peers/python"), "b": str(tmp_path / "peers/python"), "c": "python3"}


def test_lists_name_each_thing_once(tiny: str, tmp_path: Path) -> None:
    assert as_words("--precision", "fp32, int8,fp32") == ("fp32", "int8")
    assert as_counts("--threads", "2,1,02") == (2, 1)
    assert (as_seed("--seed", "0"), as_seed("--seed", "7")) == (0, 7)
    with pytest.raises(UsageError, match="'-1'; expected a whole number of at least 0"):
        as_seed("--seed", "-1")
    assert next(flag for flag in COMMANDS["bench"].flags if flag.name == "seed").convert is as_seed
    assert as_percentile("--percentile", "99.9%") == pytest.approx(0.999)
    plan = make_plan(tiny, Request(precisions=("fp32", "fp32"), threads=(1,)), tmp_path / "texts.json")
    assert [one.name for one in plan.candidates] == ["fp32"]


def test_a_decoder_s_tokens_are_counted_before_the_work(bundle_of: BundleOf, tmp_path: Path) -> None:
    for asked in (Request(output_tokens=(1_000_000,)), Request(prompts=(1_000_000,))):
        with pytest.raises(UsageError, match="tokens are more than tiny-generate takes"):
            make_plan(bundle_of("tiny-generate"), asked, tmp_path / "texts.json")


def test_inputs_are_checked_before_the_work(
    monkeypatch: pytest.MonkeyPatch, bundle_of: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pinnace.bench.run, "measure", never)
    words = ["bench", str(bundle_of("bert-glossary-qa")), "-q"]
    assert main([*words, "--length", "mixed"]) == 2
    assert "question-answering needs context too" in capsys.readouterr().err
    lines = tmp_path / "bad.jsonl"
    lines.write_text('{"question": "What?", "context": "This."}\n{"question": 3, "context": "This."}\n')
    assert main([*words, "--input", str(lines)]) == 2
    assert "line 2 of" in capsys.readouterr().err


def test_an_export_of_random_weights_does_not_read_this_command_s_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def run_child(words: list[str], *, threads: int, variables: dict[str, str]) -> None:
        assert threads >= 1
        seen.append((words, {**os.environ, **variables}))

    monkeypatch.setenv("PINNACE_PRECISION", "fp32,fp32")
    monkeypatch.setenv("PINNACE_QUIET", "1")
    monkeypatch.setenv("PINNACE_OUTPUT", str(tmp_path / "r.json"))
    monkeypatch.setenv("PINNACE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PINNACE_LARGE_PAGES", "0")
    monkeypatch.setattr(pinnace.bench.run, "run_child", run_child)
    measured(monkeypatch, encoder_result())
    assert main(["bench", "--random-weights", "bert", "--task", "qa"]) == 0
    ((words, environ),) = seen
    given: SimpleNamespace = read_arguments(COMMANDS["export"], words[4:], environ)
    assert (given.task, given.precision, given.cache_dir) == ("question-answering", None, str(tmp_path))
    assert environ["PINNACE_LARGE_PAGES"] == "0"


def test_an_unknown_task_of_random_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pinnace.bench.run, "run_child", never)
    assert main(["bench", "--random-weights", "bert", "--task", "bogus"]) == 2
    assert "unknown task 'bogus'" in capsys.readouterr().err
