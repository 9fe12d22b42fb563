"""Tables of a study -> Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from debias.report.many_runs.configurations import HEADLINES, Configuration
from debias.report.many_runs.study_tables import Grid, Study

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "≈": r"$\approx$", "→": r"$\to$", "★": r"$\star$", "◆": r"$\diamond$",
    "[": "{[}", "⚠": r"$\dagger$", "✓": r"$\checkmark$",
}  # fmt: skip


def markdown(study: Study, grids: Sequence[Grid]) -> str:
    """All tables as Markdown, base models in italics."""
    text = [f"# {title(study)}", *(f"- {_cell(note)}" for note in study.notes)]
    for grid in grids:
        text += [f"## {_cell(grid.caption)}", "\n".join(_markdown_lines(grid)), _cell(grid.note)]
    return "\n\n".join(text).replace("\n\n- ", "\n- ").replace("\n- ", "\n\n- ", 1) + "\n"


def _markdown_lines(grid: Grid) -> Iterator[str]:
    yield "| " + " | ".join(_cell(name) for name, _ in grid.columns) + " |"
    yield "|" + "|".join("---" if text else "--:" for _, text in grid.columns) + "|"
    for line in grid.lines:
        cells = [_cell(cell.text) for cell in line.cells]
        yield "| " + " | ".join(f"*{c}*" if c and line.baseline else c for c in cells) + " |"


def _cell(text: str) -> str:
    """A text that stays inside one cell, whatever it holds."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def title(study: Study) -> str:
    """The heading of a study."""
    runs, groups = len(study.runs), len(study.configurations)
    return f"debias: {runs} run{'s' if runs != 1 else ''}, {groups} configuration{'s' if groups != 1 else ''}"


def latex(study: Study, grids: Sequence[Grid]) -> str:
    r"""All tables for a document with \usepackage{booktabs} and \usepackage{amssymb}."""
    notes = [f"% {' '.join(note.split())}" for note in study.notes]
    head = ["% \\usepackage{booktabs}, \\usepackage{amssymb}; wide tables: \\usepackage{graphicx} and \\resizebox"]
    return "\n".join([*head, *notes, *(_latex_table(grid) for grid in grids)]) + "\n"


def _latex_table(grid: Grid) -> str:
    lines = [
        r"\begin{table}", r"\centering", f"\\caption{{{escape(grid.caption)}. {escape(grid.note)}}}",
        f"\\label{{tab:{grid.name}}}", f"\\begin{{tabular}}{{{''.join('l' if t else 'r' for _, t in grid.columns)}}}",
        r"\toprule", _latex_line(name for name, _ in grid.columns), r"\midrule",
    ]  # fmt: skip
    for i, line in enumerate(grid.lines):
        if i and grid.lines[i - 1].baseline and not line.baseline:
            lines.append(r"\midrule")
        lines.append(_latex_line(cell.text for cell in line.cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _latex_line(texts: Iterator[str]) -> str:
    return " & ".join(escape(text) for text in texts) + r" \\"


def escape(text: str) -> str:
    """A text without anything that LaTeX would take for a command."""
    return "".join(TEX.get(letter, letter) for letter in " ".join(text.split()))


def table_csv(study: Study) -> str:
    """One line per configuration with every number of the main table unrounded."""
    lines = [_numbers(study, configuration) for configuration in study.configurations]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _numbers(study: Study, configuration: Configuration) -> dict[str, Any]:
    line: dict[str, Any] = dict(zip(study.keys, study.label(configuration), strict=False))
    line |= {
        "targeted_bias": configuration.bias,
        "trained_on": configuration.run.trained_on,
        "seeds": len(configuration.members),
    }
    for metric in HEADLINES:
        row, values = configuration.row(metric), configuration.values(metric)
        if row is None:
            continue
        line |= {f"{metric}_base": row.base.value, f"{metric}_n": row.base.n}
        if row.delta is not None and values:
            sd = np.std(values, ddof=1) if len(values) > 1 else ""
            line |= {metric: np.mean(values), f"{metric}_sd": sd, f"{metric}_change": row.delta.value}
            line |= {f"{metric}_change_low": row.delta.ci_low, f"{metric}_change_high": row.delta.ci_high}
    if configuration.change is not None:
        line |= {"p": configuration.change.p_value, "p_adjusted": configuration.p_adjusted,
                 "certain_seeds": configuration.certain,
                 "interval": "exact" if configuration.exact else "approximate"}  # fmt: skip
    return line | {"verdict": configuration.outcome.verdict, "best": configuration.best, "pareto": configuration.pareto}
