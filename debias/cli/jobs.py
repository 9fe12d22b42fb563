"""The jobs that verbs start: config -> objects, a claimed run folder, and a status, a log and a table left behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from debias.cli.config import make
from debias.cli.data_jobs import doctor_job, generate_job
from debias.cli.parts import make_adapter, make_benchmarks, make_report
from debias.cli.terminal import console, logging_to, quieten, shown
from debias.ranks import launched_rank
from debias.records import Recipe, Scoring, UserError
from debias.typed import checked

log = logging.getLogger(__name__)


def run_job(cfg: Any) -> None:
    recipe, scoring = checked(Recipe, cfg, "training"), checked(Scoring, cfg, "scoring")
    data = make(cfg.data)
    benchmarks = make_benchmarks(cfg)

    def tuning(logger: Any) -> Any:
        from debias.tuning import Tuning

        parts = data, make_adapter(cfg.adapter), make(cfg.objective), make(cfg.neutral)
        return Tuning(*parts, recipe, make(cfg.trainer), cfg.seed, logger)

    def work(folder: Any, logger: Any) -> Any:
        from debias import experiment

        return experiment.run(folder, tuning(logger), make(cfg.model), scoring, benchmarks, make_report(cfg))

    def assist(folder: Any) -> None:
        from debias import experiment

        experiment.assist(folder, tuning(False), make(cfg.model))

    _job(cfg, [data, *benchmarks], work, assist)


def evaluate_job(cfg: Any) -> None:
    scoring = checked(Scoring, cfg, "scoring")
    benchmarks = make_benchmarks(cfg)

    def work(folder: Any, _: Any) -> Any:
        from debias import experiment

        return experiment.evaluate_only(
            folder,
            model=make(cfg.model),
            adapter_paths=[path] if isinstance(path := cfg.adapter.path, str) else list(path or []),
            scoring=scoring,
            benchmarks=benchmarks,
            report=make_report(cfg),
            combine=cfg.adapter.combine,
            weights=None if cfg.adapter.weights is None else list(cfg.adapter.weights),
        )

    _job(cfg, benchmarks, work)


def export_job(cfg: Any) -> None:
    """Merge or upload an adapter, or say what would be done."""
    import warnings

    from debias import export

    quieten()
    warnings.simplefilter("ignore")  # other libraries' advice to programmers
    plan = export.planned(cfg.adapter.path, cfg.merge, cfg.folder, cfg.repo, cfg.private, cfg.overwrite)
    words = [f"would {step}" for step in export.steps(plan)] if cfg.dry_run else export.carry_out(plan, make(cfg.model))
    console.print("\n".join(words), highlight=False, soft_wrap=True, markup=False)


def _job(
    cfg: Any, inputs: Sequence[Any], work: Callable[[Any, Any], Any], assist: Callable[[Any], None] | None = None
) -> None:
    """Claim the run folder, do the work, and leave a status, a log and a table behind, whatever happens.

    Where a launcher started several processes the first does this; the others `assist` it, or there is no use for them.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from debias.results import RunFolder, code_sha256, read_figures, text_sha256

    OmegaConf.resolve(cfg)
    same = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("name", "overwrite", "logger")])
    identity = {
        "config_sha256": text_sha256(OmegaConf.to_yaml(same)),
        "data_sha256": text_sha256(" ".join(part.fingerprint() for part in inputs)),
        "code_sha256": code_sha256(),
    }
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir), OmegaConf.to_yaml(cfg), identity)
    if launched_rank() > 0:
        if assist is None:
            raise UserError("only training is shared by several processes; start this job in one")
        if cfg.threads:
            from debias.experiment import set_threads

            set_threads(cfg.threads)
        assist(folder)
        return
    with folder.claim(cfg.overwrite) as to_do:
        if to_do:
            _work(cfg, folder, work)
        else:
            console.print(f"done before, nothing to do: {shown(folder.path)}", highlight=False, soft_wrap=True)
            if HydraConfig.get().mode is RunMode.MULTIRUN:  # a sweep's table and report tell the rest
                return
        _show(cfg, read_figures(folder.path))
        console.print(f"report: {shown(folder.path / 'report.html')}", highlight=False, soft_wrap=True)


def _work(cfg: Any, folder: Any, work: Callable[[Any, Any], Any]) -> None:
    from hydra.core.hydra_config import HydraConfig

    from debias.cli import workers

    folder.start()
    with logging_to(folder.path / "run.log"):
        try:
            workers.claim_gpu(HydraConfig.get().launcher, folder.path.parent)
            from debias import experiment  # seconds of imports that a finished run does not need

            quieten()
            if threads := cfg.threads or workers.threads_of(HydraConfig.get().launcher):
                experiment.set_threads(threads)
            with _tracking(cfg, folder) as (logger, scored):
                scored(work(folder, logger))
            folder.finish(experiment.hardware())
        except BaseException as error:
            log.debug("failed: %s", error, exc_info=True)
            folder.fail(error)
            raise
        experiment.release_memory()


@contextmanager
def _tracking(cfg: Any, folder: Any) -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """Tell the tracker that `logger` names; yields Lightning's logger and what takes the evaluation.

    What goes wrong while figures are told is logged and stops no run: they are all in its folder.
    """
    from hydra.core.hydra_config import HydraConfig

    from debias.tracking import Tracked, Tracker

    tracker = make(cfg.logger) if cfg.get("logger") else Tracker()
    chosen = {k: v for k, v in HydraConfig.get().runtime.choices.items() if v and "/" not in k and "@" not in k}
    choices = [f"{k}={v if isinstance(v, str) else ','.join(v)}" for k, v in chosen.items()]
    config = yaml.safe_load(folder.config)
    run = Tracked(folder.path, config, folder.identity, choices, cfg.data.bias)

    def scored(evaluation: Any) -> None:
        try:
            tracker.scored(run, evaluation)
        except Exception as error:
            log.warning("the tracker was not told everything: %s: %s", type(error).__name__, error, exc_info=True)

    failed = True
    try:
        yield tracker.start(run), scored
        failed = False
    finally:
        tracker.end(failed)


def _show(cfg: Any, figures: Sequence[Any]) -> None:
    from debias.report import tables
    from debias.report.outcome import Bounds, outcomes

    bias, bounds = cfg.data.bias, Bounds(cfg.outcome.max_lms_drop, cfg.outcome.max_perplexity_ratio)
    rows = tables.rows(figures, bias)
    console.print()
    console.print(tables.terminal(rows))
    if any(row.delta for row in rows):
        console.print(f"\n{tables.LEGEND}", style="dim", highlight=False)
    if lines := tables.sensitivity(rows, bias):
        console.print()
        console.print(tables.sensitivity_terminal(lines))
    console.print()
    for name, verdict in outcomes(figures, bias, bounds).items():
        console.print(f"{name}: {verdict.text}" if name else verdict.text, style="bold", highlight=False, markup=False)
    console.print()


# Verbs that Hydra configures: each has a primary config of its name, and a job that returns an exit status or nothing.
JOBS: dict[str, Callable[[Any], int | None]] = {
    "run": run_job,
    "generate": generate_job,
    "evaluate": evaluate_job,
    "doctor": doctor_job,
    "export": export_job,
}
