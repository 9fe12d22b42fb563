"""Balance: two words that get the same odds after every role, such as "she" and "he", or two groups.

An objective teaches what is said of a group. Balance teaches the other direction, which group is expected: a model that
learned the first still takes a surgeon for a man. It is a term of its own, like retention, beside any objective.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from debias.records import Candidate, Cloze, Scored, Tokens, UserError
from debias.scoring.protocols import Continuation

CORPORA = Path(__file__).parents[1] / "corpora"


class Pair(NamedTuple):
    """Two texts that differ in one word, which is scored."""

    first: Scored
    second: Scored
    place: int  # number of the sentence with these two words; all pairs of a place get the same log-odds


class Balance(Protocol):
    """A source of pairs."""

    def pairs(self, tokens: Tokens) -> list[Pair]:
        """The pairs, as this model reads them."""


class Nothing:
    """No pairs: the objective and retention alone."""

    def pairs(self, tokens: Tokens) -> list[Pair]:
        """An empty list."""
        return []


class Words:
    """Two words in places after roles, from a file of `debias/corpora/`."""

    corpus: ClassVar[str]

    def pairs(self, tokens: Tokens) -> list[Pair]:
        """The corpus's pairs whose two words are one token each for this model. Raises UserError if there are none."""
        corpus = json.loads((CORPORA / self.corpus).read_text(encoding="utf-8"))
        numbers: dict[tuple[int, str, str], int] = {}
        places, candidates = [], []
        # Every role comes once in each sentence, with one of the choices of two words there, which take turns: all
        # choices with all roles would be ten times as many texts to score before training. In a sentence with five
        # groups, each group is once on either side and each choice gets a fifth of the roles; over all sentences every
        # role meets every two groups. Two words, as pronouns are, have one choice, which gets all roles.
        for sentence, place in enumerate(corpus["places"]):
            rounds = choices(corpus["words"][place["words"]])
            here = rounds[sentence % len(rounds)]
            for turn, role in enumerate(corpus["roles"], start=sentence):
                two = here[turn % len(here)]
                places.append(numbers.setdefault((sentence, *two), len(numbers)))
                clozes = [Cloze(place["before"].format(role), f" {word}", place["after"]) for word in two]
                candidates += [Candidate("", "", "", "", "".join(cloze), cloze) for cloze in clozes]
        spans = list(Continuation().reading(tokens, blanks=True).spans(candidates, tokens.tokenizer))
        found = [
            Pair(first[0], second[0], place)
            for place, first, second in zip(places, spans[::2], spans[1::2], strict=True)
            if [span.num_tokens for span in (*first, *second)] == [1, 1]
        ]
        if not found:
            reason = f"no two words of {self.corpus} are one token each for this model"
            raise UserError(f"{reason}, so this balance cannot be used with it; choose another (debias ls balance)")
        return found


class Pronouns(Words):
    """Feminine and masculine pronouns after roles: `The surgeon smiled because` she, he.

    No role has the name of an occupation of the pronoun gap, and no place is one of its sentences.
    """

    corpus = "pronoun_pairs.json"


class Groups(Words):
    """Races and religions after traits and deeds: `The man arrested for theft who moved in upstairs is` Muslim, Hindu.

    No word of a role is an attribute of the group gap, and no place one of its sentences.
    """

    corpus = "group_pairs.json"


class PronounsAndGroups:
    """Both, half of the pairs each."""

    def pairs(self, tokens: Tokens) -> list[Pair]:
        """Pairs of both corpora. Raises UserError if the model has none of one of them."""
        return equal_shares([Pronouns().pairs(tokens), Groups().pairs(tokens)])


def choices(words: Sequence[str]) -> list[list[tuple[str, str]]]:
    """All choices of two of these words, in rounds that hold each word once on either side.

    With the words in a circle, a round joins each to the one some steps on: one step, then two, to half the circle.

    Args:
        words: two, which are a round by themselves, or an odd number.
    """
    if len(words) == 2:
        return [[(words[0], words[1])]]
    size = len(words)
    return [[(words[k], words[(k + steps) % size]) for k in range(size)] for steps in range(1, (size + 1) // 2)]


def equal_shares(sources: Sequence[Sequence[Pair]]) -> list[Pair]:
    """As many pairs of each source as the largest has: a batch draws from all alike. Places are numbered anew."""
    largest = max(map(len, sources))
    shared, first_place = [], 0
    for pairs in sources:
        spread = [pairs[k * len(pairs) // largest] for k in range(largest)]  # repeats are spread over its places
        shared += [pair._replace(place=first_place + pair.place) for pair in spread]
        first_place += 1 + max(pair.place for pair in pairs)
    return shared


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
