"""Where a study's runs come from, and what is to be known before their figures are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from debias.report.many_runs.collection import Collection
from debias.report.many_runs.study_tables import Cell, Grid, Line, Study


def provenance(study: Study) -> Grid:
    """One line per run: what made it."""
    names = ("run", "configuration", "seed", "finished", "debias", "git commit", "code", "config", "data")
    lines = []
    for configuration in study.configurations:
        for member in configuration.members:
            run = member.run
            status = run.status
            shas = [str(status.get(f"{what}_sha256") or "")[:12] for what in ("code", "config", "data")]
            commit = str(status.get("git_commit") or "none")
            version = str(status.get("versions", {}).get("debias", ""))
            texts = (run.name, configuration.name, run.seed, str(status.get("ended") or ""), version,
                     commit[:12] + ("+" if commit.endswith("+") else ""), *shas)  # fmt: skip
            lines.append(Line((configuration.key,), tuple(Cell(text) for text in texts)))
    return Grid("provenance", "Runs", tuple((name, True) for name in names), lines,
                "Code, config, data: the first digits of their SHA-256. +: with changes not committed.")  # fmt: skip


def versions(study: Study) -> list[tuple[str, str, int]]:
    """Package, version and number of runs."""
    found = Counter((n, str(v)) for run in study.runs for n, v in run.status.get("versions", {}).items())
    return [(name, version, number) for (name, version), number in found.items()]


def notes_on(found: Collection, left_out: Sequence[str]) -> list[str]:
    """What is to be known before the figures: what is not there, what does not belong together, what is damaged."""
    notes = [f"{len(folders)} {'run is' if len(folders) == 1 else 'runs are'} {state} and not shown"
             for state, folders in found.unfinished.items() if folders]  # fmt: skip
    if found.missing:
        notes.append(f"{found.missing} of a sweep's runs are missing: they have not been started")
    if found.generated:
        notes.append(f"{found.generated} folders hold generated data, which has no scores")
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
        notes.append(f"{without} of {len(found.runs)} runs have no records (likelihoods.parquet): their examples are "
                     "not shown, and intervals over seeds are put together from those of the runs (≈)")  # fmt: skip
    return [*notes, *left_out, *(f"damaged: {fault}" for fault in found.faults)]
