"""BLiMP (Warstadt et al. 2020): is a grammatical sentence likelier than one that hardly differs and is not?"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import per_bias
from debias.benchmarks.statistics import Comparison, compare
from debias.records import Candidate, Tokens, UserError

FIELDS = ("sentence_good", "sentence_bad", "linguistics_term", "UID", "pairID")


class Blimp(LikelihoodBenchmark):
    """67,000 pairs in 67 paradigms of 12 phenomena; the figure is the percentage whose good sentence is likelier.

    Chance is 50. Seven published pairs have two identical sentences, which no model gets right.

    Args:
        protocol: how a sentence becomes a likelihood; the authors compare sums over the sentence (`unit=text`).
        path: another archive in the authors' format.
        limit: pairs per paradigm, a fixed sample; all 1,000 when empty.
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
        """Accuracy overall, the mean over paradigms, which are resampled; and per phenomenon, where pairs are."""
        pairs = [metrics.preferences(rows, "good", "bad") for rows in (base, debiased)]
        before, after = ((p.groupby("target")["preferred"].mean().to_numpy(),) for p in pairs)
        n = len(pairs[0])
        yield compare("overall", "accuracy", 100.0, n, metrics.mean_of_first, before, after, self.n_resamples)
        for phenomenon in sorted(pairs[0]["bias"].unique()):
            before, after = ((p.loc[p["bias"] == phenomenon, "preferred"].to_numpy(),) for p in pairs)
            yield compare(
                phenomenon, "accuracy", 100.0, len(before[0]), metrics.mean_of_first, before, after,
                self.n_resamples, pairs=True,
            )  # fmt: skip

    @cached_property
    def _pairs(self) -> list[dict[str, Any]]:
        path = self.path or assets.fetch(assets.REMOTE["blimp"])
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if n.startswith("data/") and n.endswith(".jsonl"))
                pairs = [pair for name in names for pair in _read(name, archive.read(name))]
            if not pairs:
                raise ValueError("it has no data/*.jsonl")
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: no BLiMP archive ({error}); check eval.blimp.path") from error
        return per_bias(pairs, lambda p: p["UID"], lambda p: f"{p['UID']}-{p['pairID']}", self.limit, ())


def _read(name: str, content: bytes) -> Iterator[dict[str, Any]]:
    """Pairs of one member of the archive, a JSON object a line."""
    for number, line in enumerate(content.decode().splitlines(), start=1):
        try:
            pair = json.loads(line)
            missing = [field for field in FIELDS if field not in pair]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
        if missing:
            raise ValueError(f"{name}, line {number}: no {missing[0]!r}")
        yield pair


def _phenomenon(pair: dict[str, Any]) -> str:
    """The paper's twelve phenomena: it counts the two paradigms of s-selection as argument structure (table 2)."""
    return {"s-selection": "argument_structure"}.get(pair["linguistics_term"], pair["linguistics_term"])
