"""Training sentences -> the spans that an objective scores, or the reason why this model cannot be trained on one."""

from __future__ import annotations

from collections.abc import Sequence

from debias.records import Encoded, Scored, Tokens, Triplet
from debias.scoring.encoding import encode
from debias.training.batches import Texts
from debias.training.objectives import Objective


def examples(
    pairs: Sequence[Sequence[Triplet]],
    objective: Objective,
    tokens: Tokens,
    max_positions: int | None,
    start_token: bool = True,
) -> list[Texts | str]:
    """The spans of each sentence and its counterparts, or why there are none.

    Args:
        pairs: sentences, each alone or with its counterparts.
        max_positions: how many tokens of a text the model takes; None where there is no limit.
        start_token: put the start token in front of every sentence of a causal model.
    """
    encoded = iter(encode([triplet for pair in pairs for triplet in pair], tokens, start_token))
    return [_spans([next(encoded) for _ in pair], objective, max_positions) for pair in pairs]


def fits(span: Scored, max_positions: int | None) -> bool:
    """Whether a text is within the model's context; scoring asks the same."""
    return max_positions is None or span.num_positions <= max_positions


def _spans(texts: Sequence[Encoded], objective: Objective, max_positions: int | None) -> Texts | str:
    if any(text.start == text.stop for text in texts):
        return "the model's tokenizer has no token for the attribute"
    spans = tuple(objective.span(text) for text in texts)
    if not all(fits(span, max_positions) for span in spans):
        return f"longer than the model's {max_positions} tokens"
    if not all(span.num_tokens for span in spans):
        return "a single token, with nothing before it"
    return spans
