"""The batches that an adapter is trained on: grouped by length, shuffled anew in every epoch, always the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from debias.records import Batch, Scored
from debias.scoring.layouts import Layout

Texts = tuple[Scored, ...]  # the spans of an example: of the training sentence, and of its counterpart if there is one


class SpanData(pl.LightningDataModule):
    """Batches of spans; batch k of epoch e is always the same, however many devices share it.

    Args:
        examples: what the objective wants scored: the same number of spans in each.
        layout: how spans become a batch.
        batch_size: examples per step and device.
        seed: of the order.
        neutral: spans with nothing scored, on which the model is held to its base.
        num_neutral: how many of them join each batch, per device.
        mix_lengths: take the batches of an epoch in random order: the grouping begins with long sentences, which would
            be all that a run sees that ends early in an epoch.
        looks: whether there is a dev set to look at while training; the module knows what is in it.
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
        looks: bool = False,
    ) -> None:
        super().__init__()
        self.examples, self.layout, self.batch_size, self.seed = list(examples), layout, batch_size, seed
        self.neutral, self.num_neutral, self.mix_lengths = list(neutral), num_neutral, mix_lengths
        self.looks = looks

    def batches(self, epoch: int, devices: int = 1) -> list[list[int]]:
        """Numbers of the examples in each step of an epoch, on all devices; those past the last example are neutral.

        The numbers of a device are every `devices`th of them, so that a step is the same whoever shares it.
        """
        size = self.batch_size * devices
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        lengths = [sum(len(span.ids) for span in texts) for texts in self.examples]
        order = list(LengthGroupedSampler(size, lengths=lengths, generator=generator))
        batches = [order[k : k + size] for k in range(0, len(order), size)]
        if len(batches) > 1 and len(batches[-1]) < devices:  # every device needs one
            batches[-2:] = [batches[-2] + batches[-1]]
        if self.mix_lengths:
            batches = [batches[k] for k in torch.randperm(len(batches), generator=generator)]
        if self.num_neutral:
            wanted = (len(batches), self.num_neutral * devices)
            drawn = torch.randint(len(self.neutral), wanted, generator=generator)
            batches = [b + (len(order) + d).tolist() for b, d in zip(batches, drawn, strict=True)]
        return batches

    def tokens_per_step(self, devices: int = 1, accumulated: int = 1) -> Iterator[int]:
        """Tokens of the sentences read in step after step, without end; neutral spans do not count."""
        for epoch in itertools.count():
            read = [
                sum(len(span.ids) for i in batch if i < len(self.examples) for span in self.examples[i])
                for batch in self.batches(epoch, devices)
            ]
            for k in range(0, len(read), accumulated):
                yield sum(read[k : k + accumulated])

    def train_dataloader(self) -> DataLoader[Texts]:
        """The current epoch's batches, this device's share (`reload_dataloaders_every_n_epochs=1`)."""
        trainer = self.trainer
        assert trainer is not None
        steps = self.batches(trainer.current_epoch, trainer.world_size)
        mine = [_share(step, len(self.examples), trainer.global_rank, trainer.world_size) for step in steps]
        sampler: Any = _From(mine, _read_before(trainer))
        texts: Any = self.examples + [(span,) for span in self.neutral]
        return DataLoader(texts, batch_sampler=sampler, collate_fn=self.lay)

    def val_dataloader(self) -> list[DataLoader[int]]:
        """One batch that means: look at the dev set now."""
        return [DataLoader([0])] if self.looks else []  # type: ignore[arg-type]

    def lay(self, chosen: Sequence[Texts]) -> Batch:
        """The spans of some examples as one batch."""
        return self.layout([span for texts in chosen for span in texts])


class _From(list[list[int]]):
    """All batches of an epoch, of which those before `start` were read by a process that was interrupted."""

    def __init__(self, batches: list[list[int]], start: int) -> None:
        super().__init__(batches)
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(super().__iter__(), self.start, None)


def _share(batch: list[int], num_examples: int, rank: int, devices: int) -> list[int]:
    """What one device takes of a step: its share of the examples, and of the neutral spans."""
    scored = [i for i in batch if i < num_examples]
    neutral = [i for i in batch if i >= num_examples]
    return scored[rank::devices] + neutral[rank::devices]


def _read_before(trainer: pl.Trainer) -> int:
    """Batches of this epoch that were read before the checkpoint from which training goes on."""
    loop = trainer.fit_loop
    return loop.epoch_loop.batch_progress.current.ready if loop.restarting else 0
