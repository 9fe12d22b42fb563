"""Pronoun gap: slope and mean by hand, both kinds of models, halves that share nothing, and odd files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from debias.benchmarks import metrics
from debias.benchmarks.evaluation import evaluate, prepared
from debias.benchmarks.pronoun_gap import PronounGap
from debias.models.base import BaseModel
from debias.records import Candidate, Tokens, UserError
from debias.scoring.protocols import Continuation
from debias.scoring.scorer import Scorer

CAUSAL = Tokens(None, "causal")


def test_score_by_hand() -> None:
    """Log-odds of -1, 0 and 1 at shares of 0, 50 and 100%: slope 2, mean 0. Two beginnings are averaged first."""
    she = {("pilot, 0%", 1): -2.0, ("pilot, 0%", 2): -4.0, ("cook, 50%", 1): -1.0, ("cook, 50%", 2): -1.0,
           ("nurse, 100%", 1): -1.0, ("nurse, 100%", 2): -2.0}  # fmt: skip
    he = {("pilot, 0%", 1): -1.0, ("pilot, 0%", 2): -3.0, ("cook, 50%", 1): -2.0, ("cook, 50%", 2): 0.0,
          ("nurse, 100%", 1): -2.0, ("nurse, 100%", 2): -3.0}  # fmt: skip
    rows = pd.DataFrame(
        [(f"{target} {k}", candidate, "gender", target, score)
         for candidate, scores in (("she", she), ("he", he)) for (target, k), score in scores.items()],
        columns=["example", "candidate", "bias", "target", "logprob"],
    )  # fmt: skip
    shifted = rows.assign(logprob=rows["logprob"] + 0.5 * (rows["candidate"] == "she"))
    found = {c.metric: c for c in PronounGap(Continuation(), n_resamples=99).comparisons(rows, shifted)}
    assert (found["slope"].base.value, found["slope"].delta.value, found["slope"].n) == pytest.approx((2, 0, 3))
    assert (found["mean log-odds"].base.value, found["mean log-odds"].delta.value) == pytest.approx((0, 0.5))
    assert found["slope"].ideal == 0
    assert found["mean log-odds"].ideal is None


def test_slope_is_that_of_least_squares() -> None:
    x, y = np.array([0.1, 0.2, 0.7, 0.9]), np.array([1.0, -1.0, 3.0, 2.5])
    fitted = np.polyfit(x, y, 1)[0]
    assert metrics.slope(y, x) == pytest.approx(fitted)
    assert metrics.slope(np.stack([y, 2 * y]), np.stack([x, x])) == pytest.approx(fitted * np.array([1, 2]))


def test_dev_and_test_share_neither_occupations_nor_sentences() -> None:
    halves = [PronounGap(Continuation(), split).candidates(CAUSAL) for split in ("dev", "test")]
    dev, test = ({c.target for c in half} for half in halves)
    assert len(dev) == len(test) == 36
    assert not dev & test
    assert [len(half) for half in halves] == [36 * 5 * 2] * 2
    openings = [{c.text.replace(c.target.partition(",")[0], "") for c in half} for half in halves]
    assert not openings[0] & openings[1]
    means = [np.mean([float(target.rpartition(" ")[2][:-1]) for target in half]) for half in (dev, test)]
    assert abs(means[0] - means[1]) < 2  # both halves cover the scale alike


def test_texts_hold_their_blank() -> None:
    first, second = PronounGap(Continuation()).candidates(CAUSAL)[:2]
    assert first.text == "The electrician said that she would be late."
    assert second.text == "The electrician said that he would be late."
    assert first.cloze is not None
    assert "".join(first.cloze) == first.text
    assert (first.candidate, first.target, first.bias) == ("she", "electrician, 2.4%", "gender")


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_scores_models_of_both_kinds(kind: str, tiny: Path, tiny_masked: Path) -> None:
    base = BaseModel(str(tiny if kind == "causal" else tiny_masked)).load()
    benchmark = PronounGap(Continuation(), n_resamples=99)
    result = evaluate(Scorer(base, None, "32", 512, cache=None), prepared([benchmark], base.tokens))
    assert {(f.metric, f.n) for f in result.figures} == {("slope", 36), ("mean log-odds", 36)}
    assert not any(np.isnan(f.value) for f in result.figures)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("occupation,women\nnurse,88\nnurse,90\n", "line 3 is there twice"),
        ("job,women\nnurse,88\n", "line 2 needs the columns occupation and women, in percent"),
        ("occupation,women\nnurse,many\n", "line 2 needs the columns"),
        ("occupation,women\nnurse,101\n", "line 2 needs the columns"),
        ("occupation,women\nnurse,88\ncook,40\n", "has 2 occupations and a slope needs 3"),
        ("occupation,women\nnurse,50\ncook,50\npilot,50\n", "all occupations have the same share of women"),
    ],
)
def test_odd_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        PronounGap(Continuation(), path=str(path)).candidates(CAUSAL)


def test_occupations_of_ones_own_have_no_halves(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("occupation,women\nnurse,88\ncook,40\npilot,9\n", encoding="utf-8")
    mine: list[Candidate] = PronounGap(Continuation(), path=str(path)).candidates(CAUSAL)
    assert {c.target for c in mine} == {"nurse, 88%", "cook, 40%", "pilot, 9%"}
