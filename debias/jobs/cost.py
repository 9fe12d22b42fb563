"""The cost of a job: tokens, dollars, seconds and memory, by stage."""

from __future__ import annotations

import contextlib
import gc
import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from debias.files import write_json


class Cost:
    """Tokens, dollars and seconds by stage, and peak memory. cost.json keeps them across interruptions.

    A stage that was interrupted or repeated counts every attempt. (A process that is killed outright cannot write what
    its current stage took.)
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cost.json"
        before: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            before = json.loads(self.path.read_text(encoding="utf-8"))
        self.stages: dict[str, dict[str, Any]] = before.get("stages", {})
        self.peaks = {name: before.get(name, 0.0) for name in ("peak_memory_gb", "peak_gpu_memory_gb")}
        if torch.cuda.is_initialized():  # a sweep's jobs may share one process
            for number in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(number)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage, also one that fails, into the yielded dict; the caller writes the number of tokens into it."""
        spent: dict[str, Any] = {"tokens": 0}
        start = time.perf_counter()
        try:
            yield spent
        finally:
            spent["seconds"] = round(time.perf_counter() - start, 2)
            self.add(name, spent)

    def add(self, name: str, spent: Mapping[str, Any]) -> None:
        """Add to what a stage has cost so far. Unknown dollars stay unknown."""
        before = self.stages.get(name, {})
        pairs = {key: (before.get(key, 0), spent.get(key, 0)) for key in {**before, **spent}}
        self.stages[name] = {key: None if None in pair else sum(pair) for key, pair in pairs.items()}
        self.write()

    def write(self) -> None:
        """Write the totals so far."""
        gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)  # a spread model is on all of them
        gpu = sum(torch.cuda.max_memory_allocated(number) for number in gpus) / 1e9
        found = {"peak_memory_gb": round(peak_memory_gb(), 3), "peak_gpu_memory_gb": round(gpu, 3)}
        # Only a chat model that writes data costs dollars.
        dollars = [stage.get("dollars", 0.0) for stage in self.stages.values()]
        write_json(
            self.path,
            {
                "tokens": sum(stage["tokens"] for stage in self.stages.values()),
                "dollars": None if None in dollars else sum(dollars),
                "seconds": round(sum(stage["seconds"] for stage in self.stages.values()), 2),
                **{name: max(peak, self.peaks[name]) for name, peak in found.items()},
                "stages": self.stages,
            },
        )


def release_memory() -> None:
    """Free memory between the jobs of a sweep, which Hydra's basic launcher runs in one process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def set_threads(count: int) -> None:
    """Set the number of threads for tensor arithmetic."""
    torch.set_num_threads(count)


def peak_memory_gb() -> float:
    """Peak resident memory of this process, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak / 1e6


def hardware() -> dict[str, Any]:
    """What the job ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "peak_memory_gb": round(peak_memory_gb(), 3),
    }
