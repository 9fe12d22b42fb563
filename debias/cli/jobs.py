"""A function per verb: config -> objects -> a job of `debias.jobs`."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from debias.cli.build import check_witnesses, make_adapter, make_benchmarks, make_tracker
from debias.cli.config import make
from debias.cli.job_context import claimed, logged, recorded, run_folder, set_folder, tracked
from debias.cli.settings import Doctor, Evaluate, Export, Generate, Run, Show, settings_of
from debias.cli.terminal import console, next_step, page, quieten, shown
from debias.models.ranks import Say, launched_rank, leading
from debias.records import UserError
from debias.schema import checked
from debias.wording import counted

if TYPE_CHECKING:
    from debias.data.mixture import Mixture
    from debias.training.stage import Tuning


def run_job(cfg: DictConfig) -> None:
    """Train and score. If a launcher started several processes, the first runs the job and the others help to train."""
    settings = settings_of(cfg, Run)
    _check_bias_is_named()
    check_witnesses(cfg, HydraConfig.get().overrides.task)
    if launched_rank() > 0:  # it looks at no folder: what there is to do is decided once, by the first process
        from debias.jobs import cost, run

        if settings.threads:
            cost.set_threads(settings.threads)
        run.assist(_tuning(cfg, settings, make(cfg.data)), make(cfg.model))
        return
    with leading() as say:
        _lead(cfg, settings, say)


def _lead(cfg: DictConfig, settings: Run, say: Say) -> None:
    data, benchmarks = make(cfg.data), make_benchmarks(cfg)
    folder = run_folder(cfg, [data, *benchmarks])
    with claimed(cfg, folder) as to_do:
        if to_do:
            from debias.training.module import check_spread

            tuning, model = _tuning(cfg, settings, data), make(cfg.model)
            tracker = make_tracker(cfg)
            data.check()
            quieten()
            with warnings.catch_warnings(action="ignore"):  # run.log gets them from the trainer that is used
                trainer = tuning.make_trainer()  # fail on a device that is not there before anything is written
            check_spread(trainer, model.device_map)
            with logged(cfg, folder), tracked(cfg, folder, tracker) as tracking:
                from debias.jobs import run
                from debias.report.one_run.report import RunReport

                report = RunReport(cfg.data.bias, settings.outcome)
                tuning = tuning._replace(logger=tracking.logger)
                evaluation = run.run(folder, tuning, model, settings.scoring, benchmarks, report, settings.show, say)
                tracking.scored(evaluation)


def _tuning(cfg: DictConfig, settings: Run, data: Mixture) -> Tuning:
    """The parts that decide an adapter: their classes take seconds to import, and a finished run needs none of them."""
    from debias.training.stage import Tuning

    parts = make_adapter(cfg.adapter), make(cfg.objective), make(cfg.neutral)
    balance = make(cfg.balance)
    return Tuning(data, *parts, settings.training, make(cfg.trainer), settings.seed, balance=balance)


def _check_bias_is_named() -> None:
    """Raises UserError if a file of the user's own would be taken to be about the default bias."""
    named = {override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task}
    if "data.path" in named and "data.bias" not in named:
        raise UserError(
            "data.path names a file, but not what it is about; add data.bias=gender or another bias, "
            "which decides what is scored in full"
        )


def evaluate_job(cfg: DictConfig) -> None:
    """Score a base model, alone, with adapters or with another debiasing method."""
    settings = settings_of(cfg, Evaluate)
    check_witnesses(cfg, HydraConfig.get().overrides.task)
    benchmarks, baseline = make_benchmarks(cfg), make(cfg.baseline)
    adapter_paths = [path] if isinstance(path := settings.adapter.path, str) else path or []
    if adapter_paths and HydraConfig.get().runtime.choices["baseline"] != "none":
        raise UserError("baseline= takes the place of an adapter; leave out one of baseline and adapter.path")
    folder = run_folder(cfg, [*benchmarks, baseline], adapter_paths)
    if launched_rank() > 0:
        raise UserError("only training can use several processes; start this job in one")
    with claimed(cfg, folder) as to_do:
        if to_do:
            from debias.jobs.evaluate import check, evaluate
            from debias.report.one_run.report import RunReport

            model, tracker = make(cfg.model), make_tracker(cfg)
            check(adapter_paths, settings.adapter.combine, settings.adapter.weights)
            with logged(cfg, folder), tracked(cfg, folder, tracker) as tracking:
                evaluation = evaluate(
                    folder,
                    model=model,
                    adapter_paths=adapter_paths,
                    scoring=settings.scoring,
                    benchmarks=benchmarks,
                    report=RunReport(settings.data.bias, settings.outcome),
                    combine=settings.adapter.combine,
                    weights=settings.adapter.weights,
                    baseline=baseline,
                )
                tracking.scored(evaluation)


def generate_job(cfg: DictConfig) -> int:
    """Have a chat model write triplets; returns 3 if money, patience or server ended it, 4 if a batch is pending."""
    from debias.generation.wanted import Wanted
    from debias.generation.writers import writers_of
    from debias.jobs import generate
    from debias.jobs.generate_counterparts import add_counterparts
    from debias.jobs.generate_loop import Generation
    from debias.jobs.generate_preview import estimate, preview
    from debias.jobs.generated_folder import LEDGER
    from debias.report.one_run import generated_set_shown

    settings = settings_of(cfg, Generate)
    folder = set_folder(cfg)
    wanted = checked(Wanted, cfg.generate, "generate")
    writers = writers_of(make(cfg.llm))
    generation = Generation(
        name=str(settings.name),
        writers=writers,
        strategy=make(cfg.strategy),
        wanted=wanted,
        biases=generate.biases(settings.bias),
        seed=settings.seed,
        judge=_chosen(cfg, "judge").beside(writers[0]) if cfg.judge.llm else None,
        counterparts=_chosen(cfg, "counterparts").beside(writers[0]) if cfg.counterparts.llm else None,
    )
    if not generation.strategy.biased and any(w.startswith("bias=") for w in HydraConfig.get().overrides.task):
        raise UserError(f"strategy={generation.strategy.name} chooses the biases by itself: leave bias out")
    if wanted.dry_run:
        console.print(generated_set_shown.dry_run(estimate(generation, folder.path / LEDGER)), highlight=False)
        return 0
    generate.check(generation)
    if settings.preview is not None:
        with folder.claim():
            seen = preview(folder, generation, settings.preview)
        console.print(generated_set_shown.preview(seen._replace(ledger=shown(seen.ledger))), highlight=False)
        return 0 if seen.harvest.stopped in ("preview", "patience", "filtered") else 3
    if generation.counterparts is not None and generation.counterparts.file is not None:
        source = Path(generation.counterparts.file).expanduser()
        with folder.claim(settings.overwrite), recorded(folder):
            path, named = add_counterparts(folder, generation.counterparts, source)
        console.print(generated_set_shown.named(named), highlight=False, soft_wrap=True)
        console.print(f"file: {shown(path)}", highlight=False, soft_wrap=True)
        return {"": 0, "batch": 4}.get(named.stopped, 3)
    with folder.claim(settings.overwrite), recorded(folder):
        if settings.threads:
            from debias.jobs import cost

            cost.set_threads(settings.threads)
        product = generate.generate(folder, generation)
    product = product._replace(path=shown(product.path))
    console.print(generated_set_shown.terminal(product), highlight=False, soft_wrap=True)
    stopped = product.harvest.stopped
    if stopped == "n" and product.counterparts is not None:
        stopped = product.counterparts.stopped or stopped
    if stopped == "patience" and product.tries_out:
        return 0  # it was tried out, and that is what it was for
    return {"n": 0, "batch": 4}.get(stopped, 3)


def _chosen(cfg: DictConfig, group: str) -> Any:
    """The option of a group. Raises UserError if only its model was named."""
    if "_target_" not in cfg[group]:
        raise UserError(f"{group}.llm is set, but {group}=none asks nobody; add {group}=llm")
    return make(cfg[group])


def doctor_job(cfg: DictConfig) -> int:
    """Examine files of triplets; returns 1 if one of them does not pass."""
    from debias.jobs.doctor import examine_files
    from debias.report.one_run import data_quality

    settings = settings_of(cfg, Doctor)
    if not settings.files:
        raise UserError("name at least one file: debias doctor FILE...")
    examined = []
    for one in examine_files(
        [Path(name).expanduser() for name in settings.files],
        bias=settings.bias,
        search_leakage=settings.leakage,
        write_page=settings.html,
        fix=settings.fix,
        overwrite=settings.overwrite,
        model=make(cfg.model) if settings.loss else None,
    ):
        examined.append(one)
        if settings.json:
            continue
        console.print(data_quality.terminal(one.diagnosis), highlight=False)
        if one.page:
            console.print()
            page(one.page)
        if one.fixed:
            reasons = "".join(f"; {count:,} dropped: {reason}" for reason, count in one.fixed.dropped.items())
            told = f"\nwrote {one.fixed.path}: {counted(one.fixed.kept, 'record')}{reasons}"
            console.print(told, highlight=False, soft_wrap=True)
    passes = all(one.diagnosis.passes for one in examined)
    if not settings.json:
        first = shlex.quote(str(examined[0].fixed.path if examined[0].fixed else settings.files[0]))
        if passes or settings.fix:
            next_step(f"debias run data=triplets data.path={first} data.bias={settings.bias or 'BIAS'}")
        else:
            next_step(f"debias doctor {first} --fix, for a copy without the records that cannot be used")
    if settings.json:
        print(json.dumps([one.as_json() for one in examined], indent=2, ensure_ascii=False))
    return 0 if passes else 1


def export_job(cfg: DictConfig) -> None:
    """Merge or upload an adapter, or only say what would be done."""
    from debias.jobs import cost, export, export_plan

    settings = settings_of(cfg, Export)
    if settings.threads:
        cost.set_threads(settings.threads)
    quieten()
    warnings.simplefilter("ignore")  # advice to programmers from other libraries
    plan = export_plan.planned(
        settings.adapter.path, settings.merge, settings.folder, settings.repo, settings.private, settings.overwrite,
        settings.adapter.combine, settings.adapter.weights,
    )  # fmt: skip
    words = (
        [f"would {step}" for step in export_plan.steps(plan)]
        if settings.dry_run
        else export.carry_out(plan, make(cfg.model))
    )
    console.print("\n".join(words), highlight=False, soft_wrap=True, markup=False)
    if settings.dry_run:
        next_step("the same command with dry_run=false")
    elif plan.merge:
        next_step(f"debias evaluate model={plan.folder}")
    elif plan.combine:
        next_step(f"debias evaluate adapter.path={plan.folder}")


def show_job(cfg: DictConfig) -> None:
    """Print what a model writes, with and without an adapter."""
    from debias.jobs import cost, show
    from debias.report.one_run import written

    settings = settings_of(cfg, Show)
    quieten()
    warnings.simplefilter("ignore")  # advice to programmers from other libraries
    if settings.threads:
        cost.set_threads(settings.threads)
    named = settings.prompts or []
    prompts = show.prompts_in(Path(named).expanduser()) if isinstance(named, str) else named
    folder = settings.adapter.path
    found = show.show(make(cfg.model), folder, prompts, settings.show)
    console.print(written.grid(found).terminal())
    next_step("debias show adapter.path=... 'PROMPT'" if folder else "debias show adapter.path=FOLDER")


# Verbs configured by Hydra. Each has a primary config of its name and returns an exit status or nothing.
JOBS: dict[str, Callable[[DictConfig], int | None]] = {
    "run": run_job,
    "generate": generate_job,
    "evaluate": evaluate_job,
    "doctor": doctor_job,
    "export": export_job,
    "show": show_job,
}
