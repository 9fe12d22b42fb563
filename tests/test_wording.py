"""Numbers and their nouns agree in everything that a person reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from debias.wording import counted, day, moment, plural

PACKAGE = Path(__file__).resolve().parents[1] / "debias"
NOUNS = (
    "answers?|benchmarks|calls|configurations|cores|examples|files|folders|jobs|layers|lines|occupations|pairs|"
    "records|requests|results|rows|runs|sentences|settings|steps|texts|threads|times|triplets|words"
)
# Bounds of the program, lists of more than one, and verbs.
AT_LEAST_TWO = (
    "{LONGEST} words", "{len(text.split())} words", "{len(places)} folders", "in %d batches",
    "{len(sample)} examples of", "{steps[-1]} steps", "{n:,} sentences", "{name} calls", "{shown(base_url)} answers to",
)  # fmt: skip


@pytest.mark.parametrize(("number", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (2310, "2,310 runs")])
def test_counted(number: int, text: str) -> None:
    assert counted(number, "run") == text


def test_words_of_their_own_plural() -> None:
    assert [plural(n, "is", "are") for n in (0, 1, 2)] == ["are", "is", "are"]
    assert counted(1, "process", "processes") == "1 process"


def test_a_time_is_written_for_people() -> None:
    assert moment("2026-11-27T10:04:05.123+02:00") == "27 Nov 2026, 08:04 UTC"
    assert day("2026-11-28T01:04:05+02:00") == "27 Nov 2026"
    assert moment("") == day("") == ""


def test_no_plural_is_written_behind_a_number() -> None:
    """A number in a text, `{...}` or `%d`, is not followed by a plural: `counted` chooses the noun's form."""
    written = re.compile(rf"(?:\{{[^{{}}\"']+\}}|%d) (?:{NOUNS})\b.{{0,20}}")
    found = [text for path in sorted(PACKAGE.rglob("*.py")) for text in written.findall(path.read_text("utf-8"))]
    assert [text for text in found if not text.startswith(AT_LEAST_TWO)] == []
