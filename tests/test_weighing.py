"""Weights of a sum of adapters: predicted figures are those of the sum where scores are linear, and none overshoots."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from adapter_table import config_of
from command import run, succeed

from debias.benchmarks.metrics import icat, stereoset_terms
from debias.benchmarks.stereoset import GOLD, StereoSet
from debias.jobs import weighing
from debias.jobs.weighing import Predictor
from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import BaseModel
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import Scorer

# Bias, target term, and by how much the base prefers the stereotype, in nats; the unrelated word is at -9.
EXAMPLES = [("a", "x", 3.0), ("a", "x", 1.0), ("a", "y", 1.0), ("a", "y", -1.0), ("b", "z", 2.0), ("b", "z", -2.0)]


def scores(*moved: float) -> pd.DataFrame:
    """Scores of the examples, with the anti-stereotype of each raised by so much."""
    rows = []
    for k, ((bias, target, margin), more) in enumerate(zip(EXAMPLES, moved or [0.0] * 6, strict=True)):
        rows += [(bias, target, str(k), name, score) for name, score in zip(GOLD, (margin, more, -9.0), strict=True)]
    return pd.DataFrame(rows, columns=["bias", "target", "example", "candidate", "score"])


ONE = (1.0, 1.0, 1.0, 1.0, 0.0, 0.0)  # raises anti-stereotypes of bias a
BOTH = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0)  # and of b, which is at 50 and would overshoot


def predictor(*adapters: tuple[float, ...]) -> Predictor:
    return Predictor(scores(), [scores(*(0.5 * more for more in adapter)) for adapter in adapters], probed=0.5)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.2, 0.0), (0.4, 0.7), (0.0, 1.5)])
def test_figures_are_those_of_the_benchmark_for_the_sum(weights: tuple[float, float]) -> None:
    moved = [weights[0] * one + weights[1] * both for one, both in zip(ONE, BOTH, strict=True)]
    means = stereoset_terms(scores(*moved)).groupby("bias")[["ss", "lms"]].mean()
    ss_B, lms_B = predictor(ONE, BOTH).figures(np.array(weights))
    assert ss_B == pytest.approx(means["ss"])
    assert lms_B == pytest.approx(means["lms"])


def test_a_sum_takes_each_bias_to_50_and_none_beyond() -> None:
    """By hand: term x of bias a has two stereotypes preferred of two and y one of two, so SS is 75; b is at 50.

    At weight 1 the first adapter turns the margins of 1 round: x 50, y 0, so 25, as far from 50 as before. The uneven
    one turns only that of x: 50.
    """
    of = predictor(ONE, BOTH)
    assert of.figures(np.array([0.0, 0.0]))[0] == pytest.approx([75.0, 50.0])
    assert of.figures(np.array([1.0, 0.0]))[0] == pytest.approx([25.0, 50.0])
    assert of.figures(np.array([0.0, 1.0]))[0] == pytest.approx([25.0, 0.0])
    assert of.best() == pytest.approx([0.0, 0.0])  # nothing is gained
    other = (0.1, 0.1, 0.0, 0.0, 6.0, 6.0)  # helps a little with a, and makes b overshoot
    assert predictor(UNEVEN, other).best() == pytest.approx([1.0, 0.0])


UNEVEN = (1.0, 1.0, 0.2, 0.2, 0.0, 0.0)


def test_a_longer_sum_must_gain_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """From SS 75 to 50 is an ICAT of 50 to 100 for a; b stays at 100. The mean gains 25 for a squared length of 1."""
    of = predictor(UNEVEN)
    assert icat(*of.figures(np.array([0.0]))) == pytest.approx([50.0, 100.0])
    assert icat(*of.figures(np.array([1.0]))) == pytest.approx([100.0, 100.0])
    for price, best in ((24.0, 1.0), (26.0, 0.0)):
        monkeypatch.setattr(weighing, "PRICE", price)
        assert of.best() == pytest.approx([best])


@pytest.fixture
def adapter_folders(tiny: Path, tmp_path: Path) -> list[str]:
    """Two LoRA adapters of the tiny model with numbers drawn at random."""
    base = BaseModel(str(tiny)).load()
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = adapters.attach(base, config_of("lora"))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn(parameter.shape) * 0.3)
        adapter_folder.save(model, base, tmp_path / name)
        adapters.detach(model)
    return [str(tmp_path / name) for name in "ab"]


def test_the_sum_is_chosen_scored_and_written(
    tiny: Path, adapter_folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's last column is what the written adapter scores, and the card names the weights."""
    monkeypatch.setattr(weighing, "StereoSet", partial(StereoSet, limit=8))
    monkeypatch.setattr(Predictor, "best", lambda _: np.array([0.3, 0.45]))
    words = [f"model.path={tiny}", f"adapter.path=[{','.join(adapter_folders)}]", "adapter.combine=sum"]
    shown = succeed(tmp_path, "export", "model=hf", *words, "adapter.weights=auto", f"folder={tmp_path / 'sum'}")
    first, _, _, *rows = shown.out.splitlines()
    assert first == "weights, chosen on StereoSet dev: 0.30 x a, 0.45 x b"
    assert max(map(len, shown.out.splitlines()[1:7])) <= 80
    base = BaseModel(str(tiny)).load()
    benchmark = StereoSet(BiasBench(), split="dev", limit=8)
    scorer = Scorer(base, adapter_folder.load(base, tmp_path / "sum"))
    scored = scorer.score(benchmark.candidates(base.tokens), benchmark.protocol, "stereoset")
    means = stereoset_terms(scored).groupby("bias")[["ss", "lms"]].mean()
    for bias, line in zip(("gender", "profession", "race", "religion"), rows, strict=False):
        name, *figures = line.split()
        assert name == bias
        ss, lms = means.loc[bias]
        assert [float(figure) for figure in figures[-2:]] == pytest.approx([ss, icat(ss, lms)], abs=0.051)
    assert "unknown; weights chosen on StereoSet dev" in (tmp_path / "sum/README.md").read_text()
    assert "- 0.3 x " in (tmp_path / "sum/README.md").read_text()
    assert "- 0.45 x " in (tmp_path / "sum/README.md").read_text()


@pytest.mark.parametrize(("chosen", "told"), [([0.3, 0.0], "0.30 x a, 0.00 x b"), ([0.0, 0.0], "0.00 x a, 0.00 x b")])
def test_a_sum_of_less_than_two_is_not_written(
    tiny: Path, adapter_folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    chosen: list[float], told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(weighing, "StereoSet", partial(StereoSet, limit=1))
    monkeypatch.setattr(Predictor, "best", lambda _: np.array(chosen))
    words = [f"model.path={tiny}", f"adapter.path=[{','.join(adapter_folders)}]", f"folder={tmp_path / 'sum'}"]
    shown = run(tmp_path, "export", "model=hf", *words, "adapter.combine=sum", "adapter.weights=auto")
    assert shown.status != 0
    (line,) = [line for line in shown.err.splitlines() if line.startswith("error")]
    assert told in line
    assert "export one, or train others" in line
    assert not (tmp_path / "sum").exists()
    wrong = run(tmp_path, "export", "model=hf", *words, "adapter.combine=average", "adapter.weights=auto")
    assert "chooses the weights of a sum; set adapter.combine=sum" in wrong.err
    names = f"adapter.path=[{adapter_folders[0]},{adapter_folders[1]},{adapter_folders[0]}/../a]"
    auto = ["adapter.combine=sum", "adapter.weights=auto"]
    twice = run(tmp_path, "export", "model=hf", words[0], words[2], names, *auto)
    assert "name each adapter once" in twice.err
    said = run(tmp_path, "export", "model=hf", *words, "adapter.combine=sum", "adapter.weights=auto", "dry_run=true")
    assert said.out.startswith("would choose the weights of the sum on StereoSet dev, so that SS is near 50")
