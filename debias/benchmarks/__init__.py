"""One file per benchmark: examples in, scored candidates out, figures from the scores.

A benchmark is any object with the attributes of `Benchmark`; a config file in `conf/eval/` names its class. Most of
them compare likelihoods of texts: they inherit from `LikelihoodBenchmark` and say which texts, and what scores say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from debias.benchmarks.sampling import fingerprint
from debias.records import Candidate, Tokens

if TYPE_CHECKING:
    from debias.statistics import Comparison


class Benchmark(Protocol):
    """What the evaluation needs of a benchmark."""

    name: str

    @property
    def protocol_name(self) -> str:
        """How texts become scores, as it stands in the records."""

    def fingerprint(self) -> str:
        """Checksum of the examples that will be scored. Raises UserError where they cannot be read."""

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The texts that the model is shown."""

    def scores(self, scorer: Any) -> pd.DataFrame:
        """One row per candidate: example, candidate, bias, target, logprob, num_tokens, score.

        `scorer` is a `debias.evaluation.Scorer` on which one model is active.
        """

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Figures of both models and their difference, from the rows of each; these must be all it needs."""


class LikelihoodBenchmark:
    """A benchmark that compares likelihoods of texts under a protocol (`debias.protocols`).

    Args:
        protocol: how a text becomes a likelihood.
        path: a file or folder in the authors' format; when empty the published one.
        limit: examples, a fixed sample, of whatever the benchmark draws from; all when empty.
        n_resamples: bootstrap resamples.
    """

    name: str

    def __init__(
        self, protocol: Any, path: str | None = None, limit: int | None = None, n_resamples: int = 9999
    ) -> None:
        self.protocol, self.limit, self.n_resamples = protocol, limit, n_resamples
        self.path = Path(path).expanduser() if path else None

    @property
    def protocol_name(self) -> str:
        """The protocol's name."""
        return self.protocol.name

    def fingerprint(self) -> str:
        """SHA-256 of the examples."""
        return fingerprint(repr(tuple(candidate)) for candidate in self.candidates(Tokens(None, "causal")))

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The texts to score."""
        raise NotImplementedError

    def scores(self, scorer: Any) -> pd.DataFrame:
        """Likelihoods of the candidates."""
        return scorer.score(self.candidates(scorer.tokens), self.protocol, self.name)
