"""Overhead of a sweep: wall time of N tiny runs divided by N times the time of one run, for each launcher.

    python benchmarks/sweep_overhead.py [N] [LAUNCHER...]

It also prints how often the base model was scored, and the peak memory of the first and the tenth job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra.launcher.n_jobs=1"],
    "submitit_local": ["hydra.launcher.cpus_per_task=1", "hydra.sweeper.max_batch_size=1"],
    "ray": [f"hydra.launcher.num_cpus={os.cpu_count()}"],  # one job at a time
}
RUN = [
    "data.n=24", "training.batch_size=4", "training.lr=1e-2", "training.num_neutral=2", "threads=1",
    "eval=[crows_pairs]", "eval.crows_pairs.limit=4", "eval.crows_pairs.whole=[]",
]  # fmt: skip


def tiny_model(folder: Path) -> None:
    """A GPT-2 of width 16 with the embedded model's tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from debias.models.base import BaseModel

    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=49152, n_positions=128, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    BaseModel("smollm2").tokens().tokenizer.save_pretrained(folder)


def seconds(words: list[str], cwd: Path) -> float:
    """Wall time of one command with an empty score cache."""
    start = time.perf_counter()
    cache = cwd / "cache" / str(start)
    environment = {**os.environ, "DEBIAS_CACHE": str(cache)}
    subprocess.run([sys.executable, "-m", "debias", *words], cwd=cwd, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print one line per launcher."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    launchers = sys.argv[2:] or list(LAUNCHERS)
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        tiny_model(cwd / "tiny")
        words = ["model=./tiny", *RUN]
        one = min(seconds(["run", *words, f"name=one{k}"], cwd) for k in range(3))
        print(f"one run: {one:.1f} s (best of 3)")
        for launcher in launchers:
            options = [f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]
            seeds = ",".join(str(k) for k in range(1, count + 1))
            took = seconds(["run", "-m", *words, *options, f"seed={seeds}", f"name={launcher}"], cwd)
            folders = [p.parent for p in (cwd / "outputs" / launcher).rglob("cost.json")]
            scored = sum((f / "run.log").read_text().count("scoring afresh: base") for f in folders)
            folders.sort(key=lambda f: (f / "cost.json").stat().st_mtime)
            peaks = [json.loads((f / "cost.json").read_text())["peak_memory_gb"] for f in folders]
            print(
                f"{launcher}: {took:.0f} s for {count} runs, {took / (count * one):.2f} of {count} single runs; "
                f"base scored {scored} times; peak memory of job 1: {peaks[0]:.3f} GB, "
                f"job {min(10, count)}: {peaks[min(10, count) - 1]:.3f} GB"
            )


if __name__ == "__main__":
    main()
