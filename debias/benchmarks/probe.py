"""A linear probe (Alain & Bengio 2017): a logistic regression on a frozen model's features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


class Probe(NamedTuple):
    """A fitted probe: weights for D standardised features."""

    mean_D: np.ndarray
    scale_D: np.ndarray
    weight_D: np.ndarray
    intercept: float

    def predict(self, feature_ND: np.ndarray) -> np.ndarray:
        """Whether each label is the positive one, shape (N,)."""
        return (feature_ND - self.mean_D) / self.scale_D @ self.weight_D + self.intercept > 0


def fit(feature_ND: np.ndarray, label_N: np.ndarray, penalty: float) -> Probe:
    """Minimise the mean log-loss + penalty / 2 * |weights|**2; the intercept is not penalised."""
    feature_ND, sign_N = np.asarray(feature_ND, dtype=float), np.where(label_N, 1.0, -1.0)
    mean_D, scale_D = feature_ND.mean(0), feature_ND.std(0)
    scale_D = np.where(scale_D > 0, scale_D, 1.0)
    standard_ND = (feature_ND - mean_D) / scale_D

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin_N = sign_N * (standard_ND @ weights[:-1] + weights[-1])
        slope_N = -sign_N * expit(-margin_N) / len(sign_N)
        gradient = np.append(standard_ND.T @ slope_N + penalty * weights[:-1], slope_N.sum())
        return float(np.logaddexp(0, -margin_N).mean() + penalty / 2 * (weights[:-1] ** 2).sum()), gradient

    found = minimize(loss, np.zeros(standard_ND.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return Probe(mean_D, scale_D, found.x[:-1], float(found.x[-1]))


def tuned(feature_ND: np.ndarray, label_N: np.ndarray) -> Probe:
    """Choose the penalty on held-out data, every fifth example, then fit a probe with it on all examples."""
    out_N = np.arange(len(label_N)) % 5 == 4

    def accuracy(penalty: float) -> float:
        probe = fit(feature_ND[~out_N], label_N[~out_N], penalty)
        return float((probe.predict(feature_ND[out_N]) == label_N[out_N]).mean())

    return fit(feature_ND, label_N, max(reversed(PENALTIES), key=accuracy))  # ties: the strongest
