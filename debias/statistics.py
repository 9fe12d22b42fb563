"""How sure we are: bootstrap intervals of both models and of their paired difference, from the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from debias.records import Figure

CONFIDENCE = 0.95
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
    ideal: float
    n: int
    base: Estimate
    debiased: Estimate
    delta: Estimate
    p_value: float

    def figures(self, benchmark: str, protocol: str) -> Iterator[Figure]:
        """The three lines of `metrics.jsonl`."""
        for model, e in (("base", self.base), ("debiased", self.debiased), ("delta", self.delta)):
            ideal, p = (None, self.p_value) if model == "delta" else (self.ideal, None)
            yield Figure(benchmark, protocol, self.bias, self.metric, model, e.value, e.low, e.high, self.n, ideal, p)


def compare(
    bias: str,
    metric: str,
    ideal: float,
    n: int,
    statistic: Callable[..., np.ndarray],
    base: Sequence[np.ndarray],
    debiased: Sequence[np.ndarray],
    n_resamples: int = 9999,
) -> Comparison:
    """Compare `statistic(*columns, axis)` of two models over the same units (target terms, pairs, windows).

    Units are drawn with replacement; each resample holds the same units for both models, so the interval of the
    difference is a paired one. p is the share of resamples on the far side of zero, doubled: below 0.05 where, and
    only where, the interval leaves zero out (up to the resampling error).
    """
    width = len(base)

    def both(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
        before = statistic(*columns[:width], axis=axis)
        after = statistic(*columns[width:], axis=axis)
        return np.stack([before, after, after - before])

    columns = [np.asarray(c, dtype=float) for c in (*base, *debiased)]
    values = both(*columns)
    if len(columns[0]) < 2:  # nothing to resample: the interval is unknown
        return _comparison(bias, metric, ideal, n, values, np.full(3, np.nan), np.full(3, np.nan), np.nan)
    batch = max(1, 2_000_000 // len(columns[0]))  # bounds the memory of the resamples
    result: Any = stats.bootstrap(
        columns, both, paired=True, vectorized=True, n_resamples=n_resamples, batch=batch,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(SEED),
    )  # fmt: skip
    delta_R = result.bootstrap_distribution[2]
    tail = min(np.count_nonzero(delta_R <= 0), np.count_nonzero(delta_R >= 0))
    p_value = min(1.0, 2 * (tail + 1) / (n_resamples + 1))
    interval = result.confidence_interval
    return _comparison(bias, metric, ideal, n, values, interval.low, interval.high, p_value)


def _comparison(
    bias: str, metric: str, ideal: float, n: int, value: Any, low: Any, high: Any, p_value: float
) -> Comparison:
    base, debiased, delta = (Estimate(float(value[k]), float(low[k]), float(high[k])) for k in range(3))
    return Comparison(bias, metric, ideal, n, base, debiased, delta, float(p_value))
