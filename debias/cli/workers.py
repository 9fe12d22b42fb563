"""The share of the machine for a job of a parallel sweep: some of the cores, and one of the GPUs."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout
from omegaconf import DictConfig

from debias.locks import Lock
from debias.wording import counted

_held: dict[str, Any] = {}  # this process's GPU and the lock on it, kept until the process ends


def threads_of(launcher: DictConfig) -> int | None:
    """Threads for each job of a launcher; None if jobs run one after another, or the launcher does not say."""
    if "n_jobs" in launcher:  # joblib
        jobs = launcher.n_jobs if launcher.n_jobs > 0 else max(1, cores() + 1 + launcher.n_jobs)
        return max(1, cores() // jobs)
    return launcher.get("cpus_per_task") or launcher.get("num_cpus")  # submitit, Ray


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def described() -> str:
    """The number of cores, and how many processes want them if those are more."""
    number = cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = f", and {load:.0f} processes that want them: everything takes longer than usual" if load > number + 1 else ""
    return f"{counted(number, 'core')}{busy}"


def claim_gpu(launcher: DictConfig, folder: Path) -> None:
    """Let a joblib worker see only one GPU, the least used one. Slurm and Ray do this themselves.

    Args:
        folder: the sweep's folder, which all its workers share.
    """
    if "n_jobs" not in launcher or "gpu" in _held:
        return
    devices = visible_gpus()
    if len(devices) > 1:
        _held["gpu"], _held["lock"] = first_free(devices, folder / ".gpus")
        os.environ["CUDA_VISIBLE_DEVICES"] = _held["gpu"]  # must happen before this process uses CUDA


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def first_free(devices: Sequence[str], folder: Path) -> tuple[str, Lock]:
    """A device and the lock on it. Every device is taken once before any is taken twice."""
    folder.mkdir(parents=True, exist_ok=True)
    for turn in itertools.count():
        for device in devices:
            lock = Lock(folder / f"{device}-{turn}.lock")
            try:
                lock.acquire()
            except Timeout:
                continue
            return device, lock
    raise AssertionError
