"""`adapter.weights=auto`: the weights of a sum of adapters that keep SS near 50 on StereoSet dev.

What an adapter adds to a module is its weight times a constant, and what it adds to a sentence's score nearly so. So
each adapter is scored once, every sum is predicted from these scores, and the chosen one is scored to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from debias import assets
from debias.benchmarks.metrics import icat, stereoset_terms
from debias.benchmarks.stereoset import GOLD, StereoSet
from debias.models import adapter as adapters
from debias.models import composition
from debias.models.base import Base
from debias.models.placement import place
from debias.results import run_of
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import Scorer

PROBED = 0.5  # the weight at which each adapter is scored; sums have weights around it
HIGHEST = 1.5
STEP = 0.05
# Points of mean ICAT that a sum must gain for each unit of its squared length. Ability falls with the square of what is
# added, because the KL divergence has no linear term: with SmolLM2 a unit cost up to three percent of perplexity.
PRICE = 2.0
STARTS = 16


class Weighing(NamedTuple):
    """Chosen weights, and SS, LMS and ICAT of each bias: of the base, as predicted for the sum, and as scored."""

    weights: list[float]
    figures: pd.DataFrame  # columns: pairs of `base`, `predicted`, `scored` and a figure's name; index: the bias

    def lines(self, folders: Sequence[Path]) -> list[str]:
        """The weights and a table for the terminal."""
        names = ", ".join(
            f"{weight:.2f} x {run_of(folder.resolve()).name}"
            for weight, folder in zip(self.weights, folders, strict=True)
        )
        head = "".join(f"{of:>20}" for of in ("base", "predicted", "scored"))
        under = "".join(f"{figure:>{12 if figure == 'SS' else 8}}" for _ in range(3) for figure in ("SS", "ICAT"))
        rows = (
            f"{bias:12}"
            + "".join(f"{row[of, 'SS']:12.1f}{row[of, 'ICAT']:8.1f}" for of in ("base", "predicted", "scored"))
            for bias, row in self.figures.iterrows()
        )
        return [f"weights, chosen on StereoSet dev: {names}", f"{'':12}{head}", f"{'':12}{under}", *rows]


class Predictor:
    """Predicts SS, LMS and ICAT of each bias for sums of adapters.

    Args:
        base: scores of the base, as `Scorer.score` returns them.
        alone: scores with each adapter alone, at weight `probed`, of the same sentences.
        probed: that weight.
    """

    def __init__(self, base: pd.DataFrame, alone: Sequence[pd.DataFrame], probed: float = PROBED) -> None:
        of_base, *of_adapters = (_by_example(scores) for scores in (base, *alone))
        self.base_E3 = of_base.to_numpy()
        self.added_JE3 = np.stack([(scores.to_numpy() - self.base_E3) / probed for scores in of_adapters])
        bias_E, term_E = (of_base.index.get_level_values(name).to_numpy() for name in ("bias", "target"))
        self.biases = sorted(set(bias_E))
        # The mean over a bias's target terms of the mean over a term's examples, as a weight of each example.
        sizes_E = pd.Series(1, of_base.index).groupby(["bias", "target"]).transform("size").to_numpy()
        terms = pd.Series(term_E).groupby(bias_E).nunique()
        self.share_BE = np.stack([(bias_E == bias) / sizes_E / terms[bias] for bias in self.biases])

    def figures(self, weights_J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SS and LMS of each bias, of shape (B,)."""
        stereotype_E, anti_E, unrelated_E = (self.base_E3 + np.tensordot(weights_J, self.added_JE3, 1)).T
        lms_E = ((stereotype_E > unrelated_E).astype(float) + (anti_E > unrelated_E)) / 2
        return 100 * self.share_BE @ (stereotype_E > anti_E), 100 * self.share_BE @ lms_E

    def worth(self, weights_J: np.ndarray) -> float:
        """Mean ICAT over the biases, less the price of the sum's length."""
        return float(np.mean(icat(*self.figures(weights_J))) - PRICE * weights_J @ weights_J)

    def best(self) -> np.ndarray:
        """The weights of greatest worth: one after the other is moved along a grid, from several starts."""
        grid = np.arange(0.0, HIGHEST + STEP / 2, STEP)
        count = len(self.added_JE3)
        starts = [np.zeros(count), *(np.random.default_rng(0).choice(grid, (STARTS, count)))]
        return max((self._climbed(start, grid) for start in starts), key=self.worth).round(2)

    def _climbed(self, weights_J: np.ndarray, grid: np.ndarray) -> np.ndarray:
        worth, before = self.worth(weights_J), -np.inf
        while worth > before:
            before = worth
            for j in range(len(weights_J)):
                moved = [np.where(np.arange(len(weights_J)) == j, value, weights_J) for value in grid]
                found = [self.worth(weights) for weights in moved]
                if max(found) > worth:
                    worth, weights_J = max(found), moved[int(np.argmax(found))]
        return weights_J


def weighed(base: Base, folders: Sequence[Path]) -> Weighing:
    """Score each adapter on StereoSet dev, choose the weights of their sum, and score that."""
    place(base.model)
    benchmark = StereoSet(BiasBench(), split="dev")
    candidates = benchmark.candidates(base.tokens)

    def scores(name: str, weights: Sequence[float] | None = None) -> pd.DataFrame:
        """Of the base, or of a sum."""
        adapted = composition.combined(base, folders, "sum", weights) if weights else None
        rows = Scorer(base, adapted, cache=assets.cache_dir(), name=name).score(candidates, benchmark.protocol, name)
        if adapted is not None:
            adapters.detach(adapted)
        return rows

    of_base = scores("base")
    alone = [
        scores(run_of(folder.resolve()).name, weights)
        for folder, weights in zip(folders, (PROBED * np.eye(len(folders))).tolist(), strict=True)
    ]
    predictor = Predictor(of_base, alone)
    chosen = predictor.best()
    summed = scores("the sum", chosen.tolist()) if chosen.any() else of_base
    found = {
        "base": _figures(of_base),
        "predicted": _table(predictor.biases, *predictor.figures(chosen)),
        "scored": _figures(summed),
    }
    return Weighing(chosen.tolist(), pd.concat(found, axis=1))


def _by_example(scores: pd.DataFrame) -> pd.DataFrame:
    table = scores.pivot(index=["bias", "target", "example"], columns="candidate", values="score")
    return table[list(GOLD)]


def _figures(scores: pd.DataFrame) -> pd.DataFrame:
    means = stereoset_terms(scores).groupby("bias")[["ss", "lms"]].mean()
    return _table(list(means.index), means["ss"].to_numpy(), means["lms"].to_numpy())


def _table(biases: list[str], ss_B: np.ndarray, lms_B: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"SS": ss_B, "LMS": lms_B, "ICAT": icat(ss_B, lms_B)}, biases)
