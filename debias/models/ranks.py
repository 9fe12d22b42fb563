"""Which of several processes this one is, where `torchrun` or `srun` started one for each device."""

from __future__ import annotations

import os


def launched_rank() -> int:
    """Number of this process; 0 writes the run folder and scores, the others help it to train."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def launched_processes() -> int:
    """How many processes a launcher started for this job."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
