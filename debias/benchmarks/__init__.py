"""One file per benchmark: it reads examples, lists the texts to score, and turns their scores into figures.

Each file in `conf/eval/` names a class of one of two kinds. A `LikelihoodBenchmark` only lists texts: the evaluation
scores them. A `MeasuredBenchmark` needs more than likelihoods (hidden states, completions, a trained classifier), so
it runs the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import pandas as pd

from debias.benchmarks.sampling import fingerprint, per_bias
from debias.records import Candidate, Count, Tokens
from debias.wording import counted

if TYPE_CHECKING:
    from debias.benchmarks.statistics import Comparison
    from debias.scoring.protocols import Protocol as ScoringProtocol
    from debias.scoring.scorer import Scorer

Example = TypeVar("Example")


class BenchmarkBase(Protocol):
    """What both kinds of benchmark provide."""

    name: str

    @property
    def protocol_name(self) -> str:
        """Name of the way texts become scores; it is written to every record."""

    def fingerprint(self) -> str:
        """Checksum of the examples to score. Raises UserError if they cannot be read."""

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The texts to show the model."""

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Figures of both models and their difference, computed from scored rows alone: needs no model and no file."""


class MeasuredBenchmark(BenchmarkBase, Protocol):
    """A benchmark that runs the model itself."""

    def measure(self, scorer: Scorer, candidates: Sequence[Candidate]) -> pd.DataFrame:
        """One row per result of the scorer's active model.

        Columns: example, candidate, bias, target, logprob (nats, or NaN), num_tokens, score.
        """


class LikelihoodBenchmark:
    """A benchmark that compares the likelihoods of texts.

    Args:
        protocol: turns a text into a likelihood; see `debias.scoring.protocols`.
        path: a file or folder in the authors' format; null means the published one.
        limit: size of the fixed sample, per group if the benchmark has groups; null means all examples.
        n_resamples: bootstrap resamples.
    """

    name: str

    def __init__(
        self, protocol: ScoringProtocol, path: str | None = None, limit: Count | None = None, n_resamples: Count = 9999
    ) -> None:
        self.protocol, self.limit, self.n_resamples = protocol, limit, n_resamples
        self.path = Path(path).expanduser() if path else None
        self._left_out = ""

    @property
    def protocol_name(self) -> str:
        """The protocol's name."""
        return self.protocol.name

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know about the examples."""
        return [self._left_out] if self._left_out else []

    def sample(
        self,
        examples: Sequence[Example],
        bias: Callable[[Example], str],
        identity: Callable[[Example], str],
        whole: Sequence[str] = (),
    ) -> list[Example]:
        """The fixed sample that `limit` asks for; a note says so if it is of a file of the user's own."""
        kept = per_bias(examples, bias, identity, self.limit, whole)
        if self.path and len(kept) < len(examples):
            scored = f"scores {len(kept):,} of the {counted(len(examples), 'example')} of {self.path}"
            self._left_out = f"{self.name}: {scored}; all of them with eval.{self.name}.limit=null"
        return kept

    def fingerprint(self) -> str:
        """SHA-256 of the candidates."""
        return fingerprint(repr(tuple(candidate)) for candidate in self.candidates(Tokens(None, "causal")))

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The texts to score."""
        raise NotImplementedError

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Figures of both models and their difference."""
        raise NotImplementedError


Benchmark = LikelihoodBenchmark | MeasuredBenchmark
