"""Objectives: log-probabilities of spans -> loss.

An objective decides what a training sentence is compared with (`contrasts`) and which sentences are (`compares`), which
tokens are scored (`span`), how log-probabilities become losses (`losses`), and how much an example counts (`weight`).
The loss of a step is the sum of its examples' losses divided by the sum of their weights, in nats. Retention, the KL
term that keeps the model close to its base, is not part of an objective: the training module adds it to any of them.

Shapes: B examples, K texts per example (the training sentence, then its counterparts in the order of `contrasts`). A
sentence that is not compared has no counterparts: their `num_tokens_BK` is 0, and their log-probabilities mean nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from debias.records import Encoded, Masked, NotNegative, Positive, Scored, SomeShare, Span, Triplet, UserError


class Objective(Protocol):
    """What training needs to know about a loss."""

    contrasts: tuple[str, ...]  # what a sentence is compared with, keys of `pairs.CONTRASTS`
    needs_base: bool  # whether the loss depends on the base's log-probabilities

    def compares(self, triplet: Triplet) -> bool:
        """Whether this sentence is compared with its counterparts; otherwise it comes alone."""

    def span(self, text: Encoded) -> Scored:
        """The tokens of a text whose log-probability enters the loss."""

    def weight(self, texts: Sequence[Scored]) -> int:
        """What an example adds to the weight that a step's summed losses are divided by."""

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> Tensor:
        """Loss of each example, shape (B,)."""


class Attribute:
    """Loss on the attribute's tokens alone (Han et al. 2024, section 3).

    A causal model predicts them from the tokens before; a masked model from the rest of the sentence, with all of the
    attribute's tokens masked at once. The labels are the true tokens.

    Args:
        margin: stop learning an attribute once it is this much likelier than under the base, in nats per token. The
            paper has no such bound.
    """

    contrasts: tuple[str, ...] = ()

    def __init__(self, margin: Positive | None = None) -> None:
        self.margin = margin
        self.needs_base = margin is not None

    def compares(self, triplet: Triplet) -> bool:
        """Every sentence."""
        return True

    def span(self, text: Encoded) -> Scored:
        """The attribute's tokens and the context that they are predicted from."""
        if text.mask is None:
            # What follows the attribute cannot change its likelihood, so the sentence is cut there. In plain text the
            # attribute is the whole text; its first token is scored only if a start token precedes it.
            return Span(text.ids[: text.stop], max(text.start, 1))
        at = tuple(range(text.start, text.stop))
        if len(text.ids) - len(at) <= 2:  # only the two special tokens would stay unmasked
            raise UserError(
                "a masked model predicts an attribute from the rest of its sentence, and this data has no attributes "
                "(it is plain text); choose objective=language_model, or data=targeted or data=general"
            )
        hidden = (*text.ids[: text.start], *[text.mask] * len(at), *text.ids[text.stop :])
        return Masked(hidden, at, text.ids[text.start : text.stop])

    def weight(self, texts: Sequence[Scored]) -> int:
        """Number of the attribute's tokens: losses are sums over tokens, and a step's loss is a mean per token."""
        return texts[0].num_tokens

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> Tensor:
        """Negative log-likelihood of each attribute."""
        loss_B = -logprob_BK[:, 0]
        if self.margin is not None:
            # A hinge: the gradient is zero once log p >= log p_base + margin, so no attribute is pushed towards p = 1.
            bound_B = base_BK[:, 0] + self.margin * num_tokens_BK[:, 0]
            loss_B = (bound_B - logprob_BK[:, 0]).clamp(min=0)
        return loss_B


class AsPublished(Attribute):
    """The paper's notebook as it is. For masked models its labels are the mask token: use it only to reproduce.

    For causal models it equals `Attribute`.
    """

    def span(self, text: Encoded) -> Scored:
        """As `Attribute`, with the mask token as the label of each masked position."""
        span = super().span(text)
        if isinstance(span, Masked):
            return span._replace(tokens=tuple(span.ids[k] for k in span.at))
        return span


class Unlikelihood(Attribute):
    """Make the attribute less likely (Welleck et al. 2020, eq. 4): the reverse of `Attribute`.

    Unlike a negated log-likelihood, this loss is bounded below by 0, and its gradient vanishes as p goes to 0.
    """

    def __init__(self) -> None:
        super().__init__()

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> Tensor:
        """-log(1 - p) for each token, where p is the geometric mean of the probabilities of the attribute's tokens."""
        num_B = num_tokens_BK[:, 0]
        p_B = (logprob_BK[:, 0] / num_B).exp().clamp(max=1 - 1e-6)
        return -torch.log1p(-p_B) * num_B


class LanguageModel(Attribute):
    """Loss on every token: ordinary fine-tuning, which CDA and plain text use.

    Args:
        share: share of tokens to mask for a masked model. A sentence always gets the same mask.
    """

    def __init__(self, share: SomeShare = 0.15) -> None:
        super().__init__()
        self.share = share

    def span(self, text: Encoded) -> Scored:
        """Causal: every token after the first. Masked: a share of the tokens, at least one."""
        if text.mask is None:
            return Span(text.ids, 1)
        inner = range(1, len(text.ids) - 1)  # not the special tokens at both ends
        # Random order by hash: depends on the sentence alone, not on epoch, batch or process, so a resumed run agrees.
        draw = {k: hashlib.sha256(repr((text.ids, k)).encode()).digest() for k in inner}
        at = tuple(sorted(sorted(inner, key=draw.__getitem__)[: max(1, round(self.share * len(inner)))]))
        hidden = tuple(text.mask if k in at else token for k, token in enumerate(text.ids))
        return Masked(hidden, at, tuple(text.ids[k] for k in at))


class _Comparison(Attribute):
    """An objective that compares a sentence with its counterparts; every sentence counts the same."""

    def __init__(self) -> None:
        super().__init__()

    def weight(self, texts: Sequence[Scored]) -> int:
        """1: a step's loss is a mean over sentences."""
        return 1


class _Between(_Comparison):
    """A loss between a sentence and its counterpart, beside which the sentence's attribute can be learned.

    Args:
        learn: weight of learning the attribute, as `Attribute` does with a margin.
        margin: stop learning it once it is this much likelier than under the base, in nats per token.
    """

    def __init__(self, learn: NotNegative = 0, margin: Positive = 4) -> None:
        super().__init__()
        self.learn, self.bound, self.needs_base = learn, margin, learn > 0

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> Tensor:
        """The loss between both texts + learn max(0, margin - (a - a_base)), in means per token."""
        mean_BK = logprob_BK / num_tokens_BK
        loss_B = self.between(mean_BK)
        if self.learn:
            gain_B = mean_BK[:, 0] - base_BK[:, 0] / num_tokens_BK[:, 0]
            loss_B = loss_B + self.learn * (self.bound - gain_B).clamp(min=0)
        return loss_B

    def between(self, mean_BK: Tensor) -> Tensor:
        """Loss of each pair, from the mean log-probabilities per token of its two texts."""
        raise NotImplementedError


class Equalise(_Between):
    """Make the attribute equally likely for two groups: the sentence, and the same with the group's words swapped."""

    contrasts = ("group",)

    def between(self, mean_BK: Tensor) -> Tensor:
        """Squared difference."""
        return (mean_BK[:, 0] - mean_BK[:, 1]).square()


class Preference(_Comparison):
    """Prefer the anti-stereotype to the stereotype more than the base does (DPO, Rafailov et al. 2023, eq. 7).

    Args:
        beta: weight of DPO's implicit KL term: higher keeps the model closer to its base.
    """

    contrasts = ("stereotype",)

    def __init__(self, beta: Positive = 0.1) -> None:
        super().__init__()
        self.beta, self.needs_base = beta, True

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> Tensor:
        """-log sigmoid(beta ((a - a_base) - (s - s_base))), a and s the two texts' log-probabilities; ln 2 at first."""
        gain_BK = logprob_BK - base_BK
        return -logsigmoid(self.beta * (gain_BK[:, 0] - gain_BK[:, 1]))


class PreferenceMargin(_Between):
    """Prefer the anti-stereotype to the stereotype by a margin and no further (a hinge).

    Args:
        by: the margin in nats per token; 0 aims for no preference either way.
        learn: weight of learning the anti-stereotype beside it, as `Attribute` does with a margin.
        margin: stop learning it once it is this much likelier than under the base, in nats per token.
    """

    contrasts = ("stereotype",)

    def __init__(self, by: float = 0.0, learn: NotNegative = 0, margin: Positive = 4) -> None:
        super().__init__(learn, margin)
        self.by = by

    def between(self, mean_BK: Tensor) -> Tensor:
        """max(0, by - (a - s))."""
        return (self.by - mean_BK[:, 0] + mean_BK[:, 1]).clamp(min=0)


class NegativePreference(_Comparison):
    """Learn the anti-stereotype, unlearn the stereotype and leave an unrelated word as likely as it was.

    The second term is negative preference optimisation (NPO, Zhang et al. 2024, eq. 3): unlike a negated
    log-likelihood it ends by itself, because its gradient vanishes once the stereotype is unlikely.

    Args:
        margin: stop learning an attribute once it is this much likelier than under the base, in nats per token.
        beta: how soon unlearning ends: at 1, half of its gradient is left at the base's likelihood, a tenth 2.2 nats
            per token below.
        unlearn: weight of the second term.
        hold: weight of the third term.
        biases: biases whose stereotypes are unlearned; a sentence about another one gets the first term alone. None:
            all.
    """

    contrasts = ("stereotype", "unrelated")

    def __init__(
        self,
        margin: Positive = 4,
        beta: Positive = 1,
        unlearn: NotNegative = 1,
        hold: NotNegative = 1,
        biases: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.bound, self.beta, self.unlearn, self.hold, self.needs_base = margin, beta, unlearn, hold, True
        self.biases = biases

    def compares(self, triplet: Triplet) -> bool:
        """Sentences about `biases`."""
        return self.biases is None or triplet.bias in self.biases

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> Tensor:
        """max(0, margin - a) + unlearn (2 / beta) log(1 + exp(beta s)) + hold u^2.

        a, s and u are the gains of the anti-stereotype, the stereotype and the unrelated word over the base, in nats
        per token.
        """
        gain_BK = (logprob_BK - base_BK) / num_tokens_BK.clamp(min=1)
        learn_B = (self.bound - gain_BK[:, 0]).clamp(min=0)
        unlearn_B = 2 / self.beta * softplus(self.beta * gain_BK[:, 1])
        counterparts_B = self.unlearn * unlearn_B + self.hold * gain_BK[:, 2].square()
        return learn_B + counterparts_B.where(num_tokens_BK[:, 1] > 0, 0.0)


class EqualChance(_Comparison):
    """Make stereotype and anti-stereotype equally likely and leave an unrelated word as it was (after BiasEdit).

    Xu et al. (2025) edit a model with the symmetric KL divergence between both words' likelihoods and a term that keeps
    unrelated words. Here the two words are the outcomes of a draw, so that the loss is exact in closed form.

    Args:
        hold: weight of the second term.
    """

    contrasts = ("stereotype", "unrelated")

    def __init__(self, hold: NotNegative = 1) -> None:
        super().__init__()
        self.hold, self.needs_base = hold, True

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> Tensor:
        """2 d tanh(d / 2) + hold u^2.

        d is the difference between the two words' mean log-probabilities per token: a draw between them has the odds
        exp(d), and 2 d tanh(d / 2) is KL(p || q) + KL(q || p) of its outcomes p and the swapped outcomes q. u is the
        gain of the unrelated word over the base, in nats per token.
        """
        mean_BK, base_mean_BK = logprob_BK / num_tokens_BK, base_BK / num_tokens_BK
        difference_B = mean_BK[:, 0] - mean_BK[:, 1]
        gain_B = mean_BK[:, 2] - base_mean_BK[:, 2]
        return 2 * difference_B * (difference_B / 2).tanh() + self.hold * gain_B.square()
