"""What the loss is taken on: log-probabilities of spans -> loss.

An objective says which text stands beside a training sentence (`contrast`: none, or a kind of
`debias/training/pairs.py`), which of their tokens are scored (`span`), and what is made of the log-probabilities
(`losses`): the loss of each example and its weight. The loss of a batch is the weighted mean. All
figures are in nats.

Shapes: B examples, K texts of an example: the training sentence, then its counterpart if there is one.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from debias.records import Encoded, Masked, Scored, Span, UserError


class Attribute:
    """The attribute's tokens and nothing else (Han et al. 2024, section 3).

    Causal models predict them from what precedes them; masked models from the rest of the sentence, with all of them
    masked at once. The labels are the true tokens.

    Args:
        margin: an attribute is learned no further once it is that much likelier than under the base, in nats per token;
            the paper has no such bound.
    """

    contrast: str | None = None

    def __init__(self, margin: float | None = None) -> None:
        if margin is not None and not margin > 0:
            raise UserError(f"objective.margin={margin} must be more than 0, or null for none")
        self.margin = margin
        self.needs_base = margin is not None

    def span(self, text: Encoded) -> Scored:
        """Causal: the sentence up to the attribute's last token, for what follows cannot change the likelihood.

        Plain text is an attribute from end to end; its first token has nothing before it but the start token, if any.
        """
        if text.mask is None:
            return Span(text.ids[: text.stop], max(text.start, 1))
        at = tuple(range(text.start, text.stop))
        if len(text.ids) - len(at) <= 2:  # nothing is left but the special tokens
            raise UserError(
                "a masked model learns an attribute from the rest of its sentence, and this data has none (it is plain "
                "text); choose objective=language_model, or data with attributes: data=targeted, data=general"
            )
        hidden = (*text.ids[: text.start], *[text.mask] * len(at), *text.ids[text.stop :])
        return Masked(hidden, at, text.ids[text.start : text.stop])

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each attribute; it weighs as much as it has tokens."""
        loss_B = -logprob_BK[:, 0]
        if self.margin is not None:
            bound_B = base_BK[:, 0] + self.margin * num_tokens_BK[:, 0]
            loss_B = (bound_B - logprob_BK[:, 0]).clamp(min=0)
        return loss_B, num_tokens_BK[:, 0]


class AsPublished(Attribute):
    """The paper's notebook for masked models, whose labels are the mask token itself: to reproduce it, not to use it.

    For causal models it is `Attribute`, as in the notebook.
    """

    def span(self, text: Encoded) -> Scored:
        """As `Attribute`, with the mask token as the label of each masked position."""
        span = super().span(text)
        if isinstance(span, Masked):
            return span._replace(tokens=tuple(span.ids[k] for k in span.at))
        return span


class Unlikelihood(Attribute):
    """The attribute's tokens made less likely (Welleck et al. 2020, eq. 4): the reverse of `Attribute`.

    Unlike the negative of a log-likelihood it is bounded below, by 0, and its gradient vanishes as p does.
    """

    def __init__(self) -> None:
        super().__init__()

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> tuple[Tensor, Tensor]:
        """-log(1 - p) for each token, p being the geometric mean of the tokens of the attribute."""
        num_B = num_tokens_BK[:, 0]
        p_B = (logprob_BK[:, 0] / num_B).exp().clamp(max=1 - 1e-6)
        return -torch.log1p(-p_B) * num_B, num_B


class LanguageModel(Attribute):
    """Every token: ordinary fine-tuning, as CDA and plain text are trained.

    Args:
        share: of a masked model's tokens that are masked; which ones is drawn from the sentence, always the same.
    """

    def __init__(self, share: float = 0.15) -> None:
        super().__init__()
        self.share = share

    def span(self, text: Encoded) -> Scored:
        """Causal: the whole sentence from its second token on. Masked: a share of its tokens, at least one."""
        if text.mask is None:
            return Span(text.ids, 1)
        inner = range(1, len(text.ids) - 1)  # without the special tokens at both ends
        draw = {k: hashlib.sha256(repr((text.ids, k)).encode()).digest() for k in inner}
        at = tuple(sorted(sorted(inner, key=draw.__getitem__)[: max(1, round(self.share * len(inner)))]))
        hidden = tuple(text.mask if k in at else token for k, token in enumerate(text.ids))
        return Masked(hidden, at, tuple(text.ids[k] for k in at))


class Equalise(Attribute):
    """The attribute made equally likely about another group: the sentence, and the same with its target swapped."""

    contrast = "group"

    def __init__(self) -> None:
        super().__init__()

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Squared difference of the two mean log-probabilities per token; 0 where they are equal."""
        mean_BK = logprob_BK / num_tokens_BK
        loss_B = (mean_BK[:, 0] - mean_BK[:, 1]).square()
        return loss_B, torch.ones_like(loss_B)


class Preference(Attribute):
    """The anti-stereotype preferred to the stereotype, relative to the base (DPO, Rafailov et al. 2023, eq. 7).

    Args:
        beta: how strongly the model is held to its base.
    """

    contrast = "stereotype"

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        if not beta > 0:
            raise UserError(f"objective.beta={beta} must be more than 0")
        self.beta, self.needs_base = beta, True

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> tuple[Tensor, Tensor]:
        """-log sigmoid(beta ((a - base a) - (s - base s))) for anti-stereotype a, stereotype s: ln 2 at the start."""
        gain_BK = logprob_BK - base_BK
        loss_B = -logsigmoid(self.beta * (gain_BK[:, 0] - gain_BK[:, 1]))
        return loss_B, torch.ones_like(loss_B)


class PreferenceMargin(Attribute):
    """The anti-stereotype preferred to the stereotype by a margin, and no further (a hinge).

    Args:
        by: the margin in nats per token; 0 aims at a model without preference.
    """

    contrast = "stereotype"

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(by):
            raise UserError(f"objective.by={by} must be a number")
        self.by = by

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> tuple[Tensor, Tensor]:
        """What the anti-stereotype's mean log-probability per token lacks to stand `by` above the stereotype's."""
        mean_BK = logprob_BK / num_tokens_BK
        loss_B = (self.by - mean_BK[:, 0] + mean_BK[:, 1]).clamp(min=0)
        return loss_B, torch.ones_like(loss_B)
