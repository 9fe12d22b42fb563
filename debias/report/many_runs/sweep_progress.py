"""The progress of a sweep, read from its run folders: done, failed, interrupted, running or not started."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from debias.progress import duration
from debias.records import UserError
from debias.report.comparison import headline_cells
from debias.report.grid import Cell, Grid, Line, number_columns, text_columns
from debias.report.outcome import Bounds, outcome
from debias.results import INTERRUPTED, REFUSED, read_figures, read_status, running
from debias.run_folder import OtherCodeError
from debias.run_identity import code_sha256
from debias.wording import counted

OTHER_CODE = "by other code"
EARLIER = "done earlier"
STATES = ("done", EARLIER, OTHER_CODE, "failed", "interrupted", "running", "not started")
FIGURES = ("SS", "change of SS", "LMS", "ICAT", "perplexity", "verdict")
KINDS = {"done": "good", OTHER_CODE: "warning", "failed": "bad", "interrupted": "warning", "not started": "warning"}
FINISHED = ("done", EARLIER, OTHER_CODE)


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
    """The state of a job, seen from a launch that began at `since`: a job that ended before is `done earlier`.

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
        return State(folder, name, EARLIER, seconds_of(folder))
    if state == "failed" and error != INTERRUPTED:
        return State(folder, name, "failed", error=_last_line(error))
    if state == "running" and (not probe or running(folder)):
        return State(folder, name, "running")
    return State(folder, name, "interrupted" if state else "not started")


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
    """As in `24 jobs: 20 done, 3 done earlier, 1 failed`."""
    counts = Counter(s.state for s in states)
    return f"{counted(len(states), 'job')}: " + ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])


def table(states: Sequence[State]) -> Grid:
    """A line per job, with the figures of those that are done and the errors of those that failed."""
    lines = []
    for s in states:
        state = Cell(f"done, {s.state}" if s.state == OTHER_CODE else s.state, kind=KINDS.get(s.state, ""))
        lines.append(Line((Cell(s.name), state, *map(Cell, (duration(s.seconds), *_figures(s), s.error)))))
    error = "last line of the error"
    *numbers, verdict = FIGURES
    shown = number_columns("time", *numbers, extra=("LMS", "ICAT", "perplexity"))
    grid = Grid([*text_columns("job", "state"), *shown, *text_columns(verdict, error)], lines)
    return grid if any(s.error for s in states) else grid.without(error)


def ended(state: State) -> str:
    """What a job that is over came to, in one line."""
    if state.state == "failed":
        return f"failed: {state.name}: {state.error}"
    figures = [f"{name} {text}" for name, text in zip(FIGURES, _figures(state), strict=True) if text]
    took = f" in {duration(state.seconds)}" if state.seconds is not None else ""
    return f"{state.state}{took}: {', '.join([state.name, *figures])}"


def time_left(states: Sequence[State], seconds: float) -> str:
    """How long the other jobs will take if they go on as in the first `seconds` of this launch; empty if unknown."""
    counts = Counter(s.state for s in states)
    left = counts["running"] + counts["interrupted"] + counts["not started"]
    return f"about {duration(seconds / counts['done'] * left)} left" if counts["done"] and left else ""


def markdown(title: str, states: Sequence[State], constants: Sequence[str] = ()) -> str:
    """The page sweep.md, which is rewritten while the sweep runs."""
    command = f"debias report {states[0].folder.parent}"
    shared = f"{in_common(f'`{word}`' for word in constants)}\n\n" if constants else ""
    return f"# {title}\n\n{summary(states)}. The whole report: `{command}`\n\n{shared}{table(states).markdown()}"


def in_common(constants: Iterable[str]) -> str:
    """The settings that all jobs share, which are not in their names."""
    return f"all jobs: {' '.join(constants)}"


def _figures(state: State) -> Sequence[str]:
    if state.state in FINISHED:
        try:
            config: Mapping[str, Any] = yaml.safe_load((state.folder / "config.yaml").read_text(encoding="utf-8"))
            bias, figures = config["data"]["bias"], read_figures(state.folder)
            return [*headline_cells(figures, bias), outcome(figures, bias, Bounds.of(config)).words]
        except (OSError, KeyError, UserError, yaml.YAMLError):  # the page is a by-product and must not stop the sweep
            pass
    return [""] * len(FIGURES)
