"""The jobs that verbs start: config -> objects, a claimed run folder, and a status, a log and a table left behind."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from debias.cli.config import checked, config_dir, make, nearest, options, without_passwords
from debias.ranks import launched_rank
from debias.records import Recipe, Scoring, UserError

log = logging.getLogger(__name__)
console = Console(width=None if sys.stdout.isatty() else 160)  # files and pipes need no narrow lines


def run_job(cfg: Any) -> None:
    recipe, scoring = checked(Recipe, cfg, "training"), checked(Scoring, cfg, "scoring")
    data = make(cfg.data)
    benchmarks = _benchmarks(cfg)

    def tuning(logger: Any) -> Any:
        from debias.tuning import Tuning

        adapter, objective = _adapter(cfg.adapter), make(cfg.objective)
        return Tuning(data, adapter, objective, recipe, make(cfg.trainer), cfg.seed, logger)

    def work(folder: Any, logger: Any) -> Any:
        from debias import experiment

        return experiment.run(folder, tuning(logger), make(cfg.model), scoring, benchmarks, _report(cfg))

    def assist(folder: Any) -> None:
        from debias import experiment

        experiment.assist(folder, tuning(False), make(cfg.model))

    _job(cfg, [data, *benchmarks], work, assist)


def evaluate_job(cfg: Any) -> None:
    scoring = checked(Scoring, cfg, "scoring")
    benchmarks = _benchmarks(cfg)

    def work(folder: Any, _: Any) -> Any:
        from debias import experiment

        return experiment.evaluate_only(
            folder,
            model=make(cfg.model),
            adapter_paths=[path] if isinstance(path := cfg.adapter.path, str) else list(path or []),
            scoring=scoring,
            benchmarks=benchmarks,
            report=_report(cfg),
            combine=cfg.adapter.combine,
            weights=None if cfg.adapter.weights is None else list(cfg.adapter.weights),
        )

    _job(cfg, benchmarks, work)


def generate_job(cfg: Any) -> int:
    """Have a chat model write triplets; returns 3 when money, patience or server ended it, 4 when a batch is out."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from debias import dataset
    from debias.generation.exchange import LLM
    from debias.generation.wanted import BESIDE, Wanted
    from debias.report import dataset as report
    from debias.results import code_sha256, text_sha256

    OmegaConf.resolve(cfg)
    llm, wanted = checked(LLM, cfg, "llm"), checked(Wanted, cfg, "generate")
    generation = dataset.Generation(
        name=cfg.name,
        llm=llm,
        server=make(cfg.llm.server) if cfg.llm.server else None,
        strategy=make(cfg.strategy, _convert_="all"),
        wanted=wanted,
        biases=dataset.biases(list(cfg.bias) if OmegaConf.is_list(cfg.bias) else str(cfg.bias)),
        seed=cfg.seed,
    )
    output = Path(HydraConfig.get().runtime.output_dir)
    if wanted.dry_run:
        console.print(report.estimate(dataset.estimate(generation, output / dataset.LEDGER)), highlight=False)
        return 0
    same = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("name", "overwrite", "threads")])
    for section, names in BESIDE.items():
        same[section] = OmegaConf.masked_copy(same[section], [key for key in same[section] if key not in names])
    identity = {"config_sha256": text_sha256(OmegaConf.to_yaml(same)), "code_sha256": code_sha256()}
    folder = dataset.DataFolder(output, without_passwords(OmegaConf.to_yaml(cfg)), identity)
    with folder.claim(cfg.overwrite):
        folder.start()
        with _logging(folder.path / "run.log"):
            try:
                if cfg.threads:
                    from debias.experiment import set_threads

                    set_threads(cfg.threads)
                product = dataset.generate(folder, generation)
            except BaseException as error:
                log.debug("failed: %s", error, exc_info=True)
                folder.fail(error)
                raise
    shown = product._replace(path=_shown(product.path))
    console.print(report.terminal(shown), highlight=False, soft_wrap=True)
    return {"n": 0, "batch": 4}.get(product.harvest.stopped, 3)


def export_job(cfg: Any) -> None:
    """Merge or upload an adapter, or say what would be done."""
    import warnings

    from debias import export

    _quieten()
    warnings.simplefilter("ignore")  # other libraries' advice to programmers
    plan = export.planned(cfg.adapter.path, cfg.merge, cfg.folder, cfg.repo, cfg.private, cfg.overwrite)
    words = [f"would {step}" for step in export.steps(plan)] if cfg.dry_run else export.carry_out(plan, make(cfg.model))
    console.print("\n".join(words), highlight=False, soft_wrap=True, markup=False)


def doctor_job(cfg: Any) -> int:
    """Examine files of triplets; returns 1 when one of them does not pass."""
    import json

    from debias.data import doctor, leakage
    from debias.data.reading import read_records
    from debias.progress import bar
    from debias.report.quality import terminal

    if not cfg.files:
        raise UserError("name at least one file: debias doctor FILE...")
    files = {path: read_records(path, cfg.bias) for path in (Path(name).expanduser() for name in cfg.files)}
    for path in files if cfg.fix and not cfg.overwrite else ():
        if (target := _fixed(path)).exists():
            raise UserError(f"{target} exists already; move it away, or set overwrite=true")
    names = leakage.available() if cfg.leakage else []
    indices = [leakage.benchmark_index(n) for n in (bar("reading benchmarks")(names, len(names)) if names else ())]
    unread = leakage.missing() if cfg.leakage else []
    diagnoses = []
    for path, (records, broken) in files.items():
        diagnosis = doctor.diagnose(str(path), records, broken, indices, unread)
        if cfg.loss:
            diagnosis = replace(diagnosis, loss=_losses(make(cfg.model), records))
        diagnoses.append(diagnosis)
        if not cfg.json:
            console.print(terminal(diagnosis), highlight=False)
        if cfg.fix:
            _fix(_fixed(path), *doctor.mended(records, broken, indices), quiet=cfg.json)
    if cfg.json:
        print(json.dumps([d.as_json() for d in diagnoses], indent=2, ensure_ascii=False))
    return 0 if all(d.passes for d in diagnoses) else 1


def _losses(model: Any, records: Sequence[Any]) -> dict[str, Any] | None:
    from debias.data.doctor import histogram
    from debias.experiment import attribute_losses

    triplets = [found for r in records if not isinstance(found := r.triplet(), str)]
    return histogram(attribute_losses(model, triplets)) if triplets else None


def _fixed(path: Path) -> Path:
    return path.with_suffix(".fixed.jsonl")


def _fix(target: Path, kept: Sequence[Any], dropped: Mapping[str, int], quiet: bool) -> None:
    """Write the records that were kept, as the file had them, and say why others were not."""
    import json

    from debias.data.reading import FIELDS
    from debias.results import write_text

    if not kept:
        raise UserError(f"nothing is left to write to {target}; choose another file")
    own = (*FIELDS, "bias")
    rows = [{**r.row, **{name: getattr(r, name) for name in own}} for r in kept]
    write_text(target, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    if not quiet:
        reasons = "".join(f"; {count:,} dropped: {reason}" for reason, count in dropped.items())
        console.print(f"\nwrote {target}: {len(kept):,} records{reasons}", highlight=False, soft_wrap=True)


def _adapter(cfg: Any) -> Any:
    """The PEFT config of the adapter to train; `train_head` is the one key that PEFT does not know."""
    from omegaconf import OmegaConf

    from debias.models.targets import PREDICTION_HEAD

    of_peft = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "train_head"])
    config = make(of_peft, _convert_="all")  # PEFT wants a list, not a ListConfig
    if cfg.train_head:
        config.modules_to_save = [PREDICTION_HEAD]
    return config


def _benchmarks(cfg: Any) -> list[Any]:
    """The benchmarks of a config, those that follow `protocol` under each of `eval.protocols` where that is set."""
    # A sweep's file may set a key of a benchmark that eval=[...] leaves out.
    chosen = [node for name, node in cfg.eval.items() if name != "protocols" and "_target_" in node]
    if not chosen:
        raise UserError("eval is empty: name at least one benchmark, as in eval=[stereoset]")
    if not cfg.eval.get("protocols"):
        return [make(node) for node in chosen]
    protocols = _protocols(cfg)
    return [
        benchmark
        for node in chosen
        for benchmark in (
            [make(node, protocol=protocol) for protocol in protocols]
            if node.get("protocol") == cfg.protocol
            else [make(node)]
        )
    ]


def benchmarks_of(config: dict[str, Any]) -> list[Any]:
    """The benchmarks that a finished run's config names; `all` protocols are those of every kind of model.

    Raises UserError for a config of another version, with classes or keys that there are no more.
    """
    from hydra.errors import InstantiationException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    cfg = OmegaConf.create(config)
    if cfg.eval.get("protocols") == "all":
        cfg.eval.protocols = sorted(options("protocol"))
    try:
        return _benchmarks(cfg)
    except (InstantiationException, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the run's benchmarks are not those of this version ({reason}); run the job again") from error


def _protocols(cfg: Any) -> list[Any]:
    """The protocols that `eval.protocols` names, or all that can read the model."""
    from omegaconf import OmegaConf

    known = sorted(options("protocol"))
    names = known if cfg.eval.protocols == "all" else list(cfg.eval.protocols)
    for name in names:
        if name not in known:
            raise UserError(
                f"eval.protocols: there is no {name!r}{nearest(name, known)}; choose of: {', '.join(known)}"
            )
    protocols = [make(OmegaConf.load(config_dir() / "protocol" / f"{name}.yaml")) for name in names]
    if cfg.eval.protocols != "all":
        return protocols
    kind = make(cfg.model).tokens().kind
    return [protocol for protocol in protocols if kind in protocol.kinds]


def _report(cfg: Any) -> Any:
    from debias.report.outcome import Bounds
    from debias.report.write import RunReport

    return RunReport(cfg.data.bias, Bounds(cfg.outcome.max_lms_drop, cfg.outcome.max_perplexity_ratio))


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
            console.print(f"done before, nothing to do: {_shown(folder.path)}", highlight=False, soft_wrap=True)
            if HydraConfig.get().mode is RunMode.MULTIRUN:  # a sweep's table and report tell the rest
                return
        _show(cfg, read_figures(folder.path))
        console.print(f"report: {_shown(folder.path / 'report.html')}", highlight=False, soft_wrap=True)


def _work(cfg: Any, folder: Any, work: Callable[[Any, Any], Any]) -> None:
    from hydra.core.hydra_config import HydraConfig

    from debias.cli import workers

    folder.start()
    with _logging(folder.path / "run.log"):
        try:
            workers.claim_gpu(HydraConfig.get().launcher, folder.path.parent)
            from debias import experiment  # seconds of imports that a finished run does not need

            _quieten()
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
    from omegaconf import OmegaConf

    from debias.tracking import Tracked, Tracker

    tracker = make(cfg.logger) if cfg.get("logger") else Tracker()
    chosen = {k: v for k, v in HydraConfig.get().runtime.choices.items() if v and "/" not in k and "@" not in k}
    choices = [f"{k}={v if isinstance(v, str) else ','.join(v)}" for k, v in chosen.items()]
    config = yaml.safe_load(without_passwords(OmegaConf.to_yaml(cfg)))
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


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def _logging(path: Path) -> Iterator[None]:
    """Log to the terminal in short and to the run's file in full; the handlers go with the job."""
    root = logging.getLogger()
    before = root.handlers, root.level
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = RichHandler(
        console=Console(stderr=True),
        show_path=False,
        show_level=False,
        log_time_format="[%X]",
        highlighter=NullHighlighter(),
    )
    terminal.setLevel(logging.INFO)
    terminal.addFilter(logging.Filter("debias"))
    root.handlers, root.level = [file, terminal], logging.INFO
    logging.getLogger("debias").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        root.handlers, root.level = before
        file.close()


def _quieten() -> None:
    """Other libraries write to run.log, not to the terminal."""
    import transformers

    for name in ("pytorch_lightning", "lightning_fabric", "lightning", "huggingface_hub"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()


# Verbs that Hydra configures: each has a primary config of its name, and a job that returns an exit status or nothing.
JOBS: dict[str, Callable[[Any], int | None]] = {
    "run": run_job,
    "generate": generate_job,
    "evaluate": evaluate_job,
    "doctor": doctor_job,
    "export": export_job,
}
