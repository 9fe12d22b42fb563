"""The progress of a sweep, read from its run folders: done, skipped, failed, running, missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from debias.records import UserError
from debias.report.comparison import headline_cells
from debias.report.grid import Cell, Column, Grid, Line, number_columns, text_columns
from debias.results import (
    INTERRUPTED,
    REFUSED,
    OtherCodeError,
    code_sha256,
    read_figures,
    read_status,
    running,
)  # fmt: skip

OTHER_CODE = "by other code"
STATES = ("done", "skipped", OTHER_CODE, "failed", "running", "missing")
FIGURES = ("SS", "change of SS", "LMS", "ICAT", "perplexity")
KINDS = {"done": "good", OTHER_CODE: "warning", "failed": "bad", "missing": "warning"}


class State(NamedTuple):
    """One job: folder, what sets it apart from the others, one of STATES, seconds, last line of the error."""

    folder: Path
    name: str
    state: str
    seconds: float | None = None
    error: str = ""


def states_of(jobs: Mapping[Path, str], since: datetime, probe: bool = True) -> list[State]:
    """The states of all jobs: run folder -> name."""
    return [state_of(folder, name, since, probe) for folder, name in jobs.items()]


def state_of(folder: Path, name: str, since: datetime, probe: bool = True) -> State:
    """The state of a job, seen from a launch that began at `since`: a job that ended earlier is `skipped`.

    A finished run that other code made has an error unless the launch accepted it.

    Args:
        probe: if status.json says `running`, check that a process really holds the folder.
    """
    status = read_status(folder)
    state, error = status.get("state"), str(status.get("error") or "")
    refused = (folder / REFUSED).read_text(encoding="utf-8") if (folder / REFUSED).is_file() else ""
    by_name = f"{OtherCodeError.__name__}: "
    if refused and not refused.startswith(by_name):
        return State(folder, name, "failed", error=_last_line(refused))
    if state == "done":
        if datetime.fromisoformat(status["ended"]) >= since:
            return State(folder, name, "done", seconds_of(folder))
        if status.get("code_sha256") not in (None, code_sha256()):
            return State(folder, name, OTHER_CODE, seconds_of(folder), _last_line(refused).removeprefix(by_name))
        return State(folder, name, "skipped", seconds_of(folder))
    if state == "failed" and error != INTERRUPTED:
        return State(folder, name, "failed", error=_last_line(error))
    if state == "running" and (not probe or running(folder)):
        return State(folder, name, "running")
    reason = {"running": "its process ended", "failed": INTERRUPTED}.get(str(state), "")
    return State(folder, name, "missing", error=reason)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.startswith(" ")]  # OmegaConf indents the location
    return lines[-1].strip().removeprefix("UserError: ") if lines else ""


def seconds_of(folder: Path) -> float | None:
    """Seconds that a run took in all its stages; None if unknown."""
    try:
        return float(json.loads((folder / "cost.json").read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return None


def summary(states: Sequence[State]) -> str:
    """As in `24 jobs: 20 done, 3 skipped, 1 failed`."""
    counts = Counter(s.state for s in states)
    return f"{len(states)} jobs: " + ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])


def table(states: Sequence[State], figures: bool = False) -> Grid:
    """A line per job, on request with the figures of those that are done."""
    lines = []
    for s in states:
        state = Cell(f"done, {s.state}" if s.state == OTHER_CODE else s.state, kind=KINDS.get(s.state, ""))
        texts = (duration(s.seconds), *(_figures(s) if figures else ()), s.error)
        lines.append(Line((Cell(s.name), state, *map(Cell, texts))))
    columns = [
        *text_columns("job", "state"),
        *number_columns("time", *(FIGURES if figures else ()), extra=("LMS", "ICAT")),
    ]
    return Grid([*columns, Column("last line of the error")], lines)


def markdown(title: str, states: Sequence[State]) -> str:
    """The page sweep.md, which is rewritten while the sweep runs."""
    command = f"debias report {states[0].folder.parent}"
    return f"# {title}\n\n{summary(states)}. The whole report: `{command}`\n\n{table(states, figures=True).markdown()}"


def _figures(state: State) -> Sequence[str]:
    if state.state in ("done", "skipped", OTHER_CODE):
        try:
            config: Mapping[str, Any] = yaml.safe_load((state.folder / "config.yaml").read_text(encoding="utf-8"))
            bias = config["data"]["bias"]
            return headline_cells(read_figures(state.folder), bias)
        except (OSError, KeyError, UserError, yaml.YAMLError):  # the page is a by-product and must not stop the sweep
            pass
    return [""] * len(FIGURES)


def duration(seconds: float | None) -> str:
    """As in `45 s`, `12 min` or `3.5 h`."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
