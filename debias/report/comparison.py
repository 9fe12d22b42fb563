"""Figures of one run -> rows that compare the base model with the debiased one, and the tables made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from debias.records import Figure
from debias.report.grid import Cell, Column, Grid, Line, number_columns, text_columns

TITLES = {
    "stereoset": "StereoSet", "stereoset_intersentence": "StereoSet intersentence", "crows_pairs": "CrowS-Pairs",
    "perplexity": "Perplexity", "biastestgpt": "BiasTestGPT", "winobias": "WinoBias", "bbq": "BBQ", "seat": "SEAT",
    "pronoun_gap": "Pronoun gap", "group_gap": "Group gap", "honest": "HONEST",
    "blimp": "BLiMP", "lambada": "LAMBADA", "writing": "Written text", "glue": "GLUE",
    "lm_eval": "lm-evaluation-harness",
}  # fmt: skip
COLUMNS = (
    *text_columns("benchmark", "bias", "metric"),
    *number_columns("ideal", "base"),
    Column("debiased", numeric=True, short="after"),
    Column("difference", numeric=True, short="change"),
    *number_columns("95% interval", "p", "MDE", "n", extra=("MDE",)),
)
COMPARED = ("debiased", "difference", "p", "MDE")  # columns that are empty when only one model was scored
PROTOCOL_COLUMNS = (*text_columns("benchmark", "protocol", "figure"), *number_columns("base", "after", "change"))
IN_NATS = ("nats", "slope", "mean log-odds", "spread", "favour")  # how such metrics begin
HEADLINES = ("SS", "LMS", "ICAT", "perplexity")  # the figures that sum up a run
NAMES = {  # of a bias, where a benchmark calls it otherwise
    "gender": ("Gender_identity", "career-family", "math-arts"),
    "race": ("race-color", "Race_ethnicity"),
    "religion": ("Religion",),
    "age": ("Age",),
    "disability": ("Disability_status",),
    "nationality": ("Nationality",),
    "physical-appearance": ("Physical_appearance",),
    "sexual-orientation": ("Sexual_orientation",),
    "socioeconomic": ("SES",),
}
UNCHANGED = "too few to tell"  # in place of an interval: no example changed
LEGEND = (
    "p: corrected for the number of rows (Benjamini-Hochberg); a change is significant if it is below .05. Intervals "
    "are not corrected, so one may exclude zero beside a larger p. MDE: where the change is not significant, the "
    "smallest difference that this sample would find with 80% power."
)

INTERVALS = (
    "Intervals are 95%: the value ± t standard errors, from a bootstrap of the independent units of a benchmark "
    "(target terms, templates, windows of text), the same units for both models. Independent pairs (CrowS-Pairs) "
    "have score intervals and McNemar's test."
)


class Row(NamedTuple):
    """One metric of one bias: the base model's figure and, if it was scored, the debiased model's and the change."""

    base: Figure
    debiased: Figure | None
    delta: Figure | None

    @property
    def adapter(self) -> str:
        """Which of several adapters; empty if there is at most one."""
        return self.debiased.model.partition(":")[2] if self.debiased else ""

    @property
    def significant(self) -> bool:
        """Whether the change is significant, by the corrected p."""
        return self.delta is not None and self.delta.significant

    @property
    def better(self) -> bool | None:
        """Whether the debiased model is nearer to the ideal; None if the change is not significant."""
        if self.debiased is None or self.base.ideal is None or not self.significant:
            return None
        return abs(self.debiased.value - self.base.ideal) < abs(self.base.value - self.base.ideal)

    def texts(self, title: str = "") -> dict[str, str]:
        """The row as text, by the names of COLUMNS."""
        base, debiased, delta = self
        texts = dict.fromkeys((column.name for column in COLUMNS), "")
        texts |= {
            "benchmark": title or title_of(base),
            "bias": f"{base.bias} ({self.adapter})" if self.adapter else base.bias,
            "metric": base.metric,
            "ideal": "" if base.ideal is None else f"{base.ideal:g}",
            "base": number(base.value, base.metric),
            "n": f"{base.n:,}",
        }
        if debiased is None or delta is None:
            return texts | {"95% interval": _interval(base, "")}
        return texts | {
            "debiased": number(debiased.value, base.metric),
            "difference": number(delta.value, base.metric, "+"),
            "95% interval": _interval(delta, "+"),
            "p": "" if delta.p is None else p_text(delta.p),
            "MDE": "" if self.significant or delta.mde is None else number(delta.mde, base.metric),
        }


def rows(figures: Iterable[Figure], first: str = "") -> list[Row]:
    """Figures of one run grouped into rows: benchmark by benchmark, the bias named `first` on top, then overall."""
    by: dict[tuple[str, str, str, str], dict[str, Figure]] = {}
    for f in figures:
        by.setdefault((f.benchmark, f.protocol, f.bias, f.metric), {})[f.model] = f
    benchmarks = list(dict.fromkeys(key[:2] for key in by))

    def place(key: tuple[str, str, str, str]) -> tuple[int, int]:
        benchmark, _, bias, _ = key
        return benchmarks.index(key[:2]), 0 if bias in under(first, benchmark) else 1 if bias == "overall" else 2

    ordered = sorted(by, key=place)
    return [row for key in ordered for row in _rows_of(by[key])]


def _rows_of(figures: dict[str, Figure]) -> list[Row]:
    names = [name for name in figures if name.startswith("debiased")]
    if not names:
        return [Row(figures["base"], None, None)]
    return [Row(figures["base"], figures[n], figures.get(n.replace("debiased", "delta", 1))) for n in names]


def title_of(figure: Figure) -> str:
    """A benchmark's name as people write it."""
    return TITLES.get(figure.benchmark, figure.benchmark)


def table(rows: Sequence[Row]) -> Grid:
    """All rows. A significant change is emphasised: as good or bad news where the ideal is known."""
    several = _under_several_protocols(rows)
    lines = []
    for row in rows:
        protocol = f" ({row.base.protocol})" if row.base.benchmark in several else ""
        texts = row.texts(title_of(row.base) + protocol)
        kind = {True: "good", False: "bad", None: "strong" if row.significant else ""}[row.better]
        lines.append(Line(tuple(Cell(t, kind=kind if name == "difference" else "") for name, t in texts.items())))
    grid = Grid(COLUMNS, lines, name="Figures", by=("benchmark",))
    return grid if any(row.delta for row in rows) else grid.without(*COMPARED)


def _under_several_protocols(rows: Sequence[Row]) -> set[str]:
    counts = Counter(benchmark for benchmark, _ in {(row.base.benchmark, row.base.protocol) for row in rows})
    return {benchmark for benchmark, count in counts.items() if count > 1}


def protocols(rows: Sequence[Row], first: str) -> Grid:
    """How much of a figure is protocol? A line per protocol of each benchmark that was scored under several.

    Only SS, LMS and ICAT of the bias `first` and overall. The grid has no lines if no benchmark qualifies.
    """
    several = _under_several_protocols(rows)
    lines = []
    for row in rows:
        base, texts = row.base, row.texts()
        shown = base.bias in (*under(first, base.benchmark), "overall") and base.metric in ("SS", "LMS", "ICAT")
        if base.benchmark not in several or not shown:
            continue
        change = f"{texts['difference']} ({texts['95% interval']})" if row.delta else ""
        numbers = ((texts["base"], row.base), (texts["debiased"], row.debiased), (change, row.delta))
        lines.append(Line((
            Cell(texts["benchmark"]), Cell(base.protocol), Cell(f"{texts['bias']} {base.metric}"),
            *(Cell(text, figure.value if figure else None) for text, figure in numbers),
        )))  # fmt: skip
    lines.sort(key=lambda line: (line.cells[0].text, line.cells[2].text))
    return Grid(PROTOCOL_COLUMNS, lines, name="Protocols", caption="How much depends on the protocol",
                by=("benchmark", "figure"))  # fmt: skip


def under(bias: str, benchmark: str) -> tuple[str, ...]:
    """The names of a bias in a benchmark. HONEST has no gender of its own, and all its groups are about it."""
    return (bias, *NAMES.get(bias, ()), *(("overall",) if (benchmark, bias) == ("honest", "gender") else ()))


def headlines(figures: Sequence[Figure], bias: str) -> dict[str, Row]:
    """Those of `HEADLINES` that were measured: SS, LMS, ICAT of the targeted bias (or overall), and perplexity.

    SS is that of StereoSet or, where it was not scored, of CrowS-Pairs or another benchmark that has one.
    """
    by: dict[tuple[str, str, str], Row] = {}
    for row in rows(figures, bias):
        place = (row.base.benchmark, row.base.bias, row.base.metric)
        by.setdefault(place, row)  # the first protocol, if there are several
    scored = dict.fromkeys(("stereoset", "crows_pairs", *(benchmark for benchmark, _, metric in by if metric == "SS")))
    found = ((b, of) for b in scored for of in (*under(bias, b), "overall") if (b, of, "SS") in by)
    benchmark, of = next(found, ("stereoset", "overall"))
    places = {m: (benchmark, of, m) for m in HEADLINES[:3]} | {"perplexity": ("perplexity", "all", "perplexity")}
    return {metric: by[place] for metric, place in places.items() if place in by}


def headline_cells(figures: Sequence[Figure], bias: str) -> list[str]:
    """SS, its change with the interval, LMS, ICAT and perplexity as text, base and debiased."""
    heads = headlines(figures, bias)
    ss = heads.get("SS")
    texts = ss.texts() if ss else {}
    delta = f"{texts['difference']} ({texts['95% interval']})" if ss and ss.delta else ""
    first, *others = (_arrow(heads.get(metric)) for metric in HEADLINES)
    return [first, delta, *others]


def _arrow(row: Row | None) -> str:
    if row is None:
        return ""
    texts = row.texts()
    return texts["base"] + (f" -> {texts['debiased']}" if row.debiased else "")


def number(value: float, metric: str, sign: str = "") -> str:
    """A figure as every page rounds it: p-values four decimals, effects and nats two, thousands none, others one."""
    return f"{value:{sign},.{decimals(metric, value)}f}"


def decimals(metric: str, value: float = 0.0) -> int:
    """The decimals of a figure, which the scripts of a page need too."""
    if metric.startswith("p "):
        return 4
    if "effect" in metric or metric.startswith(IN_NATS):
        return 2
    return 1 if abs(value) < 1000 else 0


def p_text(p: float) -> str:
    """A p-value for people; empty if unknown (NaN)."""
    if p != p:
        return ""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def p_equals(p: float) -> str:
    """As in `p = .003`, or `p < .001`."""
    text = p_text(p)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def _interval(figure: Figure, sign: str) -> str:
    if figure.ci_low != figure.ci_low:  # NaN: nothing changed, or there was only one unit to resample
        return UNCHANGED if sign and figure.value == 0 else "unknown"
    return f"{number(figure.ci_low, figure.metric, sign)} to {number(figure.ci_high, figure.metric, sign)}"
