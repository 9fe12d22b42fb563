"""Counts in sentences: every text that a person reads says `1 run` and `2 runs`."""

from __future__ import annotations


def plural(number: float, one: str, many: str = "") -> str:
    """The form of a word that goes with a number; `many` where it is not `one` with an s, as in `is` and `are`."""
    return one if number == 1 else many or f"{one}s"


def counted(number: float, one: str, many: str = "") -> str:
    """A number with its noun, as in `1 run` and `2,310 runs`."""
    return f"{number:,.0f} {plural(number, one, many)}"
