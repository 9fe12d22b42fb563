"""Reads the raw body of a chat completion, as far as it arrived."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jiter

FINISHED = ("stop", "length", "content_filter")


class Reading(NamedTuple):
    """Content of a body. `text` is None if it holds no answer; `finish_reason` then says why."""

    text: str | None
    finish_reason: str
    prompt_tokens: int | None  # None: the server reported no usage
    completion_tokens: int | None
    model: str
    id: str  # of the completion, if the server gives one


def read_body(body: str) -> Reading:
    """Read a chat completion; a body that breaks off is read up to the break."""
    try:
        content, whole = json.loads(body), True
    except (ValueError, RecursionError):
        content, whole = _beginning(body), False
    content = content if isinstance(content, dict) else {}
    prompt_tokens, completion_tokens = _usage(content) if whole else (None, None)
    text, finish_reason = _said(content, whole)
    model, completion_id = _text(content.get("model")), _text(content.get("id"))
    return Reading(text, finish_reason, prompt_tokens, completion_tokens, model, completion_id)


def _beginning(body: str) -> Any:
    """The JSON before the break, without a last character that arrived in part."""
    try:
        return jiter.from_json(body.rstrip("\ufffd").encode(), partial_mode="trailing-strings")
    except ValueError:
        return None


def _usage(content: dict[str, Any]) -> tuple[int | None, int | None]:
    usage = content.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    if all(isinstance(count, int) and count >= 0 for count in counts):
        return counts[0], counts[1]
    return None, None  # an incomplete report is useless: the upper bound counts instead


def _said(content: dict[str, Any], whole: bool) -> tuple[str | None, str]:
    """The text and why it ended; the text is None if this is not a chat completion."""
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        return None, _complaint(content, whole)
    text, refusal = _text(message.get("content")), _text(message.get("refusal"))
    if not whole:
        return (text, "incomplete") if text else (None, "the body breaks off before any text")
    if refusal:
        return text or refusal, "refusal"
    finish_reason = choice.get("finish_reason")
    finish_reason = finish_reason if finish_reason in FINISHED else "stop"
    return text, "empty" if finish_reason == "stop" and not text.strip() else finish_reason


def _complaint(content: dict[str, Any], whole: bool) -> str:
    error = content.get("error")  # some servers report errors with status 200
    if isinstance(error, dict) and error.get("message"):
        return f"the server's error: {_text(error['message'])[:200]}"
    return "the body is not a chat completion" if whole else "the body breaks off before any text or is not JSON"


def _text(value: Any) -> str:
    """A string, or the text parts of a list of parts, as one string."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""  # no half surrogate pairs
