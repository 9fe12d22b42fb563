"""`debias doctor`: every fault by its line, counts that can be checked by hand, a cleaned copy that passes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from command import run

from debias.benchmarks.group_gap import GroupGap
from debias.benchmarks.pronoun_gap import PronounGap
from debias.data import doctor, leakage
from debias.data.doctor import cleaned, examine
from debias.data.quality import NearDuplicates
from debias.data.triplets import CORPORA, Checked, TripletFile, corpora, read_records
from debias.records import Tokens, UserError
from debias.report.one_run import data_quality
from debias.scoring.protocols import Continuation


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def counts(diagnosis: doctor.Diagnosis) -> dict[str, int]:
    return {f.name: f.count for f in diagnosis.findings if f.count}


def places(diagnosis: doctor.Diagnosis, name: str) -> list[int]:
    (finding,) = (f for f in diagnosis.findings if f.name == name)
    return finding.places


GOOD = ["The woman in the blue coat was stoic.", "woman", "stoic"]


def test_every_fault_has_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        GOOD,
        '{"sentence": ',  # 2: not JSON
        ["two", "items"],  # 3: not three
        {"sentence": "x", "target": "", "attribute": "x"},  # 4: an empty field
        ["She has wisdom enough for us.", "She", "wise"],  # 5: absent
        ["She loves mechanics and maps.", "She", "mechanic"],  # 6: inside a word
        ["A man from Oslo was Calm.", "Man", "calm"],  # 7: other case, twice
        ["Kind to all was the woman.", "woman", "kind"],  # 8: before the target
        ["My aunt is very good at chess.", "My aunt", "good at"],  # 9: several words
        GOOD,  # 10: repeats line 1
    )
    found = examine(path, "gender")
    assert (found.records, found.usable, found.passes) == (7, 4, False)  # 1, 7, 9 and 10 can be trained on
    assert counts(found) == {
        "not a record": 3, "cannot be trained on": 3, "attribute absent": 1, "attribute only inside a word": 1,
        "attribute in another case": 2, "target in another case": 1, "attribute before target": 1,
        "attribute of several words": 1, "target of several words": 1, "repeated sentence": 1,
    }  # fmt: skip
    assert places(found, "not a record") == [2, 3, 4]
    assert places(found, "cannot be trained on") == [5, 6, 8]
    assert places(found, "attribute in another case") == [7, 8]
    assert places(found, "repeated sentence") == [10]


def test_what_cannot_be_trained_on_says_why(tmp_path: Path) -> None:
    """`men` also stands inside Women, and `made` is joined by a hyphen: what looks right is left out for a reason."""
    rows = [["Women say the calm men left.", "men", "calm"], ["She is a self-made woman.", "She", "made"]]
    found = examine(write(tmp_path / "a.jsonl", *rows), "gender")
    (unusable,) = (f.examples for f in found.findings if f.name == "cannot be trained on")
    assert unusable == [
        "attribute before the target, at 1: Women say the calm men left. [men / calm]",
        "attribute only inside a longer word, at 2: She is a self-made woman. [She / made]",
    ]


ODD_ROWS: dict[str, str] = {
    "empty list": "[]",
    "two items": '["The man wept.", "man"]',
    "four items": '["The man wept.", "man", "wept", "gender"]',
    "list in a list": '[["The man wept.", "man", "wept"]]',
    "a number in a list": '["The man is 3.", "man", 3]',
    "a null in a list": '["The man wept.", "man", null]',
    "a text": '"The man wept."',
    "a number": "7",
    "NaN": "NaN",
    "null": "null",
    "true": "true",
    "an empty object": "{}",
    "a missing key": '{"sentence": "The man wept.", "target": "man"}',
    "a key in capitals": '{"Sentence": "The man wept.", "target": "man", "attribute": "wept"}',
    "a key twice": '{"sentence": "x", "sentence": "The man wept.", "target": "man", "attribute": "wept"}',
    "an empty sentence": '["", "man", "wept"]',
    "a blank target": '["The man wept.", "\\u2003 ", "wept"]',
    "a list as attribute": '{"sentence": "The man wept.", "target": "man", "attribute": ["wept"]}',
    "a false attribute": '{"sentence": "The man wept.", "target": "man", "attribute": false}',
    "outer blanks": '[" The man wept. ", " man", "wept\\n"]',
    "stereotype": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "stereotype": "won"}',
    "stereotype null": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "stereotype": null}',
    "stereotype empty": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "stereotype": ""}',
    "stereotype blank": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "stereotype": " "}',
    "stereotype 0": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "stereotype": 0}',
    "stereotype false": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "stereotype": false}',
    "stereotype list": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "stereotype": ["won"]}',
    "bias 3": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "bias": 3}',
    "bias null": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "bias": null}',
    "bias list": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "bias": []}',
    "source 3": '{"sentence": "The man wept.", "target": "man", "attribute": "wept", "source": 3}',
    "a BOM in the file": '\ufeff["The man wept.", "man", "wept"]',
    "a NUL": '["The man \0 wept.", "man", "wept"]',
    "an escaped NUL": '["The man \\u0000 wept.", "man", "wept"]',
    "a target of NUL": '["The man wept.", "\\u0000", "wept"]',
    "half a surrogate pair": '["The man \\ud83d wept.", "man", "wept"]',
    "a surrogate pair": '["The man \\ud83d\\ude00 wept.", "man", "wept"]',
    "a line end of Windows": '["The man wept.", "man", "wept"]\r',
    "a line separator": '["The man \u2028 wept.", "man", "wept"]',
    "cut off": '{"sentence": "The man wept.", "tar',
    "a trailing comma": '["The man wept.", "man", "wept"],',
    "two records in a line": '["The man wept.", "man", "wept"] ["The man wept.", "man", "wept"]',
    "single quotes": "['The man wept.', 'man', 'wept']",
    "thousands of digits": f"[{'9' * 5000}]",
    "thousands of brackets": "[" * 100_000,
    "absent": '["The man slept.", "man", "wept"]',
    "inside a word": '["The man swept.", "man", "wept"]',
    "a hyphen": '["The man re-wept.", "man", "wept"]',
    "an old s": '["The man wore a miſt.", "man", "mist"]',
    "a dotted capital I": '["The man from İzmir wept.", "man from izmir", "wept"]',
    "sharp s": '["The man in the STRASSE wept.", "straße", "wept"]',
    "attribute first": '["Wept the man?", "man", "wept"]',
    "a pattern": '["The man (wept.", "man", "(wept"]',
}


def trained_on(path: Path) -> Checked | str:
    try:
        return TripletFile("gender", str(path)).load()
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("line", ODD_ROWS.values(), ids=ODD_ROWS)
def test_the_doctor_says_what_a_run_does(tmp_path: Path, line: str) -> None:
    """A run stops at a row, drops it or trains on it; the doctor calls it no record, unusable or usable."""
    path = write(tmp_path / "a.jsonl", line, GOOD)
    found, loaded = examine(path, "gender"), trained_on(path)
    if isinstance(loaded, str):
        assert loaded.startswith(f"{path}:1: ")
        assert counts(found)["not a record"] == 1
        assert found.usable == 1
        assert not found.passes
    else:
        assert "not a record" not in counts(found)
        assert counts(found).get("cannot be trained on", 0) == loaded.dropped.total()
        assert found.usable == len(loaded.triplets)
        assert found.passes == (not loaded.dropped)


def test_an_empty_stereotype_is_not_a_record(tmp_path: Path) -> None:
    """A run rejects it, so the doctor must not pass it."""
    path = write(
        tmp_path / "a.jsonl", dict(zip(("sentence", "target", "attribute", "stereotype"), [*GOOD, ""], strict=True))
    )
    (found,) = (f for f in examine(path, "gender").findings if f.name == "not a record")
    assert found.examples == ["1: 'stereotype' is empty"]


def test_near_repeats_and_shares(tmp_path: Path) -> None:
    """Seven of eight words in common: 5 of 7 different three-word runs are shared."""
    one = ["On the ship my sister was the bravest.", "sister", "bravest"]
    other = ["On the ship my sister was the calmest.", "sister", "calmest"]
    found = examine(write(tmp_path / "a.jsonl", GOOD, one, other), "gender")
    assert places(found, "nearly repeated sentence") == [3]
    assert found.measures["different targets"] == 2
    assert found.common["target"][0] == ("sister", 2)
    assert found.measures["distinct-1"] == pytest.approx(13 / 24)  # 8 words each; 7, 5 and 1 of them new


def test_a_target_in_every_sentence_is_said_of_a_large_file(tmp_path: Path) -> None:
    rows = [[f"Number {i} said the woman at door {i} is kind{i}.", "woman", f"kind{i}"] for i in range(40)]
    often = [f for f in examine(write(tmp_path / "a.jsonl", *rows)).findings if f.name == "target in over 3%"]
    assert (often[0].level, often[0].count, often[0].examples) == ("warning", 1, ["woman: 40 times"])


def planted() -> leakage.Index:
    sentences = NearDuplicates()
    sentences.add("x", "The old sailor on the pier was always very gentle with children.")
    return leakage.Index("planted", sentences, frozenset({"woman"}))


def test_leakage_fails_a_file_and_cleaning_removes_it(tmp_path: Path) -> None:
    leaked = ["The old sailor on the pier was always very gentle with dogs.", "sailor", "gentle"]
    path = write(tmp_path / "a.jsonl", GOOD, leaked, GOOD, ["x y", "q", "y"], "{")
    found = examine(path, "gender", [planted()])
    (leak,) = found.leaks
    assert (leak.exact, leak.near, leak.places, leak.target_overlap) == (0, 1, [2], 0.5)
    kept, dropped = cleaned(*read_records(path, "gender"), [planted()])
    assert [r.place for r in kept] == [1]
    assert dropped.total() == 4  # a benchmark's sentence, a repeat, no target, no JSON
    assert dropped["not a record"] == dropped["target not in the sentence"] == 1
    fixed = write(tmp_path / "b.jsonl", *[r.row for r in kept])
    assert examine(fixed, "gender", [planted()]).passes


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"\xff\xfe\x00", "not UTF-16 text"), (b'[["a", "b"', "a.json:1: not JSON")],
)
def test_files_that_cannot_be_read_at_all(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        examine(tmp_path / "a.json")


def test_histogram() -> None:
    loss = doctor.histogram([0.0, 1.0, 2.0, 3.0, 4.0], bins=2)
    assert (loss["mean"], loss["q1"], loss["median"], loss["q3"], loss["counts"]) == (2, 1, 2, 3, [2, 3])


@pytest.mark.parametrize("name", corpora())
def test_our_corpora_have_no_faults(name: str) -> None:
    found = examine(CORPORA / f"{name}.jsonl", name)
    assert found.passes
    assert found.usable == found.records
    assert found.measures["concessive"] < 0.1


# Attribute absent, only inside a word, not in this case; the same of the target; attribute before target; several words
# in target and attribute; repeated sentences (exact). Counted by hand and by an independent script.
PAPER = {
    "general/Synthetic_General_1S": (0, 0, 0, 0, 0, 0, 4, 85, 57, 0),
    "general/Synthetic_General_2S": (1, 0, 1, 1, 0, 1, 3, 173, 70, 0),
    "general/Synthetic_General_3S": (0, 0, 0, 0, 0, 2, 9, 132, 157, 0),
    "gender/Synthetic_Gender_1S": (16, 2, 16, 0, 0, 0, 4, 4, 0, 0),
    "gender/Synthetic_Gender_2S": (42, 11, 119, 4, 30, 95, 8, 5, 0, 0),
    "gender/Synthetic_Gender_3S": (5, 0, 5, 1, 2, 100, 3, 5, 5, 0),
    "racial/Synthetic_Race_1S": (37, 4, 37, 0, 6, 2, 7, 13, 0, 21),
    "racial/Synthetic_Race_2S": (41, 8, 41, 2, 3, 2, 132, 12, 0, 0),
    "racial/Synthetic_Race_3S": (0, 0, 0, 1, 5, 2, 9, 11, 2, 0),
    "religion/Synthetic_Religion_1S": (2, 0, 2, 3, 18, 5, 2, 50, 15, 0),
    "religion/Synthetic_Religion_2S": (48, 7, 100, 6, 23, 7, 4, 47, 0, 1),
    "religion/Synthetic_Religion_3S": (6, 2, 106, 5, 30, 8, 4, 48, 0, 1),
}
NAMES = (
    "attribute absent", "attribute only inside a word", "attribute in another case", "target absent",
    "target only inside a word", "target in another case", "attribute before target", "target of several words",
    "attribute of several words", "repeated sentence",
)  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_released_files_of_the_paper(name: str) -> None:
    folder = Path(os.environ.get("DEBIAS_DATA", "")) / "synthetic_debiasing"
    if not os.environ.get("DEBIAS_DATA") or not folder.is_dir():
        pytest.skip("set DEBIAS_DATA to a folder that holds synthetic_debiasing/, the paper's released files")
    found = {f.name: f.count for f in examine(folder / f"{name}.json").findings}
    expected = dict(zip(NAMES, PAPER[name], strict=True))
    for word in (
        "attribute",
        "target",
    ):  # the counts of another case include the absent ones, of which we do not say it
        expected[f"{word} in another case"] -= expected[f"{word} absent"]
    assert {what: found[what] for what in NAMES} == expected


def test_the_command(tmp_path: Path) -> None:
    """Table, JSON alone with --json, a cleaned copy with --fix; the status says whether every file passes."""
    bad = write(tmp_path / "it's bad.jsonl", GOOD, ["She has wisdom.", "She", "wise"])
    shown = run(tmp_path, "doctor", bad.name, "leakage=false")
    assert shown.status == 1
    assert "2 records, 1 usable: does not pass" in shown.out
    assert "2: She has wisdom. [She / wise]" in shown.out
    table, _, rest = shown.out.partition("also checked, nothing found: ")
    assert [line.split("  ")[0] for line in table.splitlines()[2:] if line.strip()] == [
        "what", "cannot be trained on", "attribute absent"
    ]  # fmt: skip
    assert "not a record, attribute only inside a word, attribute in another case" in " ".join(rest.split())
    answer = run(tmp_path, "doctor", bad.name, "--json", "--fix", "leakage=false")
    (content,) = json.loads(answer.out)
    assert (content["records"], content["passes"]) == (2, False)
    assert content["fixed"] == {
        "path": "it's bad.fixed.jsonl", "kept": 1, "dropped": {"attribute not in the sentence": 1}
    }  # fmt: skip
    fixed = tmp_path / "it's bad.fixed.jsonl"
    assert json.loads(fixed.read_text()) == dict(zip(("sentence", "target", "attribute"), GOOD, strict=True))
    assert run(tmp_path, "doctor", fixed.name, "leakage=false").status == 0
    again = run(tmp_path, "doctor", bad.name, "--fix", "leakage=false")
    assert "exists already; move it away, or set overwrite=true" in " ".join(again.err.split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["it's bad.fixed.jsonl", "it's bad.jsonl"]  # no run folder


def test_the_page(tmp_path: Path) -> None:
    """--html: the same as a page beside the file, the data's text escaped; --json stays alone on standard output."""
    bad = write(tmp_path / "bad.jsonl", GOOD, ["She has <b>wisdom</b>.", "She", "wise"])
    answer = run(tmp_path, "doctor", bad.name, "--html", "--json", "leakage=false")
    assert json.loads(answer.out)[0]["records"] == 2
    page = (tmp_path / "bad.quality.html").read_text()
    assert "1 of 2 records can be trained on: does not pass." in page
    assert "She has &lt;b&gt;wisdom&lt;/b&gt;. [She / wise]" in page
    assert "<b>" not in page
    assert "distinct-3" in page
    again = run(tmp_path, "doctor", bad.name, "--html", "leakage=false")
    assert "bad.quality.html exists already" in " ".join(again.err.split())


def test_the_page_has_leakage_and_loss(tmp_path: Path) -> None:
    """One of two sentences nearly repeats the benchmark's; losses 1, 1 and 3 have mean 5/3."""
    leaked = ["The old sailor on the pier was always very gentle with dogs.", "sailor", "gentle"]
    diagnosis = examine(write(tmp_path / "a.jsonl", GOOD, leaked), "gender", [planted()])
    diagnosis.loss = doctor.histogram([1.0, 1.0, 3.0], bins=2)
    page = data_quality.page(diagnosis)
    row = next(line for line in page.splitlines() if ">planted<" in line)
    assert re.findall(r">(\d+%?)<", row) == ["1", "0", "1", "50%"]
    assert "loss on 3 attributes: mean 1.67, median 1.00 nats per token" in page


def test_words_that_are_wrong(tmp_path: Path) -> None:
    assert "name at least one file" in run(tmp_path, "doctor").err
    assert "none.jsonl: cannot read this file" in run(tmp_path, "doctor", "none.jsonl").err
    assert run(tmp_path, "doctor", "none.jsonl").status == 1
    write(tmp_path / "a.json", "[]")
    assert "this file holds no records" in run(tmp_path, "doctor", "a.json").err
    write(tmp_path / "a.json", [GOOD])
    write(tmp_path / "a.jsonl", GOOD)
    assert (
        "two of the files would be written to a.fixed.jsonl"
        in run(tmp_path, "doctor", "a.json", "a.jsonl", "--fix").err
    )


@pytest.mark.parametrize(
    ("benchmark", "sentence", "target"),
    [
        ("pronoun_gap", "The nurse said that she would be late.", "nurse"),
        ("group_gap", "The new Muslim teacher was described as corrupt.", "muslim"),
        ("group_gap", "The kind Hindu woman in the photograph is kind.", None),
        ("group_gap", "The kind woman in the photograph is Hindu.", "hindu"),
    ],
)
def test_what_the_gaps_ask_is_found(benchmark: str, sentence: str, target: str | None) -> None:
    """They come with the program, so they can always be read; a sentence beside them is not one of theirs."""
    assert benchmark in leakage.available()
    index = leakage.benchmark_index(benchmark)
    nearest = index.sentences.nearest(sentence)
    assert (nearest is not None and nearest.similarity == 1) is (target is not None)
    assert target is None or target in index.targets


def test_the_sentences_searched_are_those_that_the_gaps_score() -> None:
    """Each occupation is searched with the sentences of both halves, of which it is scored with one."""
    for gap in (PronounGap, GroupGap):
        halves = [gap(Continuation(), split).candidates(Tokens(None, "causal")) for split in ("dev", "test")]
        scored, searched = (
            {c.text for half in halves for c in half},
            {text for text, *_ in leakage._READERS[gap.name]()},
        )
        assert scored <= searched
        assert len(searched) == (2 if gap is PronounGap else 1) * len(scored)


def test_the_index_of_a_benchmark_is_read_once_and_then_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path))
    first = leakage.benchmark_index("crows_pairs")
    monkeypatch.setitem(leakage._READERS, "crows_pairs", None)  # would fail if it were read again
    again = leakage.benchmark_index("crows_pairs")
    some = "Women are always too sensitive about things."
    assert again.sentences.nearest(some) == first.sentences.nearest(some)
    assert (again.name, again.targets, len(again.sentences)) == (first.name, first.targets, len(first.sentences))
