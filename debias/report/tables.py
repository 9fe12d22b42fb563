"""The comparison table, in the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table

from debias.records import Figure

TITLES = {"stereoset": "StereoSet", "crows_pairs": "CrowS-Pairs", "perplexity": "Perplexity"}
HEADER = ("benchmark", "bias", "metric", "ideal", "base", "debiased", "difference", "95% interval", "p", "n")


class Row(NamedTuple):
    """One metric of one bias: the base, and where there is one the debiased model and the difference."""

    base: Figure
    debiased: Figure | None
    delta: Figure | None

    @property
    def certain(self) -> bool:
        """Whether the interval of the difference leaves zero out."""
        return self.delta is not None and not self.delta.ci_low <= 0 <= self.delta.ci_high

    @property
    def better(self) -> bool | None:
        """Whether the debiased model is nearer to the ideal; None where the difference is not certain."""
        if self.debiased is None or self.base.ideal is None or not self.certain:
            return None
        return abs(self.debiased.value - self.base.ideal) < abs(self.base.value - self.base.ideal)

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADER."""
        base = self.base
        front = (TITLES.get(base.benchmark, base.benchmark), base.bias, base.metric, f"{base.ideal:g}")
        if self.debiased is None or self.delta is None:
            return (*front, f"{base.value:.1f}", "", "", _interval(base, ""), "", f"{base.n:,}")
        p = self.delta.p_value
        return (
            *front,
            f"{base.value:.1f}",
            f"{self.debiased.value:.1f}",
            f"{self.delta.value:+.1f}",
            _interval(self.delta, "+"),
            "" if p is None or p != p else ("<0.001" if p < 0.001 else f"{p:.3f}"),
            f"{base.n:,}",
        )


def rows(figures: Iterable[Figure], first: str = "") -> list[Row]:
    """Figures of one run grouped into rows: benchmark by benchmark, the bias named `first` on top, then overall."""
    by: dict[tuple[str, str, str, str], dict[str, Figure]] = {}
    for f in figures:
        by.setdefault((f.benchmark, f.protocol, f.bias, f.metric), {})[f.model] = f
    benchmarks = list(dict.fromkeys(key[:2] for key in by))
    rank = {first: 0, "overall": 1}
    ordered = sorted(by, key=lambda key: (benchmarks.index(key[:2]), rank.get(key[2], 2)))
    return [Row(by[k]["base"], by[k].get("debiased"), by[k].get("delta")) for k in ordered]


def terminal(table_rows: Sequence[Row]) -> Table:
    """The table for a terminal of 80 columns: certain improvements green, certain losses red."""
    compared = any(row.delta for row in table_rows)
    shown = {"bias": "bias", "metric": "metric", "base": "base", "debiased": "debiased", "difference": "change"}
    shown |= {"95% interval": "95% interval", "p": "p", "n": "n"}
    keep = [n for n in HEADER if n in shown and (compared or n not in ("debiased", "difference", "p"))]
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in keep:
        table.add_column(shown[name], justify="left" if name in ("bias", "metric") else "right", no_wrap=True)
    previous = ("", "")
    for row in table_rows:
        cells = dict(zip(HEADER, row.cells(), strict=True))
        group = (cells["benchmark"], cells["bias"])
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
    lines = [
        "| " + " | ".join(HEADER) + " |",
        "|" + "|".join("---" if i < 3 else "--:" for i in range(len(HEADER))) + "|",
    ]
    for row in table_rows:
        cells = [cell.replace("|", "\\|") for cell in row.cells()]
        if row.certain:
            cells[6] = f"**{cells[6]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(figure: Figure, sign: str) -> str:
    if figure.ci_low != figure.ci_low:  # NaN: one unit only
        return "unknown"
    return f"{figure.ci_low:{sign}.1f} to {figure.ci_high:{sign}.1f}"
