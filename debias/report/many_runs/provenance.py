"""Where a study's runs come from, and what to know before reading their figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from debias.report.grid import Cell, Grid, Line, number_columns, row, text_columns
from debias.report.many_runs.collection import Collection
from debias.report.many_runs.study_tables import Study
from debias.wording import counted, moment, seconds


def provenance(study: Study) -> Grid:
    """A line per run: what made it."""
    lines = []
    for configuration in study.configurations:
        for member in configuration.members:
            run = member.run
            status = run.status
            shas = [str(status.get(f"{what}_sha256") or "")[:12] for what in ("code", "config", "data")]
            commit = str(status.get("git_commit") or "none")
            version = str(status.get("versions", {}).get("debias", ""))
            ended = str(status.get("ended") or "")
            finished = Cell(moment(ended), seconds(ended))
            texts = version, commit[:12] + ("+" if commit.endswith("+") else ""), *shas
            cells = (*map(Cell, (run.name, configuration.name, run.seed)), finished, *map(Cell, texts))
            lines.append(Line(cells, (configuration.key,)))
    names = ("run", "configuration", "seed", "finished", "debias", "git commit", "code", "config", "data")
    return Grid(text_columns(*names), lines, name="provenance", caption="Runs",
                note="Code, config, data: the first digits of their SHA-256. +: with uncommitted changes.")  # fmt: skip


def versions(study: Study) -> Grid:
    """A line per package version, with the number of runs that used it."""
    found = Counter((n, str(v)) for run in study.runs for n, v in run.status.get("versions", {}).items())
    lines = [row(name, version, str(number)) for (name, version), number in found.items()]
    return Grid([*text_columns("package", "version"), *number_columns("runs")], lines, caption="Versions")


def notes_on(found: Collection, left_out: Sequence[str]) -> list[str]:
    """What to know before reading the figures: what is missing, what may not be comparable, what is damaged."""
    notes = [f"{counted(len(folders), 'run is', 'runs are')} {state} and not shown"
             for state, folders in found.unfinished.items() if folders]  # fmt: skip
    if found.missing:
        notes.append(f"{counted(found.missing, 'run')} of a sweep not started yet")
    if found.generated:
        notes.append(f"{counted(found.generated, 'folder')} with generated data and without scores")
    for what, of in (
        ("versions of debias", lambda s: s.get("versions", {}).get("debias")),
        ("git commits", lambda s: s.get("git_commit")),
        ("versions of its code (code_sha256)", lambda s: s.get("code_sha256")),
    ):
        counts = Counter(str(of(run.status) or "unknown") for run in found.runs)
        if len(counts) > 1:
            several = ", ".join(f"{name[:12]} ({count})" for name, count in counts.most_common(5))
            notes.append(f"the runs come from {len(counts)} {what}: {several}; their figures may not be comparable")
    without = sum(not run.records for run in found.runs)
    if without:
        runs = counted(len(found.runs), "run")
        notes.append(f"no records (likelihoods.parquet) in {without} of {runs}: their examples are not shown, and "
                     "their intervals over seeds combine those of the runs (≈)")  # fmt: skip
    return [*notes, *left_out, *(f"damaged: {fault}" for fault in found.faults)]
