"""Candidates -> the token spans that a protocol scores: whole texts, what differs, or the filling of a blank."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from debias.records import Candidate, Cloze, Masked, Span, UserError
from debias.wording import counted

BLANK = "BLANK"  # how StereoSet marks a blank


def start_id(tokenizer: Any, wanted: str | None = None, *first: str) -> int:
    """Id of the start token: `wanted`, or the first of `first`, BOS and EOS in the vocabulary. Raises UserError."""
    for token in filter(None, (wanted,) if wanted else (*first, tokenizer.bos_token, tokenizer.eos_token)):
        found = tokenizer.convert_tokens_to_ids(token)  # the unknown token's id, or None, for a token it does not have
        if found is not None and tokenizer.convert_ids_to_tokens(found) == token:
            return int(found)
    missing = repr(wanted) if wanted else "(BOS or EOS)"
    raise UserError(f"start token {missing} is not in the vocabulary; choose one with protocol.start_token=TOKEN")


def start_token(tokenizer: Any) -> str:
    """The start token in words, as a record names it."""
    return tokenizer.convert_ids_to_tokens(start_id(tokenizer))


def after(start: int, ids: Sequence[int]) -> tuple[int, ...]:
    """A text's token ids without start tokens of its own at the front, so that no span holds two of them."""
    first = next((k for k, token in enumerate(ids) if token != start), len(ids))
    return tuple(ids[first:])


# ---------------------------------------------------------------- causal models


def causal(
    candidates: Sequence[Candidate], tokenizer: Any, spans_of: Callable[[tuple[int, ...]], list[Span]]
) -> list[list[Span]]:
    """Spans of whole texts."""
    ids = _encode(tokenizer, [c.text for c in candidates], add_special_tokens=False).input_ids
    return [spans_of(tuple(i)) if i else [] for i in ids]


def first_apart(start: int, ids: tuple[int, ...]) -> list[Span]:
    """Two spans: the first token after the start token; the others after the first."""
    ids = after(start, ids)
    if not ids:
        return []
    first = Span((start, ids[0]), 1)
    return [first, Span(ids, 1)] if len(ids) > 1 else [first]


def all_after(start: int, ids: tuple[int, ...]) -> list[Span]:
    """One span: every token after the start token and those before it."""
    ids = after(start, ids)
    return [Span((start, *ids), 1)] if ids else []


def continued(candidates: Sequence[Candidate], tokenizer: Any, start: int) -> list[list[Span]]:
    """The filling's tokens (a leading space is part of the first one), given the start token and what stands before."""
    blanks = _blanks(candidates)
    texts = [c.before + c.filling for c in blanks.values()]
    encoded = _encode(tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True)
    spans: list[list[Span]] = [[] for _ in candidates]
    for (i, cloze), ids, offsets in zip(blanks.items(), encoded.input_ids, encoded.offset_mapping, strict=True):
        rest = after(start, ids)
        own = len(ids) - len(rest)
        first = next((k for k, (_, stop) in enumerate(offsets) if k >= own and stop > len(cloze.before)), None)
        spans[i] = [] if first is None else [Span((start, *rest), first - own + 1)]
    return spans


# ---------------------------------------------------------------- masked models


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
    blanks = _blanks(candidates)
    texts = [c.before + c.filling + c.after for c in blanks.values()]
    encoded = _encode(tokenizer, texts, return_offsets_mapping=True)
    spans: list[list[Masked]] = [[] for _ in candidates]
    for (i, cloze), ids, offsets in zip(blanks.items(), encoded.input_ids, encoded.offset_mapping, strict=True):
        begin, end = len(cloze.before), len(cloze.before) + len(cloze.filling)
        at = [k for k, (start, stop) in enumerate(offsets) if stop > max(begin, start) and start < end]
        spans[i] = [masked(tuple(ids), mask, k) for k in at]
    return spans


def filling_pieces(candidates: Sequence[Candidate], tokenizer: Any) -> list[list[Masked]]:
    """The filling's pieces, each at one mask that stands after the earlier pieces; the later ones are not there.

    Nadeem et al. 2021, section 4. The filling is tokenised alone, after a space where that makes a difference.
    """
    mask = mask_id(tokenizer)
    blanks = _blanks(candidates)
    space = " " if _encode(tokenizer, ["a"]).input_ids != _encode(tokenizer, [" a"]).input_ids else ""
    pieces = _encode(tokenizer, [space + c.filling for c in blanks.values()], add_special_tokens=False).input_ids
    texts, owner, wanted = [], [], []
    for (i, cloze), tokens in zip(blanks.items(), pieces, strict=True):
        for k, token in enumerate(tokens):
            inserted = tokenizer.decode(tokens[:k]).removeprefix(space) + tokenizer.mask_token
            # A second blank of a context gets the same, as in the published code; the first mask counts.
            texts.append(cloze.before + inserted + cloze.after.replace(BLANK, inserted))
            owner.append(i)
            wanted.append(token)
    spans: list[list[Masked]] = [[] for _ in candidates]
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
            raise UserError(f"example {example!r} has {counted(len(two), 'candidate')}; this protocol compares pairs")
        for i, at in zip(two, positions(ids[two[0]], ids[two[1]]), strict=True):
            spans.append([masked(ids[i], mask, k) for k in at])
    return spans


def _aligned(a: tuple[int, ...], b: tuple[int, ...], same: bool) -> list[list[int]]:
    """Positions in a and in b that are equal (or differ) in the alignment of difflib."""
    operations = difflib.SequenceMatcher(None, a, b).get_opcodes()
    chosen = [o for o in operations if (o[0] == "equal") == same]
    return [[k for o in chosen for k in range(o[1], o[2])], [k for o in chosen for k in range(o[3], o[4])]]


def _blanks(candidates: Sequence[Candidate]) -> dict[int, Cloze]:
    """The blanks of candidates by their number; those without one have no spans. Raises UserError if none has one."""
    blanks = {i: candidate.cloze for i, candidate in enumerate(candidates) if candidate.cloze is not None}
    if candidates and not blanks:
        raise UserError(f"example {candidates[0].example!r} has no blank to fill; choose another protocol")
    return blanks


def _encode(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    return tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False, **options)
