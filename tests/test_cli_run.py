"""``pinnace run``: one input, lines of a file or of standard input, JSON out, and the process it runs in."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pinnace.cli.inputs import INPUT_FIELDS, flag_of, read_options
from pinnace.cli.main import main
from pinnace.errors import UsageError
from pinnace.forms import FORMS
from pinnace.runtime.pipelines.pieces import pieces
from pinnace.runtime.pipelines.table import PIPELINES
from pinnace.spec import canonical_task
from tests.conftest import DATA, OpenPipeline, same
from tests.generation_bundles import MakeBundle, decoder_of

__all__ = ["decoder_of"]

ROOT = DATA.parent.parent
Bundles = Callable[[str], Path]
Cli = Callable[..., tuple[int, str, str]]

# Task, bundle, words of the command line, the same call in Python.
ONE: list[tuple[str, str, list[str], tuple[Any, dict[str, Any]]]] = [
    ("embed", "tiny-embed", ["hello"], ("hello", {})),
    ("mlm", "tiny-mlm", ["a [MASK] b", "--option", "top_k=2"], ("a [MASK] b", {"top_k": 2})),
    ("qa", "bert-glossary-qa", ["What is a pier?", "--context", "The word pier means a platform."],
     ({"question": "What is a pier?", "context": "The word pier means a platform."}, {})),
    ("ner", "bert-glossary-ner", ["pier: a platform.", "--option", "aggregation_strategy=simple"],
     ("pier: a platform.", {"aggregation_strategy": "simple"})),
    ("classify", "tiny-classify", ["good"], ("good", {})),
    ("classify", "tiny-multilabel", ["good", "--text-pair", "bad", "--option", "top_k=None"],
     ({"text": "good", "text_pair": "bad"}, {"top_k": None})),
    ("rerank", "tiny-rerank", ["boats", "--document", "a ship", "--document", "bread", "--task", "rerank"],
     ({"query": "boats", "documents": ["a ship", "bread"]}, {})),
    ("zero-shot", "tiny-nli", ["a ship", "--candidate-labels", "sea, land", "--task", "zero-shot"],
     ("a ship", {"candidate_labels": ["sea", "land"]})),
    ("mc", "tiny-choice", ["--prompt", "the boat", "--choice", "sank", "--choice", "flew"],
     ({"prompt": "the boat", "choices": ["sank", "flew"]}, {})),
    ("nsp", "tiny-nsp", ["it rained", "--text-pair", "it is wet"],
     ({"text": "it rained", "text_pair": "it is wet"}, {})),
    ("pretraining", "tiny-pretraining", ["a [MASK]"], ("a [MASK]", {})),
    ("generate", "tiny-generate", ["a ship", "--option", "max_new_tokens=5"], ("a ship", {"max_new_tokens": 5})),
]  # fmt: skip


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process; returns exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["run", *map(str, words)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_every_pipeline_can_be_run() -> None:
    assert set(FORMS) == set(PIPELINES) == {canonical_task(task) for task, *_ in ONE}
    assert {flag_of(field) for field in INPUT_FIELDS} >= {"context", "document", "choice", "candidate-labels"}


@pytest.mark.parametrize(("task", "bundle", "words", "call"), ONE, ids=[f"{task}-{name}" for task, name, *_ in ONE])
def test_one_input(
    cli: Cli, bundle_of: Bundles, open_pipeline: OpenPipeline, task: str, bundle: str, words: list[str], call: Any
) -> None:
    code, out, err = cli(bundle_of(bundle), *words)
    assert code == 0, err
    inputs, options = call
    want = json.loads(json.dumps(open_pipeline(task, bundle)(inputs, **options)))
    assert same(json.loads(out), want) and out.count("\n") == 1


@pytest.mark.parametrize(("task", "bundle", "words", "call"), ONE, ids=[f"{task}-{name}" for task, name, *_ in ONE])
def test_lines_give_what_lists_give(
    cli: Cli, bundle_of: Bundles, open_pipeline: OpenPipeline, tmp_path: Path, task: str, bundle: str,
    words: list[str], call: Any,
) -> None:  # fmt: skip
    inputs, options = call
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f"{json.dumps(inputs)}\n\n{json.dumps(inputs)}\n")
    said = [f"--option={json.dumps(options)}", "--task", task]
    code, out, err = cli(bundle_of(bundle), "--input", source, "--output", target, *said)
    assert (code, out) == (0, ""), err
    want = json.loads(json.dumps(open_pipeline(task, bundle)([inputs, inputs], **options)))
    assert same([json.loads(line) for line in target.read_text().splitlines()], want)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_line_may_have_labels_of_its_own(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("sea\n\nland\n")
    lines = tmp_path / "in.jsonl"
    lines.write_text('"a"\n{"text": "b", "candidate_labels": ["x", "y", "z"]}\n{"text": "c"}\n')
    words = [bundle_of("tiny-nli"), "--task", "zero-shot", "-i", lines]
    code, out, err = cli(*words, "--candidate-labels", f"@{labels}")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [sorted(one["labels"]) for one in found] == [["land", "sea"], ["x", "y", "z"], ["land", "sea"]]
    code, _, err = cli(*words, "--candidate-labels", "@lost.txt")
    assert code == 2 and "lost.txt" in err and "labels' file" in err
    code, _, err = cli(*words)
    assert code == 2 and "candidate_labels" in err


def test_plain_text_and_json_on_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch, bundle_of: Bundles) -> None:
    bundle = bundle_of("tiny-classify")
    feed(monkeypatch, b"good\r\n[bad]\n\n{odd}\n")
    code, plain, _ = cli(bundle)
    assert code == 0 and len(plain.splitlines()) == 3
    feed(monkeypatch, '"good"\n{"text": "[bad]"}\n"{odd}"'.encode("utf-8-sig"))
    assert cli(bundle, "-")[1] == plain
    feed(monkeypatch, b'"good"\n')
    assert cli(bundle, "--input", "-", "--lines", "text")[1] != plain.splitlines()[0] + "\n"
    feed(monkeypatch, b"good\n[bad]\n{odd}\n")
    told = json.loads(cli(bundle, "--json")[1])
    assert told["results"] == [json.loads(line) for line in plain.splitlines()]
    assert (told["count"], told["task"], told["precision"]) == (3, "text-classification", "fp32")


def test_one_object_is_whole_json_or_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch, bundle_of: Bundles) -> None:
    bundle = bundle_of("tiny-classify")
    code, out, _ = cli(bundle, "good", "--json", "--option", "function_to_apply=nope")
    assert (code, out) == (2, "")
    feed(monkeypatch, b'"good"\n"bad"\n{"text": 5}\n')
    code, out, err = cli(bundle, "--json")
    told = json.loads(out)
    assert code == 2 and told["count"] == len(told["results"]) == 2
    assert told["error"] in err and "line 3" in told["error"]
    feed(monkeypatch, b"")
    assert json.loads(cli(bundle, "--json")[1])["results"] == []


@pytest.mark.parametrize(
    ("name", "words", "data", "needles"),
    [
        ("tiny-nsp", [], b'{"text": "a", "text_pair": "b"}\n{"text": "a"}\n', ["line 2 of standard", "'text_pair'"]),
        ("tiny-nsp", [], b'{"text": "a", "text_pare": "b"}\n', ["'text_pare'", "Did you mean 'text_pair'?"]),
        ("tiny-nsp", [], b'{"text": "a", "text_pair": 3}\n', ["'text_pair' of line 1", "int"]),
        ("tiny-classify", ["--lines", "json"], b'"a"\n{"text": \n', ["line 2", "is not JSON", "--lines text"]),
        ("tiny-classify", ["--lines", "json"], b"[" * 100_000, ["nested too deeply"]),
        ("tiny-classify", [], b"a\nb\xff\n", ["line 2", "not UTF-8", "byte 2"]),
        ("tiny-classify", ["--option", "top_k"], b"a\n", ["--option is 'top_k'", "name=value"]),
        ("tiny-classify", ["--option", "topk=3"], b"a\n", ["'topk'", "Did you mean 'top_k'?"]),
        ("tiny-generate", ["--option", "top_h=3"], b"a\n", ["Pinnace does not have top_h", "leave it out"]),
        ("tiny-classify", ["--option", "{1}"], b"a\n", ["is not JSON"]),
        ("tiny-classify", ["--task", "qa"], b"a\n", ["text-classification", "question-answering"]),
        ("tiny-classify", ["--precision", "fp16"], b"a\n", ["fp16", "fp32"]),
        ("tiny-classify", ["--device", "cudda"], b"a\n", ["'cudda'", "cuda"]),
        ("tiny-classify", ["--context", "x"], b"", ["--context does not belong to text-classification", "--text-pair"]),
        ("tiny-classify", ["--text-pair", "x"], b"", ["needs TEXT"]),
        ("tiny-nsp", ["only"], b"", ["needs --text-pair", "for example"]),
        ("tiny-choice", ["x", "--prompt", "y"], b"", ["given twice"]),
        ("tiny-classify", ["a", "-i", "-"], b"", ["give one of them"]),
        ("tiny-classify", ["-i", f"{DATA}/qa_def.json"], b"", ["cannot read", "Did you mean", "qa_dev.json"]),
        ("tiny-classify", ["-i", str(DATA)], b"", ["it is a folder"]),
        ("tiny-classify", ["a", "-o", "lost/out"], b"", ["cannot write --output lost/out"]),
        ("tiny-classify", ["a", "-o", str(DATA)], b"", ["is a folder"]),
        ("bert-glossary-qa", ["hi", "-i", "-"], b"", ["both one input", "give one of them"]),
        ("bert-glossary-qa", ["hi", "--context", ""], b"", ["--context is empty"]),
        ("bert-glossary-qa", ["", "--context", "x"], b"", ["TEXT is empty"]),
        ("tiny-rerank", ["a", "--document", "b", "--document", "", "--task", "rerank"], b"", ["--document is empty"]),
        ("bert-glossary-qa", ["-i", f"{DATA}/qa_dev.json"], b"", ["line 1", "begins a JSON list", "python -c"]),
        ("tiny-classify", ["--lines", "json"], b'\n["a", "b"]\n', ["line 2", "begins a JSON list", "json.dumps(one)"]),
        ("tiny-classify", [], b'[\n"a",\n"b"]\n', ["line 1", "begins a JSON list", "--lines text"]),
        ("tiny-classify", [], b'[{"text": "a"}]\n', ["begins a JSON list"]),
        ("bert-glossary-qa", [], b'{"question": "a", "context": "b"}\n["c"]\n', ["line 2", "is a list"]),
        ("tiny-generate", ["--lines", "json"], b'[{"role": "user" "x"}]\n', ["line 1", "is not JSON", "delimiter"]),
        ("tiny-generate", ["--lines", "json"], b'["a", "b"]\n', ["begins a JSON list"]),
        ("tiny-generate", ["a", "--option", "cancellation=1"], b"", ["'cancellation' takes an object of a program"]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) and value else None,
)  # fmt: skip
def test_wrong_inputs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, bundle_of: Bundles, name: str, words: list[str], data: bytes,
    needles: list[str],
) -> None:  # fmt: skip
    feed(monkeypatch, data)
    code, _, err = cli(bundle_of(name), *words)
    assert code == 2 and "Traceback" not in err
    assert all(needle in err for needle in needles), err


def test_nothing_to_answer_on_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch, bundle_of: Bundles) -> None:
    feed(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    code, _, err = cli(bundle_of("tiny-classify"))
    assert code == 2 and "give TEXT, or --input FILE" in err


def test_a_source_without_inputs_is_told_and_no_error(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, bundle_of: Bundles, tmp_path: Path
) -> None:
    feed(monkeypatch, b"\n")
    code, out, err = cli(bundle_of("tiny-classify"))
    assert (code, out) == (0, "") and "standard input is empty; give TEXT" in err
    feed(monkeypatch, b"")
    code, out, err = cli(bundle_of("tiny-classify"), "-i", "-")
    assert (code, out) == (0, "") and "standard input is empty" in err
    source, target = tmp_path / "empty.jsonl", tmp_path / "out.jsonl"
    source.touch()
    code, out, err = cli(bundle_of("tiny-classify"), "-i", source, "-o", target)
    assert (code, out, target.read_bytes()) == (0, "", b"") and f"{source} is empty" in err


def test_a_conversation_is_a_line_of_json(cli: Cli, monkeypatch: pytest.MonkeyPatch, decoder_of: MakeBundle) -> None:
    talk = [{"role": "user", "content": "river"}]
    feed(monkeypatch, json.dumps(talk).encode())
    code, out, err = cli(decoder_of("apertus-ort"), "-q", "--option", "max_new_tokens=3")
    assert code == 0, err
    ((record,),) = [json.loads(line) for line in out.splitlines()]
    assert record["generated_text"][0] == talk[0] and record["generated_text"][1]["role"] == "assistant"


def test_the_remedy_for_a_list_gives_lines_that_are_answered(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    source, target = tmp_path / "LIST.json", tmp_path / "LINES.jsonl"
    asked = {"question": "What is a pier?", "context": "A pier is a platform."}
    source.write_text(json.dumps([{**asked, "answers": {"text": ["a platform"]}}], indent=1))
    code, _, err = cli(bundle_of("bert-glossary-qa"), "-i", source)
    command = next(line for line in err.splitlines() if "python -c" in line).replace("python", sys.executable, 1)
    assert code == 2 and subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, timeout=60).returncode == 0
    code, out, err = cli(bundle_of("bert-glossary-qa"), "-i", target)
    assert code == 0 and "platform" in json.loads(out)["answer"], err


def test_options_for_programs_are_not_offered(cli: Cli, bundle_of: Bundles) -> None:
    for name, known in (("tiny-classify", "top_k"), ("tiny-generate", "max_new_tokens")):
        code, _, err = cli(bundle_of(name), "a", "--option", "nonsense=1")
        offered = err.partition("known: ")[2].split(", ")
        assert code == 2 and known in offered and not {"cancellation", "shared_prefix", "generation"} & {*offered}


def test_a_flag_is_true_or_false(cli: Cli, bundle_of: Bundles) -> None:
    for word in ("no", '"false"', "FALSE"):
        code, out, err = cli(bundle_of("tiny-classify"), "good", "--option", f"return_all_scores={word}")
        assert (code, out) == (2, "") and "return_all_scores is" in err and "true or false" in err
    for word in ("true", "True"):
        code, out, _ = cli(bundle_of("tiny-classify"), "-q", "good", "--option", f"return_all_scores={word}")
        assert code == 0 and isinstance(json.loads(out), list)


def test_a_failed_run_leaves_the_old_answers(cli: Cli, bundle_of: Bundles, tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_bytes(b"good\n" * 3000 + b"\xff\n")
    target.write_text("old")
    code, out, err = cli(bundle_of("tiny-classify"), "-i", source, "-o", target)
    assert (code, out) == (2, "") and "line 3001" in err
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_what_stands_before_a_bad_line_is_answered(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, bundle_of: Bundles, tmp_path: Path
) -> None:
    feed(monkeypatch, b"good\n" * 50 + b"\xff\n" + b"good\n")
    code, out, err = cli(bundle_of("tiny-classify"))
    assert (code, out.count("\n")) == (2, 50) and "line 51" in err
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_bytes(b"good\n" * 3 + b"\xff\n")
    assert cli(bundle_of("tiny-classify"), "-i", source, "-o", target, "--resume")[0] == 2
    (kept,) = tmp_path.glob("*.partial")
    assert kept.read_text().count("\n") == 3


@pytest.mark.parametrize("most", [1, 2, 3, 4, 10])
def test_a_stream_that_fails_gives_what_came_before(most: int) -> None:
    def stream() -> Iterator[str]:
        yield from "abcd"
        raise UsageError("no more")

    found: list[str] = []
    with pytest.raises(UsageError, match="no more"):
        for piece in pieces(stream(), most, 1000):
            assert 1 <= len(piece) <= most
            found += piece
    assert found == list("abcd")
    assert list(pieces(iter(""), most, 1000)) == []
    assert [len(piece) for piece in pieces("abcd", 4, 2)] == [2, 2]


@pytest.mark.parametrize("link", [False, True])
def test_answers_do_not_take_the_place_of_the_input(cli: Cli, bundle_of: Bundles, tmp_path: Path, link: bool) -> None:
    source = target = tmp_path / "in.txt"
    source.write_text("good\n")
    if link:
        target = tmp_path / "link.txt"
        target.symlink_to(source)
    code, out, err = cli(bundle_of("tiny-classify"), "--input", source, "--output", target)
    assert (code, out) == (2, "") and "are the same file" in err
    assert source.read_text() == "good\n"


def test_options_are_json_python_words_or_texts() -> None:
    said = ["top_k=3", "a=null", "b=None", "c=True", "d=none", 'e=["x"]', "f=a=b", '{"g": 1.5}', "max-length=8"]
    want = {"top_k": 3, "a": None, "b": None, "c": True, "d": "none", "e": ["x"], "f": "a=b", "g": 1.5, "max_length": 8}
    assert read_options(said) == want
    with pytest.raises(UsageError):
        read_options(["=3"])


def test_a_warning_is_one_line(cli: Cli, bundle_of: Bundles) -> None:
    code, _, err = cli(bundle_of("tiny-classify"), "a", "--task", "zero-shot", "--candidate-labels", "x,y")
    assert code == 0
    warned = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1 and "entail" in warned[0]


def start(*words: object) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "pinnace", *map(str, words)], stdin=pipe, stdout=pipe, stderr=pipe,
                            cwd=ROOT)  # fmt: skip


def test_a_reader_that_leaves_is_no_error(bundle_of: Bundles, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("good\n" * 20_000)
    child = start("run", bundle_of("tiny-classify"), "-i", source)
    assert child.stdout is not None and child.stderr is not None
    assert json.loads(child.stdout.readline())
    child.stdout.close()
    err = child.stderr.read().decode()
    assert (child.wait(60), err) == (0, "")


def test_interruption_is_130(bundle_of: Bundles) -> None:
    child = start("run", bundle_of("tiny-classify"), "-", "--verbose")
    assert child.stderr is not None
    assert b"opened" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and err.decode().strip().endswith("interrupted")


def test_output_of_an_ascii_terminal_is_still_json(bundle_of: Bundles) -> None:
    words = [
        sys.executable,
        "-m",
        "pinnace",
        "run",
        bundle_of("bert-glossary-qa"),
        "Où?",
        "--context",
        "Où est le café?",
    ]
    environ = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "HOME": "/nowhere"}
    done = subprocess.run(list(map(str, words)), capture_output=True, env=environ, timeout=60)
    assert done.returncode == 0 and done.stdout.isascii()
    found = json.loads(done.stdout)
    assert found["answer"] == "Où est le café?"[found["start"] : found["end"]]
