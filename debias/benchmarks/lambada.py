"""LAMBADA (Paperno et al. 2016): can the model guess the last word of a passage, which needs the whole passage?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.statistics import Comparison, compare
from debias.records import Candidate, Cloze, Tokens, UserError


class Lambada(LikelihoodBenchmark):
    """5,153 passages. Accuracy is how often the last word is the likeliest one; perplexity is that of the last word.

    The file is the one prepared for GPT-2 (Radford et al. 2019), with case and line breaks. The last word is whatever
    follows the last white space; in 38 passages it includes a quotation mark or similar.

    Args:
        protocol: turns the word into a likelihood and a hit (`debias.scoring.protocols.Greedy`).
        path: another file with one `{"text": ...}` per line; null means the published one.
        limit: passages, a fixed sample; null means all.
        n_resamples: bootstrap resamples.
    """

    name = "lambada"

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """One text per passage; its last word fills the blank."""
        return [_candidate(number, text) for number, text in self._passages]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Accuracy and perplexity per word; the resampled unit is the passage."""
        before, after = ((100.0 * rows["score"].to_numpy(),) for rows in (base, debiased))
        yield compare(
            "all", "accuracy", 100.0, len(base), metrics.mean_of_first, before, after, self.n_resamples, pairs=True
        )
        words = np.ones(len(base))
        one, two = ((rows["logprob"].to_numpy(), words) for rows in (base, debiased))
        yield compare("all", "perplexity", 1.0, len(base), metrics.perplexity, one, two, self.n_resamples)

    @cached_property
    def _passages(self) -> list[tuple[int, str]]:
        """Line numbers and texts."""
        path = self.path or assets.fetch(assets.REMOTE["lambada"])
        try:
            lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
            passages = [_passage(number, line) for number, line in enumerate(lines, start=1)]
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a LAMBADA file ({error}); check eval.lambada.path") from error
        return self.sample(passages, lambda _: "all", lambda p: str(p[0]))


def _passage(number: int, line: str) -> tuple[int, str]:
    try:
        text = json.loads(line)["text"].rstrip()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"line {number} has no text, {type(error).__name__}: {error}") from error
    if len(text.split()) < 2:
        raise ValueError(f"line {number} has fewer than two words")
    return number, text


def _candidate(number: int, text: str) -> Candidate:
    word = text.split()[-1]
    return Candidate(str(number), "word", "all", word, text, Cloze(text[: -len(word)], word))
