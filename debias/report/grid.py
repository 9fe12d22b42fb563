"""A table as plain cells, and how it reads on the terminal, in Markdown, LaTeX, CSV and HTML (`grid.html.j2`)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

STYLES = {"good": "green", "bad": "red", "warning": "yellow", "strong": "bold"}
TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "≈": r"$\approx$", "→": r"$\to$", "★": r"$\star$", "◆": r"$\diamond$",
    "[": "{[}", "⚠": r"$\dagger$", "✓": r"$\checkmark$",
}  # fmt: skip


class Column(NamedTuple):
    """A heading; numbers are aligned to the right."""

    name: str
    numeric: bool = False
    short: str = ""  # the heading where space is scarce: on the terminal


def text_columns(*names: str) -> list[Column]:
    """Columns of text."""
    return [Column(name) for name in names]


def number_columns(*names: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, numeric=True) for name in names]


class Cell(NamedTuple):
    """A text, the number to sort it by, and its emphasis: `good`, `bad`, `warning`, `strong` or nothing.

    Emphasis is a colour on the terminal and in HTML; in Markdown, which has none, numbers become bold.
    """

    text: str
    value: float | None = None  # None: sorted by the text
    kind: str = ""
    parts: Mapping[str, float] | None = None  # by configuration: the page shows the mean of those not filtered out


class Line(NamedTuple):
    """A row. The page shows it while one of its configurations passes the filters; sorting keeps a baseline on top."""

    cells: tuple[Cell, ...]
    configurations: tuple[str, ...] = ()
    baseline: bool = False


def row(*cells: str | Cell) -> Line:
    """A row of texts and cells."""
    return Line(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells))


@dataclass(frozen=True)
class Grid:
    """A table.

    Args:
        name: what links and labels call it.
        note: how to read it.
        by: columns whose values divide the lines into groups. The terminal prints them as a heading over each group,
            the page draws a line between groups.
    """

    columns: Sequence[Column]
    lines: Sequence[Line]
    name: str = ""
    caption: str = ""
    note: str = ""
    by: tuple[str, ...] = ()

    def without(self, *names: str) -> Grid:
        """The same table without some of its columns."""
        kept = [i for i, column in enumerate(self.columns) if column.name not in names]
        lines = [line._replace(cells=tuple(line.cells[i] for i in kept)) for line in self.lines]
        return replace(self, columns=[self.columns[i] for i in kept], lines=lines)

    def group(self, line: Line) -> tuple[str, ...]:
        """A line's values in the columns `by`."""
        return tuple(cell.text for column, cell in zip(self.columns, line.cells, strict=True) if column.name in self.by)

    @property
    def breaks(self) -> set[int]:
        """The lines that begin another group than the line before."""
        groups = [self.group(line) for line in self.lines]
        return {i for i in range(1, len(groups)) if groups[i] != groups[i - 1]}

    def terminal(self, gap: int = 2) -> RenderableType:
        """For a terminal, `gap` blanks between columns; a value repeated in the first column is shown once."""
        shown = self.without(*self.by)
        table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, gap, 0, 0),
                      show_header=any(c.name for c in self.columns))  # fmt: skip
        for column in shown.columns:
            table.add_column(column.short or column.name, justify="right" if column.numeric else "left",
                             no_wrap=column.numeric, overflow="fold")  # fmt: skip
        previous = ""
        for i, line in enumerate(shown.lines):
            if self.by and (i == 0 or i in self.breaks):
                if i:
                    table.add_row()
                table.add_row(Text(" ".join(self.group(self.lines[i])), style="bold"))
                previous = ""
            first, *others = line.cells
            cells = [first._replace(text="") if first.text == previous else first, *others]
            previous = first.text
            # Text, not str: rich would read [brackets] in data as markup.
            table.add_row(*[Text(cell.text, style=STYLES.get(cell.kind, "")) for cell in cells])
        # Not the table's own title, which rich wraps to the width of the table.
        return Group(Text(self.caption, style="bold"), table) if self.caption else table

    def markdown(self) -> str:
        """For Markdown: numbers with an emphasis in bold, baselines in italics."""
        lines = [
            _markdown_line(column.name for column in self.columns),
            _markdown_line("--:" if column.numeric else "---" for column in self.columns),
        ]
        for line in self.lines:
            marked = []
            for column, cell in zip(self.columns, line.cells, strict=True):
                mark = "*" if line.baseline else "**" if cell.kind and column.numeric else ""
                marked.append(f"{mark}{markdown_text(cell.text)}{mark}" if cell.text else "")
            lines.append(f"| {' | '.join(marked)} |")
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        r"""For LaTeX with \usepackage{booktabs}; `name` is the label, caption and note are the caption."""
        align = "".join("r" if column.numeric else "l" for column in self.columns)
        lines = [
            r"\begin{table}", r"\centering", f"\\caption{{{latex_text(self.caption)}. {latex_text(self.note)}}}",
            f"\\label{{tab:{self.name}}}", f"\\begin{{tabular}}{{{align}}}",
            r"\toprule", _latex_line(column.name for column in self.columns), r"\midrule",
        ]  # fmt: skip
        for i, line in enumerate(self.lines):
            if i in self.breaks or (i and self.lines[i - 1].baseline and not line.baseline):
                lines.append(r"\midrule")
            lines.append(_latex_line(cell.text for cell in line.cells))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])

    def csv(self) -> str:
        """Comma-separated values."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        writer.writerows([cell.text for cell in line.cells] for line in self.lines)
        return text.getvalue()


def markdown_text(text: object) -> str:
    """A text that stays inside one cell of a Markdown table and starts no HTML."""
    escaped = re.sub(r"([\\|*])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped)  # nothing else opens a tag, so <.001 stays readable


def _markdown_line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(markdown_text(text) for text in texts)} |"


def latex_text(text: str) -> str:
    """A text without anything that LaTeX would take for a command."""
    return "".join(TEX.get(letter, letter) for letter in " ".join(text.split()))


def _latex_line(texts: Iterable[str]) -> str:
    return " & ".join(latex_text(text) for text in texts) + r" \\"
