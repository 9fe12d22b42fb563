"""GLUE (Wang et al. 2019), four of its tasks: what does debiasing cost downstream?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from debias import assets
from debias.benchmarks import metrics
from debias.benchmarks.sampling import fingerprint, per_bias
from debias.benchmarks.statistics import Comparison, Statistic, compare
from debias.records import Candidate, Count, Tokens, UserError
from debias.scoring.spans import after, start_id
from debias.wording import counted, plural

if TYPE_CHECKING:
    from debias.benchmarks.classifiers import Classifier, Texts
    from debias.scoring.scorer import Scorer


class Task(NamedTuple):
    """Files of a task, and the columns of its label and sentences."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    columns: int
    label: int
    sentences: tuple[int, ...]
    labels: tuple[str, str] = ("0", "1")  # negative, positive
    header: bool = True
    metrics: tuple[str, ...] = ("accuracy",)


TASKS = {
    "sst2": Task(("SST-2/train.tsv",), ("SST-2/dev.tsv",), 2, 1, (0,)),
    "cola": Task(
        ("CoLA/in_domain_train.tsv",), ("CoLA/in_domain_dev.tsv", "CoLA/out_of_domain_dev.tsv"), 4, 1, (3,),
        header=False, metrics=("Matthews",),
    ),
    "rte": Task(("RTE/train.tsv",), ("RTE/dev.tsv",), 4, 3, (1, 2), ("not_entailment", "entailment")),
    # GLUE takes its dev part from the corpus's training part. Here that part is used whole, and the corpus's test part
    # is what is predicted.
    "mrpc": Task(
        ("MRPC/msr_paraphrase_train.txt",), ("MRPC/msr_paraphrase_test.txt",), 5, 0, (3, 4),
        metrics=("accuracy", "F1"),
    ),
}  # fmt: skip


class Example(NamedTuple):
    """One or two sentences and their label."""

    task: str
    part: str  # train or dev
    number: str  # within its part
    label: str
    sentences: tuple[str, ...]


class Glue:
    """SST-2, CoLA, RTE and MRPC, learned on top of the model with the adapter on or off.

    Args:
        tasks: some of sst2, cola, rte, mrpc.
        limit_train: examples to learn from, a fixed sample; null means all.
        limit: examples to predict, a fixed sample; null means all.
        path: a folder with files in the same format; null means the published ones.
        n_resamples: bootstrap resamples of examples.
        classifier: a probe of frozen features (null) or a fine-tuned copy of the model. A probe's figures are lower
            than published ones; only differences between models are of interest.
    """

    name = "glue"

    def __init__(
        self,
        tasks: Sequence[str] = tuple(TASKS),
        limit_train: Count | None = None,
        limit: Count | None = None,
        path: str | None = None,
        n_resamples: Count = 9999,
        classifier: Classifier | None = None,
    ) -> None:
        self.tasks, self.n_resamples = list(tasks), n_resamples
        self._classifier = classifier
        self.path = Path(path).expanduser() if path else None
        self.limits = {"train": limit_train, "dev": limit}
        if unknown := [name for name in self.tasks if name not in TASKS] or ([] if self.tasks else ["no task"]):
            raise UserError(f"eval.glue.tasks: {unknown[0]!r} is unknown; choose from: {', '.join(TASKS)}")

    @cached_property
    def classifier(self) -> Classifier:
        """What learns the tasks."""
        from debias.benchmarks.classifiers import FrozenProbe  # with torch, which a report does not need

        return self._classifier or FrozenProbe()

    @property
    def protocol_name(self) -> str:
        """Name of the classifier."""
        return self._classifier.name if self._classifier else "frozen_probe"

    def fingerprint(self) -> str:
        """SHA-256 of the training and dev examples."""
        return fingerprint(repr(tuple(example)) for example in self._examples)

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """The sentences of the dev examples."""
        return [
            Candidate(f"{e.task}:{e.number}", f"sentence {k}", e.task, e.label, sentence)
            for e in self._examples
            if e.part == "dev"
            for k, sentence in enumerate(e.sentences, start=1)
        ]

    def measure(self, scorer: Scorer, candidates: Sequence[Candidate]) -> pd.DataFrame:
        """One row per example: the predicted label in `candidate`, the true one in `target`, 1 or 0 in `score`."""
        rows = []
        for task in self.tasks:
            train, dev = ([e for e in self._examples if (e.task, e.part) == (task, part)] for part in ("train", "dev"))
            texts = self._texts(scorer, task, [*train, *dev])
            predicted = self.classifier.predict(scorer, f"glue, {task}", texts[: len(train)], texts[len(train) :])
            negative, positive = TASKS[task].labels
            for e, yes in zip(dev, predicted, strict=True):
                answer = positive if yes else negative
                rows.append((f"{task}:{e.number}", answer, task, e.label, float(answer == e.label)))
        columns = ["example", "candidate", "bias", "target", "score"]
        return pd.DataFrame(rows, columns=columns).assign(logprob=np.nan, num_tokens=0)

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Accuracy, F1 of paraphrases (MRPC) and Matthews correlation (CoLA); the resampled unit is the example."""
        for task in base["bias"].unique():
            rows = [scores[scores["bias"] == task].sort_values("example") for scores in (base, debiased)]
            for metric in TASKS[task].metrics:
                if metric == "accuracy":
                    statistic: Statistic = metrics.mean_of_first
                    columns: list[tuple[np.ndarray, ...]] = [(100.0 * r["score"].to_numpy(),) for r in rows]
                else:
                    statistic = {"F1": metrics.f1, "Matthews": metrics.matthews}[metric]
                    columns = [_cells(r, TASKS[task].labels[1]) for r in rows]
                yield compare(
                    task, metric, 100.0, len(rows[0]), statistic, columns[0], columns[1], self.n_resamples,
                    pairs=metric == "accuracy",
                )  # fmt: skip

    def _texts(self, scorer: Scorer, task: str, examples: Sequence[Example]) -> list[Texts]:
        """Examples as token ids, each text cut to the model's limit; a note counts the cut ones."""
        from debias.benchmarks.classifiers import Texts

        sentences = list(dict.fromkeys(s for e in examples for s in e.sentences))
        limit = scorer.max_positions
        texts = _encoded(sentences, scorer.tokens)
        if cut := sum(len(ids) > limit for ids in texts) if limit else 0:
            of, are = counted(len(texts), "sentence"), plural(cut, "is", "are")
            note = f"glue: {task}: {cut:,} of {of} {are} cut to the model's {limit} tokens"
            scorer.notes[note] = None
        ids_of = {s: ids[:limit] for s, ids in zip(sentences, texts, strict=True)}
        positive = TASKS[task].labels[1]
        return [Texts(tuple(ids_of[s] for s in e.sentences), e.label == positive) for e in examples]

    @cached_property
    def _examples(self) -> list[Example]:
        return [e for task in self.tasks for part in ("train", "dev") for e in self._read(task, part)]

    def _read(self, name: str, part: str) -> list[Example]:
        """The fixed sample of one part of a task."""
        task = TASKS[name]
        rows = [row for path in self._paths(getattr(task, part)) for row in _rows(path, task)]
        examples = [
            Example(name, part, str(k), row[task.label], tuple(row[c].strip() for c in task.sentences))
            for k, row in enumerate(rows)
        ]
        sample = per_bias(examples, lambda e: e.task, lambda e: e.number, self.limits[part], ())
        if len({e.label for e in sample}) < 2:
            raise UserError(f"glue: {name}: all {len(sample)} examples of {part} have the same label; use more of them")
        return sample

    def _paths(self, names: Iterable[str]) -> list[Path]:
        if self.path:
            return [self.path / name for name in names]
        remote = [assets.REMOTE[f"glue/{name}"] for name in names]
        if names == ("SST-2/train.tsv",) and assets.held(remote[0]) is None:  # published in two files
            remote = [assets.REMOTE[f"glue/SST-2/train_{k}.tsv"] for k in (1, 2)]
        return [assets.fetch(r) for r in remote]


def _rows(path: Path, task: Task) -> list[list[str]]:
    """Fields of each line; quotes have no meaning. Raises UserError for an incomplete line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check eval.glue.path") from error
    rows = [line.rstrip("\r").split("\t") for line in (lines[:-1] if lines[-1] == "" else lines)]
    for number, row in enumerate(rows[task.header :], start=1 + task.header):
        if len(row) != task.columns or row[task.label] not in task.labels:
            raise UserError(
                f"{path}: line {number} does not have {task.columns} fields and the label {' or '.join(task.labels)}; "
                "download the file again or check eval.glue.path"
            )
    return rows[task.header :]


def _encoded(sentences: Sequence[str], tokens: Tokens) -> list[tuple[int, ...]]:
    """Token ids after a start token (causal models) or between special tokens (masked models)."""
    causal = tokens.kind == "causal"
    ids = tokens.tokenizer(list(sentences), add_special_tokens=not causal, verbose=False).input_ids
    if not causal:
        return [tuple(i) for i in ids]
    start = start_id(tokens.tokenizer)
    return [(start, *after(start, i)) for i in ids]


def _cells(rows: pd.DataFrame, positive: str) -> tuple[np.ndarray, ...]:
    """Columns of the confusion matrix for `metrics.f1` and `metrics.matthews`."""
    true, called = ((rows[column] == positive).to_numpy() for column in ("target", "candidate"))
    return tuple(cell.astype(float) for cell in (true & called, ~true & called, true & ~called, ~true & ~called))
