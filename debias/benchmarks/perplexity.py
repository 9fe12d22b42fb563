"""Perplexity of running text: can the model still predict language?"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cached_property

import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import fingerprint
from debias.benchmarks.statistics import Comparison, compare
from debias.records import Candidate, Count, Tokens, UserError
from debias.scoring.protocols import Protocol


class Perplexity(LikelihoodBenchmark):
    """exp of the mean negative log-likelihood per token, over windows that each begin with the start token.

    For a masked model it is the pseudo-perplexity (Salazar et al. 2020): each token is predicted from all the others.

    Args:
        protocol: turns a window into a likelihood (`conditional`).
        path: a text file that is cut into windows as one text, such as WikiText-2; null means the Wikipedia passages of
            GAP test, each cut on its own.
        window: longest window in tokens; null means 512 for a causal model and 64 for a masked one, which needs one
            pass over the window for every token in it.
        limit: windows, evenly spaced over the text; null means all.
        n_resamples: bootstrap resamples of windows.
    """

    name = "perplexity"

    def __init__(
        self,
        protocol: Protocol,
        path: str | None = None,
        window: Count | None = None,
        limit: Count | None = None,
        n_resamples: Count = 9999,
    ) -> None:
        super().__init__(protocol, path, limit, n_resamples)
        self.window = window

    def fingerprint(self) -> str:
        """SHA-256 of the text."""
        return fingerprint(self._documents)

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """One text per window; `target` holds its number of words."""
        encoded = tokens.tokenizer(
            self._documents, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        window = self.window or {"causal": 512, "masked": 64}[tokens.kind]
        windows = []
        for i, offsets in enumerate(encoded.offset_mapping):
            document = self._documents[i]
            for k in range(0, len(offsets), window):
                first, last = offsets[k], offsets[min(k + window, len(offsets)) - 1]
                text = document[first[0] : last[1]]
                windows.append(Candidate(f"{i}:{k}", "window", "all", f"{len(text.split())} words", text))
        if self.limit is not None and self.limit < len(windows):
            windows = [windows[k * len(windows) // self.limit] for k in range(self.limit)]
        return windows

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Perplexity per token and per word; the resampled unit is the window. Lower is better: the ideal is 1."""
        words = base["target"].str.split().str[0].astype(float).to_numpy()
        for metric, count in (("perplexity", base["num_tokens"].to_numpy()), ("per word", words)):
            before, after = ((s["logprob"].to_numpy(), count) for s in (base, debiased))
            yield compare("all", metric, 1.0, len(base), metrics.perplexity, before, after, self.n_resamples)

    @cached_property
    def _documents(self) -> list[str]:
        path = self.path or assets.locate("gap-test")
        try:
            if self.path:
                return [path.read_text(encoding="utf-8")]
            with path.open(newline="", encoding="utf-8") as file:
                return [row["Text"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: cannot be read as text ({error}); check eval.perplexity.path") from error
