"""The sanity gate after every training: what is saved is an adapter, it does something, and the base is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from debias.models import adapter as adapters
from debias.models.base import weights_sha256
from debias.records import Scored
from debias.scoring.layouts import Layout
from debias.scoring.likelihood import score


class GateError(RuntimeError):
    """A trained adapter is not what it should be: a bug of ours or of a library, never the user's mistake."""


class Gate:
    """Looks at a model before training, and compares after it.

    Args:
        model: the base with a fresh adapter, nothing trained yet.
        spans: a few texts to score.
        layout: how they become a batch.
    """

    def __init__(self, model: Any, spans: Sequence[Scored], layout: Layout) -> None:
        self.model, self.spans, self.layout = model, list(spans), layout
        self.declared = _trainable(model)
        self.frozen_sha256 = weights_sha256(model, wanted=lambda p: not p.requires_grad)
        self.before = self._scores()

    def check(self, folder: Path) -> None:
        """Four promises about the trained model and its saved adapter. Raises GateError for one that is not kept."""
        after = self._scores()
        if np.array_equal(self.before, after):
            raise GateError("the trained adapter changes nothing: every log-probability is that of the base")
        if (now := _trainable(self.model)) != self.declared:
            raise GateError(f"other parameters are trainable than were declared: {_some(now ^ self.declared)}")
        if weights_sha256(self.model, wanted=lambda p: not p.requires_grad) != self.frozen_sha256:
            raise GateError("training changed the base's weights, which should have been frozen")
        with adapters.reloaded(self.model, folder) as again:
            loaded = score(again, self.spans, self.layout)
        if not np.allclose(loaded, after, rtol=0, atol=1e-4):  # AdaLoRA leaves empty ranks out: other sums, same values
            raise GateError(f"the adapter read back from {folder} does not score as the trained one")

    def _scores(self) -> np.ndarray:
        return score(self.model, self.spans, self.layout)


def _trainable(model: Any) -> frozenset[str]:
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad)


def _some(names: frozenset[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
