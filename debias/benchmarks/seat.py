"""SEAT (May et al. 2019): are sentences about one group closer to some attributes than sentences about another?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from debias import assets
from debias.benchmarks import metrics
from debias.benchmarks.sampling import fingerprint
from debias.benchmarks.statistics import Comparison, from_resamples, permutation_p, within
from debias.progress import bar
from debias.records import Candidate, Count, Tokens, UserError

if TYPE_CHECKING:
    from debias.scoring.scorer import Scorer

TESTS = {  # the tests that Meade et al. 2022 report
    "gender": ("sent-weat6", "sent-weat6b", "sent-weat7", "sent-weat7b", "sent-weat8", "sent-weat8b"),
    "race": (
        "sent-angry_black_woman_stereotype", "sent-angry_black_woman_stereotype_b", "sent-weat3", "sent-weat3b",
        "sent-weat4", "sent-weat5", "sent-weat5b",
    ),
    "religion": ("sent-religion1", "sent-religion1b", "sent-religion2", "sent-religion2b"),
}  # fmt: skip
LISTS = ("targ1", "targ2", "attr1", "attr2")
FRAME = {  # words of the sentence templates; the rest of a sentence is the word that it is about
    "a", "an", "are", "here", "is", "it", "name", "of", "people", "person", "person's", "that", "the", "there",
    "these", "they", "thing", "things", "this", "those",
}  # fmt: skip


class Seat:
    """Effect sizes of 17 tests: the difference between two groups' associations, in standard deviations.

    A sentence's association is its mean cosine to one list of attribute sentences minus that to the other list. A
    sentence is represented by the mean of the last hidden layer over all its tokens, special ones included (Meade et
    al. 2022). Do not compare figures of different base models: their representations differ.

    Args:
        biases: some of gender, race and religion; empty means all.
        path: a folder with the tests in the authors' format; null means the published ones.
        n_resamples: bootstrap resamples, and splits that the permutation test tries.
    """

    name = "seat"
    protocol_name = "mean_hidden"

    def __init__(self, biases: Sequence[str] | str = (), path: str | None = None, n_resamples: Count = 9999) -> None:
        self.biases = [biases] if isinstance(biases, str) else list(biases) or list(TESTS)
        if unknown := set(self.biases) - set(TESTS):
            raise UserError(f"eval.seat.biases: {min(unknown)!r} is unknown; choose from: {', '.join(TESTS)}")
        self.path, self.n_resamples = path, n_resamples

    def fingerprint(self) -> str:
        """SHA-256 of all sentences."""
        return fingerprint(json.dumps([name, lists]) for name, lists in self.tests.items())

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The target sentences; `target` is the word that a sentence is about."""
        return [
            Candidate(f"{test} {i}", name, bias, word, sentence)
            for bias in self.biases
            for test in TESTS[bias]
            for name in ("targ1", "targ2")
            for i, (sentence, word) in enumerate(
                zip(self.tests[test][name], words(self.tests[test][name]), strict=True)
            )
        ]

    def measure(self, scorer: Scorer, candidates: Sequence[Candidate]) -> pd.DataFrame:
        """Associations of the target sentences; their logprob is NaN."""
        texts = list(dict.fromkeys(s for lists in self.tests.values() for name in LISTS for s in lists[name]))
        ids = [tuple(i) for i in scorer.tokens.tokenizer(texts).input_ids]
        vector = dict(zip(texts, self._vectors(scorer, ids), strict=True))
        rows = pd.DataFrame([c[:5] for c in candidates], columns=[*Candidate._fields[:5]])
        tokens = dict(zip(texts, map(len, ids), strict=True))
        # Vectors have length 1, so the mean cosine to a list is the dot product with the list's mean vector.
        means = {
            test: np.mean([vector[s] for s in lists["attr1"]], 0) - np.mean([vector[s] for s in lists["attr2"]], 0)
            for test, lists in self.tests.items()
        }
        of = rows["example"].str.split().str[0]
        scores = [vector[text] @ means[test] for text, test in zip(rows["text"], of, strict=True)]
        rows = rows.assign(logprob=np.nan, num_tokens=rows["text"].map(tokens), score=scores)
        return rows.drop(columns="text")

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Effect sizes, their mean magnitude per bias and overall, and p; the resampled unit is the word within a list.

        p is the published one-sided permutation test over sentences. It is small if the first group is associated with
        the first attributes.
        """
        overall, all_words = [], []
        for bias, of_bias in base.groupby("bias", sort=False):
            magnitudes, of_tests, num_words = [], [], []
            for test, before in of_bias.groupby(of_bias["example"].str.split().str[0], sort=False):
                short = str(test).removeprefix("sent-")
                pair = (before, debiased[debiased["example"].isin(before["example"])])
                effect_2R = np.stack([_effects(scores, self.n_resamples) for scores in pair])
                p_2 = np.array([permutation_p(*_lists(scores), self.n_resamples) for scores in pair])
                magnitudes.append(np.abs(effect_2R))
                num_words.append(metrics.seat_words(before)[0].shape[1])
                of_tests.append(_comparison(str(bias), f"effect {short}", 0.0, len(before), effect_2R, num_words[-1:]))
                of_tests.append(_comparison(str(bias), f"p {short}", None, len(before), p_2[:, None], num_words[-1:]))
            yield _comparison(str(bias), "mean |effect|", 0.0, len(of_bias), np.mean(magnitudes, axis=0), num_words)
            yield from of_tests
            overall.extend(magnitudes)
            all_words.extend(num_words)
        yield _comparison("overall", "mean |effect|", 0.0, len(base), np.mean(overall, axis=0), all_words)

    def _vectors(self, scorer: Scorer, ids: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Mean hidden states of texts, of length 1."""
        from debias.scoring import batched  # with torch, which a report over finished runs does not need

        def fresh() -> np.ndarray:
            scorer.positions += sum(map(len, ids))
            progress = bar(f"scoring {self.name}, {scorer.active} model")
            return batched.mean_hidden(scorer.model, ids, scorer.token_budget, progress)

        mean_ND = scorer.cached([f"mean hidden states {ids}".encode()], fresh).astype(float)
        if not np.isfinite(mean_ND).all():
            raise UserError(f"hidden states of the {scorer.active} model are NaN or inf; lower training.lr")
        return mean_ND / np.linalg.norm(mean_ND, axis=1, keepdims=True)

    @cached_property
    def tests(self) -> dict[str, dict[str, list[str]]]:
        """The four lists of sentences of each test."""
        return {test: self._read(test) for bias in self.biases for test in TESTS[bias]}

    def _read(self, test: str) -> dict[str, list[str]]:
        path = (
            Path(self.path).expanduser() / f"{test}.jsonl" if self.path else assets.fetch(assets.REMOTE[f"seat/{test}"])
        )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: content[name]["examples"] for name in LISTS}
            if wrong := [
                n for n, texts in lists.items() if len(texts) < 2 or not all(isinstance(t, str) for t in texts)
            ]:
                raise ValueError(f"{wrong[0]} is not a list of sentences")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a SEAT test ({error!r}); check eval.seat.path") from error
        return lists


def words(sentences: Sequence[str]) -> list[str]:
    """The word that each sentence is about, the same for singular and plural: `This is a cross.` -> cross."""
    # Sentences about one word in several templates are not independent, so `comparisons` resamples words.
    first: dict[str, str] = {}  # rough stem -> the first word with it
    found = []
    for sentence in sentences:
        word = " ".join(w for w in re.findall(r"[\w'-]+", sentence.lower()) if w not in FRAME)
        singular = re.sub("(?<=[shx])es$|(?<=[^s])s$", "", re.sub("ies$", "y", word.replace("men", "man")))
        found.append(first.setdefault(singular, word))
    return found


def _lists(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Associations of a test's two target lists."""
    first, second = (scores.loc[scores["candidate"] == name, "score"].to_numpy() for name in ("targ1", "targ2"))
    return first, second


def _effects(scores: pd.DataFrame, n_resamples: int) -> np.ndarray:
    """A test's effect size, followed by its resamples."""
    words_3W, first = metrics.seat_words(scores)
    drawn_RW = within((first, words_3W.shape[1] - first), n_resamples)
    resampled = metrics.effect_size(words_3W[:, drawn_RW], first)
    return np.concatenate([[metrics.effect_size(words_3W, first)], resampled])


def _comparison(
    bias: str, metric: str, ideal: float | None, n: int, value_2R: np.ndarray, num_words: Sequence[int]
) -> Comparison:
    """A comparison of two models, each given as its value followed by its resamples; the words of each test in it."""
    value_3R = np.stack([*value_2R, value_2R[1] - value_2R[0]])
    units, lists = sum(num_words), 2 * len(num_words)
    return from_resamples(bias, metric, ideal, n, value_3R[:, 0], value_3R[:, 1:], units, lists)
