"""Prompting and Self-Debias: text in front of every text, and nothing else, changes what the base makes of it.

Both act on log-probabilities alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from debias.baselines import checksum
from debias.models.base import LanguageModel
from debias.records import Masked, NotNegative, Range, Scored, Span, Tokens, UserError
from debias.scoring import batched
from debias.scoring.layouts import Layout
from debias.scoring.method import Method
from debias.scoring.scorer import Scorer

Epsilon = Annotated[float, Range(0, 1, above=True)]


class Prefix:
    """Tokens that are put in front of a text, behind its start token or [CLS] if it has one.

    Args:
        ids: the tokens.
        special: ids of start tokens and their like.
    """

    def __init__(self, ids: Sequence[int], special: Sequence[int]) -> None:
        self.ids, self.special = tuple(ids), frozenset(special)

    @classmethod
    def of(cls, text: str, tokens: Tokens) -> Prefix:
        """Raises UserError if the text has no tokens."""
        tokenizer: Any = tokens.tokenizer
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if not ids:
            raise UserError(f"the text {text!r} to put in front has no tokens; write some words")
        return cls(ids, tokenizer.all_special_ids)

    def __call__(self, span: Scored) -> Scored:
        """The same scored tokens with the prefix in front of the text."""
        begin = int(span.ids[0] in self.special)
        ids = (*span.ids[:begin], *self.ids, *span.ids[begin:])
        if isinstance(span, Masked):
            return span._replace(ids=ids, at=tuple(k + len(self.ids) if k >= begin else k for k in span.at))
        return Span(ids, span.start + len(self.ids))


class Prompted(Method):
    """Every text is scored behind the same instruction; the instruction is read and not scored.

    Args:
        name: what records call it.
        prefix: the instruction.
    """

    def __init__(self, name: str, prefix: Prefix) -> None:
        super().__init__(name, checksum("prompting", prefix.ids), added=len(prefix.ids))
        self.prefix = prefix

    def scores(
        self, model: LanguageModel, spans: Sequence[Scored], layout: Layout, budget: int, progress: batched.Progress
    ) -> np.ndarray:
        """Those of the spans behind the instruction."""
        return super().scores(model, list(map(self.prefix, spans)), layout, budget, progress)


class Prompting:
    """An instruction in front of every text.

    Args:
        instruction: its words; end it with a space or a line break.
    """

    def __init__(self, instruction: str) -> None:
        self.instruction = instruction

    def fingerprint(self) -> str:
        """No file is read."""
        return ""

    def fit(self, scorer: Scorer) -> Prompted:
        """Nothing is learned."""
        return Prompted("prompting", Prefix.of(self.instruction, scorer.tokens))


class SelfDebiased(Method):
    """Tokens that become likelier behind a prefix that asks for the bias become less likely without it.

    Args:
        name: what records call it.
        prefix: asks for the bias.
        decay, epsilon: those of `debiased`.
    """

    def __init__(self, name: str, prefix: Prefix, decay: float, epsilon: float) -> None:
        super().__init__(name, checksum("self-debias", (prefix.ids, decay, epsilon)), added=len(prefix.ids))
        self.prefix, self.decay, self.epsilon = prefix, decay, epsilon

    def scores(
        self, model: LanguageModel, spans: Sequence[Scored], layout: Layout, budget: int, progress: batched.Progress
    ) -> np.ndarray:
        """Two forward passes: every span as it is, and behind the prefix."""

        def combine(logits_RV: Tensor, biased_RV: Tensor) -> Tensor:
            return debiased(logits_RV, biased_RV, self.decay, self.epsilon)

        others = list(map(self.prefix, spans))
        return batched.score_of_two(model, spans, others, combine, layout, budget, progress)


def debiased(logits_RV: Tensor, biased_RV: Tensor, decay: float, epsilon: float) -> Tensor:
    """Log-probabilities of Self-Debias (Schick et al. 2021), shape (R, V).

    p(w) is multiplied by max(epsilon, exp(-decay * (q(w) - p(w)))) where q(w) > p(w), and scaled to sum to 1.

    Args:
        logits_RV: of p, without the prefix.
        biased_RV: of q, behind the prefix.
    """
    logprob_RV = logits_RV.log_softmax(-1)
    excess_RV = (biased_RV.softmax(-1) - logprob_RV.exp()).clamp(min=0)
    scale_RV = (-decay * excess_RV).exp().clamp(min=epsilon)
    return (logprob_RV + scale_RV.log()).log_softmax(-1)


class SelfDebias:
    """Self-Debias with one prefix, as Meade et al. 2022 (bias-bench) score it.

    Args:
        bias: what the name of the method says.
        prefix: asks for text with the bias.
        decay: how strongly a token is made less likely.
        epsilon: the smallest factor of a probability.
    """

    def __init__(self, bias: str, prefix: str, decay: NotNegative = 50.0, epsilon: Epsilon = 0.01) -> None:
        self.bias, self.prefix, self.decay, self.epsilon = bias, prefix, decay, epsilon

    def fingerprint(self) -> str:
        """No file is read."""
        return ""

    def fit(self, scorer: Scorer) -> SelfDebiased:
        """Nothing is learned."""
        name = f"self_debias ({self.bias}, decay {self.decay:g})"
        return SelfDebiased(name, Prefix.of(self.prefix, scorer.tokens), self.decay, self.epsilon)
