"""Flags of the command line: declared once, read from arguments or from ``PINNACE_<FLAG>``, with readable errors."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from pinnace.errors import UsageError, unknown_word

ON: Final = ("1", "true", "yes", "on")
OFF: Final = ("0", "false", "no", "off")

Convert = Callable[[str, str], Any]


def as_text(_flag: str, value: str) -> Any:
    """Take the value as it is."""
    return value


def as_path(flag: str, value: str) -> Any:
    """Expand ``~``, which a shell leaves alone in ``--flag=~/folder``; ``-`` stands for a standard stream.

    Raises:
        UsageError: it is empty.
    """
    if not value:
        raise UsageError(f"{flag} is empty; expected a path")
    return value if value == "-" else str(Path(value).expanduser())


def shown_path(path: str) -> str:
    """A path as a shell's word for the next command; one that begins with a dash would be read as a flag."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def as_count(flag: str, value: str) -> Any:
    """Read a whole number of at least 1.

    Raises:
        UsageError: it is not one.
    """
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII) or int(value) < 1:
        raise UsageError(f"{flag} is {value!r}; expected a whole number of at least 1")
    return int(value)


def as_port(flag: str, value: str) -> Any:
    """Read a port.

    Raises:
        UsageError: it is none.
    """
    if not re.fullmatch(r"\d{1,5}", value, re.ASCII) or int(value) > 65535:
        raise UsageError(f"{flag} is {value!r}; expected a port, 0 to 65535")
    return int(value)


def as_share(flag: str, value: str) -> Any:
    """Read a share, ``1%`` or ``0.01``.

    Raises:
        UsageError: it is neither, or not between 0 and 1.
    """
    number = as_number(flag, value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    if not number <= 1:
        raise UsageError(f"{flag} is {value!r}; expected a share of 0 to 1, such as 0.01 or 1%")
    return number


def as_number(flag: str, value: str) -> Any:
    """Read a number of at least 0.

    Raises:
        UsageError: it is not one.
    """
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value, re.ASCII):
        raise UsageError(f"{flag} is {value!r}; expected a number of at least 0")
    return float(value)


def as_sizes(flag: str, value: str) -> Any:
    """Read ``batch=1,sequence=128``.

    Raises:
        UsageError: it has another form, or a name stands in it twice.
    """
    sizes: dict[str, Any] = {}
    for part in value.split(","):
        name, equals, size = part.strip().partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} is {value!r}; expected sizes such as batch=1,sequence=128")
        if name in sizes:
            raise UsageError(f"{flag} is {value!r}, which gives {name} twice; give each size once")
        sizes[name] = as_count(f"{name} of {flag}", size)
    return sizes


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command.

    Attributes:
        name: without the dashes.
        help: one sentence without its full stop.
        value: what stands for its value in the help; empty for a switch.
        short: one-letter form.
        choices: the only words that it takes.
        convert: from the user's text to the value.
        repeated: may be given several times; the value is then a list.
        settable: a variable of the environment may stand in for it.
    """

    name: str
    help: str
    value: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    convert: Convert = as_text
    repeated: bool = False
    settable: bool = True

    @property
    def variable(self) -> str:
        """The environment variable that stands in for the flag."""
        return f"PINNACE_{self.key.upper()}"

    @property
    def key(self) -> str:
        """The flag's name in Python."""
        return self.name.replace("-", "_")

    @property
    def shown(self) -> str:
        """The flag with its value, as the help shows it."""
        value = "|".join(self.choices) or self.value
        return f"--{self.name} {value}".strip()

    def read(self, said: str, place: str) -> Any:
        """Turn the user's text into the value; ``place`` is the flag or the variable that it came from.

        Raises:
            UsageError: the text does not fit.
        """
        if self.choices and said not in self.choices:
            raise unknown_word(place.lstrip("-"), said, self.choices)
        return self.convert(place, said)

    def read_variable(self, said: str) -> Any:
        """Turn the text of the environment variable into the value.

        Raises:
            UsageError: the text does not fit.
        """
        if self.value or self.choices:
            value = self.read(said, self.variable)
            return [value] if self.repeated else value
        if said.lower() not in ON + OFF:
            raise UsageError(f"{self.variable} is {said!r}; expected one of {', '.join(ON)} or {', '.join(OFF)}")
        return said.lower() in ON


@dataclasses.dataclass(frozen=True)
class Positional:
    """An argument without a dash; the last of a command may stand for many, and its value is then a list."""

    name: str
    help: str
    required: bool = True
    many: bool = False

    @property
    def key(self) -> str:
        """The argument's name in Python."""
        return self.name.lower()


COMMON: Final = (
    Flag("json", "print one JSON object on standard output"),
    Flag("quiet", "print nothing but the result and errors", short="q"),
    Flag("verbose", "say more, and show the traceback of an error", short="v"),
    # Set for all commands, it would let every check in a script pass.
    Flag("help", "show this help and exit", short="h", settable=False),
)


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: what it does, what it takes, and the ``module:function`` that does it."""

    name: str
    summary: str
    run: str
    positionals: tuple[Positional, ...] = ()
    flags: tuple[Flag, ...] = ()
    examples: tuple[str, ...] = ()

    @property
    def all_flags(self) -> tuple[Flag, ...]:
        """The command's flags and those that all commands share."""
        return (*self.flags, *COMMON)

    @property
    def usage(self) -> str:
        """One line that shows how the command is called."""
        shown = [f"{p.name}..." if p.many else p.name for p in self.positionals]
        words = [word if p.required else f"[{word}]" for word, p in zip(shown, self.positionals, strict=True)]
        return " ".join(["pinnace", self.name, *words, "[flags]"])


def read_arguments(command: Command, argv: Sequence[str], environ: Mapping[str, str]) -> types.SimpleNamespace:
    """Read a command's arguments; what is not given comes from the environment, and is else None or False.

    Raises:
        UsageError: an unknown flag, a missing or superfluous argument, or a value that does not fit.
    """
    before, literal = _split_literal(argv)
    said, rest = _parser(command).parse_known_args(before)
    result = types.SimpleNamespace()
    if said.help:
        result.help = True
        return result
    words: list[Any] = [*_known_words(command, rest), *literal]
    for flag in command.all_flags:
        given = getattr(said, flag.key)
        setattr(result, flag.key, _value(flag, given, environ))
    if words and command.positionals and command.positionals[-1].many:
        last = len(command.positionals) - 1
        words = [*words[:last], words[last:]] if len(words) > last else words
    if len(words) > len(command.positionals):
        extra = words[len(command.positionals)]
        raise UsageError(f"{extra!r} is one argument too many.\n  usage: {command.usage}")
    for positional, word in zip(command.positionals, [*words, *[None] * len(command.positionals)], strict=False):
        if not word and positional.required:
            raise UsageError(
                f"{command.name} needs {positional.name}, {positional.help}.\n  for example: {command.examples[0]}"
            )
        setattr(result, positional.key, word)
    return result


def help_text(command: Command) -> str:
    """The help of a command, for a terminal."""
    lines = [command.summary, "", f"usage: {command.usage}", ""]
    rows = [(p.name, p.help) for p in command.positionals]
    rows += [(f"-{f.short}, {f.shown}" if f.short else f"    {f.shown}", f.help) for f in command.all_flags]
    width = min(30, max(len(left) for left, _ in rows))
    for left, text in rows:
        gap = "\n" + " " * (width + 4) if len(left) > width else " " * (width - len(left) + 2)
        lines.append(f"  {left}{gap}{text}")
    lines += ["", "examples:", *(f"  {example}" for example in command.examples)]
    lines += ["", "Every flag can also be set by a variable: --some-flag by PINNACE_SOME_FLAG."]
    return "\n".join(lines)


def _split_literal(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at ``--``: what stands after it is never a flag."""
    items = list(argv)
    if "--" not in items:
        return items, []
    place = items.index("--")
    return items[:place], items[place + 1 :]


class _Parser(argparse.ArgumentParser):
    """Splits flags from words; all judging of values is done by `Flag`."""

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"argument (?:-\w/)?(--[\w-]+): expected one argument", message):
            flag = match[1]
            raise UsageError(f"{flag} needs a value; one that begins with a dash is written {flag}=VALUE")
        if match := re.match(r"argument (?:-\w/)?(--[\w-]+): ignored explicit argument (.+)", message):
            raise UsageError(f"{match[1]} is a switch and takes no value, got {match[2]}")
        raise UsageError(message)


def _parser(command: Command) -> _Parser:
    parser = _Parser(prog=f"pinnace {command.name}", add_help=False, allow_abbrev=False)
    for flag in command.all_flags:
        names = [f"-{flag.short}"] * bool(flag.short) + [f"--{flag.name}"]
        if not (flag.value or flag.choices):
            parser.add_argument(*names, dest=flag.key, action="store_true", default=None)
        else:
            parser.add_argument(*names, dest=flag.key, action="append" if flag.repeated else "store")
    return parser


def _known_words(command: Command, rest: Sequence[str]) -> list[str]:
    known = [f"--{flag.name}" for flag in command.all_flags] + [f"-{f.short}" for f in command.all_flags if f.short]
    for word in rest:
        if word in ("--version", "-V"):
            raise UsageError(f"{word} stands before the command, not with one: pinnace --version")
        if word.startswith("-") and word != "-":
            error = unknown_word(f"flag of {command.name}", word.partition("=")[0], known)
            raise UsageError(f"{error}\n  a text that begins with a dash goes after --")
    return list(rest)


def _value(flag: Flag, given: Any, environ: Mapping[str, str]) -> Any:
    if given is None:
        said = environ.get(flag.variable) if flag.settable else None
        if said:  # an empty variable is how many tools say "not set"
            return flag.read_variable(said)
        return None if flag.value or flag.choices else False
    if given is True:
        return True
    if flag.repeated:
        return [flag.read(one, f"--{flag.name}") for one in given]
    return flag.read(given, f"--{flag.name}")
