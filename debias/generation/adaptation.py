"""Adapts requests to servers that refuse a part of them, and names the setting with the same effect."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from debias.generation.complaints import Complaint, shown
from debias.generation.exchange import LLM
from debias.records import UserError

if TYPE_CHECKING:
    from debias.generation.ledger import Ledger

log = logging.getLogger(__name__)

LIMITS = ("max_tokens", "max_completion_tokens")  # two names of the same limit; servers know one of them or both
# What a complaint is about, if it does not name a key of the body.
_ABOUT = {
    "response_format": re.compile(r"json_schema|json_object|structured.?output|\bstrict\b|\bgrammar\b|\bguided", re.I),
    "messages": re.compile(r"system (?:role|message|prompt|instruction)|role.{0,12}system|developer instruction", re.I),
}


class Adaptation(NamedTuple):
    """A part of the body that a server refuses, and its replacement.

    `instead` is the other name of the limit, another type of `response_format`, the role that takes the system prompt,
    or another value of `reasoning_effort`; if it is empty, the part is left out.
    """

    part: str
    instead: str = ""

    @property
    def override(self) -> str:
        """The setting with the same effect."""
        if self.part == "messages":
            return "llm.system_role=user"
        if self.part == "response_format":
            return f"llm.structured={self.instead or 'text'}"
        if self.part in LIMITS:
            return f"llm.max_tokens_name={self.instead}"
        if self.part in ("temperature", "top_p", "seed"):
            return f"llm.{self.part}=null"
        return f"++llm.extra_body.{self.part}={self.instead}" if self.instead else f"~llm.extra_body.{self.part}"


def adaptation_to(complaint: Complaint, body: dict[str, Any]) -> Adaptation | None:
    """How to change the body that was sent; None if the complaint is not about a part that can be changed."""
    if complaint.status not in (400, 422) or complaint.exceeds_limit:
        return None
    message = complaint.message
    named = [key for key in (complaint.parameter, *body) if key in body and key not in ("model", "messages")]
    named = [key for key in named if key == complaint.parameter or _names(message, key)]
    if {"temperature", "top_p"} <= set(named):  # "cannot both be specified": the temperature matters more
        named.remove("temperature")
    if named:
        part = named[0]
    elif "response_format" in body and _ABOUT["response_format"].search(message):
        part = "response_format"
    elif any(m["role"] == "system" for m in body["messages"]) and _ABOUT["messages"].search(message):
        return Adaptation("messages", "user")
    else:
        return None
    if part == "response_format":  # a weaker promise of the same form, before none at all
        return Adaptation(part, "json_object" if body[part]["type"] == "json_schema" else "")
    if part in LIMITS:
        return Adaptation(part, LIMITS[1 - LIMITS.index(part)])
    if part == "reasoning_effort":  # without a value the server reasons as much as it likes, at our expense
        least = re.search(r"support.*?\b(minimal|low)\b", message, re.IGNORECASE | re.DOTALL)
        return Adaptation(part, least[1].lower() if least and least[1].lower() != body[part] else "")
    return Adaptation(part)


def _names(message: str, key: str) -> bool:
    """Whether a message names a key of the body; a key that is an ordinary word must be quoted or follow a colon."""
    if "_" in key or key in ("temperature", "seed"):
        return bool(re.search(rf"(?<!\w){re.escape(key)}(?!\w)", message))
    return bool(re.search(rf"['\"`]{re.escape(key)}['\"`]|: {re.escape(key)}$", message))


def adapted(body: dict[str, Any], adaptations: Iterable[Adaptation]) -> dict[str, Any]:
    """The body with the refused parts replaced or left out."""
    body = dict(body)
    for part, instead in adaptations:
        if part == "messages":
            system = "\n\n".join(m["content"] for m in body["messages"] if m["role"] == "system")
            first, *others = (m for m in body["messages"] if m["role"] != "system")
            body["messages"] = [{**first, "content": f"{system}\n\n{first['content']}"}, *others] if system else [first]
        elif part in body:
            value = body.pop(part)
            if part in LIMITS:
                body[instead] = value
            elif instead:
                body[part] = {"type": instead} if part == "response_format" else instead
    return body


class Adaptations:
    """What a model's server refuses. The ledger keeps it, so that later launches need not find out again."""

    def __init__(self, llm: LLM, ledger: Ledger, base_url: str) -> None:
        self.llm, self.ledger, self.base_url = llm, ledger, shown(base_url)
        self.server = f"{llm.model} at {self.base_url}"
        self.wanted = [Adaptation("messages", "user")] if llm.system_role == "user" else []

    def sent(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body as it is sent to this server."""
        return adapted(body, [*self.wanted, *self.ledger.memory.adapted.get(self.server, [])])

    def learn(self, complaint: Complaint, body: dict[str, Any]) -> bool:
        """Learn from a refusal; returns whether the body will be sent differently from now on.

        Raises UserError, which names the setting with the same effect, if llm.adapt is false.
        """
        found = adaptation_to(complaint, body)
        if found is None:
            return False
        if not self.llm.adapt:
            raise UserError(f"{self.base_url} refuses a part of the request ({complaint.reason}); set {found.override}")
        if found not in self.ledger.memory.adapted.get(self.server, []):
            self.ledger.adapt(self.server, found)
            log.warning(
                "%s refuses a part of the request (%s): from now on requests are sent as with %s",
                self.base_url, complaint.reason, found.override,
            )  # fmt: skip
            return True
        return self.sent(body) != body  # another call learned it while this one was in flight
