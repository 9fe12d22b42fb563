"""A sweep of 24 runs, killed three times, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
GRID = ["seed=1,2,3,4,5,6,7,8", "data=targeted,general,cda", "data.bias=gender", "name=grid"]


def begin(cwd: Path, *words: str) -> subprocess.Popen[str]:
    """Launch the sweep in a process group of its own, with a cache of its own for scores."""
    environment = {**os.environ, "DEBIAS_CACHE": str(cwd / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "debias", "run", "-m", *words], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def statuses(cwd: Path) -> dict[str, Any]:
    return {p.parent.name: json.loads(p.read_text()) for p in (cwd / "outputs").rglob("status.json")}


def ended(cwd: Path) -> dict[str, str]:
    """When each finished run ended, in fractions of a second."""
    done = [p for p in (cwd / "outputs").rglob("status.json") if json.loads(p.read_text())["state"] == "done"]
    return {p.parent.name: str(p.stat().st_mtime_ns) for p in done}


def wait_for(process: subprocess.Popen[str], cwd: Path, done: int) -> dict[str, str]:
    """Until so many runs are done and another one trains; returns when each of them ended."""
    deadline = time.monotonic() + 900
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        training = [n for n, s in statuses(cwd).items() if s["state"] == "running"]
        if len(found := ended(cwd)) >= done and any(
            (cwd / "outputs/grid" / n / "train.csv").is_file() for n in training
        ):
            return found
        time.sleep(0.05)


def test_killed_three_times(tmp_path: Path, small: list[str]) -> None:
    pytest.importorskip("joblib")
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    few = [w for w in small if not w.startswith(("eval.stereo", "eval.perp"))]
    words = [*few, "eval=[crows_pairs]", *GRID]
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    for cwd in (calm, stormy):
        cwd.mkdir()
    process = begin(calm, *words)
    shown, _ = process.communicate(timeout=1800)
    assert process.returncode == 0
    assert "24 jobs: 24 done" in shown

    process = begin(stormy, *words)  # 1: the process
    seen = wait_for(process, stormy, 4)
    process.kill()
    process.wait()

    process = begin(stormy, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")  # 2: the machine
    seen |= wait_for(process, stormy, 10)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    seen |= ended(stormy)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        process = begin(stormy, *words, "hydra/launcher=ray", f"hydra.launcher.address={cluster.address}")
        seen |= wait_for(process, stormy, 15)
        cluster.remove_node(node, allow_graceful=False)  # 3: one node of two
        shown, _ = process.communicate(timeout=1800)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, shown[-3000:]
    assert {s["state"] for s in statuses(stormy).values()} == {"done"}
    assert len(statuses(stormy)) == 24
    now = ended(stormy)
    assert {name: now[name] for name in seen} == seen  # what was done was not done again
    for path in (calm / "outputs/grid").rglob("metrics.jsonl"):
        other = stormy / path.relative_to(calm)
        assert other.read_bytes() == path.read_bytes()
    scored = [log.read_text().count("scoring afresh: base") for log in (stormy / "outputs").rglob("run.log")]
    assert sum(scored) == 1
    page = (stormy / "outputs/grid/sweep.md").read_text()
    assert page.count("| done |") + page.count("| done earlier |") == 24
