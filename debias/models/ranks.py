"""Rank and number of processes, when `torchrun` or `srun` started one per device."""

from __future__ import annotations

import os


def launched_rank() -> int:
    """Rank of this process. Rank 0 owns the run folder and evaluates; the others only share the training."""
    return int(os.environ.get("RANK") or (os.environ.get("SLURM_PROCID") if in_slurm_step() else None) or 0)


def launched_processes() -> int:
    """Number of processes that the launcher started for this job."""
    return int(os.environ.get("WORLD_SIZE") or (_tasks() if in_slurm_step() else 1))


def in_slurm_step() -> bool:
    """Whether `srun` started several processes. In a batch script Slurm's variables only say what was reserved."""
    return bool(os.environ.get("SLURM_STEP_ID") or os.environ.get("SLURM_STEPID")) and _tasks() > 1


def ignores_slurm() -> bool:
    """Whether Slurm's variables are set although neither `srun` nor `torchrun` started several processes."""
    return "SLURM_NTASKS" in os.environ and not in_slurm_step() and "RANK" not in os.environ


def _tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
