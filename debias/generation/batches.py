"""The Batch API: submit requests, leave, and fetch the answers later. Half the price, up to a day's wait."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import openai
from openai.types import Batch

from debias.generation.adaptation import Adaptations
from debias.generation.complaints import Complaint, complaint_in, complaint_of, mistake, redacted, shown, unreachable
from debias.generation.exchange import FILTERED, LLM, MAX_REFUSED, Answer, Question
from debias.generation.ledger import Ledger
from debias.records import UserError
from debias.wording import counted

log = logging.getLogger(__name__)

ENDED = ("completed", "failed", "expired", "cancelled")
MAX_REQUESTS = 50_000  # per batch, a limit of the API
_KEY = re.compile(r"[0-9a-f]{64}")  # of a request; it is the `custom_id` of its result
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


class Batches:
    """Submits missing requests as one batch and fetches the results later; for the arguments see `Live`."""

    def __init__(self, client: openai.AsyncOpenAI, llm: LLM, ledger: Ledger, base_url: str, secret: str) -> None:
        self.client, self.llm, self.ledger, self.base_url, self.secret = client, llm, ledger, base_url, secret
        self.adaptations = Adaptations(llm, ledger, base_url)
        self.patient = client.with_options(max_retries=llm.max_retries)  # for calls that do no harm when repeated

    async def ask(
        self, missing: Mapping[str, Question], collect: Callable[[Answer], None], proven: bool
    ) -> tuple[str, str]:
        """Fetch ended batches and submit what is still missing; returns why we stopped and the reason in words.

        Args:
            proven: whether requests with the same settings have been answered before.
        """
        try:
            return await self._ask(missing, collect, proven)
        except openai.APIStatusError as error:
            raise self._told(error) from None  # the original error may quote the key
        except openai.APIConnectionError as error:
            raise unreachable(self.base_url, error) from None

    async def _ask(
        self, missing: Mapping[str, Question], collect: Callable[[Answer], None], proven: bool
    ) -> tuple[str, str]:
        complaints: list[Complaint] = []
        bodies = {key: self.adaptations.sent(question.body) for key, question in missing.items()}
        for tag, batch_id in self.ledger.memory.batches_at(shown(self.base_url)).items():
            batch = await self._find(tag, batch_id)
            if batch is not None and batch.status not in ENDED:
                return "batch", f"batch {batch.id} is {batch.status}{_progress(batch)}; run the same command later"
            complaints += await self._end(tag, batch, bodies)
        memory = self.ledger.memory
        fetched = [memory.answers[key] for key in missing if key in memory.answers]
        for answer in fetched:
            proven |= answer.finish_reason != FILTERED
            collect(answer._replace(cached=False))
        if not proven and (told := next(filter(None, (mistake(c, self.llm, self.base_url) for c in complaints)), None)):
            raise told  # before the first answer, a refusal means that the settings are wrong
        failed = [key for key in missing if memory.refused.get(key, 0) + memory.broken.get(key, 0) >= MAX_REFUSED]
        failed = [key for key in failed if key not in memory.answers]
        if failed:
            log.warning("skipped: %s that failed in %d batches", counted(len(failed), "request"), MAX_REFUSED)
            self.ledger.given_up(failed)
        left = {k: question for k, question in missing.items() if k not in memory.answers and k not in failed}
        if fetched or not left:
            return "", ""  # the answers may be enough; if not, the rest is asked for again and then submitted
        return await self._submit(left)

    async def _find(self, tag: str, batch_id: str | None) -> Batch | None:
        """A batch by its id, or by its tag if we died before recording the id; None if it was never submitted."""
        if batch_id is not None:
            return await self.patient.batches.retrieve(batch_id)
        async for batch in self.patient.batches.list(limit=100):
            if (batch.metadata or {}).get("debias") == tag:
                self.ledger.batch(tag, batch.id)
                return batch
        return None

    async def _end(self, tag: str, batch: Batch | None, bodies: Mapping[str, dict[str, Any]]) -> list[Complaint]:
        """Record every result in the ledger and return the errors among them.

        Requests without a result were not charged, unless there are results that cannot be read, and are asked again.

        Args:
            bodies: of the requests, by key, as they were submitted.
        """
        status = "never submitted" if batch is None else batch.status
        complaints: list[Complaint] = []
        unread: list[str] = []
        for file_id in [] if batch is None else [batch.output_file_id, batch.error_file_id]:
            if file_id is not None:
                content = (await self.patient.files.content(file_id)).content.decode("utf-8", "replace")
                complaints += self._store(tag, redacted(content, self.secret), unread, bodies)
        left = list(self._attempts(tag).values())
        if left:
            log.warning("no result for %s of a batch (%s)", counted(len(left), "request"), status)
        if unread:
            log.warning("cannot read %s of a batch; the ledger keeps them", counted(len(unread), "result"))
            for line in unread:
                self.ledger.unread(tag, line)
            for attempt in left:
                self.ledger.lost(attempt, "its result may be one of those that cannot be read")
        elif left:
            self.ledger.declined(left, None, f"the batch is {status}")
        self.ledger.batch_ended(tag, status)
        if batch is not None and status == "failed":
            errors = batch.errors.data if batch.errors and batch.errors.data else []
            reason = redacted("; ".join(str(error.message) for error in errors), self.secret)
            raise UserError(
                f"batch {batch.id} failed ({reason[:200] or 'no reason given'}); run again to submit another"
            )
        return complaints

    def _attempts(self, tag: str) -> dict[str, str]:
        """Calls of a batch that have no result yet, as key -> attempt."""
        return {sent.key: attempt for attempt, sent in self.ledger.memory.pending.items() if sent.batch == tag}

    def _store(
        self, tag: str, text: str, unread: list[str], bodies: Mapping[str, dict[str, Any]]
    ) -> list[Complaint]:  # fmt: skip
        """Record a file of results; lines that cannot be assigned to a request are added to `unread`."""
        attempts = self._attempts(tag)
        answered: list[tuple[str, str, str]] = []
        complaints: list[Complaint] = []
        # JSON Lines end with a newline and nothing else: an answer may hold U+2028, U+0085 and other line separators.
        for line in filter(str.strip, text.split("\n")):
            key = next((key for key in _KEY.findall(line) if key in attempts), None)
            if key is None:
                unread.append(line)
                continue
            attempt = attempts.pop(key)
            try:
                result = json.loads(line)
                response = result["response"] or {}
                status, body = response.get("status_code"), response.get("body")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                answered.append((attempt, line, ""))  # it was computed, so it is charged; kept as it came
                continue
            if status == 200:
                answered.append((attempt, json.dumps(body), str(response.get("request_id", ""))))
                continue
            complaint = complaint_in(status or 0, result.get("error") or body, self.secret)
            if complaint.filtered:
                self.ledger.filtered(attempt, complaint.status, complaint.reason)
            elif key in bodies and self.adaptations.learn(complaint, bodies[key]):
                self.ledger.declined([attempt], None, complaint.reason)  # no status: this request is not at fault
            else:
                self.ledger.declined([attempt], status, complaint.reason)
                complaints.append(complaint)
        self.ledger.answered_all(answered)
        return complaints

    async def _submit(self, questions: Mapping[str, Question]) -> tuple[str, str]:
        chosen = self._affordable(questions)
        if not chosen:
            return "budget", f"no further call fits into llm.max_cost_usd={self.llm.max_cost_usd}"
        lines = [
            json.dumps({"custom_id": key, "method": "POST", "url": ENDPOINT, "body": body}) + "\n"
            for key, body in ((key, self.adaptations.sent(questions[key].body)) for key in chosen)
        ]
        tag = self.ledger.sent_batch({key: questions[key].bound for key in chosen}, shown(self.base_url))
        file = await self.patient.files.create(file=("batch.jsonl", "".join(lines).encode()), purpose="batch")
        batch = await self._create(tag, file.id)
        self.ledger.batch(tag, batch.id)
        number = counted(len(chosen), "request")
        return "batch", f"batch {batch.id} with {number} is submitted; run the same command later"

    async def _create(self, tag: str, file_id: str) -> Batch:
        """Create a batch. A retry might create two, so the next run looks for an unconfirmed one by its tag."""
        try:
            return await self.client.batches.create(
                input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={"debias": tag}
            )
        except openai.APIStatusError as error:
            if error.status_code < 500:
                complaint = complaint_of(error, self.secret)
                self.ledger.declined(self._attempts(tag).values(), complaint.status, complaint.reason)
                self.ledger.batch_ended(tag, "refused")
            raise

    def _affordable(self, questions: Mapping[str, Question]) -> list[str]:
        """Keys of as many questions as fit into the budget together, each at its worst case."""
        limit, total = self.llm.max_cost_usd, self.ledger.memory.committed
        chosen: list[str] = []
        for key, question in questions.items():
            total += question.bound.worst
            if len(chosen) == MAX_REQUESTS or (limit is not None and total > limit):
                break
            chosen.append(key)
        return chosen

    def _told(self, error: openai.APIStatusError) -> UserError:
        complaint = complaint_of(error, self.secret)
        if complaint.status in (404, 405):
            return UserError(
                f"{shown(self.base_url)} does not have this batch or a Batch API ({complaint.reason}); "
                "set llm.batch=false"
            )
        told = mistake(complaint, self.llm, self.base_url)
        return told or UserError(f"{shown(self.base_url)} is failing ({complaint.reason}); run the same command later")


def _progress(batch: Batch) -> str:
    counts = batch.request_counts
    return f" ({counts.completed} of {counts.total} done)" if counts and counts.total else ""
