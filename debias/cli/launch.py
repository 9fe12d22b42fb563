"""What Hydra calls for each job, here or in a worker process. A failed job of a sweep does not stop the others."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from debias.cli.config import groups, job_name, run_dir
from debias.cli.jobs import JOBS
from debias.cli.terminal import shown
from debias.files import disk_error, files_named
from debias.records import UserError

log = logging.getLogger(__name__)

# Worker processes import this module to find `task`, so they register the resolvers too.
OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
OmegaConf.register_new_resolver("job", job_name, replace=True)

ended: list[int | Exception] = []  # exit status or error of each job that ran in this process


def task(cfg: DictConfig) -> None:
    """Run one job of the verb that the primary config is named after; remove the folder if it stays empty."""
    hydra = HydraConfig.get()
    output = Path(hydra.runtime.output_dir)
    verb = str(hydra.job.config_name)
    if sys.stderr.isatty() and hydra.mode is RunMode.RUN and verb in ("run", "evaluate"):
        print(f"folder: {shown(output)}", file=sys.stderr, flush=True)  # before anything slow is imported
    try:
        _check_repeated(hydra.overrides.task)
        with files_named():
            ended.append(JOBS.get(verb, JOBS["run"])(cfg) or 0)
    except Exception as error:
        ended.append(error)
        if hydra.mode is RunMode.MULTIRUN:
            _record(output, error)
    finally:
        for folder in (output, *output.parents[:2]):  # outputs/NAME/JOB, as far as a refused job left them empty
            if folder.resolve() != Path.cwd() and folder.resolve().is_relative_to(Path.cwd()):
                with suppress(OSError):
                    folder.rmdir()


def _check_repeated(words: Sequence[str]) -> None:
    """Raise UserError for data=[a,a]: the second merges into the first, so that it would have no effect."""
    for word in words:
        group, _, value = word.lstrip("+").partition("=")
        names = [name.strip() for name in value.strip("[]").split(",")] if value.startswith("[") else []
        if group in groups() and (repeated := [name for name, count in Counter(names).items() if count > 1]):
            raise UserError(f"{group}=[...] names {repeated[0]} more than once; name it once")


def _record(output: Path, error: Exception) -> None:
    """Write the error of a sweep's job to its folder and to the terminal."""
    from debias.run_folder import InUseError, OtherCodeError, record_failure

    if isinstance(error, InUseError):  # another launch of this sweep runs this job
        return
    record_failure(output, error)
    if isinstance(error, OtherCodeError):  # the sweep's table says so, and what to do about it
        return
    print(f"failed: {output.name}: {told(error)}", file=sys.stderr)


def told(error: BaseException) -> str:
    """An error in one line. Those that the user can fix need no name of a class."""
    if isinstance(error, OSError):
        return disk_error(error)
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"
