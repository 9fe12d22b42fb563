"""What was asked and what came back, on disk before anyone reads it: JSON Lines, only ever appended to.

Every call leaves a `sent` line before it goes out and one line when it ends:

    sent      attempt, key, what it costs at most                    (the call may have been paid from here on)
    answered  attempt, the raw body that came with status 200        (paid)
    declined  attempt, status and reason                             (not paid: the server refused, or was not reached)
    lost      attempt, reason                                        (sent, but no answer came: perhaps paid)
    given_up  key                                                    (failed for good: later requests went on without)

An attempt without a second line was in flight when a process died. A batch adds `batch` (submitted, with the server's
id) and `batch_ended`.
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

from filelock import FileLock, Timeout

from debias.generation.exchange import Answer, Bound, Spent
from debias.generation.reading import read_body
from debias.records import UserError

log = logging.getLogger(__name__)


class Sent(NamedTuple):
    """A call that went out."""

    attempt: str
    key: str
    bound: Bound
    batch: str | None  # tag of the batch that it is part of


@dataclass
class Memory:
    """What the lines of a ledger add up to. Reading a file and appending to it both go through `take`."""

    answers: dict[str, Answer] = field(default_factory=dict)  # by key
    broken: dict[str, int] = field(default_factory=dict)  # by key: bodies with status 200 that held no answer
    pending: dict[str, Sent] = field(default_factory=dict)  # by attempt: sent, and not ended
    lost: dict[str, Sent] = field(default_factory=dict)
    batches: dict[str, str | None] = field(default_factory=dict)  # open ones: tag -> the server's id
    given_up: set[str] = field(default_factory=set)  # keys
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0
    bounded: int = 0

    def take(self, line: dict[str, Any]) -> None:
        """Add a line. Raises KeyError, TypeError or ValueError when it is not one of ours."""
        match line["kind"]:
            case "sent":
                sent = Sent(line["attempt"], line["key"], Bound(*line["bound"]), line["batch"])
                self.pending[sent.attempt] = sent
                if sent.batch is not None:
                    self.batches.setdefault(sent.batch, None)
            case "answered":
                self._answered(self._ended(line["attempt"]), line)
            case "declined":
                self._ended(line["attempt"])
            case "lost":
                self.lost[line["attempt"]] = self._ended(line["attempt"])
            case "given_up":
                self.given_up.add(line["key"])
            case "batch":
                self.batches[line["tag"]] = line["id"]
            case "batch_ended":
                del self.batches[line["tag"]]
            case kind:
                raise ValueError(f"unknown kind {kind!r}")

    def _ended(self, attempt: str) -> Sent:
        return self.pending.pop(attempt)

    def _answered(self, sent: Sent, line: dict[str, Any]) -> None:
        reading = read_body(line["body"])
        prompt_tokens, completion_tokens = reading.prompt_tokens, reading.completion_tokens
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

    @property
    def committed(self) -> float:
        """Dollars that are spent, or will be at most: paid, in flight, and sent but lost."""
        return self.dollars + sum(sent.bound.worst for sent in [*self.pending.values(), *self.lost.values()])

    @property
    def spent(self) -> Spent:
        dollars = None if self.unpriced else self.dollars
        lost = sum(sent.bound.worst for sent in self.lost.values())
        return Spent(
            self.calls, self.prompt_tokens, self.completion_tokens, dollars, self.bounded, len(self.lost), lost
        )  # fmt: skip


def read_ledger(path: Path) -> Memory:
    """What a ledger holds; a line that a crash tore is left out with a warning, a missing file is an empty one."""
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
            log.warning("%s:%d: not a whole line of a ledger (%s): left out", path, i, error)
    for attempt in [attempt for attempt, sent in memory.pending.items() if sent.batch is None]:
        memory.lost[attempt] = memory.pending.pop(attempt)  # nobody waits for it any more
    return memory


class Ledger:
    """An open ledger: its memory, and the only way to add to it. One process holds it at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.memory = path, Memory()
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def __enter__(self) -> Ledger:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{self.path} is in use by another debias process; wait for it, or set name=OTHER"
            ) from error
        try:
            self.memory = read_ledger(self.path)
            self._file = self.path.open("ab", buffering=0)
            self._begin_line()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._lock.release()

    def _begin_line(self) -> None:
        """End the half line that a crash left, and make sure that the file's name is on disk, too."""
        if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def sent(self, key: str, bound: Bound) -> str:
        """Record that a call is about to go out; returns its attempt's name."""
        attempt = uuid.uuid4().hex
        self._append([{"kind": "sent", "attempt": attempt, "key": key, "bound": bound, "batch": None}])
        return attempt

    def sent_batch(self, bounds: dict[str, Bound]) -> str:
        """Record that a batch of calls (by key) is about to be submitted; returns its tag."""
        tag = uuid.uuid4().hex
        sent = [{"kind": "sent", "attempt": uuid.uuid4().hex, "key": k, "bound": b} for k, b in bounds.items()]
        self._append([{**line, "batch": tag} for line in sent])
        return tag

    def answered(self, attempt: str, body: str, request_id: str) -> None:
        """Record what came with status 200, unread."""
        self._append([{"kind": "answered", "attempt": attempt, "body": body, "request_id": request_id}])

    def answered_all(self, results: Iterable[tuple[str, str, str]]) -> None:
        """Record many results at once: attempt, body and request id of each."""
        self._append([{"kind": "answered", "attempt": a, "body": body, "request_id": r} for a, body, r in results])

    def declined(self, attempts: Iterable[str], status: int | None, reason: str) -> None:
        """Record that calls ended unpaid."""
        self._append([{"kind": "declined", "attempt": a, "status": status, "reason": reason} for a in attempts])

    def lost(self, attempt: str, reason: str) -> None:
        """Record that nobody waits for a call any more, though it may have been paid."""
        self._append([{"kind": "lost", "attempt": attempt, "reason": reason}])

    def given_up(self, keys: Iterable[str]) -> None:
        """Record that requests have no answer and what is asked from here on takes that as said."""
        self._append([{"kind": "given_up", "key": key} for key in keys])

    def batch(self, tag: str, batch_id: str) -> None:
        """Record the server's id of a submitted batch."""
        self._append([{"kind": "batch", "tag": tag, "id": batch_id}])

    def batch_ended(self, tag: str, status: str) -> None:
        """Record that all of a batch's results are here."""
        self._append([{"kind": "batch_ended", "tag": tag, "status": status}])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        """Write lines and wait until the disk has them. Raises UserError when it does not take them."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [{**line, "time": now} for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        size = self._file.tell()
        try:
            written = 0
            while written < len(text):  # an unbuffered write may take a part only
                written += self._file.write(text[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)  # calls in flight will try to write theirs, on lines of their own
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room and run again") from error
        for line in lines:
            self.memory.take(line)
