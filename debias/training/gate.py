"""The gate after every training: the saved adapter is what was trained, it has an effect, and the base is unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import peft
import torch

from debias.models import adapter_folder
from debias.models.checksums import checksum
from debias.records import Scored
from debias.scoring.batched import score
from debias.scoring.layout_trial import only_rounded
from debias.scoring.layouts import Layout
from debias.scoring.likelihood import dtype


class GateError(RuntimeError):
    """A trained adapter is not what it should be: a bug in debias or a library, not a mistake of the user."""


class Gate:
    """Records a model's state before training and checks it afterwards.

    Args:
        model: the base with a new, untrained adapter.
        spans: a few texts to score before and after.
        layout: turns spans into a batch.
    """

    def __init__(self, model: peft.PeftModel, spans: Sequence[Scored], layout: Layout) -> None:
        self.model, self.spans, self.layout = model, list(spans), layout
        self.declared = _trainable(model)
        self.frozen = checksum(model, wanted=lambda p: not p.requires_grad)
        self.before = self._scores()

    def check(self, folder: Path) -> None:
        """Check the trained model and its saved adapter. Raises GateError for the first check that fails.

        The adapter changes the model's scores; nothing else was trainable; no frozen weight moved; and the adapter
        read back from `folder` scores as the trained one does.
        """
        after = self._scores()
        if np.array_equal(self.before, after):
            raise GateError("the trained adapter changes nothing: every log-probability equals the base's")
        if (now := _trainable(self.model)) != self.declared:
            changed = sorted(now ^ self.declared)
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise GateError(f"the set of trainable parameters changed during training: {', '.join(changed[:3])}{more}")
        if checksum(self.model, wanted=lambda p: not p.requires_grad) != self.frozen:
            raise GateError("training changed the base's weights, which must stay frozen")
        with adapter_folder.reloaded(self.model, folder):
            loaded = self._scores()
        if not self._alike(loaded, after):
            raise GateError(f"the adapter read back from {folder} does not score as the trained one")

    def _alike(self, loaded_S: np.ndarray, after_S: np.ndarray) -> bool:
        """Whether two scorings differ by nothing but the order of sums."""
        # AdaLoRA saves without its pruned ranks, so the same terms are summed in another order. In half precision the
        # difference in the last digit of a float32 sum can become one in the last digit of a hidden state.
        if isinstance(self.model.base_model, peft.AdaLoraModel) and dtype(self.model) != torch.float32:
            number_S = np.array([max(1, span.num_tokens) for span in self.spans])
            one_S, other_S = torch.from_numpy(loaded_S / number_S), torch.from_numpy(after_S / number_S)
            return only_rounded(one_S, other_S, dtype(self.model))
        return np.allclose(loaded_S, after_S, rtol=0, atol=1e-4)

    def _scores(self) -> np.ndarray:
        return score(self.model, self.spans, self.layout)


def _trainable(model: peft.PeftModel) -> frozenset[str]:
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad)
