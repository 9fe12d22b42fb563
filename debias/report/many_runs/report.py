"""`debias report PATH...`: many runs on the terminal, and as a page and tables in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from debias.benchmarks.evaluation import figures_of
from debias.records import Figure, UserError
from debias.report.comparison import Row, p_text
from debias.report.many_runs.collection import Planned, Run, collect, nothing_in
from debias.report.many_runs.configurations import (
    HEADLINES,
    Benchmarks,
    Configuration,
    LabelledRun,
    grouped,
    headlines,
    labelled,
    scored,
)
from debias.report.many_runs.labels import words
from debias.report.many_runs.provenance import notes_on
from debias.report.many_runs.study_page import write_page
from debias.report.many_runs.study_tables import Study, spread
from debias.report.outcome import outcome

FEW = 20  # up to so many runs have a line of their own


def report(
    paths: Sequence[Path],
    console: Console,
    benchmarks_of: Benchmarks,
    recompute: bool = False,
    out: Path | None = None,
    planned: Planned = lambda _: None,
) -> list[str]:
    """Print the runs below the paths, those that differ in nothing but the seed put together, and write the page.

    The page goes to `out`, else to the one path that is given, unless it is a run's own folder. Of an archive
    FILE.parquet it goes to the folder FILE.

    Args:
        recompute: compute every figure of every run again from its records, and say whether they are the same.
        planned: how many runs a sweep asks for, from its multirun.yaml.

    Returns what is wrong with the files, one line each: the report is made of the runs that are whole.
    Raises UserError when there is no run to report, or a figure is not what it should be.
    """
    paths = list(paths) or [Path("outputs")]
    found = collect(paths, planned)
    if not found.runs:
        raise UserError(nothing_in(found, paths))
    kept, left_out = labelled(found.runs)
    made = grouped(kept, benchmarks_of)
    troubles = [
        f"{configuration.name}: its records are not used: {configuration.trouble}"
        for configuration in made
        if configuration.trouble
    ]
    study = Study(made, notes_on(found, [*left_out, *troubles]))
    if len(kept) <= FEW:
        console.print(_runs(kept))
        console.print(
            "base -> debiased; difference of SS with its 95% interval; StereoSet of the targeted bias", style="dim"
        )
    if any(len(configuration.members) > 1 for configuration in study.configurations) or len(kept) > FEW:
        console.print(Text("\nover seeds: mean ± standard deviation", style="bold"))
        console.print(_means(study.configurations))
        console.print("difference of SS with a 95% interval for seeds and examples alike (hierarchical bootstrap; ≈: "
                      "from the runs' own intervals), p adjusted for the number of rows", style="dim")  # fmt: skip
    for note in study.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    if folder := out or _folder(paths):
        page = write_page(folder, study, benchmarks_of)
        console.print(f"report: {page}", highlight=False, soft_wrap=True, markup=False)
    if recompute:
        console.print(f"\n{recomputed(found.runs, benchmarks_of)}", highlight=False, soft_wrap=True)
    return found.faults


def _folder(paths: Sequence[Path]) -> Path | None:
    """Where the page goes; a run's own report is never overwritten."""
    if len(paths) > 1:
        return Path("outputs")
    if paths[0].is_file():
        return paths[0].with_suffix("")
    return None if (paths[0] / "status.json").exists() else paths[0]


# ---------------------------------------------------------------- proof


def recomputed(runs: Sequence[Run], benchmarks_of: Benchmarks) -> str:
    """Every figure from likelihoods.parquet alone, against metrics.jsonl. Raises UserError where they differ."""
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
    return f"recomputed {count:,} figures of {len(runs):,} runs from their records alone: all are the same"


def _name(figure: Figure) -> tuple[str, ...]:
    return figure[:5]


def _numbers(figure: Figure) -> np.ndarray:
    return np.array([figure.value, figure.ci_low, figure.ci_high, figure.n], dtype=float)


# ---------------------------------------------------------------- terminal


def _runs(kept: Sequence[LabelledRun]) -> Table:
    """One line per run."""
    table = _table("run", "bias", "SS", "difference", "LMS", "ICAT", "perplexity", "verdict")
    for member in kept:
        run = member.run
        cells = headline_cells(member.figures, run.bias)
        verdict = outcome(member.figures, run.bias, run.bounds).verdict
        name = Text(words(member.label) or run.name)  # no markup
        table.add_row(name, run.bias, *cells, verdict)
    return table


def headline_cells(figures: Sequence[Figure], bias: str) -> list[str]:
    """SS, its change with the interval, LMS, ICAT and perplexity as text, base and debiased."""
    heads = headlines(figures, bias)
    ss = heads.get("SS")
    cells = ss.named() if ss else {}
    delta = f"{cells['difference']} ({cells['95% interval']})" if ss and ss.delta else ""
    first, *others = (_arrow(heads.get(metric)) for metric in HEADLINES)
    return [first, delta, *others]


def _means(found: Sequence[Configuration]) -> Table:
    """One line per configuration."""
    table = _table("runs", "seeds", "SS", "difference", "p", "certain", "LMS", "ICAT", "perplexity", "verdict")
    for configuration in found:
        if configuration.change is None:
            continue  # base models alone
        seeds = configuration.change
        delta = f"{'' if configuration.exact else '≈ '}{seeds.mean:+.1f} ({seeds.low:+.1f} to {seeds.high:+.1f})"
        ss, *others = [spread(configuration.values(metric)) for metric in HEADLINES]
        p = "" if configuration.p_adjusted is None else p_text(configuration.p_adjusted)
        certain = f"{configuration.certain} of {len(configuration.members)}"
        marks = ", best" if configuration.best else ", Pareto" if configuration.pareto else ""
        table.add_row(
            Text(configuration.name),
            str(len(configuration.members)),
            ss,
            delta,
            p,
            certain,
            *others,
            configuration.outcome.verdict + marks,
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        left = name in ("run", "runs", "bias", "verdict")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    return table


def _arrow(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.base.value:.1f}" + (f" -> {row.debiased.value:.1f}" if row.debiased else "")
