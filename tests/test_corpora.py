"""Our corpora: size, diversity, word order, no leakage from benchmarks, and data cards that tell the truth."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from debias.benchmarks.writing import WrittenText
from debias.data import leakage
from debias.data.counterparts import COUNTERPARTS, misfits
from debias.data.doctor import Diagnosis, examine
from debias.data.leakage import Index, available, benchmark_index
from debias.data.quality import NearDuplicates, opening, words
from debias.data.triplets import CORPORA, TripletFile, corpora
from debias.records import Tokens, Triplet
from debias.training.pairs import stereotype, unrelated

WITH_COUNTERPARTS = [name for name in corpora() if name != "counterweight"]  # which breaks no stereotype of its own


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, Index]:
    """All benchmarks that can be read here: BiasTestGPT needs $DEBIAS_DATA. Takes half a minute."""
    return {name: benchmark_index(name) for name in available()}


@pytest.fixture(scope="module")
def diagnoses(benchmarks: dict[str, Index]) -> dict[str, Diagnosis]:
    return {name: examine(CORPORA / f"{name}.jsonl", name, list(benchmarks.values())) for name in corpora()}


def test_every_bias_has_its_corpus() -> None:
    assert corpora() == ["counterweight", "gender", "general", "profession", "race", "religion", "reversed"]


@pytest.mark.parametrize("name", corpora())
def test_corpus(name: str) -> None:
    checked = TripletFile(name).load()
    n = len(checked.triplets)
    assert n >= 500
    assert not checked.dropped
    assert all(len(words(t.attribute)) == 1 for t in checked.triplets)
    assert max(Counter(opening(t.sentence) for t in checked.triplets).values()) <= 0.01 * n
    for key in ("attribute", "target") if name in WITH_COUNTERPARTS else ("attribute",):
        assert max(Counter(getattr(t, key).lower() for t in checked.triplets).values()) <= most(name) * n


def most(name: str) -> float:
    """Largest share of a word: in the reversed corpus attributes are groups, of which there are few."""
    return 0.05 if name == "reversed" else 0.03


@pytest.mark.parametrize("name", corpora())
def test_no_sentence_repeats_another_or_one_of_a_benchmark(name: str, diagnoses: dict[str, Diagnosis]) -> None:
    """Not to the letter, and nowhere do half of the three-word sequences agree."""
    counts = {f.name: f.count for f in diagnoses[name].findings}
    assert counts["repeated sentence"] == counts["nearly repeated sentence"] == 0
    assert len(diagnoses[name].leaks) >= 4
    assert [(leak.benchmark, leak.exact, leak.near) for leak in diagnoses[name].leaks if leak.exact or leak.near] == []


@pytest.mark.parametrize("name", ["gender", "general", "race", "religion"])  # the paper has none for professions
def test_no_file_of_the_paper_is_more_diverse(name: str, diagnoses: dict[str, Diagnosis]) -> None:
    """Distinct-3 and distinct-4 fall as a set grows, and ours are no smaller than theirs: no favour is done to us."""
    folder = Path(os.environ.get("DEBIAS_DATA", "")) / "synthetic_debiasing"
    if not os.environ.get("DEBIAS_DATA") or not folder.is_dir():
        pytest.skip("set DEBIAS_DATA to a folder that holds synthetic_debiasing/, the paper's released files")
    files = sorted((folder / {"race": "racial"}.get(name, name)).glob("*.json"))
    assert len(files) == 3
    for theirs in map(examine, files):
        assert diagnoses[name].records >= theirs.records
        for key in ("distinct-3", "distinct-4"):
            assert diagnoses[name].measures[key] > theirs.measures[key]


@pytest.mark.parametrize("name", WITH_COUNTERPARTS)
def test_every_sentence_has_a_stereotype_and_an_unrelated_word(name: str, benchmarks: dict[str, Index]) -> None:
    """They fit in the attribute's place, hardly repeat, and make no sentence of a benchmark."""
    checked = TripletFile(name).load()
    for column in COUNTERPARTS:
        said = Counter(getattr(t, column).lower() for t in checked.triplets)
        assert max(said.values()) <= most(name) * len(checked.triplets)
    for t in checked.triplets:
        assert misfits(t) == [], t.sentence
        for other in (stereotype(t), unrelated(t)):
            assert isinstance(other, Triplet)
            assert not any(index.sentences.find(other.sentence) for index in benchmarks.values()), other.sentence


def test_no_side_of_the_reversed_corpus_wins_by_itself() -> None:
    """Each group's word is as often the attribute as the stereotype's word, but for one or two of a few names."""
    for bias in ("gender", "race", "religion", "profession"):
        rows = [t for t in TripletFile("reversed").load().triplets if t.bias == bias]
        gain = Counter(t.attribute.lower() for t in rows)
        gain.subtract(str(t.stereotype).lower() for t in rows)
        assert max(map(abs, gain.values())) <= 2


def test_no_sentence_stands_in_two_corpora() -> None:
    """But for the general corpus, each may be mixed with the others without repeating a sentence."""
    known = NearDuplicates()
    for name in WITH_COUNTERPARTS:
        for t in TripletFile(name).load().triplets:
            assert known.find(t.sentence) is None, t.sentence
        for t in TripletFile(name).load().triplets:
            known.add(name, t.sentence)


def test_the_counterweight_says_what_two_corpora_say() -> None:
    """Each of its sentences is one of theirs with the same attribute, but for one or two words, and of two groups."""
    said: dict[tuple[str, str], list[Counter[str]]] = defaultdict(list)
    for name in ("race", "religion"):
        for t in TripletFile(name).load().triplets:
            said[t.bias, t.attribute].append(Counter(words(t.sentence)))
    for t in TripletFile("counterweight").load().triplets:
        new = min((Counter(words(t.sentence)) - other).total() for other in said[t.bias, t.attribute])
        assert new in (1, 2), t.sentence
        assert t.bias == "religion" or t.target.lower() == "white"


@pytest.mark.parametrize("name", corpora())
def test_data_card_tells_the_truth(name: str, diagnoses: dict[str, Diagnosis]) -> None:
    """The figures of the card are those of the file."""
    card = (CORPORA / f"{name}.md").read_text(encoding="utf-8")
    figures = dict(re.findall(r"^\| ([^|]+?) +\| +([\d.,]+) +\|$", card, re.MULTILINE))
    found = diagnoses[name]
    assert figures["triplets"] == f"{found.records:,}"
    for key in ("different targets", "different attributes"):
        assert figures[key] == f"{found.measures[key]:,.0f}"
    for key in ("distinct-3", "distinct-4", "concessive", "negated"):
        assert figures[key] == f"{found.measures[key]:.3f}"


# ---------------------------------------------------------------- the index of the benchmarks' sentences


def test_the_near_duplicate_check_can_fail(benchmarks: dict[str, Index]) -> None:
    """A StereoSet sentence with one word changed is found."""
    assert benchmarks["stereoset"].sentences.find("Growing up, my older brother was always very protective.")


def test_benchmarks_are_read_whole(benchmarks: dict[str, Index]) -> None:
    """Counts of different sentences; CrowS-Pairs has 1,508 pairs, WinoBias 3,168 sentences (some twice)."""
    assert {"stereoset", "crows_pairs", "winobias", "bbq"} <= set(benchmarks)
    crows = benchmarks["crows_pairs"]
    assert 2_950 <= len(crows.sentences) <= 3_016
    assert crows.targets == frozenset()
    winobias = benchmarks["winobias"]
    assert winobias.sentences.find("The developer argued with the designer because she did not like the design.")
    assert len(winobias.sentences) == 3_162


def test_a_line_separator_in_a_text_does_not_end_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "bbq": json.dumps({"context": "I saw\u2028her.", "question": "Who?", "answer_info": {}}, ensure_ascii=False),
        "winobias": "1 [The nurse] paid\u2028the mover because [she] was late.",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    monkeypatch.setattr(leakage, "_files", lambda name: [tmp_path / name])
    assert [sentence for sentence, *_ in leakage._bbq()] == ["I saw\u2028her.", "Who?"]
    assert [sentence for sentence, *_ in leakage._winobias()] == ["The nurse paid\u2028the mover because she was late."]


def test_the_other_benchmarks_are_searched_too(benchmarks: dict[str, Index]) -> None:
    """HONEST without its blank; SEAT and LAMBADA where their files are, LAMBADA's passages sentence by sentence."""
    honest = benchmarks["honest"].sentences
    assert honest.find("The girlfriend dreams of being a")
    assert honest.find("The girlfriend dreams of being a lawyer.")
    assert not honest.find("The nurse repaired the tractor in the rain.")
    lambada = "In my palm is a clear stone, and inside it is a small ivory statuette."
    known = {"seat": "Here is a church.", "lambada": lambada}
    for name in set(known) & set(benchmarks):
        assert benchmarks[name].sentences.find(known[name]), name


def test_the_beginnings_of_written_text_are_new(benchmarks: dict[str, Index]) -> None:
    """No beginning is near a sentence of a benchmark, and no sentence of a corpus begins with the same four words."""
    openings = {opening(t.sentence) for name in corpora() for t in TripletFile(name).load().triplets}
    for candidate in WrittenText().candidates(Tokens(None, "causal")):
        found = [index.sentences.find(candidate.text) for index in benchmarks.values()]
        assert not any(found), candidate.text
        assert opening(candidate.text) not in openings
