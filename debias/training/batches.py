"""Training batches: grouped by length, reshuffled every epoch, and the same in every run with the same seed.

An optimiser step is dealt out in parts: one for each device and, with gradient accumulation, for each batch of a step.
Losses are means over the whole step, so every part carries the step's totals, and the adapter does not depend on how a
step is divided.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from debias.records import Scored
from debias.scoring.layouts import Batch, Layout
from debias.scoring.likelihood import Target
from debias.scoring.reference import Ask, Said, target
from debias.training.balance import Pair

Texts = tuple[Scored, ...]  # the spans of one example: the training sentence, then its counterparts


class Part(NamedTuple):
    """A part of an optimiser step, as indices of texts, and totals over all parts of the step."""

    texts: list[int]
    weight: int  # of the step's examples, as the objective weights them
    num_pairs: int  # of the step
    num_context: int  # unscored positions, where the KL term applies
    length: float  # mean tokens of the step's texts
    parts: int


class Step(NamedTuple):
    """What one call of `training_step` reads: a part, laid out for a forward pass."""

    batch: Batch
    scored_I: Tensor  # which of the batch's spans are scored; found here, because a device would be waited for
    text_BK: Tensor  # which of these are an example's texts; for a counterpart that it lacks, the sentence again
    num_tokens_BK: Tensor  # of these texts; 0 for a counterpart that an example lacks
    target: Target | None  # the base's side of the texts, where it was asked beforehand
    weight: Tensor
    num_context: Tensor
    length: Tensor
    parts: int
    aim_P: Tensor  # log-odds to aim for, of this part's pairs: the last scored spans of the batch, two each
    num_pairs: Tensor  # of the step


def sentence_tokens(texts: Texts) -> int:
    """Number of scored tokens in an example's training sentence."""
    return texts[0].num_tokens


class SpanData(pl.LightningDataModule):
    """Training data as batches of spans.

    Args:
        examples: spans of each example: as many for all, or the sentence's alone.
        layout: turns spans into a batch.
        batch_size: examples per step and device.
        seed: of the order.
        neutral: neutral texts, where nothing is scored and only the KL term applies.
        num_neutral: neutral texts to add to each batch, per device.
        pairs: pairs of words whose log-odds are to become what `aims` says.
        aims: log-odds to aim for, in nats, one for each pair.
        num_pairs: pairs to add to each batch, per device.
        mix_lengths: shuffle the batches: otherwise a truncated epoch sees only the longest sentences.
        has_dev_set: whether the module validates during training.
        ask: tells what the base says of texts, which is asked once; None: every step asks the base itself.
        kl: whether the base is asked for the KL term, or for the log-probabilities of spans alone.
        weight: an example's weight in the loss, as the objective's.
    """

    def __init__(
        self,
        examples: Sequence[Texts],
        layout: Layout,
        batch_size: int,
        seed: int,
        neutral: Sequence[Scored] = (),
        num_neutral: int = 0,
        mix_lengths: bool = False,
        has_dev_set: bool = False,
        ask: Ask | None = None,
        kl: bool = True,
        weight: Callable[[Texts], int] = sentence_tokens,
        pairs: Sequence[Pair] = (),
        aims: Sequence[float] = (),
        num_pairs: int = 0,
    ) -> None:
        super().__init__()
        self.examples, self.layout, self.batch_size, self.seed = list(examples), layout, batch_size, seed
        self.neutral, self.num_neutral, self.mix_lengths = list(neutral), num_neutral, mix_lengths
        self.has_dev_set, self.ask, self.kl, self.weight = has_dev_set, ask, kl, weight
        self.pairs, self.aims, self.num_pairs = list(pairs), list(aims), num_pairs if pairs else 0
        self.steps: int | None = None  # optimiser steps of the whole training, where they end it within an epoch
        self.said: dict[int, Said] = {}  # by number of the span
        self.width = max(map(len, self.examples), default=1)
        # Spans of all texts one after another, and the numbers of each text's spans.
        self.spans = [span for texts in self.examples for span in texts] + self.neutral
        self.spans += [span for pair in self.pairs for span in (pair.first, pair.second)]
        self.numbers, first = [], 0
        for texts in self.examples:
            self.numbers.append(tuple(range(first, first + len(texts))))
            first += len(texts)
        self.numbers += [(first + k,) for k in range(len(self.neutral))]
        first += len(self.neutral)
        self.numbers += [(first + 2 * k, first + 2 * k + 1) for k in range(len(self.pairs))]
        self.first_pair = len(self.examples) + len(self.neutral)  # index of the first pair among the texts

    def batches(self, epoch: int, parts: int = 1) -> list[list[int]]:
        """Indices of the texts in each optimiser step of an epoch: examples first, then neutral texts, then pairs.

        An index of `len(examples)` or more is a neutral text, and of `first_pair` or more a pair. The order depends on
        seed and epoch alone, so a resumed run reads what an uninterrupted one would.

        Args:
            parts: devices x accumulated batches; `batch_size` and `num_neutral` are for each part.
        """
        size = self.batch_size * parts
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        lengths = [sum(len(span.ids) for span in texts) for texts in self.examples]
        order = list(LengthGroupedSampler(size, lengths=lengths, generator=generator))
        batches = [order[k : k + size] for k in range(0, len(order), size)]
        if len(batches) > 1 and len(batches[-1]) < parts:  # every part needs an example
            batches[-2:] = [batches[-2] + batches[-1]]
        if self.mix_lengths:
            batches = [batches[k] for k in torch.randperm(len(batches), generator=generator)]
        if self.num_neutral:
            wanted = (len(batches), self.num_neutral * parts)
            drawn = torch.randint(len(self.neutral), wanted, generator=generator)
            batches = [b + (len(order) + d).tolist() for b, d in zip(batches, drawn, strict=True)]
        if self.num_pairs:
            drawn = torch.randint(len(self.pairs), (len(batches), self.num_pairs * parts), generator=generator)
            batches = [b + (self.first_pair + d).tolist() for b, d in zip(batches, drawn, strict=True)]
        return batches

    def tokens_per_step(self, devices: int = 1, accumulated: int = 1) -> Iterator[int]:
        """Tokens of training sentences in each optimiser step, without end. Neutral texts do not count."""
        for epoch in itertools.count():
            for step in self.batches(epoch, devices * accumulated):
                yield sum(len(span.ids) for i in step if i < len(self.examples) for span in self.examples[i])

    def train_dataloader(self) -> DataLoader[Part]:
        """This device's parts of the current epoch's steps, from the one on where an interrupted run stopped."""
        trainer = self.trainer
        assert trainer is not None
        devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        parts = [
            part
            for step in self.batches(trainer.current_epoch, devices * accumulated)
            for part in self.divided(step, devices, accumulated)[trainer.global_rank :: devices]
        ]
        loop = trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready if loop.restarting else 0
        left = None if self.steps is None else (self.steps - trainer.global_step) * accumulated
        self._ask_all(index for part in parts[done:][:left] for index in part.texts)
        sampler = _Resumed(range(len(parts)), done)
        return DataLoader(parts, batch_size=None, sampler=sampler, collate_fn=self.lay)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[DataLoader[int]]:
        """One dummy batch, so that Lightning calls `validation_step` once; the module holds the dev set itself."""
        return [DataLoader([0])] if self.has_dev_set else []  # type: ignore[arg-type]

    def divided(self, step: Sequence[int], devices: int, accumulated: int) -> list[Part]:
        """The parts of a step, in the order in which the devices take them."""
        examples = [i for i in step if i < len(self.examples)]
        neutral = [i for i in step if len(self.examples) <= i < self.first_pair]
        pairs = [i for i in step if i >= self.first_pair]
        # A step has an example for each part, except an epoch's only step, which then has fewer batches.
        parts = devices * max(1, min(accumulated, len(examples) // devices))
        weight = sum(self.weight(self.examples[i]) for i in examples)
        spans = [self.spans[number] for i in step for number in self.numbers[i]]
        num_context = sum(span.num_context for span in spans)
        length = sum(len(span.ids) for span in spans) / len(spans)
        # Examples, pairs and neutral texts are dealt out separately, so that every part gets its share of each.
        return [
            Part(
                examples[k::parts] + pairs[k::parts] + neutral[k::parts], weight, len(pairs), num_context, length, parts
            )
            for k in range(parts)
        ]

    def lay(self, part: Part) -> Step:
        """A part as tensors."""
        numbers = [number for index in part.texts for number in self.numbers[index]]
        batch = self.layout([self.spans[number] for number in numbers])
        told = None
        if self.ask is not None:
            batch, told = target(batch, [self.said[number] for number in numbers], kl=self.kl)
        weight, num_context, length, num_pairs = (
            torch.tensor(float(total)) for total in (part.weight, part.num_context, part.length, part.num_pairs)
        )
        aim_P = torch.tensor([self.aims[index - self.first_pair] for index in part.texts if index >= self.first_pair])
        scored_I = (batch.num_tokens_S > 0).nonzero()[:, 0]
        sizes = [len(self.numbers[index]) for index in part.texts if index < len(self.examples)]
        there_BK = torch.arange(self.width) < torch.tensor(sizes)[:, None]
        # The number of the last text so far: where counterparts are missing, that is the sentence itself.
        text_BK = there_BK.flatten().cumsum(0).view_as(there_BK) - 1
        num_tokens_BK = batch.num_tokens_S[scored_I][text_BK] * there_BK
        return Step(
            batch, scored_I, text_BK, num_tokens_BK, told, weight, num_context, length, part.parts, aim_P, num_pairs
        )

    def _ask_all(self, chosen: Iterable[int]) -> None:
        """Ask the base about chosen texts that it has not been asked about.

        Examples, neutral texts and pairs are asked about apart, and a moderate number of neutral texts as a whole, so
        that the runs of a sweep find the answers in the cache whatever their seeds draw.
        """
        if self.ask is None:
            return
        wanted = {number for index in chosen for number in self.numbers[index]}
        first_neutral = sum(len(texts) for texts in self.examples)
        first_pair = first_neutral + len(self.neutral)
        if len(self.neutral) <= 1024:
            wanted |= set(range(first_neutral, first_pair))
        kinds = (range(first_neutral), range(first_neutral, first_pair), range(first_pair, len(self.spans)))
        for part in (wanted & set(kind) for kind in kinds):
            if missing := sorted(part - self.said.keys()):
                self.said |= zip(missing, self.ask([self.spans[n] for n in missing]), strict=True)


class _Resumed:
    """Indices of an epoch's batches, of which the first `done` are skipped.

    The length stays that of the whole epoch: Lightning counts the skipped batches as read, and ends the epoch when the
    count reaches the length.
    """

    def __init__(self, batches: range, done: int) -> None:
        self.batches, self.done = batches, done

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[int]:
        return iter(self.batches[self.done :])
