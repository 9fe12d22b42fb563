"""Plots of many runs. Every mark names its configurations, so that the page's filters can hide it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from debias.report.comparison import number
from debias.report.many_runs.collection import PARTS
from debias.report.many_runs.configurations import Configuration, by_baseline
from debias.report.many_runs.study_tables import Study
from debias.report.plots import FAINT, INK, SERIES, STYLE, svg
from debias.wording import counted

MARKERS = "os^DvPX*"
DASHES = ("-", "--", ":", "-.")
APART = 10  # points of the screen between configurations with equal figures
MOST_POINTS = 60  # of a loss curve
SIZE = (6.4, 4.2)


class Picture(NamedTuple):
    """A plot with its name for links, its heading, and how to read it."""

    name: str
    title: str
    drawing: Markup
    note: str


@dataclass(frozen=True)
class Legend:
    """A colour and a marker for each value of one key: the data source if that differs, otherwise the first key."""

    key: str
    values: list[str]

    @classmethod
    def of(cls, study: Study) -> Legend:
        """The legend of a study."""
        keys = [key for key in study.keys if key != "bias"] or study.keys
        key = "data" if "data" in keys else keys[0]
        return cls(key, list(dict.fromkeys(configuration.label.get(key, "") for configuration in study.configurations)))

    def colour(self, configuration: Configuration) -> str:
        """The colour of a configuration."""
        return SERIES[self.values.index(configuration.label.get(self.key, "")) % len(SERIES)]

    def marker(self, configuration: Configuration) -> str:
        """The marker of a configuration; it tells the same as the colour."""
        place = self.values.index(configuration.label.get(self.key, ""))
        return MARKERS[(place + place // len(SERIES)) % len(MARKERS)]

    def draw(self, figure: Figure, marks: bool = True) -> None:
        """Draw below the axes, if there are at least two values."""
        if len(self.values) < 2:
            return
        handles = [
            plt.Line2D([], [], color=SERIES[i % len(SERIES)], marker=MARKERS[(i + i // 8) % 8] if marks else "",
                       linestyle="" if marks else "-")
            for i in range(len(self.values))
        ]  # fmt: skip
        labels = [_plain(value) or "none" for value in self.values]
        figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False,
                      ncols=2 if max(map(len, labels)) > 24 else 4)  # fmt: skip


class Marks:
    """Ids that matplotlib writes into the SVG, and that `linked` turns into attributes for the page's filters."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def name(self, artists: Iterable[Artist], keys: Sequence[str], title: str, needs: str = "configurations") -> None:
        """Name the artists' configurations; they show while one of them does (`configurations`) or all do (`all`)."""
        for artist in artists:
            artist.set_gid(f"mark-{needs}-{'.'.join(keys)}-{len(self.titles)}")
            self.titles.append(title)

    def linked(self, drawing: Markup, name: str) -> Markup:
        """The SVG with an attribute and a title for each mark, and ids that no other plot on the page uses."""

        def group(found: re.Match[str]) -> str:
            needs, keys, place = found.groups()
            return f'<g data-{needs}="{keys.replace(".", " ")}"><title>{escape(self.titles[int(place)])}</title>'

        text = re.sub(r'<g id="mark-(\w+)-([\w.]+)-(\d+)">', group, str(drawing))
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
        return Markup(text)  # noqa: S704 (matplotlib's own, and titles escaped above)


def pictures(study: Study) -> list[Picture]:
    """All plots that have something to show."""
    legend = Legend.of(study)
    with plt.rc_context(STYLE):
        made = (frontier(study, legend, "LMS"), frontier(study, legend, "perplexity"), efficiency(study, legend),
                losses(study, legend), *(losses(study, legend, part) for part in PARTS))  # fmt: skip
    return [picture for picture in made if picture is not None]


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _plain(text: str) -> str:
    """A text short enough for a legend, without what matplotlib would read as mathematics."""
    shown = text if len(text) <= 40 else text[:37] + "..."
    return shown.replace("$", r"\$")


# ---------------------------------------------------------------- frontier


def frontier(study: Study, legend: Legend, metric: str) -> Picture | None:
    """Remaining bias against remaining ability."""
    shown = [
        configuration
        for configuration in study.configurations
        if configuration.values("SS") and configuration.values(metric)
    ]
    if not shown:
        return None
    ratio = metric == "perplexity"
    figure, axes = _axes(
        "SS of the targeted bias (50 is unbiased)", "perplexity / base (lower is better)" if ratio else "LMS"
    )
    axes.axvline(50, color=FAINT, linewidth=2)
    marks = Marks()
    for group in by_baseline(shown):
        base = [group[0].row(name).base.value for name in ("SS", metric)]  # type: ignore[union-attr]
        at = (base[0], 1.0 if ratio else base[1])
        marks.name(axes.plot(*at, "x", color=INK, markersize=9, markeredgewidth=2), [c.key for c in group],
                   f"base model, {group[0].bias}: SS {number(base[0], 'SS')}, "
                   f"{metric} {number(base[1], metric)}")  # fmt: skip
    seen: Counter[tuple[float, float]] = Counter()
    for configuration in shown:
        at = _place(configuration, metric)
        spot = (round(at[0], 1), round(at[1], 3 if ratio else 1))  # closer points would hide each other
        _point(axes, configuration, at, metric, seen[spot], legend, marks)
        seen[spot] += 1
    legend.draw(figure)
    places = counted(len(shown), "configuration")
    label = f"SS against {metric} of {places} and their base models; the first table has the figures"
    title = "Bias and perplexity" if ratio else "Bias and language modelling"
    return Picture(
        f"frontier-{metric}", title, marks.linked(svg(figure, label), f"frontier-{metric}"),
        "×: base model. Ring: Pareto-optimal. Hollow: broken, overshot or worse. Lines: 95% interval of the change. "
        "Equal points are drawn one above the other.",
    )  # fmt: skip


def _place(configuration: Configuration, metric: str) -> tuple[float, float]:
    """SS, and LMS or the ratio of perplexities."""
    ss, row, seeds = configuration.row("SS"), configuration.row(metric), configuration.change
    assert ss is not None
    assert row is not None
    assert seeds is not None
    value = float(np.mean(configuration.values(metric)))
    return ss.base.value + seeds.mean, value / row.base.value if metric == "perplexity" else value


def _point(
    axes: Axes,
    configuration: Configuration,
    at: tuple[float, float],
    metric: str,
    before: int,
    legend: Legend,
    marks: Marks,
) -> None:
    """Draw a configuration; `before` others have been drawn at the same place, and it moves up beside them."""
    ss, seeds = configuration.row("SS"), configuration.change
    assert ss is not None
    assert seeds is not None
    across, up = at
    value = float(np.mean(configuration.values(metric)))
    beside = axes.transData + ScaledTranslation(0, before * APART / 72, axes.figure.dpi_scale_trans)
    colour, bad = legend.colour(configuration), configuration.outcome.failed
    drawn = axes.plot([ss.base.value + seeds.low, ss.base.value + seeds.high], [up, up], color=colour, linewidth=0.8,
                      transform=beside)  # fmt: skip
    drawn += axes.plot(across, up, legend.marker(configuration), color=colour, markersize=7, transform=beside,
                       markerfacecolor="none" if bad else colour, markeredgewidth=1.5)  # fmt: skip
    if configuration.pareto:
        drawn += axes.plot(across, up, "o", color=INK, markersize=13, markerfacecolor="none", markeredgewidth=1,
                           transform=beside)  # fmt: skip
    # Matplotlib does not count what is drawn with a transform of its own when it chooses the limits.
    ends = [(ss.base.value + end, up) for end in (seeds.low, seeds.high) if np.isfinite(end)]
    axes.update_datalim([at, *ends])
    axes.autoscale_view()
    figures = f"SS {number(across, 'SS')}, {metric} {number(value, metric)}"
    text = f"{configuration.name} ({configuration.bias}): {figures}, {configuration.outcome.words}"
    marks.name(drawn, [configuration.key], text)


# ---------------------------------------------------------------- curves


def efficiency(study: Study, legend: Legend) -> Picture | None:
    """Change of ICAT by number of training sentences; a line joins configurations that differ in nothing else."""
    lines: dict[str, list[tuple[int, Configuration]]] = {}
    for configuration in study.configurations:
        n, row = configuration.run.config.get("data", {}).get("n"), configuration.row("ICAT")
        if n and row and row.delta:
            rest = " ".join(f"{k}={v}" for k, v in configuration.label.items() if k not in ("n", "data.n"))
            lines.setdefault(rest, []).append((int(n), configuration))
    lines = {rest: sorted(line, key=lambda point: point[0]) for rest, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    figure, axes = _axes("training sentences", "change of ICAT, points")
    axes.axhline(0, color=FAINT, linewidth=2)
    axes.set_xscale("log")
    ticks = sorted({n for line in lines.values() for n, _ in line})
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    marks, drawn_of = Marks(), dict.fromkeys(legend.values, 0)
    for rest, line in lines.items():
        value = line[0][1].label.get(legend.key, "")
        dashes = DASHES[drawn_of[value] % len(DASHES)]
        drawn_of[value] += 1
        _curve(axes, rest, line, legend, dashes, marks)
    legend.draw(figure)
    drawn_lines = counted(len(lines), "line")
    label = f"Change of ICAT by the number of training sentences, {drawn_lines}; the tables have the figures"
    return Picture("efficiency", "Data efficiency", marks.linked(svg(figure, label), "efficiency"),
                   "Mean over seeds. Vertical lines: 95% interval, combined from those of the runs. Lines join "
                   "configurations that differ only in the number of sentences.")  # fmt: skip


def _curve(
    axes: Axes, rest: str, line: Sequence[tuple[int, Configuration]], legend: Legend, dashes: str, marks: Marks
) -> None:
    deltas = [configuration.row("ICAT").delta for _, configuration in line]  # type: ignore[union-attr]
    for i, ((n, configuration), delta) in enumerate(zip(line, deltas, strict=True)):
        assert delta is not None
        colour = legend.colour(configuration)
        drawn = axes.plot([n, n], [delta.ci_low, delta.ci_high], color=colour, linewidth=0.8)
        drawn += axes.plot(n, delta.value, legend.marker(configuration), color=colour, markersize=7)
        marks.name(drawn, [configuration.key], f"{configuration.name}: ICAT {delta.value:+.1f} with {n:,} sentences")
        if i:
            (before, other), at = line[i - 1], deltas[i - 1]
            joint = axes.plot([before, n], [at.value, delta.value], dashes, color=colour, linewidth=1.2)  # type: ignore[union-attr]
            marks.name(joint, [other.key, configuration.key], rest, needs="all")


def losses(study: Study, legend: Legend, part: str = "") -> Picture | None:
    """Running mean of the training loss of each run, or of a part of it."""
    runs = [(c, e.run) for c in study.configurations for e in c.members]
    curves = [(c, run, run.loss_parts.get(part, []) if part else run.losses) for c, run in runs]
    shown = [(c, run, curve) for c, run, curve in curves if len(curve) > 1]
    if not shown:
        return None
    title = PARTS.get(part, "Training loss")
    figure, axes = _axes("share of the training", f"{title.lower().replace('kl', 'KL')}, nats per token (running mean)")
    marks = Marks()
    for configuration, run, curve in shown:
        steps, mean = thinned(curve)
        drawn = axes.plot(steps / steps[-1], mean, color=legend.colour(configuration), linewidth=1.1, alpha=0.8)
        over = counted(int(steps[-1]), "step")
        text = f"{configuration.name}, seed {run.seed}: {mean[0]:.2f} to {mean[-1]:.2f} in {over}"
        marks.name(drawn, [configuration.key], text)
    legend.draw(figure, marks=False)
    label, name = f"{title} of {counted(len(shown), 'run')}", f"losses-{part}" if part else "losses"
    return Picture(name, title, marks.linked(svg(figure, label), name), "One line per run.")


def thinned(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the running mean of the loss over a tenth of all steps, at no more than `MOST_POINTS` places."""
    steps, loss = np.array(points, dtype=float).T
    window = max(1, len(loss) // 10)
    sums = np.cumsum(np.concatenate([[0.0], loss]))
    stop = np.arange(1, len(loss) + 1)
    start = np.maximum(0, stop - window)
    mean = (sums[stop] - sums[start]) / (stop - start)
    kept = np.unique(np.linspace(0, len(loss) - 1, MOST_POINTS).round().astype(int))
    return steps[kept], mean[kept]


def colours() -> Mapping[str, tuple[str, str]]:
    """The colours of the series in light and dark mode, distinguishable with common kinds of colour blindness."""
    light = ("#0b6e99", "#c2410c", "#1a7f4b", "#8e3fa8", "#8a6d00", "#b3261e", "#3f4db8", "#54606b")
    dark = ("#57b8e3", "#ff9f5a", "#5fcf95", "#d69bea", "#e3c34a", "#ff8a80", "#a3adff", "#b4bec8")
    return {f"s{i}": pair for i, pair in enumerate(zip(light, dark, strict=True))}
