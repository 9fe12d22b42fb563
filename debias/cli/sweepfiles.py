"""`debias sweep NAME`: a file of `sweeps/` asks a question, and is a primary config with a grid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from debias.cli.config import config_dir, explain, keys
from debias.cli.sweep import Plan, looks, plan
from debias.cli.terminal import next_step
from debias.records import UserError
from debias.report.grid import Grid, number_columns, row, text_columns
from debias.schema import nearest
from debias.wording import counted

COST = re.compile(r"^# Cost: .*?([\d.]+) (s|min|h) a run", re.MULTILINE)
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def sweeps_dir() -> Path:
    """The folder of sweep files: in the installed package, or at the top of a checkout."""
    return config_dir().parent / "sweeps"


def find(name: str) -> Path:
    """The file of a named sweep, or any file of the same form. Raises UserError if it does not exist."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"{name}: there is no such sweep file")
        return path
    known = names()
    if name not in known:
        raise UserError(f"there is no sweep {name!r}{nearest(name, known)}; choose one of: {', '.join(known)}")
    return sweeps_dir() / f"{name}.yaml"


def names() -> list[str]:
    """The names of the sweeps."""
    return [path.stem for path in _files()]


def _files() -> list[Path]:
    return sorted(sweeps_dir().glob("*.yaml"))


def words_for(overrides: Sequence[str]) -> list[str]:
    """Hydra's words for a sweep file: where to find the config groups, and that there are several jobs."""
    return [*([] if looks(overrides) else ["--multirun"]), f"hydra.searchpath=[file://{config_dir()}]", *overrides]


def grid_of(path: Path) -> set[str]:
    """The keys of a sweep file's grid.

    Raises UserError for keys that a run does not have; Hydra accepts any key in a primary config.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a sweep file; `debias sweep` lists some")
    params = ((content.get("hydra") or {}).get("sweeper") or {}).get("params")
    if not isinstance(params, dict):
        raise UserError(f"{path}: no grid; write it under hydra.sweeper.params, as in seed: 1,2,3")
    own = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    known = _known(path, content)
    for key in [*_leaves(own), *params]:
        bare = str(key).lstrip("+~").partition("@")[0]
        if bare not in known and not str(key).startswith(("+", "hydra.", "hydra/")):
            raise UserError(f"{path}: unknown key {bare!r}{nearest(bare, known)}; see `debias run --cfg job`")
    return set(map(str, params))


def _known(path: Path, content: Mapping[str, Any]) -> list[str]:
    """The keys of a run with the options in the file's defaults list."""
    from hydra.errors import HydraException

    chosen = []
    for entry in content.get("defaults") or []:
        for group, choice in entry.items() if isinstance(entry, dict) else ():
            value = f"[{','.join(choice)}]" if isinstance(choice, list) else choice
            chosen.append(f"{group.removeprefix('override').strip().lstrip('/')}={value}")
    try:
        return keys("run", chosen)
    except HydraException as error:
        raise UserError(f"{path}: {explain(error, 'run')}") from error


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def question(path: Path) -> str:
    """The first comment line of a sweep file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ")), "")


def seconds_a_run(path: Path | None, jobs: Sequence[Path]) -> tuple[float | None, str]:
    """Seconds per run and the source of the estimate: finished runs or, without any, the file."""
    from debias.report.many_runs.sweep_progress import seconds_of

    done = [seconds for folder in jobs if (seconds := seconds_of(folder)) and (folder / "metrics.jsonl").is_file()]
    if done:
        return sum(done) / len(done), f"mean of {len(done)} finished"
    found = COST.search(path.read_text(encoding="utf-8")) if path else None
    return (float(found[1]) * SECONDS[found[2]], "from the file") if found else (None, "unknown")


def preview(planned: Plan, console: Console, path: Path | None = None) -> None:
    """Print the jobs of a sweep, which may be the one of a file, and their expected time; start nothing."""
    from debias.progress import duration
    from debias.report.many_runs.sweep_progress import in_common

    jobs = planned.jobs
    seconds, source = seconds_a_run(path, list(jobs))
    finished = {folder for folder in jobs if _finished(folder)}
    if planned.constants:
        console.print(Text(in_common(planned.constants), style="dim"))
    for folder, name in jobs.items():
        console.print(Text(name + ("  (done)" if folder in finished else "")))
    left = len(jobs) - len(finished)
    time = "time unknown"
    if seconds:
        time = f"about {duration(seconds * left)} one after another ({duration(seconds)} a run, {source})"
    console.print(Text(f"\n{counted(len(jobs), 'run')}, {left} to do, {time}", style="bold"))
    next_step("the same command without --dry-run")


def _finished(folder: Path) -> bool:
    from debias.results import read_status

    return read_status(folder).get("state") == "done"


def listing(console: Console) -> None:
    """Print every sweep with its number of runs and their time one after another."""
    from debias.progress import duration

    lines = []
    for path in _files():
        jobs = plan(path.stem, path.parent, words_for([])).jobs
        seconds, _ = seconds_a_run(path, list(jobs))
        time = duration(seconds * len(jobs)) if seconds else ""
        lines.append(row(path.stem, str(len(jobs)), time, question(path)))
    columns = [*text_columns("sweep"), *number_columns("runs", "time"), *text_columns("question")]
    console.print(Grid(columns, lines).terminal())
    next_step("debias sweep NAME --dry-run")
