"""Bodies read as far as they arrived."""

from __future__ import annotations

import json

import pytest

from debias.generation.reading import read_body

TEXT = '[{"sentence": "Die Ärztin sagte \\"nein\\" 😀", "target": "x"}]'
WHOLE = json.dumps({
    "id": "c", "model": "m", "choices": [{"message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
})  # fmt: skip


def test_a_whole_body() -> None:
    assert read_body(WHOLE) == (TEXT, "stop", 7, 3, "m", "c", True)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_beginning_of_a_body_gives_a_beginning_of_the_text(ascii_only: bool) -> None:
    """Cut at every byte, in the middle of characters and escapes, too; nothing is invented or lost again."""
    body = json.dumps(json.loads(WHOLE), ensure_ascii=ascii_only).encode()
    start = body.index(b'"content": "') + len(b'"content": "')
    end = body.index(b'", "finish_reason"') if b'", "finish_reason"' in body else body.index(b'"}, "finish_reason"')
    before = 0
    for cut in range(len(body)):
        reading = read_body(body[:cut].decode("utf-8", "replace"))
        assert (reading.prompt_tokens, reading.completion_tokens) == (None, None)
        if reading.text is None:
            assert cut <= start + 12  # the longest character is written as two escapes
        else:
            assert reading.finish_reason == "incomplete"
            assert TEXT.startswith(reading.text)
            assert before <= len(reading.text)
            before = len(reading.text)
        if cut > end:
            assert reading.text == TEXT


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": 2}, [1]])
def test_half_a_usage_report_is_none(usage: object) -> None:
    content = {**json.loads(WHOLE), "usage": usage}
    assert read_body(json.dumps(content))[2:4] == (None, None)


def test_an_error_with_status_200_is_quoted() -> None:
    assert read_body('{"error": {"message": "overloaded"}}')[:2] == (None, "the server's error: overloaded")


def test_half_an_emoji_does_not_cost_the_answer() -> None:
    """JSON may escape one half of a surrogate pair, which no file could hold."""
    body = WHOLE.replace("\\ud83d\\ude00", "\\ud83d")
    reading = read_body(body)
    assert reading[1:] == ("stop", 7, 3, "m", "c", True)
    assert reading.text == TEXT.replace("\U0001f600", "\ufffd")


def test_a_tower_of_brackets_is_no_answer() -> None:
    assert read_body("[" * 100_000).text is None


def test_a_long_answer_is_read_once() -> None:
    """Looking for the end of a thought at every character would take hours."""
    text = "She mends the roof. " * 50_000
    assert read_body(WHOLE.replace(json.dumps(TEXT), json.dumps(text))).text == text
