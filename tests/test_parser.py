"""Answers of every shape, whole and cut off at every place: each complete triplet is kept, and nothing raises."""

from __future__ import annotations

import json
import random
import string

import pytest

from debias.generation.parser import terms, triplets

ONE = {"sentence": "The nurse, he said, was bold.", "target": "nurse", "attribute": "bold"}
TWO = {"sentence": "Our imam told us {funny} [old] jokes.", "target": "imam", "attribute": "jokes"}
BOTH = [ONE, TWO]
ROWS = [list(ONE.values()), list(TWO.values())]

SHAPES = {
    "object": json.dumps({"triplets": BOTH}),
    "fenced": f"Here you are:\n```json\n{json.dumps({'triplets': BOTH}, indent=2)}\n```\nTell me [if] you want more.",
    "list of objects": json.dumps(BOTH),
    "list of lists": json.dumps(ROWS),
    "a list per line": "\n".join(map(json.dumps, ROWS)),
    "an object per line": "\n".join(map(json.dumps, BOTH)),
    "numbered": "\n".join(f"{i}. {json.dumps(row)}," for i, row in enumerate(ROWS, start=1)),
    "trailing comma": json.dumps(BOTH).replace("}]", "},]"),
    "short keys": json.dumps([{"S": t["sentence"], "T": t["target"], "A": t["attribute"]} for t in BOTH]),
    "nested": json.dumps({"answer": {"items": [{"rows": BOTH}]}}),
}


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_shapes(text: str) -> None:
    assert triplets(text) == BOTH


@pytest.mark.parametrize(
    "text",
    [
        '[“The nurse was bold.”, “nurse”, “bold”]',
        '{“sentence”: “The nurse was bold.”, “target”: “nurse”, “attribute”: “bold”}',
        "['The nurse was bold.', 'nurse', 'bold']",
        "1. [The nurse was bold., nurse, bold]",
        '["The nurse was bold.", "nurse", "bold",]',
        '["The nurse\nwas bold.", "nurse", "bold"]',
    ],
)  # fmt: skip
def test_sloppy_json(text: str) -> None:
    assert triplets(text) == [{"sentence": "The nurse was bold.", "target": "nurse", "attribute": "bold"}]


def test_sound_and_sloppy_lines_in_one_answer() -> None:
    text = f"{json.dumps(ROWS[0])}\n[“Our nun boxed.”, “nun”, “boxed”]\n{json.dumps(ROWS[1])}"
    assert [t["target"] for t in triplets(text)] == ["nurse", "nun", "imam"]


def test_a_fourth_text_is_the_bias() -> None:
    assert triplets('["The nurse was bold.", "nurse", "bold", "gender"]')[0]["bias"] == "gender"


def test_typographic_quotes_inside_a_text_stay() -> None:
    text = json.dumps({"triplets": [{**ONE, "sentence": "“No”, “never”: the nurse was bold."}]}, ensure_ascii=False)
    assert triplets(text)[0]["sentence"] == "“No”, “never”: the nurse was bold."


def test_incomplete_records_are_passed_on_to_be_counted() -> None:
    assert triplets('[{"sentence": "A man wept.", "target": 3}]') == [{"sentence": "A man wept.", "target": 3}]


@pytest.mark.parametrize("name", ["object", "fenced", "list of objects", "list of lists", "a list per line", "nested"])
def test_every_prefix_holds_its_complete_triplets(name: str) -> None:
    """A triplet is complete where its own closing bracket has arrived."""
    text = SHAPES[name]
    one, two = (text.index(f'"{t["attribute"]}"') for t in BOTH)
    ends = [min(i for i in (text.find("}", place), text.find("]", place)) if i >= 0) + 1 for place in (one, two)]
    for cut in range(len(text) + 1):
        assert triplets(text[:cut]) == BOTH[: sum(end <= cut for end in ends)]


def test_nothing_raises() -> None:
    """Random texts of brackets, quotes, escapes and letters, and answers with random damage."""
    draw = random.Random(1)
    alphabet = "[]{},:\"\\ud83“”'\n." + string.ascii_letters[:6] + "1-e"
    for _ in range(3000):
        text = "".join(draw.choices(alphabet, k=draw.randrange(60)))
        assert isinstance(triplets(text), list)
        assert isinstance(terms(text), dict)
    for _ in range(1000):
        text = list(draw.choice(list(SHAPES.values())))
        for _ in range(draw.randrange(1, 5)):
            text[draw.randrange(len(text))] = draw.choice(alphabet)
        assert len(triplets("".join(text))) <= 4


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, '{"n": ' + "9" * 10_000 + "}", '"' * 1000])
def test_hostile_texts_cost_little(text: str) -> None:
    assert triplets(text) == []


def test_half_a_surrogate_pair_can_be_written_and_is_seen() -> None:
    (found,) = triplets('["A \\ud83d man wept.", "man", "wept"]')
    assert found["sentence"].encode("utf-8") == "A \ufffd man wept.".encode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"terms": [{"term": "nun", "stereotypes": ["meek", "strict"]}, {"term": "Nun"}, "rabbi"]}',
         {"nun": ["meek", "strict"], "rabbi": []}),
        ('["nun", "rabbi"]', {"nun": [], "rabbi": []}),
        ("Terms:\n1. nun\n2) rabbi\n- old man", {"nun": [], "rabbi": [], "old man": []}),
        ('{"terms": [{"term": "nun", "stereotypes": ["meek"]}, {"term": "rab', {"nun": ["meek"]}),
        ("I cannot help with that.", {}),
    ],
)  # fmt: skip
def test_terms(text: str, found: dict[str, list[str]]) -> None:
    assert terms(text) == found
