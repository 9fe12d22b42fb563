"""Words are found as whole words in any script, and never inside another word."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from debias.data.doctor import examine
from debias.data.triplets import TripletFile
from debias.data.word_borders import same_word, whole_word, whole_words

FOUND = [
    ("woman", "the woman's coat", "woman"),
    ("KIND", "a kind man", "kind"),
    ("护士", "那位护士昨天来了。", "护士"),
    ("看護師", "あの看護師は車を直した。", "看護師"),
    ("コンピュータ", "あのコンピュータを直した。", "コンピュータ"),
    ("พยาบาล", "เมื่อวานพยาบาลซ่อมรถ", "พยาบาล"),
    ("간호사", "그 간호사는 자동차를 고쳤다.", "간호사"),
    ("간호사", "그 간호사들은 왔다.", "간호사"),
    ("नर्स", "उस नर्स ने गाड़ी ठीक की।", "नर्स"),
    ("السيارة", "أصلحت الممرضة السيارة بنفسها.", "السيارة"),
    ("arabayı", "Hemşire arabayı tamir etti.", "arabayı"),
    ("istanbul", "Kadın İstanbul'da kaldı.", "İstanbul"),
    ("kız", "KIZ geldi.", "KIZ"),
    ("straße", "DIE STRASSE WAR LEER", "STRASSE"),
    ("AI", "그 AI는 똑똑하다.", "AI"),
    ("😀", "The man is 😀.", "😀"),
    ("(wept", "The man (wept.", "(wept"),
]

INSIDE_ONLY = [
    ("self", "a self-made man"),
    ("men", "the women"),
    ("man", "the man_1"),
    ("ナース", "ナースステーションで"),
    ("남자", "그 남자친구가 왔다."),
    ("नर्स", "उन नर्सें ने"),  # the plural: a vowel sign follows
    ("Zoe", unicodedata.normalize("NFD", "Zoē came")),
    ("cafe", unicodedata.normalize("NFD", "the café")),
    ("نمی", "نمی\u200cروم"),  # a joiner that is not seen
    ("kiz", "kız"),
]


@pytest.mark.parametrize(("word", "text", "expected"), FOUND)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("text_form", ["NFC", "NFD"])
def test_a_word_is_found(word: str, text: str, expected: str, form: str, text_form: str) -> None:
    text = unicodedata.normalize(text_form, text)  # type: ignore[arg-type]
    span = whole_word(unicodedata.normalize(form, word), text)  # type: ignore[arg-type]
    assert span is not None
    assert text[slice(*span)] == unicodedata.normalize(text_form, expected)  # type: ignore[arg-type]
    assert same_word(text[slice(*span)], word)


@pytest.mark.parametrize(("word", "text"), INSIDE_ONLY)
def test_no_word_is_found_inside_another(word: str, text: str) -> None:
    assert whole_word(word, text) is None


def test_all_places_and_the_first_one_from_a_character_on() -> None:
    text = "Kind words: a kind man, kindly put."
    assert list(whole_words("kind", text)) == [(0, 4), (14, 18)]
    assert whole_word("kind", text, start=1) == (14, 18)
    assert whole_word("words", text, start=7) is None


RECORDS = [
    ("那位护士昨天修好了汽车。", "护士", "汽车"),
    ("あの看護師は昨日車を直した。", "看護師", "車"),
    ("พยาบาลซ่อมรถยนต์", "พยาบาล", "รถยนต์"),
    ("그 간호사는 자동차를 고쳤다.", "간호사", "자동차"),
    ("उस नर्स ने कल गाड़ी ठीक किया।", "नर्स", "गाड़ी"),
    ("أصلحت الممرضة أمس السيارة بنفسها.", "الممرضة", "السيارة"),
    ("Dün hemşire arabayı tamir etti.", "hemşire", "arabayı"),
    ("The nurse Zoe\u0304 was tre\u0300s forte.", "nurse", "tr\u00e8s"),  # the sentence decomposed, the word composed
]


@pytest.mark.parametrize(("sentence", "target", "attribute"), RECORDS)
def test_records_in_any_script_are_trained_on(tmp_path: Path, sentence: str, target: str, attribute: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([sentence, target, attribute]), encoding="utf-8")
    (triplet,) = TripletFile("gender", str(path)).load().triplets
    assert triplet.sentence == sentence  # as the file has it
    assert same_word(sentence[triplet.start : triplet.stop], attribute)
    assert examine(path).passes


def test_a_word_inside_another_is_not_called_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        ["उन नर्सें ने छत ठीक की।", "नर्स", "छत"],
        ["Zoe\u0304 was kind.", "Zoe", "kind"],
        ["She is kind.", "She", "kind"],
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert TripletFile("gender", str(path)).load().dropped == {"target only inside a longer word": 2}
    found = {f.name: f.count for f in examine(path).findings}
    assert (found["target only inside a word"], found["target absent"], found["cannot be trained on"]) == (2, 0, 2)
