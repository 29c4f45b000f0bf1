"""Write docs/cli.md from the command table, or check with --check that it is as the program is."""

from __future__ import annotations

import sys
from pathlib import Path

from pinnace.cli.commands import COMMANDS
from pinnace.cli.flags import COMMON, Command, Flag

PAGE = Path(__file__).parent / "cli.md"
CODES = {
    0: "done",
    1: "a check failed: numbers differ from PyTorch, `verify` found a difference, a result is NaN, lines lack answers",
    2: "usage: an unknown word, flag or input; the message names the nearest valid word",
    3: "a bad checkpoint or bundle: missing, damaged or unsafe",
    4: "a missing extra; the message has the `pip install` line",
    5: "the machine cannot: disk, memory, provider, or another process holds the folder",
    130: "interrupted",
    143: "terminated (SIGTERM); `serve`, which ends in order, gives 0 then, as for an interrupt",
}


def page() -> str:
    """The whole reference as Markdown."""
    lines = [
        "# Command line",
        "",
        "<!-- written by docs/generate_cli.py; change pinnace/cli/commands.py instead -->",
        "",
        "Results go to standard output; logs, progress and errors to standard error. `NO_COLOR` and `CI` are honoured.",
        "Every flag has an environment variable, and a flag given on the command line wins over it; a switch is set",
        "by `1`, `true`, `yes` or `on`. `python -m pinnace` is the same program; `python -m pinnace.export MODEL ...`",
        "is `pinnace export MODEL ...`. `pinnace --version` (or `-V`) prints the version.",
        "",
        "A TIME is a number and its unit, `us`, `ms` or `s`, such as `100ms`; a bare number counts seconds, but for",
        "`--latency-bound`, which needs the unit.",
        "",
        "| command | what it does |",
        "|---|---|",
        *(f"| [{name}](#pinnace-{name}) | {command.summary} |" for name, command in COMMANDS.items()),
    ]
    for command in COMMANDS.values():
        lines += section(command)
    lines += ["", "## Flags of every command", "", *table(COMMON)]
    lines += ["", "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in CODES.items()]
    return "\n".join(lines) + "\n"


def section(command: Command) -> list[str]:
    """The part of one command."""
    lines = ["", f"## pinnace {command.name}", "", command.summary, "", "```", command.usage, "```", ""]
    lines += ["```sh", *command.examples, "```"]
    if command.positionals:
        lines += ["", "| argument | meaning |", "|---|---|"]
        lines += [f"| `{p.name}` | {p.help} |" for p in command.positionals]
    if command.flags:
        lines += ["", *table(command.flags)]
    return lines


def table(flags: tuple[Flag, ...]) -> list[str]:
    """Flags, their variables and meanings."""
    rows = []
    for flag in flags:
        short = f"-{flag.short}, " if flag.short else ""
        shown = f"{short}{flag.shown}".replace("|", r"\|")  # a bare bar would end the cell
        variable = f"`{flag.variable}`" if flag.settable else ""
        rows.append(f"| `{shown}` | {variable} | {flag.help} |")
    return ["| flag | variable | meaning |", "|---|---|---|", *rows]


def main(argv: list[str]) -> int:
    """Write the page, or with ``--check`` compare it."""
    if argv == ["--check"]:
        if not PAGE.is_file() or PAGE.read_text("utf-8") != page():
            print(f"{PAGE.name} is not what the program says; run: python docs/generate_cli.py", file=sys.stderr)
            return 1
        return 0
    if argv:
        print("usage: python docs/generate_cli.py [--check]", file=sys.stderr)
        return 2
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
