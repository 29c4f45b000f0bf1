"""``pinnace run``: a bundle answers one text, or a file of inputs, line by line."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Final, TypeAlias

from pinnace.cli.answering import ANSWER_FIELDS, WRITE, Answering
from pinnace.cli.answers import AnswersFile, Kept, input_facts
from pinnace.cli.inputs import INPUT_FIELDS, Item, flag_of, one_input, read_labels, read_options, shared_options
from pinnace.cli.lines import items_of_lines
from pinnace.cli.output import Console
from pinnace.cli.progress import Progress
from pinnace.errors import CheckFailed, MachineError, UsageError
from pinnace.forms import FORMS
from pinnace.spec import canonical_task

# Options of a call whose values a command line cannot write.
_FOR_PROGRAMS: Final = ("cancellation", "shared_prefix")


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What the flags ask for: one input, or the lines of a source.

    Attributes:
        task: the task's full name.
        options: of every call.
        fields: field of an input -> what its flag said, None where it was not given.
        single: the one input; None for lines.
        source: where the lines come from; empty for one input.
        keep: fields of the lines that their answers shall hold.
        output: the file to write; None for standard output.
    """

    task: str
    options: dict[str, Any]
    fields: dict[str, Any]
    single: Item | None
    source: str
    keep: tuple[str, ...]
    output: Path | None


def run(arguments: SimpleNamespace, console: Console) -> int:
    """Answer with a bundle; the flags are those of the command table."""
    from pinnace.runtime.bundles.bundle import Bundle
    from pinnace.runtime.pipelines.table import pipeline

    options = read_options(arguments.option or ())
    bundle = Bundle.open(arguments.bundle, verify=not arguments.no_verify)
    asked = _read(arguments, canonical_task(arguments.task or bundle.manifest.task), options, console)
    alone = asked.single is not None
    pipe = pipeline(
        asked.task, bundle, precision=arguments.precision, device=arguments.device or "cpu", threads=arguments.threads,
        batch_tokens=arguments.batch_tokens, replicas=arguments.replicas or (1 if alone else "auto"),
    )  # fmt: skip
    shared = shared_options(asked.task, asked.fields)
    _check_options(pipe, options, shared, lines=not alone)
    console.detail(f"opened {pipe!r} for {asked.task}")
    facts = {"task": asked.task, "bundle": str(bundle.path), "precision": bundle.precision(arguments.precision)}
    decides = {
        **facts,
        "manifest": bundle.manifest.to_json(),
        "options": options,
        "fields": asked.fields,
        "keep": asked.keep,
        "json": console.json,
    }
    if arguments.resume or Path(asked.source).is_file():
        decides |= {"input": input_facts(asked.source), "lines": arguments.lines}
    answering = Answering(pipe, options, records=bool(asked.keep), write_errors=arguments.on_error == WRITE)

    def answers(done: int) -> Iterator[Any]:
        if asked.single is not None:
            return iter([pipe(asked.single.value, **{**options, **asked.single.options})])
        progress = Progress(console, _size_of(asked.source), done)
        items = items_of_lines(asked.task, asked.source, arguments.lines or "auto", shared, asked.keep)
        found = answering.answers(_rest(items, done, progress))
        watched = console.live and (asked.output is not None or not sys.stdout.isatty())
        return progress.watch(found) if watched else found

    destination = _destination(asked.output, decides, console, resume=bool(arguments.resume))
    count, kept = _write(answers, facts, destination, console)
    if not count and not kept.answers:  # no error: one of many files may well hold no input
        name = "standard input" if asked.source == "-" else asked.source
        console.warn(f"nothing to answer: {name} is empty{'' if arguments.input else '; give TEXT or --input FILE'}")
        return 0
    console.detail(f"{count} answered in {console.seconds:.2f} s")
    if failed := kept.failed + answering.failed:
        console.warn(f"{failed:,} of {kept.answers + count:,} lines have an error in place of an answer")
        return CheckFailed.exit_code
    _say_next(arguments, console, lines=not alone)
    return 0


def _read(arguments: SimpleNamespace, task: str, options: dict[str, Any], console: Console) -> _Asked:
    """Read the flags.

    Raises:
        UsageError: flags that do not go together, or nothing to answer.
    """
    given = {field: getattr(arguments, flag_of(field).replace("-", "_")) for field in INPUT_FIELDS}
    if given["candidate_labels"] is not None:
        given["candidate_labels"] = read_labels("candidate-labels", given["candidate_labels"])
    text = None if arguments.text == "-" else arguments.text
    source = arguments.input or ("-" if arguments.text == "-" else "")
    single = one_input(task, text, given, lines=bool(source))
    if single is None and not source:
        source = _piped(task)
    keep = _kept_fields(arguments, single is not None)
    output = _chosen_output(arguments, console, single is not None)
    if output is not None and source:
        _check_apart(source, output)
    return _Asked(task, options, given, single, source, keep, output)


def _check_options(pipe: Any, options: dict[str, Any], shared: dict[str, Any], *, lines: bool) -> None:
    """Check the options of all calls, before a file is opened for the answers.

    Raises:
        UsageError: an unknown or unfit one, or one that takes an object of a program.
    """
    known = {*pipe.option_names}
    for name in options:
        if name in known & {*_FOR_PROGRAMS}:
            raise UsageError(f"option {name!r} takes an object of a program; leave it out on the command line")
        if name not in known:
            raise pipe.unknown_option(name, known - {*_FOR_PROGRAMS})
    if lines:
        # What each line may have of its own, such as labels, is judged with the line.
        own = {option: "any" for option in [FORMS[pipe.task].option] if option}
        pipe.check_options({**own, **options, **shared})


def _kept_fields(arguments: SimpleNamespace, alone: bool) -> tuple[str, ...]:
    """The fields of lines that their answers shall hold.

    Raises:
        UsageError: flags for lines, and there is one input; or a name that an answer's record has of its own.
    """
    keep = tuple(dict.fromkeys(arguments.keep_field or ()))
    if alone and (keep or arguments.on_error):
        raise UsageError("--keep-field and --on-error go with lines: --input FILE, or - for standard input")
    for name in keep:
        if name in ANSWER_FIELDS:
            raise UsageError(f"--keep-field {name}: an answer has a field of that name; rename that of the lines")
    return keep


def _piped(task: str) -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            f"nothing to answer: give TEXT, or --input FILE with one input a line.\n"
            f"  for example: pinnace run BUNDLE {FORMS[task].example}"
        )
    return "-"


def _rest(items: Iterator[Item], done: int, progress: Progress) -> Iterator[Item]:
    """Pass on the items that have no answer yet, and say how far the input is read."""
    for number, item in enumerate(items):
        progress.read = item.end
        if number < done:
            progress.skipped = item.end
        else:
            yield item


def _size_of(source: str) -> int | None:
    return Path(source).stat().st_size if Path(source).is_file() else None


Opened: TypeAlias = contextlib.AbstractContextManager[tuple[IO[str], Kept]]


def _write(
    answers: Callable[[int], Iterator[Any]], facts: dict[str, Any], destination: Opened, console: Console
) -> tuple[int, Kept]:
    """Write results as they come: one a line, or inside one object where ``--json`` asks for it.

    Returns:
        how many were written, and what was there already.
    """
    count = 0
    with destination as (file, kept):
        if kept.answers:
            console.log(f"{kept.answers:,} answers are there already")
        if console.json:
            count = _write_object(answers(kept.answers), facts, file, console)
        else:
            for result in answers(kept.answers):
                file.write(f"{console.to_json(result)}\n")
                file.flush()  # so that a run which is killed keeps it
                count += 1
        file.flush()
    console.clear()
    return count, kept


def _write_object(results: Iterator[Any], facts: dict[str, Any], file: IO[str], console: Console) -> int:
    """Write results as they come, inside one object; where one fails, the object is closed with the error.

    Returns:
        how many were written.
    """
    head, count = f'{console.to_json(facts)[:-1]}, "results": [', 0
    try:
        for result in results:  # the head comes with the first one, so that what fails at once leaves nothing
            file.write(f"{', ' if count else head}{console.to_json(result)}")
            count += 1
    except BaseException as error:
        if count:
            file.write(f'], "count": {count}, "error": {console.to_json(str(error) or type(error).__name__)}}}\n')
        raise
    file.write(f'{"" if count else head}], "count": {count}, "seconds": {console.seconds:.3f}}}\n')
    return count


def _chosen_output(arguments: SimpleNamespace, console: Console, alone: bool) -> Path | None:
    """The file to write; None for standard output.

    Raises:
        UsageError: a folder, or ``--resume`` where nothing could be resumed.
    """
    output = None if arguments.output in (None, "-") else Path(arguments.output)
    if arguments.resume and (output is None or alone or console.json or (output.exists() and not output.is_file())):
        raise UsageError("--resume goes with --input FILE and --output FILE, and without --json: answers line by line")
    if output is not None and output.is_dir():
        raise UsageError(f"--output {output} is a folder; give a file")
    return output


def _check_apart(source: str, output: Path) -> None:
    """Check that the answers would not take the place of the input.

    Raises:
        UsageError: they would.
    """
    if source != "-" and output.is_file() and Path(source).exists() and output.samefile(source):
        raise UsageError(f"--input {source} and --output {output} are the same file; give another one for the answers")


@contextlib.contextmanager
def _destination(
    output: Path | None, decides: dict[str, Any], console: Console, *, resume: bool
) -> Iterator[tuple[IO[str], Kept]]:
    """Standard output, or a file that appears whole or not at all; and what it has already."""
    if output is None:
        yield console.out, Kept()
    elif output.exists() and not output.is_file():  # a device or pipe cannot be replaced
        try:
            with output.open("w", encoding="utf-8") as file:
                yield file, Kept()
        except OSError as error:
            raise MachineError(f"cannot write {output}: {error.strerror}") from None
    else:
        answers = AnswersFile(output, decides, resume=resume)
        with answers.opened() as file:
            yield file, answers.kept


def _say_next(arguments: SimpleNamespace, console: Console, *, lines: bool) -> None:
    folder = shlex.quote(str(arguments.bundle))
    if lines:
        console.next(f"pinnace inspect {folder}", "see what answered")
    else:
        console.next(f"pinnace run {folder} --input FILE.jsonl --output ANSWERS.jsonl", "answer many at once")
