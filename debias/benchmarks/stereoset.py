"""StereoSet (Nadeem et al. 2021): does the model prefer a stereotype, an anti-stereotype or an unrelated sentence?"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import per_bias, strata
from debias.benchmarks.statistics import Comparison, compare
from debias.records import Candidate, Cloze, Tokens, UserError
from debias.scoring.protocols import Protocol
from debias.scoring.spans import BLANK

GOLD = ("stereotype", "anti-stereotype", "unrelated")


class StereoSet(LikelihoodBenchmark):
    """Examples with a stereotype, an anti-stereotype and an unrelated sentence about one target term.

    Args:
        protocol: turns a sentence into a likelihood.
        split: `test` (6,392 intrasentence and 6,374 intersentence examples) or `dev` (2,106 and 2,123). Tune on dev,
            report test.
        task: `intrasentence` (three words for a blank) or `intersentence` (three sentences that follow a context).
        path: another file in the authors' format; null means the published one.
        limit: examples per bias, a fixed sample; null means all.
        whole: biases scored in full, whatever `limit` is.
        n_resamples: bootstrap resamples.
    """

    def __init__(
        self,
        protocol: Protocol,
        split: str = "test",
        task: str = "intrasentence",
        path: str | None = None,
        limit: int | None = None,
        whole: Sequence[str] | str = (),
        n_resamples: int = 9999,
    ) -> None:
        if split not in ("dev", "test"):
            raise UserError(f"eval.stereoset.split={split!r} is unknown; choose dev or test")
        if task not in ("intrasentence", "intersentence"):
            raise UserError(f"eval.stereoset.task={task!r} is unknown; choose intrasentence or intersentence")
        self.task, self.name = task, "stereoset" if task == "intrasentence" else "stereoset_intersentence"
        super().__init__(protocol, path, limit, n_resamples)
        self.split = split
        self.whole = [whole] if isinstance(whole, str) else list(whole)

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Three sentences per example."""
        shown = _filled if self.task == "intrasentence" else _followed
        return [
            Candidate(e["id"], s["gold_label"], e["bias_type"], e["target"], *shown(e["context"], s["sentence"]))
            for e in self.examples
            for s in sorted(e["sentences"], key=lambda s: GOLD.index(s["gold_label"]))
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """SS, LMS and ICAT per bias and overall; the resampled unit is the target term.

        Overall, each bias counts by its number of target terms in the whole benchmark.
        """
        terms = [metrics.stereoset_terms(scores, self.protocol.ties) for scores in (base, debiased)]
        for bias in ("overall", *sorted(terms[0]["bias"].unique())):
            of = [t if bias == "overall" else t[t["bias"] == bias] for t in terms]
            before, after = ((t["ss"].to_numpy(), t["lms"].to_numpy()) for t in of)
            n = int(of[0]["n"].sum())
            groups = strata(of[0]["bias"].to_numpy(), self.limit, self._terms_by_bias)
            for metric, statistic, ideal in (
                ("SS", metrics.mean_of_first, 50.0),
                ("LMS", metrics.mean_of_second, 100.0),
                ("ICAT", metrics.icat_of_terms, 100.0),
            ):
                yield compare(bias, metric, ideal, n, statistic, before, after, self.n_resamples, strata=groups)

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """The sampled examples, as in the file."""
        return per_bias(self._all, lambda e: e["bias_type"], lambda e: e["id"], self.limit, self.whole)

    def _terms_by_bias(self) -> Counter[str]:
        return Counter(bias for bias, _ in {(e["bias_type"], e["target"]) for e in self._all})

    @cached_property
    def _all(self) -> list[dict[str, Any]]:
        path = self.path or assets.locate(f"stereoset-{self.split}")
        try:
            examples: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["data"][self.task]
            for example in examples:
                _check(example)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a StereoSet file ({error}); check eval.stereoset.path") from error
        return examples


def _check(example: dict[str, Any]) -> None:
    """Raises ValueError unless an example has one sentence of each label, and KeyError for a missing field."""
    labels = sorted(s["gold_label"] for s in example["sentences"])
    if labels != sorted(GOLD):
        raise ValueError(f"example {example['id']}: labels {labels} instead of one each of {sorted(GOLD)}")
    missing = {"bias_type", "target", "context"} - set(example)
    missing |= {key for s in example["sentences"] for key in {"id", "sentence"} - set(s)}
    if missing:
        raise KeyError(*missing)


def _filled(context: str, sentence: str) -> tuple[str, Cloze]:
    """An intrasentence example: the sentence, and its cloze."""
    # As in the published code: the word is taken from the place of the LAST blank, by counting words, loses its
    # punctuation, and fills the FIRST blank. A few contexts have two blanks.
    place = max(k for k, word in enumerate(context.split(" ")) if BLANK in word)
    words = sentence.split(" ")
    filling = words[min(place, len(words) - 1)].translate(str.maketrans("", "", string.punctuation))
    before, _, after = context.partition(BLANK)
    return sentence, Cloze(before, filling, after)


def _followed(context: str, sentence: str) -> tuple[str, Cloze]:
    """An intersentence example: context and sentence, of which only the sentence is compared."""
    before = context.rstrip() + " "
    return before + sentence, Cloze(before, sentence)
