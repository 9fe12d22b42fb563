"""Intervals and tests against closed forms, and their calibration by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from debias.benchmarks import metrics
from debias.benchmarks.sampling import strata
from debias.benchmarks.seeds import over_seeds, roughly_over_seeds
from debias.benchmarks.statistics import (
    adjusted,
    adjusted_p,
    compare,
    compare_means,
    from_resamples,
    per_cluster,
    ratio,
    tango,
    wilson,
)  # fmt: skip
from debias.records import Figure, UserError


def test_interval_of_a_proportion_is_near_the_normal_one() -> None:
    """300 of 500 units: 60% +- 1.965 * sqrt(0.6 * 0.4 / 499) = 60 +- 4.31."""
    scores = np.array([100.0] * 300 + [0.0] * 200)
    result = compare("b", "SS", 50, 500, metrics.mean_of_first, (scores,), (scores,))
    assert result.base.value == 60
    assert result.base.low == pytest.approx(55.69, abs=0.1)
    assert result.base.high == pytest.approx(64.31, abs=0.1)


@pytest.mark.parametrize("pairs", [False, True])
def test_where_no_unit_changed_nothing_is_claimed(pairs: bool) -> None:
    """Not a difference of 0 with an interval from 0 to 0: how much units would change is unknown."""
    scores = np.array([100.0] * 12 + [0.0] * 8)
    result = compare("b", "SS", 50, 20, metrics.mean_of_first, (scores,), (scores,), pairs=pairs)
    assert result.delta.value == 0
    assert np.isnan([result.delta.low, result.delta.high, result.p_value]).all()
    assert (result.mde, result.test) == (None, "none")
    assert result.base.low < 60 < result.base.high


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
    assert result.p_value == pytest.approx(stats.ttest_rel(after, base).pvalue, rel=0.05)
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


def pairs_of(lost: int, won: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of which `lost` turn from yes to no and `won` from no to yes; of the others every second says yes."""
    same = [100.0 * (i % 2) for i in range(n - lost - won)]
    return np.array([100.0] * lost + [0.0] * won + same), np.array([0.0] * lost + [100.0] * won + same)


@pytest.mark.parametrize(
    ("lost", "won", "z"),
    [(8, 1, 7 / 3), (3, 3, 0.0), (5, 0, 5**0.5), (1, 0, 1.0), (2, 6, 2**0.5)],  # |won - lost| / sqrt(won + lost)
)
def test_mcnemar_by_hand(lost: int, won: int, z: float) -> None:
    before, after = pairs_of(lost, won, 50)
    result = compare("b", "SS", 50, 50, metrics.mean_of_first, (before,), (after,), pairs=True)
    assert result.test == "mcnemar"
    assert result.delta.value == pytest.approx(100 * (won - lost) / 50)
    assert result.p_value == pytest.approx(2 * stats.norm.sf(z), rel=1e-12)


def test_the_interval_of_pairs_agrees_with_their_test() -> None:
    """For every number of changed pairs: p is below .05 exactly where the interval excludes zero, also near .05."""
    for n in (12, 60, 262):
        for won in range(0, 12):
            for lost in range(0, 12 - won):
                if won + lost:
                    before, after = pairs_of(lost, won, n)
                    result = compare("b", "SS", 50, n, metrics.mean_of_first, (before,), (after,), pairs=True)
                    excluded = not result.delta.low <= 0 <= result.delta.high
                    assert excluded == (result.p_value < 0.05), (n, won, lost)
                    assert result.delta.low <= result.delta.value <= result.delta.high


def test_figures_are_plain_numbers() -> None:
    """Not NumPy's, which a bias card's metadata cannot hold."""
    for before, after in (pairs_of(8, 1, 50), pairs_of(0, 0, 50)):
        for pairs in (True, False):
            found = compare("b", "SS", 50, 50, metrics.mean_of_first, (before,), (after,), 99, pairs=pairs)
            for line in found.figures("b", "p"):
                assert {type(value) for value in (*line[5:9], *line[10:13])} <= {float, int, type(None)}


Z2 = float(stats.norm.ppf(0.975)) ** 2


def test_score_intervals_by_hand() -> None:
    """All of n pairs won: the estimated share of lost pairs is (1 - D) / 2, so the lower end is (n - z^2) / (n + z^2).

    With equally many won and lost the interval is symmetric. No "yes" of n: Wilson's upper end is z^2 / (n + z^2).
    """
    assert tango(40, 0, 40) == (pytest.approx(100 * (40 - Z2) / (40 + Z2)), 100)
    assert tango(0, 40, 40) == (-100, pytest.approx(-100 * (40 - Z2) / (40 + Z2)))
    low, high = tango(6, 6, 60)
    assert low == pytest.approx(-high)
    assert wilson(0, 300) == (pytest.approx(0, abs=1e-12), pytest.approx(100 * Z2 / (300 + Z2)))


def test_score_intervals_of_pairs_cover_the_truth() -> None:
    """60 pairs, of which 12% are lost and 4% won by the debiased model: the true difference is -8 points."""
    rng = np.random.default_rng(6)
    counts = rng.multinomial(60, [0.12, 0.04, 0.84], SIMULATED)
    ends = [tango(won, lost, 60) for lost, won, _ in counts if won + lost]
    assert FEWEST <= sum(low <= -8 <= high for low, high in ends) <= MOST


def test_smallest_detectable_difference() -> None:
    """Differences of standard deviation 1 over 400 units: (1.97 + 0.84) / 20 = 0.140."""
    change = np.random.default_rng(0).normal(0, 1, 400)
    change = (change - change.mean()) / change.std()
    result = compare("b", "SS", 50, 400, metrics.mean_of_first, (np.zeros(400),), (change,))
    assert result.mde == pytest.approx(2.80 / 20, rel=0.03)
    still = compare("b", "SS", 50, 9, metrics.mean_of_first, (np.arange(9),), (np.arange(9),))
    assert still.mde is None  # nothing changed: unknown, not zero


def figure(p: float | None, model: str = "delta") -> Figure:
    return Figure("b", "p", "g", "SS", model, 1.0, 0.0, 2.0, 5, None, p)


def test_a_p_without_an_interval_is_refused() -> None:
    """Whatever made it is wrong: both come from one standard error."""
    samples_3R = np.random.default_rng(0).normal(size=(3, 99))
    good = from_resamples("all", "SS", 50.0, 9, np.zeros(3), samples_3R, 9, 1)
    assert len(list(good.figures("b", "p"))) == 3
    bad = good._replace(delta=good.delta._replace(low=np.nan, high=np.nan))
    with pytest.raises(AssertionError, match="b, SS: p without interval"):
        list(bad.figures("b", "p"))


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


def test_intervals_of_few_clusters_cover_the_truth() -> None:
    """Six target terms, as religion has in a small sample. Percentiles of resamples hold the truth less often."""
    rng = np.random.default_rng(4)
    held = {"t": 0, "percentiles": 0}
    for _ in range(SIMULATED):
        base, after = rng.binomial(20, 0.6, 6) * 5.0, rng.binomial(20, 0.6, 6) * 5.0
        result = compare("b", "SS", 50, 120, metrics.mean_of_first, (base,), (after,), n_resamples=999)
        low, high = np.quantile(result.samples[2], [0.025, 0.975])
        held["t"] += result.delta.low <= 0 <= result.delta.high
        held["percentiles"] += low <= 0 <= high
    assert FEWEST <= held["t"] <= MOST
    assert held["percentiles"] < FEWEST


@pytest.mark.parametrize(("base_ss", "after_ss"), [(64, 56), (60, 50), (60, 48), (52, 50)])
def test_intervals_of_icat_cover_the_truth_where_it_folds(base_ss: float, after_ss: float) -> None:
    """LMS 90. At SS = 50 percentiles hold the debiased model's true ICAT, 90, in less than 240 of 300 experiments."""
    rng = np.random.default_rng(5)
    held = {"after": 0, "delta": 0, "percentiles": 0}
    true = 90 * min(after_ss, 100 - after_ss) / 50
    change = true - 90 * min(base_ss, 100 - base_ss) / 50
    for _ in range(SIMULATED):
        base, after = ((rng.normal(ss, 14, 40), rng.normal(90, 6, 40)) for ss in (base_ss, after_ss))
        result = compare("b", "ICAT", 100, 771, metrics.icat_of_terms, base, after, n_resamples=499)
        low, high = np.quantile(result.samples[1], [0.025, 0.975])
        held["after"] += result.debiased.low <= true <= result.debiased.high
        held["delta"] += result.delta.low <= change <= result.delta.high
        held["percentiles"] += low <= true <= high
    assert held["after"] >= 0.9 * SIMULATED
    assert held["delta"] >= 0.9 * SIMULATED
    if after_ss == 50:
        assert held["percentiles"] < 0.8 * SIMULATED


# ---------------------------------------------------------------- groups sampled at different rates


def test_groups_count_by_their_size_in_the_whole() -> None:
    """4 of 4 examples of `a`, all 100, and 2 of 12 of `b`, all 0: the whole is 4 / 16 = 25%, not 4 / 6 = 67%."""
    labels = np.array(["a"] * 4 + ["b"] * 2)
    values = np.array([100.0] * 4 + [0.0] * 2)
    groups = strata(labels, 2, lambda: {"a": 4, "b": 12})
    assert groups is not None
    assert groups.weights_N == pytest.approx(np.array([0.375] * 4 + [2.25] * 2))  # 1 to 6, mean 1
    result = compare("overall", "SS", 50, 6, metrics.mean_of_first, (values,), (values,), strata=groups)
    assert result.base == pytest.approx((25, 25, 25))  # within the groups nothing varies
    again = compare_means("overall", "SS", 50, values, values, np.array(list("xxyzxy")), strata=groups)
    assert again.base.value == pytest.approx(25)


def test_units_that_all_changed_alike_do_not_tell_the_error() -> None:
    """Two paradigms of BLiMP, each lower by 16.7 points: p < .001 would be said of two units."""
    before, after = np.array([100.0, 83.3]), np.array([83.3, 66.6])
    result = compare("ellipsis", "accuracy", 100, 12, metrics.mean_of_first, (before,), (after,))
    assert result.delta.value == pytest.approx(-16.7)
    assert np.isnan(result.delta[1:]).all()
    assert np.isnan(result.p_value)
    assert result.base.low < 91.65 < result.base.high  # where units differ, the error is known


def test_a_group_with_one_unit_leaves_the_interval_unknown() -> None:
    """It stands for half of the whole, and no resample within it would ever change it."""
    values, groups = np.array([1.0, 0, 1, 0, 1]), strata(np.array(list("aaaab")), 4, lambda: {"a": 50, "b": 50})
    result = compare("overall", "SS", 50, 5, metrics.mean_of_first, (values,), (1 - values,), strata=groups)
    assert result.base.value == pytest.approx(0.75)  # (1 + 0.5) / 2
    assert np.isnan([*result.base[1:], *result.debiased[1:], *result.delta[1:]]).all()
    assert result.mde is None


def test_a_whole_or_evenly_sampled_benchmark_has_no_weights() -> None:
    labels = np.array(["a", "a", "b", "b"])
    assert strata(labels, None, dict) is None
    assert strata(labels[:2], 2, dict) is None
    assert strata(labels, 2, lambda: {"a": 10, "b": 10}) is None
    with pytest.raises(UserError, match="2 records of b, but 1 example in the file"):
        strata(labels, 2, lambda: {"a": 2, "b": 1})


def test_weighted_intervals_cover_the_whole() -> None:
    """Group a (200 of 200 sampled) rises by 10, b (50 of 1,800) by 0: the whole by 1, an unweighted mean by 8."""
    rng = np.random.default_rng(7)
    labels = np.array(["a"] * 200 + ["b"] * 50)
    groups = strata(labels, 50, lambda: {"a": 200, "b": 1800})
    held = {"weighted": 0, "plain": 0}
    for _ in range(SIMULATED):
        base = rng.normal(55, 10, 250)
        after = base + np.where(labels == "a", 10, 0) + rng.normal(0, 10, 250)
        for name, of in (("weighted", groups), ("plain", None)):
            delta = compare(
                "overall", "SS", 50, 250, metrics.mean_of_first, (base,), (after,), n_resamples=299, strata=of
            ).delta
            held[name] += delta.low <= 1 <= delta.high
    assert 0.9 * SIMULATED <= held["weighted"] <= MOST
    assert held["plain"] < 0.1 * SIMULATED


# ---------------------------------------------------------------- seeds


def test_seeds_are_combined() -> None:
    """Two seeds, -4 and -8, without error of the examples: -6 +- t(1 degree) * 2.83 / sqrt(2) = -6 +- 12.71 * 2."""
    same = over_seeds([-4, -8], [np.full(9999, -4.0), np.full(9999, -8.0)], 39, 40)
    assert (same.mean, same.sd) == (-6, pytest.approx(8**0.5))
    assert (same.low, same.high) == (pytest.approx(-6 - 25.41, abs=0.01), pytest.approx(-6 + 25.41, abs=0.01))
    assert same.p_value == pytest.approx(2 * stats.t.sf(3, 1))


def test_equal_seeds_have_the_error_of_the_examples() -> None:
    """Standard error 1 with 39 degrees of freedom: -6 +- 2.02; more seeds do not lower it."""
    samples = np.random.default_rng(0).normal(-6, (39 / 40) ** 0.5, 99_999)
    for number in (2, 5):
        found = over_seeds([-6.0] * number, [samples] * number, 39, 40)
        assert (found.low, found.high) == (pytest.approx(-8.02, abs=0.02), pytest.approx(-3.98, abs=0.02))


def test_units_of_several_strata_have_their_own_factor() -> None:
    """32 units in 4 strata: the spread of the resamples is too small by sqrt(28 / 32), and t has 28 degrees."""
    samples = np.random.default_rng(0).normal(-6, (28 / 32) ** 0.5, 99_999)
    found = over_seeds([-6.0] * 3, [samples] * 3, 28, 32)
    assert found.high == pytest.approx(-6 + stats.t.ppf(0.975, 28), abs=0.02)


def test_equal_seeds_show_no_more_than_one_of_them() -> None:
    """Nine units, t = 6: p = .0003 for each of three equal seeds. The normal tail of the same interval says 3e-7."""
    half, p = float(stats.t.ppf(0.975, 8)), float(2 * stats.t.sf(6, 8))
    without = roughly_over_seeds([-6] * 3, [-6 - half] * 3, [-6 + half] * 3)
    assert without.p_value < p / 100
    found = roughly_over_seeds([-6] * 3, [-6 - half] * 3, [-6 + half] * 3, [p] * 3)
    assert found.p_value == pytest.approx(p)
    assert found[:5] == without[:5]
    # Seeds that differ show less, and a seed without a p shows nothing.
    assert roughly_over_seeds([-2, -10], [-4, -12], [0, -8], [0.05, 1e-6]).p_value > 0.05
    assert roughly_over_seeds([-6] * 3, [-6 - half] * 3, [-6 + half] * 3, [p, p, None]).p_value > 0.004


def test_nothing_is_claimed_where_no_seed_changed() -> None:
    assert np.isnan(over_seeds([0, 0, 0], [np.zeros(99)] * 3, 39, 40)[2:4]).all()
    nan = float("nan")
    one_of_two = roughly_over_seeds([0, -2], [nan, -3.96], [nan, -0.04])  # as if both had its error, 1
    assert (one_of_two.mean, one_of_two.sd) == (-1, pytest.approx(2**0.5))
    assert one_of_two.low < -1 - 1.96 * 2**0.5


@pytest.mark.parametrize(("of_seeds", "of_examples"), [(3.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_intervals_over_three_seeds_cover_the_truth(of_seeds: float, of_examples: float) -> None:
    """Resampling three seeds with replacement holds the truth in 240 of 300 where seeds differ most."""
    rng = np.random.default_rng(8)
    held = {"t": 0, "resampled": 0}
    for _ in range(SIMULATED):
        values = -5 + rng.normal(0, of_examples) + rng.normal(0, of_seeds, 3)
        shared = rng.normal(0, of_examples * (39 / 40) ** 0.5, 999)
        samples = values[:, None] + shared
        found = over_seeds(values.tolist(), list(samples), 39, 40)
        drawn = np.take_along_axis(samples, rng.integers(3, size=(3, 999)), axis=0).mean(0)
        low, high = np.quantile(drawn, [0.025, 0.975])
        held["t"] += found.low <= -5 <= found.high
        held["resampled"] += low <= -5 <= high
    assert held["t"] >= FEWEST
    if of_seeds == 3:
        assert held["resampled"] < 0.9 * SIMULATED
