"""Intervals and tests against closed forms, and their calibration by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from debias import metrics
from debias.statistics import compare


def test_interval_of_a_proportion_is_near_the_normal_one() -> None:
    """300 of 500 pairs: 60% +- 1.96 * sqrt(0.6 * 0.4 / 500) = 60 +- 4.29."""
    scores = np.array([100.0] * 300 + [0.0] * 200)
    result = compare("b", "SS", 50, 500, metrics.mean_of_first, (scores,), (scores,))
    assert result.base.value == 60
    assert result.base.low == pytest.approx(55.71, abs=0.3)
    assert result.base.high == pytest.approx(64.29, abs=0.3)


def test_equal_models_have_no_difference() -> None:
    scores = np.arange(20.0)
    result = compare("b", "SS", 50, 20, metrics.mean_of_first, (scores,), (scores,))
    assert result.delta == (0, 0, 0)
    assert result.p_value == 1


def test_the_difference_is_paired() -> None:
    """Every unit falls by exactly 3: whatever is resampled, the difference is -3, however wide the units scatter."""
    base = np.random.default_rng(0).normal(50, 30, 40)
    result = compare("b", "SS", 50, 40, metrics.mean_of_first, (base,), (base - 3,))
    assert result.delta == pytest.approx((-3, -3, -3))
    assert result.base.high - result.base.low > 10
    assert result.p_value == pytest.approx(2 / 10_000)


def test_p_value_agrees_with_the_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0, 1, 200)
    after = base + rng.normal(0.12, 1, 200)
    result = compare("b", "SS", 50, 200, metrics.mean_of_first, (base,), (after,))
    assert result.p_value == pytest.approx(stats.ttest_rel(after, base).pvalue, abs=0.03)
    assert (result.p_value < 0.05) == (not result.delta.low <= 0 <= result.delta.high)


def test_one_unit_has_no_interval() -> None:
    result = compare("b", "SS", 50, 1, metrics.mean_of_first, (np.array([50.0]),), (np.array([40.0]),))
    assert result.delta.value == -10
    assert np.isnan([result.delta.low, result.delta.high, result.p_value]).all()


def test_intervals_cover_the_truth() -> None:
    """With no true difference, 95% intervals hold zero in about 95 of 100 simulated experiments (93% to 97%)."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        base, after = rng.normal(0, 1, (2, 120))
        delta = compare("b", "SS", 50, 120, metrics.mean_of_first, (base,), (after,), n_resamples=999).delta
        held += delta.low <= 0 <= delta.high
    assert 930 <= held <= 970
