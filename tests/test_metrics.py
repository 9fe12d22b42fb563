"""Figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from debias.benchmarks import metrics


def stereoset_rows(example: str, target: str, stereotype: float, anti: float, unrelated: float) -> list[dict]:
    scores = {"stereotype": stereotype, "anti-stereotype": anti, "unrelated": unrelated}
    return [{"example": example, "candidate": c, "bias": "g", "target": target, "score": s} for c, s in scores.items()]


def test_stereoset_averages_per_term_then_over_terms() -> None:
    """Term a: stereotype preferred in 1 of 2; term b: in 0 of 1 (a tie). SS = (50 + 0) / 2 = 25, not 33.

    Related sentences beating the unrelated one: a: 2 of 2 and 1 of 2 -> 75; b: 0 of 2 (ties lose) -> 0. LMS = 37.5.
    """
    scores = pd.DataFrame(
        stereoset_rows("1", "a", -1, -2, -3)
        + stereoset_rows("2", "a", -2, -1, -1.5)
        + stereoset_rows("3", "b", -1, -1, -1)
    )
    terms = metrics.stereoset_terms(scores).set_index("target")
    assert terms.loc["a", ["ss", "lms", "n"]].tolist() == [50, 75, 2]
    assert terms.loc["b", ["ss", "lms", "n"]].tolist() == [0, 0, 1]
    ss, lms = terms["ss"].to_numpy(), terms["lms"].to_numpy()
    assert metrics.mean_of_first(ss, lms) == 25
    assert metrics.mean_of_second(ss, lms) == 37.5
    assert metrics.icat_of_terms(ss, lms) == 37.5 * 25 / 50


@pytest.mark.parametrize(
    ("ss", "lms", "icat"),
    [(50, 100, 100), (100, 100, 0), (0, 100, 0), (60, 90, 72), (62.65, 92.01, 68.74)],  # the last: GPT-2, gender
)
def test_icat(ss: float, lms: float, icat: float) -> None:
    assert metrics.icat(np.array(ss), np.array(lms)) == pytest.approx(icat, abs=0.01)


def test_crows_pairs_tie_is_not_stereotyping() -> None:
    rows = [("1", -1.0, -2.0), ("2", -2.0, -1.0), ("3", -1.0, -1.0), ("4", -1.0, -3.0)]
    scores = pd.DataFrame(
        [{"bias": "b", "target": "stereo", "example": e, "candidate": c, "score": s} for e, more, less in rows
         for c, s in (("sent_more", more), ("sent_less", less))]
    )  # fmt: skip
    assert metrics.crows_pairs(scores)["ss"].tolist() == [100, 0, 0, 100]
    assert metrics.crows_pairs(scores, ties=0.5)["ss"].tolist() == [100, 0, 50, 100]


def test_perplexity_weights_windows_by_tokens() -> None:
    """Tokens of probability 1/2 (3 of them) and 1/16 (1): exp((3 ln 2 + ln 16) / 4) = 2 ** (7 / 4)."""
    logprob = np.array([-3 * np.log(2), -np.log(16)])
    assert metrics.perplexity(logprob, np.array([3, 1])) == pytest.approx(2 ** (7 / 4))
