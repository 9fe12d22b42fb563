"""The questions in sweeps/: each composes and says what it asks and costs; mistakes are told in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from debias.cli import launch, sweepfiles  # noqa: F401 (launch: the resolver)
from debias.cli.sweep import plan

Run = Callable[..., tuple[int, str, str]]
FILES = sorted(sweepfiles.sweeps_dir().glob("*.yaml"))
GOOD = """\
# Does one seed differ from the next?
# Cost: 2 min a run
defaults: [run, _self_]
name: mine
hydra: {mode: MULTIRUN, sweeper: {params: {seed: "1,2"}}}
"""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_question_says_what_it_asks_costs_and_expects(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert sweepfiles.question(path)
    assert sweepfiles.COST.search(text)
    assert "\n# Expected: " in text
    assert f"\nname: {path.stem}\n" in text  # results in outputs/NAME/


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_question_composes_with_each_of_its_choices(path: Path) -> None:
    """The first choices of all keys together, then the second ones, and so on."""
    assert sweepfiles.grid_of(path)
    words = sweepfiles.words_for([])
    assert len(plan(path.stem, path.parent, words).jobs) >= 2
    params = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
    choices = {key: str(values).split(",") for key, values in params.items() if "(" not in str(values)}
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent), version_base="1.3"):
        for k in range(max(map(len, choices.values()), default=0)):
            chosen = [f"{key}={values[k % len(values)]}" for key, values in choices.items()]
            assert compose(path.stem, [words[1], *chosen]).name == path.stem


def test_grids_are_those_of_the_issue() -> None:
    def jobs(name: str) -> int:
        path = sweepfiles.find(name)
        return len(plan(path.stem, path.parent, sweepfiles.words_for([])).jobs)

    assert jobs("data_sources") == 8 * 2 * 3  # sources x biases x seeds
    assert jobs("data_size") == 2 * 6 * 3
    assert jobs("seeds") == 10


def test_the_listing_and_the_dry_run_start_nothing(debias: Run, tmp_path: Path) -> None:
    shown = debias("sweep")[1]
    assert all(path.stem in shown for path in FILES)
    (tmp_path / "mine.yaml").write_text(GOOD)
    status, shown, _ = debias("sweep", "mine.yaml", "--dry-run")
    assert status == 0
    assert shown.splitlines() == [
        "seed=1",
        "seed=2",
        "",
        "2 runs, 2 to do, about 4 min one after another (2 min a run, from the file)",
        "",
        "next: the same command without --dry-run",
    ]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("asked", "paths"), [("smollm2", ["smollm2"]), ("smollm2,bert_tiny", ["bert-tiny", "smollm2"])]
)
def test_a_model_that_is_asked_for_replaces_those_of_the_file(debias: Run, asked: str, paths: list[str]) -> None:
    """Also one with a config of its own: the paths of the file's grid must not replace its own."""
    status, shown, _ = debias("sweep", "paper", f"model={asked}", "--dry-run")
    assert status == 0
    jobs = [line for line in shown.splitlines() if line.startswith("data.bias=")]
    assert len(jobs) == 4 * 3 * len(paths)  # biases x files x models
    assert sorted({re.findall(r"model\S*=(\S+)", job)[0] for job in jobs}) == paths


@pytest.mark.parametrize(
    "words", [["sweep", "models", "model.path=gpt2"], ["run", "-m", "model=smollm2,bert_tiny", "model.path=a,b"]]
)
def test_a_path_for_several_models_is_refused(debias: Run, words: list[str]) -> None:
    """Each run would have the name of one model and the weights of another."""
    status, shown, told = debias(*words, "--dry-run")
    assert (status, shown) == (1, "")
    assert told.startswith("error: model.path=... replaces the path of each model of model=A,B; name all models")


def test_the_estimate_is_taken_from_finished_runs(debias: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    done = tmp_path / "outputs/mine/seed-1"
    done.mkdir(parents=True)
    (done / "status.json").write_text('{"state": "done"}')
    (done / "cost.json").write_text('{"seconds": 30.0}')
    (done / "metrics.jsonl").touch()
    shown = debias("sweep", "mine.yaml", "--dry-run")[1]
    assert "seed=1  (done)" in shown
    assert "2 runs, 1 to do, about 30 s one after another (30 s a run, mean of 1 finished)" in shown


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: mine", "training: {lrr: 1}", "mine.yaml: unknown key 'training.lrr' (did you mean 'training.lr'?)"),
        ('seed: "1,2"', "data.bais: gender", "mine.yaml: unknown key 'data.bais' (did you mean 'data.bias'?)"),
        ("params", "parms", "mine.yaml: no grid; write it under hydra.sweeper.params, as in seed: 1,2,3"),
        ("[run, _self_]", "[run, {override data: targetd}, _self_]", "there is no data=targetd"),
        ("mode:", "mdoe:", "mdoe"),
    ],
)
def test_mistakes_in_a_file(debias: Run, tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    (tmp_path / "mine.yaml").write_text(GOOD.replace(old, new))
    status, _, error = debias("sweep", "mine.yaml")
    assert status == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smok"], "there is no sweep 'smok' (did you mean 'smoke'?)"),
        (["none.yaml"], "none.yaml: there is no such sweep file"),
        (["smoke", "modle=x"], "unknown key 'modle' (did you mean 'model'?)"),
        (["smoke", "hydra/launcher=joblb"], "there is no hydra/launcher=joblb (did you mean 'joblib'?)"),
    ],
)
def test_mistakes_in_words(debias: Run, tmp_path: Path, words: list[str], message: str) -> None:
    status, _, error = debias("sweep", *words)
    assert status == 1
    assert message in error
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_file_runs(debias: Run, tmp_path: Path, small: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    few = [w for w in small if "stereoset" not in w and "perplexity" not in w]
    status, shown, _ = debias("sweep", "mine.yaml", *few, "eval=[crows_pairs]", "training.epochs=1")
    assert status == 0
    assert "2 jobs: 2 done" in shown
    states = [json.loads(p.read_text())["state"] for p in (tmp_path / "outputs/mine").rglob("status.json")]
    assert states == ["done", "done"]
