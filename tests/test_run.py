"""Whole runs: on a tiny model with faults, on the real model as users run it, and from an installed wheel."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import venv
from pathlib import Path

import huggingface_hub
import pandas as pd
import peft
import pytest

from debias.results import LIKELIHOODS, read_figures

ROOT = Path(__file__).resolve().parents[1]


def debias(cwd: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "debias", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=check, timeout=900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> tuple[Path, str]:
    """A finished run of the tiny model, and what it printed."""
    cwd = tmp_path_factory.mktemp("run")
    return cwd, debias(cwd, "run", *small, "name=tiny").stdout


def folder_of(cwd: Path) -> Path:
    (status,) = cwd.rglob("status.json")
    return status.parent


def test_run_folder_is_as_agreed(finished: tuple[Path, str]) -> None:
    folder = folder_of(finished[0])
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "config.yaml", "status.json", "run.log", "train.csv", "adapter", "likelihoods.parquet", "metrics.jsonl",
        "cost.json", "report.html", "report.md",
    }  # fmt: skip
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "done"
    assert status["hardware"]["threads"] == 1
    cost = json.loads((folder / "cost.json").read_text())
    assert set(cost["stages"]) == {"load", "train", "evaluate"}
    assert cost["tokens"] > 0
    scores = pd.read_parquet(folder / "likelihoods.parquet")
    assert list(scores.columns) == LIKELIHOODS
    assert (scores["score"] * scores["num_tokens"]).to_numpy() == pytest.approx(scores["logprob"].to_numpy())
    assert set(scores["model"]) == {"base", "debiased"}
    card = (folder / "adapter/README.md").read_text()
    assert "## Intended use and limits" in card
    results = huggingface_hub.ModelCard(card).data.eval_results
    assert len(results) == sum(f.model == "debiased" and f.value == f.value for f in read_figures(folder))
    assert peft.PeftConfig.from_pretrained(str(folder / "adapter")).task_type == "CAUSAL_LM"


def test_every_figure_has_n_interval_and_ideal(finished: tuple[Path, str]) -> None:
    figures = read_figures(folder_of(finished[0]))
    assert {f.benchmark for f in figures} == {"stereoset", "crows_pairs", "perplexity"}
    for f in figures:
        assert f.n > 0
        assert f.ci_low <= f.value <= f.ci_high
        assert (f.p_value is not None) == (f.model == "delta")
        assert (f.ideal is None) == (f.model == "delta")
    values = {(f.benchmark, f.bias, f.metric, f.model): f.value for f in figures}
    for benchmark, bias, metric, model in values:
        if model == "delta":
            difference = values[benchmark, bias, metric, "debiased"] - values[benchmark, bias, metric, "base"]
            assert values[benchmark, bias, metric, "delta"] == pytest.approx(difference)


def test_table_and_outcome_are_on_the_screen(finished: tuple[Path, str]) -> None:
    shown = finished[1]
    assert all(word in shown for word in ("StereoSet", "CrowS-Pairs", "Perplexity", "ICAT", "change", "95% interval"))
    assert "report: outputs/tiny/" in shown


def test_the_same_command_does_nothing(finished: tuple[Path, str], small: list[str]) -> None:
    cwd, before = finished
    old = {p: p.stat().st_mtime_ns for p in folder_of(cwd).rglob("*") if p.is_file() and p.name != ".lock"}
    again = debias(cwd, "run", *small, "name=tiny").stdout
    assert "done before, nothing to do" in again
    assert before[before.index("95% interval") :] == again[again.index("95% interval") :]
    assert old == {p: p.stat().st_mtime_ns for p in old}


def test_another_config_is_refused(finished: tuple[Path, str], small: list[str]) -> None:
    folder = folder_of(finished[0])
    before = (folder / "status.json").read_bytes()
    answer = debias(finished[0], "run", *small, "seed=5", f"hydra.run.dir={folder}", check=False)
    assert answer.returncode == 1
    assert "holds a run with another config; keep both with name=OTHER" in " ".join(answer.stderr.split())
    assert (folder / "status.json").read_bytes() == before


def test_evaluating_the_saved_adapter_gives_the_same_figures(
    finished: tuple[Path, str], small: list[str], tmp_path: Path
) -> None:
    folder = folder_of(finished[0])
    words = [w for w in small if w.startswith(("model", "eval", "threads"))]
    debias(tmp_path, "evaluate", *words, f"adapter.path={folder / 'adapter'}", "name=again")
    assert (folder_of(tmp_path) / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    shown = debias(tmp_path, "report", "outputs", str(finished[0] / "outputs")).stdout
    assert "tiny/" in shown
    assert "again/" in shown


def kill_at_random(cwd: Path, words: list[str], kills: int, longest: float, environment: dict[str, str]) -> int:
    """Start the command, kill -9 it after a random time, again and again; returns how many were really killed."""
    moments = random.Random(7)
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "debias", *words], cwd=cwd, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(timeout=moments.uniform(0.3, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    return killed


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_it_ends_with_the_same_figures(
    finished: tuple[Path, str], small: list[str], tmp_path: Path, cache: Path, kills: int
) -> None:
    """kill -9 at random moments, then the same command: metrics.jsonl is the same, byte for byte.

    The score cache of these runs is their own, so that nothing comes from the undisturbed run.
    """
    environment = {**os.environ, "DEBIAS_CACHE": str(tmp_path / "cache")}
    words = ["run", *small, "name=tiny"]
    assert kill_at_random(tmp_path, words, kills, 12, environment) > 0
    command = [sys.executable, "-m", "debias", *words]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    undisturbed, disturbed = folder_of(finished[0]), folder_of(tmp_path)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (disturbed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not [p for p in disturbed.rglob("*") if p.suffix == ".tmp"]


def test_real_model_learns_in_a_short_run(tmp_path: Path, smollm2: Path) -> None:
    """SmolLM2 on 96 sentences, scored on StereoSet dev: the loss falls, and less of what it says is a stereotype."""
    words = ["data.n=96", "training.epochs=2", "training.retention=0.5", "training.num_neutral=4", "neutral=wikipedia",
             "eval=[stereoset]", "eval.stereoset.split=dev", "eval.stereoset.limit=1", "threads=1",
             "name=real"]  # fmt: skip
    debias(tmp_path, "run", *words)
    folder = folder_of(tmp_path)
    figures = {(f.bias, f.metric, f.model): f for f in read_figures(folder)}
    assert figures["gender", "SS", "base"].value == pytest.approx(61.3, abs=0.5)
    assert figures["gender", "SS", "base"].n == 255
    assert figures["gender", "SS", "debiased"].value < figures["gender", "SS", "base"].value
    losses = pd.read_csv(folder / "train.csv")["loss"]
    assert losses[-4:].mean() < losses[:4].mean() - 0.3


@pytest.mark.slow
def test_defaults_debias_the_real_model(tmp_path: Path, smollm2: Path) -> None:
    """The main job with its defaults, on StereoSet test."""
    debias(tmp_path, "run", "eval=[stereoset]", "eval.stereoset.limit=1")
    figures = {(f.bias, f.metric, f.model): f for f in read_figures(folder_of(tmp_path))}
    assert figures["gender", "SS", "debiased"].value <= 56
    assert figures["gender", "SS", "delta"].ci_high < 0
    assert figures["gender", "LMS", "delta"].value >= -1.0


def test_an_installed_wheel_carries_config_and_corpora(tmp_path: Path, small: list[str]) -> None:
    """Built from the tree, installed in an environment of its own, run from an empty folder.

    The dependencies come from this environment through a path file; the package itself does not.
    """
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--quiet", wheel], check=True)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    dependencies = Path(pd.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import debias; print(debias.__file__)"
    answer = subprocess.run(
        [python, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    assert str(site) in answer.stdout
    command = [tmp_path / "env/bin/debias", "run", *small]
    subprocess.run(command, cwd=empty, env=environment, check=True, capture_output=True)
    assert json.loads((folder_of(empty) / "status.json").read_text())["state"] == "done"
