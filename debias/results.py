"""What a run folder holds: the names of its files, and reading them, also while another process works there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debias.locks import Lock
from debias.records import Figure, UserError

if TYPE_CHECKING:
    import pandas as pd  # importing it takes as long as all else that a command needs before it shows something

ADAPTER = "adapter"
LOCK = ".lock"  # held while a process works in a run folder
LOCKS = frozenset({LOCK, f"{LOCK}.held"})
REFUSED = ".refused"  # why a sweep's job could not use the folder
INTERRUPTED = "interrupted"
# All that a job may write into its run folder, and so all that may be removed from it.
RUN_FILES = frozenset({
    "status.json", "config.yaml", "run.log", "train.csv", "likelihoods.parquet", "metrics.jsonl", "cost.json",
    "report.html", "report.md", "checkpoint.ckpt", "best.ckpt", REFUSED,
    *(f"{folder}/{file}" for folder in (ADAPTER, f"{ADAPTER}.unchecked", f"{ADAPTER}.before_divergence")
      for file in ("adapter_config.json", "adapter_model.safetensors", "README.md", "debias.json")),
    "tensorboard/events.out.tfevents.*", "tensorboard/hparams.yaml",
})  # fmt: skip
LIKELIHOODS = [
    "benchmark", "protocol", "example", "candidate", "bias", "target", "model", "logprob", "num_tokens", "score",
]  # fmt: skip


def run_of(adapter: Path) -> Path:
    """The folder of the run that an adapter's folder belongs to, or the same folder for one from elsewhere."""
    return adapter.parent if adapter.name == ADAPTER else adapter


def read_status(path: Path) -> dict[str, Any]:
    """Content of status.json of a run folder; empty if it is missing or damaged."""
    try:
        return json.loads((path / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def settled(config: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with the parts that suited its data (`chosen` in status.json) in place of the choice."""
    chosen = {key: config[key][name] for key, name in status.get("chosen", {}).items() if name in config.get(key, {})}
    return {**config, **chosen}


def running(path: Path, wait: bool = False) -> bool:
    """Whether a process is working in a run folder; with `wait`, returns False as soon as none is."""
    if not path.is_dir():
        return False
    lock = Lock(path / LOCK)
    if not wait:
        return not lock.is_free()
    with lock.held(f"run {path}"):
        return False


def read_figures(folder: Path) -> list[Figure]:
    """Read metrics.jsonl of a run. Raises UserError, with the line, if it is missing or damaged."""
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: no figures here ({error.strerror}); is the run finished?") from error
    figures = []
    for i, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            numbers = {k: float("nan") if row[k] is None else row[k] for k in ("value", "ci_low", "ci_high")}
            figures.append(Figure(**{**row, **numbers}))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{i}: not a figure ({error}); run this job again with overwrite=true") from error
    return figures


def read_likelihoods(folder: Path) -> pd.DataFrame:
    """Read likelihoods.parquet of a run. Raises UserError if it is missing or damaged."""
    import pandas as pd

    path = folder / "likelihoods.parquet"
    try:
        return pd.read_parquet(path)[LIKELIHOODS]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no records ({error}); run this job again with overwrite=true") from error
