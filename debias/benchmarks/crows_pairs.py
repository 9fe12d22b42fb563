"""CrowS-Pairs (Nangia et al. 2020): of two nearly equal sentences, does the model prefer the more stereotyping one?"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from debias import assets, metrics
from debias.benchmarks.sampling import fingerprint, per_bias
from debias.records import Candidate, UserError
from debias.statistics import Comparison, compare


class CrowsPairs:
    """1,508 pairs on nine biases; the figure is the percentage of pairs whose more stereotyping sentence is likelier.

    Args:
        protocol: how a sentence becomes a log-likelihood; sentences are compared by the mean per token.
        path: another file in the authors' format.
        limit: pairs per bias, a fixed sample; all when empty.
        whole: biases that are scored whole in spite of `limit`.
        n_resamples: bootstrap resamples.
    """

    name = "crows_pairs"

    def __init__(
        self,
        protocol: Any,
        path: str | None = None,
        limit: int | None = None,
        whole: Sequence[str] | str = (),
        n_resamples: int = 9999,
    ) -> None:
        self.protocol, self.limit, self.n_resamples = protocol, limit, n_resamples
        names = [whole] if isinstance(whole, str) else list(whole)
        self.whole = ["race-color" if name == "race" else name for name in names]
        self._path = path

    def fingerprint(self) -> str:
        """SHA-256 of the chosen pairs."""
        return fingerprint(p[""] + p["sent_more"] + p["sent_less"] for p in self._pairs)

    def candidates(self, tokenizer: Any) -> list[Candidate]:
        """Two sentences per pair."""
        return [
            Candidate(p[""], candidate, p["bias_type"], p["stereo_antistereo"], p[candidate])
            for p in self._pairs
            for candidate in ("sent_more", "sent_less")
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """The stereotype score per bias and overall; the resampled unit is the pair."""
        pairs = [metrics.crows_pairs(scores) for scores in (base, debiased)]
        for bias in ("overall", *sorted(pairs[0]["bias"].unique())):
            of = [p if bias == "overall" else p[p["bias"] == bias] for p in pairs]
            columns = [(p["ss"].to_numpy(),) for p in of]
            yield compare(bias, "SS", 50.0, len(of[0]), metrics.mean_of_first, columns[0], columns[1], self.n_resamples)

    @cached_property
    def _pairs(self) -> list[dict[str, str]]:
        path = Path(self._path).expanduser() if self._path else assets.locate("crows_pairs")
        try:
            with path.open(newline="", encoding="utf-8") as file:
                pairs = list(csv.DictReader(file))
            return per_bias(pairs, lambda p: p["bias_type"], lambda p: p[""], self.limit, self.whole)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: no CrowS-Pairs file ({error}); check eval.crows_pairs.path") from error
