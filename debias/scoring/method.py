"""A debiasing method that leaves the base's weights alone: what it changes while the base is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from transformers import PreTrainedModel

from debias.models.base import LanguageModel
from debias.records import Scored
from debias.scoring import batched
from debias.scoring.layouts import Layout


class Method:
    """A method that was fitted to a base. This one changes nothing; the others override what they change.

    Args:
        name: what records call it.
        sha256: checksum of all that its answers depend on beside the base; scores are kept under it.
        added: how many tokens it puts in front of a text at most. With any, it changes log-probabilities alone: hidden
            states and written text are the base's.
    """

    def __init__(self, name: str, sha256: str, added: int = 0) -> None:
        self.name, self.sha256, self.added = name, sha256, added

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside the block, the model computes as the method wants."""
        yield

    def scores(
        self, model: LanguageModel, spans: Sequence[Scored], layout: Layout, budget: int, progress: batched.Progress
    ) -> np.ndarray:
        """Log-probability of each span in nats, and 1 where its tokens are the likeliest ones, shape (S, 2)."""
        return batched.score_and_greedy(model, spans, layout, budget, progress)
