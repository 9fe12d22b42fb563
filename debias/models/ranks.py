"""Rank and number of processes, when `torchrun` or `srun` started one per device."""

from __future__ import annotations

import os


def launched_rank() -> int:
    """Rank of this process. Rank 0 owns the run folder and evaluates; the others only share the training."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def launched_processes() -> int:
    """Number of processes that the launcher started for this job."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
