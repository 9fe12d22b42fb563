"""The ledger: an append-only JSON Lines file of every call and its raw answer, on disk before anything reads it.

Each call has a `sent` line, written before the call is made, and one line for its end:

    sent      attempt, key, upper bound of the cost        (from here on the call may be charged)
    answered  attempt, raw body of status 200              (charged, unless it is an error without a usage report)
    declined  attempt, status, reason                      (not charged: refused, or the server was not reached)
    filtered  attempt, status, reason                      (not charged: refused by a content filter, and final)
    lost      attempt, reason                              (no reply: perhaps charged)
    given_up  key                                          (failed for good: later requests were made without it)
    adapted   server, part, instead                        (later bodies are sent without what the server refuses)

An attempt without a second line was in flight when the process died. The calls of a batch are sent with its tag and
its server. A batch adds `batch` (submitted, with the server's id) and `batch_ended`, and `unread` for a line of its
results that belongs to no request.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout

from debias.files import note
from debias.generation.adaptation import Adaptation
from debias.generation.complaints import PASSING
from debias.generation.exchange import FILTERED, Answer, Bound, Spent
from debias.generation.reading import read_body
from debias.locks import Lock
from debias.records import UserError
from debias.wording import counted

log = logging.getLogger(__name__)


class Sent(NamedTuple):
    """A call that was made."""

    attempt: str
    key: str
    bound: Bound
    batch: str | None  # tag of its batch


@dataclass
class Memory:
    """The state that the lines of a ledger add up to. Reading a file and appending to it both go through `take`."""

    answers: dict[str, Answer] = field(default_factory=dict)  # by key
    broken: dict[str, int] = field(default_factory=dict)  # by key: bodies of status 200 without an answer
    refused: dict[str, int] = field(default_factory=dict)  # by key: batches that refused it (status 4xx) or lost it
    pending: dict[str, Sent] = field(default_factory=dict)  # by attempt: sent, not ended
    lost: dict[str, Sent] = field(default_factory=dict)  # by attempt
    batches: dict[str, str | None] = field(default_factory=dict)  # open ones: tag -> the server's id
    servers: dict[str, str] = field(default_factory=dict)  # of batches, by tag; older ledgers do not name them
    given_up: set[str] = field(default_factory=set)  # keys
    adapted: dict[str, list[Adaptation]] = field(default_factory=dict)  # by server: what it refuses
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0
    bounded: int = 0

    def take(self, line: dict[str, Any]) -> None:
        """Add a line. Raises KeyError, TypeError or ValueError if it is not a line of a ledger."""
        match line["kind"]:
            case "sent":
                sent = Sent(line["attempt"], line["key"], Bound(*line["bound"]), line["batch"])
                self.pending[sent.attempt] = sent
                if sent.batch is not None:
                    self.batches.setdefault(sent.batch, None)
                    self.servers[sent.batch] = line.get("server", "")
            case "answered":
                self._answered(self.pending.pop(line["attempt"]), line)
            case "declined":
                sent, status = self.pending.pop(line["attempt"]), line["status"] or 0
                if sent.batch is not None and 400 <= status < 500 and status not in PASSING:
                    self.refused[sent.key] = self.refused.get(sent.key, 0) + 1
            case "filtered":
                key = self.pending.pop(line["attempt"]).key
                nothing = Answer(key, "", FILTERED, 0, 0, 0.0, "", line["time"], "", cached=True)
                self.answers.setdefault(key, nothing)
            case "lost":
                sent = self.lost[line["attempt"]] = self.pending.pop(line["attempt"])
                if sent.batch is not None:
                    self.refused[sent.key] = self.refused.get(sent.key, 0) + 1
            case "unread":
                pass
            case "adapted":
                self.adapted.setdefault(line["server"], []).append(Adaptation(line["part"], line["instead"]))
            case "given_up":
                self.given_up.add(line["key"])
            case "batch":
                self.batches[line["tag"]] = line["id"]
            case "batch_ended":
                del self.batches[line["tag"]]
            case kind:
                raise ValueError(f"unknown kind {kind!r}")

    def _answered(self, sent: Sent, line: dict[str, Any]) -> None:
        reading = read_body(line["body"])
        prompt_tokens, completion_tokens, dollars = reading.prompt_tokens, reading.completion_tokens, None
        if not reading.charged:
            prompt_tokens, completion_tokens, dollars = 0, 0, 0.0
        else:
            if prompt_tokens is None or completion_tokens is None:
                prompt_tokens, completion_tokens = sent.bound.prompt_tokens, sent.bound.completion_tokens
                self.bounded += 1
            dollars = sent.bound.dollars(prompt_tokens, completion_tokens)
            self.calls += 1
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens
            self.dollars += dollars or 0.0
            self.unpriced += dollars is None
        if reading.text is None:
            self.broken[sent.key] = self.broken.get(sent.key, 0) + 1
            return
        answer = Answer(
            sent.key, reading.text, reading.finish_reason, prompt_tokens, completion_tokens, dollars,
            line["request_id"] or reading.id, line["time"], reading.model, cached=True,
        )  # fmt: skip
        self.answers.setdefault(sent.key, answer)

    def batches_at(self, server: str) -> dict[str, str | None]:
        """Open batches of a server, as tag -> its id; a ledger may be shared by the models of several servers."""
        return {tag: name for tag, name in self.batches.items() if self.servers.get(tag, "") in ("", server)}

    @property
    def committed(self) -> float:
        """Dollars already paid, plus the most that calls in flight and lost calls can cost."""
        return self.dollars + sum(sent.bound.worst for sent in [*self.pending.values(), *self.lost.values()])

    @property
    def spent(self) -> Spent:
        dollars = None if self.unpriced else self.dollars
        bounds = [sent.bound for sent in self.lost.values()]
        unknown = any(bound.dollars(0, 0) is None for bound in bounds)
        lost = None if unknown else sum(bound.worst for bound in bounds)
        return Spent(
            self.calls, self.prompt_tokens, self.completion_tokens, dollars, self.bounded, len(self.lost), lost
        )  # fmt: skip


def read_ledger(path: Path) -> Memory:
    """Read a ledger. Lines damaged by a crash are skipped with a warning; a missing file counts as empty."""
    memory = Memory()
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return memory
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); choose another output") from error
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            memory.take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s:%d is not a complete line of a ledger (%s); it is skipped", path, i, error)
    for attempt in [attempt for attempt, sent in memory.pending.items() if sent.batch is None]:
        memory.lost[attempt] = memory.pending.pop(attempt)  # its process is gone
    return memory


class Ledger:
    """An open ledger: its state and the only way to append to it. One process holds it at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.memory = path, Memory()
        self._lock = Lock(path.with_name(f".{path.name}.lock"))

    def __enter__(self) -> Ledger:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{self.path} is in use by another debias process ({self._lock.holder()}); "
                "wait for it or set name=OTHER"
            ) from error
        try:
            self.memory = read_ledger(self.path)
            self._file = self.path.open("ab", buffering=0)
            note(self.path)
            self._begin_line()
            spent = self.memory.spent
            if spent.lost:
                most = spent.lost_dollars
                price = "at an unknown price" if most is None else f"{most:.4f} dollars at most"
                calls = counted(spent.lost, "call")
                log.warning("%s of an earlier run got no answer and may have been charged (%s)", calls, price)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._lock.release()

    def _begin_line(self) -> None:
        """Start on a new line even if a crash left half of one, and sync the folder so that it lists the file."""
        if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def sent(self, key: str, bound: Bound) -> str:
        """Record that a call is about to be made; returns the name of the attempt."""
        attempt = uuid.uuid4().hex
        self._append([{"kind": "sent", "attempt": attempt, "key": key, "bound": bound, "batch": None}])
        return attempt

    def sent_batch(self, bounds: dict[str, Bound], server: str) -> str:
        """Record that a batch of calls (by key) is about to be submitted to a server; returns its tag."""
        tag = uuid.uuid4().hex
        sent = [{"kind": "sent", "attempt": uuid.uuid4().hex, "key": k, "bound": b} for k, b in bounds.items()]
        self._append([{**line, "batch": tag, "server": server} for line in sent])
        return tag

    def answered(self, attempt: str, body: str, request_id: str) -> None:
        """Record the raw body of status 200."""
        self._append([{"kind": "answered", "attempt": attempt, "body": body, "request_id": request_id}])

    def answered_all(self, results: Iterable[tuple[str, str, str]]) -> None:
        """Record many results at once: (attempt, body, request id)."""
        self._append([{"kind": "answered", "attempt": a, "body": body, "request_id": r} for a, body, r in results])

    def declined(self, attempts: Iterable[str], status: int | None, reason: str) -> None:
        """Record that calls ended without being charged."""
        self._append([{"kind": "declined", "attempt": a, "status": status, "reason": reason} for a in attempts])

    def filtered(self, attempt: str, status: int, reason: str) -> None:
        """Record that a content filter refused a request: from now on its answer is an empty one."""
        self._append([{"kind": "filtered", "attempt": attempt, "status": status, "reason": reason}])

    def lost(self, attempt: str, reason: str) -> None:
        """Record that a call ended without a reply, so that it may have been charged."""
        self._append([{"kind": "lost", "attempt": attempt, "reason": reason}])

    def given_up(self, keys: Iterable[str]) -> None:
        """Record that these requests stay unanswered; later requests rely on that."""
        self._append([{"kind": "given_up", "key": key} for key in keys])

    def adapt(self, server: str, adaptation: Adaptation) -> None:
        """Record that a server refuses a part of the body."""
        self._append([{"kind": "adapted", "server": server, **adaptation._asdict()}])

    def batch(self, tag: str, batch_id: str) -> None:
        """Record the server's id of a submitted batch."""
        self._append([{"kind": "batch", "tag": tag, "id": batch_id}])

    def unread(self, tag: str, text: str) -> None:
        """Record a line of a batch's results that cannot be assigned to a request."""
        self._append([{"kind": "unread", "tag": tag, "text": text}])

    def batch_ended(self, tag: str, status: str) -> None:
        """Record that all results of a batch have been recorded."""
        self._append([{"kind": "batch_ended", "tag": tag, "status": status}])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        """Write lines and wait until they are on disk. Raises UserError if they cannot be written."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [{**line, "time": now} for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        size = self._file.tell()
        try:
            written = 0
            while written < len(text):  # an unbuffered write may write only a part
                written += self._file.write(text[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)  # no half line: calls in flight may still append theirs
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room and run again") from error
        for line in lines:
            self.memory.take(line)
