"""A function per verb: config -> objects -> a job of `debias.jobs`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from debias.cli.build import make_adapter, make_benchmarks, make_report
from debias.cli.config import make
from debias.cli.job_context import claimed, logged, recorded, run_folder, set_folder, tracked
from debias.cli.terminal import console, next_step, page, quieten, shown
from debias.models.ranks import launched_rank
from debias.records import Recipe, Scoring, UserError, Writing, checked


def run_job(cfg: DictConfig) -> None:
    """Train and score. If a launcher started several processes, the first runs the job and the others help to train."""
    recipe, scoring = checked(Recipe, cfg, "training"), checked(Scoring, cfg, "scoring")
    _check_bias_is_named()
    writing = checked(Writing, cfg, "show")
    data, benchmarks = make(cfg.data), make_benchmarks(cfg)
    folder = run_folder(cfg, [data, *benchmarks])
    if launched_rank() > 0:
        from debias.jobs import cost, run
        from debias.training.stage import Tuning

        if cfg.threads:
            cost.set_threads(cfg.threads)
        parts = make_adapter(cfg.adapter), make(cfg.objective), make(cfg.neutral)
        run.assist(
            folder,
            Tuning(data, *parts, recipe, make(cfg.trainer), cfg.seed, balance=make(cfg.balance)),
            make(cfg.model),
        )
        return
    with claimed(cfg, folder) as to_do:
        if to_do:
            with logged(cfg, folder), tracked(cfg, folder) as tracking:
                from debias.jobs import run
                from debias.training.stage import Tuning

                parts = make_adapter(cfg.adapter), make(cfg.objective), make(cfg.neutral)
                tuning = Tuning(data, *parts, recipe, make(cfg.trainer), cfg.seed, tracking.logger, make(cfg.balance))
                report = make_report(cfg)
                tracking.scored(run.run(folder, tuning, make(cfg.model), scoring, benchmarks, report, writing))


def _check_bias_is_named() -> None:
    """Raises UserError if a file of the user's own would be taken to be about the default bias."""
    named = {override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task}
    if "data.path" in named and "data.bias" not in named:
        raise UserError(
            "data.path names a file, but not what it is about; add data.bias=gender or another bias, "
            "which decides what is scored in full"
        )


def evaluate_job(cfg: DictConfig) -> None:
    """Score a base model, alone or with adapters."""
    scoring = checked(Scoring, cfg, "scoring")
    benchmarks = make_benchmarks(cfg)
    adapter_paths = [path] if isinstance(path := cfg.adapter.path, str) else list(path or [])
    folder = run_folder(cfg, benchmarks, adapter_paths)
    if launched_rank() > 0:
        raise UserError("only training can use several processes; start this job in one")
    with claimed(cfg, folder) as to_do:
        if to_do:
            with logged(cfg, folder), tracked(cfg, folder) as tracking:
                from debias.jobs.evaluate import evaluate

                evaluation = evaluate(
                    folder,
                    model=make(cfg.model),
                    adapter_paths=adapter_paths,
                    scoring=scoring,
                    benchmarks=benchmarks,
                    report=make_report(cfg),
                    combine=cfg.adapter.combine,
                    weights=None if cfg.adapter.weights is None else list(cfg.adapter.weights),
                )
                tracking.scored(evaluation)


def generate_job(cfg: DictConfig) -> int:
    """Have a chat model write triplets; returns 3 if money, patience or server ended it, 4 if a batch is pending."""
    from debias.generation.wanted import Wanted
    from debias.generation.writers import writers_of
    from debias.jobs import generate
    from debias.report.one_run import generated_set

    folder = set_folder(cfg)
    wanted = checked(Wanted, cfg, "generate")
    writers = writers_of(make(cfg.llm, _convert_="all"))
    generation = generate.Generation(
        name=cfg.name,
        writers=writers,
        strategy=make(cfg.strategy, _convert_="all"),
        wanted=wanted,
        biases=generate.biases(list(cfg.bias) if OmegaConf.is_list(cfg.bias) else str(cfg.bias)),
        seed=cfg.seed,
        judge=make(cfg.judge, _convert_="all").beside(writers[0]) if cfg.judge.llm else None,
        counterparts=make(cfg.counterparts, _convert_="all").beside(writers[0]) if cfg.counterparts.llm else None,
    )
    if not generation.strategy.biased and any(w.startswith("bias=") for w in HydraConfig.get().overrides.task):
        raise UserError(f"strategy={generation.strategy.name} chooses the biases by itself: leave bias out")
    if wanted.dry_run:
        with contextlib.suppress(OSError):  # a dry run writes nothing, so the empty folders that Hydra made go too
            for path in (folder.path, *list(folder.path.parents)[:2]):
                path.rmdir()
        estimate = generate.estimate(generation, folder.path / generate.LEDGER)
        console.print(generated_set.dry_run(estimate), highlight=False)
        return 0
    if cfg.preview is not None:
        with folder.claim():
            seen = generate.preview(folder, generation, cfg.preview)
        console.print(generated_set.preview(seen._replace(ledger=shown(seen.ledger))), highlight=False)
        return 0 if seen.harvest.stopped in ("preview", "patience", "filtered") else 3
    if generation.counterparts is not None and generation.counterparts.file is not None:
        source = Path(generation.counterparts.file).expanduser()
        with folder.claim(cfg.overwrite), recorded(folder):
            path, named = generate.add_counterparts(folder, generation.counterparts, source)
        console.print(generated_set.named(named), highlight=False, soft_wrap=True)
        console.print(f"file: {shown(path)}", highlight=False, soft_wrap=True)
        return {"": 0, "batch": 4}.get(named.stopped, 3)
    with folder.claim(cfg.overwrite), recorded(folder):
        if cfg.threads:
            from debias.jobs import cost

            cost.set_threads(cfg.threads)
        product = generate.generate(folder, generation)
    product = product._replace(path=shown(product.path))
    console.print(generated_set.terminal(product), highlight=False, soft_wrap=True)
    stopped = product.harvest.stopped
    if stopped == "n" and product.counterparts is not None:
        stopped = product.counterparts.stopped or stopped
    return {"n": 0, "batch": 4}.get(stopped, 3)


def doctor_job(cfg: DictConfig) -> int:
    """Examine files of triplets; returns 1 if one of them does not pass."""
    from debias.jobs.doctor import examine_files
    from debias.report.one_run import data_quality

    if not cfg.files:
        raise UserError("name at least one file: debias doctor FILE...")
    examined = []
    for one in examine_files(
        [Path(name).expanduser() for name in cfg.files],
        bias=cfg.bias,
        search_leakage=cfg.leakage,
        write_page=cfg.html,
        fix=cfg.fix,
        overwrite=cfg.overwrite,
        model=make(cfg.model) if cfg.loss else None,
    ):
        examined.append(one)
        if cfg.json:
            continue
        console.print(data_quality.terminal(one.diagnosis), highlight=False)
        if one.page:
            console.print()
            page(one.page)
        if one.fixed:
            reasons = "".join(f"; {count:,} dropped: {reason}" for reason, count in one.fixed.dropped.items())
            told = f"\nwrote {one.fixed.path}: {one.fixed.kept:,} records{reasons}"
            console.print(told, highlight=False, soft_wrap=True)
    passes = all(one.diagnosis.passes for one in examined)
    if not cfg.json:
        first = examined[0].fixed.path if examined[0].fixed else cfg.files[0]
        if passes or cfg.fix:
            next_step(f"debias run data=triplets data.path={first} data.bias={cfg.bias or 'BIAS'}")
        else:
            next_step(f"debias doctor {first} --fix, for a copy without the records that cannot be used")
    if cfg.json:
        print(json.dumps([one.as_json() for one in examined], indent=2, ensure_ascii=False))
    return 0 if passes else 1


def export_job(cfg: DictConfig) -> None:
    """Merge or upload an adapter, or only say what would be done."""
    import warnings

    from debias.jobs import export

    quieten()
    warnings.simplefilter("ignore")  # advice to programmers from other libraries
    plan = export.planned(cfg.adapter.path, cfg.merge, cfg.folder, cfg.repo, cfg.private, cfg.overwrite)
    words = [f"would {step}" for step in export.steps(plan)] if cfg.dry_run else export.carry_out(plan, make(cfg.model))
    console.print("\n".join(words), highlight=False, soft_wrap=True, markup=False)
    if cfg.dry_run:
        next_step("the same command with dry_run=false")
    elif plan.merge:
        next_step(f"debias evaluate model={plan.folder}")


def show_job(cfg: DictConfig) -> None:
    """Print what a model writes, with and without an adapter."""
    from debias.jobs import cost, show
    from debias.report.one_run import written

    quieten()
    if cfg.threads:
        cost.set_threads(cfg.threads)
    prompts = cfg.prompts or []
    prompts = show.prompts_in(Path(prompts).expanduser()) if isinstance(prompts, str) else list(prompts)
    found = show.show(make(cfg.model), cfg.adapter.path, prompts, checked(Writing, cfg, "show"))
    console.print(written.grid(found).terminal())
    next_step("debias show adapter.path=FOLDER" if not cfg.adapter.path else "debias show adapter.path=... 'PROMPT'")


# Verbs configured by Hydra. Each has a primary config of its name and returns an exit status or nothing.
JOBS: dict[str, Callable[[DictConfig], int | None]] = {
    "run": run_job,
    "generate": generate_job,
    "evaluate": evaluate_job,
    "doctor": doctor_job,
    "export": export_job,
    "show": show_job,
}
