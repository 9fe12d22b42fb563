"""Measures of sentences, by hand, and the near-duplicate search against brute force."""

from __future__ import annotations

import pytest

from debias.data.quality import (  # fmt: skip
    FixedSentences,
    NearDuplicates,
    distinct_n,
    jaccard,
    opening,
    polarity,
    self_bleu,
    shingles,
    words,
)
from debias.data.triplets import TripletFile


def test_words_and_opening() -> None:
    assert words("“Don’t,” said the self-made man’s wife.") == ["don't", "said", "the", "self-made", "man's", "wife"]
    assert opening("On Sunday, the old Rabbi danced.") == "on sunday the old"


def test_jaccard_of_word_trigrams() -> None:
    """a b c d and a b c e share one of three trigrams; two words are compared as a whole."""
    assert jaccard(shingles("a b c d"), shingles("a b c e")) == pytest.approx(1 / 3)
    assert shingles("Hello, World!") == {("hello", "world")}


def test_distinct_n() -> None:
    """`a b a b` has 2 of 4 words and 2 of 3 pairs."""
    assert distinct_n(["a b a b"], 1) == 0.5
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n([], 3) == 0


def test_self_bleu() -> None:
    assert self_bleu(["the old man was kind to us"] * 3) == pytest.approx(100)
    assert self_bleu(["a b c d e", "f g h i j"]) == pytest.approx(0, abs=1)
    assert self_bleu(["alone"]) == 0


@pytest.mark.parametrize(
    ("sentence", "concessive", "negated"),
    [
        ("Despite the rain she was calm.", True, False),
        ("He isn't shy.", False, True),
        ("No nurse was late, but one.", True, True),
        ("The notary knew everybody.", False, False),  # neither `not` nor `no` is a word of it
    ],
)
def test_polarity(sentence: str, concessive: bool, negated: bool) -> None:
    assert polarity(sentence) == (concessive, negated)


def test_repeats_are_found_but_for_case_and_punctuation() -> None:
    known = NearDuplicates()
    known.add("first", "The nurse was bold.")
    known.add("second", "The nurse was BOLD!")
    assert len(known) == 1
    assert known.nearest("the nurse was bold") == ("first", "The nurse was bold.", 1.0)
    assert known.find("A sailor sang all night long.") is None
    with pytest.raises(ValueError, match="threshold"):
        NearDuplicates(threshold=0.1)


def test_the_search_finds_what_brute_force_finds() -> None:
    """Every sentence of a corpus with its last word changed, at all similarities from the threshold on."""
    sentences = [t.sentence for t in TripletFile("race").load().triplets]
    known = NearDuplicates()
    for sentence in sentences:
        known.add(sentence, sentence)
    grams = {sentence: shingles(sentence) for sentence in sentences}
    expected = found = 0
    for sentence in sentences:
        changed = " ".join([*words(sentence)[:-1], "otherwise"])
        most = max(jaccard(shingles(changed), other) for other in grams.values())
        expected += most >= 0.5
        near = known.nearest(changed)
        found += near is not None
        assert (near.similarity if near else 0) in (0, pytest.approx(most))
        assert near is None or most >= 0.5
    assert expected > 400
    assert found >= 0.995 * expected


def test_fixed_sentences_find_what_a_growing_index_finds() -> None:
    """Also after they were written to arrays and read again."""
    sentences = [f"The {who} {did} the {what} on {day}." for who in ("nurse", "pilot") for did in ("saw", "lost")
                 for what in ("red car", "old dog") for day in ("Monday", "Friday")]  # fmt: skip
    growing = NearDuplicates()
    for sentence in sentences:
        growing.add(sentence, sentence)
    fixed = FixedSentences.read(FixedSentences.of([*sentences, sentences[0].upper()]).arrays())
    assert len(fixed) == len(growing) == 16
    for asked in (
        *sentences,
        "the NURSE saw the red car on monday",
        "A nurse saw the red car on Monday.",
        "Nothing.",
        "",
    ):
        assert fixed.nearest(asked) == growing.nearest(asked)
    assert FixedSentences.of([]).nearest("x") is None
