"""`debias archive`: many runs become one file that can be kept or shared, and that names nothing of the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from debias.jobs.machine_paths import distinct, names, shortened, strings, without_values
from debias.records import UserError
from debias.report.many_runs.archive import Archive, Row, write
from debias.report.many_runs.collection import Planned, Run, collect, nothing_in


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
    known = names(text for run in found.runs for text in (*strings(run.config), *(f.model for f in run.figures)))
    run_names = [_name(run.folder, paths, strings(run.config)) for run in found.runs]
    others = [(state, _name(folder, paths)) for state, folders in found.unfinished.items() for folder in folders]
    all_names = iter(distinct([*run_names, *(name for _, name in others)]))
    rows = [_row(next(all_names), run, known, records) for run in found.runs]
    rows += [Row(next(all_names), state) for state, _ in others]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, Archive(rows, found.missing, found.generated))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return Archived(len(found.runs), num_with_records, found.faults)


def _name(folder: Path, paths: Sequence[Path], texts: Sequence[str] = ()) -> str:
    """A run's folder below the path that was given, and at least with the folder that holds it, its sweep's."""
    below = next(folder.relative_to(path) for path in paths if folder.is_relative_to(path))
    parts = below.parts if len(below.parts) > 1 else Path(os.path.abspath(folder)).parts[-2:]  # noqa: PTH100 (`..`)
    paths_in_config = [text for text in texts if shortened(text) != text]
    return "/".join(shortened(without_values(part, paths_in_config)) for part in parts)


def _row(name: str, run: Run, known: Mapping[str, str], records: bool) -> Row:
    def likelihoods() -> pd.DataFrame:
        scores = run.likelihoods()
        return scores.assign(model=scores["model"].replace(known))

    figures = [figure._replace(model=known[figure.model]) for figure in run.figures]
    config, status, cost = _renamed(run.config, known), _renamed(run.status), _renamed(run.cost)
    kept = likelihoods if records and run.records else None
    return Row(name, "done", config, status, cost, figures, run.losses, kept)


def _renamed(node: Any, known: Mapping[str, str] | None = None) -> Any:
    """The same nested mapping with other texts: those in `known`, else shortened."""
    if isinstance(node, dict):
        return {key: _renamed(value, known) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value, known) for value in node]
    return (known[node] if known else shortened(node)) if isinstance(node, str) else node
