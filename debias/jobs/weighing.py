"""`adapter.weights=auto`: the weights of a sum of adapters that keep SS near 50 on StereoSet dev.

What an adapter adds to a module is its weight times a constant, and what it adds to a sentence's score nearly so. So
each adapter is scored once, every sum is predicted from these scores, and the best one is scored to see. By how much it
was missed mends the prediction, and another is chosen; of those that were scored, the best is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
ROUNDS = 3  # sums that are scored at most


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

    What a sum adds is linear in its weights, plus what scored sums were found to miss (`learn`): a second-order term,
    taken to grow with the squared length.
    """

    def __init__(self, base: pd.DataFrame, alone: Sequence[pd.DataFrame], probed: float = PROBED) -> None:
        of_base, *of_adapters = (_by_example(scores) for scores in (base, *alone))
        self.base_E3 = of_base.to_numpy()
        self.added_JE3 = np.stack([(scores.to_numpy() - self.base_E3) / probed for scores in of_adapters])
        self.missed_E3 = np.zeros_like(self.base_E3)  # for a squared length of 1
        bias_E, term_E = (of_base.index.get_level_values(name).to_numpy() for name in ("bias", "target"))
        self.biases = sorted(set(bias_E))
        # The mean over a bias's target terms of the mean over a term's examples, as a weight of each example.
        sizes_E = pd.Series(1, of_base.index).groupby(["bias", "target"]).transform("size").to_numpy()
        terms = pd.Series(term_E).groupby(bias_E).nunique()
        self.share_BE = np.stack([(bias_E == bias) / sizes_E / terms[bias] for bias in self.biases])

    def predicted(self, weights_J: np.ndarray) -> np.ndarray:
        """Scores of the examples' three candidates, of shape (E, 3)."""
        linear_E3 = self.base_E3 + np.tensordot(weights_J, self.added_JE3, 1)
        return linear_E3 + weights_J @ weights_J * self.missed_E3

    def learn(self, weights_J: np.ndarray, scores: pd.DataFrame) -> None:
        """Mend the prediction by a sum's scores, as `Scorer.score` returns them; that sum is then predicted exactly."""
        self.missed_E3 += (_by_example(scores).to_numpy() - self.predicted(weights_J)) / (weights_J @ weights_J)

    def figures(self, weights_J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SS and LMS of each bias, of shape (B,)."""
        stereotype_E, anti_E, unrelated_E = self.predicted(weights_J).T
        lms_E = ((stereotype_E > unrelated_E).astype(float) + (anti_E > unrelated_E)) / 2
        return 100 * self.share_BE @ (stereotype_E > anti_E), 100 * self.share_BE @ lms_E

    def worth(self, weights_J: np.ndarray) -> float:
        """As predicted."""
        return worth(icat(*self.figures(weights_J)), weights_J)

    def best(self) -> np.ndarray:
        """The weights of greatest worth: one after the other is moved along a grid, from several starts."""
        grid = np.arange(0.0, HIGHEST + STEP / 2, STEP)
        count = len(self.added_JE3)
        starts = [np.zeros(count), *(np.random.default_rng(0).choice(grid, (STARTS, count)))]
        return max((self._climbed(start, grid) for start in starts), key=self.worth).round(2)

    def _climbed(self, weights_J: np.ndarray, grid: np.ndarray) -> np.ndarray:
        found, before = self.worth(weights_J), -np.inf
        while found > before:
            before = found
            for j in range(len(weights_J)):
                moved = [np.where(np.arange(len(weights_J)) == j, value, weights_J) for value in grid]
                worths = [self.worth(weights) for weights in moved]
                if max(worths) > found:
                    found, weights_J = max(worths), moved[int(np.argmax(worths))]
        return weights_J


def worth(icat_B: np.ndarray, weights_J: np.ndarray) -> float:
    """Mean ICAT over the biases, less the price of the sum's length."""
    return float(np.mean(icat_B) - PRICE * weights_J @ weights_J)


def weighed(base: Base, folders: Sequence[Path]) -> Weighing:
    """Score each adapter on StereoSet dev, and choose the weights of their sum."""
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
    return chosen(of_base, alone, scores)


def chosen(
    of_base: pd.DataFrame, alone: Sequence[pd.DataFrame], scores: Callable[[str, list[float]], pd.DataFrame]
) -> Weighing:
    """The sum of greatest worth of those that were scored; no weights at all (the base) count as one.

    Args:
        of_base: scores of the base.
        alone: scores with each adapter alone, at weight `PROBED`.
        scores: gives those of a sum, by its name in the log and its weights.
    """
    predictor = Predictor(of_base, alone)
    weights_J = np.zeros(len(alone))
    tried = [Weighing(weights_J.tolist(), _beside(predictor, weights_J, of_base, of_base))]
    while len(tried) <= ROUNDS:
        weights_J = predictor.best()
        if any(one.weights == weights_J.tolist() for one in tried):
            break
        summed = scores(f"sum {len(tried)}", weights_J.tolist())
        tried.append(Weighing(weights_J.tolist(), _beside(predictor, weights_J, of_base, summed)))
        predictor.learn(weights_J, summed)
    return max(tried, key=lambda one: worth(one.figures["scored", "ICAT"].to_numpy(), np.array(one.weights)))


def _beside(predictor: Predictor, weights_J: np.ndarray, base: pd.DataFrame, summed: pd.DataFrame) -> pd.DataFrame:
    predicted = _table(predictor.biases, *predictor.figures(weights_J))
    return pd.concat({"base": _figures(base), "predicted": predicted, "scored": _figures(summed)}, axis=1)


def _by_example(scores: pd.DataFrame) -> pd.DataFrame:
    table = scores.pivot(index=["bias", "target", "example"], columns="candidate", values="score")
    return table[list(GOLD)]


def _figures(scores: pd.DataFrame) -> pd.DataFrame:
    means = stereoset_terms(scores).groupby("bias")[["ss", "lms"]].mean()
    return _table(list(means.index), means["ss"].to_numpy(), means["lms"].to_numpy())


def _table(biases: list[str], ss_B: np.ndarray, lms_B: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"SS": ss_B, "LMS": lms_B, "ICAT": icat(ss_B, lms_B)}, biases)
