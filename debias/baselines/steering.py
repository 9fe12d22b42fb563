"""Steering: a vector is added to the hidden states between two layers, at every position or where a gate opens.

The vector points from sentences that fit a stereotype to the same sentences about another group, which break it
(contrastive activation addition, Rimsky et al. 2024). The gate lets it act only where the model is reading about such
a group, so that other text is left alone (conditional activation steering, Lee et al. 2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from debias.baselines import checksum
from debias.baselines.projection import Bias
from debias.baselines.sentences import Sentences, features
from debias.benchmarks import probe
from debias.data.swapping import Swapper
from debias.data.triplets import TripletFile
from debias.models import targets
from debias.records import Count, Range, UserError
from debias.scoring.method import Method
from debias.scoring.scorer import Scorer
from debias.wording import counted


class Gate:
    """How far a hidden state h is let through: 1 / (1 + exp(-(w h + b))).

    Args:
        weight_D: w.
        bias: b.
    """

    def __init__(self, weight_D: np.ndarray, bias: float) -> None:
        self.weight_D, self.bias = np.asarray(weight_D, dtype=np.float32), float(bias)

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        """Shape (B, T, 1), from 0 to 1."""
        weight_D = torch.from_numpy(self.weight_D).to(hidden_BTD.device)
        return torch.sigmoid(hidden_BTD @ weight_D + self.bias)[..., None]


class Steered(Method):
    """The hidden state h behind a layer becomes h + gate(h) * v at every position.

    Args:
        name: what records call it.
        vector_D: v.
        layer: counted from 1.
        gate: None: 1 everywhere.
    """

    def __init__(self, name: str, vector_D: np.ndarray, layer: int, gate: Gate | None = None) -> None:
        fitted = [vector_D] if gate is None else [vector_D, gate.weight_D, np.array(gate.bias)]
        super().__init__(name, checksum("steering", (name, layer), *fitted))
        self.vector_D, self.layer, self.gate = np.asarray(vector_D, dtype=np.float32), layer, gate

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Add the vector to what the layer hands to the next one."""
        vector_D = torch.from_numpy(self.vector_D).to(model.device)

        def steer(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            hidden_BTD = output[0] if isinstance(output, tuple) else output
            plain_BTD = hidden_BTD.float()
            share = 1.0 if self.gate is None else self.gate(plain_BTD)
            changed_BTD = (plain_BTD + share * vector_D.to(plain_BTD.device)).to(hidden_BTD.dtype)
            return (changed_BTD, *output[1:]) if isinstance(output, tuple) else changed_BTD

        handle = dict(enumerate((m for _, m in targets.layers(model)), start=1))[self.layer].register_forward_hook(
            steer
        )
        try:
            yield
        finally:
            handle.remove()


class Steering:
    """A steering vector of our own corpus for the bias, whose sentences break stereotypes.

    Args:
        bias: gender, race or religion.
        strength: how many times the mean difference is added.
        layer: behind which layer; null: the one in the middle.
        gated: add it only where a logistic regression finds that the text is about a group of the bias.
        n: sentences of the corpus; and sentences about groups, and about none, that the gate learns from.
    """

    def __init__(
        self,
        bias: Bias,
        strength: Annotated[float, Range(-100, 100)] = 1.0,
        layer: Count | None = None,
        gated: bool = False,
        n: Count = 500,
    ) -> None:
        self.bias, self.strength, self.layer, self.gated, self.n = bias, strength, layer, gated, n
        self.corpus, self.swapper, self.sentences = TripletFile(bias), Swapper(bias), Sentences(bias, n)

    def fingerprint(self) -> str:
        """Checksums of corpus, word list and the gate's text."""
        return f"{self.corpus.fingerprint()} {self.sentences.fingerprint()}"

    def fit(self, scorer: Scorer) -> Steered:
        """Read both versions of every sentence, and what the gate learns from. Raises UserError for a wrong layer."""
        number = sum(1 for _ in targets.layers(scorer.base.model))
        layer = self.layer or max(1, number // 2)
        if layer >= number:  # what transformers calls the last layer's states has passed the final norm
            layers = counted(number, "layer")
            remedy = f"choose one of 1 to {number - 1}" if number > 1 else "choose another method"
            raise UserError(
                f"baseline.layer={layer}, but the model has {layers} and steering acts between two; {remedy}"
            )
        swapped = {t.sentence: self.swapper.swap(t.sentence, 1) for t in self.corpus.load().triplets}
        pairs = [(breaks, fits) for breaks, fits in swapped.items() if fits is not None][: self.n]
        texts = [text for pair in pairs for text in pair]
        feature_N2D = features(scorer, texts, "sentences of the corpus", layer).reshape(len(pairs), 2, -1)
        vector_D = self.strength * mean_difference(feature_N2D)
        gate = self._gate(scorer, layer) if self.gated else None
        name = f"{'gated ' if gate else ''}steering ({self.bias}, strength {self.strength:g}, layer {layer})"
        return Steered(name, vector_D, layer, gate)

    def _gate(self, scorer: Scorer, layer: int) -> Gate:
        about = [row[i % len(row)] for i, row in enumerate(self.sentences.versions)]  # every group alike
        neutral = self.sentences.neutral
        feature_ND = features(scorer, [*about, *neutral], "sentences for the gate", layer)
        fitted = probe.tuned(feature_ND, np.arange(len(feature_ND)) < len(about))
        weight_D = fitted.weight_D / fitted.scale_D
        return Gate(weight_D, fitted.intercept - float(weight_D @ fitted.mean_D))


def mean_difference(feature_N2D: np.ndarray) -> np.ndarray:
    """Mean of the first minus mean of the second version, shape (D,)."""
    return (feature_N2D[:, 0] - feature_N2D[:, 1]).mean(0)
