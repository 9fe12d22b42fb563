"""Any task of lm-evaluation-harness (Gao et al. 2021), run on the base and the debiased model."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from debias.assets import network
from debias.benchmarks.metrics import mean_of_first
from debias.benchmarks.sampling import fingerprint
from debias.benchmarks.statistics import Comparison, compare
from debias.records import Candidate, Count, Natural, Tokens, UserError
from debias.run_identity import code_sha256

if TYPE_CHECKING:
    from debias.scoring.scorer import Scorer

INSTALL = "python -m pip install lm-eval==0.4.13"
FEWSHOT_SEED = 1234  # the harness's default: the prompts we fingerprint have the same few-shot examples as its own
# Metrics between 0 and 1, shown as percentages. This holds for a task's own `f1` or `em` per document too.
SHARES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1", "pct_stereotype"}
IDEAL = {"pct_stereotype": 50.0}  # the harness says that lower is better


class LmEval:
    """Tasks of an installed lm-evaluation-harness, with its own models, prompts and metrics.

    Only metrics that are means over documents are used, so that every figure can be recomputed from the records. A note
    names the excluded ones.

    Args:
        tasks: names of tasks, groups or tags.
        limit: number of documents per task, from the first on; null means all.
        include_path: a folder with your own task files.
        num_fewshot: examples in the prompt; null means the task's own number.
        batch_size: the harness's batch size: a number or `auto`.
        n_resamples: bootstrap resamples of documents.
    """

    name = "lm_eval"
    protocol_name = "lm_eval"

    def __init__(
        self,
        tasks: Sequence[str] | str,
        limit: Count | None = None,
        include_path: str | None = None,
        num_fewshot: Natural | None = None,
        batch_size: Count | Literal["auto"] = 8,
        n_resamples: Count = 9999,
    ) -> None:
        self.tasks = [tasks] if isinstance(tasks, str) else list(tasks)
        self.limit, self.include_path, self.num_fewshot = limit, include_path, num_fewshot
        self.batch_size, self.n_resamples = batch_size, n_resamples

    def fingerprint(self) -> str:
        """SHA-256 of the harness's version, the tasks' configs and all texts shown to the model."""
        configs = [json.dumps(task.dump_config(), default=repr, sort_keys=True) for task in self._loaded.values()]
        return fingerprint([_harness().__version__, *configs, *map(repr, self._requests)])

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """One text per request: a prompt, or a prompt with one of its answers."""
        return self._requests

    def measure(self, scorer: Scorer, candidates: Sequence[Candidate]) -> pd.DataFrame:
        """One row per document and metric: `candidate` is the metric's name, `target` its direction."""
        from debias.models.checksums import tokenizer_sha256  # with torch, which a report does without

        if scorer.tokens.kind != "causal":
            raise UserError("eval=lm_eval needs a causal model and this one is masked; choose other benchmarks")
        how = f"{code_sha256('benchmarks/lm_eval.py')} {tokenizer_sha256(scorer.tokens.tokenizer)}"
        content = f"lm_eval {self.num_fewshot} {self.batch_size} {how} {self.fingerprint()}".encode()
        answer = json.loads(scorer.cached([content], lambda: self._evaluate(scorer)).tobytes())
        scorer.notes |= dict.fromkeys(answer["notes"])
        rows = pd.DataFrame(answer["rows"], columns=["example", "candidate", "bias", "target", "score"])
        return rows.assign(logprob=np.nan, num_tokens=0)

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """The mean of each metric of each task; the resampled unit is the document."""
        keys = ["bias", "candidate", "target", "example"]
        both = base[[*keys, "score"]].merge(debiased[[*keys, "score"]], on=keys, suffixes=("_base", "_debiased"))
        for key, rows in both.groupby(keys[:3], sort=False):
            task, metric, direction = map(str, key)
            plain = metric.partition(",")[0]  # without the filter
            share = plain in SHARES
            before, after = ((100.0 if share else 1.0) * rows[f"score_{m}"].to_numpy() for m in ("base", "debiased"))
            best = {"higher": 100.0 if share else None, "lower": 0.0}.get(direction)
            yield compare(
                task, metric, IDEAL.get(plain, best), len(rows), mean_of_first,
                (before,), (after,), self.n_resamples, pairs=share and bool(np.isin([before, after], (0, 100)).all()),
            )  # fmt: skip

    def _evaluate(self, scorer: Scorer) -> np.ndarray:
        """JSON bytes with `rows` and `notes`, from a run of the harness with the scorer's active model."""
        from lm_eval.models.huggingface import HFLM

        model = HFLM(
            pretrained=scorer.model,
            tokenizer=copy.deepcopy(scorer.tokens.tokenizer),  # the harness sets its padding token
            batch_size=self.batch_size,
            softmax_dtype="float32",
        )
        # JSON, because the scorer's cache holds arrays: this one is bytes.
        found = _harness().simple_evaluate(
            model, tasks=list(self._loaded.values()), num_fewshot=self.num_fewshot, limit=self.limit,
            bootstrap_iters=0, log_samples=True, task_manager=_manager(self.include_path),
        )  # fmt: skip
        rows: list[tuple[str, str, str, str, float]] = []
        notes: list[str] = []
        for task in self._loaded:
            taken, excluded = documents(self._loaded[task], found["samples"][task])
            rows += taken
            notes += [f"lm_eval: {task}: {name} is not a mean over documents, so it is excluded" for name in excluded]
        if not rows:
            raise UserError(f"{'; '.join(notes)}; choose tasks with accuracies")
        return np.frombuffer(json.dumps({"rows": rows, "notes": notes}).encode(), np.uint8)

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        if not self.tasks:
            raise UserError("eval.lm_eval.tasks is empty; name tasks of the harness, as in eval.lm_eval.tasks=[piqa]")
        manager = _manager(self.include_path)
        for name in self.tasks:
            if name not in manager.all_tasks:
                where = f" and {self.include_path}" if self.include_path else ""
                raise UserError(
                    f"eval.lm_eval.tasks: lm-eval {_harness().__version__}{where} has no task {name!r}; "
                    "check the name, or set eval.lm_eval.include_path to the folder with its file"
                )
        try:
            return manager.load(self.tasks)["tasks"]
        except Exception as error:  # a task file is third-party code that may raise anything
            raise self._unreadable(error) from error

    @cached_property
    def _requests(self) -> list[Candidate]:
        requests = []
        for name, task in self._loaded.items():
            if self.num_fewshot is not None and task.config.num_fewshot != 0:  # the harness's own rule
                task.set_config("num_fewshot", self.num_fewshot)
            task.set_fewshot_seed(FEWSHOT_SEED)
            try:
                task.build_all_requests(limit=self.limit)
            except Exception as error:
                raise self._unreadable(error) from error
            for request in task.instances:
                text = "".join(part for part in request.args if isinstance(part, str))
                requests.append(Candidate(f"{name}:{request.doc_id}", f"request {request.idx}", name, "", text))
        return requests

    def _unreadable(self, error: Exception) -> UserError:
        network.check_hub()  # which may be the reason
        reason = " ".join(f"{error.__cause__ or error}".split())[:300]
        return UserError(
            f"eval.lm_eval.tasks={self.tasks}: the data cannot be read ({type(error).__name__}: {reason}); "
            "check its dataset_path, data_files and fields, or go online once if the data is on the hub"
        )


def documents(task: Any, samples: Sequence[dict[str, Any]]) -> tuple[list[tuple[str, str, str, str, float]], list[str]]:
    """Rows (example, metric, task, direction, value), and the names of metrics that are not means over documents.

    Args:
        task: a task of the harness; it knows how a metric is aggregated and whether higher is better.
        samples: the harness's log: one document under one filter, with the values of its metrics.
    """
    from lm_eval.api.metrics import mean

    name, aggregation, direction = task.config.task, task.aggregation(), task.higher_is_better()
    values: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault((metric, sample["filter"]), []).append((sample["doc_id"], sample[metric]))
    rows, excluded = [], []
    for (metric, chosen), column in values.items():
        label = metric if chosen == "none" else f"{metric},{chosen}"
        numbers = [value for _, value in column if isinstance(value, int | float | np.number)]
        if aggregation.get(metric, mean) is mean and len(numbers) == len(column) and all(map(math.isfinite, numbers)):
            better = {True: "higher", False: "lower"}.get(direction.get(metric), "")
            rows += [(f"{name}:{doc}", label, name, better, float(value)) for doc, value in column]
        else:
            excluded.append(label)
    return rows, excluded


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(f"eval=lm_eval needs lm-evaluation-harness ({error}); install it: {INSTALL}") from error
    return lm_eval


@cache
def _manager(include_path: str | None) -> Any:
    """The harness's index of tasks. Building it takes some seconds."""
    _harness()
    from lm_eval.tasks import TaskManager

    folder = Path(include_path).expanduser() if include_path else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"eval.lm_eval.include_path={include_path} is not a folder; name the one with the task files")
    return TaskManager(include_path=folder)
