"""BBQ (Parrish et al. 2022): does the model answer with a stereotype if the text gives no answer, or another one?"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import strata
from debias.benchmarks.statistics import Comparison, compare
from debias.records import Candidate, Cloze, Count, Tokens, UserError
from debias.scoring.protocols import Protocol
from debias.wording import counted, plural

CATEGORIES = (
    "Age", "Disability_status", "Gender_identity", "Nationality", "Physical_appearance", "Race_ethnicity", "Race_x_SES",
    "Race_x_gender", "Religion", "SES", "Sexual_orientation",
)  # fmt: skip
FIELDS = ("question_index", "question_polarity", "context_condition", "context", "question", "label")


class BBQ(LikelihoodBenchmark):
    """58,492 questions on eleven biases, with three answers each; the model's answer is the one with the highest score.

    The model reads `CONTEXT\\nQuestion: QUESTION\\nAnswer: ANSWER` without a list of the possible answers. Two answers
    name a person, and `stereotyped` is the one that the stereotype names. 16 questions have no such answer and are
    excluded, as in the paper.

    Args:
        protocol: turns an answer into a likelihood (`Continuation`).
        categories: some of the eleven; empty means all.
        path: a folder with the authors' files (`Age.jsonl` and so on, and `additional_metadata.csv`); null means the
            published ones.
        limit: questions per category, a fixed sample; null means all. The four questions about the same persons
            (negative or not, ambiguous or not) are drawn together, so that the sample is balanced.
        n_resamples: bootstrap resamples.
    """

    name = "bbq"

    def __init__(
        self,
        protocol: Protocol,
        categories: Sequence[str] | str = (),
        path: str | None = None,
        limit: Count | None = None,
        n_resamples: Count = 9999,
    ) -> None:
        super().__init__(protocol, path, limit, n_resamples)
        self.categories = [categories] if isinstance(categories, str) else list(categories) or list(CATEGORIES)
        if unknown := set(self.categories) - set(CATEGORIES):
            raise UserError(f"eval.bbq.categories: {min(unknown)!r} is unknown; choose from: {', '.join(CATEGORIES)}")

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Three answers per question; `target` holds template, context, polarity and the role of the correct answer."""
        candidates = []
        usable = [e for e in self.questions if e["roles"]]
        for e in self.sample(usable, lambda e: e["category"], lambda e: e["persons"]):
            before = f"{e['context']}\nQuestion: {e['question']}\nAnswer: "
            of = (e["question_index"], e["context_condition"], e["question_polarity"], e["roles"][e["label"]])
            for role, answer in sorted(zip(e["roles"], e["answers"], strict=True)):
                cloze = Cloze(before, answer)
                candidates.append(Candidate(e["id"], role, e["category"], " ".join(of), before + answer, cloze))
        return candidates

    @property
    def notes(self) -> list[str]:
        """How many questions are excluded."""
        excluded = sum(not e["roles"] for e in self.questions)
        of = counted(len(self.questions), "question")
        verbs = plural(excluded, "has no stereotyped answer and is", "have no stereotyped answer and are")
        note = f"bbq: {excluded} of {of} {verbs} excluded"
        return [*super().notes, *([note] if excluded else [])]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Accuracy and bias score in each context, overall and per category; the resampled unit is the template.

        Overall, each category counts by its number of questions in the whole benchmark.
        """
        questions = [metrics.bbq(scores) for scores in (base, debiased)]
        first = questions[0]
        groups = {"overall": first["bias"].notna()} | {b: first["bias"] == b for b in sorted(first["bias"].unique())}
        for bias, chosen in groups.items():
            for condition, score, bias_score in (
                ("ambig", "s_AMB", metrics.s_amb),
                ("disambig", "s_DIS", metrics.s_dis),
            ):
                rows = chosen & (first["condition"] == condition)
                sampled = strata(first["bias"][rows].to_numpy(), self.limit, partial(self._sizes, condition))
                if sampled is not None:
                    sampled = sampled.of(first["template"][rows].to_numpy())
                for metric, ideal, statistic in (
                    (f"accuracy {condition}", 100.0, metrics.bbq_accuracy),
                    (score, 0.0, bias_score),
                ):
                    if rows.any():
                        before, after = (metrics.bbq_templates(q[rows]) for q in questions)
                        n = int(rows.sum())
                        yield compare(
                            bias, metric, ideal, n, statistic, before, after, self.n_resamples, strata=sampled
                        )

    def _sizes(self, condition: str) -> Counter[str]:
        """Number of usable questions of each category in one kind of context."""
        return Counter(e["category"] for e in self.questions if e["roles"] and e["context_condition"] == condition)

    @cached_property
    def questions(self) -> list[dict[str, Any]]:
        """All questions of the categories; `roles` holds the roles of the answers, and is empty without a target."""
        metadata = self.path / "additional_metadata.csv" if self.path else assets.locate("bbq_targets")
        where = f"{metadata}"
        try:
            with metadata.open(newline="", encoding="utf-8") as file:
                targets = {(row["category"], row["example_id"]): row["target_loc"] for row in csv.DictReader(file)}
            questions = []
            for category in self.categories:
                path = self.path / f"{category}.jsonl" if self.path else assets.locate(f"bbq-{category}")
                where = f"{path}"
                lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
                for line, text in enumerate(lines, start=1):
                    where = f"{path}, line {line}"
                    questions.append(_question(json.loads(text), targets))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: this is not a BBQ file ({error!r}); check eval.bbq.path") from error
        return questions


def _question(row: dict[str, Any], targets: dict[tuple[str, str], str]) -> dict[str, Any]:
    """A question with its answers and their roles; `roles` is empty if the authors name no target."""
    number, category = str(row["example_id"]), row["category"]
    target = targets[category, number]
    unknown = [row["answer_info"][f"ans{k}"][1] == "unknown" for k in range(3)]
    ambiguous = row["context_condition"] == "ambig"
    if sum(unknown) != 1 or row["label"] not in range(3) or unknown[row["label"]] != ambiguous:
        raise ValueError(f"label {row['label']!r} or answer_info is wrong")
    # The authors' `target_loc` is the answer that agrees with the stereotype for THIS question: one person for "Who was
    # forgetful?", the other for "Who has a good memory?". So polarity needs no case of its own.
    roles = ["unknown" if u else "stereotyped" if target == str(k) else "other" for k, u in enumerate(unknown)]
    return {key: row[key] for key in FIELDS} | {
        "id": f"{category}-{number}",
        "category": category,
        "persons": f"{category}-{int(number) // 4}",
        "answers": [row[f"ans{k}"] for k in range(3)],
        "roles": roles if "stereotyped" in roles else [],
    }
