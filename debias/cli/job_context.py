"""What surrounds a job: the claim on its folder, log and status, a tracker, and the table at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from debias.cli import workers
from debias.cli.config import NOT_IDENTITY
from debias.cli.terminal import console, logging_to, next_step, page, quieten, shown
from debias.files import files_named
from debias.models.identity import content_sha256
from debias.progress import on_terminal
from debias.results import ADAPTER, read_figures, read_status
from debias.run_folder import RunFolder
from debias.run_identity import Input, code_sha256, data_sha256, text_sha256

if TYPE_CHECKING:
    from debias.benchmarks.evaluation import Evaluation
    from debias.jobs.generated_folder import DataFolder
    from debias.jobs.tracking import Tracked, Tracker

log = logging.getLogger(__name__)


def run_folder(cfg: DictConfig, inputs: Sequence[Input], adapters: Sequence[str] = ()) -> RunFolder:
    """The folder of the job that Hydra started, with checksums of config, data, code, and of models' files.

    Args:
        adapters: folders of the adapters that are scored.
    """
    OmegaConf.resolve(cfg)
    models = [content_sha256(str(cfg.model.path), cfg.model.get("revision")), *map(content_sha256, adapters)]
    same = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in NOT_IDENTITY])
    identity = {
        "config_sha256": text_sha256(OmegaConf.to_yaml(same)),
        "data_sha256": data_sha256(inputs),
        "code_sha256": code_sha256(),
        "model_sha256": text_sha256(" ".join(models)),
    }
    finished = {**identity, "state": "done"}
    del finished["code_sha256"]  # whether other code will do is decided where the folder is opened
    return RunFolder(_place(cfg, finished), OmegaConf.to_yaml(cfg), identity)


def set_folder(cfg: DictConfig) -> DataFolder:
    """The folder of the generated set that Hydra named; settings that let the same set grow are not its identity."""
    from debias.generation.wanted import lasting
    from debias.jobs.generated_folder import DataFolder

    OmegaConf.resolve(cfg)
    same = OmegaConf.create(lasting(OmegaConf.to_container(cfg)))  # type: ignore[arg-type]
    identity = {"config_sha256": text_sha256(OmegaConf.to_yaml(same)), "code_sha256": code_sha256()}
    same_set = {"config_sha256": identity["config_sha256"]}
    return DataFolder(_place(cfg, same_set), OmegaConf.to_yaml(cfg), identity, str(cfg.name))


def _place(cfg: DictConfig, same: Mapping[str, str]) -> Path:
    """The folder of a job: that of Hydra, or of the same job under an earlier name below `outputs/NAME`.

    A name changes when a key is swept that was not, or with a version of this program. In a sweep the new name becomes
    a link to the old one, so that whatever looks at the sweep's folders finds the job.

    Args:
        same: what status.json says of the same job.
    """
    hydra = HydraConfig.get()
    folder, below = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir).absolute()
    if cfg.overwrite:
        if folder.is_symlink():
            folder.unlink()
            folder.mkdir()
        return folder
    if below not in (folder, folder.parent) or "config_sha256" in read_status(folder):
        return folder
    statuses = ((path.parent, read_status(path.parent)) for path in sorted(below.glob("*/status.json")))
    found = next((path for path, status in statuses if all(status.get(key) == same[key] for key in same)), None)
    if found is not None and hydra.mode is RunMode.MULTIRUN:
        with suppress(OSError):
            folder.rmdir()
            folder.symlink_to(found.name)
        return folder
    return found or folder


@contextmanager
def claimed(cfg: DictConfig, folder: RunFolder) -> Iterator[bool]:
    """Hold the folder for this process and show the figures at the end; yields whether there is work to do."""
    with folder.claim(cfg.overwrite, cfg.accept_other_code) as to_do:
        if not to_do:
            how = f" ({folder.opened})" if folder.opened else ""
            console.print(f"done before{how}, nothing to do: {shown(folder.path)}", highlight=False, soft_wrap=True)
        else:
            workers.claim_gpu(HydraConfig.get().launcher, folder.path.parent)  # before CUDA is first used
        yield to_do
        if HydraConfig.get().mode is not RunMode.MULTIRUN:  # a sweep has a line for each job and a table at its end
            show(cfg, folder)


@contextmanager
def logged(cfg: DictConfig, folder: RunFolder) -> Iterator[None]:
    """Record a run and its end, and use only this job's share of the machine."""
    with recorded(folder):
        launcher = HydraConfig.get().launcher
        from debias.jobs import cost  # slow to import, and a finished run does not need it

        quieten()
        if not on_terminal():  # which has shown it since the start
            log.info("folder: %s", shown(folder.path))
        log.info("machine: %s", workers.described())
        if threads := cfg.threads or workers.threads_of(launcher):
            cost.set_threads(threads)
        yield
        folder.finish(cost.hardware())
    cost.release_memory()


@contextmanager
def recorded(folder: RunFolder) -> Iterator[None]:
    """Keep status.json and run.log while a job works, also if it fails; the log ends with the names of all files."""
    with folder.working(), logging_to(folder.path / "run.log"), files_named(folder.path, logging.DEBUG):
        if folder.opened:
            log.info("%s", folder.opened)
        try:
            yield
        except BaseException as error:
            log.debug("failed: %s", error, exc_info=True)  # the traceback goes to run.log alone
            raise


class Tracking:
    """A tracker that knows the job: Lightning's logger, and a receiver of the figures."""

    def __init__(self, tracker: Tracker, run: Tracked) -> None:
        self.tracker, self.run = tracker, run
        self.logger = tracker.start(run)

    def scored(self, evaluation: Evaluation) -> None:
        """Send the figures to the tracker. A failure is only logged, because the run folder has them all."""
        try:
            self.tracker.scored(self.run, evaluation)
        except Exception as error:
            log.warning("the tracker did not get everything: %s: %s", type(error).__name__, error, exc_info=True)


@contextmanager
def tracked(cfg: DictConfig, folder: RunFolder, tracker: Tracker) -> Iterator[Tracking]:
    """Tell the tracker when the job starts and how it ends."""
    from debias.jobs.tracking import Tracked

    chosen = {k: v for k, v in HydraConfig.get().runtime.choices.items() if v and "/" not in k and "@" not in k}
    choices = [f"{k}={v if isinstance(v, str) else ','.join(v)}" for k, v in chosen.items()]
    run = Tracked(folder.path, str(cfg.name), yaml.safe_load(folder.config), folder.identity, choices, cfg.data.bias)
    failed = True
    try:
        yield Tracking(tracker, run)
        failed = False
    finally:
        tracker.end(failed)


def show(cfg: DictConfig, folder: RunFolder) -> None:
    """Print a finished run's figures and outcome, and the path of its report."""
    from debias.report import comparison
    from debias.report.outcome import Bounds, outcomes

    figures, bias = read_figures(folder.path), cfg.data.bias
    rows = comparison.rows(figures, bias)
    console.print()
    console.print(comparison.table(rows).without("ideal").terminal(gap=1))
    if any(row.delta for row in rows):
        console.print(f"\n{comparison.LEGEND}", style="dim", highlight=False)
    protocols = comparison.protocols(rows, bias)
    if protocols.lines:
        console.print()
        console.print(protocols.terminal())
    console.print()
    bounds = Bounds(cfg.outcome.max_lms_drop, cfg.outcome.max_perplexity_ratio)
    for name, verdict in outcomes(figures, bias, bounds).items():
        console.print(f"{name}: {verdict.text}" if name else verdict.text, style="bold", highlight=False, markup=False)
    if warning := read_status(folder.path).get("warning"):
        console.print(Text(f"Mind: {warning}.", style="yellow"))
    console.print()
    page(folder.path / "report.html")
    trained = folder.path / ADAPTER
    if trained.is_dir():
        next_step(f"debias evaluate adapter.path={shown(trained)} eval=full")
    else:
        next_step("debias run")
