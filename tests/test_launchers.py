"""Launchers: shares of the machine, base scores computed once, and what is said where a package is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import serving
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from test_generate import words as words_of_generate
from test_generate import writer

from debias.cli import workers
from debias.cli.config import explain

Run = Callable[..., tuple[int, str, str]]


def test_cores_are_divided_among_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 8)

    def threads(**launcher: int) -> int | None:
        return workers.threads_of(OmegaConf.create(launcher))

    assert [threads(n_jobs=n) for n in (1, 2, 3, 8, 16, -1, -2)] == [8, 4, 2, 1, 1, 1, 1]
    assert (threads(cpus_per_task=3), threads(num_cpus=2), threads()) == (3, 2, None)


def test_workers_are_spread_over_the_gpus(tmp_path: Path) -> None:
    """Each GPU is given out once before any is given out twice; one that is given back is free again."""
    given = [workers.first_free(["0", "1"], tmp_path) for _ in range(4)]
    assert [device for device, _ in given] == ["0", "1", "0", "1"]
    given[1][1].release()
    assert workers.first_free(["0", "1"], tmp_path)[0] == "1"


def test_a_joblib_worker_keeps_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_held", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    workers.claim_gpu(OmegaConf.create({"n_jobs": 2}), tmp_path)
    workers.claim_gpu(OmegaConf.create({"n_jobs": 2}), tmp_path)  # the second job of the same worker
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


def test_a_launcher_that_is_not_installed() -> None:
    error = ValueError("In 'hydra/config': Could not find 'hydra/launcher/joblib'\nAvailable options: basic")
    assert explain(error, "run") == (
        "hydra/launcher=joblib needs a package that is not installed: python -m pip install 'debias[joblib]'"
    )


def needs(launcher: str) -> None:
    """Skip a test where a launcher is not installed."""
    if launcher == "ray":
        pytest.importorskip("ray")
    known = {name.__module__.split(".")[1] for name in Plugins.instance().discover()}
    if not {f"hydra_{launcher.split('_')[0]}_launcher", f"debias_{launcher}_launcher"} & known:
        pytest.skip(f"{launcher} is not installed")


def start_sweep(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "debias", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["basic"],
        ["joblib", "hydra.launcher.n_jobs=2"],
        ["submitit_local", "hydra.launcher.cpus_per_task=1"],
        ["ray"],
    ],
    ids=lambda words: words[0],
)
def test_jobs_lie_below_the_name_that_was_typed(tmp_path: Path, small: list[str], launcher: list[str]) -> None:
    """A name that Hydra must have in quotes: the folder has none, and the table finds both jobs in it."""
    if launcher[0] != "basic":
        needs(launcher[0])
    few = [w for w in small if w.startswith(("model=", "threads", "eval.crows"))]
    of_launcher = [f"hydra/launcher={launcher[0]}", *launcher[1:]]
    words = ["evaluate", "-m", "name='lr=1e-3 x'", "scoring.token_budget=256,512", "eval=[crows_pairs]"]
    done = start_sweep(tmp_path, *words, *few, *of_launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 jobs: 2 done" in done.stdout
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["lr=1e-3 x"]
    jobs = [p.parent.name for p in (tmp_path / "outputs/lr=1e-3 x").glob("*/metrics.jsonl")]
    assert sorted(jobs) == ["token_budget-256", "token_budget-512"]
    again = start_sweep(tmp_path, *words, *few, *of_launcher)
    assert "2 jobs: 2 done earlier" in again.stdout


@pytest.mark.slow
def test_workers_wait_for_the_set_that_one_of_them_makes(tmp_path: Path, small: list[str]) -> None:
    """Both jobs need the same generated set: one makes it, the other waits and reads it, and nothing is paid twice."""
    needs("joblib")
    dropped = ("data.n", "eval.stereo", "eval.perp", "eval=", "training.epochs")
    few = [w for w in small if not w.startswith(dropped)]
    with serving(reply=writer) as server:
        of_set = [w for w in words_of_generate(server)[1:] if not w.startswith("name=")]
        words = ["data=generated", "generate.n=12", "seed=1,2", "eval=[crows_pairs]", "training.epochs=1"]
        parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        done = start_sweep(tmp_path, "run", "-m", *of_set, *few, *words, *parallel)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 jobs: 2 done" in done.stdout
        assert len(list(tmp_path.rglob("ledger.jsonl"))) == 1
        asked = [body["messages"] for body in server.counts.bodies]
        assert all(asked.count(messages) == 1 for messages in asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("joblib", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", ["hydra.launcher.cpus_per_task=1", "hydra.sweeper.max_batch_size=2"]),
    ],
)
def test_parallel_jobs_score_the_base_once(tmp_path: Path, small: list[str], launcher: str, options: list[str]) -> None:
    """Four jobs, two at a time, in a cache without scores; a failing fifth does not stop them."""
    needs(launcher)
    few = [w for w in small if not w.startswith(("eval.stereo", "eval.perp", "threads"))]
    cache = tmp_path / "cache"
    words = [
        *few,
        f"hydra/launcher={launcher}",
        *options,
        "eval=[crows_pairs]",
        "seed=1,2",
        "data.bias=age,gender,race",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "debias", "run", "-m", *words],
        cwd=tmp_path, env={**os.environ, "DEBIAS_CACHE": str(cache)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert "6 jobs: 4 done, 2 failed" in done.stdout
    statuses = [json.loads(p.read_text()) for p in (tmp_path / "outputs").rglob("status.json")]
    threads = [s["hardware"]["threads"] for s in statuses if s["state"] == "done"]
    assert threads == [max(1, workers.cores() // 2) if launcher == "joblib" else 1] * 4
    logs = [p.read_text() for p in (tmp_path / "outputs").rglob("run.log")]
    assert sum(log.count("scoring afresh: base") for log in logs) == 1
