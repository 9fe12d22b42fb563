"""Many runs under one name: planned, followed while they run, and listed at the end."""

from __future__ import annotations

import logging
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text
from yaml import YAMLError

from debias.cli.config import NOT_IDENTITY, as_typed, is_named, job_name, key_of, quoted
from debias.cli.terminal import next_step
from debias.records import UserError
from debias.report.many_runs.labels import Label, by_choice_and_seed
from debias.report.many_runs.labels import words as as_words
from debias.wording import counted

log = logging.getLogger(__name__)

SHOWN = 3  # settings that all jobs share, named above the table


def flagged(words: Sequence[str], *flags: str) -> bool:
    """Whether the words contain one of the flags."""
    return any(word.partition("=")[0] in flags for word in words)


def looks(words: Sequence[str]) -> bool:
    """Whether the words only ask to see something: the config, help, completion."""
    return flagged(words, "-c", "--cfg", "-h", "--help", "--hydra-help", "-i", "--info", "-sc", "--shell-completion")


def is_multirun(words: Sequence[str]) -> bool:
    """Whether the words start several jobs."""
    return not looks(words) and (flagged(words, "-m", "--multirun") or "hydra.mode=MULTIRUN" in words)


class Plan(NamedTuple):
    """The jobs that a command would start, none of them for a sweeper that chooses jobs by the results of others."""

    jobs: dict[Path, str]  # run folder -> what sets the job apart, sorted by choice, then seed
    swept: set[str]  # the keys in which they differ
    constants: list[str]  # overrides that all jobs have in common
    words: list[str]  # of the command, and those that tell Hydra to leave the constants out of folder names
    named: bool  # whether the sweep has a folder of its own


def plan(config: str, folder: Path, words: Sequence[str]) -> Plan:
    """What the words of a sweep would start. Raises UserError if two jobs would share a folder."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    given = [word for word in words if not word.startswith("-")]
    single = [str(o.input_line) for o in parser.parse_overrides(given) if not o.is_sweep_override()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        cfg = compose(config, single, return_hydra_config=True)
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    swept, constants = _divided(params, given)
    if "model" in swept and "model.path" in {*swept, *map(key_of, constants)}:  # runs would have the names of others
        raise UserError(
            "model.path=... replaces the path of each model of model=A,B; name all models by model=... alone"
        )
    left_out = sorted({key_of(word) for word in constants}) if swept else []
    keys = f"[{','.join(map(quoted, left_out))}]"
    telling = [*words, *([f"hydra.job.config.override_dirname.exclude_keys={keys}"] if left_out else [])]
    named = is_named(given, config)
    if not cfg.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return Plan({}, swept, constants, telling, named)
    task = [o for o in parser.parse_overrides([*params, *given]) if not (o.key_or_group or "").startswith("hydra")]
    (jobs,) = BasicSweeper.split_arguments(task, None)
    found: dict[Path, tuple[Label, Sequence[str]]] = {}
    for overrides in jobs:
        label = {key: value for key, _, value in (word.partition("=") for word in as_typed(overrides))}
        path = _folder(cfg, overrides, config, left_out)
        if path in found:
            both = " and ".join(" ".join(words) or "no overrides" for words in (found[path][1], overrides))
            raise UserError(f"two jobs of this sweep would share the folder {path} ({both}); leave one of them out")
        apart = sorted((key for key in label if key in swept), key=lambda key: (key == "seed", key))
        found[path] = ({key: label[key] for key in apart}, overrides)
    in_order = sorted(found, key=lambda path: by_choice_and_seed(found[path][0]))
    names = {path: as_words(found[path][0]) or path.name for path in in_order}
    return Plan(names, swept, constants, telling, named)


def _divided(params: Sequence[str], given: Sequence[str]) -> tuple[set[str], list[str]]:
    """The keys that a sweep goes through, and the overrides that all its jobs have in common.

    A key of a sweep file's grid stays swept where the command chooses one of its values, so that a part of the grid has
    the folders of the whole.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides([*params, *given])
    swept = {str(o.get_key_element()) for o in overrides if o.is_sweep_override()}
    last = {str(o.get_key_element()): str(o.input_line) for o in overrides}
    beside = ("hydra", *NOT_IDENTITY)
    constants = [last[key] for key in last if key not in swept and re.split("[./]", key_of(key))[0] not in beside]
    if "model.path" in swept and "model=hf" in constants:  # model=A,B as Hydra was told
        return swept - {"model.path"} | {"model"}, [word for word in constants if word != "model=hf"]
    return swept, as_typed(constants)


def _folder(cfg: DictConfig, overrides: Sequence[str], config: str, left_out: Sequence[str]) -> Path:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group == "name":
            cfg.name = str(override.value())
    return Path(str(cfg.hydra.sweep.dir)) / job_name(overrides, config, left_out)


def check_folder(planned: Plan) -> None:
    """Raise UserError if the folder of a sweep holds a single run, or the same jobs with other settings."""
    from debias.results import read_status

    for job in planned.jobs:
        if (job.parent / "status.json").is_file():
            raise UserError(f"{job.parent} holds a single run; give this sweep a folder of its own with name=OTHER")
        if job.is_symlink() and not job.exists():  # somebody has removed the run that it pointed to
            job.unlink()
    if "overwrite=true" in planned.words or not any("config_sha256" in read_status(job) for job in planned.jobs):
        return
    folder = next(iter(planned.jobs)).parent
    swept, before = _before(folder / "multirun.yaml")
    if planned.named and swept == planned.swept and set(before) != set(planned.constants):
        there, here = (
            " ".join(word for word in mine if word not in others) or "the defaults"
            for mine, others in ((before, planned.constants), (planned.constants, before))
        )
        raise UserError(
            f"{folder} holds these runs with other settings ({there} there, {here} here); "
            "keep both with name=OTHER, or replace them with overwrite=true"
        )


def _before(file: Path) -> tuple[set[str], list[str]]:
    """What the launch before this one went through, and what its jobs had in common; nothing if that is unknown."""
    from hydra.errors import HydraException

    try:
        hydra = OmegaConf.load(file).hydra
        params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
        return _divided(params, [str(word) for word in hydra.overrides.task])
    except (OSError, AttributeError, HydraException, OmegaConfBaseException, YAMLError):
        return set(), []


def follow(planned: Plan, title: str, console: Console, start: Callable[[], list[int]]) -> int:
    """Start jobs, report each that ends, and print the state of all; returns 0 if every one of them is done."""
    from hydra.errors import HydraException

    from debias.cli.launch import told
    from debias.locks import Lock
    from debias.report.many_runs import sweep_progress as progress
    from debias.results import LOCK, running

    check_folder(planned)
    jobs, constants = planned.jobs, planned.constants
    now = datetime.now(UTC)
    since = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as precise as the times in status.json
    stopped, statuses = "", [0]
    try:
        with _watching(planned, title, since):
            statuses += start()
    except (HydraException, OmegaConfBaseException):
        raise  # the config does not compose, so nothing was started
    except Exception as error:  # mostly a launcher whose workers died
        log.debug("the launcher stopped", exc_info=True)
        stopped = f"the launcher stopped: {told(error)}"
    except KeyboardInterrupt:
        _write(planned, title, since)
        console.print(progress.table(progress.states_of(jobs, since)).terminal())
        raise
    for folder in jobs:
        if running(folder):
            holder = Lock(folder / LOCK).holder()
            console.print(f"waiting for {holder}, to run {folder}", highlight=False, soft_wrap=True)
            running(folder, wait=True)
    states = progress.states_of(jobs, since)
    page = _write(planned, title, since)
    console.print()
    if constants:
        few, more = constants[:SHOWN], constants[SHOWN:]
        rest = f" and {counted(len(more), 'other setting')}, listed in sweep.md" if more else ""
        console.print(Text(f"{progress.in_common(few)}{rest}", style="dim"))
    console.print(progress.table(states).terminal())
    console.print(Text(f"\n{progress.summary(states)}", style="bold"))
    other_code = sum(s.state == progress.OTHER_CODE and bool(s.error) for s in states)
    complete = all(s.state in progress.FINISHED and not s.error for s in states)
    if stopped:
        console.print(Text(stopped), soft_wrap=True)
    if other_code:
        advice = f"{other_code} finished by other code of debias: accept_other_code=true takes their figures, "
        console.print(Text(f"{advice}overwrite=true runs every job again, name=OTHER keeps both"), soft_wrap=True)
    console.print(Text(f"page: {page.resolve().as_uri()}"), soft_wrap=True)
    to_do = any(s.state not in progress.FINISHED for s in states)
    again = "the same command again, for the jobs that are not done; or " if to_do else ""
    next_step(f"{again}debias report {shlex.quote(str(page.parent))}")
    return max(statuses) if complete else 1


@contextmanager
def _watching(planned: Plan, title: str, since: datetime, every: float = 1.0) -> Iterator[None]:
    """Watch the run folders from a thread, whichever process fills them; say what began and what ended.

    sweep.md is rewritten when something has changed.
    """
    over = threading.Event()

    def look() -> None:
        from debias.report.many_runs import sweep_progress as progress

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        told = progress.states_of(planned.jobs, since, probe=False)
        last = False
        while not last:
            last = over.wait(every)  # and look once more
            now = progress.states_of(planned.jobs, since, probe=False)
            if now == told:
                continue
            count = sum(s.state in (*progress.FINISHED, "failed") for s in now)
            left = progress.time_left(now, (datetime.now(UTC) - since).total_seconds())
            for before, after in zip(told, now, strict=True):
                if before.state != after.state and after.state == "running":
                    console.print(Text(f"[{count}/{len(now)}] started: {after.name}", style="dim"))
                elif before.state != after.state and after.state in ("done", "failed"):
                    tail = f"; {left}" if left else ""
                    console.print(Text(f"[{count}/{len(now)}] {progress.ended(after)}{tail}", style="dim"))
            told = now
            _write(planned, title, since, probe=False)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write(planned: Plan, title: str, since: datetime, probe: bool = True) -> Path:
    """Rewrite sweep.md, and return its path. It is a by-product, so a failure does not stop the sweep."""
    from debias.files import note, write_text
    from debias.locks import Lock
    from debias.report.many_runs.sweep_progress import markdown, states_of

    page = next(iter(planned.jobs)).parent / "sweep.md"
    note(page.with_name("multirun.yaml"))  # Hydra's
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with Lock(page.with_name(".sweep.lock")).held("write sweep.md"):
            write_text(page, markdown(title, states_of(planned.jobs, since, probe), planned.constants))
    except OSError as error:
        log.debug("%s: %s", page, error)
    return page
