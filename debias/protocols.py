"""Published ways to turn a text into a likelihood: candidates in, token spans and a score out.

Benchmarks publish figures under one protocol or another, and they differ by several points for the same model. A
protocol reads causal and masked models differently; what it does for one kind of model is a `Reading`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple
from typing import Protocol as Interface

import numpy as np

from debias.records import Candidate, Masked, Scored, Span, Tokens, UserError

BLANK = "BLANK"  # how StereoSet marks a blank
BOTH: tuple[str, ...] = ("causal", "masked")


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
            return Reading(partial(causal, spans_of=partial(_first_apart, start)), mean_per_token)
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

    def __init__(self, start_token: str | None = None, unit: str = "token", ties: float = 0.0) -> None:
        self.start_token, self.score, self.ties = start_token, _unit(unit), ties
        self.name = _name("conditional", unit, ties)

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """Causal or masked."""
        if tokens.kind == "causal":
            start = start_id(tokens.tokenizer, self.start_token)
            return Reading(partial(causal, spans_of=lambda ids: [Span((start, *ids), 1)]), self.score)
        return Reading(each_masked, self.score)


class NoStart:
    """Every token but the first given what precedes it, without a start token: causal models only.

    Args:
        unit, ties: as for `Conditional`.
    """

    kinds: tuple[str, ...] = ("causal",)

    def __init__(self, unit: str = "token", ties: float = 0.0) -> None:
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

    def __init__(self, start_token: str | None = None, unit: str = "token") -> None:
        self.start_token, self.score = start_token, _unit(unit)
        self.name = _name("continuation", unit, 0.0)

    def reading(self, tokens: Tokens, blanks: bool = False) -> Reading:
        """Causal or masked."""
        if tokens.kind == "causal":
            start = start_id(tokens.tokenizer, self.start_token)
            return Reading(partial(continued, start=start), self.score)
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


def _unit(unit: str) -> Callable[[Pieces], np.ndarray]:
    units = {"token": mean_per_token, "text": total}
    if unit not in units:
        raise UserError(f"protocol.unit={unit!r} is unknown; choose token or text")
    return units[unit]


def _check_kind(protocol: Protocol, tokens: Tokens) -> None:
    if tokens.kind not in protocol.kinds:
        raise UserError(
            f"protocol={protocol.name} is for {' and '.join(protocol.kinds)} models, and this one is {tokens.kind}; "
            "choose another protocol"
        )


def start_id(tokenizer: Any, wanted: str | None = None, *first: str) -> int:
    """Id of the start token: `wanted`, or the first of `first`, BOS and EOS in the vocabulary. Raises UserError."""
    vocabulary = tokenizer.get_vocab()
    for token in (wanted,) if wanted else (*first, tokenizer.bos_token, tokenizer.eos_token):
        if token in vocabulary:
            return vocabulary[token]
    missing = repr(wanted) if wanted else "(BOS or EOS)"
    raise UserError(f"start token {missing} is not in the vocabulary; choose one with protocol.start_token=TOKEN")


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


# ---------------------------------------------------------------- spans of candidates: causal models


def causal(
    candidates: Sequence[Candidate], tokenizer: Any, spans_of: Callable[[tuple[int, ...]], list[Span]]
) -> list[list[Span]]:
    """Spans of whole texts."""
    ids = _encode(tokenizer, [c.text for c in candidates], add_special_tokens=False).input_ids
    return [spans_of(tuple(i)) if i else [] for i in ids]


def _first_apart(start: int, ids: tuple[int, ...]) -> list[Span]:
    """Two spans: the first token after the start token; the others after the first."""
    first = Span((start, ids[0]), 1)
    return [first, Span(ids, 1)] if len(ids) > 1 else [first]


def continued(candidates: Sequence[Candidate], tokenizer: Any, start: int) -> list[list[Span]]:
    """The filling's tokens (a leading space is part of the first one), given the start token and what stands before."""
    clozes = [_cloze(c) for c in candidates]
    texts = [c.before + c.filling for c in clozes]
    encoded = _encode(tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True)
    spans = []
    for cloze, ids, offsets in zip(clozes, encoded.input_ids, encoded.offset_mapping, strict=True):
        first = next((k for k, (_, stop) in enumerate(offsets) if stop > len(cloze.before)), None)
        spans.append([] if first is None else [Span((start, *ids), first + 1)])
    return spans


# ---------------------------------------------------------------- spans of candidates: masked models


def each_masked(candidates: Sequence[Candidate], tokenizer: Any) -> list[list[Masked]]:
    """Every token that is not special, masked alone."""
    mask = mask_id(tokenizer)
    return [[masked(ids, mask, k) for k in at] for ids, at in _texts(candidates, tokenizer)]


def none_masked(candidates: Sequence[Candidate], tokenizer: Any) -> list[list[Masked]]:
    """Every token that is not special, with nothing masked."""
    return [[Masked(ids, at, tuple(ids[k] for k in at))] if at else [] for ids, at in _texts(candidates, tokenizer)]


def shared_masked(candidates: Sequence[Candidate], tokenizer: Any) -> list[list[Masked]]:
    """The tokens that the sentences of a pair share, but for the first and the last of them (special tokens)."""
    return _pairwise(candidates, tokenizer, lambda a, b: [positions[1:-1] for positions in _aligned(a, b, same=True)])


def different_masked(candidates: Sequence[Candidate], tokenizer: Any) -> list[list[Masked]]:
    """The tokens in which the sentences of a pair differ; a pair where one of them has no such token has no spans."""

    def differing(a: tuple[int, ...], b: tuple[int, ...]) -> list[list[int]]:
        at = _aligned(a, b, same=False)
        return at if all(at) else [[], []]

    return _pairwise(candidates, tokenizer, differing)


def filling_masked(candidates: Sequence[Candidate], tokenizer: Any) -> list[list[Masked]]:
    """The filling's pieces, each masked alone, with all that stands before and after the blank."""
    mask = mask_id(tokenizer)
    clozes = [_cloze(c) for c in candidates]
    texts = [c.before + c.filling + c.after for c in clozes]
    encoded = _encode(tokenizer, texts, return_offsets_mapping=True)
    spans = []
    for cloze, ids, offsets in zip(clozes, encoded.input_ids, encoded.offset_mapping, strict=True):
        begin, end = len(cloze.before), len(cloze.before) + len(cloze.filling)
        at = [k for k, (start, stop) in enumerate(offsets) if stop > max(begin, start) and start < end]
        spans.append([masked(tuple(ids), mask, k) for k in at])
    return spans


def filling_pieces(candidates: Sequence[Candidate], tokenizer: Any) -> list[list[Masked]]:
    """The filling's pieces, each at one mask that stands after the earlier pieces; the later ones are not there.

    Nadeem et al. 2021, section 4. The filling is tokenised alone, after a space where that makes a difference.
    """
    mask = mask_id(tokenizer)
    clozes = [_cloze(c) for c in candidates]
    space = " " if _encode(tokenizer, ["a"]).input_ids != _encode(tokenizer, [" a"]).input_ids else ""
    pieces = _encode(tokenizer, [space + c.filling for c in clozes], add_special_tokens=False).input_ids
    texts, owner, wanted = [], [], []
    for i, (cloze, tokens) in enumerate(zip(clozes, pieces, strict=True)):
        for k, token in enumerate(tokens):
            inserted = tokenizer.decode(tokens[:k]).removeprefix(space) + tokenizer.mask_token
            # A second blank of a context gets the same, as in the published code; the first mask counts.
            texts.append(cloze.before + inserted + cloze.after.replace(BLANK, inserted))
            owner.append(i)
            wanted.append(token)
    spans: list[list[Masked]] = [[] for _ in clozes]
    for ids, i, token in zip(_encode(tokenizer, texts).input_ids if texts else [], owner, wanted, strict=True):
        spans[i].append(Masked(tuple(ids), (ids.index(mask),), (token,)))
    return spans


def mask_id(tokenizer: Any) -> int:
    """Id of the mask token. Raises UserError in a vocabulary without it."""
    if tokenizer.mask_token_id is None:
        raise UserError("the tokenizer has no mask token; is this really a masked model? (model.kind=causal)")
    return tokenizer.mask_token_id


def masked(ids: tuple[int, ...], mask: int, k: int) -> Masked:
    """A text with token k masked, and that token to be scored."""
    return Masked((*ids[:k], mask, *ids[k + 1 :]), (k,), (ids[k],))


def _texts(candidates: Sequence[Candidate], tokenizer: Any) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids of each text, and the positions of those that are not special."""
    encoded = _encode(tokenizer, [c.text for c in candidates], return_special_tokens_mask=True)
    for ids, special in zip(encoded.input_ids, encoded.special_tokens_mask, strict=True):
        yield tuple(ids), tuple(k for k, s in enumerate(special) if not s)


def _pairwise(
    candidates: Sequence[Candidate],
    tokenizer: Any,
    positions: Callable[[tuple[int, ...], tuple[int, ...]], list[list[int]]],
) -> list[list[Masked]]:
    """Spans for the positions that a comparison of the two candidates of each example gives."""
    mask = mask_id(tokenizer)
    ids = [tuple(i) for i in _encode(tokenizer, [c.text for c in candidates]).input_ids]
    spans: list[list[Masked]] = []
    for example, pair in groupby(range(len(candidates)), key=lambda i: candidates[i].example):
        two = list(pair)
        if len(two) != 2:
            raise UserError(f"example {example!r} has {len(two)} candidates; this protocol compares pairs")
        for i, at in zip(two, positions(ids[two[0]], ids[two[1]]), strict=True):
            spans.append([masked(ids[i], mask, k) for k in at])
    return spans


def _aligned(a: tuple[int, ...], b: tuple[int, ...], same: bool) -> list[list[int]]:
    """Positions in a and in b that are equal (or differ) in the alignment of difflib."""
    operations = difflib.SequenceMatcher(None, a, b).get_opcodes()
    chosen = [o for o in operations if (o[0] == "equal") == same]
    return [[k for o in chosen for k in range(o[1], o[2])], [k for o in chosen for k in range(o[3], o[4])]]


def _cloze(candidate: Candidate) -> Any:
    if candidate.cloze is None:
        raise UserError(f"example {candidate.example!r} has no blank to fill; choose another protocol")
    return candidate.cloze


def _encode(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    return tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False, **options)
