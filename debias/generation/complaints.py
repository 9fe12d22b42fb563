"""What a server's refusal means: a mistake of the user, explained in one line, or a reason to retry."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping

import openai

from debias.generation.exchange import LLM
from debias.records import UserError

PASSING = (408, 409, 425, 429)  # these and all from 500 on are worth a retry


def redacted(text: str, secret: str) -> str:
    """The text without the API key, which some servers echo."""
    return text.replace(secret, "[key]") if secret else text


def reason_of(error: openai.APIStatusError, secret: str) -> str:
    """The server's message in one short line."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    text = " ".join(redacted(str(said or body or error.response.reason_phrase), secret).split())
    return f"status {error.status_code}: {text[:200]}{'...' if len(text) > 200 else ''}"


def mistake(error: openai.APIStatusError, llm: LLM, base_url: str, secret: str) -> UserError | None:
    """What the user can do about a refusal; None if a retry may help."""
    reason, status = reason_of(error, secret), error.status_code
    key = f"the key in {llm.api_key_env}" if llm.api_key_env else "a request without a key (set llm.api_key_env)"
    if status in (401, 403):
        return UserError(f"{shown(base_url)} refuses {key} ({reason})")
    if status == 402 or error.code == "insufficient_quota":
        return UserError(f"the account of {key} has no money left ({reason})")
    if status in PASSING or status >= 500:
        return None
    if status == 404:
        return UserError(f"{shown(base_url)} does not know llm.model={llm.model}, or llm.base_url is wrong ({reason})")
    hint = "; try llm.structured=json_object or text" if "schema" in reason or "response_format" in reason else ""
    return UserError(f"{shown(base_url)} rejects the request ({reason}){hint}")


def unreachable(base_url: str, error: Exception) -> UserError:
    """The error for an address at which no server listens."""
    cause = error.__cause__ or error
    return UserError(f"no server answers at {shown(base_url)} ({cause or type(cause).__name__}); is it running?")


def shown(base_url: str) -> str:
    """An address without the user name and password that it may contain."""
    scheme, _, rest = base_url.rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}".rstrip("/")


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait according to `Retry-After`, a number or a date; None if the server does not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            date = email.utils.parsedate_tz(value)
            seconds = email.utils.mktime_tz(date) - time.time() if date else math.nan
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return None
