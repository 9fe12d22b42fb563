"""What the models write, side by side: a table for the terminal, the report and the bias card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from debias.report.grid import Grid, row, text_columns


class Written(NamedTuple):
    """A prompt, and what the base and the debiased model wrote after it; the second is empty without an adapter."""

    prompt: str
    base: list[str]
    debiased: list[str]


def grid(found: Sequence[Written]) -> Grid:
    """A line for each sample, below its prompt."""
    lines = [
        row(_plain(w.prompt), _plain(one), _plain(two))
        for w in found
        for one, two in zip(w.base, w.debiased or [""] * len(w.base), strict=True)
    ]
    table = Grid(text_columns("prompt", "base", "debiased"), lines, name="What it writes", by=("prompt",))
    return table if any(w.debiased for w in found) else table.without("debiased")


def _plain(text: str) -> str:
    """One line without anything that a terminal or a reader's browser would obey."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
