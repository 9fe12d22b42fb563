"""The Batch API: submitted once, fetched later, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import Fault, ask, ledger_lines, question, serving, settings

from debias.generation.exchange import question_of
from debias.records import UserError


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "out.ledger.jsonl"


def test_batch_is_submitted_left_and_fetched_at_half_the_price(ledger: Path) -> None:
    requests = [question(f"number {i}") for i in range(5)]
    with serving() as server:
        llm = settings(server.base_url, batch=True)
        outcome, arrived, _ = ask(llm, ledger, requests)
        assert (outcome.stopped, arrived) == ("batch", [])
        assert "batch-1 with 5 requests is submitted" in outcome.reason
        outcome, _, _ = ask(llm, ledger, requests)
        assert (outcome.stopped, server.counts.batches) == ("batch", 1)
        assert "is in_progress (0 of 5 done)" in outcome.reason
        server.finish_batches()
        outcome, arrived, spent = ask(llm, ledger, requests)
        assert [f"number {i}" in a.text for i, a in enumerate(outcome.answers) if a] == [True] * 5
        assert (outcome.stopped, len(arrived), server.counts.batches) == ("", 5, 1)
        assert spent.dollars == pytest.approx(server.counts.dollars(1, 5))
        assert (spent.lost, server.counts.keys) == (0, [])  # nothing was asked live


@pytest.mark.parametrize("status", ["completed", "expired"])
def test_requests_without_a_result_are_submitted_again(status: str, ledger: Path) -> None:
    requests = [question(f"number {i}") for i in range(5)]
    with serving() as server:
        llm = settings(server.base_url, batch=True)
        ask(llm, ledger, requests)
        server.batch_status, server.batch_fails = status, {1, 3}
        server.finish_batches()
        outcome, arrived, _ = ask(llm, ledger, requests)
        assert (outcome.stopped, len(arrived), server.counts.batches) == ("", 3, 1)  # which may be enough
        outcome, arrived, _ = ask(llm, ledger, requests)
        assert (outcome.stopped, len(arrived)) == ("batch", 3)
        assert "with 2 requests" in outcome.reason
        server.batch_status, server.batch_fails = "completed", set()
        server.finish_batches()
        outcome, arrived, spent = ask(llm, ledger, requests)
    assert None not in outcome.answers
    assert (len(arrived), spent.calls, server.counts.batches) == (5, 5, 2)


def test_a_failed_batch_is_told_and_can_be_repeated(ledger: Path) -> None:
    with serving() as server:
        llm = settings(server.base_url, batch=True)
        ask(llm, ledger, [question("x")])
        server.batch_status = "failed"
        server.finish_batches()
        with pytest.raises(UserError, match=r"batch-1 failed \(line 1 is wrong\); run again"):
            ask(llm, ledger, [question("x")])
        outcome, _, _ = ask(llm, ledger, [question("x")])
    assert (outcome.stopped, server.counts.batches) == ("batch", 2)


def test_a_batch_whose_id_was_never_written_is_found_again(ledger: Path) -> None:
    """The server takes the batch, but the client never hears of it."""
    with serving([Fault(silent=True)]) as server:
        llm = settings(server.base_url, batch=True, timeout=0.5)
        with pytest.raises(UserError):
            ask(llm, ledger, [question("x")])
        assert [line["kind"] for line in ledger_lines(ledger)] == ["sent"]
        server.finish_batches()
        outcome, _, _ = ask(llm, ledger, [question("x")])
    assert outcome.answers[0] is not None
    assert server.counts.batches == 1


def test_a_batch_that_never_reached_the_server_is_submitted_again(ledger: Path) -> None:
    with serving([Fault(500)]) as server:
        llm = settings(server.base_url, batch=True)
        with pytest.raises(UserError, match="is failing"):
            ask(llm, ledger, [question("x")])
        outcome, _, _ = ask(llm, ledger, [question("x")])
    assert "with 1 request is submitted" in outcome.reason
    assert len(server.batches) == 1


@pytest.mark.parametrize(
    ("damage", "calls", "lost"),
    [
        (lambda line: line[:-20], 1, 0),  # broken off behind the request's name
        (lambda line: line.replace('"response": {', '"response": [{').replace("}}", "}]}", 1), 1, 0),
        (lambda line: line.replace('"response"', '"answer"'), 1, 0),
        (lambda line: "<html>oops</html>", 0, 1),  # nobody's
    ],
)
def test_a_result_that_cannot_be_read_is_kept_and_paid(
    damage: Callable[[str], str], calls: int, lost: int, ledger: Path
) -> None:
    """It counts at its worst case; three such results of one request end it."""
    with serving() as server:
        llm = settings(server.base_url, batch=True)
        for number in range(1, 4):
            outcome, _, _ = ask(llm, ledger, [question("x")])
            assert (outcome.stopped, server.counts.batches) == ("batch", number)
            server.finish_batches()
            (line,) = server.files[f"file-{2 * number - 1}"].decode().split("\n")[:-1]
            server.files[f"file-{2 * number - 1}"] = f"{damage(line)}\n".encode()
        outcome, _, spent = ask(llm, ledger, [question("x")])
        assert (outcome.stopped, outcome.answers, server.counts.batches) == ("", [None], 3)
    worst = question_of(question("x"), llm).bound.worst
    assert (spent.calls, spent.bounded, spent.lost) == (3 * calls, 3 * calls, 3 * lost)
    assert spent.dollars + spent.lost_dollars == pytest.approx(3 * worst)
    raw = [line.get("body") or line["text"] for line in ledger_lines(ledger) if line["kind"] in ("answered", "unread")]
    assert raw[-1] == damage(line)


def test_a_batch_stays_within_the_budget(ledger: Path) -> None:
    with serving() as server:
        worst = question_of(question("number 0"), settings("http://x", batch=True)).bound.worst
        llm = settings(server.base_url, batch=True, max_cost_usd=3.5 * worst)
        outcome, _, _ = ask(llm, ledger, [question(f"number {i}") for i in range(9)])
        assert "with 3 requests" in outcome.reason
    with serving() as server:
        outcome, _, _ = ask(
            settings(server.base_url, batch=True, max_cost_usd=worst / 2), ledger.with_name("b"), [question("x")]
        )
    assert outcome.stopped == "budget"


def test_a_batch_under_way_is_not_asked_live(ledger: Path) -> None:
    with serving() as server:
        ask(settings(server.base_url, batch=True), ledger, [question("x")])
        with pytest.raises(UserError, match=r"fetch it with llm\.batch=true"):
            ask(settings(server.base_url), ledger, [question("x")])
    assert server.counts.calls == 0
