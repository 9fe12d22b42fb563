"""A base and the same debiased, as what scores texts; what was scored once comes from a shared cache."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import torch
from torch import nn

from debias.assets.cache import cached
from debias.files import whole_file
from debias.models.adapter import virtual_tokens
from debias.models.base import Base, LanguageModel, bf16_is_native
from debias.models.checksums import adapter_sha256, arithmetic
from debias.models.placement import inputs_on
from debias.models.products import fast_products, has_fast_products
from debias.progress import bar
from debias.records import AUTO, Candidate, Scored, Tokens, UserError
from debias.run_identity import code_sha256
from debias.scoring import batched, likelihood
from debias.scoring.layout_trial import choose_layout
from debias.scoring.layouts import ROW, Layout, padded
from debias.scoring.method import Method
from debias.scoring.protocols import Pieces, Protocol, Reading, start_of
from debias.wording import counted, plural

log = logging.getLogger(__name__)

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16}
HELD = "held"  # the types in which the weights are held
_PLAIN = Method("none", "")


class Scorer:
    """Scores texts under the base model, and under the base with an adapter or with another debiasing method.

    Args:
        base: the loaded base; its weights are converted to `precision` in place, except under `held`.
        adapted: the same model with an adapter, or None.
        precision: `32`, `bf16` (a third to half of the time; single scores move by up to 0.4 nats per token),
            `held`, or `auto`: bf16 on a GPU, else 32 with the faster library's products (`fast_products`).
        token_budget: positions of one forward pass; `auto`: what suits the device, its free memory and the model.
        cache: folder of shared scores; None: keep none.
        name: what the debiased model is called in the records.
        method: what debiases the base in place of an adapter, or None.
    """

    def __init__(
        self,
        base: Base,
        adapted: peft.PeftModel | None,
        precision: str = AUTO,
        token_budget: int | str = AUTO,
        cache: Path | None = None,
        name: str = "debiased",
        method: Method | None = None,
    ) -> None:
        assert adapted is None or method is None
        self.base, self.adapted, self.cache, self.name = base, adapted, cache, name
        self.model: LanguageModel = base.model if adapted is None else adapted
        self.method = method
        self.debiased_sha256 = method.sha256 if method is not None else ""
        if adapted is not None and cache is not None:
            self.debiased_sha256 = adapter_sha256(adapted)
        self.fast = False  # whether another library multiplies
        if precision == AUTO:
            self.fast = has_fast_products(self.device)
            precision = "bf16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "32"
        self.precision = precision
        if precision == "32" and base.rounded and likelihood.dtype(base.model) == torch.bfloat16:  # said once
            log.warning(
                "scoring.precision=32 computes in float32, but loading has rounded the weights to bfloat16; "
                "model.dtype=float32 keeps them whole"
            )
        if precision != HELD and not getattr(base.model, "is_quantized", False):  # quantised weights stay as they are
            _convert(self.model, PRECISIONS[precision])
        if precision == "bf16" and self.device.type == "cpu" and not bf16_is_native():
            log.warning("this processor has no bfloat16 instructions: scoring.precision=bf16 is far slower than 32")
        self.token_budget = batched.budget(self.model) if token_budget == AUTO else int(token_budget)
        self.active = "base" if adapted is None else name
        self._switched = ExitStack()  # what makes the model the active one
        self.positions = 0
        self.notes: dict[str, None] = {}
        self.start_tokens: dict[str, str] = {}  # by protocol
        self._layouts: dict[str, tuple[int, Layout]] = {}  # model -> the longest text it was tried with, and the layout

    @property
    def tokens(self) -> Tokens:
        """How the model sees text."""
        return self.base.tokens

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return inputs_on(self.model)

    @property
    def max_positions(self) -> int | None:
        """How many tokens of a text fit in, behind what adapter or method put there; None where there is no limit."""
        limit = self.base.max_positions
        prompt = virtual_tokens(self.adapted) if self.adapted is not None else 0
        return limit and limit - prompt - (self.method.added if self.method is not None else 0)

    def layout(self, longest: int) -> Layout:
        """The layout for texts of at most `longest` tokens under the active model, which was asked for it."""
        tried, layout = self._layouts.get(self.active, (0, None))
        if layout is None or longest > tried:
            row = min(ROW, self.token_budget)
            longest = self._reach(longest)
            before, layout = layout, choose_layout(self.model, self.base.kind, longest, row)
            self._layouts[self.active] = longest, layout
            if layout is padded and before is not padded:
                log.info("%s takes no prefix trees: scoring padded rows, which is slower", likelihood.name(self.model))
        return layout

    def _reach(self, longest: int) -> int:
        """In powers of two, so that a later benchmark with somewhat longer texts finds the layout tried."""
        return min(self.max_positions or 1 << 30, max(64, 1 << (longest - 1).bit_length()))

    def models(self) -> list[str]:
        """Names of the models that can be scored."""
        return ["base"] if self.adapted is None and self.method is None else ["base", self.name]

    @contextmanager
    def using(self, model: str) -> Iterator[None]:
        """Score with this model inside the block, which may be inside another model's."""
        before = self.active
        self._switch(model)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, model: str) -> None:
        """Undo what the last switch did to the model before the next, so that `using` nests."""
        self._switched.close()
        self.active = model
        if model == "base" and self.adapted is not None:
            self._switched.enter_context(self.adapted.disable_adapter())
        elif model != "base" and self.method is not None:
            self._switched.enter_context(self.method.on(self.base.model))

    def score(self, candidates: Sequence[Candidate], protocol: Protocol, label: str) -> pd.DataFrame:
        """One row per candidate: example, candidate, bias, target, logprob (nats), num_tokens, score.

        A candidate that the protocol cannot score, or that is longer than the model's context, has no score; what
        cannot be scored is counted in `notes`. Raises UserError when that is everything.
        """
        reading = protocol.reading(self.tokens, any(c.cloze for c in candidates))
        self._tell_start(protocol, reading)
        spans_of = [list(spans) for spans in reading.spans(candidates, self.tokens.tokenizer)]
        limit = self.max_positions
        long = [limit is not None and any(s.num_positions > limit for s in spans) for spans in spans_of]
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

    def _tell_start(self, protocol: Protocol, reading: Reading) -> None:
        """Record, and log once, which start token a protocol uses."""
        start = start_of(protocol, reading, self.tokens)
        if start is None or protocol.name in self.start_tokens:
            return
        self.start_tokens[protocol.name] = start.token
        log.info("start token of %s: %s", protocol.name, start.token)
        if start.note and start.note not in self.notes:
            log.warning("%s", start.note)
            self.notes[start.note] = None

    def _note(self, rows: pd.DataFrame, long: Sequence[bool], label: str, limit: int | None) -> None:
        examples = rows["example"].nunique()
        missing = rows.loc[rows["score"].isna(), "example"].nunique()
        too_long = rows.loc[np.array(long, dtype=bool), "example"].nunique()
        if not missing:
            return
        why = f", {too_long:,} of them longer than the model's {limit} tokens" if too_long else ""
        of = counted(examples, "example")
        note = f"{label}: {missing:,} of {of} cannot be scored and {plural(missing, 'is', 'are')} left out{why}"
        if missing == examples:
            raise UserError(f"{label}: none of {of} can be scored{why}; choose another benchmark, or "
                            "shorter texts where it lets you (eval.perplexity.window)")  # fmt: skip
        self.notes[note] = None

    def logprobs(self, spans: Sequence[Scored], label: str) -> np.ndarray:
        """Shape (S, 2): log-probability of each span in nats, and 1 where its tokens are the likeliest ones."""

        method = self.method if self.method is not None and self.active != "base" else _PLAIN
        longest = max(span.num_positions for span in spans) + method.added

        def fresh() -> np.ndarray:
            progress = bar(f"scoring {label}, {self.active} model")
            layout = self.layout(longest)  # tried with the exact products
            with fast_products(self.device) if self.fast else nullcontext():
                scores = method.scores(self.model, spans, layout, self.token_budget, progress)
            if not np.isfinite(scores).all():
                of_base = "try scoring.precision=32 and model.dtype=float32, or choose another checkpoint"
                remedy = of_base if self.active == "base" else "training diverged (lower training.lr)"
                raise UserError(f"the {self.active} model gives log-probabilities that are NaN or inf; {remedy}")
            self.positions += sum(span.num_tokens for span in spans)
            return scores

        return self.cached(itertools.chain([f"texts of {self._reach(longest)}".encode()], _content(spans)), fresh)

    def cached(self, content: Iterable[bytes], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """What `compute` gives for the active model, from the shared cache where it was computed before.

        Args:
            content: everything that the result depends on beside weights, arithmetic and versions.
        """
        if self.cache is None:
            return compute()
        path = self.cache / "scores" / f"{self._key(content)}.npy"

        def make() -> np.ndarray:
            log.debug("scoring afresh: %s %s", self.active, path.stem[:12])
            return compute()

        # Jobs that start together all want the base's scores: one computes them, the others wait for it.
        return cached(path, kept_scores, make, keep_scores, f"score texts under the {self.active} model")

    def _key(self, content: Iterable[bytes]) -> str:
        digest = hashlib.sha256()
        debiased = self.debiased_sha256 if self.active != "base" else ""
        digest.update(f"{self.base.sha256} {debiased} {self._arithmetic}".encode())
        for part in content:
            digest.update(part)
        return digest.hexdigest()

    @functools.cached_property
    def _arithmetic(self) -> str:
        """Everything beside weights and tokens that a score depends on, down to its last digits."""
        products = "fast" if self.fast else "exact"
        how = [self.precision, products, self.device.type, self.token_budget, code_sha256("scoring", "models")]
        return f"{arithmetic(self.base.model)} {how}"


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring a model's weights to a type, but not the frequencies of its rotary embeddings.

    transformers holds those in float32 whatever the type of the weights: with 8 bits, far positions would be confused.
    """
    rotary = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    nn.Module.to(model, dtype)  # transformers' own `to` is typed wrongly
    for module, name, buffer in rotary:
        setattr(module, name, buffer)


def kept_scores(path: Path) -> np.ndarray | None:
    """Scores from the cache, or None if there are none or the file is damaged."""
    if not path.is_file():
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        log.warning("%s is damaged and will be computed again", path)
        return None


def keep_scores(path: Path, scores: np.ndarray) -> None:
    """Write scores to the cache."""
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, scores)


def _content(spans: Sequence[Scored]) -> Iterator[bytes]:
    """The scored tokens with their context, without ambiguity."""
    yield f"spans {len(spans)}".encode()
    for span in spans:
        numbers = [len(part) if isinstance(part, tuple) else part for part in span]
        for part in span:
            numbers.extend(part if isinstance(part, tuple) else ())
        yield np.array(numbers, dtype=np.int64).tobytes()
