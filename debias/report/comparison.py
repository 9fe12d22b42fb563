"""The comparison table, in the terminal and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table

from debias.records import Figure

TITLES = {
    "stereoset": "StereoSet", "stereoset_intersentence": "StereoSet, intersentence", "crows_pairs": "CrowS-Pairs",
    "perplexity": "Perplexity", "biastestgpt": "BiasTestGPT", "winobias": "WinoBias", "bbq": "BBQ", "seat": "SEAT",
    "honest": "HONEST", "blimp": "BLiMP", "lambada": "LAMBADA", "glue": "GLUE", "lm_eval": "lm-evaluation-harness",
}  # fmt: skip
HEADER = (
    "benchmark", "bias", "metric", "ideal", "base", "debiased", "difference", "95% interval", "p", "MDE", "n",
)  # fmt: skip
COMPARED = {"debiased", "difference", "p", "MDE"}  # columns that one model alone leaves empty
LEGEND = (
    "p: adjusted for the number of rows (Benjamini-Hochberg). MDE: the smallest difference that would be found with "
    "80% power, where none was found."
)


class Row(NamedTuple):
    """One metric of one bias: the base, and where there is one the debiased model and the difference."""

    base: Figure
    debiased: Figure | None
    delta: Figure | None

    @property
    def adapter(self) -> str:
        """Which of several adapters; empty where there is one or none."""
        return self.debiased.model.partition(":")[2] if self.debiased else ""

    @property
    def certain(self) -> bool:
        """Whether the interval of the difference leaves zero out."""
        return self.delta is not None and self.delta.excludes_zero

    @property
    def better(self) -> bool | None:
        """Whether the debiased model is nearer to the ideal; None where the difference is not certain."""
        if self.debiased is None or self.base.ideal is None or not self.certain:
            return None
        return abs(self.debiased.value - self.base.ideal) < abs(self.base.value - self.base.ideal)

    def named(self, title: str = "") -> dict[str, str]:
        """The row as text, by the names of HEADER."""
        return dict(zip(HEADER, self.cells(title), strict=True))

    def cells(self, title: str = "") -> tuple[str, ...]:
        """The row as text, in the order of HEADER."""
        base = self.base
        bias = f"{base.bias} ({self.adapter})" if self.adapter else base.bias
        front = (
            title or title_of(base),
            bias,
            base.metric,
            "" if base.ideal is None else f"{base.ideal:g}",
        )
        if self.debiased is None or self.delta is None:
            return (*front, _number(base.value, base.metric), "", "", _interval(base, ""), "", "", f"{base.n:,}")
        return (
            *front,
            _number(base.value, base.metric),
            _number(self.debiased.value, base.metric),
            _number(self.delta.value, base.metric, "+"),
            _interval(self.delta, "+"),
            _p(self.delta),
            "" if self.certain else _mde(self.delta),
            f"{base.n:,}",
        )


def header(table_rows: Sequence[Row]) -> list[str]:
    """The columns that say something: all, or of a base model alone those that compare nothing."""
    compared = any(row.delta for row in table_rows)
    return [name for name in HEADER if compared or name not in COMPARED]


def rows(figures: Iterable[Figure], first: str = "") -> list[Row]:
    """Figures of one run grouped into rows: benchmark by benchmark, the bias named `first` on top, then overall."""
    by: dict[tuple[str, str, str, str], dict[str, Figure]] = {}
    for f in figures:
        by.setdefault((f.benchmark, f.protocol, f.bias, f.metric), {})[f.model] = f
    benchmarks = list(dict.fromkeys(key[:2] for key in by))
    rank = {first: 0, "overall": 1}
    ordered = sorted(by, key=lambda key: (benchmarks.index(key[:2]), rank.get(key[2], 2)))
    return [row for key in ordered for row in _rows_of(by[key])]


def _rows_of(figures: dict[str, Figure]) -> list[Row]:
    names = [name for name in figures if name.startswith("debiased")]
    if not names:
        return [Row(figures["base"], None, None)]
    return [Row(figures["base"], figures[n], figures.get(n.replace("debiased", "delta", 1))) for n in names]


def titles(table_rows: Sequence[Row]) -> list[str]:
    """Each row's benchmark, with its protocol where a benchmark was scored under several."""
    several = _under_several_protocols(table_rows)
    return [
        title_of(row.base) + (f" ({row.base.protocol})" if row.base.benchmark in several else "") for row in table_rows
    ]


def title_of(figure: Figure) -> str:
    """A benchmark's name as people write it."""
    return TITLES.get(figure.benchmark, figure.benchmark)


def _under_several_protocols(table_rows: Sequence[Row]) -> set[str]:
    counts = Counter(benchmark for benchmark, _ in {(row.base.benchmark, row.base.protocol) for row in table_rows})
    return {benchmark for benchmark, count in counts.items() if count > 1}


def terminal(table_rows: Sequence[Row]) -> Table:
    """The table for a terminal of 80 columns: certain improvements green, certain losses red."""
    shown = {"bias": "bias", "metric": "metric", "base": "base", "debiased": "after", "difference": "change"}
    shown |= {"95% interval": "95% interval", "p": "p", "MDE": "MDE", "n": "n"}
    keep = [name for name in header(table_rows) if name in shown]
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in keep:
        left = name in ("bias", "metric")
        table.add_column(shown[name], justify="left" if left else "right", no_wrap=name != "bias", overflow="fold")
    previous = ("", "")
    for row, title in zip(table_rows, titles(table_rows), strict=True):
        cells = row.named()
        group = (title, cells["bias"])
        if group[0] != previous[0]:
            if previous[0]:
                table.add_row()
            table.add_row(group[0], style="bold")
        cells["bias"] = "" if group == previous else cells["bias"]
        previous = group
        style = {True: "green", False: "red", None: ""}[row.better]
        table.add_row(*[cells[name] for name in keep], style=style)
    return table


def markdown(table_rows: Sequence[Row]) -> str:
    """The table as Markdown; certain differences in bold."""
    names = header(table_rows)
    lines = [
        "| " + " | ".join(names) + " |",
        "|" + "|".join("---" if i < 3 else "--:" for i in range(len(names))) + "|",
    ]
    for row, title in zip(table_rows, titles(table_rows), strict=True):
        cells = {name: cell.replace("|", "\\|") for name, cell in row.named(title).items()}
        if row.certain:
            cells["difference"] = f"**{cells['difference']}**"
        lines.append("| " + " | ".join(cells[name] for name in names) + " |")
    return "\n".join(lines) + "\n"


def sensitivity(table_rows: Sequence[Row], first: str) -> list[tuple[str, ...]]:
    """One line per protocol of each benchmark that was scored under several: how much of a figure is protocol?

    Columns: benchmark, protocol, bias and metric, base, debiased, difference with its interval.
    """
    several = _under_several_protocols(table_rows)
    lines = []
    for row in table_rows:
        base = row.base
        shown = base.bias in (first, "overall") and base.metric in ("SS", "LMS", "ICAT")
        if base.benchmark not in several or not shown:
            continue
        cells = row.named()
        change = f"{cells['difference']} ({cells['95% interval']})" if row.delta else ""
        lines.append(
            (title_of(base), base.protocol, f"{cells['bias']} {base.metric}", cells["base"], cells["debiased"], change)
        )
    return sorted(lines, key=lambda line: (line[0], line[2]))


SENSITIVITY = ("benchmark", "protocol", "figure", "base", "after", "change")


def sensitivity_terminal(lines: Sequence[tuple[str, ...]]) -> Table:
    """The lines of `sensitivity` for a terminal."""
    table = Table(header_style="bold", box=None, pad_edge=False, title_justify="left")
    table.title = "How much of it is protocol"
    for name in SENSITIVITY:
        table.add_column(name, justify="left" if name in SENSITIVITY[:3] else "right")
    previous = ""
    for line in lines:
        if previous and line[2] != previous:
            table.add_row()
        previous = line[2]
        table.add_row(*line)
    return table


def _number(value: float, metric: str, sign: str = "") -> str:
    """A percentage or perplexity with one decimal, an effect size with two, a p-value with four."""
    decimals = 4 if metric.startswith("p ") else 2 if "effect" in metric else 1
    return f"{value:{sign}.{decimals}f}"


def _mde(delta: Figure) -> str:
    return "" if delta.mde is None else _number(delta.mde, delta.metric)


def _p(delta: Figure) -> str:
    p = delta.p_adjusted if delta.p_adjusted is not None else delta.p_value
    return "" if p is None else p_text(p)


def p_text(p: float) -> str:
    """A p-value for people; nothing where it is unknown (NaN)."""
    if p != p:
        return ""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _interval(figure: Figure, sign: str) -> str:
    if figure.ci_low != figure.ci_low:  # NaN: one unit only
        return "unknown"
    return f"{_number(figure.ci_low, figure.metric, sign)} to {_number(figure.ci_high, figure.metric, sign)}"
