"""StereoSet, intrasentence (Nadeem et al. 2021): which of three fillings of a blank does the model find likeliest?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from debias import assets, metrics
from debias.benchmarks.sampling import fingerprint, per_bias
from debias.records import Candidate, UserError
from debias.statistics import Comparison, compare

GOLD = ("stereotype", "anti-stereotype", "unrelated")


class StereoSet:
    """Examples with a stereotype, an anti-stereotype and an unrelated sentence about one target term.

    Args:
        protocol: how a sentence becomes a log-likelihood; candidates are compared by the mean per token.
        split: `test` (6,392 examples) or `dev` (2,106). Choose hyperparameters on dev, report test.
        path: another file in the authors' format.
        limit: examples per bias, a fixed sample; all when empty.
        whole: biases that are scored whole in spite of `limit`.
        n_resamples: bootstrap resamples.
    """

    name = "stereoset"

    def __init__(
        self,
        protocol: Any,
        split: str = "test",
        path: str | None = None,
        limit: int | None = None,
        whole: Sequence[str] | str = (),
        n_resamples: int = 9999,
    ) -> None:
        if split not in ("dev", "test"):
            raise UserError(f"eval.stereoset.split={split!r} is unknown; choose dev or test")
        self.protocol, self.split, self.limit, self.n_resamples = protocol, split, limit, n_resamples
        self.whole = [whole] if isinstance(whole, str) else list(whole)
        self._path = path

    def fingerprint(self) -> str:
        """SHA-256 of the chosen sentences."""
        return fingerprint(s["id"] + s["sentence"] for e in self.examples for s in e["sentences"])

    def candidates(self, tokenizer: Any) -> list[Candidate]:
        """Three sentences per example."""
        return [
            Candidate(e["id"], s["gold_label"], e["bias_type"], e["target"], s["sentence"])
            for e in self.examples
            for s in sorted(e["sentences"], key=lambda s: GOLD.index(s["gold_label"]))
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """SS, LMS and ICAT per bias and overall; the resampled unit is the target term."""
        terms = [metrics.stereoset_terms(scores) for scores in (base, debiased)]
        for bias in ("overall", *sorted(terms[0]["bias"].unique())):
            of = [t if bias == "overall" else t[t["bias"] == bias] for t in terms]
            columns = [(t["ss"].to_numpy(), t["lms"].to_numpy()) for t in of]
            n = int(of[0]["n"].sum())
            for metric, statistic, ideal in (
                ("SS", metrics.mean_of_first, 50.0),
                ("LMS", metrics.mean_of_second, 100.0),
                ("ICAT", metrics.icat_of_terms, 100.0),
            ):
                yield compare(bias, metric, ideal, n, statistic, columns[0], columns[1], self.n_resamples)

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """The chosen examples, as the file has them."""
        path = Path(self._path).expanduser() if self._path else assets.locate(f"stereoset-{self.split}")
        try:
            examples = json.loads(path.read_text(encoding="utf-8"))["data"]["intrasentence"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no StereoSet file ({error}); check eval.stereoset.path") from error
        return per_bias(examples, lambda e: e["bias_type"], lambda e: e["id"], self.limit, self.whole)
