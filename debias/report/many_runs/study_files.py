"""The tables of a study as files: report.md, report.tex and report.csv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from debias.report.comparison import HEADLINES
from debias.report.grid import Grid, markdown_text, number_columns, row
from debias.report.many_runs.answer import answers, facts, title
from debias.report.many_runs.configurations import Configuration
from debias.report.many_runs.study_tables import Study


def markdown(study: Study, grids: Sequence[Grid]) -> str:
    """All tables as Markdown."""
    text = [f"# {markdown_text(title(study))}", *map(markdown_text, answers(study)), markdown_text(facts(study))]
    text += ["\n".join(f"- {markdown_text(note)}" for note in study.notes)] if study.notes else []
    for grid in grids:
        text += [f"## {markdown_text(grid.caption)}", grid.markdown().rstrip("\n"), markdown_text(grid.note)]
    return "\n\n".join(text) + "\n"


def latex(study: Study, grids: Sequence[Grid]) -> str:
    r"""All tables for a document with \usepackage{booktabs} and \usepackage{amssymb}."""
    notes = [f"% {' '.join(note.split())}" for note in study.notes]
    head = ["% \\usepackage{booktabs}, \\usepackage{amssymb}; wide tables: \\usepackage{graphicx} and \\resizebox"]
    return "\n".join([*head, *notes, *(grid.latex() for grid in grids)]) + "\n"


def csv(study: Study) -> str:
    """A line per configuration with every number of the main table, not rounded."""
    lines = [_values(study, configuration) for configuration in study.configurations]
    names = list(dict.fromkeys(name for line in lines for name in line))
    cells = ([line.get(name) for name in names] for line in lines)
    rows = [row(*("" if value is None else str(value) for value in values)) for values in cells]
    return Grid(number_columns(*names), rows).csv()


def _values(study: Study, configuration: Configuration) -> dict[str, Any]:
    line: dict[str, Any] = dict(study.label(configuration))
    line |= {
        "targeted_bias": configuration.bias,
        "trained_on": configuration.run.trained_on,
        "seeds": len(configuration.members),
    }
    for metric in HEADLINES:
        found, values = configuration.row(metric), configuration.values(metric)
        if found is None:
            continue
        line |= {f"{metric}_base": found.base.value, f"{metric}_n": found.base.n}
        if found.delta is not None and values:
            sd = np.std(values, ddof=1) if len(values) > 1 else ""
            line |= {metric: np.mean(values), f"{metric}_sd": sd, f"{metric}_change": found.delta.value}
            line |= {f"{metric}_change_low": found.delta.ci_low, f"{metric}_change_high": found.delta.ci_high}
    if configuration.change is not None:
        line |= {
            "p": configuration.change.p_value,
            "p_adjusted": configuration.p_adjusted,
            "significant_seeds": configuration.significant_seeds,
            "interval": "exact" if configuration.exact else "approximate",
        }
    told = configuration.outcome
    reached = {"verdict": told.verdict, "verdict_on": ", ".join(told.on), "ability": told.ability}
    return line | reached | {"best": configuration.best, "pareto": configuration.pareto}
