"""Trackers follow a run while it trains and when it is scored. The run folder has everything without them."""

from __future__ import annotations

import csv
import hashlib
import logging
import netrc
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlparse

import torch

from debias.benchmarks.evaluation import Evaluation
from debias.files import note
from debias.records import Figure, UserError
from debias.report.comparison import headlines
from debias.report.one_run.report import Change, changes
from debias.report.outcome import Bounds, outcome
from debias.results import ADAPTER
from debias.training.fitting import CHECKPOINT

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

log = logging.getLogger(__name__)


class Tracked(NamedTuple):
    """What a tracker knows of a job before it starts."""

    folder: Path
    group: str  # the name of the run or of its sweep
    config: dict[str, Any]  # plain values
    identity: Mapping[str, str]  # checksums of config, data and code
    choices: Sequence[str]  # as in `adapter=lora`
    bias: str

    @property
    def name(self) -> str:
        """The folder below `outputs`."""
        own = self.folder.name == Path(self.group).name
        return self.group if own else f"{self.group}/{self.folder.name}"

    @property
    def id(self) -> str:
        """Equal for all attempts at one job, and different for every other job."""
        words = (self.group, self.folder.name, *(self.identity[name] for name in sorted(self.identity)))
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


class Tracker:
    """Tracks nothing beyond train.csv, which is always written."""

    def start(self, run: Tracked) -> Logger | Literal[False]:
        """Begin, or continue after an interruption; returns the logger for Lightning, or False."""
        return False

    def scored(self, run: Tracked, evaluation: Evaluation) -> None:
        """Send the figures, once the run folder is complete."""

    def end(self, failed: bool) -> None:
        """Close, also after a failure."""


class TensorBoard(Tracker):
    """Curves and headline figures in the run folder's `tensorboard/`: `tensorboard --logdir outputs/NAME`."""

    def start(self, run: Tracked) -> Logger | Literal[False]:
        """Continue beside the events of an interrupted run."""
        from pytorch_lightning.loggers import TensorBoardLogger

        try:
            self.logger = TensorBoardLogger(run.folder, name="", version="tensorboard")
        except ModuleNotFoundError as error:
            raise missing("tensorboard") from error
        return self.logger

    def scored(self, run: Tracked, evaluation: Evaluation) -> None:
        """Send the config choices and headline figures, for the HPARAMS tab."""
        chosen = dict(choice.split("=", 1) for choice in run.choices)
        self.logger.log_hyperparams(chosen, headline_values(evaluation.figures, run.bias))

    def end(self, failed: bool) -> None:
        """Flush and close the file."""
        if logger := vars(self).pop("logger", None):
            logger.finalize("failed" if failed else "success")


# What WANDB_MODE may say, and what it means: `dryrun` and `run` are the names of earlier versions.
MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases: curves, figures with intervals, tables of examples, the adapter and the page.

    Args:
        project: where runs are listed.
        entity: team or user; None for the account's own.
        mode: `online`, `offline` or `disabled`; None for WANDB_MODE or, without it, online if there is a key.
        adapter: upload the adapter as an artifact.
    """

    def __init__(
        self,
        project: str = "debias",
        entity: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        adapter: bool = True,
    ) -> None:
        for name, value in (("logger.mode", mode), ("WANDB_MODE", os.environ.get("WANDB_MODE") or None)):
            if value not in (None, *MODES):
                raise UserError(f"{name}={value} is unknown; choose online, offline or disabled")
        if not project or len(project) > 128 or set(project) & set("/\\#?%:"):
            raise UserError(
                f"logger.project={project!r} cannot be a project's name (1 to 128 characters, none of / \\ # ? % :); "
                "a team goes into logger.entity"
            )
        self.project, self.entity, self.adapter = project, entity, adapter
        self.mode = MODES.get(mode or os.environ.get("WANDB_MODE") or "")
        self.run: Any = None

    def start(self, run: Tracked) -> Logger | Literal[False]:
        """Begin or continue the job's run; never asks for a key."""
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise missing("wandb") from error
        from pytorch_lightning.loggers import WandbLogger

        mode = self.mode or ("online" if has_key() else "offline")
        place = _place(run.folder.parent)
        os.environ.setdefault("WANDB_DATA_DIR", str(place / "wandb"))  # an offline run's artifacts stay beside it
        options: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            # The agent of a W&B sweep has already chosen the id of its run.
            "id": os.environ.get("WANDB_RUN_ID", run.id) if os.environ.get("WANDB_SWEEP_ID") else run.id,
            "name": run.name[:128],
            "group": run.group,
            "job_type": "run",
            "tags": [choice[:64] for choice in run.choices],
            "config": run.config,
            "dir": str(place),
            "reinit": "finish_previous",
        }
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, init_timeout=30)
        before = set(place.glob(f"wandb/run-*-{run.id}"))
        try:
            resume = "allow" if mode == "online" else None
            self.run = wandb.init(**options, mode=mode, resume=resume, settings=quiet)  # type: ignore[arg-type]
        except wandb.Error as error:
            log.warning(
                "Weights & Biases cannot be reached (%s): recording offline", " ".join(str(error).split())[:200]
            )
            wandb.teardown()  # otherwise its service keeps the run that failed to start
            for begun in set(place.glob(f"wandb/run-*-{run.id}")) - before:
                shutil.rmtree(begun, ignore_errors=True)
            self.run = wandb.init(**options, mode="offline", settings=quiet)
        self.run.define_metric("trainer/global_step")
        self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        if self.run.settings.mode == "offline":
            for row in curve_kept(run.folder):  # online, the server still has what was logged before an interruption
                self.run.log(row)
            log.info("Weights & Biases: offline in %s", Path(self.run.dir).parent)
        return WandbLogger(experiment=self.run, project=self.project)

    def scored(self, run: Tracked, evaluation: Evaluation) -> None:
        """Send figures (as a summary and a table), the most and least changed sentences, the page and the adapter."""
        import wandb

        told = outcome(evaluation.figures, run.bias, Bounds.of(run.config))
        self.run.summary.update({"headline/verdict": told.words, "headline/text": told.text})
        self.run.summary.update(headline_values(evaluation.figures, run.bias))
        most, least = changes(evaluation)
        logged: dict[str, Any] = {
            "figures": wandb.Table(list(Figure._fields), [list(figure) for figure in evaluation.figures]),
            "most_changed": wandb.Table(list(Change._fields), [list(change) for change in most]),
            "least_changed": wandb.Table(list(Change._fields), [list(change) for change in least]),
            "report": wandb.Html((run.folder / "report.html").read_text(encoding="utf-8"), inject=False),
        }
        self.run.log(logged)
        if self.adapter:
            artifact = wandb.Artifact(
                f"adapter-{run.id}", "adapter", metadata={"bias": run.bias, "run": run.folder.name}
            )
            for file in sorted((run.folder / ADAPTER).iterdir()):  # `add_dir` writes to the terminal
                artifact.add_file(str(file), file.name)
            self.run.log_artifact(artifact)

    def end(self, failed: bool) -> None:
        """Finish this job's run, so that the next job starts its own, and remove its interrupted offline attempts."""
        if self.run is None:
            return
        run, self.run = self.run, None
        folder = Path(run.dir).parent
        offline, name = run.settings.mode == "offline", f"*-{run.id}"
        run.finish(exit_code=int(failed))
        note(folder)
        if offline and not failed:
            for earlier in folder.parent.glob(f"offline-run{name}"):
                if earlier.resolve() != folder.resolve():
                    shutil.rmtree(earlier, ignore_errors=True)


def _place(default: Path) -> Path:
    """Where a run is recorded: WANDB_DIR, if it can be written to. W&B itself would lose the tables."""
    place = Path(os.environ.get("WANDB_DIR") or default).expanduser()
    try:
        (place / "wandb").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place / "wandb"):
            return place
    except OSError as error:
        log.warning("WANDB_DIR=%s cannot be written to (%s): recording in %s", place, error.strerror, default)
        return default


def missing(extra: str) -> UserError:
    """The error if a tracker's package is not installed."""
    return UserError(f"logger={extra} needs a package that is not installed: python -m pip install 'debias[{extra}]'")


def has_key() -> bool:
    """Whether the environment or the netrc file has a key for Weights & Biases. The key is not stored or logged."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def curve_kept(folder: Path) -> list[dict[str, float]]:
    """The rows of the loss curve that an interrupted run does not have to train again."""
    if (folder / ADAPTER).is_dir():
        last = float("inf")
    elif (folder / CHECKPOINT).is_file():
        last = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)["global_step"]
    else:
        return []
    with (folder / "train.csv").open(newline="", encoding="utf-8") as file:
        whole = [row for row in csv.DictReader(file) if None not in row.values()]
    # Lightning numbers the metrics of steps from 0, train.csv counts completed steps from 1.
    return [
        {name: float(row[name]) for name in ("loss", "bias_loss", "kl", "epoch")}
        | {"trainer/global_step": int(row["step"]) - 1}
        for row in whole
        if int(row["step"]) <= last
    ]


def headline_values(figures: Sequence[Figure], bias: str) -> dict[str, float]:
    """SS, LMS, ICAT of the targeted bias and perplexity: base, debiased and difference, with intervals."""
    values: dict[str, float] = {}
    for name, row in headlines(figures, bias).items():
        for model, figure in (("base", row.base), ("debiased", row.debiased), ("delta", row.delta)):
            if figure is not None:
                values |= {f"headline/{name}/{model}{end}": value for end, value in _ends(figure)}
    return values


def _ends(figure: Figure) -> list[tuple[str, float]]:
    return [("", figure.value), ("_low", figure.ci_low), ("_high", figure.ci_high)]
