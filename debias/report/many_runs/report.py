"""`debias report PATH...`: many runs on the terminal, and as a page and tables in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from debias.benchmarks.evaluation import figures_of
from debias.records import Figure, UserError
from debias.report.comparison import headline_cells, headlines, title_of
from debias.report.grid import Cell, Grid, Line, number_columns, row, text_columns
from debias.report.many_runs.answer import answers
from debias.report.many_runs.collection import Planned, Run, collect, nothing_in
from debias.report.many_runs.configurations import (
    Benchmarks,
    LabelledRun,
    grouped,
    labelled,
    scored,
)
from debias.report.many_runs.labels import words
from debias.report.many_runs.provenance import notes_on
from debias.report.many_runs.study_page import write_page
from debias.report.many_runs.study_tables import SIGNIFICANT_SEEDS, Study, main
from debias.report.outcome import outcome
from debias.wording import counted

FEW = 20  # with more runs, the terminal shows only configurations


def report(
    paths: Sequence[Path],
    console: Console,
    benchmarks_of: Benchmarks,
    recompute: bool = False,
    out: Path | None = None,
    planned: Planned = lambda _: None,
) -> list[str]:
    """Print the runs below the paths, grouped into configurations, and write the page.

    The page goes to `out` or, without it, to the only path given, unless that is a run's own folder. For an archive
    FILE.parquet it goes to the folder FILE.

    Args:
        recompute: compute every figure of every run again from its records, and check that none differs.
        planned: how many runs a sweep asks for, from its multirun.yaml.

    Returns what is wrong with the files, one line each; the report covers the runs that are whole.
    Raises UserError if there is no run to report, or a figure differs from its records.
    """
    paths = list(paths) or [Path("outputs")]
    found = collect(paths, planned)
    if not found.runs:
        raise UserError(nothing_in(found, paths))
    kept, left_out = labelled(found.runs)
    made = grouped(kept, benchmarks_of)
    troubles = [f"{c.name}: its records are not used: {c.trouble}" for c in made if c.trouble]
    study = Study(made, notes_on(found, [*left_out, *troubles]))
    if len(kept) <= FEW:
        console.print(_runs(kept).terminal())
        found_ss = [ss for m in kept if (ss := headlines(m.figures, m.run.bias).get("SS"))]
        of = " or ".join(dict.fromkeys(title_of(ss.base) for ss in found_ss))
        console.print(f"base -> debiased{of and f' on {of}'}, targeted bias; change of SS with its 95% interval",
                      style="dim")  # fmt: skip
    if any(len(c.members) > 1 for c in study.configurations) or len(kept) > FEW:
        console.print(Text("\nover seeds: mean ± standard deviation", style="bold"))
        console.print(_configurations(study).terminal())
        console.print("change of SS with a 95% interval over both seeds and examples (≈: combined from the intervals "
                      "of the runs); p corrected for the number of configurations; *: p below .05; "
                      f"{SIGNIFICANT_SEEDS}: those whose own change is significant", style="dim")  # fmt: skip
    for sentence in answers(study):
        console.print(f"\n{sentence}", style="bold", highlight=False, soft_wrap=True, markup=False)
    for note in study.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    last = []
    if folder := out or _folder(paths):
        page = write_page(folder, study, benchmarks_of)
        last.append(f"page: {page.resolve().as_uri()}")
    if recompute:
        console.print(f"\n{recomputed(found.runs, benchmarks_of)}", highlight=False, soft_wrap=True)
    last.append(f"\nnext: open the page, or debias archive {' '.join(map(str, paths))} --out study.parquet")
    for line in last:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return found.faults


def _folder(paths: Sequence[Path]) -> Path | None:
    """Where the page goes: never over a run's own report."""
    if len(paths) > 1:
        return Path("outputs")
    if paths[0].is_file():
        return paths[0].with_suffix("")
    return None if (paths[0] / "status.json").exists() else paths[0]


# ---------------------------------------------------------------- proof


def recomputed(runs: Sequence[Run], benchmarks_of: Benchmarks) -> str:
    """Compute all figures from likelihoods.parquet and compare with metrics.jsonl. Raises UserError on a difference."""
    count = 0
    for run in runs:
        records = run.likelihoods()
        fresh = {_name(f): f for f in figures_of(scored(benchmarks_of(run.config), records), records)}
        for figure in run.figures:
            other = fresh.get(_name(figure))
            if other is None or not np.allclose(_numbers(other), _numbers(figure), rtol=1e-6, equal_nan=True):
                raise UserError(f"{run.folder / 'metrics.jsonl'}: {' '.join(_name(figure))} is {figure.value}, "
                                f"but its records give {other.value if other else 'nothing'}")  # fmt: skip
        count += len(run.figures)
    return f"recomputed {counted(count, 'figure')} of {counted(len(runs), 'run')} from records alone: all are the same"


def _name(figure: Figure) -> tuple[str, ...]:
    return figure[:5]


def _numbers(figure: Figure) -> np.ndarray:
    return np.array([figure.value, figure.ci_low, figure.ci_high, figure.n], dtype=float)


# ---------------------------------------------------------------- terminal


def _runs(kept: Sequence[LabelledRun]) -> Grid:
    """A line per run."""
    lines = []
    for member in kept:
        run = member.run
        verdict = outcome(member.figures, run.bias, run.bounds).words
        lines.append(row(words(member.label) or run.name, run.bias, *headline_cells(member.figures, run.bias), verdict))
    columns = [
        *text_columns("run", "bias"),
        *number_columns("SS", "change of SS", "LMS", "ICAT", "perplexity", extra=("LMS", "ICAT")),
        *text_columns("verdict"),
    ]
    return Grid(columns, lines)


def _configurations(study: Study) -> Grid:
    """The main table with each label in one column, so that it stays narrow, and without base models."""
    grid, keys = main(study), len(study.keys)
    names = {c.key: c.name for c in study.configurations}
    lines = [
        Line((Cell(names[line.configurations[0]]), *line.cells[keys:])) for line in grid.lines if not line.baseline
    ]
    return Grid([*text_columns("configuration"), *grid.columns[keys:]], lines)
