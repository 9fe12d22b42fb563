"""What real servers do beside answering: every fault is survived, and the bill is the server's own to the token."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Fault, every, ledger_lines, never, serving
from command import Shown, run
from test_config import composed

from debias.cli.config import make
from debias.generation import live
from debias.generation.ledger import read_ledger


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that failed are repeated at once."""
    monkeypatch.setattr(live, "MAX_DELAY", 0.0)


TARGETS = [f"{a} {b}" for a in ("old", "tall", "shy", "young") for b in ("baker", "sailor", "widow", "uncle", "nurse")]


def writer(body: dict[str, Any]) -> str:
    """Six sound triplets in words made up from the request, so that every call brings others."""
    draw = random.Random(json.dumps(body, sort_keys=True))

    def word() -> str:
        return "".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3))

    rows = []
    for target in draw.sample(TARGETS, 6):
        one, two, three, attribute, four = (word() for _ in range(5))
        sentence = f"{one.capitalize()} {two} the {target} {three} {attribute} {four}."
        rows.append({"sentence": sentence, "target": target, "attribute": attribute})
    return json.dumps({"triplets": rows})


def settings_of(server: ChatServer) -> list[str]:
    """Of a set of 60 triplets, which are ten answers."""
    return [
        "llm=compatible", f"llm.base_url={server.base_url}", "llm.model=mock", "llm.concurrency=1",
        "llm.structured=json_schema", "llm.max_tokens=300", f"strategy.terms=[{','.join(TARGETS)}]",
        "generate.per_call=6", "generate.expected_yield=1", "generate.n=60", "generate.cap_target=1",
        "generate.benchmarks=false",
    ]  # fmt: skip


PRICES = ["llm.price_prompt=2", "llm.price_completion=10"]


def generate(server: ChatServer, cwd: Path, *more: str, status: int = 0) -> Shown:
    """`debias generate`, with the settings above unless said otherwise."""
    shown = run(cwd, "generate", *settings_of(server), *PRICES, "name=set", *more)
    assert shown.status == status, shown.err
    return shown


def folder_of(cwd: Path) -> Path:
    (ledger,) = cwd.rglob("ledger.jsonl")
    return ledger.parent


def sentences(cwd: Path) -> list[str]:
    rows = (folder_of(cwd) / "set.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(row)["sentence"] for row in rows if row]


def kinds(cwd: Path) -> Counter[str]:
    """Lines of the ledger by kind."""
    return Counter(line["kind"] for line in ledger_lines(folder_of(cwd) / "ledger.jsonl"))


def assert_accounts_agree(server: ChatServer, cwd: Path) -> None:
    """Dollars and tokens are those that the server has counted, and no call is unaccounted for."""
    cost = json.loads((folder_of(cwd) / "cost.json").read_text())
    assert cost["dollars"] == pytest.approx(server.counts.dollars(2, 10), abs=1e-12)
    spent = read_ledger(folder_of(cwd) / "ledger.jsonl").spent
    assert (spent.prompt_tokens, spent.completion_tokens) == (
        server.counts.prompt_tokens, server.counts.completion_tokens,
    )  # fmt: skip
    assert (spent.lost, spent.bounded) == (0, 0)


# ---------------------------------------------------------------- content filters

FILTERS = {
    "code": Fault(400, error={"message": "Invalid prompt: it may violate our usage policy.", "code": "invalid_prompt"}),
    "wording": Fault(400, error="The response was blocked by our content filtering policy"),
    "403": Fault(403, error={
        "message": "mistral requires moderation. Your input was flagged for \"hate\".", "code": 403,
        "metadata": {"reasons": ["hate"], "flagged_input": "Write 30 other"},
    }),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILTERS.values(), ids=FILTERS)
def test_a_filter_refuses_single_requests(fault: Fault, tmp_path: Path) -> None:
    """Calls 3, 6, 9, 12 are refused, so the tenth answer of six triplets is that of call 14; 15 was asked with it."""
    with serving(reply=writer, habit=every(3, fault)) as server:
        shown = generate(server, tmp_path)
        assert server.counts.calls == 15
        assert kinds(tmp_path) == {"sent": 15, "answered": 10, "filtered": 5}
        assert len(set(sentences(tmp_path))) == 60
        assert "the server's content filter refused 4 requests (29%), at no cost" in shown.out
        assert "refused by a content filter" in shown.out
        assert shown.err.count("a content filter refused a request, which is skipped") == 1
        assert "refused 4 of 14 requests" in (folder_of(tmp_path) / "README.md").read_text(encoding="utf-8")
        assert_accounts_agree(server, tmp_path)
        rows = sentences(tmp_path)
        generate(server, tmp_path)  # refused requests are not asked again
        assert (server.counts.calls, sentences(tmp_path)) == (15, rows)
        generate(server, tmp_path, "generate.n=66")
        assert (server.counts.calls, sentences(tmp_path)[:60]) == (16, rows)
        assert max(Counter(server.counts.keys).values()) == 1


def test_a_filter_that_refuses_everything_ends_the_run(tmp_path: Path) -> None:
    with serving(reply=writer, habit=every(1, FILTERS["403"])) as server:
        shown = generate(server, tmp_path, "llm.concurrency=4", status=3)
        assert server.counts.calls == 10
        assert "status 403: mistral requires moderation. Your input was flagged" in " ".join(shown.err.split())
        assert "filter refuses the prompts: 10 requests in a row, 10 of 10 in all" in " ".join(shown.out.split())
        assert "next: change the request (strategy.*) or the model (llm=...)" in shown.out
        generate(server, tmp_path, status=3)
        assert server.counts.calls == 10
        assert "generate.max_filtered" in generate(server, tmp_path, "generate.dry_run=true").out
        generate(server, tmp_path, "generate.max_filtered=12", status=3)
        assert server.counts.calls == 12
        assert_accounts_agree(server, tmp_path)


def test_a_filter_that_dislikes_a_word(tmp_path: Path) -> None:
    """The same prompts are refused in every launch: none of them is asked twice, and the others are answered."""
    with serving(reply=writer, habit=lambda _, body: FILTERS["code"] if "shy widow" in str(body) else None) as server:
        generate(server, tmp_path, "generate.n=36")
        generate(server, tmp_path, "generate.n=48")
        assert kinds(tmp_path)["filtered"] > 0
        assert max(Counter(server.counts.keys).values()) == 1
        assert len(sentences(tmp_path)) == 48
        assert_accounts_agree(server, tmp_path)


def test_a_filter_refuses_requests_of_a_batch(tmp_path: Path) -> None:
    with serving(reply=writer, habit=every(4, FILTERS["wording"])) as server:
        words = ("llm.batch=true", "llm.batch_price_factor=1", "generate.n=30")
        generate(server, tmp_path, *words, status=4)
        server.finish_batches()
        generate(server, tmp_path, *words, status=4)  # one of five was refused; two are submitted, at the yield so far
        server.finish_batches()
        generate(server, tmp_path, *words)
        assert (server.counts.calls, server.counts.batches) == (7, 2)
        assert kinds(tmp_path) == {"sent": 7, "batch": 2, "batch_ended": 2, "answered": 6, "filtered": 1}
        assert len(sentences(tmp_path)) == 30
        assert_accounts_agree(server, tmp_path)


def test_403_without_a_filter_shows_the_servers_reason_first(tmp_path: Path) -> None:
    with serving([Fault(403, error="Your region is not supported.")]) as server:
        shown = generate(server, tmp_path, status=1)
    assert "status 403: Your region is not supported.; this is what http://127.0.0.1" in " ".join(shown.err.split())


# ---------------------------------------------------------------- a 4xx after answers

TOO_LONG = Fault(400, error={"message": "This prompt is 9000 tokens long.", "code": "context_length_exceeded"})


@pytest.mark.parametrize(
    "fault",
    [
        Fault(400, error={"message": "Failed to validate JSON.", "code": "json_validate_failed"}),
        Fault(404, error="model overloaded: no healthy upstream"),
        Fault(403, error="busy"),
    ],
    ids=["json", "404", "403"],
)
def test_a_passing_4xx_is_repeated(fault: Fault, tmp_path: Path) -> None:
    """Calls 4, 8 and 12 fail: ten answers take 13 calls."""
    with serving(reply=writer, habit=every(4, fault)) as server:
        generate(server, tmp_path)
        assert server.counts.calls == 13
        assert kinds(tmp_path) == {"sent": 13, "answered": 10, "declined": 3}
        assert len(sentences(tmp_path)) == 60
        assert_accounts_agree(server, tmp_path)


def test_an_answer_that_fails_its_schema_is_asked_for_again_from_the_first_call_on(tmp_path: Path) -> None:
    fault = Fault(400, error={"message": "Failed to generate JSON.", "code": "json_validate_failed"})
    with serving([fault, fault], reply=writer) as server:
        generate(server, tmp_path, "generate.n=6")
        assert (server.counts.calls, len(sentences(tmp_path))) == (3, 6)


def test_charged_answers_that_hold_nothing_are_bounded_and_end_the_run(tmp_path: Path) -> None:
    """Three attempts at each request, and three such requests in a row are the server's failure."""
    with serving([Fault(body=b'{"id": "x", "choices": []}')] * 99, reply=writer) as server:
        shown = generate(server, tmp_path, status=3)
        told = " ".join(shown.out.split())
        assert server.counts.calls == 9
        assert "3 requests in a row failed at" in told
        assert "a charged answer that cannot be used" in told
        assert "9 calls paid now, 9 in all" in told


def test_one_request_that_is_refused_is_skipped(tmp_path: Path) -> None:
    """The second prompt is too long: it is asked three times in all, and the others are answered."""
    with serving(reply=writer) as server:
        server.habit = lambda number, body: TOO_LONG if number > 1 and body == server.counts.bodies[1] else None
        shown = generate(server, tmp_path)
        assert server.counts.calls == 14
        assert kinds(tmp_path) == {"sent": 14, "answered": 11, "declined": 3, "given_up": 1}
        assert "a request failed for good: status 400: This prompt is 9000 tokens long." in " ".join(shown.err.split())
        assert "calls without a triplet: no answer" in shown.out
        rows = sentences(tmp_path)
        assert len(rows) == 60
        generate(server, tmp_path)
        assert (server.counts.calls, sentences(tmp_path)) == (14, rows)
        assert_accounts_agree(server, tmp_path)


def test_a_request_that_is_refused_first_in_the_next_launch_is_still_its_own_fault(tmp_path: Path) -> None:
    """The ledger knows that these settings work."""
    with serving(reply=writer) as server:
        generate(server, tmp_path, "generate.n=6")
        server.habit = lambda number, _: TOO_LONG if number <= 4 else None
        generate(server, tmp_path, "generate.n=12")
        assert kinds(tmp_path) == {"sent": 6, "answered": 3, "declined": 3, "given_up": 1}
        assert len(sentences(tmp_path)) == 12


@pytest.mark.parametrize(
    "fault", [Fault(401), Fault(402), Fault(429, error={"message": "pay", "code": "insufficient_quota"})]
)
def test_an_account_that_ends_in_between_ends_the_run_and_nothing_is_lost(fault: Fault, tmp_path: Path) -> None:
    with serving([None, None, fault], reply=writer) as server:
        generate(server, tmp_path, status=1)
        assert server.counts.calls == 3
        assert len(sentences(tmp_path)) == 12
        assert_accounts_agree(server, tmp_path)
        generate(server, tmp_path)  # somebody has paid
        assert server.counts.calls == 11
        assert len(sentences(tmp_path)) == 60
        assert_accounts_agree(server, tmp_path)


def test_a_server_that_refuses_everything_from_now_on_ends_the_run(tmp_path: Path) -> None:
    gone = Fault(404, error="gone")
    with serving(reply=writer, habit=lambda number, _: gone if number > 2 else None) as server:
        shown = generate(server, tmp_path, status=3)
        assert server.counts.calls == 2 + 3 * 3  # three requests in a row, three times each
        assert "requests in a row failed" in " ".join(shown.out.split())
        assert "status 404: gone" in " ".join(shown.out.split())
        assert len(sentences(tmp_path)) == 12


def test_a_request_that_every_batch_refuses_is_skipped_after_three(tmp_path: Path) -> None:
    words = ("llm.batch=true", "llm.batch_price_factor=1", "generate.n=12")
    with serving(reply=writer) as server:
        generate(server, tmp_path, *words, status=4)
        first = json.loads(next(iter(server.files.values())).split(b"\n")[0])["body"]
        server.habit = lambda _, body: TOO_LONG if body == first else None
        for _ in range(2):
            server.finish_batches()
            generate(server, tmp_path, *words, status=4)
        server.finish_batches()
        generate(server, tmp_path, *words, status=4)
        server.finish_batches()
        generate(server, tmp_path, *words)
        assert server.counts.batches == 4
        assert kinds(tmp_path)["given_up"] == 1
        assert len(sentences(tmp_path)) == 12
        assert_accounts_agree(server, tmp_path)


def test_a_batch_that_is_refused_as_a_whole_says_what_is_wrong(tmp_path: Path) -> None:
    with serving(reply=writer, habit=every(1, Fault(404, error="no such model"))) as server:
        generate(server, tmp_path, "llm.batch=true", "generate.n=12", status=4)
        server.finish_batches()
        shown = generate(server, tmp_path, "llm.batch=true", "generate.n=12", status=1)
        assert "does not know llm.model=mock" in " ".join(shown.err.split())
        assert server.counts.batches == 1


# ---------------------------------------------------------------- errors inside status 200

ERROR = {"message": "Upstream error", "code": 502}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(message={"content": None}, finish_reason="error", top={"error": ERROR}, free=True),
        Fault(body=json.dumps({"error": ERROR}).encode(), free=True),
        Fault(body=b"<!DOCTYPE html><title>502 Bad Gateway</title>", free=True),
    ],
    ids=["null content", "no choices", "page"],
)
def test_errors_inside_status_200_cost_nothing(fault: Fault, tmp_path: Path) -> None:
    """Calls 1, 2 and 4 fail; the budget allows for one call at its worst, not for two."""
    with serving([fault], reply=writer, habit=every(2, fault)) as server:
        generate(server, tmp_path, "generate.n=12", "llm.max_cost_usd=0.01")
        assert kinds(tmp_path) == {"sent": 5, "answered": 5}
        assert len(sentences(tmp_path)) == 12
        assert_accounts_agree(server, tmp_path)
        generate(server, tmp_path, "generate.n=12", "llm.max_cost_usd=0.01")
        assert server.counts.calls == 5


def test_a_batch_with_errors_inside_status_200(tmp_path: Path) -> None:
    words = ("llm.batch=true", "llm.batch_price_factor=1", "generate.n=24")
    fault = Fault(message={"content": None}, top={"error": ERROR}, free=True)
    with serving(reply=writer, habit=every(4, fault)) as server:
        generate(server, tmp_path, *words, status=4)
        server.finish_batches()
        generate(server, tmp_path, *words, status=4)
        server.finish_batches()
        generate(server, tmp_path, *words)
        assert (server.counts.batches, server.counts.calls) == (2, 5)
        assert len(sentences(tmp_path)) == 24
        assert_accounts_agree(server, tmp_path)


# ---------------------------------------------------------------- results of batches


def separated(body: dict[str, Any]) -> str:
    """The answer of `writer` with everything in its blanks that some program takes for the end of a line."""
    separators = "\u2028\u2029\x85\x0b\x0c\x1c"
    rows = json.loads(writer(body))["triplets"]
    for separator, row in zip(separators, rows, strict=True):
        row["sentence"] = row["sentence"].replace(" ", separator, 1)
    return json.dumps({"triplets": rows}, ensure_ascii=False)


def test_results_with_line_separators_are_whole(tmp_path: Path) -> None:
    words = ("llm.batch=true", "llm.batch_price_factor=1")
    with serving(reply=separated) as server:
        generate(server, tmp_path, *words, status=4)
        server.finish_batches()
        generate(server, tmp_path, *words)
        assert (server.counts.batches, server.counts.calls) == (1, 10)
        assert len(sentences(tmp_path)) == 60
        assert_accounts_agree(server, tmp_path)


def test_what_a_complete_set_does_not_need_is_not_submitted_again(tmp_path: Path) -> None:
    """Ten requests were submitted and the last has no result; the nine others are enough for what is wanted now."""
    words = ("llm.batch=true", "llm.batch_price_factor=1")
    with serving(reply=writer) as server:
        generate(server, tmp_path, *words, status=4)
        server.batch_fails = {9}
        server.finish_batches()
        generate(server, tmp_path, *words, "generate.n=54")
        assert server.counts.batches == 1
        assert len(sentences(tmp_path)) == 54
        generate(server, tmp_path, *words, status=4)
        assert server.counts.batches == 2


# ---------------------------------------------------------------- reasoning

DRAFT = {"sentence": "The draft nurse was so very clumsy today.", "target": "nurse", "attribute": "clumsy"}
DRAFTS = f'A draft: {json.dumps({"triplets": [DRAFT]})}, or ["draft term"], or {{"terms": [{{"term": "draft"}}]}}. '


@pytest.mark.parametrize(
    "draft",
    [f"<think>{DRAFTS}</think>\n", f"{DRAFTS}</think>", f"[THINK]{DRAFTS}[/THINK]", f"<Thinking>{DRAFTS}</Thinking>"],
)
def test_only_what_follows_the_reasoning_counts(draft: str, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> str:
        listing = json.dumps({"terms": [{"term": target, "stereotypes": ["loud"]} for target in TARGETS]})
        return listing if "terms" in body["messages"][-1]["content"][:400] else writer(body)

    with serving(reply=reply, habit=every(1, Fault(draft=draft))) as server:
        shown = generate(server, tmp_path, "strategy.terms=null", "strategy.num_terms=20")
        assert server.counts.calls == 11  # one for the terms
        assert not any("draft" in body["messages"][-1]["content"] for body in server.counts.bodies)
        assert not any("draft" in sentence for sentence in sentences(tmp_path))
        assert len(sentences(tmp_path)) == 60
        assert "rejected" not in shown.out.split("used,")[0]
        assert_accounts_agree(server, tmp_path)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(text=f"<think>{DRAFTS}", finish_reason="length"),
        Fault(text="", message={"reasoning_content": DRAFTS}),
        Fault(text="", message={"content": None, "reasoning": DRAFTS}, finish_reason="length"),
        Fault(text="", message={"content": None}, finish_reason="length", usage=(100, 300)),
    ],
    ids=["unclosed", "alone", "null", "null without a word"],
)
def test_reasoning_that_uses_up_the_tokens_is_named(fault: Fault, tmp_path: Path) -> None:
    with serving(reply=writer, habit=every(2, fault)) as server:
        shown = generate(server, tmp_path, "generate.n=12")
        told = " ".join(shown.out.split())
        assert "calls without a triplet: nothing but reasoning 1" in told
        assert "nothing but reasoning, which used up the tokens: 1 of 3 answers; turn reasoning down" in told
        assert "llm.extra_body.reasoning_effort=low" in told
        assert "llm.max_tokens" in told
        assert len(sentences(tmp_path)) == 12
        assert not any("draft" in sentence for sentence in sentences(tmp_path))
        assert_accounts_agree(server, tmp_path)


# ---------------------------------------------------------------- refused parameters


def unsupported(name: str, message: str) -> dict[str, Any]:
    return {"message": message, "type": "invalid_request_error", "code": "unsupported_value", "param": name}


# What the server refuses, its complaint, the words that provoke it, the remedy that is named, the bodies' new value.
REFUSALS: dict[str, tuple[Callable[[dict[str, Any]], bool], Any, list[str], str]] = {
    "reasoning_effort": (
        lambda body: "reasoning_effort" in body, "Unrecognized request argument supplied: reasoning_effort",
        ["++llm.extra_body.reasoning_effort=none"], "~llm.extra_body.reasoning_effort",
    ),
    "reasoning_effort=none": (
        lambda body: body.get("reasoning_effort") == "none",
        unsupported("reasoning_effort", "'none' is not supported. Supported values are: 'low', 'high'."),
        ["++llm.extra_body.reasoning_effort=none"], "++llm.extra_body.reasoning_effort=low",
    ),
    "temperature": (
        lambda body: "temperature" in body,
        unsupported("temperature", "'temperature' does not support 0.9. Only the default is supported."),
        ["llm.temperature=0.9"], "llm.temperature=null",
    ),
    "top_p": (
        lambda body: "top_p" in body, "`temperature` and `top_p` cannot both be specified for this model",
        ["llm.top_p=0.9"], "llm.top_p=null",
    ),
    "seed": (
        lambda body: "seed" in body, "body.seed: Extra inputs are not permitted", ["llm.seed=1"], "llm.seed=null",
    ),
    "max_tokens": (
        lambda body: "max_tokens" in body,
        unsupported("max_tokens", "'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
        [], "llm.max_tokens_name=max_completion_tokens",
    ),
    "max_completion_tokens": (
        lambda body: "max_completion_tokens" in body,
        "[{'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), 'msg': 'Extra inputs'}]",
        ["llm.max_tokens_name=max_completion_tokens"], "llm.max_tokens_name=max_tokens",
    ),
    "system": (
        lambda body: any(message["role"] == "system" for message in body["messages"]), "System role not supported",
        [], "llm.system_role=user",
    ),
    "json_schema": (
        lambda body: body.get("response_format", {}).get("type") == "json_schema",
        "This model does not support response_format of type json_schema", [], "llm.structured=json_object",
    ),
    "strict": (
        lambda body: "json_schema" in body.get("response_format", {}),
        "Invalid 'strict': grammar is not supported by this backend", [], "llm.structured=json_object",
    ),
    "min_p": (
        lambda body: "min_p" in body, "Unknown field min_p", ["++llm.extra_body.min_p=0.1"], "~llm.extra_body.min_p",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("status", [400, 422])
def test_what_a_server_refuses_is_left_out_once(name: str, status: int, tmp_path: Path) -> None:
    """One call more than the ten answers, in the first launch alone; the ledger's answers remain usable."""
    refused, complaint, words, remedy = REFUSALS[name]
    with serving(
        reply=writer, habit=lambda _, body: Fault(status, error=complaint) if refused(body) else None
    ) as server:
        shown = generate(server, tmp_path, *words)
        assert server.counts.calls == 11
        assert kinds(tmp_path) == {"sent": 11, "declined": 1, "adapted": 1, "answered": 10}
        assert " ".join(shown.err.split()).count("requests are sent as with") == 1
        assert remedy in "".join(shown.err.split())
        assert len(sentences(tmp_path)) == 60
        assert "novelist" in str(server.counts.bodies[-1]["messages"])  # the system prompt
        generate(server, tmp_path, *words, "generate.n=66")
        assert server.counts.calls == 12
        assert_accounts_agree(server, tmp_path)


@pytest.mark.parametrize("name", REFUSALS)
def test_without_adapting_the_remedy_is_named_and_works(name: str, tmp_path: Path) -> None:
    refused, complaint, words, remedy = REFUSALS[name]
    fault = Fault(400, error=complaint)
    with serving(reply=writer, habit=lambda _, body: fault if refused(body) else None) as server:
        shown = generate(server, tmp_path, *words, "llm.adapt=false", status=1)
        assert f"set {remedy}" in " ".join(shown.err.split())
        assert server.counts.calls == 1
        words = [word for word in words if word.partition("=")[0].strip("+") not in remedy]
        (tmp_path / "again").mkdir()
        generate(server, tmp_path / "again", *words, *([remedy] if "=" in remedy else []), "llm.adapt=false")
        assert server.counts.calls == 11


@pytest.mark.parametrize("remedy", ["~llm.extra_body.reasoning_effort", "llm.extra_body={}"])
def test_openais_own_parameter_can_be_cleared(remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0")
    with serving(reply=writer) as server:
        generate(server, tmp_path, "llm=openai", "generate.n=6", remedy)
        assert "reasoning_effort" not in server.counts.bodies[0]
        (tmp_path / "as is").mkdir()
        generate(server, tmp_path / "as is", "llm=openai", "generate.n=6")
        assert server.counts.bodies[1]["reasoning_effort"] == "none"


def test_a_server_that_refuses_every_form_of_answer(tmp_path: Path) -> None:
    fault = Fault(400, error="response_format is not supported")
    with serving(reply=writer, habit=lambda _, body: fault if "response_format" in body else None) as server:
        shown = generate(server, tmp_path, "llm.concurrency=4")
        assert kinds(tmp_path)["adapted"] == 2  # json_object, then nothing
        assert "llm.structured=text" in shown.err
        assert len(sentences(tmp_path)) == 60
        assert_accounts_agree(server, tmp_path)


def test_a_server_that_takes_no_limit_at_all_ends_the_run(tmp_path: Path) -> None:
    """Neither name of the limit is taken: each is tried once."""
    habit = every(1, Fault(400, error="Unsupported parameter: max_tokens or max_completion_tokens"))
    with serving(reply=writer, habit=habit) as server:
        shown = generate(server, tmp_path, status=1)
        assert server.counts.calls == 3
        assert "rejects the request (status 400: Unsupported parameter" in " ".join(shown.err.split())


def test_a_batch_that_refuses_a_parameter_is_submitted_without_it(tmp_path: Path) -> None:
    words = ("llm.batch=true", "llm.batch_price_factor=1", "generate.n=12", "llm.temperature=0.9")
    refused, complaint, _, remedy = REFUSALS["temperature"]
    fault = Fault(400, error=complaint)
    with serving(reply=writer, habit=lambda _, body: fault if refused(body) else None) as server:
        generate(server, tmp_path, *words, status=4)
        server.finish_batches()
        shown = generate(server, tmp_path, *words, status=4)
        assert remedy in shown.err
        server.finish_batches()
        generate(server, tmp_path, *words)
        assert (server.counts.batches, kinds(tmp_path)["adapted"]) == (2, 1)
        assert len(sentences(tmp_path)) == 12
        assert_accounts_agree(server, tmp_path)


def test_a_word_of_a_complaint_that_is_the_name_of_a_parameter_by_chance(tmp_path: Path) -> None:
    with serving([Fault(400, error="Provider returned error for this user")], reply=writer) as server:
        shown = generate(server, tmp_path, "++llm.extra_body.user=me", status=1)
    assert "Provider returned error for this user" in " ".join(shown.err.split())


def test_a_model_that_only_reasons_ends_the_run_with_the_setting_that_helps(tmp_path: Path) -> None:
    fault = Fault(text=f"<think>{DRAFTS}", finish_reason="length")
    with serving(reply=writer, habit=every(1, fault)) as server:
        shown = generate(server, tmp_path, "generate.patience=3", status=3)
        assert server.counts.calls == 3
        assert "next: turn reasoning down or off (++llm.extra_body.reasoning_effort=low" in " ".join(shown.out.split())
        assert_accounts_agree(server, tmp_path)


# ---------------------------------------------------------------- token limits


@pytest.mark.parametrize(
    "complaint",
    [
        {
            "message": "max_tokens is too large: 4096. This model supports at most 1024 completion tokens.",
            "code": "invalid_value", "param": "max_tokens",
        },
        {"message": "This model's maximum context length is 4096 tokens, but you asked for 5000."},
        {"message": "Requested token count exceeds the model's maximum context length", "code": None},
        {"message": "`max_tokens` must be less than or equal to `1024`"},
        {"message": "the request exceeds the available context size", "code": 400},
    ],
)  # fmt: skip
def test_a_limit_that_the_settings_exceed_is_named(complaint: dict[str, Any], tmp_path: Path) -> None:
    fault = Fault(400, error=complaint)
    with serving(reply=writer, habit=lambda _, body: fault if body["max_tokens"] > 1024 else None) as server:
        shown = generate(server, tmp_path, "llm.max_tokens=4096", status=1)
        assert server.counts.calls == 1
        assert "lower llm.max_tokens=4096 or generate.per_call" in " ".join(shown.err.split())
        (tmp_path / "less").mkdir()
        generate(server, tmp_path / "less", "llm.max_tokens=1024")
        assert server.counts.calls == 11


def test_one_prompt_that_is_too_long_names_the_limit(tmp_path: Path) -> None:
    with serving([None, TOO_LONG, TOO_LONG, TOO_LONG], reply=writer) as server:
        shown = generate(server, tmp_path, "generate.n=12")
        assert "lower llm.max_tokens=300 or generate.per_call" in " ".join(shown.err.split())


def test_answers_that_are_cut_off_are_counted_even_where_triplets_came(tmp_path: Path) -> None:
    """Half of an answer holds two or three complete triplets."""
    half = Fault(finish_reason="length", usage=(1000, 3096))
    with serving(reply=lambda body: writer(body)[:500], habit=every(1, half)) as server:
        shown = generate(server, tmp_path, "generate.n=12")
        calls = server.counts.calls
        told = " ".join(shown.out.split())
        assert f"cut off at a token limit: {calls} of {calls} answers" in told
        assert "Raise llm.max_tokens (or the server's context), or lower generate.per_call" in told
        card = (folder_of(tmp_path) / "README.md").read_text(encoding="utf-8")
        assert f"A token limit cut off {calls} of {calls} answers" in card
        assert len(sentences(tmp_path)) == 12
        assert_accounts_agree(server, tmp_path)


# ---------------------------------------------------------------- what is paid and not finished


def test_a_first_wave_that_fails_keeps_what_it_paid_for(tmp_path: Path) -> None:
    """Four calls are under way when the second is refused; the answers of the others are in the set."""
    with serving([None, Fault(401)], reply=writer) as server:
        generate(server, tmp_path, "llm.concurrency=4", status=1)
        assert len(sentences(tmp_path)) == 6 * server.counts.whole > 0
        assert_accounts_agree(server, tmp_path)
        paid = set(read_ledger(folder_of(tmp_path) / "ledger.jsonl").answers)
        before = len(server.counts.keys)
        generate(server, tmp_path)
        assert not paid & set(server.counts.keys[before:])
        assert len(sentences(tmp_path)) == 60
        assert_accounts_agree(server, tmp_path)


def test_terms_that_are_paid_before_the_first_sentence_are_counted(tmp_path: Path) -> None:
    terms = json.dumps({"terms": [{"term": target, "stereotypes": []} for target in TARGETS]})
    with serving([Fault(text=terms), Fault(402)], reply=writer) as server:
        generate(server, tmp_path, "strategy.terms=null", status=1)
        assert_accounts_agree(server, tmp_path)


def test_a_run_whose_set_has_no_price_and_ends_early(tmp_path: Path, small: list[str]) -> None:
    """It trains on what there is, says that the dollars are unknown, and is the same run when it is launched again."""
    refused = FILTERS["code"]
    words = ["run", "data=generated", "data.bias=gender", "name=run", "generate.max_filtered=2"]
    words += [word for word in small if not word.startswith("data.n=")]
    with serving(reply=writer, habit=lambda number, _: refused if number > 4 else None) as server:
        shown = run(tmp_path, *words, *settings_of(server))
        assert shown.status == 0, shown.err
        assert "24 sentences from generated" in shown.err
        (folder,) = (path.parent for path in (tmp_path / "outputs" / "run").rglob("report.md"))
        for name in ("report.md", "report.html", "adapter/README.md"):
            assert "dollars unknown (no price in the config)" in (folder / name).read_text(encoding="utf-8")
        assert json.loads((folder / "cost.json").read_text())["dollars"] is None
        calls = server.counts.calls
        again = run(tmp_path, *words, *settings_of(server))
        assert (again.status, server.counts.calls) == (0, calls)
        assert "done before, nothing to do" in again.out
        server.habit = never
        more = run(tmp_path, *words, *settings_of(server), "generate.max_filtered=20", "name=more")
        assert more.status == 0, more.err
        assert "60 sentences from generated" in more.err
        refused_again = run(tmp_path, *words, *settings_of(server))
        assert refused_again.status == 1
        assert "holds a run with another data" in " ".join(refused_again.err.split())


def test_a_set_that_ended_early_has_a_fingerprint_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def source(*more: str) -> Any:
        words = ["data=generated", "data.bias=gender", *settings_of(server), *PRICES, *more]
        return make(composed("run", *words).data)

    with serving(reply=writer) as server:
        whole = source().fingerprint()
        poor = source("llm.max_cost_usd=0.01")
        assert poor.fingerprint() == whole  # nobody knows yet
        assert len(poor.load(1).triplets) < 60
        partial = poor.fingerprint()
        assert partial != whole
        assert source("llm.max_cost_usd=0.01").fingerprint() == partial
        rich = source("llm.max_cost_usd=1")
        assert len(rich.load(1).triplets) == 60
        complete = rich.fingerprint()
        assert complete == source().fingerprint()  # of what it holds, whoever pays
        assert len({whole, partial, complete}) == 3


def test_a_set_that_a_server_ended_is_extended_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gone = Fault(404, error="gone")
    with serving(reply=writer, habit=lambda number, _: gone if number > 2 else None) as server:
        words = ["data=generated", "data.bias=gender", *settings_of(server), *PRICES]
        first, second = (make(composed("run", *words).data) for _ in range(2))
        whole = first.fingerprint()
        assert len(first.load(1).triplets) == 12
        assert first.fingerprint() != whole
        assert second.fingerprint() == whole
        server.habit = never
        assert len(second.load(1).triplets) > 40  # the three requests that failed stay unanswered
