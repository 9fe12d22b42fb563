"""A chat server that misbehaves on demand: OpenAI's protocol on a loopback port, with its own count of what it billed.

A test scripts faults in the order in which calls arrive; calls beyond the script are answered properly. Every
answer whose status line with 200 went out is billed, by the usage that the server itself has counted.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from debias.generation.client import Chat
from debias.generation.exchange import LLM, Answer, Message, Outcome, Request, Spent
from debias.generation.ledger import Ledger
from debias.schema import checked

PATIENCE = 60  # seconds after which a test that waits has failed
TRIPLET = {"sentence": "The nurse fixed his own motorbike.", "target": "nurse", "attribute": "motorbike"}


@dataclass
class Fault:
    """What goes wrong with one call."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: Any = "scripted"  # message of a status other than 200, or the whole error object
    text: str | None = None  # the answer's text, in place of the usual one
    body: bytes | None = None  # the whole body, in place of a chat completion
    cut: int | None = None  # bytes of the body that are sent before the connection breaks
    silent: bool = False  # no status line, until the client hangs up
    silent_body: bool = False  # nothing more after the first half of the body, until the client hangs up
    message: dict[str, Any] = field(default_factory=dict)  # further fields of the message
    draft: str = ""  # what the usual text comes after
    finish_reason: str = "stop"
    usage: tuple[int, int] | None = None  # prompt and completion tokens, in place of one per word
    no_usage: bool = False
    top: dict[str, Any] = field(default_factory=dict)  # further fields of the body
    free: bool = False  # the model is not run: nothing is billed, and no usage is reported


@dataclass
class Counts:
    """What the server knows of its calls."""

    calls: int = 0  # chat completions that were asked for
    whole: int = 0  # with status 200, sent to the last byte
    partly: int = 0  # with status 200, broken off
    prompt_tokens: int = 0
    completion_tokens: int = 0
    at_once: int = 0  # most calls that were being served at the same time
    hung_up: int = 0  # clients that left a silent call
    keys: list[str] = field(default_factory=list)  # Idempotency-Key of every call
    bodies: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # of the chat completions that were sent whole
    headers: list[dict[str, str]] = field(default_factory=list)
    batches: int = 0

    def dollars(self, price_prompt: float, price_completion: float) -> float:
        """The bill, at prices per million tokens."""
        return (self.prompt_tokens * price_prompt + self.completion_tokens * price_completion) / 1e6


class ChatServer(ThreadingHTTPServer):
    """Serves until it is shut down.

    Args:
        faults: of the first calls, in order; None is a call without.
        reply: from a request body to the text of its answer.
        before: is called with this server and the number of a call (1, 2, ...), which is answered when it returns.
        habit: what goes wrong with the other calls, and with those of a batch: from a call's number and its body to a
            fault, or None.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        faults: Sequence[Fault | None],
        reply: Callable[[dict[str, Any]], str] | None,
        before: Callable[[ChatServer, int], object],
        habit: Habit,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.reply, self.before, self.habit = list(faults), reply or _triplets, before, habit
        self.counts, self.lock = Counts(), threading.Lock()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.batch_status = "completed"  # that batches reach when `finish_batches` is called
        self.batch_fails: set[int] = set()  # numbers of requests in a batch that have no result
        self.serving = 0
        self.changed = threading.Condition(self.lock)  # told when a call arrives, and when one has been served
        self.gate = threading.Event()  # for `before` to wait at
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Return when something is true of the calls that arrived or are being served."""
        with self.changed:
            assert self.changed.wait_for(holds, PATIENCE)

    def wait_until_idle(self) -> None:
        """Return when no call is being served: those of a client that hung up are counted by then."""
        self.wait_until(lambda: not self.serving)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""

    def completion(self, body: dict[str, Any], fault: Fault) -> tuple[bytes, int, int, str]:
        """A chat completion, its tokens (one per word) and its text."""
        text = fault.draft + (self.reply(body) if fault.text is None else fault.text)
        words = sum(len(message["content"].split()) for message in body["messages"])
        prompt_tokens, completion_tokens = fault.usage or (words, len(text.split()))
        message = {"role": "assistant", "content": text, "refusal": None, **fault.message}
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        content = {
            "id": f"chatcmpl-{self.counts.calls}",
            "object": "chat.completion",
            "created": 1,
            "model": f"{body['model']}-1",
            "usage": None if fault.no_usage or fault.free else usage,
            "choices": [{"index": 0, "message": message, "finish_reason": fault.finish_reason}],
            **fault.top,
        }
        if fault.free:
            prompt_tokens = completion_tokens = 0
        return json.dumps(content, ensure_ascii=False).encode(), prompt_tokens, completion_tokens, text

    def finish_batches(self) -> None:
        """Bring all batches to their end."""
        for batch in self.batches.values():
            if batch["status"] == "in_progress":
                self._finish(batch)

    def _finish(self, batch: dict[str, Any]) -> None:
        batch["status"] = self.batch_status
        if self.batch_status == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": "bad", "message": "line 1 is wrong", "line": 1}]}
            return
        done, failed = [], []
        for i, line in enumerate(self.files[batch["input_file_id"]].decode().removesuffix("\n").split("\n")):
            asked = json.loads(line)
            if i in self.batch_fails:
                if self.batch_status == "completed":
                    response = {"status_code": 500, "request_id": "r", "body": {"error": {"message": "no luck"}}}
                    failed.append({"id": "x", "custom_id": asked["custom_id"], "response": response, "error": None})
                continue
            self.counts.calls += 1
            fault = self.habit(self.counts.calls, asked["body"]) or Fault()
            if fault.status != 200:
                response = {"status_code": fault.status, "request_id": f"r{i}", "body": {"error": _error(fault)}}
                failed.append({"id": "x", "custom_id": asked["custom_id"], "response": response, "error": None})
                continue
            body, prompt_tokens, completion_tokens, text = self.completion(asked["body"], fault)
            self.counts.whole += 1
            self.counts.prompt_tokens += prompt_tokens
            self.counts.completion_tokens += completion_tokens
            self.counts.texts.append(text)
            response = {"status_code": 200, "request_id": f"r{i}", "body": json.loads(body)}
            done.append({"id": "x", "custom_id": asked["custom_id"], "response": response, "error": None})
        for name, lines in (("output_file_id", done), ("error_file_id", failed)):
            if lines:
                batch[name] = f"file-{len(self.files)}"
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                self.files[batch[name]] = text.encode()


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are quiet."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/chat/completions"):
            self._chat(json.loads(content))
        elif self.path.endswith("/files"):
            self._take_file(content)
        elif self.path.endswith("/batches"):
            self._start_batch(json.loads(content))
        else:
            self._send(404, {"error": {"message": "no such page"}})

    def do_GET(self) -> None:
        path = self.path.split("?")[0].split("/v1/")[-1].split("/")
        if path[0] == "batches" and len(path) == 1:
            data = list(self.server.batches.values())
            self._send(200, {"object": "list", "data": data, "has_more": False})
        elif path[0] == "batches":
            self._send(200, self.server.batches[path[1]])
        elif path[0] == "files" and path[-1] == "content":
            self._send_bytes(200, self.server.files[path[1]])
        else:
            self._send(404, {"error": {"message": "no such page"}})

    def _chat(self, body: dict[str, Any]) -> None:
        server, counts = self.server, self.server.counts
        with server.changed:
            counts.calls += 1
            number = counts.calls
            server.serving += 1
            counts.at_once = max(counts.at_once, server.serving)
            counts.keys.append(self.headers.get("Idempotency-Key", ""))
            counts.bodies.append(body)
            counts.headers.append({name.lower(): value for name, value in self.headers.items()})
            fault = server.faults.pop(0) if server.faults else server.habit(number, body)
            server.changed.notify_all()
        try:
            server.before(server, number)
            self._answer(body, fault or Fault())
        finally:
            with server.changed:
                server.serving -= 1
                server.changed.notify_all()

    def _answer(self, body: dict[str, Any], fault: Fault) -> None:
        if fault.silent:
            self._wait_until_it_hangs_up()  # which it does not see before it has answered, and counts
        if fault.status != 200:
            self._send(fault.status, {"error": _error(fault)}, fault.headers)
            return
        with self.server.lock:
            content, prompt_tokens, completion_tokens, text = self.server.completion(body, fault)
            self.server.counts.prompt_tokens += prompt_tokens
            self.server.counts.completion_tokens += completion_tokens
        content = content if fault.body is None else fault.body
        if fault.cut is None and not fault.silent_body:
            with self.server.lock:
                self.server.counts.whole += 1
                if fault.body is None:
                    self.server.counts.texts.append(text)
            self._send_bytes(200, content, fault.headers)
        else:
            with self.server.lock:
                self.server.counts.partly += 1
            self._send_part(content, fault)

    def _send_part(self, content: bytes, fault: Fault) -> None:
        """The first bytes, and then silence or a broken connection."""
        self._head(200, len(content), fault.headers)
        part = content[: len(content) // 2 if fault.cut is None else fault.cut]
        self.wfile.write(part)
        self.wfile.flush()
        if fault.silent_body:
            self._wait_until_it_hangs_up()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _wait_until_it_hangs_up(self) -> None:
        self.close_connection = True
        if not self.connection.recv(1):
            with self.server.changed:
                self.server.counts.hung_up += 1

    def _take_file(self, content: bytes) -> None:
        """The one file of a multipart form."""
        boundary = self.headers["Content-Type"].split("boundary=")[1].encode()
        parts = content.split(b"--" + boundary)
        part = next(part for part in parts if b"filename=" in part.split(b"\r\n\r\n")[0])
        name = f"file-{len(self.server.files)}"
        self.server.files[name] = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
        size = len(self.server.files[name])
        self._send(200, {
            "id": name, "object": "file", "bytes": size, "created_at": 1, "filename": "batch.jsonl", "purpose": "batch",
            "status": "processed",
        })  # fmt: skip

    def _start_batch(self, asked: dict[str, Any]) -> None:
        counts = self.server.counts
        counts.batches += 1
        total = self.server.files[asked["input_file_id"]].count(b"\n")
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is not None and fault.status != 200:
            self._send(fault.status, {"error": {"message": fault.error}})
            return
        batch = {
            "id": f"batch-{counts.batches}", "object": "batch", "created_at": 1, "status": "in_progress", **asked,
            "request_counts": {"total": total, "completed": 0, "failed": 0},
        }  # fmt: skip
        self.server.batches[batch["id"]] = batch
        if fault is not None and fault.silent:
            self._wait_until_it_hangs_up()
            return
        self._send(200, batch)

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(content).encode(), headers)

    def _send_bytes(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(content), headers)
        self.wfile.write(content)

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        names = {
            "Content-Type": "application/json",
            "x-request-id": f"req-{self.server.counts.calls}",
            **(headers or {}),
        }
        for name, value in {**names, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _error(fault: Fault) -> dict[str, Any]:
    return fault.error if isinstance(fault.error, dict) else {"message": fault.error, "type": "x", "code": None}


Habit = Callable[[int, dict[str, Any]], Fault | None]


def every(number: int, fault: Fault) -> Habit:
    """A fault of every third (or fourth, ...) call."""
    return lambda call, _: None if call % number else fault


def never(_call: int, _body: dict[str, Any]) -> None:
    """No fault."""


def _triplets(body: dict[str, Any]) -> str:
    """Two triplets, of which one names the last message, so that answers to different questions differ."""
    about = body["messages"][-1]["content"][:40]
    rows = [TRIPLET, {"sentence": f"The woman was calm about {about}.", "target": "woman", "attribute": "calm"}]
    return json.dumps({"triplets": rows})


@contextmanager
def serving(
    faults: Sequence[Fault | None] = (),
    reply: Callable[[dict[str, Any]], str] | None = None,
    before: Callable[[ChatServer, int], object] = lambda server, number: None,
    habit: Habit = never,
) -> Iterator[ChatServer]:
    """A running server, gone at the end of the block."""
    server = ChatServer(faults, reply, before, habit)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def settings(base_url: str | None, **changes: Any) -> LLM:
    """Settings for a test: 2 dollars per million prompt tokens, 10 per million completion tokens, no waiting."""
    values: dict[str, Any] = {
        "base_url": base_url, "model": "mock", "api_key_env": None, "system_prompt": None, "temperature": 1.0,
        "top_p": None, "seed": 1, "max_tokens": 100, "max_tokens_name": "max_tokens", "structured": "json_schema",
        "system_role": "system", "adapt": True, "schema_drops": [], "extra_body": {}, "timeout": 5.0, "max_retries": 3,
        "concurrency": 4, "max_cost_usd": None,
        "batch": False, "batch_price_factor": 0.5, "price_prompt": 2.0, "price_completion": 10.0,
        "priced_on": "2026-01-01",
    }  # fmt: skip
    return checked(LLM, {**values, **changes}, "llm")


def question(text: str, sample: int = 0, max_tokens: int = 100) -> Request:
    """A request with one message of the user's."""
    return Request((Message("user", text),), {"type": "object"}, max_tokens, sample)


def ledger_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a ledger."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def ask(llm: LLM, ledger: Path, requests: Sequence[Request]) -> tuple[Outcome, list[Answer], Spent]:
    """One run: outcome, answers in the order of arrival, and what the ledger says was spent."""
    arrived: list[Answer] = []

    async def run() -> tuple[Outcome, Spent]:
        shared = Ledger(ledger)
        chat = Chat(llm, shared, first_delay=0.01)
        with shared:
            async with chat:
                return await chat.ask(requests, arrived.append), chat.spent

    outcome, spent = asyncio.run(run())
    return outcome, arrived, spent


def whole(ledger: Path) -> list[dict[str, Any]]:
    """Lines of a ledger with a chat completion that arrived to its end."""
    return [line for line in ledger_lines(ledger) if line["kind"] == "answered" and line["body"].endswith("]}")]
