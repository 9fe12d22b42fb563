"""A base model and the same with its adapter, as what scores texts; what was scored once comes from a shared cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import nn

from debias.files import whole_file
from debias.models.adapter import adapter_sha256, virtual_tokens
from debias.models.base import Base, LanguageModel, bf16_is_native
from debias.progress import bar
from debias.records import Candidate, Scored, Tokens, UserError
from debias.scoring import likelihood
from debias.scoring.layouts import padded
from debias.scoring.protocols import Pieces

log = logging.getLogger(__name__)

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16}


class Scorer:
    """Scores texts under the base model and under the base with its adapter.

    Args:
        base: the loaded base; its weights are converted to `precision` in place.
        adapted: the same model with an adapter, or None.
        precision: `32` or `bf16` (a third to half of the time; single scores move by up to 0.4 nats per token).
        token_budget: positions of one forward pass; 512 suits a CPU's cache, a GPU likes 2,048 and more.
        cache: folder of shared scores; they are keyed on weights, precision and every scored token. None: keep none.
        name: what the model with the adapter is called in the records.
    """

    def __init__(
        self, base: Base, adapted: Any, precision: str, token_budget: int, cache: Path | None, name: str = "debiased"
    ) -> None:
        self.base, self.adapted, self.precision, self.token_budget, self.cache, self.name = (
            base, adapted, precision, token_budget, cache, name,
        )  # fmt: skip
        self.model: LanguageModel = base.model if adapted is None else adapted
        self.adapter_sha256 = "" if adapted is None or cache is None else adapter_sha256(adapted)
        if not getattr(base.model, "is_quantized", False):  # quantised weights stay as they are
            nn.Module.to(self.model, PRECISIONS[precision])  # transformers' own `to` is typed wrongly
        if precision == "bf16" and self.device.type == "cpu" and not bf16_is_native():
            log.warning("this processor has no bfloat16 instructions: scoring.precision=bf16 is far slower than 32")
        self.layout = likelihood.choose_layout(self.model, base.kind)
        if self.layout is padded:
            log.info("%s takes no prefix trees: scoring in padded batches, which is slower", type(base.model).__name__)
        self.active = "base" if adapted is None else name
        self.positions = 0
        self.notes: dict[str, None] = {}

    @property
    def tokens(self) -> Tokens:
        """How the model sees text."""
        return self.base.tokens

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def max_positions(self) -> int | None:
        """How many tokens of a text fit in, behind the adapter's prompt if it has one; None where there is no limit."""
        limit = self.base.max_positions
        return limit and limit - (virtual_tokens(self.adapted) if self.adapted is not None else 0)

    def models(self) -> list[str]:
        """Names of the models that can be scored."""
        return ["base"] if self.adapted is None else ["base", self.name]

    @contextmanager
    def using(self, model: str) -> Iterator[None]:
        """Score with this model inside the block."""
        before, self.active = self.active, model
        off = self.adapted is not None and model == "base"
        try:
            with self.adapted.disable_adapter() if off else nullcontext():
                yield
        finally:
            self.active = before

    def score(self, candidates: Sequence[Candidate], protocol: Any, label: str) -> pd.DataFrame:
        """One row per candidate: example, candidate, bias, target, logprob (nats), num_tokens, score.

        A candidate that the protocol cannot score, or that is longer than the model's context, has no score; what
        cannot be scored is counted in `notes`. Raises UserError when that is everything.
        """
        reading = protocol.reading(self.tokens, all(c.cloze for c in candidates))
        spans_of = [list(spans) for spans in reading.spans(candidates, self.tokens.tokenizer)]
        limit = self.max_positions
        long = [bool(limit) and any(s.num_positions > limit for s in spans) for spans in spans_of]
        kept = [[] if is_long else spans for spans, is_long in zip(spans_of, long, strict=True)]
        spans = [span for several in kept for span in several]
        answer_S2 = self.logprobs(spans, label) if spans else np.empty((0, 2))
        owner_S = np.repeat(np.arange(len(kept)), [len(several) for several in kept])
        num_S = np.array([span.num_tokens for span in spans], dtype=float)
        pieces = Pieces(answer_S2[:, 0], answer_S2[:, 1].astype(bool), num_S, owner_S, len(kept))
        rows = pd.DataFrame([c[:4] for c in candidates], columns=["example", "candidate", "bias", "target"])
        rows["logprob"] = pieces.total(pieces.logprob_S)
        rows["num_tokens"] = pieces.total(num_S).astype(int)
        rows["score"] = reading.score(pieces)
        self._note(rows, long, f"{label} ({protocol.name})", limit)
        return rows

    def _note(self, rows: pd.DataFrame, long: Sequence[bool], label: str, limit: int | None) -> None:
        examples = rows["example"].nunique()
        missing = rows.loc[rows["score"].isna(), "example"].nunique()
        too_long = rows.loc[np.array(long, dtype=bool), "example"].nunique()
        if not missing:
            return
        why = f", {too_long:,} of them longer than the model's {limit} tokens" if too_long else ""
        note = f"{label}: {missing:,} of {examples:,} examples cannot be scored and are left out{why}"
        if missing == examples:
            raise UserError(f"{label}: none of {examples:,} examples can be scored{why}; choose another benchmark, or "
                            "shorter texts where it lets you (eval.perplexity.window)")  # fmt: skip
        self.notes[note] = None

    def logprobs(self, spans: Sequence[Scored], label: str) -> np.ndarray:
        """Shape (S, 2): log-probability of each span in nats, and 1 where its tokens are the likeliest ones."""

        def fresh() -> np.ndarray:
            progress = bar(f"{label}, {self.active}")
            scores = likelihood.score_and_greedy(self.model, spans, self.layout, self.token_budget, progress)
            if not np.isfinite(scores).all():
                raise UserError(
                    f"the {self.active} model gives log-probabilities that are no numbers; "
                    "training diverged (lower training.lr)"
                )
            self.positions += sum(span.num_tokens for span in spans)
            return scores

        return self.cached(_content(spans), fresh)

    def cached(self, content: Iterable[bytes], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """What `compute` gives for the active model, from the shared cache where it was computed before.

        Args:
            content: everything that the result depends on beside weights, arithmetic and versions.
        """
        if self.cache is None:
            return compute()
        path = self.cache / "scores" / f"{self._key(content)}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Jobs that start together all want the base's scores: one computes them, the others wait for it.
        with FileLock(path.with_suffix(".lock")) if self.active == "base" else nullcontext():
            return self._load_or_keep(path, compute)

    def _load_or_keep(self, path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if path.is_file():
            try:
                return np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError):
                log.warning("%s is damaged and will be computed again", path)
        log.debug("scoring afresh: %s %s", self.active, path.stem[:12])
        result = compute()
        with whole_file(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, result)
        return result

    def _key(self, content: Iterable[bytes]) -> str:
        digest = hashlib.sha256()
        arithmetic = f"{self.precision} {self.device.type} {torch.__version__}"
        adapter = self.adapter_sha256 if self.active != "base" else ""
        digest.update(f"{self.base.sha256} {adapter} {arithmetic}".encode())
        for part in content:
            digest.update(part)
        return digest.hexdigest()


def _content(spans: Sequence[Scored]) -> Iterator[bytes]:
    """The scored tokens with their context, without ambiguity."""
    yield f"spans {len(spans)}".encode()
    for span in spans:
        numbers = [len(part) if isinstance(part, tuple) else part for part in span]
        for part in span:
            numbers.extend(part if isinstance(part, tuple) else ())
        yield np.array(numbers, dtype=np.int64).tobytes()
