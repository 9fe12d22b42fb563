"""Runs each job of a sweep as a Ray task. If its node dies, the job runs again elsewhere and resumes from its folder.

Hydra's own plugin does not work here: it always sets an object store size, which Ray refuses for a running cluster.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)

# Workers of a running cluster do not inherit these. Never add a key: Ray stores what it is given.
PASSED = ("DEBIAS_CACHE", "DEBIAS_DATA", "HF_HUB_OFFLINE", "HF_HOME", "OMP_NUM_THREADS", "WANDB_MODE")


class RayLauncher(Launcher):
    """Runs jobs on a Ray cluster whose nodes share the working folder.

    Args:
        address: address of a cluster, `auto` for the one this machine belongs to, None to start one here.
        num_cpus: cores for each job.
        num_gpus: GPUs for each job; jobs with a fraction share one.
        attempts: how often to start a job whose node or worker dies.
    """

    def __init__(self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0, attempts: int = 5) -> None:
        self.address, self.num_cpus, self.num_gpus, self.attempts = address, num_cpus, num_gpus, attempts

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what the jobs need."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs to their end. The state of a job that died too often is read from its folder."""
        from debias.cli.config import install
        from debias.records import UserError

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError(f"hydra/launcher=ray needs a package that is not installed: {install('ray')}") from error

        setup_globals()
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            if "AF_UNIX" in str(error) or "path length" in str(error):
                raise UserError(
                    f"Ray's sockets lie below TMPDIR={tempfile.gettempdir()}, and that path is too long for them; "
                    "set TMPDIR=/tmp or another short path"
                ) from error
            raise UserError(f"hydra.launcher.address={self.address}: {' '.join(str(error).split())[:300]}") from error
        try:
            remote = ray.remote(_job).options(
                num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=self.attempts - 1
            )
            passed = {name: os.environ[name] for name in PASSED if name in os.environ}
            shared = ray.put((self.hydra_context, self.config, self.task_function, Singleton.get_state()))
            jobs = [
                remote.remote(str(Path.cwd()), passed, shared, list(overrides), initial_job_idx + i)
                for i, overrides in enumerate(job_overrides)
            ]
            return [_ended(ray, job) for job in jobs]
        finally:
            ray.shutdown()


def _ended(ray: Any, job: Any) -> JobReturn:
    try:
        return ray.get(job)
    except ray.exceptions.RayError as error:
        log.warning("a job was lost: %s", error)
        lost = JobReturn(status=JobStatus.COMPLETED)
        lost.return_value = None
        return lost


def _job(cwd: str, environment: Mapping[str, str], shared: Any, overrides: Sequence[str], number: int) -> JobReturn:
    """Run one job in a worker, as Hydra's basic launcher does in its own process."""
    os.chdir(cwd)
    os.environ.update(environment)
    context, config, task, singletons = shared
    setup_globals()
    Singleton.set_state(singletons)
    sweep_config = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(sweep_config):
        sweep_config.hydra.job.id = str(number)
        sweep_config.hydra.job.num = number
    done = run_job(
        hydra_context=context,
        task_function=task,
        config=sweep_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return JobReturn(overrides=overrides, status=done.status, _return_value=done.return_value)
