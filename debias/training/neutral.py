"""Neutral text: the model is not trained to predict it, only kept close to the base on it by the KL term.

The KL term also covers the unscored tokens of training sentences, but those are few and all of one kind. Neutral text
shows the model being trained what the base says in general.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import torch

from debias import assets
from debias.assets.cache import cached
from debias.data.plaintext import read_passages
from debias.files import write_text
from debias.models.base import Base
from debias.models.checksums import arithmetic
from debias.models.placement import placed
from debias.progress import bar
from debias.records import Count, Masked, Scored, Seed, SomeShare, Span, UserError
from debias.scoring.spans import after, start_id
from debias.scoring.writing import drawn, end_tokens

Settings = tuple[int, int, tuple[str | None, ...], float, int]  # n, longest, starts, top_p and seed of samples


class NeutralText(Protocol):
    """A source of neutral text."""

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        """Texts with no scored tokens.

        Args:
            start_token: whether training sentences begin with the model's start token; sources may follow them.
        """

    def texts_per_step(self, kind: str) -> int:
        """How many of the texts a step takes unless `training.num_neutral` says otherwise: fewer of longer ones."""


class Wikipedia:
    """Wikipedia sentences about professions (BOLD, Dhamala et al. 2021).

    Args:
        longest: sentences are cut after this many tokens.
        per_step: sentences that a training step takes.
    """

    def __init__(self, longest: Count = 32, per_step: Count = 4) -> None:
        self.longest, self.per_step = longest, per_step

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        """The sentences, with no scored tokens."""
        sentences = list(read_passages("bold-professions"))
        if base.kind == "masked":
            texts = base.tokenizer(sentences, truncation=True, max_length=self.longest).input_ids
            return [Masked(tuple(ids), (), ()) for ids in texts]
        start = start_id(base.tokenizer) if start_token else None
        front = () if start is None else (start,)
        texts = base.tokenizer(sentences, add_special_tokens=False).input_ids
        texts = texts if start is None else [after(start, ids) for ids in texts]
        return [_unscored((*front, *ids[: self.longest])) for ids in texts if len(ids) > 1]

    def texts_per_step(self, kind: str) -> int:
        """As set, for both kinds of model."""
        return self.per_step


class SelfGenerated:
    """Self-generated text: samples from the base model itself, with no prompt or with beginnings of a kind.

    For whole texts, KL(base || model) is the mean over x ~ base of sum_t KL(base(. | x_<t) || model(. | x_<t)). So the
    base's own samples are the texts to take the KL term on: they cover whatever the base would say, and need no other
    data (self-synthesised rehearsal, Huang et al. 2024). A kind that is rare among them, such as stories, needs
    beginnings of its own. The samples are generated once per model and kept in the cache.

    Args:
        n: number of samples, rounded up to the same for each beginning.
        longest: most new tokens of a sample, within the model's context.
        start: text that samples begin with, behind the model's start token; of several, each begins as many. None:
            nothing but the start token. Raises UserError for an empty list.
        top_p: nucleus sampling: draw from the likeliest tokens that hold this share of the probability. 1 samples from
            the model's full distribution; less cuts the noise of its tail.
        seed: of the sampling.
        batch_size: samples generated at a time; None: 64 on a CPU, all of a beginning at once on a GPU.
        per_step: samples that a training step takes.
    """

    def __init__(
        self,
        n: Count = 640,
        longest: Count = 48,
        start: str | Sequence[str | None] | None = None,
        top_p: SomeShare = 1.0,
        seed: Seed = 1,
        batch_size: Count | None = None,
        per_step: Count = 4,
    ) -> None:
        self.per_step = per_step
        self.starts = (start,) if start is None or isinstance(start, str) else tuple(start)
        if not self.starts:
            raise UserError("neutral.start=[] has no beginnings; name some, or set it to null for none")
        self.n, self.longest, self.top_p, self.seed, self.batch_size = n, longest, top_p, seed, batch_size

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        """The samples, with no scored tokens. They begin with the start token whatever `start_token` is.

        Raises UserError for a masked model, which cannot generate.
        """
        if base.kind == "masked":
            raise UserError("a masked model cannot generate text; choose neutral=wikipedia")
        settings = (self.n, self.longest, self.starts, self.top_p, self.seed)
        if shipped := _shipped(base, settings):
            return [_unscored(tuple(ids)) for ids in shipped]
        where = (base.model.device.type, self.batch_size, arithmetic(base.model))
        key = repr((base.sha256, *settings, *where, self._fronts(base), sorted(self._stops(base))))
        path = assets.cache_dir() / "self_generated" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        samples = cached(path, _kept, partial(self._generate, base), _keep, "generate neutral text")
        return [_unscored(tuple(ids)) for ids in samples]

    def texts_per_step(self, kind: str) -> int:
        """As set."""
        return self.per_step

    def _generate(self, base: Base) -> list[list[int]]:
        """Token ids of each sample, up to the model's end token. Drops samples of fewer than two new tokens."""
        fronts, stop = self._fronts(base), self._stops(base)
        size = self.batch_size or (64 if base.model.device.type == "cpu" else self.n)
        number = -(-self.n // len(fronts))  # of each beginning
        batches = [(front, first) for front in fronts for first in range(0, number, size)]
        samples: list[list[int]] = []
        with placed(base.model), torch.random.fork_rng():
            for front, first in bar("generating neutral text")(batches, len(batches)):
                if first == 0:  # the samples of a beginning do not depend on the other ones
                    torch.manual_seed(self.seed)
                begin_BT = torch.tensor([front]).expand(min(size, number - first), -1).to(base.model.device)
                # The last token of a sample is not read.
                room = self.longest if base.max_positions is None else base.max_positions + 1 - len(front)
                for new in drawn(base.model, begin_BT, max(1, min(self.longest, room)), self.top_p):
                    text = _until(new, stop)
                    if len(text) > 1:
                        samples.append([*front, *text])
        return samples

    def _fronts(self, base: Base) -> list[tuple[int, ...]]:
        """The token ids that samples begin with."""
        start = start_id(base.tokenizer)
        texts = [base.tokenizer.encode(text or "", add_special_tokens=False) for text in self.starts]
        return [(start, *after(start, ids)) for ids in texts]

    def _stops(self, base: Base) -> set[int]:
        """The token ids that end a sample: a second start token begins another text."""
        return end_tokens(base.model) | {start_id(base.tokenizer)}


# The embedded model's samples come with the program: generating them takes minutes on a CPU. They were made by
# `neutral=own` and `neutral=stories` as their config files stand, in batches of 64, in float32.
SHIPPED_FOLDER = Path(__file__).parent / "self_generated"
SHIPPED = {  # settings -> file and its checksum
    (640, 48, (None,), 0.95, 1): (
        "smollm2.json", "36ec24f6ae0c09fa2a585d75e66ffe6e2134cd0e9ea983e5962025a6e8bf8697"
    ),
    (128, 96, ("Once upon a time",), 0.95, 1): (
        "smollm2_stories.json", "716e9dcc2ce3f50794b85581cf9a910af085144c098870d852c087208b52e1f3"
    ),
}  # fmt: skip


def _shipped(base: Base, settings: Settings) -> list[list[int]] | None:
    """The samples of these settings that come with the program, if they are this base's.

    Raises UserError if their file was changed.
    """
    if settings not in SHIPPED:
        return None
    name, sha256 = SHIPPED[settings]
    content = (SHIPPED_FOLDER / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        path = SHIPPED_FOLDER / name
        raise UserError(f"{path} was changed; install debias again, or set neutral.seed=2 to generate other text")
    shipped = json.loads(content)
    return shipped["samples"] if shipped["base_tensors_sha256"] == base.sha256 else None


class ByKind:
    """One source for causal models, another for masked ones, which cannot generate text."""

    def __init__(self, causal: NeutralText, masked: NeutralText) -> None:
        self.of_kind = {"causal": causal, "masked": masked}

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        """The texts of the source for this kind of model."""
        return self.of_kind[base.kind].spans(base, start_token)

    def texts_per_step(self, kind: str) -> int:
        """As the source for this kind of model says."""
        return self.of_kind[kind].texts_per_step(kind)


def _until(ids: list[int], stop: set[int]) -> list[int]:
    """The ids before the first end token."""
    return list(takewhile(lambda token: token not in stop, ids))


def _unscored(ids: tuple[int, ...]) -> Span:
    return Span(ids, len(ids))


def _kept(path: Path) -> list[list[int]] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _keep(path: Path, samples: list[list[int]]) -> None:
    write_text(path, json.dumps(samples))
