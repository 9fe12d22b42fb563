"""The answer of a study in plain sentences: which configuration is best, by how much, at what price, and how sure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from debias.report.comparison import number, p_equals, title_of
from debias.report.many_runs.configurations import Configuration, by_baseline
from debias.report.many_runs.study_tables import Study, spread
from debias.wording import counted, day

MOST = 6  # sentences; one for each targeted bias and base model


def title(study: Study) -> str:
    """The question of a study, from what differs between its configurations, and where its runs come from."""
    keys = [key for key in study.keys if key not in ("bias", "run")]
    places = list(dict.fromkeys(run.folder.parent.name for run in study.runs))
    where = ", ".join(places) if len(places) <= 3 else f"{len(places)} folders"
    if not keys:
        return f"{where}: is the model debiased?"
    listed = " and ".join(filter(None, (", ".join(keys[:-1]), keys[-1])))
    return f"{where}: which {listed} debias{'es' if len(keys) == 1 else ''} best?"


def facts(study: Study) -> str:
    """Runs, models, examples and dates in one line."""
    runs, groups = len(study.runs), len(study.configurations)
    models = dict.fromkeys(str(run.config.get("model", {}).get("path") or "base model") for run in study.runs)
    heads = (c.row("SS") for c in study.configurations)
    counts = dict.fromkeys(f"n = {h.base.n:,} ({title_of(h.base)} {h.base.bias})" for h in heads if h)
    times = sorted({str(run.status.get("ended") or "") for run in study.runs} - {""})
    parts = [
        f"{counted(runs, 'run')} of {counted(groups, 'configuration')}",
        ", ".join(models),
        ", ".join(counts) if len(counts) <= 4 else f"{len(counts)} biases",
        " to ".join(dict.fromkeys((day(times[0]), day(times[-1])))) if times else "",
    ]
    return " · ".join(filter(None, parts))


def answers(study: Study) -> list[str]:
    """A sentence or two for each targeted bias and base model."""
    groups = by_baseline([c for c in study.configurations if c.change is not None])
    found = [_answer(group, named=len(groups) > 1) for group in groups[:MOST]]
    return [*found, f"{len(groups) - MOST} more: see the table."] if len(groups) > MOST else found


def _answer(group: Sequence[Configuration], named: bool) -> str:
    about = f"{group[0].bias}: " if named else ""
    if len(group) == 1:
        return f"{about}{group[0].name}: {group[0].outcome.words}. {group[0].outcome.text}"
    best = next((c for c in group if c.best), None)
    if best:
        return f"{about}Best is {best.name}, {best.outcome.words}: {_change(best)}{_price(best)}. {_lead(best, group)}"
    counts = Counter(c.outcome.brief for c in group)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    text = f"{about}None of {counted(len(group), 'configuration')} is shown to debias: {told}."
    usable = [c for c in group if _usable(c)]
    if usable:
        first = max(usable, key=_icat)
        text += f" The highest ICAT is that of {first.name}, {first.outcome.words}: {_change(first)}{_price(first)}."
    return text


def _usable(configuration: Configuration) -> bool:
    """Whether a configuration has an ICAT and an outcome that does not rule it out."""
    return bool(configuration.values("ICAT")) and not configuration.outcome.failed


def _icat(configuration: Configuration) -> float:
    return float(np.mean(configuration.values("ICAT")))


def _change(configuration: Configuration) -> str:
    row, seeds = configuration.row("SS"), configuration.change
    assert row is not None
    assert seeds is not None
    ends = " to ".join(number(end, "SS", "+") for end in (seeds.low, seeds.high))
    interval = f", 95% interval of the change {ends}" if seeds.low == seeds.low else ""
    p = f", {p_equals(configuration.p_adjusted)}" if configuration.p_adjusted is not None else ""
    after = spread(configuration.values("SS"), "SS")
    return f"SS {number(row.base.value, 'SS')} to {after}{interval}{p}"


def _price(configuration: Configuration) -> str:
    """As in `; price: LMS +0.5, perplexity +1.6%, 20 s of training`."""
    parts = []
    for metric in ("LMS", "perplexity"):
        row = configuration.row(metric)
        if row and row.delta:
            relative = f"{100 * row.delta.value / row.base.value:+.1f}%"
            parts.append(f"{metric} {relative if metric == 'perplexity' else number(row.delta.value, metric, '+')}")
    parts += list(_seconds(configuration))
    return f"; price: {', '.join(parts)}" if parts else ""


def _seconds(configuration: Configuration) -> Iterator[str]:
    stages = [(member.run.cost or {}).get("stages", {}).get("train", {}) for member in configuration.members]
    seconds = [float(stage["seconds"]) for stage in stages if "seconds" in stage]
    if seconds:
        yield f"{np.mean(seconds):,.0f} s of training"


def _lead(best: Configuration, group: Sequence[Configuration]) -> str:
    """How far the next configuration is behind, and whether that is more than the errors of both."""
    others = [c for c in group if c is not best and _usable(c)]
    if not others:
        return "No other configuration is usable."
    after = max(others, key=_icat)
    lead = _icat(best) - _icat(after)
    text = f"Its ICAT of {number(_icat(best), 'ICAT')} is {number(lead, 'ICAT')} above the next, {after.name}"
    halves = [(row.delta.ci_high - row.delta.ci_low) / 2 for c in (best, after) if (row := c.row("ICAT")) and row.delta]
    error = math.hypot(*halves)
    if len(halves) < 2 or error != error:
        return f"{text}."
    # Both are scored on the same examples, so the true error of the lead is smaller.
    both = f"the error of both (±{number(error, 'ICAT')})"
    return f"{text}, more than {both}." if lead > error else f"{text}, within {both}: the order is open."
