"""The cost of a job: tokens, dollars, seconds and memory, by stage."""

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
    """Tokens, dollars and seconds by stage. cost.json keeps them across interruptions."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cost.json"
        try:
            self.stages = json.loads(self.path.read_text(encoding="utf-8"))["stages"]
        except (OSError, ValueError, KeyError):
            self.stages = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage; the caller writes the number of tokens into the yielded dict."""
        spent: dict[str, Any] = {"tokens": 0}
        start = time.perf_counter()
        yield spent
        spent["seconds"] = round(time.perf_counter() - start, 2)
        self.stages[name] = spent
        self.write()

    def add(self, name: str, spent: Mapping[str, Any]) -> None:
        """Add to a stage's cost from before an interruption. Unknown dollars stay unknown."""
        pairs = {key: (self.stages.get(name, {}).get(key, 0), value) for key, value in spent.items()}
        self.stages[name] = {key: None if None in pair else sum(pair) for key, pair in pairs.items()}
        self.write()

    def write(self) -> None:
        """Write the totals so far."""
        gpu = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        dollars = [
            s.get("dollars", 0.0) for s in self.stages.values()
        ]  # only a chat model that writes data costs dollars
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
