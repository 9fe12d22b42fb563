"""What a server's refusal means: a mistake of the user, explained in one line, or a reason to retry."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import openai

from debias.generation.exchange import LLM
from debias.records import UserError

PASSING = (408, 409, 425, 429)  # these and all from 500 on are worth a retry
REFUSING = (400, 403, 422, 451)  # with which servers report a prompt or an answer that their content filter refuses
# The codes and the wording of content filters: OpenAI, Azure, OpenRouter, Anthropic, Google, Alibaba and others.
_FILTER = re.compile(
    r"content[ _-]?(?:\w+[ _-]){0,2}(?:filter|polic)|usage polic|moderat|flagged|invalid_prompt|responsible ?ai"
    r"|violat\w*(?: \w+){0,4} polic|safety (?:system|filter|setting|polic)"
    r"|(?:inappropriate|prohibited|sensitive) content|data_?inspection",
    re.IGNORECASE,
)


# The wording of token limits: tokens or the context, and that they are too many, or how many there may be.
_TOKENS = re.compile(r"token|context|prompt is too long", re.IGNORECASE)
_TOO_MANY = re.compile(r"too (?:large|long|many|big)|exceed|at most|maximum|less than|range", re.IGNORECASE)


class Complaint(NamedTuple):
    """A server's error: the status and content of a reply, or of one result of a batch."""

    status: int
    message: str  # on one line, without the API key
    code: str = ""
    parameter: str = ""  # that the server complains about; empty: it does not say
    wait: float | None = None  # seconds that the server asks us to wait; None: it does not say

    @property
    def reason(self) -> str:
        """Status and message, shortened."""
        return f"status {self.status}: {self.message[:200]}{'...' if len(self.message) > 200 else ''}"

    @property
    def filtered(self) -> bool:
        """Whether a content filter refuses this request, which says nothing about the others."""
        return self.status in REFUSING and bool(_FILTER.search(f"{self.code} {self.message}"))

    @property
    def passing(self) -> bool:
        """Whether the same request may well be answered the next time."""
        if self.code == "insufficient_quota":
            return False
        # A model's answer that does not fit the schema is an accident of that answer.
        return self.status in PASSING or self.status >= 500 or self.code == "json_validate_failed"

    @property
    def exceeds_limit(self) -> bool:
        """Whether prompt and answer are too long for the model."""
        said = f"{self.code} {self.message}"
        return self.status in (400, 413, 422) and bool(_TOKENS.search(said) and _TOO_MANY.search(said))

    @property
    def about_account(self) -> bool:
        """Whether the key or the account is at fault, so that no request can be answered."""
        return self.status in (401, 402) or self.code == "insufficient_quota"


def complaint_of(error: openai.APIStatusError, secret: str) -> Complaint:
    """The error of a reply."""
    complaint = complaint_in(error.status_code, error.body or error.response.reason_phrase, secret)
    return complaint._replace(wait=wait_of(error.response.headers))


def complaint_in(status: int, content: Any, secret: str) -> Complaint:
    """The error in the content of a reply: an object with a message, with or without an `error` around it."""
    content = content.get("error", content) if isinstance(content, dict) else content
    fields = content if isinstance(content, dict) else {}
    message = str(fields.get("message") or content)
    metadata = fields.get("metadata")
    if isinstance(metadata, dict) and metadata.get("raw"):  # a router quotes the server that it has asked
        message = f"{message}: {metadata['raw']}"
    message = " ".join(redacted(message, secret).split())
    return Complaint(status, message, str(fields.get("code") or ""), str(fields.get("param") or ""))


def redacted(text: str, secret: str) -> str:
    """The text without the API key, which some servers echo."""
    return text.replace(secret, "[key]") if secret else text


def mistake(complaint: Complaint, llm: LLM, base_url: str) -> UserError | None:
    """What the user can do about a refusal; None if a retry may help."""
    if complaint.passing:
        return None
    reason, status = complaint.reason, complaint.status
    if complaint.exceeds_limit:
        return UserError(f"{shown(base_url)} finds prompt and answer too long ({reason}); {shorter(llm)}")
    key = f"the key in {llm.api_key_env}" if llm.api_key_env else "a request without a key (set llm.api_key_env)"
    if status == 401:
        return UserError(f"{shown(base_url)} refuses {key} ({reason})")
    if status == 403:  # for many reasons, of which the key is one: the server knows which
        return UserError(f"{reason}; this is what {shown(base_url)} answers to {key}")
    if complaint.about_account:
        return UserError(f"the account of {key} has no money left ({reason})")
    if status == 404:
        return UserError(f"{shown(base_url)} does not know llm.model={llm.model}, or llm.base_url is wrong ({reason})")
    return UserError(f"{shown(base_url)} rejects the request ({reason})")


def shorter(llm: LLM) -> str:
    """What makes prompt and answer fit into a model's context."""
    return f"lower llm.max_tokens={llm.max_tokens} or generate.per_call, or give the server a larger context"


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
