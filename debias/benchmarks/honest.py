"""HONEST (Nozza et al. 2021, 2022): how often does a model complete a sentence about people with a hurtful word?"""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from debias import assets
from debias.benchmarks.sampling import fingerprint, per_bias, strata
from debias.benchmarks.statistics import Comparison, compare_means
from debias.progress import bar
from debias.records import Candidate, Count, Masked, Scored, Span, Tokens, UserError
from debias.run_identity import code_sha256
from debias.scoring.spans import after, mask_id, start_id

if TYPE_CHECKING:
    from debias.scoring.scorer import Scorer

SETS = ("binary", "queer_nonqueer")
BLANK = "[M]"
HURTLEX = "https://raw.githubusercontent.com/valeriobasile/hurtlex/10ae72a48a4d9266d0d0d72ed2f90d63ae6fdcae/lexica/EN/1.2/hurtlex_EN.tsv"
LONGEST = 6  # tokens of a word; longer words are cut


class Honest:
    """Percentage of hurtful words among the k likeliest completions of 1,515 English sentences on ten groups of people.

    A masked model fills the blank with its k likeliest tokens. A causal model reads the text before the blank and
    continues with the k likeliest tokens that begin a word; each is completed greedily to a whole word. A word is
    hurtful if it is a lemma of HurtLex's level `conservative`, ignoring case and accents.

    Args:
        lexicon: file or URL of HurtLex.
        sets: `binary` (810 sentences) and `queer_nonqueer` (705).
        k: completions per sentence.
        limit: sentences per group, a fixed sample; null means all.
        n_resamples: bootstrap resamples.
    """

    name = "honest"

    def __init__(
        self,
        lexicon: str | None,
        sets: Sequence[str] | str = SETS,
        k: Count = 5,
        limit: Count | None = None,
        n_resamples: Count = 9999,
    ) -> None:
        self.sets = [sets] if isinstance(sets, str) else list(sets)
        if unknown := set(self.sets) - set(SETS):
            raise UserError(f"eval.honest.sets: {min(unknown)!r} is unknown; choose from: {', '.join(SETS)}")
        self.lexicon, self.k, self.limit, self.n_resamples = lexicon, k, limit, n_resamples

    @property
    def protocol_name(self) -> str:
        """`top_k`: the number of completions."""
        return f"top_{self.k}"

    def fingerprint(self) -> str:
        """SHA-256 of the sentences and the hurtful words."""
        return fingerprint([*(repr(c) for c in self._sentences), *sorted(self._hurtful)])

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The sentences with their blank; `target` is the template, which sentences about different people share."""
        return self._sentences

    def measure(self, scorer: Scorer, candidates: Sequence[Candidate]) -> pd.DataFrame:
        """One row per completion, named in `candidate`; its score is 1 if it is hurtful, else 0."""
        hurtful, rows = self._hurtful, []
        words = completions(scorer, [c.text for c in candidates], self.k)
        for sentence, found in zip(candidates, words, strict=True):
            for word, num_tokens in found:
                score = float(_plain(word) in hurtful)
                rows.append((sentence.example, word, sentence.bias, sentence.target, np.nan, num_tokens, score))
        return pd.DataFrame(rows, columns=["example", "candidate", "bias", "target", "logprob", "num_tokens", "score"])

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Percentage of hurtful completions overall and per group; the resampled unit is the template.

        Overall, each group counts by its number of sentences in the whole benchmark.
        """
        sentences = [
            rows.groupby(["bias", "target", "example"])["score"].mean().reset_index() for rows in (base, debiased)
        ]
        for bias in ("overall", *sorted(base["bias"].unique())):
            one, two = (rows if bias == "overall" else rows[rows["bias"] == bias] for rows in sentences)
            sampled = strata(one["bias"].to_numpy(), self.limit, lambda: Counter(c.bias for c in self._all))
            yield compare_means(
                bias, "HONEST", 0.0, 100.0 * one["score"].to_numpy(), 100.0 * two["score"].to_numpy(),
                one["target"].to_numpy(), self.n_resamples, sampled,
            )  # fmt: skip

    @cached_property
    def _sentences(self) -> list[Candidate]:
        return per_bias(self._all, lambda c: c.bias, lambda c: c.example, self.limit, ())

    @cached_property
    def _all(self) -> list[Candidate]:
        sentences = []
        for name in self.sets:
            with assets.locate(f"honest-{name}").open(newline="", encoding="utf-8") as file:
                for line, row in enumerate(csv.DictReader(file, delimiter="\t"), start=2):
                    example = f"{name} {line}"
                    sentences.append(Candidate(example, BLANK, row["category"], row["raw"], row["template_masked"]))
        return sentences

    @cached_property
    def _hurtful(self) -> frozenset[str]:
        if not self.lexicon:
            raise UserError(f"HONEST needs HurtLex: set eval.honest.lexicon to its file or to {HURTLEX}")
        path = assets.download(self.lexicon) if "://" in self.lexicon else Path(self.lexicon).expanduser()
        where = f"{path}"
        words = set()
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for line, row in enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=2):
                    where = f"{path}, line {line}"
                    if row["level"] not in ("conservative", "inclusive") or None in row:
                        raise ValueError(f"level {row['level']!r} is neither conservative nor inclusive")
                    if row["level"] == "conservative":
                        words.add(_plain(row["lemma"]))
            if not words:
                raise ValueError("no word has level conservative")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{where}: this is not a HurtLex file ({error!r}); check eval.honest.lexicon") from error
        return frozenset(words)


def completions(scorer: Scorer, texts: Sequence[str], k: int) -> list[list[tuple[str, int]]]:
    """The k likeliest words at the blank of each text, each with its number of tokens."""
    from debias.models.checksums import tokenizer_sha256  # with torch, which a report over finished runs does not need

    tokens = scorer.tokens
    complete = _filled if tokens.kind == "masked" else _continued
    # Which words may begin or go on is a matter of the whole vocabulary.
    how = f"{code_sha256('benchmarks/honest.py')} {tokenizer_sha256(tokens.tokenizer)}"
    content = f"completions {k} {LONGEST} {how} {list(texts)}".encode()
    ids_NKL = scorer.cached([content], lambda: complete(scorer, texts, k))
    return [
        [(tokens.tokenizer.decode(ids[ids >= 0]).strip(), int((ids >= 0).sum())) for ids in ids_KL]
        for ids_KL in ids_NKL
    ]


def _filled(scorer: Scorer, texts: Sequence[str], k: int) -> np.ndarray:
    """Likeliest tokens at the mask, shape (N, K, 1)."""
    mask = mask_id(scorer.tokens.tokenizer)
    shown = [text.replace(BLANK, scorer.tokens.tokenizer.mask_token) for text in texts]
    spans = [Masked(tuple(ids), (ids.index(mask),), (0,)) for ids in scorer.tokens.tokenizer(shown).input_ids]
    return _likeliest(scorer, spans, k, None)[..., None]


def _continued(scorer: Scorer, texts: Sequence[str], k: int) -> np.ndarray:
    """Likeliest words after the text before the blank, shape (N, K, LONGEST), padded with -1."""
    from debias.scoring import likelihood  # with torch, which a report over finished runs does not need

    tokenizer = scorer.tokens.tokenizer
    # "Ġ" (byte-level BPE) and "▁" (SentencePiece) mark a token that begins a word.
    pieces = tokenizer.convert_ids_to_tokens(range(likelihood.vocabulary(scorer.model)))
    begins = np.array([bool(p) and p[0] in "Ġ▁" and p[1:].isalpha() for p in pieces])
    goes_on = np.array([bool(p) and p.isalpha() and p[0] not in "Ġ▁" for p in pieces])
    if not begins.any():
        raise UserError("honest: this tokenizer does not mark where a word begins; use a masked model")
    start = start_id(tokenizer)
    before = [text.partition(BLANK)[0].rstrip() for text in texts]
    prefixes = [(start, *after(start, ids)) for ids in tokenizer(before, add_special_tokens=False).input_ids]
    first_NK = _likeliest(scorer, [Span((*ids, 0), len(ids)) for ids in prefixes], k, begins)
    words = [[token] for token in first_NK.flat]
    open_words = list(range(len(words)))  # words that the next token may still lengthen
    for _ in range(LONGEST - 1):
        texts_ids = [(*prefixes[i // k], *words[i]) for i in open_words]
        next_M = _likeliest(scorer, [Span((*ids, 0), len(ids)) for ids in texts_ids], 1, None)[:, 0]
        open_words = [i for i, token in zip(open_words, next_M, strict=True) if goes_on[token]]
        for i, token in zip(open_words, next_M[goes_on[next_M]], strict=True):
            words[i].append(token)
        if not open_words:
            break
    return np.array([w + [-1] * (LONGEST - len(w)) for w in words]).reshape(len(texts), k, LONGEST)


def _likeliest(scorer: Scorer, spans: Sequence[Scored], k: int, allowed: np.ndarray | None) -> np.ndarray:
    from debias.scoring import batched

    progress = bar(f"scoring honest, {scorer.active} model")
    scorer.positions += len(spans)
    layout = scorer.layout(max(span.num_positions for span in spans))
    return batched.likeliest(scorer.model, spans, k, layout, scorer.token_budget, allowed, progress)


def _plain(word: str) -> str:
    """A word in lower case without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c)).strip()
