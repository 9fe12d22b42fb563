"""Reading and checking triplets: every fault is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from debias.data.triplets import TripletFile, corpora
from debias.records import Tokens, Triplet, UserError
from debias.scoring.encoding import encode


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


GOOD = {"sentence": "The woman was stoic.", "target": "woman", "attribute": "stoic"}


def test_reads_json_lines_and_published_lists(tmp_path: Path) -> None:
    expected = Triplet("The woman was stoic.", "woman", "stoic", "gender", "a.jsonl", 14, 19)
    lines = write(tmp_path / "a.jsonl", GOOD, "", [*GOOD.values()])
    assert TripletFile("gender", str(lines)).load().triplets == [expected, expected]
    published = write(tmp_path / "b.json", [[*GOOD.values()]])
    assert TripletFile("gender", str(published)).load().triplets == [expected._replace(source="b.json")]


def test_a_record_may_carry_its_own_bias(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**GOOD, "bias": "age", "source": "me", "id": 7})
    assert TripletFile("general", str(path)).load().triplets[0][3:5] == ("age", "me")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["She has wisdom.", "She", "wise"], "attribute not in the sentence"),
        (["She loves mechanics.", "She", "mechanic"], "attribute only inside a longer word"),
        (["A self-made man.", "man", "self"], "attribute only inside a longer word"),
        (["Women say he is calm.", "men", "calm"], "target only inside a longer word"),
        (["They are kind.", "woman", "kind"], "target not in the sentence"),
        (["Kind was the woman.", "woman", "kind"], "attribute before the target"),
    ],
)
def test_strict_drops_and_counts(tmp_path: Path, row: list[str], reason: str) -> None:
    checked = TripletFile("gender", str(write(tmp_path / "a.jsonl", GOOD, row))).load()
    assert len(checked.triplets) == 1
    assert checked.dropped == {reason: 1}


def test_the_attribute_is_the_first_one_after_the_target(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["Kind words: the WOMAN is Kind.", "woman", "kind"])
    triplet = TripletFile("gender", str(path)).load().triplets[0]
    assert triplet.sentence[triplet.start : triplet.stop] == "Kind"
    assert triplet.start == 25


def test_as_published_puts_the_attribute_after_the_text_before_it(tmp_path: Path) -> None:
    """The paper's script cuts at the first exact match, in a word or not, and appends the attribute."""
    path = write(tmp_path / "a.jsonl", ["She is wisely loved.", "She", "wise"], ["She has wisdom.", "She", "wise"])
    sentences = [t.sentence for t in TripletFile("gender", str(path), policy="as_published").load().triplets]
    assert sentences == ["She is wise", "She has wisdom. wise"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sentence": "x"', "a.jsonl:2: not JSON"),
        ('["only", "two"]', "a.jsonl:2: expected an object or"),
        ('{"sentence": "x", "target": "x"}', "a.jsonl:2: 'attribute' is missing"),
        ('{"sentence": "x", "target": 3, "attribute": "x"}', "a.jsonl:2: 'target' is not a string"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TripletFile("gender", str(write(tmp_path / "a.jsonl", GOOD, content))).load()


def test_missing_empty_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read this file"):
        TripletFile("gender", str(tmp_path / "none.jsonl")).load()
    with pytest.raises(UserError, match=r"no usable triplet is left \(1 attribute not in the sentence\)"):
        TripletFile("gender", str(write(tmp_path / "a.jsonl", ["She.", "She", "x"]))).load()
    (tmp_path / "b.jsonl").write_bytes(b"{\n\xe9")
    with pytest.raises(UserError, match=r"b\.jsonl:2: not UTF-8"):
        TripletFile("gender", str(tmp_path / "b.jsonl")).load()
    with pytest.raises(UserError, match=r"no corpus of ours for data\.bias='height'"):
        TripletFile("height")


def test_attribute_tokens_are_found_in_every_corpus_sentence(smollm2_tokenizer: Path) -> None:
    """The marked tokens decode to the attribute, with at most the space and punctuation that its tokens carry."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_tokenizer)
    for bias in corpora():
        triplets = TripletFile(bias).load().triplets
        for triplet, text in zip(triplets, encode(triplets, Tokens(tokenizer, "causal")), strict=True):
            assert text.ids[0] == tokenizer.bos_token_id
            decoded = tokenizer.decode(text.ids[text.start : text.stop]).strip(" .,;:!?\"'”’")
            assert decoded == triplet.sentence[triplet.start : triplet.stop]


def test_hand_worked_encoding(smollm2_tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_tokenizer)
    triplet = Triplet("The woman was stoic.", "woman", "stoic", "gender", "", 14, 19)
    (text,) = encode([triplet], Tokens(tokenizer, "causal"), start_token=False)
    words = [tokenizer.decode([i]) for i in text.ids]
    assert "".join(words) == triplet.sentence
    assert "".join(words[text.start : text.stop]) == " stoic"
