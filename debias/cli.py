"""verb -> Hydra -> verb function: the only place that knows Hydra. It wraps a job: status, log, errors, clean-up."""

from __future__ import annotations

import difflib
import errno
import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from debias import __version__
from debias.records import Recipe, Scoring, UserError

log = logging.getLogger("debias.cli")
console = Console(width=None if sys.stdout.isatty() else 160)  # files and pipes need no narrow lines

VERBS = ("run", "evaluate", "report", "ls")
USAGE = """\
debias run       [overrides]     data -> adapter -> evaluation of base and debiased model -> report (the default verb)
debias evaluate  [overrides]     score any base model or adapter
debias report    PATH...         one table over many runs
debias ls        [GROUP]         models, data sources, adapters, benchmarks, protocols: name and one line each

After the verb everything is Hydra:
  debias run training.lr=3e-4 seed=2                one run with other settings
  debias run -m data.bias=gender seed=1,2,3         a sweep
  debias run --cfg job --resolve                    the whole config, run nothing
  debias run --help                                 what can be overridden
"""


def config_dir() -> Path:
    """The config tree: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def main() -> None:
    """Entry point of the `debias` command; leaves with a status that is not 0 when any job failed."""
    try:
        _dispatch(sys.argv[1:])
    except UserError as error:
        sys.exit(_complain(str(error)))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; the same command goes on from here", status=130))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(
            _complain(f"the disk is full ({error.filename or 'while writing'}); free space and run the command again")
        )


def _dispatch(words: list[str]) -> None:
    verb = words.pop(0) if words and re.fullmatch(r"[a-z]+", words[0]) else "run"
    if words[:1] in (["-h"], ["--help"]) and len(sys.argv) == 2:
        print(f"debias {__version__}: make a language model prefer stereotypes less, and prove it\n\n{USAGE}", end="")
    elif sys.argv[1:] == ["--version"]:
        print(f"debias {__version__}")
    elif "COMP_LINE" in os.environ and any(word.startswith("query=") for word in words):
        _complete(words)
    elif verb in ("run", "evaluate"):
        _hydra(verb, words)
    elif verb == "report":
        from debias.report.runs import report

        report([Path(word) for word in words], console)
    elif verb == "ls":
        _list(words)
    else:
        raise UserError(f"unknown verb {verb!r}{_nearest(verb, VERBS)}; there are: {', '.join(VERBS)}")


def _complain(text: str, status: int = 1) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return status


# ---------------------------------------------------------------- Hydra


def _hydra(verb: str, overrides: list[str]) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("job", _job_name, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through, to be told in one line below
    sys.argv = [f"debias {verb}", *_any_model(overrides)]
    failures: list[BaseException] = []

    def job(cfg: Any) -> None:
        """Leave no empty folder; keep a single job's error for our own message, let a sweep's pass to its launcher."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            (_run_job if verb == "run" else _evaluate_job)(cfg)
        except Exception as error:
            if HydraConfig.get().mode is not RunMode.RUN:
                raise
            failures.append(error)
        finally:
            with suppress(OSError):
                Path(HydraConfig.get().runtime.output_dir).rmdir()

    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=verb)(job)()
        if failures:
            raise failures[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, verb)) from error


def _complete(words: list[str]) -> None:
    """Answer the shell's question what may follow: the verb names the config, the rest is Hydra's."""
    line = os.environ["COMP_LINE"].split(" ", 2)
    verb = line[1] if len(line) > 2 else "run"
    if len(line) == 2:
        print("\n".join(name for name in VERBS if name.startswith(line[1])))
    elif verb in ("run", "evaluate"):
        os.environ["COMP_LINE"] = f"{line[0]} {line[2]}"
        _hydra(verb, words)


def _any_model(overrides: Sequence[str]) -> list[str]:
    """`model=ID` for a model without a config file of its own is short for `model=hf model.path=ID`."""
    known = _options("model")
    words = []
    for word in overrides:
        key, _, value = word.partition("=")
        if key == "model" and value and not set(value.split(",")) & known:
            words += ["model=hf", f"model.path={value}"]
        else:
            words.append(word)
    return words


def _options(group: str) -> set[str]:
    return {path.stem for path in (config_dir() / group).glob("*.yaml")}


def _job_name(overrides: Sequence[str]) -> str:
    """Folder name of a job: its overrides in short form, `default` without any; long ones are cut and hashed.

    It holds nothing that Hydra or a shell would want quoted, so that `adapter.path=FOLDER` can be typed as it is.
    """
    kept = sorted(word for word in overrides if not re.match(r"(name|overwrite|logger)=", word))
    short = [re.sub(r"^\+*\w+\.(?=[\w.]+=)", "", word) for word in kept]  # training.lr=1e-3 -> lr=1e-3
    short = [b if short.count(b) == 1 else a for a, b in zip(kept, short, strict=True)]
    words = [re.sub(r"[^\w.-]+", "_", word.replace("=", "-")) for word in sorted(short)]
    name = "+".join(words) or "default"
    if len(name) > 120:
        name = f"{name[:110]}-{hashlib.sha256(','.join(kept).encode()).hexdigest()[:8]}"
    return name


def _explain(error: Exception, verb: str) -> str:
    """One line for an error of Hydra's, with the nearest known name."""
    text = str(error)
    if group := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        options = sorted(_options(group[1]))
        if options:
            hint = _nearest(group[2], options)
            return f"there is no {group[1]}={group[2]}{hint}; choose one of: {', '.join(options)}"
    if key := re.search(r"Could not override '([^']+)'", text):
        return f"unknown key {key[1]!r}{_nearest(key[1], _keys(verb))}; see `debias {verb} --cfg job`"
    if group := re.search(r"Could not override '?([^'\s]+)'?\.\s*No match in the defaults list", text):
        return f"unknown group {group[1]!r}{_nearest(group[1], _keys(verb))}; see `debias ls`"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} must be set: add {missing[1]}=VALUE"
    return text.split("\nSee https")[0]


def _keys(verb: str) -> list[str]:
    """All keys that can be overridden, in dotted form, and the groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig

    def walk(node: DictConfig, prefix: str) -> Iterator[str]:
        for key in map(str, node):
            yield f"{prefix}{key}"
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                yield from walk(child, f"{prefix}{key}.")

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return [*walk(compose(verb), ""), *(path.name for path in config_dir().iterdir() if path.is_dir())]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


# ---------------------------------------------------------------- jobs


def _run_job(cfg: Any) -> None:
    recipe, scoring = _checked(Recipe, cfg, "training"), _checked(Scoring, cfg, "scoring")
    data = _make(cfg.data)
    benchmarks = _benchmarks(cfg)

    def work(folder: Any) -> Any:
        from debias import experiment

        return experiment.run(
            folder,
            data=data,
            model=_make(cfg.model),
            adapter=_make(cfg.adapter, _convert_="all"),  # PEFT wants a list, not a ListConfig
            objective=_make(cfg.objective),
            recipe=recipe,
            scoring=scoring,
            benchmarks=benchmarks,
            make_trainer=_make(cfg.trainer),
            report=_report(cfg),
            seed=cfg.seed,
        )

    _job(cfg, [data, *benchmarks], work)


def _evaluate_job(cfg: Any) -> None:
    scoring = _checked(Scoring, cfg, "scoring")
    benchmarks = _benchmarks(cfg)

    def work(folder: Any) -> Any:
        from debias import experiment

        return experiment.evaluate_only(
            folder,
            model=_make(cfg.model),
            adapter_path=cfg.adapter.path,
            scoring=scoring,
            benchmarks=benchmarks,
            report=_report(cfg),
        )

    _job(cfg, benchmarks, work)


def _make(cfg: Any, **options: Any) -> Any:
    """Build what a config names by `_target_`; a user's mistake found on the way stays the user's error."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(cfg, **options)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise


def _checked(schema: Any, cfg: Any, section: str) -> Any:
    """A section of the config as the dataclass that says which types its values have."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), cfg[section]))
    except OmegaConfBaseException as error:
        raise UserError(f"{section}.{error.full_key}: {str(error).splitlines()[0]}") from error


def _benchmarks(cfg: Any) -> list[Any]:
    if not cfg.eval:
        raise UserError("eval is empty: name at least one benchmark, as in eval=[stereoset]")
    return [_make(benchmark) for benchmark in cfg.eval.values()]


def _report(cfg: Any) -> Any:
    from debias.report.outcome import Bounds
    from debias.report.write import RunReport

    return RunReport(cfg.data.bias, Bounds(cfg.outcome.max_lms_drop, cfg.outcome.max_perplexity_ratio))


def _job(cfg: Any, inputs: Sequence[Any], work: Callable[[Any], Any]) -> None:
    """Claim the run folder, do the work, and leave a status, a log and a table behind, whatever happens."""
    from hydra.core.hydra_config import HydraConfig
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
    with folder.claim(cfg.overwrite) as to_do:
        if to_do:
            _work(cfg, folder, work)
        else:
            console.print(f"done before, nothing to do: {_shown(folder.path)}", highlight=False, soft_wrap=True)
        _show(cfg, read_figures(folder.path))
        console.print(f"report: {_shown(folder.path / 'report.html')}", highlight=False, soft_wrap=True)


def _work(cfg: Any, folder: Any, work: Callable[[Any], Any]) -> None:
    folder.start()
    with _logging(folder.path / "run.log"):
        try:
            from debias import experiment  # seconds of imports that a finished run does not need

            _quieten()
            if cfg.threads:
                experiment.set_threads(cfg.threads)
            work(folder)
            folder.finish(experiment.hardware())
        except BaseException as error:
            log.debug("failed: %s", error, exc_info=True)
            folder.fail(error)
            raise
        experiment.release_memory()


def _show(cfg: Any, figures: Sequence[Any]) -> None:
    from debias.report import tables
    from debias.report.outcome import Bounds, outcome

    bias, bounds = cfg.data.bias, Bounds(cfg.outcome.max_lms_drop, cfg.outcome.max_perplexity_ratio)
    console.print()
    console.print(tables.terminal(tables.rows(figures, bias)))
    console.print()
    console.print(outcome(figures, bias, bounds).text, style="bold", highlight=False)
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


# ---------------------------------------------------------------- ls


def _list(groups: Sequence[str]) -> None:
    """Print what each config group offers: name and the first comment line of its file."""
    from rich.table import Table

    folders = sorted(path for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra")
    known = [folder.name for folder in folders]
    for group in groups:
        if group not in known:
            raise UserError(f"unknown group {group!r}{_nearest(group, known)}; there are: {', '.join(known)}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for folder in folders:
        if groups and folder.name not in groups:
            continue
        for i, path in enumerate(sorted(folder.glob("*.yaml"))):
            comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
            line = next(c for c in comments if not c.startswith("@package"))
            table.add_row("" if i else folder.name, path.stem, line)
    console.print(table)
