"""The tables of a study of many runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from debias.records import SIGNIFICANT
from debias.report import comparison
from debias.report.comparison import HEADLINES, UNCHANGED, Row, number, p_text, rows, title_of, under
from debias.report.grid import Cell, Grid, Line, number_columns, text_columns
from debias.report.many_runs.collection import Run
from debias.report.many_runs.configurations import Configuration, by_baseline
from debias.report.outcome import Outcome

SIGNIFICANT_SEEDS = "seeds with p < .05"
FLAGS = {
    "debiased": ("✓", "good"),
    "inconclusive": ("?", "warning"),
    "mixed": ("?", "warning"),
}


@dataclass(frozen=True)
class Study:
    """What a report over many runs is made of: the configurations, and notes to read before the figures."""

    configurations: list[Configuration]
    notes: list[str]

    @property
    def keys(self) -> list[str]:
        """The keys in which the configurations differ; `run` if there are none."""
        found: dict[str, set[str]] = {}
        for configuration in self.configurations:
            for key, value in configuration.label.items():
                found.setdefault(key, set()).add(value)
        return [key for key, values in found.items() if values != {"None"}] or ["run"]

    @property
    def runs(self) -> list[Run]:
        """The runs, each once."""
        return list({m.run.folder: m.run for c in self.configurations for m in c.members}.values())

    def label(self, configuration: Configuration) -> dict[str, str]:
        """The configuration's value for each of `keys`."""
        if self.keys == ["run"]:
            return {"run": configuration.label.get("run", configuration.name)}
        return {key: configuration.label.get(key, "") for key in self.keys}

    def grids(self) -> list[Grid]:
        """All tables that have lines."""
        made = (main(self), transfer(self), others(self), cost(self), protocols(self))
        return [grid for grid in made if grid.lines]


def spread(values: Sequence[float], metric: str) -> str:
    """Mean over seeds, and their standard deviation."""
    if not values:
        return ""
    mean = number(float(np.mean(values)), metric)
    return mean if len(values) == 1 else f"{mean} ± {number(float(np.std(values, ddof=1)), metric)}"


def _label_cells(study: Study, configuration: Configuration) -> Iterator[Cell]:
    for text in study.label(configuration).values():
        yield Cell(text, _as_number(text))


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# ---------------------------------------------------------------- the main table


def main(study: Study) -> Grid:
    """A line per configuration, below a line per base model that they start from."""
    names = ("SS", "change of SS", "p", "LMS", "ICAT", "perplexity", "n", "seeds", SIGNIFICANT_SEEDS)
    extra = ("LMS", "ICAT", "n", SIGNIFICANT_SEEDS)
    columns = [*text_columns(*study.keys, "verdict"), *number_columns(*names, extra=extra)]
    biases = list(dict.fromkeys(c.bias for c in study.configurations))
    shown = [c for c in study.configurations if c.row("SS")]
    titles = dict.fromkeys(title_of(row.base) for c in shown if (row := c.row("SS")))
    lines = [*_base_lines(study, shown), *(_main_line(study, c) for c in shown if c.change is not None)]
    return Grid(
        columns, lines, name="main",
        caption=f"{', '.join(titles)} of the targeted bias ({', '.join(biases)}) and perplexity: "
        "mean ± standard deviation over seeds",
        note="SS: 50 is unbiased. LMS and ICAT: 100 is best. Perplexity: lower is better. The 95% interval of the "
        "change of SS covers both seeds and examples; ≈: combined from the intervals of the runs, because their "
        "records are missing or are of independent pairs. p is corrected for the number of configurations "
        "(Benjamini-Hochberg); *: significant, p below .05. n: examples behind SS. Inconclusive: bias fell, but "
        "ability is not shown to be kept. Seeds with p < .05: those whose own change is significant (p corrected "
        "for the figures of the run). ★ best: the highest ICAT among the debiased. ◆ Pareto: ability not broken, "
        "bias not overshot or worse, and no other such configuration with the same bias and base model is as good "
        "in SS, LMS and perplexity and better in one.",
    )  # fmt: skip


def _main_line(study: Study, configuration: Configuration) -> Line:
    seeds, p = configuration.change, configuration.p_adjusted
    assert seeds is not None
    means = {metric: configuration.values(metric) for metric in HEADLINES}
    cells = {metric: Cell(spread(v, metric), float(np.mean(v)) if v else None) for metric, v in means.items()}
    significant = p is not None and p < SIGNIFICANT
    row = configuration.row("SS")
    assert row is not None
    base = row.base.value
    kind = ("good" if abs(base + seeds.mean - 50) < abs(base - 50) else "bad") if significant else ""
    approximate, star = "" if configuration.exact else "≈ ", "*" if significant else ""
    ends = " to ".join(number(end, "SS", "+") for end in (seeds.low, seeds.high))
    known = seeds.low == seeds.low
    change = f"{approximate}{number(seeds.mean, 'SS', '+')}{star} ({ends if known else 'interval unknown'})"
    change = UNCHANGED if not known and seeds.mean == 0 else change
    on_their_own = Cell(f"{configuration.significant_seeds} of {seeds.number}", configuration.significant_seeds)
    return Line(
        (*_label_cells(study, configuration), verdict(configuration), cells["SS"], Cell(change, seeds.mean, kind),
         Cell("" if p is None else p_text(p), p), cells["LMS"], cells["ICAT"], cells["perplexity"],
         Cell(f"{row.base.n:,}", row.base.n), Cell(str(seeds.number), seeds.number), on_their_own),
        (configuration.key,),
    )  # fmt: skip


def flag(of: Outcome) -> tuple[str, str]:
    """The sign of an outcome, and whether it is `good`, a `warning` or `bad`; empty where nothing changed."""
    return ("⚠", "bad") if of.failed else FLAGS.get(of.verdict, ("", ""))


def verdict(configuration: Configuration) -> Cell:
    """The verdict with its sign, and the marks of the best and the Pareto-optimal configurations."""
    sign, kind = flag(configuration.outcome)
    marks = [f"{sign} {configuration.outcome.words}".strip()]
    marks += ["★ best"] if configuration.best else []
    marks += ["◆ Pareto"] if configuration.pareto else []
    return Cell(", ".join(marks), None, kind)


def _base_lines(study: Study, shown: Sequence[Configuration]) -> Iterator[Line]:
    for group in by_baseline(shown):
        heads = {metric: row.base for metric in HEADLINES if (row := group[0].row(metric))}
        cells = {m: Cell(spread([f.value], m), f.value) for m, f in heads.items()}
        front = [_shared(group, key) for key in study.keys]
        front[next((i for i, cell in enumerate(front) if not cell.text), 0)] = Cell("base model")
        ss, lms, icat, ppl = (cells.get(metric, Cell("")) for metric in HEADLINES)
        n, none = Cell(f"{heads['SS'].n:,}", heads["SS"].n), Cell("")
        line = (*front, none, ss, none, none, lms, icat, ppl, n, none, none)
        yield Line(line, tuple(c.key for c in group), baseline=True)


def _shared(group: Sequence[Configuration], key: str) -> Cell:
    values = {c.label.get(key, "") for c in group}
    return Cell(values.pop()) if key == "bias" and len(values) == 1 else Cell("")


# ---------------------------------------------------------------- further tables


def others(study: Study) -> Grid:
    """Base -> debiased on the other benchmarks, for the targeted bias or, failing that, over all."""
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for configuration in study.configurations:
        by_metric = found.setdefault(configuration.key, {})
        for row in sorted(rows(configuration.figures), key=partial(_distance, bias=configuration.bias)):
            by_metric.setdefault((title_of(row.base), row.base.metric), row)
    headline = {("StereoSet", m) for m in HEADLINES[:3]} | {("Perplexity", "perplexity")}
    names = [name for name in dict.fromkeys(n for of in found.values() for n in of) if name not in headline]
    columns = [*text_columns(*study.keys), *number_columns(*(f"{title} {metric}" for title, metric in names))]
    lines = [
        Line((*_label_cells(study, c), *(_arrow(found[c.key].get(name)) for name in names)), (c.key,))
        for c in study.configurations
    ]
    return Grid(columns, lines if names else [], name="others",
                caption="Other figures: base → debiased, mean over seeds",
                note="For the targeted bias where the benchmark has it, otherwise over all. *: the change is "
                "significant (p below .05, corrected for the number of figures of the configuration).")  # fmt: skip


def _distance(row: Row, bias: str) -> int:
    """How far a row is from the targeted bias: of it, of all biases, of texts that have none, of another bias."""
    if row.base.bias in under(bias, row.base.benchmark):
        return 0
    return {"overall": 1, "all": 2}.get(row.base.bias, 3)


def _arrow(row: Row | None) -> Cell:
    if row is None:
        return Cell("")
    texts = row.texts()
    if row.debiased is None:
        return Cell(texts["base"], row.base.value)
    kind = {True: "good", False: "bad", None: ""}[row.better]
    return Cell(f"{texts['base']} → {texts['debiased']}{'*' if row.significant else ''}", row.debiased.value, kind)


def transfer(study: Study) -> Grid:
    """What training on one bias does to the others: changes of SS on StereoSet, or on CrowS-Pairs if not scored."""
    for benchmark in ("stereoset", "crows_pairs"):
        # By the source and the bias trained on, and the bias scored: configuration -> change.
        changes: dict[tuple[tuple[str, str], str], dict[str, float]] = {}
        title = ""
        for configuration in study.configurations:
            for row in rows(configuration.figures):
                if (row.base.benchmark, row.base.metric) == (benchmark, "SS") and row.delta:
                    title = title_of(row.base)
                    run = configuration.run
                    of = changes.setdefault(((run.sources, run.trained_on), row.base.bias), {})
                    of.setdefault(configuration.key, row.delta.value)  # the first protocol, if there are several
        if changes:
            break
    scored = sorted({name for _, name in changes}, key=lambda bias: (bias == "overall", bias))
    lines = []
    for trained in sorted({name for name, _ in changes}):
        cells = [_mean_cell(changes.get((trained, bias), {})) for bias in scored]
        keys = dict.fromkeys(key for cell in cells for key in cell.parts or {})
        lines.append(Line((*map(Cell, trained), *cells), tuple(keys)))
    return Grid([*text_columns("source", "trained on"), *number_columns(*scored)], lines, name="transfer",
                caption=f"Transfer: change of SS ({title}) by the bias trained on and the bias scored",
                note="Points, mean over seeds and configurations of a source and bias. Negative: SS fell.")  # fmt: skip


def _mean_cell(changes: dict[str, float]) -> Cell:
    mean = _mean(changes.values())
    return Cell("" if mean is None else number(mean, "SS", "+"), mean, parts=changes)


def _mean(values: Iterable[float]) -> float | None:
    found = [v for v in values if v == v]
    return float(np.mean(found)) if found else None


def cost(study: Study) -> Grid:
    """What each configuration cost, and what it paid per point of ICAT gained."""
    names = ("training tokens", "training s", "all s", "dollars", "ICAT gained", "training s per point",
             "dollars per point")  # fmt: skip
    columns = [*text_columns(*study.keys), *number_columns(*names)]
    shown = [c for c in study.configurations if any(m.run.cost for m in c.members) and c.change is not None]
    lines = [Line((*_label_cells(study, c), *_cost_cells(c)), (c.key,)) for c in shown]
    return Grid(columns, lines, name="cost", caption="Cost per ICAT point, mean over seeds",
                note="ICAT of the targeted bias. \"No gain\": there is nothing to divide by. Dollars are what the runs "
                "paid; the cost of a generated set is in its own folder.")  # fmt: skip


def _cost_cells(configuration: Configuration) -> Iterator[Cell]:
    costs = [member.run.cost for member in configuration.members if member.run.cost]
    trained = [of.get("stages", {}).get("train", {}) for of in costs]
    tokens = _mean(float(stage["tokens"]) for stage in trained if "tokens" in stage)
    seconds = _mean(float(stage["seconds"]) for stage in trained if "seconds" in stage)
    known = all(of.get("dollars") is not None for of in costs)  # else the price of a chat model is unknown
    dollars = _mean(of["dollars"] for of in costs) if known else None
    row = configuration.row("ICAT")
    gain = row.delta.value if row and row.delta else None
    yield _amount(tokens, ",.0f")
    yield _amount(seconds, ",.1f")
    yield _amount(_mean(float(of["seconds"]) for of in costs if "seconds" in of), ",.1f")
    yield _amount(dollars, ",.2f") if dollars is not None else Cell("unknown")
    yield _amount(gain, "+.1f")
    for spent, form in ((seconds, ",.2f"), (dollars, ",.4f")):
        if gain is not None and gain <= 0:
            yield Cell("no gain")
        elif spent is None and form == ",.4f":
            yield Cell("unknown")
        else:
            yield _amount(spent / gain if gain is not None and spent is not None else None, form)


def _amount(value: float | None, form: str) -> Cell:
    return Cell("") if value is None else Cell(f"{value:{form}}", value)


def protocols(study: Study) -> Grid:
    """A line per configuration, figure and protocol, for benchmarks scored under several protocols."""
    lines: list[Line] = []
    for configuration in study.configurations:
        grid = comparison.protocols(rows(configuration.figures, configuration.bias), configuration.bias)
        label = tuple(_label_cells(study, configuration))
        lines += [Line((*label, *line.cells), (configuration.key,)) for line in grid.lines]
    return Grid([*text_columns(*study.keys), *comparison.PROTOCOL_COLUMNS], lines, name="protocols",
                caption="Protocol sensitivity: the same models under other protocols",
                note="Change with its 95% interval. Do not compare figures across protocols.")  # fmt: skip
