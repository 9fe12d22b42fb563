"""BLiMP (Warstadt et al. 2020): is a grammatical sentence likelier than its minimally different ungrammatical twin?"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.statistics import Comparison, compare, compare_means
from debias.records import Candidate, Tokens, UserError

FIELDS = ("sentence_good", "sentence_bad", "linguistics_term", "UID", "pairID")


class Blimp(LikelihoodBenchmark):
    """67,000 pairs in 67 paradigms of 12 phenomena. Accuracy is the percentage whose good sentence is likelier.

    Chance is 50. Seven published pairs consist of two identical sentences, so no model gets them right.

    Args:
        protocol: turns a sentence into a likelihood; the authors compare sums over the sentence (`unit=text`).
        path: another archive in the authors' format; null means the published one.
        limit: pairs per paradigm, a fixed sample; null means all 1,000.
        n_resamples: bootstrap resamples.
    """

    name = "blimp"

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Two sentences per pair; `bias` is the phenomenon and `target` the paradigm."""
        return [
            Candidate(f"{p['UID']}-{p['pairID']}", side, _phenomenon(p), p["UID"], p[f"sentence_{side}"])
            for p in self._pairs
            for side in ("good", "bad")
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Accuracy overall, the mean over paradigms, and per phenomenon; the resampled unit is the paradigm."""
        pairs = [metrics.preferences(rows, "good", "bad") for rows in (base, debiased)]
        before, after = ((p.groupby("target")["preferred"].mean().to_numpy(),) for p in pairs)
        n = len(pairs[0])
        yield compare("overall", "accuracy", 100.0, n, metrics.mean_of_first, before, after, self.n_resamples)
        for phenomenon in sorted(pairs[0]["bias"].unique()):
            one, two = (p[p["bias"] == phenomenon] for p in pairs)
            yield compare_means(
                phenomenon, "accuracy", 100.0, one["preferred"].to_numpy(), two["preferred"].to_numpy(),
                one["target"].to_numpy(), self.n_resamples,
            )  # fmt: skip

    @cached_property
    def _pairs(self) -> list[dict[str, Any]]:
        path = self.path or assets.fetch(assets.REMOTE["blimp"])
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if n.startswith("data/") and n.endswith(".jsonl"))
                pairs = [pair for name in names for pair in _read(name, archive.read(name))]
            if not pairs:
                raise ValueError("no data/*.jsonl in it")
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a BLiMP archive ({error}); check eval.blimp.path") from error
        return self.sample(pairs, lambda p: p["UID"], lambda p: f"{p['UID']}-{p['pairID']}")


def _read(name: str, content: bytes) -> Iterator[dict[str, Any]]:
    """Pairs of one file of the archive, one JSON object per line."""
    for number, line in enumerate(content.decode().removesuffix("\n").split("\n"), start=1):
        try:
            pair = json.loads(line)
            missing = [field for field in FIELDS if field not in pair]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
        if missing:
            raise ValueError(f"{name}, line {number} has no {missing[0]!r}")
        yield pair


def _phenomenon(pair: dict[str, Any]) -> str:
    """The paper's twelve phenomena: its table 2 counts the two s-selection paradigms as argument structure."""
    return {"s-selection": "argument_structure"}.get(pair["linguistics_term"], pair["linguistics_term"])
