"""Reads the raw body of a chat completion, as far as it arrived."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import jiter

from debias.generation.complaints import complaint_in
from debias.generation.exchange import FILTERED, THINKING
from debias.generation.parser import without_halves

FINISHED = ("stop", "length", "content_filter")
# Reasoning that a server leaves in the answer; some models' chat templates open it in the prompt, so that it only ends.
# Anchored, since a search for an end that is not there would begin again at every character.
_THOUGHTS = re.compile(r"\A.*(?:</(?:think|thinking|thought|reasoning)>|\[/THINK\])", re.IGNORECASE | re.DOTALL)
_THOUGHT = re.compile(r"(?:<(?:think|thinking|thought|reasoning)>|\[THINK\]).*", re.IGNORECASE | re.DOTALL)


class Reading(NamedTuple):
    """Content of a body. `text` is None if it holds no answer; `finish_reason` then says why."""

    text: str | None
    finish_reason: str
    prompt_tokens: int | None  # None: the server reported no usage
    completion_tokens: int | None
    model: str
    id: str  # of the completion, if the server gives one
    charged: bool = True  # False: the server reports an error and no usage, so the model did not answer


def read_body(body: str) -> Reading:
    """Read a chat completion; a body that breaks off is read up to the break."""
    if body.lstrip()[:1] == "<":  # a proxy's page: the model has not answered
        title = re.search(r"<title>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
        about = f": {' '.join(title[1].split())[:100]}" if title else ""
        return Reading(None, f"a web page{about}", None, None, "", "", charged=False)
    try:
        content, whole = json.loads(body), True
    except (ValueError, RecursionError):
        content, whole = _beginning(body), False
    content = content if isinstance(content, dict) else {}
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    prompt_tokens, completion_tokens = _usage(content) if whole else (None, None)
    model, completion_id = _text(content.get("model")), _text(content.get("id"))
    charged = True
    if (error := content.get("error") or choice.get("error")) and not _text(_of(message, "content")):
        # Some servers report errors with status 200. Without a usage report the model has not been run.
        charged = completion_tokens is not None
        code = _of(error, "code")
        complaint = complaint_in(code if isinstance(code, int) else 400, error, "")
        said = f"the server's error: {complaint.message[:200]}"
        text, finish_reason = ("", FILTERED) if complaint.filtered else (None, said)
    elif isinstance(message, dict):
        text, finish_reason = _said(choice, message, whole)
    else:
        unlike = "is not a chat completion" if whole else "breaks off before any text or is not JSON"
        text, finish_reason = None, f"the body {unlike}"
    return Reading(text, finish_reason, prompt_tokens, completion_tokens, model, completion_id, charged)


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


def _said(choice: dict[str, Any], message: dict[str, Any], whole: bool) -> tuple[str | None, str]:
    """The text of a message and why it ended; the text is None if the body breaks off before it."""
    content, refusal = _text(message.get("content")), _text(message.get("refusal"))
    text = _THOUGHT.sub("", _THOUGHTS.sub("", content))  # drafts are not answers, least of all those it broke off in
    if not whole:
        return (text, "incomplete") if text else (None, "the body breaks off before any text")
    if refusal:
        return text or refusal, "refusal"
    if choice.get("finish_reason") == "error":
        return text, "incomplete"
    finish_reason = choice.get("finish_reason")
    finish_reason = finish_reason if finish_reason in FINISHED else "stop"
    if text.strip() or finish_reason == "content_filter":
        return text, finish_reason
    reasoned = any(message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details"))
    if content.strip() or reasoned or (finish_reason == "length" and message.get("content") is None):
        return "", THINKING
    return text, "empty" if finish_reason == "stop" else finish_reason


def _of(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _text(value: Any) -> str:
    """A string, or the text parts of a list of parts, as one string."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return without_halves(value) if isinstance(value, str) else ""
