"""What Hydra starts for every job, here or in a worker process; a sweep's failed job does not stop the others."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from debias.cli.config import job_name
from debias.cli.jobs import JOBS

log = logging.getLogger(__name__)

# Workers import this module to find `task`, so the resolver is known there too.
OmegaConf.register_new_resolver("job", job_name, replace=True)

ended: list[int | Exception] = []  # exit status or error of each job that this process started


def task(cfg: Any) -> None:
    """Run one job of the verb that the primary config belongs to; leave no empty folder."""
    hydra = HydraConfig.get()
    output = Path(hydra.runtime.output_dir)
    try:
        ended.append(JOBS.get(str(hydra.job.config_name), JOBS["run"])(cfg) or 0)
    except Exception as error:
        ended.append(error)
        if hydra.mode is RunMode.MULTIRUN:
            _record(output, error)
    finally:
        with suppress(OSError):
            if output.resolve() != Path.cwd():
                output.rmdir()


def _record(output: Path, error: Exception) -> None:
    """Leave the error of a sweep's job in its folder and on the terminal."""
    from debias.results import InUseError, record_failure

    if isinstance(error, InUseError):  # another launch of this sweep does this job
        return
    record_failure(output, error)
    print(f"failed: {output.name}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
