"""CrowS-Pairs (Nangia et al. 2020): does the model prefer the more stereotyping of two nearly identical sentences?"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import per_bias, strata
from debias.benchmarks.statistics import Comparison, compare, ratio
from debias.records import Candidate, Tokens, UserError
from debias.scoring.protocols import Protocol


class CrowsPairs(LikelihoodBenchmark):
    """1,508 pairs on nine biases. SS is the percentage of pairs whose more stereotyping sentence is likelier.

    Args:
        protocol: turns a sentence into a likelihood.
        path: another file in the authors' format; null means the published one.
        limit: pairs per bias, a fixed sample; null means all.
        whole: biases scored in full, whatever `limit` is.
        n_resamples: bootstrap resamples.
    """

    name = "crows_pairs"

    def __init__(
        self,
        protocol: Protocol,
        path: str | None = None,
        limit: int | None = None,
        whole: Sequence[str] | str = (),
        n_resamples: int = 9999,
    ) -> None:
        super().__init__(protocol, path, limit, n_resamples)
        names = [whole] if isinstance(whole, str) else list(whole)
        self.whole = ["race-color" if name == "race" else name for name in names]

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Two sentences per pair."""
        return [
            Candidate(p[""], candidate, p["bias_type"], p["stereo_antistereo"], p[candidate])
            for p in self._pairs
            for candidate in ("sent_more", "sent_less")
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """SS overall, per bias, and for each kind of pair; the resampled unit is the pair.

        In a `stereo` pair one sentence demonstrates a stereotype, in an `antistereo` pair one sentence violates it.
        Overall, each bias counts by its number of pairs in the whole benchmark.
        """
        pairs = [metrics.crows_pairs(scores, self.protocol.ties) for scores in (base, debiased)]
        first = pairs[0]
        groups = {"overall": ("SS", first["ss"].notna())}
        groups |= {bias: ("SS", first["bias"] == bias) for bias in sorted(first["bias"].unique())}
        kinds = {f"overall, {kind}": (f"SS-{kind}", first["target"] == kind) for kind in ("stereo", "antistereo")}
        sampled = strata(first["bias"].to_numpy(), self.limit, lambda: Counter(p["bias_type"] for p in self._all))
        for name, (metric, chosen) in {**groups, **kinds}.items():
            if not chosen.any():
                continue
            bias, n = name.partition(",")[0], int(chosen.sum())
            if sampled is None or bias != "overall":
                before, after = ((p["ss"].to_numpy()[chosen],) for p in pairs)
                yield compare(
                    bias, metric, 50.0, n, metrics.mean_of_first, before, after, self.n_resamples,
                    pairs=self.protocol.ties == 0,
                )  # fmt: skip
            else:
                one, two = ((p["ss"].to_numpy() * chosen.to_numpy(), chosen.to_numpy()) for p in pairs)
                yield compare(bias, metric, 50.0, n, ratio, one, two, self.n_resamples, strata=sampled)

    @property
    def _pairs(self) -> list[dict[str, str]]:
        return per_bias(self._all, lambda p: p["bias_type"], lambda p: p[""], self.limit, self.whole)

    @cached_property
    def _all(self) -> list[dict[str, str]]:
        path = self.path or assets.locate("crows_pairs")
        try:
            with path.open(newline="", encoding="utf-8") as file:
                pairs = list(csv.DictReader(file))
            for line, pair in enumerate(pairs, start=2):
                if None in pair.values() or not pair["sent_less"] or not pair["bias_type"]:
                    raise ValueError(f"row {line} is incomplete")
            return pairs
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is not a CrowS-Pairs file ({error}); check eval.crows_pairs.path") from error
