"""The tables of a study of many runs as plain cells, before they become HTML, Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from debias.report.comparison import SENSITIVITY, Row, p_text, rows, sensitivity, title_of
from debias.report.many_runs.collection import Run
from debias.report.many_runs.configurations import HEADLINES, Configuration

SIGNIFICANT = 0.05
FLAGS = {"debiased": ("✓", "good"), "broken": ("⚠", "bad"), "overshot": ("⚠", "bad"), "worse": ("⚠", "bad")}


class Cell(NamedTuple):
    """A text, what it is sorted by, and whether it is `good` or `bad` news; the text says so too."""

    text: str
    value: float | None = None  # None: sorted by the text
    kind: str = ""


class Line(NamedTuple):
    """A row of a table, and the configurations that it is about: it is shown while one of them is."""

    configurations: tuple[str, ...]
    cells: tuple[Cell, ...]
    baseline: bool = False


class Grid(NamedTuple):
    """A table: a name for links, a caption, columns (name, and whether it holds text), lines, and how to read it."""

    name: str
    caption: str
    columns: tuple[tuple[str, bool], ...]
    lines: list[Line]
    note: str = ""


@dataclass(frozen=True)
class Study:
    """Everything that the page shows: the configurations, and what is to be said on top."""

    configurations: list[Configuration]
    notes: list[str]

    @property
    def keys(self) -> list[str]:
        """What the configurations differ in; `run` where there is nothing."""
        found: dict[str, set[str]] = {}
        for configuration in self.configurations:
            for key, value in configuration.label.items():
                found.setdefault(key, set()).add(value)
        return [key for key, values in found.items() if values != {"None"}] or ["run"]

    @property
    def runs(self) -> list[Run]:
        """The runs, each once."""
        return list(
            {
                member.run.folder: member.run
                for configuration in self.configurations
                for member in configuration.members
            }.values()
        )

    def label(self, configuration: Configuration) -> list[str]:
        """The configuration's value of each of `keys`."""
        return (
            [configuration.label.get("run", configuration.name)]
            if self.keys == ["run"]
            else [configuration.label.get(key, "") for key in self.keys]
        )

    def grids(self) -> list[Grid]:
        """All tables that have a line."""
        made = (main(self), transfer(self).grid(), others(self), cost(self), protocols(self))
        return [grid for grid in made if grid.lines]


def spread(values: Sequence[float]) -> str:
    """Mean over seeds, and their standard deviation."""
    if not values:
        return ""
    form = ",.1f" if np.mean(values) < 1000 else ",.0f"
    mean = f"{np.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):{form}}"


def _of_label(study: Study, configuration: Configuration) -> Iterator[Cell]:
    for text in study.label(configuration):
        yield Cell(text, _number(text))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# ---------------------------------------------------------------- the main table


def main(study: Study) -> Grid:
    """One line per configuration, and one per base model that they start from."""
    names = ("SS", "change of SS", "p", "LMS", "ICAT", "perplexity", "seeds", "certain")
    columns = [(key, True) for key in study.keys] + [("verdict", True)] + [(name, False) for name in names]
    biases = list(dict.fromkeys(configuration.bias for configuration in study.configurations))
    shown = [configuration for configuration in study.configurations if configuration.row("SS")]
    lines = [*_bases(study, shown), *(_main_line(study, c) for c in shown if c.change is not None)]
    return Grid(
        "main", f"StereoSet of the targeted bias ({', '.join(biases)}) and perplexity: mean ± standard deviation",
        tuple(columns), lines,
        "SS: 50 is unbiased; LMS, ICAT: 100 is best; perplexity: lower is better. Change of SS with its 95% interval, "
        "over seeds and examples alike; ≈: put together from the runs' own intervals, for want of records. p: adjusted "
        "for the number of configurations (Benjamini-Hochberg); *: below .05. Certain: the seeds whose own interval "
        "leaves zero out. ★ best: the highest ICAT of the debiased. ◆ Pareto: no other configuration "
        "on the same bias and base model is as good in SS, LMS and perplexity and better in one.",
    )  # fmt: skip


def _main_line(study: Study, configuration: Configuration) -> Line:
    seeds, p = configuration.change, configuration.p_adjusted
    assert seeds is not None
    means = {metric: configuration.values(metric) for metric in HEADLINES}
    cells = {metric: Cell(spread(v), float(np.mean(v)) if v else None) for metric, v in means.items()}
    significant = p is not None and p < SIGNIFICANT
    base = configuration.row("SS").base.value  # type: ignore[union-attr]
    kind = ("good" if abs(base + seeds.mean - 50) < abs(base - 50) else "bad") if significant else ""
    star = "*" if significant else ""
    change = f"{'' if configuration.exact else '≈ '}{seeds.mean:+.1f}{star} ({seeds.low:+.1f} to {seeds.high:+.1f})"
    return Line(
        (configuration.key,),
        (*_of_label(study, configuration), verdict(configuration), cells["SS"], Cell(change, seeds.mean, kind),
         Cell("" if p is None else p_text(p), p), cells["LMS"], cells["ICAT"], cells["perplexity"],
         Cell(str(seeds.number), seeds.number),
         Cell(f"{configuration.certain} of {seeds.number}", configuration.certain)),
    )  # fmt: skip


def verdict(configuration: Configuration) -> Cell:
    """The verdict with its sign, and the marks of the best and the Pareto-optimal configurations."""
    sign, kind = FLAGS.get(configuration.outcome.verdict, ("", ""))
    marks = [f"{sign} {configuration.outcome.verdict}".strip()]
    marks += ["★ best"] if configuration.best else []
    marks += ["◆ Pareto"] if configuration.pareto else []
    return Cell(", ".join(marks), None, kind)


def _bases(study: Study, shown: Sequence[Configuration]) -> Iterator[Line]:
    """The base model of each setting."""
    settings: dict[tuple[Any, ...], list[Configuration]] = {}
    for configuration in shown:
        settings.setdefault(configuration.setting, []).append(configuration)
    for group in settings.values():
        heads = {metric: row.base for metric in HEADLINES if (row := group[0].row(metric))}
        cells = {m: Cell(spread([f.value]), f.value) for m, f in heads.items()}
        front = [_shared(group, key) for key in study.keys]
        front[next((i for i, cell in enumerate(front) if not cell.text), 0)] = Cell("base model")
        ss, lms, icat, ppl = (cells.get(metric, Cell("")) for metric in HEADLINES)
        line = (*front, Cell(""), ss, Cell(""), Cell(""), lms, icat, ppl, Cell(""), Cell(""))
        yield Line(tuple(c.key for c in group), line, baseline=True)


def _shared(group: Sequence[Configuration], key: str) -> Cell:
    values = {configuration.label.get(key, "") for configuration in group}
    return Cell(values.pop()) if key == "bias" and len(values) == 1 else Cell("")


# ---------------------------------------------------------------- further tables


def others(study: Study) -> Grid:
    """Base -> debiased of the other benchmarks: of the targeted bias where there is one, else over all."""
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for configuration in study.configurations:
        of_choice = found.setdefault(configuration.key, {})
        rank = {configuration.bias: 0, "overall": 1, "all": 2}
        for row in sorted(rows(configuration.figures), key=lambda r: rank.get(r.base.bias, 3)):
            of_choice.setdefault((title_of(row.base), row.base.metric), row)
    headline = {("StereoSet", m) for m in HEADLINES[:3]} | {("Perplexity", "perplexity")}
    names = [name for name in dict.fromkeys(n for of in found.values() for n in of) if name not in headline]
    columns = [(key, True) for key in study.keys] + [(f"{title} {metric}", False) for title, metric in names]
    lines = [
        Line((c.key,), (*_of_label(study, c), *(_arrow(found[c.key].get(name)) for name in names)))
        for c in study.configurations
    ]
    return Grid("others", "Other figures: base → debiased, mean over seeds", tuple(columns), lines if names else [],
                "Of the targeted bias where the benchmark has it, else over all; *: the change is certain, its 95% "
                "interval leaves zero out (not adjusted for the number of figures).")  # fmt: skip


def _arrow(row: Row | None) -> Cell:
    if row is None:
        return Cell("")
    cells = row.named()
    if row.debiased is None:
        return Cell(cells["base"], row.base.value)
    kind = {True: "good", False: "bad", None: ""}[row.better]
    return Cell(f"{cells['base']} → {cells['debiased']}{'*' if row.certain else ''}", row.debiased.value, kind)


class Transfer(NamedTuple):
    """Changes of SS by trained and scored bias, each by configuration: what training on one bias does to the others."""

    benchmark: str
    trained: list[str]
    scored: list[str]
    changes: Mapping[tuple[str, str], Mapping[str, float]]

    def grid(self) -> Grid:
        """Means over the configurations."""
        columns = (("trained on", True), *((bias, False) for bias in self.scored))
        lines = []
        for trained in self.trained:
            of = [self.changes.get((trained, scored), {}) for scored in self.scored]
            cells = [Cell(f"{mean:+.1f}", mean) if (mean := _mean(o.values())) is not None else Cell("") for o in of]
            keys = dict.fromkeys(key for values in of for key in values)
            lines.append(Line(tuple(keys), (Cell(trained), *cells)))
        caption = f"Transfer: change of SS ({self.benchmark}) by the bias trained on and the bias scored"
        return Grid(
            "transfer", caption, columns, lines, "Points, mean over configurations and seeds; below 0: SS fell."
        )


def transfer(study: Study) -> Transfer:
    """StereoSet's changes of SS where it was scored, else CrowS-Pairs'."""
    for benchmark in ("stereoset", "crows_pairs"):
        changes: dict[tuple[str, str], dict[str, float]] = {}
        scored: dict[str, None] = {}
        for configuration in study.configurations:
            for row in rows(configuration.figures):
                if (row.base.benchmark, row.base.metric) == (benchmark, "SS") and row.delta:
                    scored[row.base.bias] = None
                    of = changes.setdefault((configuration.run.trained_on, row.base.bias), {})
                    of.setdefault(configuration.key, row.delta.value)  # of several protocols the first
        if changes:
            trained = sorted({name for name, _ in changes})
            return Transfer(
                title_of(row_of(study, benchmark).base), trained, sorted(scored, key=_overall_last), changes
            )
    return Transfer("", [], [], {})


def row_of(study: Study, benchmark: str) -> Row:
    """Any row of a benchmark."""
    return next(r for c in study.configurations for r in rows(c.figures) if r.base.benchmark == benchmark)


def _overall_last(bias: str) -> tuple[bool, str]:
    return bias == "overall", bias


def _mean(values: Iterable[float]) -> float | None:
    found = [v for v in values if v == v]
    return float(np.mean(found)) if found else None


def cost(study: Study) -> Grid:
    """What each configuration cost, and what a point of ICAT did."""
    names = ("training tokens", "training s", "all s", "dollars", "ICAT gained", "training s per point",
             "dollars per point")  # fmt: skip
    columns = [(key, True) for key in study.keys] + [(name, False) for name in names]
    chosen = [c for c in study.configurations if any(e.run.cost for e in c.members) and c.change is not None]
    lines = [Line((c.key,), (*_of_label(study, c), *_cost_cells(c))) for c in chosen]
    return Grid("cost", "Cost per ICAT point, mean over seeds", tuple(columns), lines,
                "ICAT of the targeted bias; no gain: there is nothing to divide by. Dollars are those of the runs; "
                "what a generated set cost stands in its own folder.")  # fmt: skip


def _cost_cells(configuration: Configuration) -> Iterator[Cell]:
    costs = [member.run.cost for member in configuration.members if member.run.cost]
    trained = [of.get("stages", {}).get("train", {}) for of in costs]
    tokens = _mean(float(stage["tokens"]) for stage in trained if "tokens" in stage)
    seconds = _mean(float(stage["seconds"]) for stage in trained if "seconds" in stage)
    dollars = _mean(float(of.get("dollars") or 0) for of in costs)
    row = configuration.row("ICAT")
    gain = row.delta.value if row and row.delta else None
    yield _amount(tokens, ",.0f")
    yield _amount(seconds, ",.1f")
    yield _amount(_mean(float(of["seconds"]) for of in costs if "seconds" in of), ",.1f")
    yield _amount(dollars, ",.2f")
    yield _amount(gain, "+.1f")
    for spent, form in ((seconds, ",.2f"), (dollars, ",.4f")):
        worth = gain is not None and gain > 0 and spent is not None
        yield Cell(f"{spent / gain:{form}}", spent / gain) if worth else Cell("no gain" if gain is not None else "")  # type: ignore[operator]


def _amount(value: float | None, form: str) -> Cell:
    return Cell("") if value is None else Cell(f"{value:{form}}", value)


def protocols(study: Study) -> Grid:
    """How much of a figure is protocol: a line per configuration, figure and protocol where there are several."""
    columns = [(key, True) for key in study.keys] + [(n, i < 3) for i, n in enumerate(SENSITIVITY)]
    lines = [
        Line((c.key,), (*_of_label(study, c), *(Cell(text, _number(text)) for text in line)))
        for c in study.configurations
        for line in sensitivity(rows(c.figures, c.bias), c.bias)
    ]
    return Grid("protocols", "Protocol sensitivity: the same models under other protocols", tuple(columns), lines,
                "Change with its 95% interval. Figures under different protocols are not comparable.")  # fmt: skip
