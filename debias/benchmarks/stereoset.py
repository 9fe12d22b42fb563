"""StereoSet (Nadeem et al. 2021): does the model prefer a stereotype, an anti-stereotype or an unrelated sentence?"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.filling import filling
from debias.benchmarks.sampling import WHOLE, check_biases, left_out, same_texts, strata
from debias.benchmarks.statistics import Comparison, compare
from debias.data.rows import read_text
from debias.records import Candidate, Cloze, Count, Tokens, UserError
from debias.scoring.protocols import Protocol
from debias.scoring.spans import BLANK

GOLD = ("stereotype", "anti-stereotype", "unrelated")


class ExampleFile(NamedTuple):
    """The examples of a file, and how many are left out for each reason."""

    examples: list[dict[str, Any]]
    left_out: Counter[str]
    total: int


class StereoSet(LikelihoodBenchmark):
    """Examples with a stereotype, an anti-stereotype and an unrelated sentence about one target term.

    Args:
        protocol: turns a sentence into a likelihood.
        split: `test` (6,392 intrasentence and 6,374 intersentence examples) or `dev` (2,106 and 2,123). Tune on dev,
            report test.
        task: `intrasentence` (three words for a blank) or `intersentence` (three sentences that follow a context).
        path: another file in the authors' format, also a translation; null means the published one.
        limit: examples per bias, a fixed sample; null means all.
        whole: biases scored in full, whatever `limit` is; those in a list must be there.
        n_resamples: bootstrap resamples.
    """

    def __init__(
        self,
        protocol: Protocol,
        split: Literal["dev", "test"] = "test",
        task: Literal["intrasentence", "intersentence"] = "intrasentence",
        path: str | None = None,
        limit: Count | None = None,
        whole: Sequence[str] | str = (),
        n_resamples: Count = 9999,
    ) -> None:
        self.task, self.name = task, "stereoset" if task == "intrasentence" else "stereoset_intersentence"
        super().__init__(protocol, path, limit, n_resamples)
        self.split = split
        self.whole = whole if isinstance(whole, str) else list(whole)

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Three sentences per example."""
        filled = _filled if self.path else _filled_as_published
        shown = filled if self.task == "intrasentence" else _followed
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

    @property
    def notes(self) -> list[str]:
        """How many examples of the file are left out."""
        return [*super().notes, *left_out(self.name, self._file.left_out, self._file.total)]

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """The sampled examples, as in the file."""
        found = self._file.examples
        check_biases(self.whole, (e["bias_type"] for e in found), f"eval.{self.name}.whole")
        whole = [self.whole] if isinstance(self.whole, str) else self.whole
        return self.sample(found, lambda e: e["bias_type"], lambda e: e["id"], whole)

    def _terms_by_bias(self) -> Counter[str]:
        return Counter(bias for bias, _ in {(e["bias_type"], e["target"]) for e in self._file.examples})

    @cached_property
    def _file(self) -> ExampleFile:
        read = read_examples if self.path else _read_once
        return read(self.path or assets.locate(f"stereoset-{self.split}"), self.task)


def read_examples(path: Path, task: str) -> ExampleFile:
    """The examples of a task from a file in the authors' format, or from a list of examples.

    Where ids repeat, examples are numbered instead. Raises UserError if the file or an example has another form.
    """
    try:
        document = json.loads(read_text(path))
        examples = document if isinstance(document, list) else document["data"][task]
        for example in examples:
            _check(example)
    except UserError as error:
        raise UserError(f"{path} is not a StereoSet file ({error}); check eval.stereoset.path") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a StereoSet file ({error}); check eval.stereoset.path") from error
    numbered = len({str(e["id"]) for e in examples}) < len(examples)
    kept, reasons = [], Counter[str]()
    for number, example in enumerate(examples):
        if reason := _useless(example, task):
            reasons[reason] += 1
        else:
            kept.append({**example, "id": str(number if numbered else example["id"])})
    if not kept:
        why = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "it is empty"
        raise UserError(f"{path} has no example to score ({why}); check eval.stereoset.path")
    return ExampleFile(kept, reasons, len(examples))


_read_once = cache(read_examples)  # the published files do not change while the jobs of a sweep read them


def _check(example: dict[str, Any]) -> None:
    """Raises ValueError unless an example has all fields, and one sentence of each label."""
    if not isinstance(example, dict):
        raise ValueError(f"expected examples, found {str(example)[:60]!r}")
    missing = {"id", "bias_type", "target", "context", "sentences"} - set(example)
    missing |= {key for s in example.get("sentences", ()) for key in {"gold_label", "sentence"} - set(s)}
    if missing:
        raise ValueError(f"example {example.get('id')}: without {', '.join(sorted(missing))}")
    labels = sorted(s["gold_label"] for s in example["sentences"])
    if labels != sorted(GOLD):
        raise ValueError(f"example {example['id']}: labels {labels} instead of one each of {sorted(GOLD)}")


def _useless(example: dict[str, Any], task: str) -> str | None:
    """Why an example cannot be scored; None if it can."""
    texts = [s["sentence"] for s in example["sentences"]]
    for name, values in (
        ("target", [example["target"]]), ("bias", [example["bias_type"]]), ("context", [example["context"]]),
        ("sentence", texts),
    ):  # fmt: skip
        if not all(isinstance(value, str) and value.strip() for value in values):
            return f"without a {name}"
    if example["bias_type"] == WHOLE:
        return f"with a bias called {WHOLE!r}, which is the name of all together"
    if task == "intrasentence" and BLANK not in example["context"]:
        return f"without a blank ({BLANK})"
    if same_texts(texts):
        return "with two identical sentences"
    return None


def _filled(context: str, sentence: str) -> tuple[str, Cloze | None]:
    """A sentence of another file, and its cloze; no cloze if it does not show what fills the blank."""
    span = filling(context, sentence)
    before, _, after = context.partition(BLANK)
    return sentence, None if span is None else Cloze(before, sentence[slice(*span)], after)


def _filled_as_published(context: str, sentence: str) -> tuple[str, Cloze]:
    """A sentence of the published file, and its cloze."""
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
