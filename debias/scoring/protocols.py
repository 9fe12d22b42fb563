"""Published ways to turn a text into a likelihood: candidates in, token spans and a score out.

Benchmarks publish figures under one protocol or another, and they differ by several points for the same model. A
protocol reads causal and masked models differently; what it does for one kind of model is a `Reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple
from typing import Protocol as Interface

import numpy as np

from debias.records import Candidate, Scored, Share, Span, Tokens, UserError
from debias.scoring.spans import (
    all_after,
    causal,
    continued,
    different_masked,
    each_masked,
    filling_masked,
    filling_pieces,
    first_apart,
    none_masked,
    shared_masked,
    start_id,
)

BOTH: tuple[str, ...] = ("causal", "masked")
Unit = Literal["token", "text"]


class Pieces(NamedTuple):
    """Log-probabilities of the spans of many candidates. S spans, C candidates."""

    logprob_S: np.ndarray  # nats
    greedy_S: np.ndarray  # whether every scored token of the span is the likeliest one
    num_tokens_S: np.ndarray
    candidate_S: np.ndarray  # the candidate that the span belongs to
    size: int  # C

    def total(self, values_S: np.ndarray) -> np.ndarray:
        """Sums per candidate; 0 for a candidate without spans."""
        return np.bincount(self.candidate_S, values_S, minlength=self.size)


class Reading(NamedTuple):
    """How one kind of model reads candidates: which spans of each are scored (none: it cannot be), and the score."""

    spans: Callable[[Sequence[Candidate], Any], Sequence[Sequence[Scored]]]  # of candidates and a tokenizer
    score: Callable[[Pieces], np.ndarray]  # shape (C,); what the benchmark compares
    start: int | None = None  # id of the start token; None: there is none
    starts_all: bool = True  # whether every token of a text sees it, or the first one alone


class Protocol(Interface):
    """One published protocol; its name stands in `metrics.jsonl`."""

    name: str
    kinds: tuple[str, ...]  # of the models that it can read
    ties: float  # what a tie of two candidates adds to the share of preferred stereotypes: 0 or 0.5

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """How this kind of model reads examples with or without blanks.

        Raises UserError where the protocol says nothing about this kind of model.
        """


# ---------------------------------------------------------------- protocols


class BiasBench:
    """Meade et al. 2022 (bias-bench), oddities included, so that published figures are reproduced.

    Causal: the first token given `<|endoftext|>`, the others *without* a start token; mean per token. Masked: where an
    example has a blank (StereoSet), the mean probability of the filling's pieces, each at one mask behind the earlier
    pieces; where it has none (CrowS-Pairs), the mean log-probability of the tokens in which two sentences differ, each
    masked alone, rounded to three decimals.

    Args:
        start_token: stands before a text of a causal model; when empty `<|endoftext|>`, or BOS in a vocabulary
            without it.
    """

    name = "bias_bench"
    kinds = BOTH
    ties = 0.0

    def __init__(self, start_token: str | None = None) -> None:
        self.start_token = start_token

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """Causal or masked."""
        if tokens.kind == "causal":
            start = start_id(tokens.tokenizer, self.start_token, "<|endoftext|>")
            return Reading(partial(causal, spans_of=partial(first_apart, start)), mean_per_token, start, False)
        if blanks:
            return Reading(filling_pieces, mean_probability)
        return Reading(different_masked, lambda pieces: np.round(mean_per_token(pieces), 3))


class Conditional:
    """Every token given the start token and all that precedes it; for a masked model given all the other tokens.

    The causal reading is the likelihood the model was trained for; the masked one is the pseudo-log-likelihood of
    Salazar et al. 2020.

    Args:
        start_token: stands before a text of a causal model; when empty BOS, or EOS in a vocabulary without it (GPT-2's
            are one).
        unit: `token` compares means per token, `text` sums.
        ties: what a tie of two candidates adds to a stereotype score.
    """

    kinds = BOTH

    def __init__(self, start_token: str | None = None, unit: Unit = "token", ties: Share = 0.0) -> None:
        self.start_token, self.score, self.ties = start_token, _unit(unit), ties
        self.name = _name("conditional", unit, ties)

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """Causal or masked."""
        if tokens.kind == "causal":
            start = start_id(tokens.tokenizer, self.start_token)
            return Reading(partial(causal, spans_of=partial(all_after, start)), self.score, start)
        return Reading(each_masked, self.score)


class NoStart:
    """Every token but the first given what precedes it, without a start token: causal models only.

    Args:
        unit, ties: as for `Conditional`.
    """

    kinds: tuple[str, ...] = ("causal",)

    def __init__(self, unit: Unit = "token", ties: Share = 0.0) -> None:
        self.score, self.ties = _unit(unit), ties
        self.name = _name("no_start", unit, ties)

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """Causal. Raises UserError for a masked model."""
        _check_kind(self, tokens)
        return Reading(partial(causal, spans_of=lambda ids: [Span(ids, 1)] if len(ids) > 1 else []), self.score)


class CrowsPairsOriginal:
    """Nangia et al. 2020: the tokens that two sentences share, each masked alone, summed: masked models only."""

    name = "crows_pairs_original"
    kinds: tuple[str, ...] = ("masked",)
    ties = 0.0

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """Masked. Raises UserError for a causal model."""
        _check_kind(self, tokens)
        return Reading(shared_masked, lambda pieces: np.round(total(pieces), 3))


class Unmasked:
    """AUL, all unmasked likelihood (Kaneko & Bollegala 2022): nothing is masked, the score is the mean per token."""

    name = "aul"
    kinds: tuple[str, ...] = ("masked",)
    ties = 0.0

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """Masked. Raises UserError for a causal model."""
        _check_kind(self, tokens)
        return Reading(none_masked, mean_per_token)


class Continuation:
    """The filling of an example's blank given what stands before it; the score is its mean per token, or its sum.

    A masked model sees what stands after it too; the filling's pieces are masked one at a time.

    Args:
        start_token: as for `Conditional`.
        unit: `token` or `text`.
    """

    kinds = BOTH
    ties = 0.0

    def __init__(self, start_token: str | None = None, unit: Unit = "token") -> None:
        self.start_token, self.score = start_token, _unit(unit)
        self.name = _name("continuation", unit, 0.0)

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """Causal or masked."""
        if tokens.kind == "causal":
            start = start_id(tokens.tokenizer, self.start_token)
            return Reading(partial(continued, start=start), self.score, start)
        return Reading(filling_masked, self.score)


class Greedy(Continuation):
    """As `Continuation`, but the score is 1 where greedy decoding gives the filling, every token of it, and else 0.

    For a masked model: where each of its pieces is the likeliest at its own mask, given the others.

    Args:
        start_token: as for `Conditional`.
    """

    def __init__(self, start_token: str | None = None) -> None:
        super().__init__(start_token)
        self.score, self.name = greedy, "continuation_greedy"


def _name(name: str, unit: str, ties: float) -> str:
    return name + ("_sum" if unit == "text" else "") + (f"_ties_{ties:g}" if ties else "")


def _unit(unit: Unit) -> Callable[[Pieces], np.ndarray]:
    return {"token": mean_per_token, "text": total}[unit]


def _check_kind(protocol: Protocol, tokens: Tokens) -> None:
    if tokens.kind not in protocol.kinds:
        raise UserError(
            f"protocol={protocol.name} is for {' and '.join(protocol.kinds)} models, and this one is {tokens.kind}; "
            "choose another protocol"
        )


# ---------------------------------------------------------------- start tokens


class Start(NamedTuple):
    """What a protocol puts in front of a causal model's texts, in words."""

    token: str  # for the record
    note: str | None  # what stands in its place, or what the model misses


def start_of(protocol: Protocol, reading: Reading, tokens: Tokens) -> Start | None:
    """How a protocol begins texts; None for a masked model, whose texts have their special tokens."""
    if tokens.kind != "causal":
        return None
    tokenizer = tokens.tokenizer
    token = "none" if reading.start is None else tokenizer.convert_ids_to_tokens(reading.start)
    where = "" if reading.starts_all or reading.start is None else ", before the first token alone"
    bos, own = tokenizer.bos_token_id, tokenizer("a").input_ids[:1]
    if bos is None and reading.start is not None:
        return Start(f"{token}{where}", f"the tokenizer has no BOS token: {token} stands in its place")
    # A tokenizer that begins every text with BOS by itself belongs to a model that was trained so. Some, like Gemma,
    # predict nothing sensible without it.
    if [bos] == own and not (reading.start == bos and reading.starts_all):
        missing = f"this model was trained on texts that begin with {tokenizer.bos_token}"
        return Start(
            f"{token}{where}",
            f"{missing}, and protocol={protocol.name} does not show it to every token; set protocol=conditional",
        )
    return Start(f"{token}{where}", None)


# ---------------------------------------------------------------- scores of candidates


def total(pieces: Pieces) -> np.ndarray:
    """Log-probability; NaN for a candidate that cannot be scored."""
    return np.where(pieces.total(pieces.num_tokens_S) > 0, pieces.total(pieces.logprob_S), np.nan)


def mean_per_token(pieces: Pieces) -> np.ndarray:
    """Log-probability per token."""
    with np.errstate(invalid="ignore"):
        return pieces.total(pieces.logprob_S) / pieces.total(pieces.num_tokens_S)


def greedy(pieces: Pieces) -> np.ndarray:
    """1 where every scored token is the likeliest at its place, else 0; NaN for a candidate that cannot be scored."""
    missed = pieces.total(1.0 - pieces.greedy_S)
    return np.where(pieces.total(pieces.num_tokens_S) > 0, missed == 0, np.nan)


def mean_probability(pieces: Pieces) -> np.ndarray:
    """Logarithm of the arithmetic mean of the spans' probabilities."""
    with np.errstate(invalid="ignore", divide="ignore"):
        spans = pieces.total(np.ones_like(pieces.logprob_S))
        return np.log(pieces.total(np.exp(pieces.logprob_S)) / spans)
