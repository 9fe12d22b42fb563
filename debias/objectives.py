"""What the loss is taken on: log-probabilities of spans -> loss.

An objective says which span of a training sentence is scored (`span`) and what is made of the log-probabilities
(`loss`). All figures are in nats.
"""

from __future__ import annotations

from torch import Tensor

from debias.records import Encoded, Span


class Attribute:
    """The attribute's tokens given what precedes them (Han et al. 2024, section 3): nothing else is pushed."""

    def span(self, text: Encoded) -> Span:
        """The sentence up to the attribute's last token; what follows cannot change a causal likelihood."""
        return Span(text.ids[: text.stop], text.start)

    def loss(self, logprob_S: Tensor, num_tokens_S: Tensor) -> Tensor:
        """Mean negative log-likelihood per attribute token."""
        return -logprob_S.sum() / num_tokens_S.sum()


class LanguageModel:
    """Every token given what precedes it: ordinary fine-tuning, as CDA and plain text are trained."""

    def span(self, text: Encoded) -> Span:
        """The whole sentence from its second token on."""
        return Span(text.ids, 1)

    def loss(self, logprob_S: Tensor, num_tokens_S: Tensor) -> Tensor:
        """Mean negative log-likelihood per token."""
        return -logprob_S.sum() / num_tokens_S.sum()
