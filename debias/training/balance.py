"""Balance: two words that ought to be equally likely in one place, such as "she" and "he" after a role.

An objective teaches what is said of a group. Balance teaches the other direction, which group is expected: a model that
learned the first still takes a surgeon for a man. It is a term of its own, like retention, beside any objective.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from debias.records import Candidate, Cloze, Scored, Tokens, UserError
from debias.scoring.protocols import Continuation

CORPUS = Path(__file__).parents[1] / "corpora" / "pronoun_pairs.json"


class Pair(NamedTuple):
    """Two texts that differ in one word, which is scored."""

    first: Scored
    second: Scored
    place: int  # number of the sentence; all pairs of a place get the same log-odds


class Balance(Protocol):
    """A source of pairs."""

    def pairs(self, tokens: Tokens) -> list[Pair]:
        """The pairs, as this model reads them."""


class Nothing:
    """No pairs: the objective and retention alone."""

    def pairs(self, tokens: Tokens) -> list[Pair]:
        """An empty list."""
        return []


class Place(NamedTuple):
    """Where one of two words stands, after a role."""

    before: str
    first: str
    second: str
    after: str


class Pronouns:
    """Feminine and masculine pronouns after roles: `The surgeon smiled because` she, he.

    No role is an occupation of the pronoun gap, and no place one of its sentences: it asks about words not trained on.
    """

    def pairs(self, tokens: Tokens) -> list[Pair]:
        """Every role in every place whose two words are one token each for this model. Raises UserError if none is."""
        corpus = json.loads(CORPUS.read_text(encoding="utf-8"))
        texts = [(place, role) for place in (Place(**p) for p in corpus["places"]) for role in corpus["roles"]]
        candidates = [
            Candidate(str(number), word, "gender", role, "", Cloze(place.before.format(role), f" {word}", place.after))
            for number, (place, role) in enumerate(texts)
            for word in (place.first, place.second)
        ]
        spans = list(Continuation().reading(tokens, blanks=True).spans(candidates, tokens.tokenizer))
        found = [
            Pair(first[0], second[0], number // len(corpus["roles"]))
            for number, (first, second) in enumerate(zip(spans[::2], spans[1::2], strict=True))
            if [span.num_tokens for span in (*first, *second)] == [1, 1]
        ]
        if not found:
            raise UserError("no pronoun is one token for this model, so balance=pronouns cannot be used with it")
        return found


def losses(logprob_P2: Tensor, base_P2: Tensor, aim_P: Tensor) -> Tensor:
    """Loss of each pair, shape (P,): squared distance of its log-odds from its aim, and what holds its joint mass.

    The second part is the KL divergence between base and model of one question: either of the two words, or another
    word? So nothing is gained by making both unlikely, and what else may stand there keeps its probability.

    Args:
        logprob_P2, base_P2: log-probabilities of both words under the model and its base, in nats.
        aim_P: the log-odds to aim for, in nats (`aims`).
    """
    distance_P = (logprob_P2[:, 0] - logprob_P2[:, 1] - aim_P).square()
    either_P, base_P = (p.exp().sum(1).clamp(1e-6, 1 - 1e-6) for p in (logprob_P2, base_P2))
    held_P = base_P * (base_P / either_P).log() + (1 - base_P) * ((1 - base_P) / (1 - either_P)).log()
    return distance_P + held_P


def aims(pairs: Sequence[Pair], base_P2: Tensor) -> list[float]:
    """The log-odds that each pair is to get: the base's mean over all pairs of its place, in nats.

    So no role is told from another, and in every place the words stay as frequent as they are. One mean for all places
    would not do: they differ by more than two nats ("told me that she", "gave her"), so every sentence would move.
    """
    place_P = torch.tensor([pair.place for pair in pairs])
    odds_P = base_P2[:, 0] - base_P2[:, 1]
    mean = {place: float(odds_P[place_P == place].mean()) for place in set(place_P.tolist())}
    return [mean[pair.place] for pair in pairs]


def of_pairs(values_S: Tensor, number: int) -> Tensor:
    """The last `number` pairs of scored spans, shape (P, 2)."""
    return values_S[len(values_S) - 2 * number :].view(-1, 2)
