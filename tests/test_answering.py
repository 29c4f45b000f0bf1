"""``pinnace run --on-error write`` and ``--keep-field``: every line has a record in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinnace.cli import lines as cli_lines
from pinnace.cli.answering import Answering
from pinnace.cli.inputs import Item
from pinnace.cli.main import main
from pinnace.errors import InputError, MachineError, NumericalError, PinnaceError, UsageError
from pinnace.runtime.pipelines.pieces import pieces

Bundles = Callable[[str], Path]
Cli = Callable[..., tuple[int, list[Any], str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run and give the exit code, the records on standard output, and standard error."""

    def run(*words: object) -> tuple[int, list[Any], str]:
        code = main(["run", *map(str, words)])
        shown = capsys.readouterr()
        return code, [json.loads(line) for line in shown.out.splitlines()], shown.err

    return run


class Fake:
    """A pipeline that doubles numbers in pieces: "form" fails at the check, "input" and "number" when it computes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.runs = 0

    def check_options(self, options: Any) -> None:
        assert options == {}

    def check_input(self, value: Any, place: str) -> Any:
        if value == "form":
            raise InputError(f"{place} is wrong")
        return value

    def __call__(self, values: Any, **_options: Any) -> Any:
        found = self._stream(self.check_input(value, "?") for value in values)
        return list(found) if isinstance(values, list) else found

    def _stream(self, values: Iterable[Any]) -> Iterator[Any]:
        for piece in pieces(values, self.most, 1000):
            self.runs += 1
            for word, error in (("input", InputError), ("number", NumericalError), ("machine", MachineError)):
                if word in piece:
                    raise error(f"no {word}")
            yield from (2 * value for value in piece)


WORDS = ("form", "input", "number", "line")


def items_of(values: Iterable[Any]) -> Iterator[Item]:
    for number, value in enumerate(values, 1):
        item = Item(value, {}, f"line {number}", number, kept={"id": -number})
        yield item.failed(InputError("no line")) if value == "line" else item


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 9), st.sampled_from(WORDS)), max_size=40), st.integers(1, 7))
def test_whatever_fails_every_line_has_its_record(values: list[Any], most: int) -> None:
    answering = Answering(Fake(most), {}, records=True, write_errors=True)
    found = list(answering.answers(items_of(values)))
    assert len(found) == len(values)
    for number, (value, record) in enumerate(zip(values, found, strict=True), 1):
        if value in WORDS:
            said = f"line {number} is wrong" if value == "form" else f"line {number}: no {value}"
            said = "no line" if value == "line" else said
            assert record == {"error": said, "line": number, "id": -number}
            assert next(iter(record)) == "error"
        else:
            assert record == {"id": -number, "answer": 2 * value}
    assert answering.failed == sum(value in WORDS for value in values)


@pytest.mark.parametrize("value", WORDS)
def test_else_the_first_failure_ends_the_run(value: str) -> None:
    answering = Answering(Fake(1), {}, records=False, write_errors=False)
    found = []
    with pytest.raises(PinnaceError, match=r"no line|line 3"):
        for answer in answering.answers(items_of([1, 2, value, 3])):
            found.append(answer)
    assert found == [2, 4] and answering.failed == 0


def test_a_failure_of_the_machine_ends_the_run_anyway() -> None:
    answering = Answering(Fake(2), {}, records=False, write_errors=True)
    with pytest.raises(MachineError):
        list(answering.answers(items_of([1, "input", 3, "machine"])))


def test_few_failures_cost_few_runs() -> None:
    fake = Fake(512)
    values: list[Any] = [1] * 511 + ["input"]
    assert len(list(Answering(fake, {}, records=False, write_errors=True).answers(items_of(values)))) == 512
    assert fake.runs < 25, "each half once, and not each line"


def test_wrong_lines_leave_their_errors(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(
        b'{"id": 1, "text": "good"}\n\n{"id": 2, "text": 5}\n{bad\n\xff\n{"id": 3}\n["a"]\n{"text": "no id"}\n'
        b'{"id": 4, "text": "x", "other": 1}\n{"id": [5], "text": "bad"}\n'
    )
    words = [bundle_of("tiny-classify"), "-i", source, "-o", target, "--keep-field", "id"]
    code, _, err = cli(*words)
    assert code == 2 and "line 3" in err and not target.exists()
    code, _, err = cli(*words, "--on-error", "write")
    assert code == 1 and "7 of 9 lines have an error in place of an answer" in err
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record.get("id") for record in records] == [1, 2, None, None, 3, None, None, 4, [5]]
    assert [record.get("line") for record in records] == [None, 3, 4, 5, 6, 7, 8, 9, None]
    needles = ("is int", "is not JSON", "not UTF-8", "has no 'text'", "is a list", "no field 'id'", "'other'")
    for record, needle in zip(records[1:8], needles, strict=True):
        assert needle in record["error"] and f"line {record['line']} " in record["error"].replace(":", " ")
    assert all(record["answer"]["label"] for record in (records[0], records[-1]))
    # What is kept changes no answer.
    _, ((alone,),), _ = cli(bundle_of("tiny-classify"), "good")
    assert records[0]["answer"] == pytest.approx(alone)


def test_what_only_the_run_finds_out_leaves_an_error(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("a [MASK]\nno mask\nthe [MASK] is green\n")
    code, found, err = cli(bundle_of("tiny-mlm"), "-i", source, "--on-error", "write", "--option", "top_k=2")
    assert code == 1 and "1 of 3" in err
    assert [len(found[i]) for i in (0, 2)] == [2, 2] and found[1]["line"] == 2 and "no mask" in found[1]["error"]


def test_a_line_is_to_blame_for_its_own_options_alone(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        '"a"\n{"text": "b", "candidate_labels": []}\n{"text": "c", "candidate_labels": ["x", "y"]}\n"d"\n'
    )
    words = [bundle_of("tiny-nli"), "--task", "zero-shot", "-i", source, "--on-error", "write"]
    code, found, _ = cli(*words, "--candidate-labels", "sea,land")
    assert code == 1 and [record.get("line") for record in found] == [None, 2, None, None]
    assert [sorted(found[i]["labels"]) for i in (0, 2, 3)] == [["land", "sea"], ["x", "y"], ["land", "sea"]]
    assert found[1]["error"].startswith(f"line 2 of {source}: candidate_labels is []")
    # Labels for all lines are not needed where those that lack them are told.
    code, found, err = cli(*words)
    assert code == 1 and [record.get("line") for record in found] == [1, 2, None, 4]
    assert found[0]["error"].startswith(f"line 1 of {source}: candidate_labels is None")
    code, found, err = cli(*words[:-2])
    assert (code, found) == (2, []) and "line 1" in err
    # What is wrong for all lines ends the run, whatever lines have of their own.
    for labels in ([], ["--candidate-labels", "sea,land"]):
        code, found, err = cli(*words, *labels, "--option", "multi_label=5")
        assert (code, found) == (2, []) and "multi_label" in err and str(source) not in err


@pytest.mark.parametrize("mode", ["stop", "write"])
def test_an_error_of_the_run_names_its_line(cli: Cli, bundle_of: Bundles, tmp_path: Path, mode: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n\n\n" + '"a [MASK]"\n' * 700 + '"no mask"\n"a [MASK]"\n')
    code, found, err = cli(bundle_of("tiny-mlm"), "-i", source, "--on-error", mode)
    said = f"line 704 of {source} has no mask"
    if mode == "stop":  # what stands before it is answered
        assert code == 2 and len(found) == 700 and said in err
    else:
        assert code == 1 and len(found) == 702 and found[700]["error"].startswith(said)
    source.write_text('"good"\n"bad \\ud800"\n')
    code, found, err = cli(bundle_of("tiny-classify"), "-i", source, "--on-error", mode)
    place = f"line 2 of {source}"
    assert place in (err if mode == "stop" else found[1]["error"]) and code == (2 if mode == "stop" else 1)


@pytest.mark.parametrize("value", ["NaN", "1e999", '[{"a": -Infinity}]'])
def test_what_json_cannot_hold_is_not_kept(cli: Cli, bundle_of: Bundles, tmp_path: Path, value: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"id": 1, "text": "a"}}\n{{"id": {value}, "text": "b"}}\n{{"id": 3, "text": "c"}}\n')
    code, found, _ = cli(bundle_of("tiny-classify"), "-i", source, "--on-error", "write", "--keep-field", "id")
    assert code == 1 and [record.get("id") for record in found] == [1, None, 3]
    assert found[1]["line"] == 2 and "NaN or infinity" in found[1]["error"] and "line 2" in found[1]["error"]


def test_a_far_too_long_line_is_read_past(
    cli: Cli, bundle_of: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_lines, "MAX_LINE_BYTES", 100)
    source = tmp_path / "in.txt"
    source.write_text("good\n" + "x" * 1234 + "\nbad\n" + "y" * 100)
    code, found, _ = cli(bundle_of("tiny-classify"), "-i", source, "--on-error", "write")
    assert code == 1 and [record.get("line") for record in found] == [None, 2, None, None]
    assert "longer than 100 bytes" in found[1]["error"]


def test_an_interrupted_run_goes_on_past_the_bad_line(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('"a"\n{bad\n"c"\n{bad\n')
    words = [bundle_of("tiny-classify"), "-i", source, "-o", target, "--resume"]
    code, _, err = cli(*words)
    assert code == 2 and "1 answers are kept" in err and "--on-error write" in err
    code, _, err = cli(*words, "--on-error", "write")
    assert code == 1 and "2 of 4 lines" in err and "1 answers are there already" in err
    assert [line.startswith('{"error": ') for line in target.read_text().splitlines()] == [False, True, False, True]
    # Errors of the part before count too.
    (tmp_path / "again.jsonl").write_text("")
    source.write_text('{bad\n"b"\n')
    code, _, _ = cli(*words, "--on-error", "write")
    assert code == 1 and len(target.read_text().splitlines()) == 2


def test_flags_for_lines_alone(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    bundle = bundle_of("tiny-classify")
    for words in (["--keep-field", "id"], ["--on-error", "write"]):
        code, _, err = cli(bundle, "good", *words)
        assert code == 2 and "go with lines" in err
    for name in ("answer", "error", "line"):
        code, _, err = cli(bundle, "-i", "-", "--keep-field", name)
        assert code == 2 and f"--keep-field {name}" in err
    source = tmp_path / "in.txt"
    source.write_text("good\n")
    code, _, err = cli(bundle, "-i", source, "--keep-field", "id")
    assert code == 2 and "plain text" in err
    code, _, err = cli(bundle, "-i", source, "--lines", "text", "--keep-field", "id")
    assert code == 2 and "plain text" in err
    source = tmp_path / "in"
    source.write_text("good\n")
    code, _, err = cli(bundle, "-i", source, "--keep-field", "id", "--on-error", "write")
    assert code == 2 and "plain text" in err


def test_a_field_of_the_task_may_be_kept_too(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "good", "id": "ä"}\n"bad"\n')
    words = ["--keep-field", "text", "--keep-field", "text"]
    code, found, _ = cli(bundle_of("tiny-classify"), "-i", source, *words, "--keep-field", "id", "--on-error", "write")
    assert code == 1 and list(found[0]) == ["text", "id", "answer"] and found[0]["id"] == "ä"
    assert found[1]["text"] == "bad" and "no field 'id'" in found[1]["error"]


def test_a_refusal_of_the_whole_file_is_none_of_a_line(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    source = tmp_path / "in.json"
    source.write_text('["a", "b"]\n')
    code, found, err = cli(bundle_of("tiny-classify"), "-i", source, "--on-error", "write")
    assert (code, found) == (2, []) and "begins a JSON list" in err
    with pytest.raises(UsageError):
        next(cli_lines.items_of_lines("text-classification", str(tmp_path), "auto", {}))
