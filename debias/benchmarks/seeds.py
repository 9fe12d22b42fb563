"""A figure over several seeds: runs that differ in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from debias.benchmarks.statistics import CONFIDENCE, Z, two_sided


class Seeds(NamedTuple):
    """Mean, standard deviation, and an interval that covers both seeds and examples."""

    mean: float
    sd: float  # between seeds; NaN for one seed
    low: float
    high: float
    number: int
    p_value: float = float("nan")  # two-sided


def over_seeds(values_K: Sequence[float], samples_KR: Sequence[np.ndarray], freedom: float, units: int) -> Seeds:
    """Combine K > 1 runs that differ in the seed alone.

    Args:
        values_K: the figure of each run.
        samples_KR: the bootstrap resamples of each run (`Comparison.samples`).
        freedom, units: of the examples' standard error (`Comparison.freedom`, `Comparison.units`).
    """
    # All seeds are scored on the same examples, so redrawing the examples for each seed would treat their error as
    # independent: the resamples are averaged over seeds, one draw of the benchmark's units for all.
    mean_R = np.mean(samples_KR, axis=0)
    of_examples = float(np.std(mean_R) * np.sqrt(units / freedom)) if mean_R.size else float("nan")
    return _combined(values_K, of_examples, freedom)


def roughly_over_seeds(
    values_K: Sequence[float], lows_K: Sequence[float], highs_K: Sequence[float], p_K: Sequence[float | None] = ()
) -> Seeds:
    """Approximate `over_seeds` for K > 1 runs whose resamples are lost, from the 95% interval of each run.

    Args:
        p_K: the p-values of the runs. All were scored on the same examples, so together they show no more than their
            geometric mean: an interval alone does not tell how heavy the tails of its distribution are.
    """
    widths_K = np.subtract(highs_K, lows_K)
    known_K = widths_K[np.isfinite(widths_K)]  # a seed that changed nothing has no interval
    found = _combined(values_K, float(np.mean(known_K)) / (2 * Z) if known_K.size else float("nan"), np.inf)
    known = [1.0 if p is None or p != p else max(p, np.finfo(float).tiny) for p in p_K]
    return found._replace(p_value=max(found.p_value, float(np.exp(np.mean(np.log(known)))))) if known else found


def _combined(values_K: Sequence[float], of_examples: float, freedom: float) -> Seeds:
    """Mean +- t standard errors of seeds and examples together.

    More seeds lower only the variance between seeds. It is estimated from K values, so t has the degrees of freedom of
    Satterthwaite (1946). (Resampling K seeds with replacement, as before, makes that variance too small by 1 / K.)
    """
    number, mean, sd = len(values_K), float(np.mean(values_K)), float(np.std(values_K, ddof=1))
    examples, seeds = of_examples**2, sd**2 / number
    if not examples + seeds > 0:  # nothing changed, or unknown
        return Seeds(mean, sd, np.nan, np.nan, number)
    effective = (examples + seeds) ** 2 / (examples**2 / freedom + seeds**2 / (number - 1)) if seeds else freedom
    error = float(np.sqrt(examples + seeds))
    t = stats.t.ppf(0.5 + CONFIDENCE / 2, effective)
    return Seeds(mean, sd, mean - t * error, mean + t * error, number, two_sided(mean, error, effective))
