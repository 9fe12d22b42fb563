"""How sure we are: bootstrap intervals, paired tests, corrections, detectable effects, and seeds combined.

Intervals of both models and of their difference come from the same resamples of independent units: target terms, pairs,
windows, templates. What is resampled is what would be new in another sample of the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from debias.records import Figure

CONFIDENCE = 0.95
POWER = 0.8
SEED = 20240  # of the resamples, not of a run: the same scores always give the same interval


class Estimate(NamedTuple):
    """A value with its 95% percentile interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """One metric of the base and the debiased model, and their difference with a two-sided p-value."""

    bias: str
    metric: str
    ideal: float | None  # None: nobody knows
    n: int
    base: Estimate
    debiased: Estimate
    delta: Estimate
    p_value: float
    mde: float | None  # the smallest difference that would be found with 80% power; None where it is unknown
    test: str  # where the p-value comes from: bootstrap or mcnemar
    samples: np.ndarray  # (3, R): base, debiased and delta in each resample; the same units in resample r of every run

    def figures(self, benchmark: str, protocol: str, model: str = "debiased") -> Iterator[Figure]:
        """The three lines of `metrics.jsonl`; the difference of `debiased:NAME` is called `delta:NAME`."""
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
    statistic: Callable[..., np.ndarray],
    base: Sequence[np.ndarray],
    debiased: Sequence[np.ndarray],
    n_resamples: int = 9999,
    pairs: bool = False,
) -> Comparison:
    """Compare `statistic(*columns, axis)` of two models over the same units (target terms, pairs, windows).

    Units are drawn with replacement; each resample holds the same units for both models, so the interval of the
    difference is a paired one. p is the share of resamples on the far side of zero, doubled: below 0.05 where, and
    only where, the interval leaves zero out (up to the resampling error).

    Args:
        n: examples behind the figure.
        pairs: the first column says yes (more than 0) or no to each of n independent pairs; p is then McNemar's exact
            one, from the pairs to which the models answer differently.
    """
    width = len(base)

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
    """A comparison from base, debiased and delta, and the same in each resample; without resamples nothing is sure."""
    if not samples_3R.size:
        one, two, three = (Estimate(float(value), np.nan, np.nan) for value in values_3)
        return Comparison(bias, metric, ideal, n, one, two, three, np.nan, None, "none", samples_3R)
    low_3, high_3 = np.quantile(samples_3R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1)
    one, two, three = (Estimate(float(v), float(a), float(b)) for v, a, b in zip(values_3, low_3, high_3, strict=True))
    p_value, mde = two_sided(samples_3R[2]), _detectable(samples_3R[2])
    return Comparison(bias, metric, ideal, n, one, two, three, p_value, mde, "bootstrap", samples_3R)


def within(sizes: Sequence[int], n_resamples: int) -> np.ndarray:
    """Shape (R, sum of sizes): numbers of units drawn with replacement within groups that stand one after another."""
    rng = np.random.default_rng(SEED)
    starts = np.cumsum([0, *sizes[:-1]])
    return np.hstack([a + rng.integers(k, size=(n_resamples, k)) for a, k in zip(starts, sizes, strict=True)])


def permutation_p(first: np.ndarray, second: np.ndarray, n_resamples: int = 9999) -> float:
    """Share of the divisions of all values into two groups whose difference of means is as large or larger.

    Exact where there are no more than `n_resamples` divisions, else of so many random ones and the one at hand.
    """

    def difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return x.mean(axis) - y.mean(axis)

    result = stats.permutation_test(
        (first, second), difference, vectorized=True, alternative="greater", n_resamples=n_resamples, batch=1000,
        rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return float(result.pvalue)


def two_sided(samples_R: np.ndarray) -> float:
    """Bootstrap p-value of `zero`: the share of resamples on the far side of it, doubled, and never 0."""
    tail = min(np.count_nonzero(samples_R <= 0), np.count_nonzero(samples_R >= 0))
    return min(1.0, 2 * (tail + 1) / (len(samples_R) + 1))


def _mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    table = [[np.sum(before & after), np.sum(before & ~after)], [np.sum(~before & after), np.sum(~before & ~after)]]
    return float(mcnemar(table, exact=True).pvalue)


def _detectable(samples_R: np.ndarray) -> float | None:
    """Smallest true difference that a two-sided 5% test finds with 80% power, at this standard error (normal).

    None where no unit changed: then the standard error is unknown, not zero.
    """
    if not np.ptp(samples_R):
        return None
    return float((stats.norm.ppf(0.5 + CONFIDENCE / 2) + stats.norm.ppf(POWER)) * np.std(samples_R))


def per_cluster(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns for `ratio`: sum and count of the values of each cluster, in sorted order of the clusters.

    For examples that are not independent (they share a target term, a template): resampling whole clusters is what
    makes an interval honest.
    """
    _, cluster_N = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    values = np.asarray(values, dtype=float)
    return np.bincount(cluster_N, values), np.bincount(cluster_N).astype(float)


def ratio(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over examples, from sums and counts of clusters."""
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
    """Compare the means over examples of two models; the resampled unit is the cluster of examples."""
    before, after = (per_cluster(values, clusters) for values in (base, debiased))
    return compare(bias, metric, ideal, len(base), ratio, before, after, n_resamples)


def adjusted(figures: Sequence[Figure]) -> list[Figure]:
    """The figures with p-values adjusted for the number of differences in the table (Benjamini & Hochberg 1995)."""
    tested = [i for i, f in enumerate(figures) if f.p_value is not None and np.isfinite(f.p_value)]
    if not tested:
        return list(figures)
    result = list(figures)
    for i, value in zip(tested, adjusted_p([float(figures[i].p_value or 0) for i in tested]), strict=True):
        result[i] = figures[i]._replace(p_adjusted=value)
    return result


def adjusted_p(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Benjamini & Hochberg 1995)."""
    return [float(p) for p in multipletests(list(p_values), method="fdr_bh")[1]] if len(p_values) else []


class Seeds(NamedTuple):
    """A figure over several seeds: mean, standard deviation, and an interval for both seeds and examples."""

    mean: float
    sd: float  # between seeds; NaN for one seed
    low: float
    high: float
    number: int
    p_value: float = float("nan")  # two-sided


def over_seeds(values_K: Sequence[float], samples_KR: Sequence[np.ndarray]) -> Seeds:
    """Combine K runs that differ in nothing but the seed.

    The interval is hierarchical: a resample draws K of the seeds with replacement and takes their mean in one and the
    same resample of the benchmark's units, which all seeds share.

    Args:
        values_K: the figure of each run.
        samples_KR: its bootstrap resamples, drawn alike in all runs (`Comparison.samples`).
    """
    samples = np.stack([np.asarray(s, dtype=float) for s in samples_KR])
    seeds, resamples = samples.shape
    drawn_KR = np.random.default_rng(SEED).integers(seeds, size=(seeds, resamples))
    mean_R = np.take_along_axis(samples, drawn_KR, axis=0).mean(0)
    low, high = np.quantile(mean_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if resamples else (np.nan, np.nan)
    p_value = two_sided(mean_R) if resamples else float("nan")
    return Seeds(float(np.mean(values_K)), _sd(values_K), float(low), float(high), seeds, p_value)


def roughly_over_seeds(values_K: Sequence[float], lows_K: Sequence[float], highs_K: Sequence[float]) -> Seeds:
    """Combine K > 1 runs of which the resamples are gone, from the interval that each of them has: an approximation.

    Normal, with two parts of variance: the seeds' own, and that of the examples, which all seeds share and more seeds
    do not lower.
    """
    z = stats.norm.ppf(0.5 + CONFIDENCE / 2)
    of_examples = np.mean(np.subtract(highs_K, lows_K)) / (2 * z)
    mean, sd = float(np.mean(values_K)), _sd(values_K)
    error = float(np.hypot(of_examples, sd / np.sqrt(len(values_K))))
    p_value = float(2 * stats.norm.sf(abs(mean) / error)) if error else float("nan")
    return Seeds(mean, sd, mean - z * error, mean + z * error, len(values_K), p_value)


def _sd(values_K: Sequence[float]) -> float:
    return float(np.std(values_K, ddof=1)) if len(values_K) > 1 else float("nan")
