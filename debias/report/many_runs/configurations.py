"""Runs -> configurations: each is a group of runs that differ only by seed, with their mean figures and a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from debias.benchmarks import Benchmark
from debias.benchmarks.evaluation import records_of
from debias.benchmarks.seeds import Seeds, over_seeds, roughly_over_seeds
from debias.benchmarks.statistics import adjusted, adjusted_p, possible
from debias.records import Figure, UserError
from debias.report.comparison import HEADLINES, Row, headlines
from debias.report.many_runs.collection import Run
from debias.report.many_runs.labels import Label, by_choice_and_seed, content, differences, ordered, words
from debias.report.outcome import Outcome, by_adapter, outcome

ROUNDING = 1e-6  # allowed difference, in points, of a figure and the same from the records
Benchmarks = Callable[[dict[str, Any]], Sequence[Benchmark]]  # a run's config -> the benchmarks that scored it


@dataclass(frozen=True)
class LabelledRun:
    """One adapter of one run, or the base model alone, with the label that tells it apart from the others."""

    run: Run
    figures: list[Figure]
    label: Label


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only by seed, and their mean figures."""

    key: str  # what the page calls it
    label: Label  # without the seed
    members: list[LabelledRun]
    figures: list[Figure]
    change: Seeds | None  # the difference of StereoSet's SS for the targeted bias; None for a base model alone
    exact: bool  # whether `change` was computed from records; otherwise it combines the runs' intervals
    outcome: Outcome
    p_adjusted: float | None = None  # of `change`, corrected for the number of configurations
    best: bool = False
    pareto: bool = False
    trouble: str = ""  # why its records could not be used although they exist

    @property
    def run(self) -> Run:
        """Any of its runs, for what they all share."""
        return self.members[0].run

    @property
    def bias(self) -> str:
        """The targeted bias."""
        return self.run.bias

    @property
    def name(self) -> str:
        """Its label in words."""
        return words(self.label) or (self.run.name if len(self.members) == 1 else self.run.folder.parent.name)

    def row(self, metric: str) -> Row | None:
        """The mean over seeds of one of `HEADLINES`."""
        return headlines(self.figures, self.bias).get(metric)

    def values(self, metric: str) -> list[float]:
        """One of `HEADLINES` after training, by seed."""
        found = [heads.get(metric) for heads in self._of_seeds]
        return [row.debiased.value for row in found if row and row.debiased]

    @property
    def significant_seeds(self) -> int:
        """Number of seeds whose own change of SS is significant, with p corrected for the figures of the run."""
        return sum("SS" in heads and heads["SS"].significant for heads in self._of_seeds)

    @cached_property
    def _of_seeds(self) -> list[dict[str, Row]]:
        return [headlines(member.figures, self.bias) for member in self.members]

    @property
    def baseline(self) -> tuple[str | tuple[float, int] | None, ...]:
        """The targeted bias and the base model's figures; only configurations with equal baselines are ranked."""
        bases = (self.row(metric) for metric in HEADLINES)
        return (self.bias, *((round(row.base.value, 6), row.base.n) if row else None for row in bases))


def labelled(runs: Sequence[Run]) -> tuple[list[LabelledRun], list[str]]:
    """The adapters of all runs with their labels, and notes on runs that were left out.

    Of runs with the same config and seed the latest is kept. Runs whose configs do not have the same keys may share
    all labels; then their folder tells them apart.
    """
    found, notes = [], []
    for run, label in zip(runs, differences([run.config for run in runs]), strict=True):
        for name, figures in by_adapter(run.figures).items():
            found.append(LabelledRun(run, figures, _of_one(label, run, name) if name else label))
    order = {(id(member.run), member.label.get("adapter")): i for i, member in enumerate(found)}
    result: list[LabelledRun] = []
    for group in _by_label(found).values():
        by_config: dict[str, dict[str, LabelledRun]] = {}
        for member in sorted(group, key=lambda m: str(m.run.status.get("ended") or "")):
            by_seed = by_config.setdefault(content(member.run.config), {})
            if older := by_seed.get(member.run.seed):
                notes.append(f"{older.run.name} is left out: {member.run.name} has the same config and seed")
            by_seed[member.run.seed] = member
        for by_seed in by_config.values():
            where = {"run": next(iter(by_seed.values())).run.name} if len(by_config) > 1 else {}
            result += [LabelledRun(m.run, m.figures, {**where, **m.label}) for m in by_seed.values()]
    return sorted(result, key=lambda m: (by_choice_and_seed(m.label), order[id(m.run), m.label.get("adapter")])), notes


def _of_one(label: Label, run: Run, adapter: str) -> Label:
    """The label of one of several adapters: its name instead of the list of all paths."""
    paths = str(run.config.get("adapter", {}).get("path"))
    return {**{key: value for key, value in label.items() if value != paths}, "adapter": adapter}


def _by_label(found: Sequence[LabelledRun]) -> dict[str, list[LabelledRun]]:
    groups: dict[str, list[LabelledRun]] = {}
    for member in found:
        groups.setdefault(words({k: v for k, v in member.label.items() if k != "seed"}), []).append(member)
    return groups


def grouped(found: Sequence[LabelledRun], benchmarks_of: Benchmarks) -> list[Configuration]:
    """The configurations in the order of their labels, ranked, with p-values corrected for their number."""
    groups = sorted(_by_label(found).values(), key=lambda group: ordered(group[0].label))
    result = [_configuration(f"c{i}", group, benchmarks_of) for i, group in enumerate(groups)]
    tested = [i for i, c in enumerate(result) if c.change is not None and np.isfinite(c.change.p_value)]
    p_values = adjusted_p([result[i].change.p_value for i in tested])  # type: ignore[union-attr]
    for i, p in zip(tested, p_values, strict=True):
        result[i] = _corrected(result[i], p)
    return ranked(result)


def _configuration(key: str, group: Sequence[LabelledRun], benchmarks_of: Benchmarks) -> Configuration:
    run, label = group[0].run, {k: v for k, v in group[0].label.items() if k != "seed"}
    figures, exact, trouble = mean_figures(group), len(group) == 1, ""
    place = _headline_change(figures, run.bias)
    change = None
    if place is not None:
        delta = figures[place]
        change = _roughly(group, delta) if len(group) > 1 else _alone(delta)
        if not exact and all(member.run.records for member in group):
            try:
                if over_both := difference_over_seeds(group, benchmarks_of, delta):
                    change, exact = over_both, True
            except UserError as error:  # records of another version: everything else needs only figures
                trouble = str(error)
        figures[place] = delta._replace(
            value=change.mean, ci_low=change.low, ci_high=change.high, p_value=change.p_value
        )
    verdict = outcome(figures, run.bias, run.bounds)
    return Configuration(key, label, list(group), figures, change, exact, verdict, trouble=trouble)


def _corrected(configuration: Configuration, p: float) -> Configuration:
    """The configuration judged by a p-value that is corrected for the number of configurations."""
    figures, run = list(configuration.figures), configuration.run
    place = _headline_change(figures, run.bias)
    assert place is not None
    figures[place] = figures[place]._replace(p_adjusted=p)
    return replace(configuration, figures=figures, p_adjusted=p, outcome=outcome(figures, run.bias, run.bounds))


def _headline_change(figures: Sequence[Figure], bias: str) -> int | None:
    row = headlines(figures, bias).get("SS")
    return None if row is None or row.delta is None else list(figures).index(row.delta)


def _alone(delta: Figure) -> Seeds:
    p = float("nan") if delta.p_value is None else delta.p_value
    return Seeds(delta.value, float("nan"), delta.ci_low, delta.ci_high, 1, p)


def _roughly(group: Sequence[LabelledRun], delta: Figure) -> Seeds:
    mine = [f for member in group for f in member.figures if f[:5] == delta[:5]]
    return _rough(mine)


def _rough(same: Sequence[Figure]) -> Seeds:
    p_values = [f.p_value for f in same]
    known = p_values if any(p is not None for p in p_values) else ()  # a model alone has no p
    return roughly_over_seeds([f.value for f in same], [f.ci_low for f in same], [f.ci_high for f in same], known)


def mean_figures(group: Sequence[LabelledRun]) -> list[Figure]:
    """Figures averaged over seeds, with intervals combined from those of the runs, and p corrected for their number."""
    if len(group) == 1:
        return list(group[0].figures)
    by: dict[tuple[str, ...], list[Figure]] = {}
    for member in group:
        for f in member.figures:
            by.setdefault(f[:5], []).append(f)
    means = [_mean(same) for same in by.values() if len(same) == len(group)]  # only what every seed was scored on
    return adjusted(means)


def _mean(same: Sequence[Figure]) -> Figure:
    seeds = _rough(same)
    low, high = possible(seeds.low, seeds.high, same[0].ideal)  # a difference has no ideal
    first = same[0]._replace(value=seeds.mean, ci_low=low, ci_high=high, mde=None, p_adjusted=None)
    return first._replace(p_value=seeds.p_value, test="seeds") if first.p_value is not None else first


def difference_over_seeds(group: Sequence[LabelledRun], benchmarks_of: Benchmarks, delta: Figure) -> Seeds | None:
    """The change that `delta` is the mean of, over runs that differ only by seed; None without resamples.

    A percentage of independent pairs has none, because its interval and test are exact enough without.

    Raises UserError if a run has no records, or records that do not give its own figures.
    """
    found = []
    for member in group:
        run, records = member.run, records_of_run(member)
        mine = records[(records["benchmark"] == delta.benchmark) & (records["protocol"] == delta.protocol)]
        mine = mine[mine["bias"] == delta.bias] if delta.bias in set(mine["bias"]) else mine
        wrong = f"{run.name}: its records are not of the {delta.benchmark} of its config"
        benchmarks = scored(benchmarks_of(run.config), mine)
        if not benchmarks:
            raise UserError(f"{wrong}; run this job again")
        by_model = records_of(benchmarks[0], mine)
        comparisons = benchmarks[0].comparisons(by_model["base"], by_model["debiased"])
        same = [c for c in comparisons if (c.bias, c.metric) == (delta.bias, delta.metric)]
        figure = next(f for f in member.figures if f[:5] == delta[:5])
        if not same or abs(same[0].delta.value - figure.value) > ROUNDING:
            raise UserError(f"{wrong}, or its figures are not of these records; run this job again")
        found.append(same[0])
    if not all(c.samples.size for c in found):
        return None
    return over_seeds([c.delta.value for c in found], [c.samples[2] for c in found], found[0].freedom, found[0].units)


def records_of_run(member: LabelledRun) -> pd.DataFrame:
    """The records of a run; for one of several adapters, as if it were the only one.

    Raises UserError if the run has none.
    """
    records, name = member.run.likelihoods(), member.label.get("adapter")
    if not name:
        return records
    mine = records[records["model"].isin(["base", f"debiased:{name}"])]
    return mine.assign(model=mine["model"].str.partition(":")[0])


def scored(benchmarks: Sequence[Benchmark], records: pd.DataFrame) -> list[Benchmark]:
    """The benchmarks that have records."""
    known = set(zip(records["benchmark"], records["protocol"], strict=True))
    return [b for b in benchmarks if (b.name, b.protocol_name) in known]


# ---------------------------------------------------------------- ranks


def by_baseline(found: Sequence[Configuration]) -> list[list[Configuration]]:
    """Groups that target the same bias and start from the same base model: only within a group figures compare."""
    groups: dict[object, list[Configuration]] = {}
    for configuration in found:
        groups.setdefault(configuration.baseline, []).append(configuration)
    return list(groups.values())


def ranked(found: Sequence[Configuration]) -> list[Configuration]:
    """The configurations with the best and the Pareto-optimal ones of each baseline marked.

    Best: the highest ICAT among those with the verdict `debiased`. Pareto-optimal: no other configuration is at least
    as good in distance of SS from 50, LMS and perplexity, and better in one of them. A configuration whose outcome
    `failed` is neither, and beats no other.
    """
    groups = by_baseline([c for c in found if c.change is not None])
    best = {_best(group) for group in groups}
    front = {key for group in groups for key in _front(group)}
    return [replace(c, best=c.key in best, pareto=c.key in front) for c in found]


def _best(group: Sequence[Configuration]) -> str | None:
    good = [c for c in group if c.outcome.verdict == "debiased" and c.values("ICAT")]
    return max(good, key=lambda c: np.mean(c.values("ICAT"))).key if len(group) > 1 and good else None


def _front(group: Sequence[Configuration]) -> Iterator[str]:
    losses = {c.key: _losses(c) for c in group if not c.outcome.failed}
    for key, mine in losses.items():
        beaten = (all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine for other in losses.values())
        if len(group) > 1 and not any(beaten):
            yield key


def _losses(configuration: Configuration) -> tuple[float, ...]:
    """What should be low: distance of SS from 50, -LMS, perplexity. Equal baselines have the same ones of them."""
    ss, lms, perplexity = (configuration.values(metric) for metric in ("SS", "LMS", "perplexity"))
    found = [abs(np.mean(ss) - 50)] + ([-np.mean(lms)] if lms else []) + ([np.mean(perplexity)] if perplexity else [])
    return tuple(round(float(value), 9) for value in found)
