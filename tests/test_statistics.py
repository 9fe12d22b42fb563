"""Intervals and tests against closed forms, and their calibration by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from debias.benchmarks import metrics
from debias.benchmarks.statistics import adjusted, adjusted_p, compare, over_seeds, per_cluster, ratio
from debias.records import Figure


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


SIMULATED = 300
# Of so many 95% intervals, all but 1 in 1,000 of such experiments hold the truth this often: 272 to 296 times.
FEWEST, MOST = stats.binom.interval(0.999, SIMULATED, 0.95)


def test_intervals_cover_the_truth() -> None:
    """With no true difference, 95% intervals hold zero in about 95 of 100 simulated experiments."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(SIMULATED):
        base, after = rng.normal(0, 1, (2, 120))
        delta = compare("b", "SS", 50, 120, metrics.mean_of_first, (base,), (after,), n_resamples=999).delta
        held += delta.low <= 0 <= delta.high
    assert FEWEST <= held <= MOST


def test_mcnemar_counts_the_pairs_that_changed() -> None:
    """8 pairs turn from yes to no, 1 from no to yes, 41 stay: p = 2 * (1 + 9) / 2 ** 9 = 0.0390625."""
    before = np.array([100.0] * 8 + [0.0] + [100.0] * 20 + [0.0] * 21)
    after = np.array([0.0] * 8 + [100.0] + [100.0] * 20 + [0.0] * 21)
    result = compare("b", "SS", 50, 50, metrics.mean_of_first, (before,), (after,), pairs=True)
    assert result.test == "mcnemar"
    assert result.p_value == pytest.approx(2 * (1 + 9) / 2**9)


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [
        (0, 0, 1.0),  # nothing changed
        (1, 0, 1.0),  # 2 * 1 / 2
        (3, 3, 1.0),  # 2 * (1 + 6 + 15 + 20) / 64 is more than 1
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (2, 6, 2 * (1 + 8 + 28) / 256),
    ],
)
def test_mcnemar_by_hand(lost: int, won: int, expected: float) -> None:
    before = np.array([1.0] * lost + [0.0] * won + [1.0, 0.0])
    after = np.array([0.0] * lost + [1.0] * won + [1.0, 0.0])
    result = compare("b", "SS", 50, len(before), metrics.mean_of_first, (before,), (after,), pairs=True, n_resamples=9)
    assert result.p_value == pytest.approx(expected, rel=1e-14)


def test_smallest_detectable_difference() -> None:
    """Differences of standard deviation 1 over 400 units: (1.96 + 0.84) / 20 = 0.140."""
    change = np.random.default_rng(0).normal(0, 1, 400)
    change = (change - change.mean()) / change.std()
    result = compare("b", "SS", 50, 400, metrics.mean_of_first, (np.zeros(400),), (change,))
    assert result.mde == pytest.approx(2.80 / 20, rel=0.03)
    still = compare("b", "SS", 50, 9, metrics.mean_of_first, (np.arange(9),), (np.arange(9),))
    assert still.mde is None  # nothing changed: unknown, not zero


def figure(p: float | None, model: str = "delta") -> Figure:
    return Figure("b", "p", "g", "SS", model, 1.0, 0.0, 2.0, 5, None, p)


def test_p_values_are_adjusted_for_their_number() -> None:
    """Benjamini-Hochberg on 0.01, 0.02, 0.03, 0.5 of four: 0.04 for the first three (4 * 0.03 / 3), 0.5."""
    lines = [figure(0.02), figure(None, "base"), figure(0.5), figure(0.01), figure(float("nan")), figure(0.03)]
    values = [f.p_adjusted for f in adjusted(lines)]
    assert values == [pytest.approx(0.04), None, pytest.approx(0.5), pytest.approx(0.04), None, pytest.approx(0.04)]


def test_adjusted_p_values_are_those_of_scipy() -> None:
    """Up to the last digit, whatever their order and however many are equal; at most 1, and none for none."""
    draw = np.random.default_rng(5)
    for size in range(1, 60):
        p = np.minimum(1, 2 * draw.integers(1, 5001, size) / 10_000)
        assert adjusted_p(p) == pytest.approx(stats.false_discovery_control(p), rel=1e-15)
    assert adjusted_p([0.9, 0.8, 1.0]) == [1.0, 1.0, 1.0]  # 0.8 * 3, 0.9 * 3 / 2
    assert adjusted_p([]) == []
    assert np.isnan(adjusted_p([0.1, float("nan"), 0.3])).all()


def test_clusters_are_summed() -> None:
    total, count = per_cluster(np.array([1.0, 0, 1, 1]), np.array(["b", "a", "b", "c"]))
    assert total.tolist() == [0, 2, 1]  # a, b, c
    assert count.tolist() == [1, 2, 1]
    assert ratio(total, count) == 0.75


def test_clustered_intervals_cover_the_truth() -> None:
    """Examples of one term rise or fall together: about 95 of 100 intervals hold the true difference, 0, if terms are
    resampled, and far fewer if single examples are.
    """
    rng = np.random.default_rng(2)
    held = {"clusters": 0, "examples": 0}
    terms = np.repeat(np.arange(60), 5)
    for _ in range(SIMULATED):
        shared = rng.normal(0, 1, 60)[terms]
        before, after = rng.normal(0, 0.5, 300), shared + rng.normal(0, 0.5, 300)
        clustered = compare(
            "b", "SS", 50, 300, ratio, per_cluster(before, terms), per_cluster(after, terms), n_resamples=999
        ).delta
        naive = compare("b", "SS", 50, 300, metrics.mean_of_first, (before,), (after,), n_resamples=299).delta
        held["clusters"] += clustered.low <= 0 <= clustered.high
        held["examples"] += naive.low <= 0 <= naive.high
    assert FEWEST <= held["clusters"] <= MOST
    assert held["examples"] < 0.8 * SIMULATED


def test_seeds_are_combined() -> None:
    """Two seeds, -4 and -8, with no other uncertainty: mean -6, sd 2.83; a quarter of the resamples draw one twice."""
    same = over_seeds([-4, -8], [np.full(9999, -4.0), np.full(9999, -8.0)])
    assert (same.mean, same.sd, same.low, same.high) == (-6, pytest.approx(8**0.5), -8, -4)
    one = over_seeds([-4], [np.linspace(-6, -2, 9999)])
    assert np.isnan(one.sd)
    assert (one.low, one.high) == (pytest.approx(-5.9), pytest.approx(-2.1))
