"""A line of progress that also knows how far it is: of how many steps, which one."""

from __future__ import annotations


class Step(str):
    """A line of text for whoever reads lines, with its place for whoever draws a bar.

    Args:
        text: what was done.
        done: steps so far.
        total: steps in all.
    """

    __slots__ = ("share",)
    share: float

    def __new__(cls, text: str, done: int, total: int) -> Step:
        """Make the line, which names the place too."""
        made = super().__new__(cls, f"{text} ({done} of {total})")
        made.share = done / total
        return made
