"""Bootstrap intervals, paired tests, correction for many tests, detectable effects, and results over several seeds.

The unit that is resampled is the independent one, which another sample of the benchmark would draw anew: a target term,
a pair, a window of text, a template. Both models and their difference share the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from debias.records import Figure

CONFIDENCE = 0.95
POWER = 0.8
SEED = 20240  # of the resamples, not of a run: equal scores always give equal intervals

Statistic = Callable[..., np.ndarray]  # takes columns and `axis`, the axis of units; returns one value per resample


class Estimate(NamedTuple):
    """A value with its 95% percentile interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """One metric of the base and of the debiased model, and their difference with a two-sided p-value."""

    bias: str
    metric: str
    ideal: float | None  # None: the metric has no ideal value
    n: int
    base: Estimate
    debiased: Estimate
    delta: Estimate
    p_value: float
    mde: float | None  # minimum detectable effect at 80% power; None: unknown
    test: str  # the test behind the p-value: bootstrap, mcnemar or none
    samples: np.ndarray  # (3, R): base, debiased and delta in each resample; resample r has the same units in every run

    def figures(self, benchmark: str, protocol: str, model: str = "debiased") -> Iterator[Figure]:
        """Three lines of `metrics.jsonl`: base, debiased and delta. The delta of `debiased:NAME` is `delta:NAME`."""
        delta = model.replace("debiased", "delta", 1)
        for name, e in (("base", self.base), (model, self.debiased)):
            yield Figure(benchmark, protocol, self.bias, self.metric, name, *e, self.n, self.ideal)
        yield Figure(
            benchmark, protocol, self.bias, self.metric, delta, *self.delta, self.n, None,
            self.p_value, None, self.mde, self.test,
        )  # fmt: skip


def compare(
    bias: str,
    metric: str,
    ideal: float | None,
    n: int,
    statistic: Statistic,
    base: Sequence[np.ndarray],
    debiased: Sequence[np.ndarray],
    n_resamples: int = 9999,
    pairs: bool = False,
) -> Comparison:
    """Compare a statistic of two models over the same units (target terms, pairs, windows).

    Args:
        n: examples behind the figure.
        base, debiased: the statistic's columns, one value per unit.
        pairs: the units are n independent pairs, and the first column is above 0 for "yes", else "no". p is then
            McNemar's exact p-value, from the pairs on which the models differ.
    """
    width = len(base)
    # Each resample draws the same units for both models, so what makes a unit easy or hard for both cancels in the
    # difference: its interval is a paired one, and narrower than the models' own intervals suggest.

    def both(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
        before = statistic(*columns[:width], axis=axis)
        after = statistic(*columns[width:], axis=axis)
        return np.stack([before, after, after - before])

    columns = [np.asarray(c, dtype=float) for c in (*base, *debiased)]
    values = both(*columns)
    if len(columns[0]) < 2:
        return from_resamples(bias, metric, ideal, n, values, np.empty((3, 0)))
    batch = max(1, 2_000_000 // len(columns[0]))  # bounds the memory of the resamples
    result: Any = stats.bootstrap(
        columns, both, paired=True, vectorized=True, n_resamples=n_resamples, batch=batch,
        method="percentile", rng=np.random.default_rng(SEED),
    )  # fmt: skip
    comparison = from_resamples(bias, metric, ideal, n, values, result.bootstrap_distribution)
    if pairs:
        return comparison._replace(p_value=_mcnemar(columns[0] > 0, columns[width] > 0), test="mcnemar")
    return comparison


def from_resamples(
    bias: str, metric: str, ideal: float | None, n: int, values_3: np.ndarray, samples_3R: np.ndarray
) -> Comparison:
    """Build a comparison from base, debiased and delta and their resamples; without resamples all intervals are NaN."""
    if not samples_3R.size:
        one, two, three = (Estimate(float(value), np.nan, np.nan) for value in values_3)
        return Comparison(bias, metric, ideal, n, one, two, three, np.nan, None, "none", samples_3R)
    low_3, high_3 = np.quantile(samples_3R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1)
    one, two, three = (Estimate(float(v), float(a), float(b)) for v, a, b in zip(values_3, low_3, high_3, strict=True))
    p_value, mde = two_sided(samples_3R[2]), _detectable(samples_3R[2])
    return Comparison(bias, metric, ideal, n, one, two, three, p_value, mde, "bootstrap", samples_3R)


def within(sizes: Sequence[int], n_resamples: int) -> np.ndarray:
    """Draw units with replacement within consecutive groups of these sizes: indices of shape (R, sum of sizes)."""
    rng = np.random.default_rng(SEED)
    starts = np.cumsum([0, *sizes[:-1]])
    return np.hstack([a + rng.integers(k, size=(n_resamples, k)) for a, k in zip(starts, sizes, strict=True)])


def permutation_p(first: np.ndarray, second: np.ndarray, n_resamples: int = 9999) -> float:
    """One-sided p of the difference of means: the share of splits into two groups with a difference at least as large.

    Exact if there are at most `n_resamples` splits; otherwise estimated from that many random splits and the observed
    one.
    """

    def difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return x.mean(axis) - y.mean(axis)

    result = stats.permutation_test(
        (first, second), difference, vectorized=True, alternative="greater", n_resamples=n_resamples, batch=1000,
        rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return float(result.pvalue)


def two_sided(samples_R: np.ndarray) -> float:
    """Two-sided bootstrap p-value of the hypothesis that the value is zero; never 0."""
    # Twice the share of resamples on the far side of zero. So p < 0.05 if and only if the 95% percentile interval
    # excludes zero, up to resampling error. Adding 1 to both counts keeps p above 0 (Davison & Hinkley 1997, 4.2).
    tail = min(np.count_nonzero(samples_R <= 0), np.count_nonzero(samples_R >= 0))
    return min(1.0, 2 * (tail + 1) / (len(samples_R) + 1))


def _mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Exact two-sided p-value: of the pairs that changed, did as many change one way as the other?"""
    lost, won = int(np.sum(before & ~after)), int(np.sum(~before & after))
    if lost + won == 0:
        return 1.0
    # At a probability of one half both tails are equal, so twice the smaller one is the two-sided p-value.
    return min(1.0, 2 * float(stats.binomtest(min(lost, won), lost + won, alternative="less").pvalue))


def _detectable(samples_R: np.ndarray) -> float | None:
    """Minimum detectable effect: the smallest true difference that a two-sided 5% test finds with 80% power.

    None if no unit changed: the standard error is then unknown, not zero.
    """
    # Normal approximation: (z of 0.975 + z of 0.8) * standard error, which the spread of the resamples estimates.
    if not np.ptp(samples_R):
        return None
    return float((stats.norm.ppf(0.5 + CONFIDENCE / 2) + stats.norm.ppf(POWER)) * np.std(samples_R))


def per_cluster(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns for `ratio`: sum and count of the values of each cluster, clusters sorted by name."""
    # Examples that share a template or a target term are not independent. Resampling examples would give intervals
    # that are too narrow, so whole clusters are resampled.
    _, cluster_N = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    values = np.asarray(values, dtype=float)
    return np.bincount(cluster_N, values), np.bincount(cluster_N).astype(float)


def ratio(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over examples, from the sums and counts of clusters."""
    return total.sum(axis) / count.sum(axis)


def compare_means(
    bias: str,
    metric: str,
    ideal: float,
    base: np.ndarray,
    debiased: np.ndarray,
    clusters: np.ndarray,
    n_resamples: int = 9999,
) -> Comparison:
    """Compare the means over examples of two models; the resampled unit is the cluster."""
    before, after = (per_cluster(values, clusters) for values in (base, debiased))
    return compare(bias, metric, ideal, len(base), ratio, before, after, n_resamples)


def adjusted(figures: Sequence[Figure]) -> list[Figure]:
    """Add p-values adjusted for the number of differences in the table (Benjamini & Hochberg 1995)."""
    tested = [i for i, f in enumerate(figures) if f.p_value is not None and np.isfinite(f.p_value)]
    if not tested:
        return list(figures)
    result = list(figures)
    for i, value in zip(tested, adjusted_p([float(figures[i].p_value or 0) for i in tested]), strict=True):
        result[i] = figures[i]._replace(p_adjusted=value)
    return result


def adjusted_p(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by the false discovery rate (Benjamini & Hochberg 1995)."""
    p_M = np.asarray(p_values, dtype=float)
    order_M = np.argsort(p_M)
    # The k-th smallest of M is multiplied by M / k, and no p-value may exceed that of a larger one. SciPy's
    # `false_discovery_control` rounds this product otherwise, which would change the last digit of published figures.
    raw_M = p_M[order_M] / (np.arange(1, len(p_M) + 1) / len(p_M))
    adjusted_M = np.empty_like(p_M)
    adjusted_M[order_M] = np.minimum(1.0, np.minimum.accumulate(raw_M[::-1])[::-1])
    return adjusted_M.tolist()


class Seeds(NamedTuple):
    """A figure over several seeds: mean, standard deviation, and an interval that covers both seeds and examples."""

    mean: float
    sd: float  # between seeds; NaN for one seed
    low: float
    high: float
    number: int
    p_value: float = float("nan")  # two-sided


def over_seeds(values_K: Sequence[float], samples_KR: Sequence[np.ndarray]) -> Seeds:
    """Combine K runs that differ in the seed alone.

    Args:
        values_K: the figure of each run.
        samples_KR: the bootstrap resamples of each run (`Comparison.samples`).
    """
    samples = np.stack([np.asarray(s, dtype=float) for s in samples_KR])
    seeds, resamples = samples.shape
    # A hierarchical bootstrap (Davison & Hinkley 1997, section 3.8): each resample draws K seeds with replacement and
    # averages them over ONE draw of the benchmark's units. All seeds are scored on the same examples, so redrawing the
    # examples for each seed would treat their error as independent and make the interval too narrow.
    drawn_KR = np.random.default_rng(SEED).integers(seeds, size=(seeds, resamples))
    mean_R = np.take_along_axis(samples, drawn_KR, axis=0).mean(0)
    low, high = np.quantile(mean_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if resamples else (np.nan, np.nan)
    p_value = two_sided(mean_R) if resamples else float("nan")
    return Seeds(float(np.mean(values_K)), _sd(values_K), float(low), float(high), seeds, p_value)


def roughly_over_seeds(values_K: Sequence[float], lows_K: Sequence[float], highs_K: Sequence[float]) -> Seeds:
    """Approximate `over_seeds` for K > 1 runs whose resamples are lost, from the 95% interval of each run."""
    # Normal approximation. The variance of the examples is added undivided: all seeds share the examples, so more seeds
    # lower only the variance between seeds.
    z = stats.norm.ppf(0.5 + CONFIDENCE / 2)
    of_examples = np.mean(np.subtract(highs_K, lows_K)) / (2 * z)
    mean, sd = float(np.mean(values_K)), _sd(values_K)
    error = float(np.hypot(of_examples, sd / np.sqrt(len(values_K))))
    p_value = float(2 * stats.norm.sf(abs(mean) / error)) if error else float("nan")
    return Seeds(mean, sd, mean - z * error, mean + z * error, len(values_K), p_value)


def _sd(values_K: Sequence[float]) -> float:
    return float(np.std(values_K, ddof=1)) if len(values_K) > 1 else float("nan")
