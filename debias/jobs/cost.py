"""What a job takes: tokens, dollars, seconds and memory, by stage."""

from __future__ import annotations

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
    """Tokens, dollars and seconds by stage, kept in cost.json across interruptions."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cost.json"
        try:
            self.stages = json.loads(self.path.read_text(encoding="utf-8"))["stages"]
        except (OSError, ValueError, KeyError):
            self.stages = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage; the yielded dict takes its tokens."""
        spent: dict[str, Any] = {"tokens": 0}
        start = time.perf_counter()
        yield spent
        spent["seconds"] = round(time.perf_counter() - start, 2)
        self.stages[name] = spent
        self.write()

    def add(self, name: str, spent: Mapping[str, Any]) -> None:
        """Add what a stage took to what it took before an interruption; unknown dollars stay unknown."""
        pairs = {key: (self.stages.get(name, {}).get(key, 0), value) for key, value in spent.items()}
        self.stages[name] = {key: None if None in pair else sum(pair) for key, pair in pairs.items()}
        self.write()

    def write(self) -> None:
        """Write the sums so far."""
        gpu = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        dollars = [s.get("dollars", 0.0) for s in self.stages.values()]  # a chat model's, where one wrote the data
        write_json(
            self.path,
            {
                "tokens": sum(s["tokens"] for s in self.stages.values()),
                "dollars": None if None in dollars else sum(dollars),
                "seconds": round(sum(s["seconds"] for s in self.stages.values()), 2),
                "peak_memory_gb": round(peak_memory_gb(), 3),
                "peak_gpu_memory_gb": round(gpu, 3),
                "stages": self.stages,
            },
        )


def release_memory() -> None:
    """Hydra's basic launcher runs all jobs of a sweep in one process: give the memory back between them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def set_threads(count: int) -> None:
    """Use this many threads for tensor arithmetic."""
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
