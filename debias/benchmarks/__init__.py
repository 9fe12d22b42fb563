"""One file per benchmark: examples in, candidate texts out, figures from what the model makes of them.

A config file in `conf/eval/` names a benchmark's class. There are two kinds. A `LikelihoodBenchmark` says which texts
are compared: the evaluation scores them. A `MeasuredBenchmark` needs more of the model than likelihoods (hidden states,
completions, a task learned on top) and measures it itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pandas as pd

from debias.benchmarks.sampling import fingerprint
from debias.records import Candidate, Tokens

if TYPE_CHECKING:
    from debias.benchmarks.statistics import Comparison
    from debias.scoring.protocols import Protocol as ScoringProtocol
    from debias.scoring.scorer import Scorer


class BenchmarkBase(Protocol):
    """What the two kinds of benchmark have in common."""

    name: str

    @property
    def protocol_name(self) -> str:
        """How texts become scores; part of every record."""

    def fingerprint(self) -> str:
        """Checksum of the examples that will be scored. Raises UserError if they cannot be read."""

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The texts that the model is shown."""

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Figures of both models and their difference, from the rows of each; no model and no file is needed."""


class MeasuredBenchmark(BenchmarkBase, Protocol):
    """A benchmark that asks the model itself."""

    def measure(self, scorer: Scorer, candidates: Sequence[Candidate]) -> pd.DataFrame:
        """One row per result of the scorer's active model.

        The columns: example, candidate, bias, target, logprob (nats, or NaN), num_tokens, score.
        """


class LikelihoodBenchmark:
    """A benchmark that compares likelihoods of texts under a protocol (`debias.scoring.protocols`).

    Args:
        protocol: how a text becomes a likelihood.
        path: a file or folder in the authors' format; when empty the published one.
        limit: examples, a fixed sample, of whatever the benchmark draws from; all when empty.
        n_resamples: bootstrap resamples.
    """

    name: str

    def __init__(
        self, protocol: ScoringProtocol, path: str | None = None, limit: int | None = None, n_resamples: int = 9999
    ) -> None:
        self.protocol, self.limit, self.n_resamples = protocol, limit, n_resamples
        self.path = Path(path).expanduser() if path else None

    @property
    def protocol_name(self) -> str:
        """The protocol's name."""
        return self.protocol.name

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the examples."""
        return []

    def fingerprint(self) -> str:
        """SHA-256 of the examples."""
        return fingerprint(repr(tuple(candidate)) for candidate in self.candidates(Tokens(None, "causal")))

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The texts to score."""
        raise NotImplementedError

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Figures of both models and their difference."""
        raise NotImplementedError


Benchmark = LikelihoodBenchmark | MeasuredBenchmark
