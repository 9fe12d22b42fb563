"""The chat client against a server that misbehaves: every fault, every mistake, and a key nobody may see."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import Fault, ask, ledger_lines, question, serving, settings, whole

from debias.generation import live
from debias.generation.client import Chat
from debias.generation.complaints import wait_of
from debias.generation.exchange import question_of
from debias.generation.ledger import Ledger
from debias.records import UserError

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "out.ledger.jsonl"


# ---------------- answers, paid once


def test_answers_come_in_the_order_of_the_requests(ledger: Path) -> None:
    requests = [question(f"number {i}") for i in range(12)]
    with serving() as server:
        outcome, arrived, spent = ask(settings(server.base_url), ledger, requests)
    assert [f"number {i}" in answer.text for i, answer in enumerate(outcome.answers) if answer] == [True] * 12
    assert (outcome.stopped, outcome.reason) == ("", "")
    assert sorted(arrived) == sorted(a for a in outcome.answers if a)
    first = outcome.answers[0]
    assert first is not None
    assert (first.finish_reason, first.model, first.cached, first.prompt_tokens) == ("stop", "mock-1", False, 2)
    assert first.request_id.startswith("req-")
    assert spent.calls == server.counts.calls == 12


def test_what_the_ledger_holds_is_not_asked_again(ledger: Path) -> None:
    old, new = [question(f"old {i}") for i in range(4)], [question(f"new {i}") for i in range(3)]
    with serving() as server:
        before, _, _ = ask(settings(server.base_url), ledger, old)
        outcome, arrived, spent = ask(settings(server.base_url), ledger, [*new, *old, *old])
        assert server.counts.calls == 7
    assert [answer.text for answer in outcome.answers[3:7] if answer] == [a.text for a in before.answers if a]
    assert [answer.cached for answer in outcome.answers if answer] == [False] * 3 + [True] * 8
    assert len(arrived) == 7  # each answer once
    assert spent.calls == 7


def test_the_same_content_as_another_sample_is_another_request(ledger: Path) -> None:
    with serving() as server:
        outcome, _, _ = ask(settings(server.base_url), ledger, [question("x", sample) for sample in range(3)])
    assert len({answer.key for answer in outcome.answers if answer}) == server.counts.calls == 3
    assert sorted(body["seed"] for body in server.counts.bodies) == [1, 2, 3]


def test_a_request_named_twice_is_asked_once(ledger: Path) -> None:
    with serving() as server:
        outcome, arrived, _ = ask(settings(server.base_url), ledger, [question("x"), question("x")])
    assert server.counts.calls == len(arrived) == 1
    assert outcome.answers[0] == outcome.answers[1]


def test_concurrency_is_bounded_and_used(ledger: Path) -> None:
    with serving(before=lambda server, _: server.wait_until(lambda: server.counts.at_once >= 3)) as server:
        ask(settings(server.base_url, concurrency=3), ledger, [question(str(i)) for i in range(12)])
    assert server.counts.at_once == 3


# ---------------- faults


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_passing_faults_are_repeated_at_no_cost(status: int, ledger: Path) -> None:
    with serving([Fault(status), Fault(status)]) as server:
        outcome, _, spent = ask(settings(server.base_url), ledger, [question("x")])
        assert outcome.answers[0] is not None
        assert (server.counts.calls, spent.calls, spent.lost) == (3, 1, 0)
        assert spent.dollars == pytest.approx(server.counts.dollars(2, 10))
    assert [line["kind"] for line in ledger_lines(ledger)] == ["sent", "declined"] * 2 + ["sent", "answered"]
    assert len(set(server.counts.keys)) == 1  # one Idempotency-Key for one request


def test_retry_after_is_honoured_and_holds_for_everybody(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question that was refused and the two behind it are all told to wait; here nobody does."""
    waits: list[float] = []

    async def pause(_: live.Live, seconds: float, end: live.End) -> None:
        waits.extend([seconds] if seconds > 0 else [])

    monkeypatch.setattr(live.Live, "_pause", pause)
    with serving([Fault(429, {"Retry-After": "400"})]) as server:
        ask(settings(server.base_url, concurrency=1), ledger, [question(str(i)) for i in range(3)])
    assert len(waits) == 3
    assert all(300 < seconds <= 400 for seconds in waits)
    assert server.counts.calls == 4


def test_a_wait_beyond_patience_ends_the_run_in_words(ledger: Path) -> None:
    with serving([Fault(429, {"Retry-After": "3600"})]) as server:
        outcome, _, _ = ask(settings(server.base_url, concurrency=1), ledger, [question("x"), question("y")])
    assert (outcome.stopped, outcome.answers, server.counts.calls) == ("failed", [None, None], 1)
    assert "asks to wait 3600 seconds" in outcome.reason


def test_retry_after_in_all_its_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 784111777.0 - 30)  # the date below is 784111777
    assert wait_of({"retry-after": "2.5"}) == 2.5
    assert wait_of({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert wait_of({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 30
    assert wait_of({"retry-after": "-3"}) == 0
    assert wait_of({"retry-after": "soon"}) is None
    assert wait_of({}) is None


def test_a_request_that_fails_for_good_does_not_end_the_run(ledger: Path) -> None:
    with serving([Fault(500)] * 4) as server:
        llm = settings(server.base_url, concurrency=1, max_retries=3)
        outcome, _, _ = ask(llm, ledger, [question("x"), question("y")])
    assert [answer is None for answer in outcome.answers] == [True, False]
    assert outcome.stopped == ""


def test_a_server_that_only_fails_ends_the_run_in_words(ledger: Path) -> None:
    with serving([Fault(500, error="out of order")] * 99) as server:
        llm = settings(server.base_url, concurrency=1, max_retries=0)
        outcome, _, _ = ask(llm, ledger, [question(str(i)) for i in range(20)])
    assert (outcome.stopped, server.counts.calls) == ("failed", 3)
    assert "3 requests in a row failed" in outcome.reason
    assert "out of order" in outcome.reason


def test_silence_before_the_body_counts_as_perhaps_paid(ledger: Path) -> None:
    with serving([Fault(silent=True)]) as server:
        outcome, _, spent = ask(settings(server.base_url, timeout=1), ledger, [question("x")])
        worst = question_of(question("x"), settings("http://x")).bound.worst
    assert outcome.answers[0] is not None
    assert (spent.calls, spent.lost, spent.lost_dollars) == (1, 1, pytest.approx(worst))


@pytest.mark.parametrize("fault", [Fault(cut=290), Fault(silent_body=True, cut=290)], ids=["cut", "stalled"])
def test_a_body_cut_off_is_kept_up_to_the_cut(fault: Fault, ledger: Path) -> None:
    with serving([fault]) as server:
        outcome, _, spent = ask(settings(server.base_url, timeout=1), ledger, [question("x")])
        again, _, _ = ask(settings(server.base_url), ledger, [question("x")])
    answer = outcome.answers[0]
    assert answer is not None
    assert answer.finish_reason == "incomplete"
    assert answer.text.startswith('{"triplets": [{"sentence": "The nurse')
    assert server.counts.calls == 1  # it is an answer: not asked again, in this run or the next
    assert again.answers == [answer._replace(cached=True)]
    bound = question_of(question("x"), settings("http://x")).bound  # no usage arrived
    assert (spent.bounded, spent.prompt_tokens, spent.completion_tokens) == (1, bound.prompt_tokens, 100)
    assert spent.dollars is not None
    assert spent.dollars > server.counts.dollars(2, 10)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=b""),
        Fault(cut=40),
        Fault(body=b'{"choices": []}'),
        Fault(body=b'[{"choices": 1}]'),
        Fault(body=b'{"choices": [{"message": null}]}'),
    ],
    ids=["empty", "cut early", "no choice", "a list", "no message"],
)
def test_a_200_without_an_answer_is_recorded_and_asked_again(fault: Fault, ledger: Path) -> None:
    with serving([fault]) as server:
        outcome, _, spent = ask(settings(server.base_url), ledger, [question("x")])
    assert outcome.answers[0] is not None
    assert (server.counts.calls, spent.calls, spent.bounded) == (2, 2, 1)
    assert server.counts.keys[1] == f"{server.counts.keys[0]}-1"  # the broken answer is not wanted a second time


ERROR = {"message": "Provider rate limited", "code": 429}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=json.dumps({"error": ERROR}).encode(), free=True),
        Fault(body=b'{"error": "overloaded"}', free=True),
        Fault(body=b"<html><title>Bad\n gateway</title></html>", free=True),
        Fault(message={"content": None}, top={"error": ERROR}, free=True),
        Fault(top={"choices": [{"message": {"content": ""}, "error": ERROR, "finish_reason": "error"}]}, free=True),
    ],
    ids=["alone", "in words", "html", "beside null", "in the choice"],
)
def test_an_error_inside_status_200_costs_nothing_and_is_asked_again(fault: Fault, ledger: Path) -> None:
    with serving([fault, fault]) as server:
        outcome, _, spent = ask(settings(server.base_url), ledger, [question("x")])
        assert outcome.answers[0] is not None
        assert (server.counts.calls, spent.calls, spent.bounded, spent.lost) == (3, 1, 0, 0)
        assert spent.dollars == pytest.approx(server.counts.dollars(2, 10))
    assert [line["kind"] for line in ledger_lines(ledger)] == ["sent", "answered"] * 3
    assert len(set(server.counts.keys)) == 3


def test_an_error_inside_status_200_with_usage_is_paid(ledger: Path) -> None:
    with serving([Fault(message={"content": None}, top={"error": ERROR}, usage=(7, 3))]) as server:
        outcome, _, spent = ask(settings(server.base_url), ledger, [question("x")])
        assert outcome.answers[0] is not None
        assert (server.counts.calls, spent.calls, spent.bounded) == (2, 2, 0)
        assert spent.dollars == pytest.approx(server.counts.dollars(2, 10))


def test_an_answer_that_an_error_ends_is_kept_as_far_as_it_came(ledger: Path) -> None:
    with serving([Fault(text="a part", finish_reason="error", top={"error": ERROR})]) as server:
        outcome, _, spent = ask(settings(server.base_url), ledger, [question("x")])
    assert [(a.text, a.finish_reason) for a in outcome.answers if a] == [("a part", "incomplete")]
    assert (server.counts.calls, spent.bounded) == (1, 0)


def test_a_filter_inside_status_200(ledger: Path) -> None:
    refused = {"message": "x requires moderation on y.", "code": 403}
    with serving([Fault(body=json.dumps({"error": refused}).encode(), free=True)]) as server:
        outcome, _, spent = ask(settings(server.base_url), ledger, [question("x")])
    assert [a.finish_reason for a in outcome.answers if a] == ["filtered"]
    assert (server.counts.calls, spent.calls, spent.dollars) == (1, 0, 0)


def test_a_server_that_only_has_errors_inside_status_200_ends_the_run_in_words(ledger: Path) -> None:
    with serving([Fault(body=json.dumps({"error": ERROR}).encode(), free=True)] * 99) as server:
        llm = settings(server.base_url, concurrency=1, max_retries=1)
        outcome, _, spent = ask(llm, ledger, [question(str(i)) for i in range(9)])
    assert (outcome.stopped, server.counts.calls, spent.dollars) == ("failed", 6, 0)
    assert "the server's error: Provider rate limited" in outcome.reason


def test_broken_answers_are_bounded(ledger: Path) -> None:
    with serving([Fault(body=b"")] * 9) as server:
        outcome, _, spent = ask(settings(server.base_url, max_retries=9), ledger, [question("x")])
    assert (outcome.answers, server.counts.calls, spent.calls) == ([None], live.MAX_BROKEN, live.MAX_BROKEN)


@pytest.mark.parametrize(
    ("fault", "finish_reason", "text"),
    [
        (Fault(text='[{"sentence": "The', finish_reason="length"), "length", '[{"sentence": "The'),
        (Fault(text="", message={"refusal": "I cannot."}), "refusal", "I cannot."),
        (Fault(text="", finish_reason="content_filter"), "content_filter", ""),
        (Fault(text='{"rows": 3}'), "stop", '{"rows": 3}'),
        (Fault(text=" "), "empty", " "),
        (Fault(text="x", finish_reason="eos"), "stop", "x"),
        (Fault(message={"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}), "stop", "ab"),
    ],
    ids=["length", "refusal", "filtered", "wrong schema", "empty", "unknown reason", "parts"],
)
def test_odd_answers_are_answers(fault: Fault, finish_reason: str, text: str, ledger: Path) -> None:
    with serving([fault]) as server:
        outcome, _, _ = ask(settings(server.base_url), ledger, [question("x")])
    answer = outcome.answers[0]
    assert answer is not None
    assert (answer.finish_reason, answer.text, server.counts.calls) == (finish_reason, text, 1)


def test_everything_at_once_loses_nothing(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text that went out whole with a 200 is in the ledger, no fault ends the run, and the bills agree."""
    faults: list[Fault | None] = [
        Fault(429, {"Retry-After": "0.05"}), Fault(429), Fault(500), Fault(503), Fault(silent=True), Fault(cut=300),
        Fault(body=b""), Fault(body=b"{}"), Fault(text="cut short", finish_reason="length"), None,
        Fault(text="", message={"refusal": "no"}), Fault(cut=0), Fault(silent_body=True),
    ] * 2  # fmt: skip
    random.Random(3).shuffle(faults)
    monkeypatch.setattr(live, "MAX_BROKEN", 9)
    with serving(faults) as server:
        llm = settings(server.base_url, timeout=0.7, max_retries=9)
        outcome, _, spent = ask(llm, ledger, [question(f"number {i}") for i in range(30)])
        server.wait_until_idle()
        recorded = " ".join(json.loads(line["body"])["choices"][0]["message"]["content"] for line in whole(ledger))
        assert all(text in recorded for text in server.counts.texts if text)
    assert None not in outcome.answers
    assert spent.calls + spent.lost == server.counts.whole + server.counts.partly


# ---------------- mistakes that the user can fix


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(401, error=f"Incorrect key {KEY}"),
            r"refuses the key in TEST_KEY \(status 401: Incorrect key \[key\]\)",
        ),
        (Fault(403, error="not here"), "status 403: not here; this is what .* answers to the key in TEST_KEY"),
        (Fault(404, error="no such model"), r"does not know llm.model=mock.*no such model"),
        (Fault(402), "no money left"),
        (Fault(429, error={"message": "pay", "code": "insufficient_quota"}), "no money left"),
        (Fault(400, error="y" * 999), r"rejects the request \(status 400: y{200}\.\.\.\)"),
    ],
    ids=["401", "403", "404", "402", "quota", "long"],
)
def test_mistakes_are_told_in_one_line(fault: Fault, said: str, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with serving([fault] * 9) as server, pytest.raises(UserError, match=said) as caught:
        ask(settings(server.base_url, api_key_env="TEST_KEY", concurrency=1), ledger, [question("x"), question("y")])
    assert server.counts.calls == 1
    assert "\n" not in str(caught.value)


def test_no_key(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(UserError, match="set TEST_KEY in the environment"):
        ask(settings("http://localhost:1/v1", api_key_env="TEST_KEY"), ledger, [question("x")])
    assert not ledger.exists()


def test_nobody_listens(ledger: Path) -> None:
    with serving() as server:
        address = server.base_url
    with pytest.raises(UserError, match=r"no server answers at http://127.0.0.1:\d+/v1 .*is it running"):
        ask(settings(address), ledger, [question("x")])


def test_an_address_that_is_none(ledger: Path) -> None:
    with pytest.raises(UserError, match=r"llm\.base_url=localhost:8000 must be an address"):
        ask(settings("localhost:8000"), ledger, [question("x")])


@pytest.mark.parametrize(
    "complaint",
    [
        {"message": "Filtered.", "code": "content_filter"},
        {"message": "Your request was rejected by our safety system."},
        {"message": "The prompt was filtered by Azure OpenAI's content management policy."},
        {"message": "Input data may contain inappropriate content.", "code": "data_inspection_failed"},
        {"message": "This request seems to violate our acceptable use policy."},
        {"message": "x requires moderation on y.", "code": 403, "metadata": {"reasons": ["hate"]}},
    ],
)
def test_a_prompt_that_a_filter_refuses_has_an_empty_answer(complaint: dict[str, Any], ledger: Path) -> None:
    with serving([Fault(400, error=complaint)]) as server:
        outcome, _, spent = ask(settings(server.base_url, concurrency=1), ledger, [question("x"), question("y")])
        again, _, _ = ask(settings(server.base_url), ledger, [question("x"), question("y")])
    assert [(a.finish_reason, bool(a.text), a.dollars == 0) for a in outcome.answers if a] == [
        ("filtered", False, True), ("stop", True, False),
    ]  # fmt: skip
    assert (server.counts.calls, spent.calls) == (2, 1)
    assert [a.text for a in again.answers if a] == [a.text for a in outcome.answers if a]


@pytest.mark.parametrize("message", ["model is required", "Unknown parameter: 'x'", "this policy is unknown"])
def test_other_refusals_are_not_those_of_a_filter(message: str, ledger: Path) -> None:
    with serving([Fault(400, error=message)]) as server, pytest.raises(UserError, match=message):
        ask(settings(server.base_url), ledger, [question("x")])


def test_what_is_in_flight_is_recorded_before_a_mistake_is_told(ledger: Path) -> None:
    faults = [Fault(401), None, None, None]
    together = serving(faults, before=lambda server, _: server.wait_until(lambda: server.counts.calls >= 4))
    with together as server, pytest.raises(UserError):
        ask(settings(server.base_url), ledger, [question(str(i)) for i in range(9)])
    assert server.counts.calls < 9
    assert len(whole(ledger)) == server.counts.whole >= 3


def test_a_failing_reader_of_answers_ends_the_run_with_its_own_error(ledger: Path) -> None:
    async def run(base_url: str) -> None:
        with Ledger(ledger) as opened:
            async with Chat(settings(base_url), opened) as chat:
                await chat.ask([question(str(i)) for i in range(9)], lambda answer: 1 / 0)  # type: ignore[arg-type, return-value]

    with serving() as server, pytest.raises(ZeroDivisionError):
        asyncio.run(run(server.base_url))
    assert 1 <= len(whole(ledger)) == server.counts.calls <= 4


# ---------------- the key


def test_the_key_is_nowhere(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server echoes the key in an answer, in an error, in a header and in a body cut off."""
    monkeypatch.setenv("TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"choices": [{"message": {"content": f"your key is {KEY}"}}]}).encode()
    faults = [
        Fault(text=f"your key is {KEY}"), Fault(500, error=f"key {KEY}"), Fault(headers={"x-request-id": KEY}),
        Fault(body=echo + b" " * 500, cut=len(echo)), Fault(401, error=f"no: {KEY}"),
    ]  # fmt: skip
    requests = [question(str(i)) for i in range(9)]
    with serving(faults) as server, pytest.raises(UserError) as caught:
        ask(settings(server.base_url, api_key_env="TEST_KEY", concurrency=1), ledger, requests)
    assert server.counts.headers[0]["authorization"] == f"Bearer {KEY}"
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"your key is [key]" in everything
    assert KEY.encode() not in everything
    assert KEY not in caplog.text
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__  # so that no traceback quotes the original error


def test_no_other_key_is_sent(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as server:
        ask(settings(server.base_url, api_key_env=None), ledger, [question("x")])
    assert KEY not in str(server.counts.headers)
