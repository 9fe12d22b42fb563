"""Measures of a set of sentences: words, near-duplicates, diversity, and polarity of wording."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from datasketch import MinHash, MinHashLSH

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

# Counted whatever they mean in the sentence: "while" is concessive here even if it means "during".
CONCESSIVE = (
    "although", "but", "contrary to", "despite", "however", "in spite of", "nevertheless", "nonetheless",
    "notwithstanding", "regardless", "though", "unlike", "whereas", "while", "yet",
)  # fmt: skip
NEGATED = (
    "cannot", "neither", "never", "no", "nobody", "none", "nor", "not", "nothing", "nowhere", "without",
)  # fmt: skip


def words(sentence: str) -> list[str]:
    """Words in lower case, without punctuation; `self-made` and `don't` are one word each."""
    return [word.lower().replace("’", "'") for word in WORD.findall(sentence)]


def opening(sentence: str, n: int = 4) -> str:
    """The first `n` words in lower case."""
    return " ".join(words(sentence)[:n])


def shingles(sentence: str, n: int = 3) -> frozenset[tuple[str, ...]]:
    """All sequences of `n` words, or the whole sentence if it is shorter."""
    found = words(sentence)
    return frozenset(_ngrams(found, n) if len(found) >= n else [tuple(found)])


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """Jaccard similarity: size of the intersection over size of the union, from 0 to 1."""
    return len(a & b) / len(a | b)


class Near(NamedTuple):
    """The most similar known sentence and its Jaccard similarity, 1 if only case and punctuation differ."""

    key: str
    sentence: str
    similarity: float


class NearDuplicates:
    """An index of sentences that finds exact and near repeats.

    Args:
        threshold: smallest Jaccard similarity of word n-grams at which two sentences are near-duplicates, 0.3 to 1.
        shingle: words per n-gram; shorter sentences are compared as a whole.
    """

    # MinHash (Broder 1997) proposes candidates and the exact Jaccard similarity decides, so there are no false
    # positives. Two sentences are proposed if all rows of one band agree. At similarity s a row agrees with
    # probability s, so 24 bands of 2 rows propose them with probability 1 - (1 - s^2)^24: they miss one pair in 1,000
    # at s = 0.5 and one in 10 at s = 0.3.
    BANDS, ROWS = 24, 2

    def __init__(self, threshold: float = 0.5, shingle: int = 3) -> None:
        if not 0.3 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must lie between 0.3 (below, candidates are missed) and 1")
        self.threshold, self.shingle = threshold, shingle
        self._keys: list[str] = []
        self._sentences: list[str] = []
        self._whole: dict[tuple[str, ...], int] = {}
        self._blank = MinHash(num_perm=self.BANDS * self.ROWS)  # to copy: drawing the permutations again is slow
        self._lsh = MinHashLSH(num_perm=self.BANDS * self.ROWS, params=(self.BANDS, self.ROWS))

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, sentence: str) -> None:
        """Add a sentence under a key. A sentence that differs only in case and punctuation keeps the first key."""
        whole = tuple(words(sentence))
        if whole in self._whole:
            return
        place = self._whole[whole] = len(self._keys)
        self._keys.append(key)
        self._sentences.append(sentence)  # without their n-grams, which would fill the memory for a large benchmark
        self._lsh.insert(place, self._sketch(shingles(sentence, self.shingle)), check_duplication=False)

    def find(self, sentence: str) -> str | None:
        """Key of the most similar sentence at or above the threshold, or None."""
        near = self.nearest(sentence)
        return near.key if near else None

    def nearest(self, sentence: str) -> Near | None:
        """The most similar sentence at or above the threshold (the first added of equals), or None."""
        same = self._whole.get(tuple(words(sentence)))
        if same is not None:
            return Near(self._keys[same], self._sentences[same], 1.0)
        grams = shingles(sentence, self.shingle)
        candidates = self._candidates(self._sketch(grams))
        scored = [(jaccard(grams, shingles(self._sentences[i], self.shingle)), -i) for i in candidates]
        similarity, place = max(scored, default=(0.0, 0))
        if similarity < self.threshold:
            return None
        return Near(self._keys[-place], self._sentences[-place], similarity)

    def _candidates(self, sketch: MinHash) -> Iterable[int]:
        """Places of the sentences that have a band in common with the sketch."""
        return self._lsh.query(sketch)

    def _sketch(self, grams: frozenset[tuple[str, ...]]) -> MinHash:
        sketch = self._blank.copy()
        sketch.update_batch(" ".join(gram).encode() for gram in grams)
        return sketch


class FixedSentences(NearDuplicates):
    """The same index for sentences that do not change, as arrays that a file can hold.

    Args:
        sentences: different ones, in their order.
        wholes: the words of each, joined by blanks.
        bands: for each band its sentences' values in ascending order, shape (BANDS, N), and the places of the
            sentences in this order.
    """

    def __init__(self, sentences: list[str], wholes: list[str], bands: tuple[np.ndarray, np.ndarray]) -> None:
        super().__init__()
        self._keys = self._sentences = sentences
        self._whole = {tuple(whole.split(" ")) if whole else (): place for place, whole in enumerate(wholes)}
        self._values_BN, self._places_BN = bands

    @classmethod
    def of(cls, sentences: Iterable[str]) -> FixedSentences:
        """Sketch the sentences. One that differs from another only in case and punctuation is left out."""
        distinct: dict[tuple[str, ...], str] = {}
        for sentence in sentences:
            distinct.setdefault(tuple(words(sentence)), sentence)
        blank = NearDuplicates()
        sketches = [_band_values(blank._sketch(shingles(sentence))) for sentence in distinct.values()]
        values_BN = np.stack(sketches, axis=1) if sketches else np.empty((cls.BANDS, 0), dtype=np.uint64)
        places_BN = np.argsort(values_BN, axis=1, kind="stable")
        ordered_BN = np.take_along_axis(values_BN, places_BN, axis=1)
        wholes = [" ".join(whole) for whole in distinct]
        return cls(list(distinct.values()), wholes, (ordered_BN, places_BN.astype(np.int32)))

    @classmethod
    def read(cls, file: Mapping[str, np.ndarray]) -> FixedSentences:
        """The index that `arrays` gave."""
        sentences, wholes = (json.loads(file[name].tobytes()) for name in ("sentences", "wholes"))
        return cls(sentences, wholes, (file["values"], file["places"]))

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file must hold."""
        texts = {"sentences": self._sentences, "wholes": [" ".join(whole) for whole in self._whole]}
        coded = {name: np.frombuffer(json.dumps(of).encode(), dtype=np.uint8) for name, of in texts.items()}
        return {**coded, "values": self._values_BN, "places": self._places_BN}

    def _candidates(self, sketch: MinHash) -> Iterable[int]:
        found: set[int] = set()
        for values_N, places_N, value in zip(self._values_BN, self._places_BN, _band_values(sketch), strict=True):
            first, last = np.searchsorted(values_N, value, "left"), np.searchsorted(values_N, value, "right")
            found.update(places_N[first:last].tolist())
        return found


def _band_values(sketch: MinHash) -> np.ndarray:
    """The two rows of each band, which are below 2^32, as one number; shape (BANDS,)."""
    rows_B2 = np.asarray(sketch.hashvalues, dtype=np.uint64).reshape(NearDuplicates.BANDS, NearDuplicates.ROWS)
    return (rows_B2[:, 0] << np.uint64(32)) | rows_B2[:, 1]


def distinct_n(sentences: Iterable[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams, from 0 to 1 (Li et al. 2016); 0 if there are none."""
    grams = [gram for sentence in sentences for gram in _ngrams(words(sentence), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(sentences: Sequence[str], sample: int = 100, seed: int = 0) -> float:
    """Mean BLEU-4 of each sentence against all others, from 0 (nothing shared) to 100 (Zhu et al. 2018, Texygen).

    Uses `sample` sentences drawn with the seed, because the time is quadratic. The value grows with the number of
    references, so compare samples of the same size only. Words are those of `words`; smoothing is sacrebleu's `exp`.
    """
    from sacrebleu.metrics import BLEU  # a slow import that few callers need

    drawn = random.Random(seed).sample(list(sentences), min(sample, len(sentences)))  # noqa: S311 (not a secret)
    if len(drawn) < 2:
        return 0.0
    texts = [" ".join(words(sentence)) for sentence in drawn]
    bleu = BLEU(tokenize="none", effective_order=True)
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return sum(scores) / len(scores)


class Polarity(NamedTuple):
    """Whether a sentence has a concession, and whether it has a negation."""

    concessive: bool
    negated: bool


def polarity(sentence: str) -> Polarity:
    """Look for concessive words (`despite`, `but`, ...) and negations (`not`, `n't`, ...)."""
    found = words(sentence)
    text = f" {' '.join(found)} "
    return Polarity(
        concessive=any(f" {word} " in text for word in CONCESSIVE),
        negated=any(f" {word} " in text for word in NEGATED) or any(word.endswith("n't") for word in found),
    )


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))
