"""The jobs that verbs start: config -> objects -> one of `debias.jobs`."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from debias.cli.build import make_adapter, make_benchmarks, make_report
from debias.cli.config import make
from debias.cli.data_jobs import doctor_job, generate_job
from debias.cli.job_context import claimed, logged, run_folder, tracked
from debias.cli.terminal import console, quieten
from debias.models.ranks import launched_rank
from debias.records import Recipe, Scoring, UserError, checked


def run_job(cfg: DictConfig) -> None:
    """Train and score; where a launcher started several processes, the first one runs the job and the others assist."""
    recipe, scoring = checked(Recipe, cfg, "training"), checked(Scoring, cfg, "scoring")
    data, benchmarks = make(cfg.data), make_benchmarks(cfg)
    folder = run_folder(cfg, [data, *benchmarks])
    if launched_rank() > 0:
        from debias.jobs import cost, run
        from debias.training.stage import Tuning

        if cfg.threads:
            cost.set_threads(cfg.threads)
        parts = make_adapter(cfg.adapter), make(cfg.objective), make(cfg.neutral)
        run.assist(folder, Tuning(data, *parts, recipe, make(cfg.trainer), cfg.seed), make(cfg.model))
        return
    with claimed(cfg, folder) as to_do:
        if to_do:
            with logged(cfg, folder), tracked(cfg, folder) as tracking:
                from debias.jobs import run
                from debias.training.stage import Tuning

                parts = make_adapter(cfg.adapter), make(cfg.objective), make(cfg.neutral)
                tuning = Tuning(data, *parts, recipe, make(cfg.trainer), cfg.seed, tracking.logger)
                tracking.scored(run.run(folder, tuning, make(cfg.model), scoring, benchmarks, make_report(cfg)))


def evaluate_job(cfg: DictConfig) -> None:
    """Score a base model, alone or beside adapters."""
    scoring = checked(Scoring, cfg, "scoring")
    benchmarks = make_benchmarks(cfg)
    folder = run_folder(cfg, benchmarks)
    if launched_rank() > 0:
        raise UserError("only training is shared by several processes; start this job in one")
    with claimed(cfg, folder) as to_do:
        if to_do:
            with logged(cfg, folder), tracked(cfg, folder) as tracking:
                from debias.jobs.evaluate import evaluate

                evaluation = evaluate(
                    folder,
                    model=make(cfg.model),
                    adapter_paths=[path] if isinstance(path := cfg.adapter.path, str) else list(path or []),
                    scoring=scoring,
                    benchmarks=benchmarks,
                    report=make_report(cfg),
                    combine=cfg.adapter.combine,
                    weights=None if cfg.adapter.weights is None else list(cfg.adapter.weights),
                )
                tracking.scored(evaluation)


def export_job(cfg: DictConfig) -> None:
    """Merge or upload an adapter, or say what would be done."""
    import warnings

    from debias.jobs import export

    quieten()
    warnings.simplefilter("ignore")  # other libraries' advice to programmers
    plan = export.planned(cfg.adapter.path, cfg.merge, cfg.folder, cfg.repo, cfg.private, cfg.overwrite)
    words = [f"would {step}" for step in export.steps(plan)] if cfg.dry_run else export.carry_out(plan, make(cfg.model))
    console.print("\n".join(words), highlight=False, soft_wrap=True, markup=False)


# Verbs that Hydra configures: each has a primary config of its name, and a job that returns an exit status or nothing.
JOBS: dict[str, Callable[[DictConfig], int | None]] = {
    "run": run_job,
    "generate": generate_job,
    "evaluate": evaluate_job,
    "doctor": doctor_job,
    "export": export_job,
}
