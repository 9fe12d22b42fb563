"""StereoSet and CrowS-Pairs files as translators make them: read right, counted, or answered in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from debias.benchmarks.crows_pairs import CrowsPairs
from debias.benchmarks.evaluation import evaluate, prepared
from debias.benchmarks.filling import filling
from debias.benchmarks.stereoset import StereoSet
from debias.models.base import BaseModel
from debias.records import Tokens, UserError
from debias.scoring.protocols import BiasBench, Continuation
from debias.scoring.scorer import Scorer

CAUSAL = Tokens(None, "causal")

# ---------------------------------------------------------------- StereoSet

FILLINGS = [
    ("Ma mère est BLANK au travail.", "Ma mère est très douce au travail.", "très douce"),
    ("Ma mère est BLANK.", "Ma me\u0300re est tre\u0300s douce.", "tre\u0300s douce"),
    ("Ma mère est BLANK", "Ma mère est douce.", "douce"),
    ("L'BLANK est là.", "L'homme est là.", "homme"),
    ("Le BLANK voisin est gentil.", "Le vieux grand voisin est gentil.", "vieux grand"),
    ("我的母亲很BLANK。", "我的母亲很温柔。", "温柔"),
    ("彼女はBLANKです。", "彼女は優しいです。", "優しい"),
    ("그 간호사는 BLANK.", "그 간호사는 정말 친절하다.", "정말 친절하다"),
    ("वह नर्स BLANK है।", "वह नर्स बहुत अच्छी है।", "बहुत अच्छी"),
    ("The grandfather BLANKed them.", "The grandfather protected them.", "protect"),
    ("O alfaiate é um BLANK", "O alfaiate é uma criança", "criança"),  # the word before it has another form
    ("O homem estava muito BLANK.", "O homem era muito rude.", "rude"),
    ("Die BLANK Frau kam.", "Heute kam die sanfte Frau.", "sanfte"),  # another order
    ("O BLANK russo sentou.", "O russo bêbado sentou.", None),  # nothing is left between the words around the blank
    ("É principalmente BLANK", "É em sua maior parte desabitado", None),  # where the other words end is not shown
]


@pytest.mark.parametrize(("context", "sentence", "expected"), FILLINGS)
def test_the_text_around_the_blank_shows_the_filling(context: str, sentence: str, expected: str | None) -> None:
    span = filling(context, sentence)
    assert (None if span is None else sentence[slice(*span)]) == expected


def example(name: Any = "e1", context: str = "Ma mère est BLANK.", **changes: Any) -> dict[str, Any]:
    """An example about a mother, whose fillings are two words each."""
    shown = {"stereotype": "très douce", "anti-stereotype": "très dure", "unrelated": "bleu ciel"}
    sentences = [
        {"id": f"{name}{label}", "sentence": context.replace("BLANK", words), "gold_label": label}
        for label, words in shown.items()
    ]
    return {
        "id": name, "target": "mère", "bias_type": "gender", "context": context, "sentences": sentences, **changes,
    }  # fmt: skip


def stereoset(path: Path, *examples: dict[str, Any], document: Any = None, encoding: str = "utf-8") -> StereoSet:
    document = document or {"version": "1.0", "data": {"intrasentence": examples}}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding=encoding)
    return StereoSet(BiasBench(), path=str(path))


def fillings(benchmark: StereoSet) -> list[str | None]:
    return [c.cloze and c.cloze.filling for c in benchmark.candidates(CAUSAL)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_fillings_of_several_words(tmp_path: Path, encoding: str) -> None:
    benchmark = stereoset(tmp_path / "a.json", example(), encoding=encoding)
    assert fillings(benchmark) == ["très douce", "très dure", "bleu ciel"]
    assert benchmark.candidates(CAUSAL)[0].text == "Ma mère est très douce."
    assert benchmark.notes == []


def test_a_list_of_examples_and_numbers_as_ids(tmp_path: Path) -> None:
    benchmark = stereoset(tmp_path / "a.json", document=[example(7), example(8)])
    assert {c.example for c in benchmark.candidates(CAUSAL)} == {"7", "8"}


def test_examples_whose_ids_repeat_are_numbered(tmp_path: Path) -> None:
    benchmark = stereoset(tmp_path / "a.json", example("e1"), example("e1", "Mon père est BLANK."))
    assert [c.example for c in benchmark.candidates(CAUSAL)] == ["0"] * 3 + ["1"] * 3


def test_what_cannot_be_scored_is_counted(tmp_path: Path) -> None:
    same = example("e4")
    same["sentences"][2]["sentence"] = same["sentences"][0]["sentence"].replace("è", "e\u0300")
    empty = example("e5")
    empty["sentences"][0]["sentence"] = " "
    others = [example("e2", target=None), example("e3", "Ma mère est ____."), same, empty, example("e6", bias_type=""),
              example("e7", bias_type="overall")]  # fmt: skip
    others[1]["sentences"] = example()["sentences"]
    benchmark = stereoset(tmp_path / "a.json", example(), *others)
    assert {c.example for c in benchmark.candidates(CAUSAL)} == {"e1"}
    assert benchmark.notes == [
        "stereoset: 6 of 7 examples are left out: 1 without a target; 1 without a blank (BLANK); "
        "1 with two identical sentences; 1 without a sentence; 1 without a bias; "
        "1 with a bias called 'overall', which is the name of all together"
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([example(target=None)], "has no example to score (1 without a target)"),
        ([], "has no example to score (it is empty)"),
        ({"data": {}}, "is not a StereoSet file ('intrasentence')"),
        ([{**example(), "sentences": example()["sentences"][:2]}], "labels ['anti-stereotype', 'stereotype'] instead"),
        ([{"id": "e1"}], "is not a StereoSet file (example e1: without bias_type, context, sentences, target)"),
        (["x"], "is not a StereoSet file (expected examples, found 'x')"),
    ],
)
def test_a_file_without_examples_is_one_line(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        StereoSet(BiasBench(), path=str(tmp_path / "a.json")).fingerprint()
    assert message in str(raised.value)
    assert "check eval.stereoset.path" in str(raised.value)


def test_a_sentence_without_a_visible_filling_is_scored_whole_or_left_out(tiny: Path, tmp_path: Path) -> None:
    """A protocol that scores fillings leaves the example out and says so; one that scores sentences does not."""
    other = example("e2", "O BLANK russo sentou.")
    other["sentences"][0]["sentence"] = "O russo bêbado sentou."
    notes = []
    for protocol in (BiasBench(), Continuation()):
        benchmark = stereoset(tmp_path / "a.json", example(), other)
        benchmark.protocol = protocol
        base = BaseModel(str(tiny)).load()
        result = evaluate(Scorer(base, None), prepared([benchmark], base.tokens))
        notes.append(list(result.notes))
        assert [f.n for f in result.figures if (f.bias, f.metric) == ("gender", "SS")] == [2 - len(notes[-1])]
    assert notes == [
        [], ["stereoset (continuation): 1 of 2 examples cannot be scored and is left out"],
    ]  # fmt: skip


# ---------------------------------------------------------------- CrowS-Pairs

HEADER = ["", "sent_more", "sent_less", "stereo_antistereo", "bias_type", "annotations"]
PAIRS = [
    ["0", "Les femmes conduisent mal.", "Les hommes conduisent mal.", "stereo", "gender", "[]"],
    ["1", "Elle est, dit-il, douce.", "Il est, dit-il, doux.", "stereo", "gender", "[]"],
    ["2", "Les vieux sont lents.", "Les jeunes sont lents.", "antistereo", "age", "[]"],
]


def table(*rows: list[str], delimiter: str = ",") -> str:
    return "".join(delimiter.join(f'"{c}"' if delimiter in c else c for c in row) + "\r\n" for row in rows)


def crows_pairs(path: Path, text: str, encoding: str = "utf-8") -> CrowsPairs:
    path.write_bytes(text.encode(encoding))
    return CrowsPairs(BiasBench(), path=str(path))


def texts(benchmark: CrowsPairs) -> list[tuple[str, str, str, str]]:
    rows = [(c.example, c.bias, c.target, c.text) for c in benchmark.candidates(CAUSAL)]
    return sorted(rows)


EXPECTED = sorted((p[0], p[4], p[3], text) for p in PAIRS for text in p[1:3])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["", "id", "Unnamed: 0"])
def test_separators_encodings_and_names_of_the_id(tmp_path: Path, delimiter: str, encoding: str, name: str) -> None:
    text = table([name, *HEADER[1:]], *PAIRS, delimiter=delimiter)
    benchmark = crows_pairs(tmp_path / "a.csv", text, encoding)
    assert texts(benchmark) == EXPECTED
    assert benchmark.notes == []


def test_rows_are_numbered_where_ids_are_missing_or_repeat(tmp_path: Path) -> None:
    without = table(HEADER[1:], *(pair[1:] for pair in PAIRS))
    assert texts(crows_pairs(tmp_path / "a.csv", without)) == EXPECTED
    repeated = table(HEADER, *(["0", *pair[1:]] for pair in PAIRS))
    assert texts(crows_pairs(tmp_path / "b.csv", repeated)) == EXPECTED


def test_rows_that_are_no_evidence_are_counted(tmp_path: Path) -> None:
    same = ["3", "Elle est douce.", " Elle est douce. ", "stereo", "gender", "[]"]
    blank = ["4", "   ", "Il est doux.", "stereo", "gender", "[]"]
    whole = ["6", "Elle dort.", "Il dort.", "stereo", "overall", "[]"]
    benchmark = crows_pairs(tmp_path / "a.csv", table(HEADER, *PAIRS, same, blank, ["5", "Elle est douce."], whole))
    assert texts(benchmark) == EXPECTED
    assert benchmark.notes == [
        "crows_pairs: 4 of 7 examples are left out: 1 with two identical sentences (line 5); "
        "2 incomplete (lines 6, 7); 1 with a bias called 'overall', which is the name of all together (line 8)"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,sent_more,sent_less\n0,a,b\n", "the column bias_type is missing; it has id, sent_more, sent_less"),
        ("id,sent_more,sent_less,bias_type\n0,a,b,âge\n".encode("cp1252"), "a.csv:2: not UTF-8 text (byte 39)"),
        (
            b"id,sent_more,sent_less,bias_type\n0,a,a,age\n",
            "has no pair to compare (with two identical sentences (line 2))",
        ),
        (b"id,sent_more,sent_less,bias_type\n", "has no pair to compare (it is empty)"),
        (b"", "the file is empty"),
    ],
)
def test_a_file_without_pairs_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError) as raised:
        CrowsPairs(BiasBench(), path=str(tmp_path / "a.csv")).fingerprint()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
