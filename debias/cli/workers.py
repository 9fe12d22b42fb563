"""What a job of a parallel sweep may use of its machine: its share of the cores, and one of the GPUs."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_held: dict[str, Any] = {}  # this process's GPU and the lock on it, which lasts as long as the process


def threads_of(launcher: Any) -> int | None:
    """Threads that a launcher leaves each job; None where jobs run one after another, or it does not say."""
    if "n_jobs" in launcher:  # joblib
        jobs = launcher.n_jobs if launcher.n_jobs > 0 else max(1, cores() + 1 + launcher.n_jobs)
        return max(1, cores() // jobs)
    return launcher.get("cpus_per_task") or launcher.get("num_cpus")  # submitit, Ray


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def claim_gpu(launcher: Any, folder: Path) -> None:
    """Show a joblib worker one GPU, the one that the fewest workers use; Slurm and Ray do so themselves.

    Args:
        folder: the sweep's, which all its workers share.
    """
    if "n_jobs" not in launcher or "gpu" in _held:
        return
    devices = visible_gpus()
    if len(devices) > 1:
        _held["gpu"], _held["lock"] = first_free(devices, folder / ".gpus")
        os.environ["CUDA_VISIBLE_DEVICES"] = _held["gpu"]  # before CUDA is first used in this process


def visible_gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def first_free(devices: Sequence[str], folder: Path) -> tuple[str, FileLock]:
    """A device and the lock on it: each is given out once before any is given out twice."""
    folder.mkdir(parents=True, exist_ok=True)
    for turn in itertools.count():
        for device in devices:
            lock = FileLock(folder / f"{device}-{turn}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return device, lock
    raise AssertionError
