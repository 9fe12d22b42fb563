"""One file per benchmark: examples in, scored candidates out, figures from the scores.

A benchmark is any object with the attributes of `Benchmark`; a config file in `conf/eval/` names its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from debias.records import Candidate

if TYPE_CHECKING:
    from debias.statistics import Comparison


class Benchmark(Protocol):
    """What the evaluation needs of a benchmark."""

    name: str
    protocol: Any  # debias.likelihood.Protocol

    def fingerprint(self) -> str:
        """Checksum of the examples that will be scored."""

    def candidates(self, tokenizer: Any) -> list[Candidate]:
        """The texts to score."""

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Figures of both models and their difference, from one row per candidate (columns of likelihoods.parquet)."""
