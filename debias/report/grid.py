"""A table as plain cells, and how it reads on the terminal, in Markdown, LaTeX, CSV and HTML (`grid.html.j2`)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
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
    extra: bool = False  # left out first where a terminal is narrow


READABLE = 20  # characters below which a column of text becomes a strip that nobody can read
BETWEEN, INDENT = "   ", 2  # of the facts of a paragraph


def text_columns(*names: str) -> list[Column]:
    """Columns of text."""
    return [Column(name) for name in names]


def number_columns(*names: str, extra: Collection[str] = ()) -> list[Column]:
    """Columns of numbers, of which `extra` ones are left out first where a terminal is narrow."""
    return [Column(name, numeric=True, extra=name in extra) for name in names]


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
        """For a terminal of any width, `gap` blanks between columns.

        Where the table is too wide, columns marked `extra` are left out, then text is wrapped. Where that would leave
        strips of text, each line becomes a paragraph. Nothing is cut, and the first column is always there.
        """
        return _OfAnyWidth(self, gap)

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


class _OfAnyWidth(NamedTuple):
    """A grid that is laid out when the terminal's width is known."""

    grid: Grid
    gap: int

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        shown, width = self.grid, options.max_width
        if shown.caption:  # not the table's own title, which rich wraps to the width of the table
            yield Text(shown.caption, style="bold")
        extra = [column.name for column in shown.columns if column.extra]
        while extra and sum(_widths(shown)) + self.gap * (len(_widths(shown)) - 1) > width:
            shown = shown.without(extra.pop())
        widths = _wrapped(shown, width - self.gap * (len(_widths(shown)) - 1))
        yield _table(shown, self.gap, widths) if widths else _paragraphs(self.grid, width)


def _inner(grid: Grid) -> Grid:
    """The columns below the headings that `by` makes."""
    return grid.without(*grid.by)


def _widths(grid: Grid) -> list[int]:
    """The width that each column needs to show every cell in one line."""
    inner, found = _inner(grid), []
    for i, column in enumerate(inner.columns):
        groups = (" ".join(grid.group(line)) for line in grid.lines) if i == 0 else ()
        texts = [column.short or column.name, *groups, *(line.cells[i].text for line in inner.lines)]
        found.append(max(Text(text).cell_len for text in texts))
    return found


def _wrapped(grid: Grid, room: int) -> list[int]:
    """The width of each column, with the widest texts wrapped where there is no room; empty if they become strips."""
    needed, numeric = _widths(grid), [column.numeric for column in _inner(grid).columns]
    cap = max(needed, default=0)
    while cap > 0:
        widths = [width if number else min(width, cap) for width, number in zip(needed, numeric, strict=True)]
        if sum(widths) <= room:
            return widths if cap >= min(READABLE, max(needed)) else []
        cap -= 1
    return []


def _table(grid: Grid, gap: int, widths: Sequence[int]) -> Table:
    """A value repeated in the first column is shown once."""
    inner = _inner(grid)
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, gap, 0, 0),
                  show_header=any(c.name for c in inner.columns))  # fmt: skip
    for column, width in zip(inner.columns, widths, strict=True):
        table.add_column(column.short or column.name, justify="right" if column.numeric else "left",
                         no_wrap=column.numeric, width=width, overflow="fold")  # fmt: skip
    previous = ""
    for i, line in enumerate(inner.lines):
        if grid.by and (i == 0 or i in grid.breaks):
            if i:
                table.add_row()
            table.add_row(Text(" ".join(grid.group(grid.lines[i])), style="bold"))
            previous = ""
        first, *others = line.cells
        cells = [first._replace(text="") if first.text == previous else first, *others]
        previous = first.text
        # Text, not str: rich would read [brackets] in data as markup.
        table.add_row(*[Text(cell.text, style=STYLES.get(cell.kind, "")) for cell in cells])
    return table


def _paragraphs(grid: Grid, width: int) -> Group:
    """Each line as a heading, its first column, and the others below it with their names."""
    parts: list[RenderableType] = []
    inner = _inner(grid)
    for i, line in enumerate(inner.lines):
        if grid.by and (i == 0 or i in grid.breaks):
            parts.append(Text(" ".join(grid.group(grid.lines[i])), style="bold"))
        first, *others = line.cells
        parts.append(Text(first.text, style=STYLES.get(first.kind, "") or "bold"))
        row = Text()
        for column, cell in zip(inner.columns[1:], others, strict=True):
            if not cell.text:
                continue
            fact = Text.assemble(
                (f"{column.name} " if column.name else "", "dim"), (cell.text, STYLES.get(cell.kind, ""))
            )
            if row and row.cell_len + len(BETWEEN) + fact.cell_len > width - INDENT:
                parts.append(Padding(row, (0, 0, 0, INDENT)))
                row = Text()
            row += Text(BETWEEN if row else "") + fact
        parts.append(Padding(row, (0, 0, 0, INDENT)))
    return Group(*parts)


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
