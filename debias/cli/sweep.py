"""Many runs under one name: planned, followed while they run, and listed at the end."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from debias.cli.config import job_name
from debias.cli.terminal import next_step
from debias.records import UserError

log = logging.getLogger(__name__)


def flagged(words: Sequence[str], *flags: str) -> bool:
    """Whether the words contain one of the flags."""
    return any(word.partition("=")[0] in flags for word in words)


def looks(words: Sequence[str]) -> bool:
    """Whether the words only ask to see something: the config, help, completion."""
    return flagged(words, "-c", "--cfg", "-h", "--help", "--hydra-help", "-i", "--info", "-sc", "--shell-completion")


def is_multirun(words: Sequence[str]) -> bool:
    """Whether the words start several jobs."""
    return not looks(words) and (flagged(words, "-m", "--multirun") or "hydra.mode=MULTIRUN" in words)


def plan(config: str, folder: Path, words: Sequence[str]) -> dict[Path, str]:
    """The run folders of the jobs that the words start, in order, with what sets each apart from the others.

    Empty for a sweeper other than Hydra's own, which may choose jobs by the results of earlier ones.
    """
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
    if not cfg.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return {}
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    task = [o for o in parser.parse_overrides([*params, *given]) if not (o.key_or_group or "").startswith("hydra")]
    (jobs,) = BasicSweeper.split_arguments(task, None)
    common = set(jobs[0]).intersection(*jobs)
    names = [" ".join(word for word in overrides if word not in common) for overrides in jobs]
    folders = [_folder(cfg, overrides, config) for overrides in jobs]
    seen: dict[Path, Sequence[str]] = {}
    for folder, overrides in zip(folders, jobs, strict=True):
        if folder in seen:
            both = " and ".join(" ".join(words) or "no overrides" for words in (seen[folder], overrides))
            raise UserError(f"two jobs of this sweep would share the folder {folder} ({both}); leave one of them out")
        seen[folder] = overrides
    return {folder: name or folder.name for folder, name in zip(folders, names, strict=True)}


def _folder(cfg: DictConfig, overrides: Sequence[str], config: str) -> Path:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group == "name":
            cfg.name = str(override.value())
    return Path(str(cfg.hydra.sweep.dir)) / job_name(overrides, config)


def follow(jobs: Mapping[Path, str], title: str, console: Console, start: Callable[[], list[int]]) -> int:
    """Start jobs, report each that ends, and print the state of all; returns 0 if every one of them is done."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from debias.cli.launch import told
    from debias.locks import Lock
    from debias.report.many_runs import sweep_progress as progress
    from debias.results import LOCK, running

    now = datetime.now(UTC)
    since = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as precise as the times in status.json
    stopped, statuses = "", [0]
    try:
        with _watching(jobs, title, since):
            statuses += start()
    except (HydraException, OmegaConfBaseException):
        raise  # the config does not compose, so nothing was started
    except Exception as error:  # mostly a launcher whose workers died
        log.debug("the launcher stopped", exc_info=True)
        stopped = f"the launcher stopped: {told(error)}"
    except KeyboardInterrupt:
        _write(jobs, title, since)
        console.print(progress.table(progress.states_of(jobs, since)).terminal())
        raise
    for folder in jobs:
        if running(folder):
            holder = Lock(folder / LOCK).holder()
            console.print(f"waiting for {holder}, to run {folder}", highlight=False, soft_wrap=True)
            running(folder, wait=True)
    states = progress.states_of(jobs, since)
    page = _write(jobs, title, since)
    console.print()
    console.print(progress.table(states).terminal())
    console.print(Text(f"\n{progress.summary(states)}", style="bold"))
    other_code = sum(s.state == progress.OTHER_CODE and bool(s.error) for s in states)
    complete = all(s.state in progress.FINISHED and not s.error for s in states)
    if stopped:
        console.print(Text(stopped))
    if other_code:
        advice = f"{other_code} finished by other code of debias: accept_other_code=true takes their figures, "
        console.print(Text(f"{advice}overwrite=true runs every job again, name=OTHER keeps both"), soft_wrap=True)
    console.print(Text(f"page: {page.resolve().as_uri()}"), soft_wrap=True)
    to_do = any(s.state not in progress.FINISHED for s in states)
    again = "the same command again, for the jobs that are not done; or " if to_do else ""
    next_step(f"{again}debias report {shlex.quote(str(page.parent))}")
    return max(statuses) if complete else 1


@contextmanager
def _watching(jobs: Mapping[Path, str], title: str, since: datetime, every: float = 1.0) -> Iterator[None]:
    """Watch the run folders from a thread, whichever process fills them; say what began and what ended.

    sweep.md is rewritten when something has changed.
    """
    over = threading.Event()

    def look() -> None:
        from debias.report.many_runs import sweep_progress as progress

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        told = progress.states_of(jobs, since, probe=False)
        last = False
        while not last:
            last = over.wait(every)  # and look once more
            now = progress.states_of(jobs, since, probe=False)
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
            _write(jobs, title, since, probe=False)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write(jobs: Mapping[Path, str], title: str, since: datetime, probe: bool = True) -> Path:
    """Rewrite sweep.md, and return its path. It is a by-product, so a failure does not stop the sweep."""
    from debias.files import write_text
    from debias.locks import Lock
    from debias.report.many_runs.sweep_progress import markdown, states_of

    page = next(iter(jobs)).parent / "sweep.md"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with Lock(page.with_name(".sweep.lock")).held("write sweep.md"):
            write_text(page, markdown(title, states_of(jobs, since, probe)))
    except OSError as error:
        log.debug("%s: %s", page, error)
    return page
