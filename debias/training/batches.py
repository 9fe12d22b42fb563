"""Training batches: grouped by length, reshuffled every epoch, and the same in every run with the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from debias.records import Scored
from debias.scoring.layouts import Batch, Layout
from debias.scoring.likelihood import Target
from debias.scoring.reference import Ask, Said, target

Texts = tuple[Scored, ...]  # the spans of one example: the training sentence, then its counterpart if there is one


class Step(NamedTuple):
    """What a training step reads: the texts, and the base's side of them where it was asked beforehand."""

    batch: Batch
    target: Target | None


class SpanData(pl.LightningDataModule):
    """Training data as batches of spans.

    Args:
        examples: spans of each example; all examples have the same number of them.
        layout: turns spans into a batch.
        batch_size: examples per step and device.
        seed: of the order.
        neutral: neutral texts, where nothing is scored and only the KL term applies.
        num_neutral: neutral texts to add to each batch, per device.
        mix_lengths: shuffle the batches: otherwise a truncated epoch sees only the longest sentences.
        has_dev_set: whether the module validates during training.
        ask: tells what the base says of texts, which is asked once; None: every step asks the base itself.
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
    ) -> None:
        super().__init__()
        self.examples, self.layout, self.batch_size, self.seed = list(examples), layout, batch_size, seed
        self.neutral, self.num_neutral, self.mix_lengths = list(neutral), num_neutral, mix_lengths
        self.has_dev_set, self.ask = has_dev_set, ask
        self.said: dict[int, Said] = {}  # by number of the span
        width = len(self.examples[0]) if self.examples else 1
        # Spans of all texts one after another, and the numbers of each text's spans.
        self.spans = [span for texts in self.examples for span in texts] + self.neutral
        self.numbers = [tuple(range(k * width, (k + 1) * width)) for k in range(len(self.examples))]
        self.numbers += [(len(self.examples) * width + k,) for k in range(len(self.neutral))]

    def batches(self, epoch: int, devices: int = 1) -> list[list[int]]:
        """Indices of the texts in each step of an epoch, over all devices: examples first, then neutral texts.

        An index of `len(examples)` or more is a neutral text. The order depends on seed and epoch alone, so a resumed
        run reads what an uninterrupted one would.
        """
        size = self.batch_size * devices
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        lengths = [sum(len(span.ids) for span in texts) for texts in self.examples]
        order = list(LengthGroupedSampler(size, lengths=lengths, generator=generator))
        batches = [order[k : k + size] for k in range(0, len(order), size)]
        if len(batches) > 1 and len(batches[-1]) < devices:  # every device needs an example in every step
            batches[-2:] = [batches[-2] + batches[-1]]
        if self.mix_lengths:
            batches = [batches[k] for k in torch.randperm(len(batches), generator=generator)]
        if self.num_neutral:
            wanted = (len(batches), self.num_neutral * devices)
            drawn = torch.randint(len(self.neutral), wanted, generator=generator)
            batches = [b + (len(order) + d).tolist() for b, d in zip(batches, drawn, strict=True)]
        return batches

    def tokens_per_step(self, devices: int = 1, accumulated: int = 1) -> Iterator[int]:
        """Tokens of training sentences in each optimiser step, without end. Neutral texts do not count."""
        for epoch in itertools.count():
            read = [
                sum(len(span.ids) for i in batch if i < len(self.examples) for span in self.examples[i])
                for batch in self.batches(epoch, devices)
            ]
            for k in range(0, len(read), accumulated):
                yield sum(read[k : k + accumulated])

    def train_dataloader(self) -> DataLoader[int]:
        """This device's share of the current epoch, from the batch on where an interrupted run stopped."""
        trainer = self.trainer
        assert trainer is not None
        steps = self.batches(trainer.current_epoch, trainer.world_size)
        mine = [_share(step, len(self.examples), trainer.global_rank, trainer.world_size) for step in steps]
        loop = trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready if loop.restarting else 0
        self._ask_all(index for step in mine for index in step)
        texts = range(len(self.numbers))
        return DataLoader(texts, batch_sampler=_Resumed(mine, done), collate_fn=self.lay)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[DataLoader[int]]:
        """One dummy batch, so that Lightning calls `validation_step` once; the module holds the dev set itself."""
        return [DataLoader([0])] if self.has_dev_set else []  # type: ignore[arg-type]

    def lay(self, chosen: Sequence[int]) -> Step:
        """The spans of some texts, given by index, as one batch."""
        numbers = [number for index in chosen for number in self.numbers[index]]
        batch = self.layout([self.spans[number] for number in numbers])
        if self.ask is None:
            return Step(batch, None)
        return Step(*target(batch, [self.said[number] for number in numbers], kl=bool(self.num_neutral)))

    def _ask_all(self, chosen: Iterable[int]) -> None:
        """Ask the base about the texts of an epoch that it has not been asked about.

        Examples and neutral texts are asked about apart, and a moderate number of neutral texts as a whole, so that
        the runs of a sweep find the answers in the cache whatever their seeds draw.
        """
        if self.ask is None:
            return
        wanted = {number for index in chosen for number in self.numbers[index]}
        first_neutral = len(self.spans) - len(self.neutral)
        if len(self.neutral) <= 1024:
            wanted |= set(range(first_neutral, len(self.spans)))
        for part in ({n for n in wanted if n < first_neutral}, {n for n in wanted if n >= first_neutral}):
            if missing := sorted(part - self.said.keys()):
                self.said |= zip(missing, self.ask([self.spans[n] for n in missing]), strict=True)


class _Resumed(list[list[int]]):
    """All batches of an epoch, of which the first `done` are skipped.

    The length stays that of the whole epoch: Lightning counts the skipped batches as read, and ends the epoch when the
    count reaches the length.
    """

    def __init__(self, batches: list[list[int]], done: int) -> None:
        super().__init__(batches)
        self.done = done

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(super().__iter__(), self.done, None)


def _share(batch: list[int], num_examples: int, rank: int, devices: int) -> list[int]:
    """One device's share of a step.

    Examples and neutral texts are dealt out separately, so that every device gets its part of both, and one step of
    several devices holds the same texts as one step of a single device with the joint batch size.
    """
    examples = [i for i in batch if i < num_examples]
    neutral = [i for i in batch if i >= num_examples]
    return examples[rank::devices] + neutral[rank::devices]
