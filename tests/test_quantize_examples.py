"""Examples from files and from the package: every form, mistakes named with their place, splits that leak nothing."""

from __future__ import annotations

import json
import os
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinnace.errors import InputError, PinnaceError, UsageError
from pinnace.forms import FORMS
from pinnace.quantize.examples import files as example_files
from pinnace.quantize.examples.defaults import passages
from pinnace.quantize.examples.example import Example, normalized
from pinnace.quantize.examples.forms import with_mask
from pinnace.quantize.examples.labels import LABELS
from pinnace.quantize.examples.source import Examples, read_examples, split
from pinnace.spec import TASK_ALIASES
from tests.conftest import DATA

ROOT = Path(__file__).resolve().parent.parent
Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return path

    return write


def test_the_sets_of_the_tests() -> None:
    short = read_examples(DATA / "qa_dev.json", "qa")
    assert (short.task, len(short), short.labelled, short.source) == ("question-answering", 600, True, "qa_dev.json")
    assert short[0].label == ("orthopedics",)
    raw = json.loads((DATA / "qa_dev.json").read_text("utf-8"))
    assert [not example.label for example in short] == [one["is_impossible"] for one in raw]
    assert short[1].input == {"question": raw[1]["question"], "context": raw[1]["context"]}
    entities = read_examples(DATA / "ner_dev.json", "ner")
    assert entities[0].label[:2] == ((0, 3, "TERM"), (5, 49, "DEF"))
    assert isinstance(entities[0].input, str)
    lines = read_examples(DATA / "lm_dev.txt", "generate")
    assert len(lines) == 300 and lines[0].input == "hoofer (noun): a professional dancer. Also called stepper."


def test_nested_squad(written: Written) -> None:
    squad = {
        "version": "v2.0",
        "data": [
            {
                "title": "Boats",
                "paragraphs": [
                    {
                        "context": "A pinnace is a small boat.",
                        "qas": [
                            {
                                "id": "1",
                                "question": "What is it?",
                                "answers": [{"text": "a small boat", "answer_start": 13}],
                            },
                            {
                                "id": "2",
                                "question": "Who built it?",
                                "is_impossible": True,
                                "answers": [],
                                "plausible_answers": [{"text": "pinnace", "answer_start": 2}],
                            },
                        ],
                    }
                ],
            }
        ],
    }
    found = read_examples(written("squad.json", squad), "qa")
    assert [example.label for example in found] == [("a small boat",), ()]
    assert found[1].input == {"question": "Who built it?", "context": "A pinnace is a small boat."}
    assert found[1].place == "question 1 of paragraph 0 of article 0 of data of squad.json"


@pytest.mark.parametrize(
    ("task", "item", "taken", "label"),
    [
        ("classify", {"text": "It works.", "label": "good"}, "It works.", "good"),
        ("classify", {"text": "It", "text_pair": "works.", "label": 1}, {"text": "It", "text_pair": "works."}, 1),
        ("classify", {"text": "It works.", "label": ["good", "short"]}, "It works.", ("good", "short")),
        ("classify", {"text": "It works.", "label": 0.25}, "It works.", 0.25),
        ("ner", {"text": "Ada", "entities": [{"start": 0, "end": 3, "label": "PER"}]}, "Ada", ((0, 3, "PER"),)),
        ("ner", {"text": "Ada", "entities": []}, "Ada", ()),
        (
            "rerank",
            {"query": "q", "documents": ["a", "b"], "relevant": 1},
            {"query": "q", "documents": ["a", "b"]},
            (1,),
        ),
        ("mc", {"prompt": "p", "choices": ["a", "b"], "label": 1}, {"prompt": "p", "choices": ["a", "b"]}, 1),
        ("nsp", {"text": "a", "text_pair": "b", "is_next": True}, {"text": "a", "text_pair": "b"}, True),
        ("mlm", {"text": "A [MASK].", "words": "boat"}, "A [MASK].", ("boat",)),
        (
            "qa",
            {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0]}},
            {"question": "q", "context": "c"},
            ("c",),
        ),
        ("qa", {"question": "q", "context": "c", "answers": "c", "id": "7"}, {"question": "q", "context": "c"}, ("c",)),
        ("qa", {"question": "q", "context": "c", "is_impossible": True}, {"question": "q", "context": "c"}, ()),
        ("embed", "It works.", "It works.", None),
        ("pretraining", {"text": "[MASK]", "text_pair": None}, "[MASK]", None),
    ],
)
def test_forms_of_one_example(written: Written, task: str, item: Any, taken: Any, label: Any) -> None:
    for name, content in (
        ("a.jsonl", json.dumps(item) + "\n"),
        ("a.json", [item]),
        ("b.json", json.dumps(item) + "\n\n" + json.dumps(item)),
    ):
        found = read_examples(written(name, content), task)[0]
        assert (found.input, found.label) == (taken, label)


def test_candidate_labels_come_with_an_example(written: Written) -> None:
    found = read_examples(written("y.jsonl", '{"text": "two", "candidate_labels": ["a", "b"]}\n'), "zero-shot")
    assert (found[0].input, found[0].options) == ("two", {"candidate_labels": ["a", "b"]})
    with pytest.raises(InputError, match=r"line 1 of z\.jsonl has no 'candidate_labels'"):
        read_examples(written("z.jsonl", '"one"\n'), "zero-shot")


def test_lines_and_paragraphs(written: Written) -> None:
    path = written("t.txt", "\ufefffirst line\r\nsecond\r\n\r\nthird\r\n")
    assert [e.input for e in read_examples(path, "embed")] == ["first line", "second", "third"]
    found = read_examples(path, "generate")
    assert [(e.input, e.place) for e in found] == [
        ("first line\nsecond", "line 1 of t.txt"),
        ("third", "line 4 of t.txt"),
    ]
    assert [e.input for e in read_examples(written("l.txt", "one\ntwo\n"), "generate")] == ["one", "two"]


@pytest.mark.parametrize(
    ("task", "name", "content", "words"),
    [
        ("embed", "a.txt", "", "a.txt holds no example of feature-extraction; expected at least one"),
        ("embed", "a.csv", "text,label\n", "a.csv is a table, .* write it as JSON lines"),
        ("embed", "a.Parquet", b"PAR1\xff", "a.Parquet is a table, .* write it as JSON lines"),
        (
            "classify",
            "a.txt",
            '\n{"text": "a", "label": 1}\nb\n',
            "a.txt begins with a JSON object, .* rename it to a.jsonl",
        ),
        ("embed", "a.txt", b"fine\n\xff\xfe\n", "line 2 of .*a.txt is not UTF-8 text .byte 6.; convert the file"),
        ("embed", "a.jsonl", '"one"\n{"text": \n', "line 2 of a.jsonl is not JSON: .*; correct it"),
        ("embed", "a.jsonl", "[" * 100_000, "line 1 of a.jsonl is not JSON: nested too deeply"),
        ("embed", "a.json", '{"text": "x"}', "a.json is a JSON dict, expected a list of examples"),
        ("embed", "a.json", "[1, 2", "a.json is not JSON"),
        ("embed", "a.json", ["x", 5], "'text' of item 1 of a.json is 5, expected a text"),
        ("embed", "a.json", ["x", " "], "'text' of item 1 of a.json is empty"),
        ("embed", "a.json", [{"txt": "x"}], "unknown field of feature-extraction 'txt'. Did you mean 'text'"),
        ("qa", "a.txt", "What?\n", 'line 1 of a.txt has no \'context\'; expected {"question": ..., "context": ...}'),
        (
            "qa",
            "a.json",
            {"data": [{"paragraphs": [{"context": "c"}]}]},
            "paragraph 0 of article 0 of data of a.json has no list 'qas'",
        ),
        (
            "qa",
            "a.json",
            {"data": [{"paragraphs": [{"qas": [{"question": "q"}]}]}]},
            "question 0 of .* has no 'context'",
        ),
        (
            "qa",
            "a.json",
            [{"question": "q", "context": "c", "answers": 3}],
            "'answers' of item 0 of a.json is 3, expected",
        ),
        (
            "ner",
            "a.json",
            [{"text": "Ada", "entities": [{"start": 0, "end": 9, "label": "P"}]}],
            "'entities' of item 0 of a.json is 9, expected ends of at most 3",
        ),
        ("ner", "a.json", [{"text": "Ada", "entities": [{"start": 2, "end": 2, "label": "P"}]}], "in characters"),
        (
            "mc",
            "a.json",
            [{"prompt": "p", "choices": ["a"], "label": 1}],
            "is 1, expected 0 to 0, as there are 1 choices",
        ),
        (
            "mc",
            "a.json",
            [{"prompt": "p", "choices": []}],
            "'choices' of item 0 of a.json is .*, expected a list of at least one",
        ),
        (
            "rerank",
            "a.json",
            [{"query": "q", "documents": ["a"], "relevant": []}],
            "the places of the relevant documents",
        ),
        ("mlm", "a.json", [{"text": "no mask", "words": ["x"]}], r"a word for each \[MASK\] of the text, which has 0"),
        ("mlm", "a.json", ["1 2 3"], "has no word that could be masked"),
        ("nsp", "a.json", [{"text": "a", "text_pair": "b", "is_next": 1}], "is 1, expected true or false"),
        (
            "classify",
            "a.json",
            [{"text": "a", "label": 1}, "b"],
            "item 1 of a.json has no 'label', and others have; expected",
        ),
        (
            "classify",
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "a", "label": NaN}',
            "'label' of line 2 of a.jsonl is nan, expected a finite number",
        ),
        (
            "classify",
            "a.json",
            '[{"text": "a", "label": [1, -Infinity]}]',
            "'label' of item 0 .* is -inf, expected a fin",
        ),
        ("classify", "a.json", [{"text": "a", "label": 10**400}], "'label' of item 0 .* expected a finite number"),
        ("embed", "a.jsonl", '"a"\n"\\ud800 b"', "line 2 of a.jsonl holds half of a surrogate pair"),
        ("qa", "a.json", '[{"question": "\\uDFFF", "context": "b"}]', "item 0 of a.json holds half of a surrogate"),
        (
            "zero-shot",
            "a.json",
            [{"text": "a", "candidate_labels": ["x"], "label": "y"}],
            "one of its candidate labels: x",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(written: Written, task: str, name: str, content: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("{", r"\{")):
        read_examples(written(name, content), task)


def test_both_halves_of_a_pair_are_a_character(written: Written) -> None:
    (example,) = read_examples(written("a.jsonl", '"\\ud83d\\udea3"'), "embed")
    assert example.content == ("\U0001f6a3",)


def test_files_that_cannot_be_read(tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="No such file or directory; give an existing file"):
        read_examples(tmp_path / "none.txt", "embed")
    with pytest.raises(UsageError, match="it is a folder"):
        read_examples(tmp_path, "embed")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(UsageError, match="it is no regular file"):
        read_examples(tmp_path / "pipe", "embed")
    path = written("long.txt", "one\n" * 100)
    monkeypatch.setattr(example_files, "MAX_EXAMPLES", 99)
    with pytest.raises(UsageError, match="holds more than 99 examples"):
        read_examples(path, "embed")
    monkeypatch.setattr(example_files, "MAX_BYTES", 300)
    with pytest.raises(UsageError, match="has 400 bytes, expected at most 300"):
        read_examples(path, "embed")


def test_a_mask_is_put_where_there_is_none() -> None:
    assert with_mask("Keep <mask> here.", "<mask>") == "Keep <mask> here."
    text = "The boat that takes cargo from a ship to the shore in 1843."
    masked = with_mask(text, "<mask>")
    assert masked == with_mask(text, "<mask>") and masked.count("<mask>") == 1
    assert len({with_mask(f"{text} {i}", "<mask>") for i in range(20)}) > 5  # not always the same word
    assert with_mask("word " * 1000 + str(1), "[MASK]").index("[MASK]") < 41 * 5


@pytest.mark.parametrize("task", TASK_ALIASES)
def test_the_package_has_examples_for_every_task(task: str) -> None:
    found = read_examples(None, task)
    used, rest = split(found)
    assert len(used) >= 48 and len(rest) >= 100 and not found.labelled
    assert found.source == "built-in texts"
    for example in found:
        fields = example.input if isinstance(example.input, dict) else {FORMS[task].text: example.input}
        assert set(FORMS[task].required) <= set(fields) <= set(FORMS[task].fields)
    if task in ("feature-extraction", "text-generation", "token-classification"):
        assert len(used) >= 64 and len(rest) >= 200  # enough to calibrate with, and to look for neighbours in


def test_the_built_in_texts_are_varied() -> None:
    lengths = [len(passage.text.split()) for passage in passages()]
    sentences = {sentence for passage in passages() for sentence in passage.sentences}
    assert len(lengths) >= 60 and min(lengths) < 30 and max(lengths) > 80
    assert len(sentences) >= 300 and min(len(s.split()) for s in sentences) == 4
    assert all(passage.questions and passage.title for passage in passages())
    assert not any(mark in passage.text for passage in passages() for mark in ("##", "\n"))


def test_the_wheel_takes_the_data_along() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    data = {
        p.name for p in (ROOT / "quantize").rglob("*.*") if p.is_file() and p.suffix not in (".py", ".pyc", ".typed")
    }
    assert set(said["pinnace.quantize.examples"]) == data == {"defaults.txt"}


def texts_of(examples: Examples) -> set[str]:
    return {normalized(text) for example in examples for text in example.content}


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_what_calibrates_never_judges(written: Written, seed: int) -> None:
    contexts = [f"{i} The harbour of the town lies to the north of the old lighthouse." for i in range(40)]
    items = [{"question": f"q{j}", "context": context} for i, context in enumerate(contexts) for j in range(1 + i % 3)]
    items += [
        {"question": "again", "context": contexts[3].upper()},
        {"question": "again", "context": f"  {contexts[4]}\n"},
    ]
    found = read_examples(written("q.json", items), "qa")
    used, rest = split(found, seed, 20)
    assert not texts_of(used) & texts_of(rest)
    assert len(used) + len(rest) == len(found) and 17 <= len(used) <= 20
    assert [e.place for e in used] == [e.place for e in split(found, seed, 20)[0]]


def test_a_split_does_not_depend_on_the_order_but_on_the_seed(written: Written) -> None:
    lines = [f"the line {i}" for i in range(50)]
    first = split(read_examples(written("a.txt", "\n".join(lines)), "embed"))[0]
    random.Random(3).shuffle(lines)
    second = split(read_examples(written("b.txt", "\n".join(lines)), "embed"))[0]
    other = split(read_examples(written("b.txt", "\n".join(lines)), "embed"), seed=1)[0]
    assert len(first) == 16 and {e.input for e in first} == {e.input for e in second} != {e.input for e in other}


def test_texts_in_common_join_examples_by_way_of_others(written: Written) -> None:
    a, b, c, d = (f"{letter} long enough to be what a pair of texts is about, by itself" for letter in "abcd")
    pairs = [(a, b), (c, d), (b, c), ("short", d[::-1]), ("short", a[::-1])]
    found = read_examples(written("p.json", [{"text": x, "text_pair": y} for x, y in pairs]), "nsp")
    used, rest = split(found, calibration=2)
    sides = {example.place[5]: side for side, part in enumerate((used, rest)) for example in part}
    assert sides["0"] == sides["1"] == sides["2"]  # by b and by c; "short" alone joins nothing
    assert len(used) in (1, 2) and not texts_of(used) & texts_of(rest)


def test_what_cannot_be_split_is_refused() -> None:
    def examples(*contents: str) -> Examples:
        return Examples("feature-extraction", tuple(Example(text, content=(text,)) for text in contents), "x.txt")

    with pytest.raises(UsageError, match=r"the 3 examples of x\.txt all share a text"):
        split(examples("One", "one", " ONE "))
    with pytest.raises(UsageError, match=r"^x\.txt has 1 example, expected at least two: what calibrates never judges"):
        split(examples("one"))
    with pytest.raises(UsageError, match="2 examples to calibrate with were asked for, of 2"):
        split(examples("one", "two"), calibration=2)
    used, rest = split(examples("one", "one", "two", "two", "two"), calibration=1)  # no group is that small
    assert (len(used), len(rest)) == (2, 3)


def test_an_unknown_task_is_refused(written: Written) -> None:
    with pytest.raises(PinnaceError, match="unknown task"):
        read_examples(written("a.txt", "a line\n"), "translate")


def test_labels_belong_to_tasks() -> None:
    assert set(LABELS) < set(TASK_ALIASES) == set(FORMS)
    assert all(label.field not in FORMS[task].fields for task, label in LABELS.items())
