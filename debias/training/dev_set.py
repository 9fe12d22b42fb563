"""Looks at StereoSet dev while an adapter is trained."""

from __future__ import annotations

import peft
import torch

from debias.benchmarks.metrics import icat_of_terms, stereoset_terms
from debias.benchmarks.stereoset import StereoSet
from debias.models.base import Base
from debias.records import Watch
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import HELD, Scorer

LOOK = 512  # positions of a forward pass


class DevSet:
    """Scores a model on StereoSet dev: SS, LMS and ICAT of the targeted bias, or overall if StereoSet lacks that bias.

    Args:
        base: the loaded base.
        watch: says how many examples to score per bias.
        bias: the targeted bias.
    """

    def __init__(self, base: Base, watch: Watch, bias: str) -> None:
        self.base, self.bias, self.protocol = base, bias, BiasBench()
        self.candidates = StereoSet(self.protocol, split="dev", limit=watch.limit).candidates(base.tokens)
        self._scorer: Scorer | None = None

    def __call__(self, model: peft.PeftModel) -> dict[str, float]:
        """The figures by name, computed in the types in which the weights are held, which stay as they are.

        Raises UserError if no example is within the model's context, or if training diverged.
        """
        if self._scorer is None or self._scorer.model is not model:
            self._scorer = Scorer(self.base, model, HELD, LOOK)
        with torch.autocast(model.device.type, enabled=False):
            rows = self._scorer.score(self.candidates, self.protocol, "StereoSet dev")
        terms = stereoset_terms(rows, self.protocol.ties)
        mine = terms[terms["bias"] == self.bias] if self.bias in set(terms["bias"]) else terms
        ss, lms = mine["ss"].to_numpy(), mine["lms"].to_numpy()
        return {"SS": float(ss.mean()), "LMS": float(lms.mean()), "ICAT": float(icat_of_terms(ss, lms))}
