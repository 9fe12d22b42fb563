"""Data sources: counts, determinism, mixtures and their sizes, and the check that nothing trained on is scored."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from debias.benchmarks.crows_pairs import CrowsPairs
from debias.benchmarks.evaluation import prepared
from debias.benchmarks.stereoset import StereoSet
from debias.data import panda
from debias.data.benchmark_text import CrowsPairsSentences, StereoSetSentences
from debias.data.controls import PaperFile, Shuffled, deranged
from debias.data.counterfactual import Counterfactual
from debias.data.mixture import Mixture, shares
from debias.data.panda import CATEGORIES, Panda, rows
from debias.data.plaintext import Text, split_sentences, usable
from debias.data.triplets import Checked, TripletFile
from debias.jobs.run import check_unseen
from debias.records import Tokens, Triplet, UserError
from debias.scoring.protocols import BiasBench
from debias.training.matching import steps_of_examples, steps_of_tokens


class Fixed:
    """A source of numbered sentences."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def fingerprint(self) -> str:
        return self.name

    def load(self, seed: int = 0) -> Checked:
        triplets = [Triplet(f"{self.name} {i}", "", "", "gender", self.name, 0, 1) for i in range(self.size)]
        return Checked(triplets, Counter({"bad": 1}), (f"note of {self.name}",))


def mixture(**options: object) -> Mixture:
    return Mixture("gender", {"a": Fixed("a", 10), "b": Fixed("b", 4)}, **options)


def counts(checked: Checked) -> dict[str, int]:
    return dict(Counter(t.source for t in checked.triplets))


# ---------------------------------------------------------------- mixtures


def test_few_sentences_are_a_warning_and_the_log_names_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text('["She is bold.", "She", "bold"]\n' * 10, encoding="utf-8")
    with caplog.at_level("INFO"):
        of_ten = Mixture("gender", {"t": TripletFile("gender", str(few))}).load(1)
        # ten of many, because the user wants ten
        assert Mixture("gender", {"t": TripletFile("gender")}, n=10).load(1).warning == ""
    told = "10 sentences are far too few to train on: expect no effect, or an erratic one"
    assert of_ten.warning == told
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [told]
    assert f"data file: {few}" in caplog.messages


def test_a_mixture_is_its_sources_one_after_the_other() -> None:
    checked = mixture().load(1)
    assert counts(checked) == {"a": 10, "b": 4}
    assert checked.dropped == {"bad (a)": 1, "bad (b)": 1}
    plain = "plain text: 14 of 14 sentences have no attribute; the loss covers all their tokens"
    assert checked.notes == ("note of a", "note of b", "sentences of each source: a 10, b 4", plain)
    alone = Mixture("gender", {"a": Fixed("a", 3)}).load(1)
    assert (len(alone.triplets), alone.dropped, alone.notes[:-1]) == (3, {"bad": 1}, ("note of a",))
    assert not any(
        note.startswith("plain text") for note in Mixture("gender", {"t": TripletFile("gender")}).load(1).notes
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"a": 1, "b": 1}, {"a": 4, "b": 4}),
        ({"a": 2, "b": 1}, {"a": 8, "b": 4}),
        ({"a": 3, "b": 1}, {"a": 10, "b": 3}),  # a third of 10 is 3.33
        ({"a": 1, "b": 4}, {"a": 1, "b": 4}),
        ({"a": 0.5, "b": 0.5}, {"a": 4, "b": 4}),
        ({"a": 1 / 3, "b": 1 / 3}, {"a": 4, "b": 4}),
    ],
)
def test_weights_are_shares_of_the_sentences(weights: dict[str, float], expected: dict[str, int]) -> None:
    assert shares({"a": 10, "b": 4}, weights) == expected
    checked = mixture(weights=weights).load(1)
    assert counts(checked) == expected
    assert len(set(checked.triplets)) == len(checked.triplets)


@pytest.mark.parametrize(
    ("most", "expected"), [(6, {"a": 4, "b": 2}), (7, {"a": 5, "b": 2}), (8, {"a": 5, "b": 3}), (99, {"a": 8, "b": 4})]
)
def test_a_limit_keeps_the_shares(most: int, expected: dict[str, int]) -> None:
    """Two to one: of 7 it is 4.67 and 2.33, of 8 it is 5.33 and 2.67; b has no more than 4."""
    assert shares({"a": 10, "b": 4}, {"a": 2, "b": 1}, most) == expected


def test_n_keeps_the_weights_and_the_note_counts_what_is_used() -> None:
    loaded = mixture(n=6, weights={"a": 2, "b": 1}).load(1)
    assert len(loaded.triplets) == 6
    assert "sentences of each source: a 4, b 2" in loaded.notes


def test_n_and_matched_examples_are_drawn_with_the_seed() -> None:
    drawn = mixture(n=6).load(1)
    assert len(set(drawn.triplets)) == 6
    assert drawn == mixture(n=6).load(1)
    assert drawn.triplets != mixture(n=6).load(2).triplets
    assert len(mixture(match="examples", match_to=5).load(1).triplets) == 5
    assert len(mixture(match="examples", match_to=5, n=3).load(1).triplets) == 3
    assert "data.n=15 asks for more sentences than there are: 14 are used" in mixture(n=15).load(1).notes
    assert not [note for note in mixture(n=500, match="examples", match_to=5).load(1).notes if "more sentences" in note]
    few = mixture(match="examples", match_to=500).load(1)
    assert len(few.triplets) == 14
    assert "asks for 500 sentences, but there are fewer" in few.notes[-2]
    assert len(mixture(match="steps", match_to=5).load(1).triplets) == 14  # the steps are cut, not the data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"a": 1}}, "data.weights must name the sources, and no others: a, b"),
        ({"weights": {"a": 1, "b": 0}}, "data.weights.b=0 must be more than 0"),
        ({"weights": {"a": 1, "b": 100}}, "data.weights leave no sentence of a"),
    ],
)
def test_a_wrong_mixture_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        mixture(**options).load(1)
    assert message in str(raised.value)


def test_the_same_text_twice_is_refused() -> None:
    """data=[targeted,general] without data.bias: both are the general corpus."""
    with pytest.raises(UserError, match=r"data=targeted and data=general are the same text: set data\.bias=gender"):
        Mixture("general", {"targeted": TripletFile("general"), "general": TripletFile("general")}).fingerprint()
    assert Mixture("gender", {"targeted": TripletFile("gender"), "general": TripletFile("general")}).fingerprint()


def test_matched_steps_by_hand() -> None:
    """500 sentences in batches of 16 are 32 steps an epoch (31.25); tokens are read until there are enough."""
    assert steps_of_examples(500, 16, 2) == 64
    assert steps_of_examples(16, 16, 3) == 3
    assert steps_of_examples(17, 16, 3) == 6
    assert steps_of_tokens(25, [10, 10, 10, 10]) == 3
    assert steps_of_tokens(20, [10, 10, 10]) == 2
    assert steps_of_tokens(20.5, [10, 10, 10]) == 3


# ---------------------------------------------------------------- plain text


def test_sentences_are_cut_at_their_ends() -> None:
    text = (
        'Mr. A. B. Cook met Dr. Who. "Really?" he said. He won 3.5 points in the U.S. Senate! See No. 5.\n = Title =\n'
    )
    assert split_sentences(text) == [
        "Mr. A. B. Cook met Dr. Who.", '"Really?" he said.', "He won 3.5 points in the U.S. Senate!", "See No. 5.",
        "= Title =",
    ]  # fmt: skip
    assert split_sentences("He won 5 @.@ 5 points . She did not . ") == ["He won 5 @.@ 5 points .", "She did not ."]


def test_only_whole_sentences_of_fair_length_are_used() -> None:
    dropped: Counter[str] = Counter()
    long = "word " * 60 + "end."
    sentences = ["He won the race.", "He won the race.", "He won.", "= A title of four words =", long]
    assert list(usable(sentences, dropped)) == ["He won the race."]
    assert sorted(dropped.values()) == [1, 1, 2]


def test_gap_is_read_without_its_test_part() -> None:
    """2,000 development and 454 validation passages."""
    passages = list(Text("gap", "gender").passages())
    assert len(passages) == 2454
    test = {t for t in Path(str(_gap_test())).read_text(encoding="utf-8").split("\t") if len(t) > 100}
    assert not test & set(passages)


def _gap_test() -> Path:
    from debias import assets

    return assets.locate("gap-test")


def test_text_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "wiki.raw"
    path.write_text(
        " = Valkyria = \n \n The king @-@ to @-@ be saw his mother . It rained all day . \n", encoding="utf-8"
    )
    source = Counterfactual("gender", str(path), sides="one")
    assert [t.sentence for t in source.load().triplets] == ["The king @-@ to @-@ be saw her father ."]
    with pytest.raises(UserError, match=r"none\.txt: cannot read this file"):
        Counterfactual("gender", str(tmp_path / "none.txt")).load()
    path.write_text("It rained all day long.", encoding="utf-8")
    with pytest.raises(UserError, match="no sentence has a word to swap for gender"):
        Counterfactual("gender", str(path)).load()


@pytest.mark.parametrize("bias", ["race", "religion"])
def test_wikitext_is_what_cda_would_swap(bias: str) -> None:
    two, one, none = (Counterfactual(bias, sides=sides).load() for sides in ("two", "one", "none"))
    assert [t.sentence for t in two.triplets[0::2]] == [t.sentence for t in none.triplets]
    assert [t.sentence for t in two.triplets[1::2]] == [t.sentence for t in one.triplets]
    assert all(a.sentence != b.sentence for a, b in zip(one.triplets, none.triplets, strict=True))
    assert two == Counterfactual(bias).load(seed=9)  # nothing is drawn
    assert len(none.triplets) >= 500
    assert {(t.target, t.attribute, t.start, t.stop - len(t.sentence)) for t in two.triplets} == {("", "", 0, 0)}
    assert len({Counterfactual(bias, sides=sides).fingerprint() for sides in ("two", "one", "none")}) == 3


def test_no_words_to_swap() -> None:
    with pytest.raises(UserError, match="no words to swap"):
        Counterfactual("general")


# ---------------------------------------------------------------- released data


def test_panda_has_the_rows_it_is_known_for() -> None:
    by_category = Counter(row["perturbed_category"] for row in rows())
    assert sum(by_category.values()) == 105_522
    assert [sum(by_category[c] for c in CATEGORIES[b]) for b in ("gender", "race", "age")] == [75_431, 15_209, 14_882]


def test_panda_trains_on_what_was_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sentences are rewritten; one is left alone but for its punctuation, one stands in a row about age."""
    made = [
        (
            "Did Tom eat his lunch? <SEP> It rained , all day.",
            "Did Tina eat her lunch? <SEP> It rained, all day.",
            "Woman",
        ),
        ("Tom ate his lunch.", "Tom ate their lunch.", "Non-Binary"),
        ("Tom ate his lunch.", "Old Tom ate his lunch.", "Senior (65+)"),
    ]
    table = [dict(zip(("original", "rewrite", "perturbed_category"), row, strict=True)) for row in made]
    monkeypatch.setattr(panda, "rows", lambda: iter(table))
    checked = Panda("gender").load()
    assert [t.sentence for t in checked.triplets] == ["Did Tina eat her lunch?", "Tom ate their lunch."]
    assert checked.dropped == {"left unchanged by the rewriter": 1}
    assert [t.sentence for t in Panda("gender", ["Woman"]).load().triplets] == ["Did Tina eat her lunch?"]
    with pytest.raises(UserError, match=r"no rewrites on data\.bias='religion'; choose one of: gender, race, age"):
        Panda("religion")
    with pytest.raises(UserError, match="no category 'Girl'"):
        Panda("gender", ["Girl"])


def test_stereoset_dev_as_triplets() -> None:
    """255 gender examples: each anti-stereotype sentence is used, or dropped for one reason."""
    checked = StereoSetSentences("gender").load()
    assert len(checked.triplets) + checked.dropped.total() == 255
    for t in checked.triplets:
        assert t.sentence[t.start : t.stop] == t.attribute
        assert t.target.lower() in t.sentence[: t.start].lower()
    assert checked.notes[0].startswith("in-distribution: trained on anti-stereotype sentences of StereoSet dev")
    assert len(StereoSetSentences("general").load().triplets) > len(checked.triplets)
    with pytest.raises(UserError, match=r"no sentences on data\.bias='age'; choose one of: gender, profession, race"):
        StereoSetSentences("age").load()


def test_crows_pairs_as_text() -> None:
    checked = CrowsPairsSentences("race").load()
    assert len(checked.triplets) == 516
    assert len(CrowsPairsSentences("general").load().triplets) == 1_507  # of 1,508, one sentence stands twice
    with pytest.raises(UserError, match=r"no pairs on data\.bias='height'"):
        CrowsPairsSentences("height").load()


@pytest.mark.skipif("DEBIAS_DATA" not in os.environ, reason="set DEBIAS_DATA to a folder with synthetic_debiasing/")
@pytest.mark.parametrize(
    ("bias", "file", "usable_rows"),
    [("gender", "1S", 480), ("race", "2S", 314), ("religion", "3S", 452), ("general", "1S", 496)],
)
def test_the_papers_files(bias: str, file: str, usable_rows: int) -> None:
    """Each has 500 rows; the paper's own script uses all of these, the strict policy those that fit."""
    strict = PaperFile(bias, file).load()
    assert len(strict.triplets) == usable_rows == 500 - strict.dropped.total()
    assert len(PaperFile(bias, file, "as_published").load().triplets) == 500


def test_an_unknown_file_of_the_paper() -> None:
    with pytest.raises(UserError, match=r"released no file '4S' for data\.bias='gender'; choose gender, race"):
        PaperFile("gender", "4S")


# ---------------------------------------------------------------- controls


def test_no_sentence_keeps_its_attribute() -> None:
    plain, shuffled = TripletFile("gender").load(), Shuffled("gender").load(1)
    assert Counter(t.attribute for t in plain.triplets) == Counter(t.attribute for t in shuffled.triplets)
    for a, b in zip(plain.triplets, shuffled.triplets, strict=True):
        assert a.attribute.lower() != b.attribute.lower()
        assert b.sentence == a.sentence[: a.start] + b.attribute + a.sentence[a.stop :]
        assert b.sentence[b.start : b.stop] == b.attribute
    assert shuffled == Shuffled("gender").load(1)
    assert shuffled != Shuffled("gender").load(2)
    assert "negative control" in shuffled.notes[0]


@pytest.mark.parametrize("seed", range(20))
def test_derangements(seed: int) -> None:
    """Half of the words are the same: they change places with the other half."""
    words = ["kind", "Kind", "kind", "bold", "shy", "stern"]
    order = deranged(words, seed)
    assert sorted(order) == sorted(words)
    assert all(a.lower() != b.lower() for a, b in zip(words, order, strict=True))
    with pytest.raises(UserError, match="fills more than half"):
        deranged(["kind", "kind", "bold"], seed)


# ---------------------------------------------------------------- trained on and scored


CAUSAL = Tokens(None, "causal")


def test_training_sentences_that_are_scored_are_refused() -> None:
    benchmarks = prepared([CrowsPairs(BiasBench()), StereoSet(BiasBench(), limit=20)], CAUSAL)
    sentences = [t.sentence for t in CrowsPairsSentences("gender").load().triplets]
    with pytest.raises(UserError, match=r"crows_pairs scores 262 of the 262 training sentences; .*eval=\[\.\.\.\]"):
        check_unseen(sentences, benchmarks)
    dev = [t.sentence for t in StereoSetSentences("gender").load().triplets]
    with pytest.raises(UserError, match=r"stereoset scores .*; .*eval\.stereoset\.split=test"):
        check_unseen(dev, prepared([StereoSet(BiasBench(), split="dev")], CAUSAL))
    assert check_unseen(dev, prepared([CrowsPairs(BiasBench())], CAUSAL)) == {"crows_pairs": 0}


def test_a_few_scored_sentences_are_counted() -> None:
    """1 of 100 is within 1%, whatever its case; 2 of 100 are not."""
    benchmarks = prepared([CrowsPairs(BiasBench(), limit=2)], CAUSAL)
    scored = [candidate.text for candidate in benchmarks[0].candidates]
    own = [f"Sentence {i}." for i in range(99)]
    assert check_unseen([f" {scored[0].upper()} ", *own], benchmarks) == {"crows_pairs": 1}
    with pytest.raises(UserError, match="2 of the 100"):
        check_unseen([*scored[:2], *own[:98]], benchmarks)
