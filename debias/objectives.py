"""What the loss is taken on: log-probabilities of spans -> loss.

An objective says which tokens of a training sentence are scored (`span`) and what is made of the log-probabilities
(`loss`). All figures are in nats.
"""

from __future__ import annotations

from torch import Tensor, log1p

from debias.records import Encoded, Masked, Scored, Span, UserError


class Attribute:
    """The attribute's tokens and nothing else (Han et al. 2024, section 3).

    Causal models predict them from what precedes them; masked models from the rest of the sentence, with all of them
    masked at once. The labels are the true tokens.
    """

    def span(self, text: Encoded) -> Scored:
        """Causal: the sentence up to the attribute's last token, for what follows cannot change the likelihood.

        Plain text is an attribute from end to end; its first token has nothing before it but the start token, if any.
        """
        if text.mask is None:
            return Span(text.ids[: text.stop], max(text.start, 1))
        at = tuple(range(text.start, text.stop))
        if len(text.ids) - len(at) <= 2:  # nothing is left but the special tokens
            raise _without_attribute()
        hidden = (*text.ids[: text.start], *[text.mask] * len(at), *text.ids[text.stop :])
        return Masked(hidden, at, text.ids[text.start : text.stop])

    def loss(self, logprob_S: Tensor, num_tokens_S: Tensor) -> Tensor:
        """Mean negative log-likelihood per attribute token."""
        return -logprob_S.sum() / num_tokens_S.sum()


class Unlikelihood:
    """The attribute's tokens made less likely (Welleck et al. 2020, eq. 4): the reverse of `Attribute`.

    Unlike the negative of a log-likelihood it is bounded below, by 0, and its gradient vanishes as p does.
    """

    span = Attribute.span

    def loss(self, logprob_S: Tensor, num_tokens_S: Tensor) -> Tensor:
        """Mean of -log(1 - p) per attribute token, p being the geometric mean of the tokens of each attribute."""
        p_S = (logprob_S / num_tokens_S.clamp(min=1)).exp().clamp(max=1 - 1e-6)  # neutral spans have no token
        return -(log1p(-p_S) * num_tokens_S).sum() / num_tokens_S.sum()


class LanguageModel:
    """Every token given what precedes it: ordinary fine-tuning, as CDA and plain text are trained."""

    def span(self, text: Encoded) -> Scored:
        """The whole sentence from its second token on. Raises UserError for a masked model."""
        if text.mask is not None:
            raise _without_attribute()
        return Span(text.ids, 1)

    def loss(self, logprob_S: Tensor, num_tokens_S: Tensor) -> Tensor:
        """Mean negative log-likelihood per token."""
        return -logprob_S.sum() / num_tokens_S.sum()


def _without_attribute() -> UserError:
    return UserError(
        "a masked model is trained on sentences with an attribute, and this data has none (it is plain text); "
        "choose data=targeted, data=general or triplets of your own"
    )
