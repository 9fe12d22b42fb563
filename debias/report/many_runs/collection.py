"""Run folders and archives -> runs: reads every run in some paths, and says what it could not read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml
from pyarrow import parquet

from debias.records import Figure, UserError
from debias.report.many_runs import archive
from debias.report.outcome import Bounds
from debias.results import INTERRUPTED, LIKELIHOODS, read_figures, read_likelihoods, running, settled

STATES = ("done", "running", "failed")
UNFINISHED = ("running", "interrupted", "failed")
T = TypeVar("T")
PARTS = {"bias_loss": "Bias loss", "kl": "KL term"}  # columns of train.csv beside the loss
Planned = Callable[[Path], int | None]  # a sweep's multirun.yaml -> how many runs it asks for, if known


@dataclass(frozen=True)
class Run:
    """A finished run: everything in its folder except the likelihoods."""

    folder: Path  # FILE/SWEEP/RUN for a run in an archive
    config: dict[str, Any]
    figures: list[Figure]
    status: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)  # step and training loss
    records: Callable[[], pd.DataFrame] | None = None  # reads the scores of single texts, if they were kept
    loss_parts: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # of PARTS; archives do not keep them

    @property
    def name(self) -> str:
        """The names of the sweep's folder and the run's."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def bias(self) -> str:
        """The targeted bias."""
        return self.config.get("data", {}).get("bias", "overall")

    @property
    def trained_on(self) -> str:
        """The bias of the training sentences, which may differ from the targeted one: `general`."""
        sources = (self.config.get("data", {}).get("sources") or {}).values()
        return "+".join(dict.fromkeys(str(source.get("bias") or self.bias) for source in sources)) or self.bias

    @property
    def sources(self) -> str:
        """The kinds of training data, as in `targeted+general`."""
        return "+".join(self.config.get("data", {}).get("sources") or {}) or "none"

    @property
    def seed(self) -> str:
        """The seed of the training."""
        return str(self.config.get("seed", ""))

    def likelihoods(self) -> pd.DataFrame:
        """The scores of single texts. Raises UserError if they were not kept, or are damaged."""
        if self.records is None:
            raise UserError(
                f"{self.folder}: no records (likelihoods.parquet); run this job again with overwrite=true, "
                "or make the archive again with --records"
            )
        return self.records()

    @property
    def bounds(self) -> Bounds:
        """How much ability the model may lose before it counts as broken."""
        return Bounds.of(self.config)


@dataclass(frozen=True)
class Collection:
    """The finished runs that could be read, the folders of the others, and what is wrong."""

    runs: list[Run]
    unfinished: dict[str, list[Path]]  # state -> folders
    missing: int  # runs of a sweep that have no folder yet
    generated: int  # folders of generated data, without scores
    faults: list[str]  # one line each


def collect(paths: Sequence[Path], planned: Planned = lambda _: None) -> Collection:
    """Read every run folder at or below the paths, and every archive among them.

    Raises UserError if a path is neither a folder nor an archive. A damaged file becomes a fault, and the other runs
    are read.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; name a run folder, a folder that contains runs, or an archive")
    runs, faults = [], []
    unfinished: dict[str, list[Path]] = {state: [] for state in UNFINISHED}
    missing = generated = 0
    for file in {path.resolve(): path for path in paths if path.is_file()}.values():
        held = archive.read(file)
        missing, generated = missing + held.missing, generated + held.generated
        for row in held.rows:
            folder = file / row.run
            if row.state == "done":
                status = row.status or {}
                config = settled(row.config or {}, status)
                runs.append(Run(folder, config, list(row.figures), status, row.cost, list(row.losses), row.records))
            else:
                unfinished[row.state].append(folder)
    folders = [path for path in paths if path.is_dir()]
    for folder in run_folders(folders):
        try:
            status = read_status(folder)
            if "triplets" in status:
                generated += 1
            elif status["state"] == "done":
                damage = damaged_records(folder)
                faults += damage
                has_records = not damage and (folder / "likelihoods.parquet").is_file()
                records = partial(read_likelihoods, folder) if has_records else None
                runs.append(replace(read_run(folder, status), records=records))
            else:
                unfinished[_unfinished(folder, status)].append(folder)
        except UserError as error:
            faults.append(str(error))
    sweeps = sorted({file for path in folders for file in path.rglob("multirun.yaml")})
    missing += sum(_missing(file, planned(file)) for file in sweeps)
    return Collection(runs, unfinished, missing, generated, faults)


def nothing_in(found: Collection, paths: Sequence[Path]) -> str:
    """Why there is nothing to report."""
    where = ", ".join(map(str, paths))
    if found.faults:
        return f"no run below {where} can be read; first problem: {found.faults[0]}"
    states = [f"{len(folders)} {state}" for state, folders in found.unfinished.items() if folders]
    others = f" ({', '.join(states)})" if states else ""
    return f"no finished run below {where}{others}; start one with `debias run`"


def run_folders(paths: Sequence[Path]) -> Iterator[Path]:
    """The run folders at or below the paths, each once, in order."""
    seen = set()
    for path in paths:
        for status in sorted(path.rglob("status.json")):
            if status.resolve() not in seen:
                seen.add(status.resolve())
                yield status.parent


def _unfinished(folder: Path, status: Mapping[str, Any]) -> str:
    """Whether a run is `running`, was `interrupted`, or `failed`."""
    if status["state"] == "failed":
        return "interrupted" if status.get("error") == INTERRUPTED else "failed"
    try:
        return "running" if running(folder) else "interrupted"
    except OSError:  # a folder that cannot be written to
        return "running"


def _missing(file: Path, number: int | None) -> int:
    begun = sum(1 for _ in file.parent.glob("*/status.json"))
    return max(0, (number or 0) - begun)


def read_status(folder: Path) -> dict[str, Any]:
    """Content of status.json. Raises UserError if it is damaged."""
    path = folder / "status.json"
    content = _read(path, json.loads)
    if not isinstance(content, dict) or content.get("state") not in STATES:
        raise UserError(f"{path} is damaged (no state of {', '.join(STATES)}); run this job again with overwrite=true")
    return content


def read_run(folder: Path, status: dict[str, Any]) -> Run:
    """Read a finished run. Raises UserError if its config, its figures or another of its files is damaged."""
    config = _read(folder / "config.yaml", yaml.safe_load)
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.yaml'} is damaged (no keys); run this job again with overwrite=true")
    config = settled(config, status)
    cost = _read(folder / "cost.json", json.loads) if (folder / "cost.json").is_file() else None
    curves = _read(folder / "train.csv", _curves) if (folder / "train.csv").is_file() else {}
    return Run(folder, config, read_figures(folder), status, cost, curves.pop("loss", []), loss_parts=curves)


def damaged_records(folder: Path) -> list[str]:
    """What is wrong with likelihoods.parquet, if it exists. Reads only the schema, at the end of the file."""
    path = folder / "likelihoods.parquet"
    try:
        names = parquet.read_schema(path).names if path.is_file() else LIKELIHOODS
    except (OSError, ValueError) as error:
        return [f"{path} is damaged ({' '.join(str(error).split())}); run this job again with overwrite=true"]
    lacking = [name for name in LIKELIHOODS if name not in names]
    return [f"{path} has no column {lacking[0]}; run this job again with overwrite=true"] if lacking else []


def _curves(text: str) -> dict[str, list[tuple[int, float]]]:
    """The loss and its parts by step; a part that was not measured has no value."""
    rows = list(csv.DictReader(text.splitlines()))
    found = {"loss": [(int(row["step"]), float(row["loss"])) for row in rows]}
    for name in PARTS:
        if points := [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]:
            found[name] = points
    return found


def _read(path: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); is the run folder complete?") from error
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason}); run this job again with overwrite=true") from error
