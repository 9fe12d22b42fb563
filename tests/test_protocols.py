"""Which tokens each protocol scores, worked out on texts of a few words, and what it makes of their likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from debias.records import Candidate, Cloze, Masked, Span, Tokens, UserError
from debias.scoring.protocols import (
    BiasBench,
    Conditional,
    Continuation,
    CrowsPairsOriginal,
    NoStart,
    Pieces,
    Unmasked,
    mean_per_token,
    mean_probability,
    total,
)
from debias.scoring.spans import each_masked, start_id


@pytest.fixture(scope="module")
def causal(smollm2_tokenizer: Path) -> Tokens:
    return Tokens(AutoTokenizer.from_pretrained(smollm2_tokenizer), "causal")


@pytest.fixture(scope="module")
def masked(tiny_masked: Path) -> Tokens:
    return Tokens(AutoTokenizer.from_pretrained(tiny_masked), "masked")


def text(words: str, example: str = "1", candidate: str = "a", cloze: Cloze | None = None) -> Candidate:
    return Candidate(example, candidate, "gender", "target", words, cloze)


def ids(tokens: Tokens, *words: str) -> tuple[int, ...]:
    """Ids of tokens that are in the vocabulary as they stand."""
    found = tokens.tokenizer.convert_tokens_to_ids(list(words))
    assert tokens.tokenizer.unk_token_id not in found or tokens.kind == "causal"
    return tuple(found)


def spans(protocol: Any, tokens: Tokens, *candidates: Candidate) -> list[list[Any]]:
    blanks = all(c.cloze for c in candidates)
    return [list(s) for s in protocol.reading(tokens, blanks).spans(candidates, tokens.tokenizer)]


def test_causal_protocols_differ_in_what_stands_before(causal: Tokens) -> None:
    """`<|endoftext|>` is 0, BOS is 1. bias_bench shows the start token to the first token alone."""
    he, ran, off = causal.tokenizer("He ran off").input_ids
    one = text("He ran off")
    assert spans(BiasBench(), causal, one) == [[Span((0, he), 1), Span((he, ran, off), 1)]]
    assert spans(Conditional(), causal, one) == [[Span((1, he, ran, off), 1)]]
    assert spans(NoStart(), causal, one) == [[Span((he, ran, off), 1)]]
    assert spans(Conditional(start_token="<|endoftext|>"), causal, one) == [[Span((0, he, ran, off), 1)]]
    assert spans(BiasBench(), causal, text("He")) == [[Span((0, he), 1)]]
    assert spans(NoStart(), causal, text("He")) == [[]]  # nothing precedes its only token: cannot be scored
    assert spans(Conditional(), causal, text("")) == [[]]


def test_a_continuation_is_scored_with_its_leading_space(causal: Tokens) -> None:
    the, cat, sat = causal.tokenizer("The cat sat").input_ids
    for before, filling in (("The cat", " sat"), ("The cat ", "sat")):
        cloze = Cloze(before, filling, " on the mat")
        assert spans(Continuation(), causal, text("", cloze=cloze)) == [[Span((1, the, cat, sat), 3)]]


def test_masked_tokens_one_at_a_time(masked: Tokens) -> None:
    cls, he, ran, sep, mask = ids(masked, "[CLS]", "he", "ran", "[SEP]", "[MASK]")
    assert spans(Conditional(), masked, text("He ran")) == [
        [Masked((cls, mask, ran, sep), (1,), (he,)), Masked((cls, he, mask, sep), (2,), (ran,))]
    ]
    assert spans(Unmasked(), masked, text("He ran")) == [[Masked((cls, he, ran, sep), (1, 2), (he, ran))]]


def test_crows_pairs_scores_what_differs_or_what_is_shared(masked: Tokens) -> None:
    """he ran far / she ran far. Published: the words that differ. Original: those shared but the outermost ones."""
    cls, he, she, ran, far, sep, mask = ids(masked, "[CLS]", "he", "she", "ran", "far", "[SEP]", "[MASK]")
    pair = text("he ran far", candidate="sent_more"), text("she ran far", candidate="sent_less")
    assert spans(BiasBench(), masked, *pair) == [
        [Masked((cls, mask, ran, far, sep), (1,), (he,))], [Masked((cls, mask, ran, far, sep), (1,), (she,))],
    ]  # fmt: skip
    assert spans(CrowsPairsOriginal(), masked, *pair) == [
        [Masked((cls, he, mask, far, sep), (2,), (ran,)), Masked((cls, he, ran, mask, sep), (3,), (far,))],
        [Masked((cls, she, mask, far, sep), (2,), (ran,)), Masked((cls, she, ran, mask, sep), (3,), (far,))],
    ]
    longer = text("he ran", candidate="sent_more"), text("he ran far", candidate="sent_less")
    assert spans(BiasBench(), masked, *longer) == [[], []]  # one side has no word of its own
    with pytest.raises(UserError, match="example '1' has 1 candidate; this protocol compares pairs"):
        spans(CrowsPairsOriginal(), masked, pair[0])


def test_a_filling_is_predicted_piece_by_piece_after_the_earlier_ones(masked: Tokens) -> None:
    """una ##f: the first piece at the only mask of the blank, the second at a mask that stands after it."""
    cls, he, was, una, f, far, sep, mask = ids(masked, "[CLS]", "he", "was", "una", "##f", "far", "[SEP]", "[MASK]")
    pieces = masked.tokenizer("unaf", add_special_tokens=False).input_ids
    assert pieces == [una, f]
    one = text("he was unaf far", cloze=Cloze("he was ", "unaf", " far"))
    assert spans(BiasBench(), masked, one) == [
        [Masked((cls, he, was, mask, far, sep), (3,), (una,)), Masked((cls, he, was, una, mask, far, sep), (4,), (f,))]
    ]
    assert spans(Continuation(), masked, one) == [
        [
            Masked((cls, he, was, mask, f, far, sep), (3,), (una,)),
            Masked((cls, he, was, una, mask, far, sep), (4,), (f,)),
        ]
    ]  # all other tokens are seen, the later pieces too


def test_scores() -> None:
    """Candidate 0 has spans of 1/2 (one token) and 1/8 (three tokens), 1 has none, 2 has one of 1/4 (two tokens)."""
    pieces = Pieces(np.log([1 / 2, 1 / 8, 1 / 4]), np.ones(3, bool), np.array([1.0, 3, 2]), np.array([0, 0, 2]), 3)
    assert np.exp(total(pieces)) == pytest.approx([1 / 16, np.nan, 1 / 4], nan_ok=True)
    assert np.exp(mean_per_token(pieces)) == pytest.approx([1 / 2, np.nan, 1 / 2], nan_ok=True)
    assert np.exp(mean_probability(pieces)) == pytest.approx([5 / 16, np.nan, 1 / 4], nan_ok=True)


def test_names_tell_what_was_compared() -> None:
    assert Conditional().name == "conditional"
    assert Conditional(unit="text").name == "conditional_sum"
    assert Conditional(ties=0.5).name == "conditional_ties_0.5"
    assert Continuation(unit="text").name == "continuation_sum"


@pytest.mark.parametrize(
    ("protocol", "kind", "message"),
    [
        (NoStart(), "masked", "protocol=no_start is for causal models, and this one is masked"),
        (Unmasked(), "causal", "protocol=aul is for masked models, and this one is causal"),
        (CrowsPairsOriginal(), "causal", "protocol=crows_pairs_original is for masked models"),
    ],
)
def test_a_protocol_refuses_the_other_kind(protocol: Any, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        protocol.reading(Tokens(None, kind))


def test_missing_special_tokens_are_named(causal: Tokens) -> None:
    with pytest.raises(UserError, match="the tokenizer has no mask token"):
        each_masked([text("He ran")], causal.tokenizer)
    with pytest.raises(UserError, match=r"start token '<bos>' is not in the vocabulary; choose one with"):
        start_id(causal.tokenizer, "<bos>")
    with pytest.raises(UserError, match="example '1' has no blank to fill"):
        spans(Continuation(), causal, text("He ran"))
