"""Requests to a chat model, its answers, its settings, and what was spent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from debias.records import Count, Natural, NotNegative, Positive, SomeShare, UserError
from debias.schema import checked

FILTERED = "filtered"  # finish reason of a request that a content filter refused
THINKING = "thinking"  # finish reason of an answer that is nothing but reasoning
MAX_REFUSED = 3  # times that one request may be refused where others are answered


class Message(NamedTuple):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


class Request(NamedTuple):
    """One question to the model. Two requests are the same if their bodies and their sample numbers are."""

    messages: tuple[Message, ...]
    schema: dict[str, Any] | None  # JSON schema of the answer, sent if llm.structured is json_schema
    max_tokens: int  # of the answer
    sample: int = 0  # number that tells apart requests with the same content


class Bound(NamedTuple):
    """Upper bound of one call: tokens, and their prices in dollars per million (None: unknown)."""

    prompt_tokens: int
    completion_tokens: int
    price_prompt: float | None
    price_completion: float | None

    def dollars(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Price of this many tokens; None if it is unknown."""
        if self.price_prompt is None or self.price_completion is None:
            return None
        return (prompt_tokens * self.price_prompt + completion_tokens * self.price_completion) / 1e6

    @property
    def worst(self) -> float:
        """Dollars at most; 0 if the price is unknown, in which case there is no budget."""
        return self.dollars(self.prompt_tokens, self.completion_tokens) or 0.0


class Question(NamedTuple):
    """A request as it is sent."""

    key: str  # identifies it in the ledger
    body: dict[str, Any]
    bound: Bound


class Answer(NamedTuple):
    """The model's answer. Its text is data: never formatted, never executed."""

    key: str  # of the request
    text: str
    finish_reason: str  # stop, length, refusal, content_filter, filtered, thinking, incomplete (broken off), empty
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None  # None: the price is unknown
    request_id: str
    time: str
    model: str  # as the server names it
    cached: bool  # from the ledger, so not paid in this run


class Spent(NamedTuple):
    """What was paid according to the ledger, in this run and before it."""

    calls: int  # answered with status 200
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None  # None: the price of at least one call is unknown
    bounded: int  # calls without a usage report, counted at their upper bound
    lost: int  # calls that were sent and got no reply; they may have been charged
    lost_dollars: float | None  # what those cost at most, in addition to `dollars`; None: a price is unknown


class Outcome(NamedTuple):
    """The end of one `ask`.

    `stopped` is "" (everything was asked), "budget" (the rest would exceed llm.max_cost_usd), "failed" (the server
    stopped answering) or "batch" (submitted or in progress).
    """

    answers: list[Answer | None]  # in the order of the requests; None: not answered
    stopped: str
    reason: str  # in words


class Partner(Protocol):
    """A chat client, or something that knows its answers."""

    async def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> Outcome:
        """Answers in the order of the requests, and why it stopped early."""

    def known(self, requests: Sequence[Request]) -> list[Answer | None]:
        """Answers that were paid for, in the order of the requests."""

    def give_up(self, requests: Sequence[Request]) -> None:
        """Never ask these again: later requests treat them as unanswered."""

    @property
    def spent(self) -> Spent:
        """What was paid so far."""


@dataclass
class Price:
    """Dollars per million tokens, and the day they were looked up."""

    prompt: NotNegative
    completion: NotNegative
    date: str


@dataclass
class LLM:
    """A chat model and its settings; `conf/llm_defaults.yaml` explains the keys, and these types check them."""

    base_url: str | None
    model: str
    api_key_env: str | None
    system_prompt: str | None
    temperature: NotNegative | None
    top_p: SomeShare | None
    seed: int | None
    max_tokens: Count
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"]
    system_role: Literal["system", "user"]
    structured: Literal["json_schema", "json_object", "text"]
    schema_drops: list[str]
    extra_body: dict[str, Any]
    adapt: bool
    timeout: Positive
    max_retries: Natural
    concurrency: Count
    max_cost_usd: NotNegative | None
    batch: bool
    batch_price_factor: NotNegative
    price_prompt: NotNegative | None
    price_completion: NotNegative | None
    priced_on: str | None
    prices: dict[str, Price] = field(default_factory=dict)  # by model
    server: Any = field(default=None)  # config of our own server, see conf/llm/local.yaml
    share: Positive = 1.0
    others: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.extra_body.get("stream"):
            raise UserError("llm.extra_body.stream is not supported; remove it")
        if self.price_prompt is None and self.price_completion is None and self.model in self.prices:
            listed = self.prices[self.model]
            self.price_prompt, self.price_completion, self.priced_on = listed.prompt, listed.completion, listed.date
        if self.max_cost_usd is not None and not self.priced:
            raise UserError(
                f"llm.max_cost_usd is set but the price of {self.model} is unknown; "
                "set llm.price_prompt and llm.price_completion (dollars per million tokens)"
            )

    @property
    def priced(self) -> bool:
        return self.price_prompt is not None and self.price_completion is not None


class ChatModel(NamedTuple):
    """A chat model's settings, where they are in the config, and what starts its server if the program does."""

    llm: LLM
    section: str = "llm"
    server: AbstractContextManager[str] | None = None  # yields the server's address

    @classmethod
    def of(cls, settings: Mapping[str, Any], section: str) -> ChatModel:
        """A section of the config, whose `server` has been built. Raises UserError, which names the section."""
        plain = {name: value for name, value in settings.items() if name != "server"}
        with named(section):
            return cls(checked(LLM, plain, section), section, settings.get("server"))

    def beside(self, writer: ChatModel) -> ChatModel:
        """This model with the writer's budget, and with the writer's prices if it is the same or the server is free."""
        llm, of_writer = self.llm, writer.llm
        free = of_writer.price_prompt == of_writer.price_completion == 0
        prices = {name: getattr(llm, name) for name in ("price_prompt", "price_completion", "priced_on")}
        if not llm.priced and llm.base_url == of_writer.base_url and (llm.model == of_writer.model or free):
            prices = {name: getattr(of_writer, name) for name in prices}
        budgets = [limit for limit in (llm.max_cost_usd, of_writer.max_cost_usd) if limit is not None]
        with named(self.section):
            return self._replace(llm=replace(llm, **prices, max_cost_usd=min(budgets, default=None)))


@contextmanager
def named(section: str) -> Iterator[None]:
    """Errors about a section `llm` name this section."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"(?<![\w.])llm\.(?!others\.)", f"{section}.", str(error))) from error


def body_of(request: Request, llm: LLM) -> dict[str, Any]:
    """The JSON body of a request: everything that its answer depends on."""
    messages = [message._asdict() for message in request.messages]
    if llm.system_prompt is not None:
        turns = [message for message in messages if message["role"] != "system"]
        messages = [{"role": "system", "content": llm.system_prompt}, *turns]
    body: dict[str, Any] = {"model": llm.model, "messages": messages, llm.max_tokens_name: request.max_tokens}
    body |= {name: value for name in ("temperature", "top_p") if (value := getattr(llm, name)) is not None}
    if llm.seed is not None:
        body["seed"] = llm.seed + request.sample  # with one seed, a deterministic server would repeat itself
    if request.schema is not None and llm.structured == "json_schema":
        schema = _without(request.schema, set(llm.schema_drops))
        named = {"name": "answer", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    elif request.schema is not None and llm.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body | llm.extra_body


def key_of(body: dict[str, Any], sample: int) -> str:
    """SHA-256 of the canonical body and the sample number."""
    canonical = json.dumps([body, sample], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def bound_of(body: dict[str, Any], llm: LLM) -> Bound:
    """Upper bound of a call with this body."""
    # No token is shorter than a byte, and the JSON around the messages is longer than any chat template.
    prompt_tokens = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    completion_tokens = body[llm.max_tokens_name] * body.get("n", 1)
    factor = llm.batch_price_factor if llm.batch else 1.0
    prices = [None if price is None else price * factor for price in (llm.price_prompt, llm.price_completion)]
    return Bound(prompt_tokens, completion_tokens, *prices)


def question_of(request: Request, llm: LLM) -> Question:
    """The request as it is sent to this model."""
    body = body_of(request, llm)
    return Question(key_of(body, request.sample), body, bound_of(body, llm))


def _without(schema: Any, words: set[str]) -> Any:
    """A schema without the keywords that a server refuses; properties keep their names, whatever they are."""
    if isinstance(schema, list):
        return [_without(part, words) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: part for key, part in schema.items() if key not in words}
    return {
        key: _properties(part, words) if key == "properties" else _without(part, words) for key, part in kept.items()
    }


def _properties(schema: dict[str, Any], words: set[str]) -> dict[str, Any]:
    return {name: _without(part, words) for name, part in schema.items()}
