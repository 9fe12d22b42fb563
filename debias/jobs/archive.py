"""`debias archive`: many runs become one file that can be kept or shared, and that names nothing of the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from debias.jobs.machine_paths import Keyed, distinct, names, renamed, shortened, texts_in, without_values
from debias.records import UserError
from debias.report.many_runs.archive import Archive, Row, write
from debias.report.many_runs.collection import Planned, Run, collect, nothing_in

MODEL = "model"  # the column of figures and records that may name an adapter's folder


class Archived(NamedTuple):
    """How many runs are in the file, how many of them with records, and what could not be read, one line each."""

    num_runs: int
    num_with_records: int
    faults: list[str]


def archive(
    paths: Sequence[Path],
    out: Path,
    records: bool = False,
    overwrite: bool = False,
    planned: Planned = lambda _: None,
) -> Archived:
    """Write the runs below the paths, and those of archives among them, to one archive.

    Args:
        records: keep the scores of single texts of the runs that have them.
        overwrite: whether `out` may be replaced.
        planned: how many runs a sweep asks for, from its multirun.yaml.

    Raises UserError when there is nothing to write, or the file exists.
    """
    if out.suffix != ".parquet":
        raise UserError(f"--out {out}: name a file that ends in .parquet")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already; choose another --out, or set overwrite=true")
    found = collect(paths, planned)
    if not found.runs:
        raise UserError(nothing_in(found, paths))
    num_with_records = sum(run.records is not None for run in found.runs) if records else 0
    if records and not num_with_records:
        raise UserError("no run has records (likelihoods.parquet) to keep: leave --records out")
    known = names(pair for run in found.runs for pair in texts_in(run.config))
    models = names((MODEL, figure.model) for run in found.runs for figure in run.figures)
    rows = [_row(_name(run.folder, paths, run.config), run, known, models, records) for run in found.runs]
    rows += [Row(_name(folder, paths), state) for state, folders in found.unfinished.items() for folder in folders]
    run_names = distinct([row.run for row in rows])
    rows = [row._replace(run=name) for row, name in zip(rows, run_names, strict=True)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, Archive(rows, found.missing, found.generated))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return Archived(len(found.runs), num_with_records, found.faults)


def _name(folder: Path, paths: Sequence[Path], config: Mapping[str, Any] | None = None) -> str:
    """A run's folder below the path that was given, and at least with the folder that holds it, its sweep's."""
    below = next(folder.relative_to(path) for path in paths if folder.is_relative_to(path))
    parts = below.parts if len(below.parts) > 1 else Path(os.path.abspath(folder)).parts[-2:]  # noqa: PTH100 (`..`)
    hidden = [text for _, text in texts_in(config) if shortened(text) != text]
    return "/".join(shortened(without_values(part, hidden)) for part in parts)


def _row(name: str, run: Run, known: Mapping[Keyed, str], models: Mapping[Keyed, str], records: bool) -> Row:
    def likelihoods() -> pd.DataFrame:
        scores = run.likelihoods()
        return scores.assign(model=scores["model"].replace({model: short for (_, model), short in models.items()}))

    figures = [figure._replace(model=models[MODEL, figure.model]) for figure in run.figures]
    config, status, cost = (renamed(part, known) for part in (run.config, run.status, run.cost))
    kept = likelihoods if records and run.records else None
    return Row(name, "done", config, status, cost, figures, run.losses, kept)
