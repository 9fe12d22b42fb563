"""Whole runs: on a tiny model with faults, on the real model as users run it, and from an installed wheel."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path
from signal import SIGKILL

import huggingface_hub
import pandas as pd
import peft
import pytest
from command import gets, run, start, succeed

from debias.jobs import making
from debias.results import LIKELIHOODS, read_figures, read_status

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> tuple[Path, str]:
    """A finished run of the tiny model, and what it printed."""
    cwd = tmp_path_factory.mktemp("run")
    return cwd, succeed(cwd, "run", *small, "name=tiny").out


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
    assert set(status["trained_on_scored"].values()) == {0}
    cost = json.loads((folder / "cost.json").read_text())
    assert set(cost["stages"]) == {"load", "train", "evaluate"}
    assert cost["tokens"] > 0
    scores = pd.read_parquet(folder / "likelihoods.parquet")
    assert list(scores.columns) == LIKELIHOODS
    assert (scores["score"] * scores["num_tokens"]).to_numpy() == pytest.approx(scores["logprob"].to_numpy())
    assert set(scores["model"]) == {"base", "debiased"}
    card = (folder / "adapter/README.md").read_text()
    assert "## Intended use and limits" in card
    assert "## What it writes" in card
    assert "| objective | NegativePreference |" in card  # not `auto`
    assert "What it writes" in (folder / "report.html").read_text()
    results = huggingface_hub.ModelCard(card).data.eval_results
    assert len(results) == sum(f.model == "debiased" and f.value == f.value for f in read_figures(folder))
    assert peft.PeftConfig.from_pretrained(str(folder / "adapter")).task_type == "CAUSAL_LM"


def test_every_figure_has_n_interval_and_ideal(finished: tuple[Path, str]) -> None:
    figures = read_figures(folder_of(finished[0]))
    assert {f.benchmark for f in figures} == {"stereoset", "crows_pairs", "perplexity"}
    for f in figures:
        assert f.n > 0
        known = f.ci_low == f.ci_low  # NaN where nothing changed, which eight examples of a tiny model make likely
        assert f.ci_low <= f.value <= f.ci_high if known else f.model == "delta"
        assert (f.p_value is not None) == (f.model == "delta" and known)
        assert (f.ideal is None) == (f.model == "delta")
    values = {(f.benchmark, f.bias, f.metric, f.model): f.value for f in figures}
    for benchmark, bias, metric, model in values:
        if model == "delta":
            difference = values[benchmark, bias, metric, "debiased"] - values[benchmark, bias, metric, "base"]
            assert values[benchmark, bias, metric, "delta"] == pytest.approx(difference)


def test_table_and_outcome_are_on_the_screen(finished: tuple[Path, str]) -> None:
    shown = finished[1]
    assert all(word in shown for word in ("StereoSet", "CrowS-Pairs", "Perplexity", "ICAT", "change", "95% interval"))
    assert "/outputs/tiny/" in shown.splitlines()[-3]
    assert shown.splitlines()[-3].startswith("page: file:///")
    assert shown.splitlines()[-1].startswith("next: debias evaluate adapter.path=outputs/tiny/")


def test_the_same_command_does_nothing(finished: tuple[Path, str], small: list[str]) -> None:
    cwd, before = finished
    old = {p: p.stat().st_mtime_ns for p in folder_of(cwd).rglob("*") if p.is_file() and p.name != ".lock"}
    again = succeed(cwd, "run", *small, "name=tiny").out
    assert "done before, nothing to do" in again
    assert before[before.index("95% interval") :] == again[again.index("95% interval") :]
    assert old == {p: p.stat().st_mtime_ns for p in old}


def test_another_config_is_refused(finished: tuple[Path, str], small: list[str]) -> None:
    folder = folder_of(finished[0])
    before = (folder / "status.json").read_bytes()
    answer = run(finished[0], "run", *small, "seed=5", f"hydra.run.dir={folder}")
    assert answer.status == 1
    assert "holds a run with another config; keep both with name=OTHER" in " ".join(answer.err.split())
    assert (folder / "status.json").read_bytes() == before


def test_evaluating_the_saved_adapter_gives_the_same_figures(
    finished: tuple[Path, str], small: list[str], tmp_path: Path
) -> None:
    folder = folder_of(finished[0])
    words = [w for w in small if w.startswith(("model", "eval", "threads"))]
    succeed(tmp_path, "evaluate", *words, f"adapter.path={folder / 'adapter'}", "name=again")
    assert (folder_of(tmp_path) / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    (told,) = read_status(folder_of(tmp_path))["adapters"]
    of_run, cost = read_status(folder), json.loads((folder / "cost.json").read_text())
    assert told == json.loads((folder / "adapter/debias.json").read_text())["made"]
    assert told["seconds"] == cost["stages"]["train"]["seconds"]
    assert told["trained_on_scored"] == of_run["trained_on_scored"]
    assert told["config"].keys() == {"seed", *making.SECTIONS}
    shown = succeed(tmp_path, "report", "outputs", str(finished[0] / "outputs")).out
    assert "outputs/tiny" in shown
    assert "outputs/again" in shown


# Moments of a run at which it is killed, in their order: what gets killed where, and what is on the disk by then.
KILLED = {
    "begun": partial(gets, SIGKILL, "debias.run_folder:RunFolder.start", after=True),
    "in the first epoch": partial(gets, SIGKILL, "debias.training.callbacks:LossCurve.on_train_batch_end", call=3),
    "half a checkpoint": partial(gets, SIGKILL, "pathlib:Path.replace", about="checkpoint.ckpt"),
    "in the second epoch": partial(gets, SIGKILL, "debias.training.callbacks:LossCurve.on_train_batch_end", call=8),
    "half an adapter": partial(gets, SIGKILL, "pathlib:Path.rename", about="adapter.unchecked"),
    "trained, not checked": partial(gets, SIGKILL, "debias.training.gate:Gate.check"),
    "trained": partial(gets, SIGKILL, "debias.jobs.run:evaluate"),
    "half of the base's scores": partial(gets, SIGKILL, "pathlib:Path.replace", about=".npy"),
    "scored by one model": partial(gets, SIGKILL, "debias.scoring.scorer:Scorer.score", call=4),
    "half a file of figures": partial(gets, SIGKILL, "pathlib:Path.replace", about="metrics.jsonl"),
    "half a report": partial(gets, SIGKILL, "pathlib:Path.replace", about="report.html"),
    "all but done": partial(gets, SIGKILL, "debias.run_folder:RunFolder.finish"),
}


FEWER = (
    "half a checkpoint",
    "in the second epoch",
    "trained, not checked",
    "half of the base's scores",
    "all but done",
)


@pytest.mark.parametrize("stages", [FEWER, pytest.param(tuple(KILLED), marks=pytest.mark.slow)], ids=["five", "every"])
def test_killed_at_one_stage_after_the_other_it_ends_with_the_same_figures(
    finished: tuple[Path, str], small: list[str], tmp_path: Path, stages: tuple[str, ...]
) -> None:
    """kill -9, the same command and kill -9 at a later stage, and so on: metrics.jsonl is the same, byte for byte.

    The score cache of these runs is their own, so that nothing comes from the undisturbed run.
    """
    environment = {"DEBIAS_CACHE": str(tmp_path / "cache")}
    words = ["run", *small, "name=tiny"]
    for stage in stages:
        process = start(tmp_path, *words, first=KILLED[stage], environment=environment)
        process.join()
        assert process.exitcode == -SIGKILL, stage
    process = start(tmp_path, *words, environment=environment)
    process.join()
    assert process.exitcode == 0
    same_but_for_the_kills(tmp_path, finished[0])


def same_but_for_the_kills(disturbed: Path, undisturbed: Path) -> None:
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (folder_of(disturbed) / name).read_bytes() == (folder_of(undisturbed) / name).read_bytes()
    assert not [p for p in folder_of(disturbed).rglob("*") if p.suffix == ".tmp"]


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_figures(
    finished: tuple[Path, str], small: list[str], tmp_path: Path
) -> None:
    """As above, at twenty random moments, wherever those are."""
    moments, killed = random.Random(7), 0
    environment = {**os.environ, "DEBIAS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "debias", "run", *small, "name=tiny"]
    for _ in range(20):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, **quiet)
        try:
            process.wait(timeout=moments.uniform(0.3, 12))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed > 0
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    same_but_for_the_kills(tmp_path, finished[0])


def test_real_model_learns_in_a_short_run(tmp_path: Path, smollm2: Path) -> None:
    """SmolLM2 on 48 sentences, scored on StereoSet dev: the loss falls, and less of what it says is a stereotype."""
    words = ["data.n=48", "training.epochs=2", "training.batch_size=8", "training.retention=0.5",
             "training.num_neutral=2", "neutral=wikipedia", "balance=none", "eval=[stereoset]",
             "eval.stereoset.split=dev", "eval.stereoset.limit=1", "show.samples=0", "threads=1",
             "name=real"]  # fmt: skip
    succeed(tmp_path, "run", *words)
    folder = folder_of(tmp_path)
    figures = {(f.bias, f.metric, f.model): f for f in read_figures(folder)}
    assert figures["gender", "SS", "base"].value == pytest.approx(61.3, abs=0.5)
    assert figures["gender", "SS", "base"].n == 255
    assert figures["gender", "SS", "debiased"].value < figures["gender", "SS", "base"].value
    losses = pd.read_csv(folder / "train.csv")["loss"]
    assert losses[6:].median() < losses[:6].median() - 0.3  # of the second epoch and of the first


@pytest.mark.slow
def test_defaults_debias_the_real_model(tmp_path: Path, smollm2: Path) -> None:
    """The main job with its defaults, on StereoSet test."""
    succeed(tmp_path, "run", "eval=[stereoset]", "eval.stereoset.limit=1")
    figures = {(f.bias, f.metric, f.model): f for f in read_figures(folder_of(tmp_path))}
    assert figures["gender", "SS", "debiased"].value <= 56
    assert figures["gender", "SS", "delta"].ci_high < 0
    assert figures["gender", "LMS", "delta"].value >= -1.0


def test_an_installed_wheel_carries_config_and_corpora(tmp_path: Path, small: list[str]) -> None:
    """Built from the tree, installed in an environment of its own, run from an empty folder.

    The dependencies come from this environment through a path file; the package itself does not.
    """
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(tmp_path / "env")
    python = tmp_path / "env/bin/python"
    (wheel,) = tmp_path.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-compile", "--quiet"]
    subprocess.run([*pip, wheel], check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    dependencies = Path(pd.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import importlib.util; print(importlib.util.find_spec('debias').origin)"
    found = subprocess.run([python, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(site))
    few = [word for word in small if not word.startswith(("eval.stereo", "eval.perp", "training.epochs"))]
    command = [tmp_path / "env/bin/debias", "run", *few, "eval=[crows_pairs]", "training.epochs=1"]
    subprocess.run(command, cwd=empty, env=environment, check=True, capture_output=True)
    assert json.loads((folder_of(empty) / "status.json").read_text())["state"] == "done"
