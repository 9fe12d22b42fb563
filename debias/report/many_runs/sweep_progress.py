"""How far a sweep is: what is done, skipped, failed, running and missing, read from the run folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.table import Table
from rich.text import Text

from debias.records import UserError
from debias.report.many_runs.report import headline_cells
from debias.results import INTERRUPTED, REFUSED, read_figures, read_status, running

STATES = ("done", "skipped", "failed", "running", "missing")
FIGURES = ("SS", "difference", "LMS", "ICAT", "perplexity")


class State(NamedTuple):
    """One job: its folder, what sets it apart from the others, one of STATES, its seconds, its error's last line."""

    folder: Path
    name: str
    state: str
    seconds: float | None = None
    error: str = ""


def states_of(jobs: Mapping[Path, str], since: datetime, probe: bool = True) -> list[State]:
    """The states of all jobs: run folder -> name."""
    return [state_of(folder, name, since, probe) for folder, name in jobs.items()]


def state_of(folder: Path, name: str, since: datetime, probe: bool = True) -> State:
    """The state of a job, seen from a launch that began at `since`: what was done before that is `skipped`.

    Args:
        probe: look whether a process really works where status.json says so.
    """
    status = read_status(folder)
    state, error = status.get("state"), str(status.get("error") or "")
    if (folder / REFUSED).is_file():
        return State(folder, name, "failed", error=_last_line((folder / REFUSED).read_text(encoding="utf-8")))
    if state == "done":
        ended = datetime.fromisoformat(status["ended"])
        return State(folder, name, "done" if ended >= since else "skipped", seconds_of(folder))
    if state == "failed" and error != INTERRUPTED:
        return State(folder, name, "failed", error=_last_line(error))
    if state == "running" and (not probe or running(folder)):
        return State(folder, name, "running")
    reason = {"running": "its process ended", "failed": INTERRUPTED}.get(str(state), "")
    return State(folder, name, "missing", error=reason)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.startswith(" ")]  # OmegaConf indents where it was
    return lines[-1].strip().removeprefix("UserError: ") if lines else ""


def seconds_of(folder: Path) -> float | None:
    """Seconds that a run took in all its stages; None where nothing tells."""
    try:
        return float(json.loads((folder / "cost.json").read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return None


def summary(states: Sequence[State]) -> str:
    """As in `24 jobs: 20 done, 3 skipped, 1 failed`."""
    counts = Counter(s.state for s in states)
    return f"{len(states)} jobs: " + ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])


def terminal(states: Sequence[State]) -> Table:
    """The final table of a sweep: job, state, time, and what there is to say of it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "state", "time", "last line of the error"):
        table.add_column(name, justify="right" if name == "time" else "left", overflow="fold")
    colours = {"done": "green", "failed": "red", "missing": "yellow"}
    for s in states:
        state = Text(s.state, style=colours.get(s.state, ""))
        table.add_row(Text(s.name), state, duration(s.seconds), Text(s.error))
    return table


def markdown(title: str, states: Sequence[State]) -> str:
    """The same as a page that is renewed while the sweep runs, with the figures of what is done."""
    lines = [f"# {title}", "", f"{summary(states)}. The whole report: `debias report {states[0].folder.parent}`", ""]
    header = ("job", "state", "time", *FIGURES, "last line of the error")
    lines += [f"| {' | '.join(header)} |", "| --- | --- | --: |" + " --: |" * len(FIGURES) + " --- |"]
    for s in states:
        cells = (s.name, s.state, duration(s.seconds), *_figures(s), s.error.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figures(state: State) -> Sequence[str]:
    if state.state in ("done", "skipped"):
        try:
            config: Mapping[str, Any] = yaml.safe_load((state.folder / "config.yaml").read_text(encoding="utf-8"))
            bias = config["data"]["bias"]
            return headline_cells(read_figures(state.folder), bias)
        except (OSError, KeyError, UserError, yaml.YAMLError):  # the page is a by-product: it stops no sweep
            pass
    return [""] * len(FIGURES)


def duration(seconds: float | None) -> str:
    """As in `45 s`, `12 min` or `3.5 h`."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
