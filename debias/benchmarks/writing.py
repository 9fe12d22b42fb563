"""Written text: how a model goes on after beginnings, which no likelihood of given text shows."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from debias.benchmarks import metrics
from debias.benchmarks.sampling import fingerprint
from debias.benchmarks.statistics import Comparison, compare, ratio
from debias.progress import bar
from debias.records import Candidate, Count, Seed, Span, Tokens, UserError
from debias.run_identity import code_sha256
from debias.scoring.spans import after, start_id

if TYPE_CHECKING:
    from debias.scoring.scorer import Scorer

BEGINNINGS = Path(__file__).with_name("beginnings.csv")  # our own
TOP_P = 0.9  # the likeliest tokens with this share of the probability may be drawn, as in `debias show`
ROWS = 64  # texts written at once
GRAM = 4  # tokens in a row that make a repetition


class WrittenText:
    """Sampled continuations of beginnings of many kinds. Base and debiased model draw with the same random numbers.

    `repetition` is the percentage of runs of four tokens that the continuation held before. `variety` is the percentage
    of distinct ones among the pairs of neighbouring words. `perplexity to the base` is the base's perplexity of what
    either model wrote, end token included. `length` is in tokens.

    Args:
        path: a text file with other beginnings, one a line; null means our own.
        longest: new tokens at most, fewer where the model ends its text.
        seed: of the sampling.
        n_resamples: bootstrap resamples of beginnings.
    """

    name = "writing"
    protocol_name = "sampled"

    def __init__(self, path: str | None = None, longest: Count = 40, seed: Seed = 1, n_resamples: Count = 9999) -> None:
        self.path = Path(path).expanduser() if path else None
        self.longest, self.seed, self.n_resamples = longest, seed, n_resamples

    def fingerprint(self) -> str:
        """SHA-256 of the beginnings."""
        return fingerprint(text for _, text in self._beginnings)

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The beginnings; `target` is the kind of text. Raises UserError for a masked model."""
        if tokens.kind != "causal":
            raise UserError("eval=writing needs a causal model and this one is masked; choose other benchmarks")
        return [
            Candidate(str(number), "beginning", "all", kind, text)
            for number, (kind, text) in enumerate(self._beginnings, start=1)
        ]

    def measure(self, scorer: Scorer, candidates: Sequence[Candidate]) -> pd.DataFrame:
        """Three rows per beginning: the text under the base, and counts of what `score` counts among `num_tokens`."""
        from debias.scoring.writing import end_tokens  # with torch, which a report over finished runs does not need

        tokenizer = scorer.tokens.tokenizer
        start, ends = start_id(tokenizer), end_tokens(scorer.base.model)
        encoded = tokenizer([c.text for c in candidates], add_special_tokens=False).input_ids
        begins = [(start, *after(start, ids)) for ids in encoded]
        code = code_sha256("benchmarks/writing.py")
        content = f"written {TOP_P} {ROWS} {self.longest} {self.seed} {code} {sorted(ends)} {begins}".encode()
        written_NT = scorer.cached([content], lambda: self._written(scorer, begins))
        texts = [tuple(row_T[row_T >= 0].tolist()) for row_T in written_NT]
        with scorer.using("base"):
            spans = [Span(begin + text, len(begin)) for begin, text in zip(begins, texts, strict=True)]
            logprob_N = scorer.logprobs(spans, self.name)[:, 0]
        rows: list[tuple[str, str, str, str, float, int, float]] = []
        for candidate, text, logprob in zip(candidates, texts, logprob_N, strict=True):
            said = text[:-1] if text[-1] in ends else text
            place = candidate.example, candidate.bias, candidate.target
            for name, value, (count, of) in (
                ("text", logprob, (logprob / len(text), len(text))),
                ("repeated", np.nan, repeated(said)),
                ("distinct", np.nan, distinct(tokenizer.decode(said, skip_special_tokens=True))),
            ):
                rows.append((place[0], name, *place[1:], float(value), of, float(count)))
        return pd.DataFrame(rows, columns=["example", "candidate", "bias", "target", "logprob", "num_tokens", "score"])

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """The resampled unit is the beginning. Of a perplexity, a variety or a length, nobody can say which is best."""
        models = [dict(iter(frame.groupby("candidate"))) for frame in (base, debiased)]
        n = len(models[0]["text"])
        for metric, of, ideal in (("repetition", "repeated", 0.0), ("variety", "distinct", None)):
            before, after = ((100.0 * m[of]["score"].to_numpy(), m[of]["num_tokens"].to_numpy()) for m in models)
            yield compare("all", metric, ideal, n, ratio, before, after, self.n_resamples)
        one, two = ((m["text"]["logprob"].to_numpy(), m["text"]["num_tokens"].to_numpy()) for m in models)
        yield compare("all", "perplexity to the base", None, n, metrics.perplexity, one, two, self.n_resamples)
        yield compare("all", "length", None, n, metrics.mean_of_first, one[1:], two[1:], self.n_resamples)

    def _written(self, scorer: Scorer, begins: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Token ids of the active model's continuations with their end token, padded with -1, shape (N, T)."""
        import torch

        from debias.scoring.writing import drawn, end_tokens

        room, ends = scorer.max_positions, end_tokens(scorer.base.model)
        longest, fullest = self.longest, max(range(len(begins)), key=lambda number: len(begins[number]))
        if room is not None:  # the last token of a text is not read
            longest = min(longest, room + 1 - len(begins[fullest]))
        if longest < 1:
            which = f"beginning {fullest + 1} of {self.path or BEGINNINGS}"
            raise UserError(f"{which} fills the model's {room} tokens; shorten it (eval.writing.path)")
        # Beginnings of one length share a batch: nothing is padded, which some architectures would read. Each batch has
        # a seed of its own, so that both models draw alike, also where one of them ends its texts earlier.
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, begin in enumerate(begins):
            by_length[len(begin)].append(number)
        batches = [some[k : k + ROWS] for some in by_length.values() for k in range(0, len(some), ROWS)]
        written_NT = np.full((len(begins), longest), -1)
        with torch.random.fork_rng():
            for batch in bar(f"writing, {scorer.active} model")(batches, len(batches)):
                torch.manual_seed(int(np.random.SeedSequence((self.seed, batch[0])).generate_state(1)[0]))
                begin_NT = torch.tensor([begins[number] for number in batch], device=scorer.device)
                for number, ids in zip(batch, drawn(scorer.model, begin_NT, longest, TOP_P), strict=True):
                    end = next((k for k, token in enumerate(ids, start=1) if token in ends), len(ids))
                    written_NT[number, :end] = ids[:end]
        scorer.positions += int((written_NT >= 0).sum())
        return written_NT

    @cached_property
    def _beginnings(self) -> list[tuple[str, str]]:
        """Kinds and texts."""
        path = self.path or BEGINNINGS
        try:
            if self.path:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
                found = [("own", line.strip()) for line in lines if line.strip()]
            else:
                with path.open(newline="", encoding="utf-8") as file:
                    found = [(row["kind"], row["beginning"]) for row in csv.DictReader(file)]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); check eval.writing.path") from error
        if not found:
            raise UserError(f"{path}: there is no beginning in this file; write one a line (eval.writing.path)")
        return found


def repeated(tokens: Sequence[int]) -> tuple[int, int]:
    """How many runs of four tokens occurred before, and how many there are."""
    runs = [tuple(tokens[k : k + GRAM]) for k in range(len(tokens) - GRAM + 1)]
    return len(runs) - len(set(runs)), len(runs)


def distinct(text: str) -> tuple[int, int]:
    """How many different pairs of neighbouring words a text has, and how many pairs, ignoring case and punctuation."""
    pairs = list(pairwise(re.findall(r"\w+", text.casefold())))
    return len(set(pairs)), len(pairs)
