"""Benchmarks x models -> scored candidates and figures; base and debiased model come from one load."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from debias import likelihood
from debias.benchmarks import Benchmark
from debias.models.adapter import adapter_sha256
from debias.models.base import Base
from debias.progress import bar
from debias.records import Figure, Span, UserError

log = logging.getLogger(__name__)

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16}


class Evaluation(NamedTuple):
    """Everything that was measured: figures, one row per scored text, and the texts themselves."""

    figures: list[Figure]
    likelihoods: pd.DataFrame  # the columns of likelihoods.parquet
    texts: pd.Series  # by (benchmark, example, candidate)
    positions: int  # tokens that were scored afresh, not taken from the cache


class Scorer:
    """Scores texts under the base model and under the base with its adapter.

    Args:
        base: the loaded base; its weights are converted to `precision` in place.
        adapted: the same model with an adapter, or None.
        precision: `32` or `bf16` (a third to half of the time; single scores move by up to 0.4 nats per token).
        token_budget: positions of one forward pass; 512 suits a CPU's cache, a GPU likes 2,048 and more.
        cache: folder of shared scores; they are keyed on weights, precision and every scored token.
    """

    def __init__(self, base: Base, adapted: Any, precision: str, token_budget: int, cache: Path) -> None:
        self.base, self.adapted, self.precision, self.token_budget, self.cache = (
            base, adapted, precision, token_budget, cache,
        )  # fmt: skip
        self.model = base.model if adapted is None else adapted
        self.adapter_sha256 = "" if adapted is None else adapter_sha256(adapted)
        self.model.to(PRECISIONS[precision])
        self.layout = likelihood.choose_layout(self.model)
        if self.layout is likelihood.padded:
            log.info("%s takes no prefix trees: scoring in padded batches, which is slower", type(base.model).__name__)
        self.positions = 0

    def models(self) -> list[str]:
        """Names of the models that can be scored."""
        return ["base"] if self.adapted is None else ["base", "debiased"]

    def logprobs(self, spans: Sequence[Span], model: str, label: str) -> np.ndarray:
        """Log-probability of each span in nats, from the shared cache where the same was scored before."""
        self._check_length(spans)
        path = self.cache / "scores" / f"{self._key(spans, model)}.npy"
        if path.is_file():
            try:
                scores = np.load(path, allow_pickle=False)
                if scores.shape == (len(spans),):
                    return scores
            except (OSError, ValueError, EOFError):
                log.warning("%s is damaged and will be scored again", path)
        off = self.adapted is not None and model == "base"
        with self.adapted.disable_adapter() if off else nullcontext():
            scores = likelihood.score(self.model, spans, self.layout, self.token_budget, bar(f"{label}, {model}"))
        if not np.isfinite(scores).all():
            raise UserError(
                f"the {model} model gives log-probabilities that are no numbers; training diverged (lower training.lr)"
            )
        self.positions += sum(len(ids) - start for ids, start in spans)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{np.random.randint(1 << 30)}.tmp")
        with half.open("wb") as file:
            np.save(file, scores)
        half.replace(path)
        return scores

    def _key(self, spans: Sequence[Span], model: str) -> str:
        """Everything that a score depends on: weights, arithmetic and the scored tokens with their context."""
        digest = hashlib.sha256()
        arithmetic = f"{self.precision} {next(self.model.parameters()).device.type} {torch.__version__}"
        adapter = self.adapter_sha256 if model == "debiased" else ""
        digest.update(f"{self.base.sha256} {adapter} {arithmetic} {len(spans)}".encode())
        for ids, start in spans:
            digest.update(np.array([start, len(ids), *ids], dtype=np.int64).tobytes())
        return digest.hexdigest()

    def _check_length(self, spans: Sequence[Span]) -> None:
        longest = max(len(span.ids) for span in spans)
        limit = getattr(self.base.model.config, "max_position_embeddings", None)
        if limit and longest > limit + 1:  # the last token needs no position
            raise UserError(
                f"a text has {longest} tokens, but {self.base.name} has {limit} positions; "
                f"shorten it (eval.perplexity.window={limit - 1})"
            )


def evaluate(scorer: Scorer, benchmarks: Sequence[Benchmark]) -> Evaluation:
    """Score every benchmark under every model and compute the figures."""
    figures: list[Figure] = []
    frames: list[pd.DataFrame] = []
    texts: list[pd.DataFrame] = []
    for benchmark in benchmarks:
        candidates = pd.DataFrame(benchmark.candidates(scorer.base.tokenizer))
        candidates.insert(0, "benchmark", benchmark.name)
        scored = [score_candidates(scorer, benchmark, candidates, model) for model in scorer.models()]
        for comparison in benchmark.comparisons(scored[0], scored[-1]):
            lines = comparison.figures(benchmark.name, benchmark.protocol.name)
            figures.extend(line for line in lines if line.model in (*scorer.models(), *_delta(scorer)))
        frames.extend(scored)
        texts.append(candidates)
    by_text = pd.concat(texts).set_index(["benchmark", "example", "candidate"])["text"]
    return Evaluation(figures, pd.concat(frames, ignore_index=True), by_text, scorer.positions)


def _delta(scorer: Scorer) -> Iterator[str]:
    if scorer.adapted is not None:
        yield "delta"


def score_candidates(scorer: Scorer, benchmark: Benchmark, candidates: pd.DataFrame, model: str) -> pd.DataFrame:
    """One row per candidate: the columns of `candidates` without the text, and logprob, num_tokens and score."""
    tokenizer, protocol = scorer.base.tokenizer, benchmark.protocol
    start = protocol.start_id(tokenizer)
    ids = tokenizer(list(candidates["text"]), add_special_tokens=False, verbose=False).input_ids
    spans_of: list[list[Span]] = [protocol.spans(i, start) for i in ids]
    owner = np.repeat(np.arange(len(ids)), [len(spans) for spans in spans_of])
    logprob = scorer.logprobs([span for spans in spans_of for span in spans], model, benchmark.name)
    scored = candidates.drop(columns="text")
    scored["model"] = model
    scored["logprob"] = np.bincount(owner, weights=logprob, minlength=len(ids))
    scored["num_tokens"] = [sum(len(span.ids) - span.start for span in spans) for spans in spans_of]
    scored["score"] = scored["logprob"] / scored["num_tokens"]
    return scored
