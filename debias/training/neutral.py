"""Neutral text: what a model is held to its base on, and is never taught."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

import torch
from filelock import FileLock

from debias import assets
from debias.data.plaintext import read_passages
from debias.files import remove_unfinished, write_text
from debias.models.base import Base
from debias.models.placement import placed
from debias.progress import bar
from debias.records import Masked, Scored, Span, UserError
from debias.scoring.spans import start_id


class Neutral(Protocol):
    """What training needs of neutral text."""

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        """Texts in which nothing is scored."""


class Wikipedia:
    """Wikipedia sentences about professions (BOLD, Dhamala et al. 2021).

    Args:
        longest: tokens of a sentence; what is longer is cut.
    """

    def __init__(self, longest: int = 32) -> None:
        self.longest = longest

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        """The sentences, in which nothing is scored."""
        sentences = list(read_passages("bold-professions"))
        if base.kind == "masked":
            texts = base.tokenizer(sentences, truncation=True, max_length=self.longest).input_ids
            return [Masked(tuple(ids), (), ()) for ids in texts]
        front = (start_id(base.tokenizer),) if start_token else ()
        texts = base.tokenizer(sentences, add_special_tokens=False).input_ids
        return [_unscored((*front, *ids[: self.longest])) for ids in texts if len(ids) > 1]


class OwnText:
    """What the base model writes when it is asked for nothing: samples of its own distribution.

    On them the retention term estimates KL(base || model) over whatever the base would say, of any kind of text, and no
    other data is needed (self-synthesised rehearsal: Huang et al. 2024). They are written once for each model and kept
    in the cache.

    Args:
        n: samples.
        longest: tokens of a sample.
        start: what a sample begins with; the model's start token when empty.
        top_p: share of the probability that tokens are drawn from (nucleus sampling); 1 is the model's distribution,
            less leaves its noise out.
        seed: of the samples.
        batch_size: samples that are written together.
    """

    def __init__(
        self,
        n: int = 640,
        longest: int = 48,
        start: str | None = None,
        top_p: float = 1.0,
        seed: int = 1,
        batch_size: int = 64,
    ) -> None:
        if min(n, longest, batch_size) < 1:
            raise UserError("neutral.n, neutral.longest and neutral.batch_size must be 1 or more")
        if not 0 < top_p <= 1:
            raise UserError(f"neutral.top_p={top_p} must be more than 0 and at most 1")
        self.n, self.longest, self.start, self.top_p = n, longest, start, top_p
        self.seed, self.batch_size = seed, batch_size

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        """The samples, in which nothing is scored; a sample has its beginning whatever `start_token` is.

        Raises UserError for a masked model, which writes no text.
        """
        if base.kind == "masked":
            raise UserError("a masked model writes no text of its own; choose neutral=wikipedia")
        key = repr((base.sha256, self.n, self.longest, self.start, self.top_p, self.seed, self.batch_size))
        path = assets.cache_dir() / "own_text" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # runs that start together wait for the first
            samples = _kept(path)
            if samples is None:
                remove_unfinished(path.parent, path.name)
                samples = self._write(base)
                write_text(path, json.dumps(samples))
        return [_unscored(tuple(ids)) for ids in samples]

    @torch.inference_mode()
    def _write(self, base: Base) -> list[list[int]]:
        """Token ids of each sample, ended where the model ended it; none that it ended at once."""
        front = torch.tensor(
            [base.tokenizer.encode(self.start, add_special_tokens=False) if self.start else [start_id(base.tokenizer)]]
        )
        ends = base.model.generation_config.eos_token_id
        stop = {token for token in (ends if isinstance(ends, list) else [ends]) if token is not None}
        samples: list[list[int]] = []
        batches = range(0, self.n, self.batch_size)
        with placed(base.model), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for first in bar("writing neutral text")(batches, len(batches)):
                begin_BT = front.expand(min(self.batch_size, self.n - first), -1).to(base.model.device)
                answer_BT = base.model.generate(
                    begin_BT, attention_mask=torch.ones_like(begin_BT), do_sample=True, temperature=1.0, top_k=0,
                    top_p=self.top_p, max_new_tokens=self.longest, pad_token_id=min(stop, default=0),
                )  # fmt: skip
                samples += [_until(ids, front.shape[1], stop) for ids in answer_BT.tolist()]
        return [ids for ids in samples if len(ids) > front.shape[1] + 1]


class ByKind:
    """The base's own text where it writes any, else another.

    Args:
        causal: for causal models.
        masked: for masked models.
    """

    def __init__(self, causal: Neutral, masked: Neutral) -> None:
        self.of_kind = {"causal": causal, "masked": masked}

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        """What fits the kind of the base."""
        return self.of_kind[base.kind].spans(base, start_token)


def _until(ids: list[int], start: int, stop: set[int]) -> list[int]:
    """The ids before the first that ends a text."""
    end = next((k for k in range(start, len(ids)) if ids[k] in stop), len(ids))
    return ids[:end]


def _unscored(ids: tuple[int, ...]) -> Span:
    return Span(ids, len(ids))


def _kept(path: Path) -> list[list[int]] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
