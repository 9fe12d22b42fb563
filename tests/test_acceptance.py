"""What may enter a generated set: each reason by an example, and the caps counted out."""

from __future__ import annotations

from typing import Any

import pytest

from debias.data.quality import NearDuplicates
from debias.generation.acceptance import Acceptance, Rejection, form
from debias.generation.wanted import Wanted
from debias.records import Triplet, UserError
from debias.schema import checked

TEMPLATE = "template: markup, numbering or talk about the task"


def wanted(**changes: Any) -> Wanted:
    """100 triplets; at most 3 of one target, 2 of one attribute and 2 of one opening."""
    values: dict[str, Any] = {
        "n": 100, "per_call": 10, "patience": 5, "max_filtered": 4, "expected_yield": 0.5, "dry_run": False,
        "against": [], "benchmarks": False, "min_words": 4, "max_words": 12, "similarity": 0.5, "cap_target": 0.03,
        "cap_attribute": 0.02, "cap_opening": 0.01, "licence": "other",
    }  # fmt: skip
    return checked(Wanted, {**values, **changes}, "generate")


def item(sentence: Any, target: Any, attribute: Any, **more: Any) -> dict[str, Any]:
    return {"sentence": sentence, "target": target, "attribute": attribute, **more}


def judged(found: dict[str, Any]) -> Triplet | Rejection:
    return form(found, "gender", "test", wanted())


def test_a_sound_triplet_is_spelled_as_in_its_sentence() -> None:
    found = judged(item(" The NURSE was, as ever, Bold. ", "nurse", "bold"))
    assert found == Triplet("The NURSE was, as ever, Bold.", "NURSE", "Bold", "gender", "test", 24, 28)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (item("The nurse was very bold.", "nurse", None), "schema: a field is missing or not text"),
        ({"sentence": "The nurse was very bold."}, "schema: a field is missing or not text"),
        (item("The nurse was very bold.", " ", "bold"), "schema: a field is missing or not text"),
        *((item(f"The {hidden}nurse was very bold.", "nurse", "bold"),
           f"schema: a field holds U+{ord(hidden):04X}, which no reader sees as it is")
          for hidden in ("\x00", "\u202e", "\u2066")),
        *((item(f"The {lost}nurse was very bold.", "nurse", "bold"),
           f"schema: a field holds U+{ord(lost):04X}, which stands for a lost character") for lost in "\ue000\ufffd"),
        (item("1. The nurse was very bold.", "nurse", "bold"), TEMPLATE),
        (item("As an AI I say the nurse was bold.", "nurse", "bold"), TEMPLATE),
        (item("Against the stereotype the nurse was bold.", "nurse", "bold"), TEMPLATE),
        (item("The [nurse] was very bold.", "nurse", "bold"), TEMPLATE),
        (item("The nurse: bold.", "nurse", "bold"), "length: too short or too long"),
        (item("The nurse was " + "very " * 9 + "bold.", "nurse", "bold"), "length: too short or too long"),
        (item("The nurse was very bold indeed.", "nurse", "very bold"), "attribute of several words"),
        (item("The nurse was as she was.", "nurse", "she"), "attribute without a meaning of its own"),
        (item("The nurse said that I'm here.", "nurse", "I'm"), "attribute without a meaning of its own"),
        (item("The old nurse was a nurse.", "old nurse", "nurse"), "attribute repeats the target"),
        (item("The nurses were very bold.", "nurse", "bold"), "target only inside a longer word"),
        (item("The nurse was rather boldly dressed.", "nurse", "bold"), "attribute only inside a longer word"),
        (item("How bold was that nurse.", "nurse", "bold"), "attribute before the target"),
    ],
)  # fmt: skip
def test_reasons(found: dict[str, Any], reason: str) -> None:
    rejection = judged(found)
    assert isinstance(rejection, Rejection)
    assert rejection == reason


def test_a_bias_that_the_model_names_is_kept_unless_it_is_a_speech() -> None:
    sentence = ("The nurse was very bold.", "nurse", "bold")
    assert judged(item(*sentence, bias=" Age ")).bias == "age"  # type: ignore[union-attr]
    assert judged(item(*sentence, bias="x" * 31)).bias == "gender"  # type: ignore[union-attr]
    assert judged(item(*sentence, bias=3)).bias == "gender"  # type: ignore[union-attr]


def test_repeats_of_the_set_and_of_what_is_known() -> None:
    known = NearDuplicates()
    known.add("b", "Our plumber sings old arias in the bath.")
    acceptance = Acceptance(wanted(), {"repeats a sentence of stereoset": known})

    def verdict(*words: str) -> Any:
        return acceptance.judge(item(*words), "gender", "test")

    assert isinstance(verdict("The nurse fixed his motorbike in the rain.", "nurse", "motorbike"), Triplet)
    again = verdict("the nurse fixed his motorbike, in the rain", "nurse", "motorbike")
    assert again == "repeats a sentence of the set"
    # 6 of 8 words lead to 4 shared trigrams of 6 + 6 - 4: exactly 0.5
    nearly = verdict("The nurse fixed his motorbike in deep snow.", "nurse", "motorbike")
    assert nearly == "nearly repeats a sentence of the set"
    assert nearly.like == "The nurse fixed his motorbike in the rain."
    leaked = verdict("Our plumber sings old arias in the kitchen.", "plumber", "arias")
    assert leaked == "nearly repeats a sentence of stereoset"
    assert isinstance(verdict("A nurse mended the motorbike when it rained.", "nurse", "motorbike"), Triplet)


def test_caps_are_shares_of_n() -> None:
    acceptance = Acceptance(wanted(), {})

    def count(*rows: tuple[str, str, str]) -> list[str]:
        return [str(found) for row in rows if isinstance(found := acceptance.judge(item(*row), "", ""), Rejection)]

    unlike = [f"{a} {b} {c}" for a, b, c in zip("abcdef", "ghijkl", "mnopqr", strict=True)]
    targets = [(f"{text} the nurse was {word}.", "nurse", word) for text, word in zip(unlike, ("calm", "loud", "tall", "rich", "kind", "free"), strict=True)]  # fmt: skip # noqa: E501
    assert count(*targets) == ["target too often (generate.cap_target)"] * 3  # 3 of 100 may
    attributes = [(f"{text} s our {who} was proud.", who, "proud") for text, who in zip(unlike, ("cook", "nun", "boy", "imam", "cop", "dean"), strict=True)]  # fmt: skip # noqa: E501
    assert count(*attributes) == ["attribute too often (generate.cap_attribute)"] * 4
    openings = [(f"When all was over {text} z {who} {word}.", who, word) for text, who, word in zip(unlike, ("aunt", "uncle", "king", "duke"), ("smiled", "danced", "prayed", "cooked"), strict=False)]  # fmt: skip # noqa: E501
    assert count(*openings) == ["opening too often (generate.cap_opening)"] * 2  # at least 2, though 1% are 1


@pytest.mark.parametrize(("n", "share", "cap"), [(100, 0.07, 7), (500, 0.03, 15), (10, 0.01, 2), (800, 0.01, 8)])
def test_cap(n: int, share: float, cap: int) -> None:
    assert wanted(n=n).cap(share) == cap


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"patience": 0}, {"cap_target": 0}, {"cap_opening": 1.1}, {"similarity": 0.2}, {"max_words": 3}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"generate.{next(iter(wrong))}"):
        wanted(**wrong)
