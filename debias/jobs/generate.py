"""`debias generate`: a chat model writes triplets into a folder with a data set."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from debias.data import doctor, leakage
from debias.data.quality import NearDuplicates
from debias.data.triplets import TripletFile
from debias.files import write_json, write_text
from debias.generation.acceptance import Acceptance
from debias.generation.client import Chat
from debias.generation.exchange import LLM, Answer, Outcome, Request, Spent, question_of
from debias.generation.harvest import Harvest, Loop
from debias.generation.ledger import Memory, read_ledger
from debias.generation.strategies import Strategy, Task
from debias.generation.wanted import Wanted
from debias.progress import bar, tally
from debias.records import UserError
from debias.report.one_run import generated_set as report
from debias.report.one_run.data_quality import page
from debias.report.templating import dollars
from debias.results import RunFolder

log = logging.getLogger(__name__)

LEDGER = "ledger.jsonl"


class DataFolder(RunFolder):
    """The folder of a generated set. The set can always grow, and its ledger is never removed."""

    def _open(self, overwrite: bool, accept_other_code: bool) -> bool:
        before = self._status()
        if before and overwrite:
            self._clear()
        elif before and before.get("config_sha256") != self.identity["config_sha256"]:
            raise UserError(
                f"{self.path} holds a set made by another config; keep both with name=OTHER, or replace it with "
                "overwrite=true (the ledger with its paid answers stays)"
            )
        elif not before and [path for path in self._files() if path.name != LEDGER]:
            raise UserError(f"{self.path} has files but no generated set; empty it, or set name=OTHER")
        return True

    def _clear(self) -> None:
        for path in self._files():
            if path.name != LEDGER:
                path.unlink()

    def end(self, harvest: Harvest) -> None:
        """Write the state `done`, with the size of the set and the reason why it is not larger."""
        self._write_status("done", triplets=len(harvest.kept), stopped=harvest.stopped, reason=harvest.reason)


class Generation(NamedTuple):
    """Everything that determines a set, and its budget."""

    name: str
    llm: LLM
    server: AbstractContextManager[str] | None  # starts a server and yields its address
    strategy: Strategy
    wanted: Wanted
    biases: tuple[str, ...]
    seed: int

    @property
    def task(self) -> Task:
        biases = self.biases if self.strategy.biased else ("general",)
        return Task(biases, self.seed, self.llm.max_tokens, self.wanted)

    @property
    def source(self) -> str:
        """The `source` of the triplets."""
        return f"{self.strategy.name}/{self.llm.model}"


# ---------------------------------------------------------------- what it would cost


def estimate(generation: Generation, ledger: Path) -> report.Estimate:
    """Likely and largest calls, tokens and dollars. Nothing is sent or written."""
    llm, wanted = generation.llm, generation.wanted
    first, typical = generation.strategy.preview(generation.task)
    memory = read_ledger(ledger)
    loop = _replayed(generation, memory)
    ended = loop.harvest.stopped in ("n", "patience", "filtered")  # the ledger already holds the whole run
    requests = [] if ended else [*(first if not memory.answers else []), *[typical] * loop.to_come()]
    bounds = [question_of(request, llm).bound for request in requests]
    prompt = sum(bound.prompt_tokens for bound in bounds)
    answer = sum(bound.completion_tokens for bound in bounds)
    likely = prompt // 4, min(answer, len(bounds) * wanted.per_call * report.TOKENS_A_TRIPLET)
    price = question_of(typical, llm).bound.dollars
    return report.Estimate(
        len(bounds), len(memory.answers), len(loop.harvest.kept), wanted.n, likely, (prompt, answer), price(*likely),
        price(prompt, answer), llm.max_cost_usd, llm.model, llm.priced_on, loop.harvest.stopped if ended else "",
    )  # fmt: skip


class _Replay:
    """A chat that knows only the answers in the ledger."""

    def __init__(self, llm: LLM, memory: Memory) -> None:
        self.llm, self.memory, self.spent = llm, memory, memory.spent

    async def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> Outcome:
        keys = [question_of(request, self.llm).key for request in requests]
        answers = self.known(requests)
        for answer in filter(None, answers):
            on_answer(answer)
        wanting = any(a is None and key not in self.memory.given_up for a, key in zip(answers, keys, strict=True))
        return Outcome(answers, "unasked" if wanting else "", "")

    def known(self, requests: Sequence[Request]) -> list[Answer | None]:
        return [self.memory.answers.get(question_of(request, self.llm).key) for request in requests]

    def give_up(self, requests: Sequence[Request]) -> None:
        """Nothing to do: the ledger already knows."""


def _replayed(generation: Generation, memory: Memory) -> Loop:
    """The loop, run as far as the answers in the ledger go."""
    indices = _benchmarks(generation.wanted) if memory.answers else []
    acceptance = Acceptance(generation.wanted, _known(generation, indices))
    loop = Loop(_Replay(generation.llm, memory), acceptance, generation.task, generation.source, _Silent())
    if memory.answers:
        asyncio.run(loop.run(generation.strategy))
    return loop


class _Silent:
    def arrived(self, harvest: Harvest, spent: Spent) -> None: ...

    def paused(self, harvest: Harvest, spent: Spent) -> None: ...


# ---------------------------------------------------------------- the job


def generate(folder: DataFolder, generation: Generation) -> report.Product:
    """Ask until there are enough triplets or it has to stop, and write everything. The ledger's answers are reused.

    Raises UserError or KeyboardInterrupt, after writing what was harvested so far.
    """
    start = time.monotonic()
    indices = _benchmarks(generation.wanted)
    acceptance = Acceptance(generation.wanted, _known(generation, indices))
    chat = Chat(generation.llm, folder.path / LEDGER, generation.server)
    with _Live(generation.wanted.n) as live:
        loop = Loop(chat, acceptance, generation.task, generation.source, live)
        try:
            asyncio.run(_run(chat, loop, generation.strategy))
        except BaseException as error:
            loop.harvest.stopped, loop.harvest.reason = "interrupted", str(error)
            with contextlib.suppress(OSError):
                if loop.harvest.calls:
                    _write(folder, generation, loop.harvest, chat.spent, indices, time.monotonic() - start)
            raise
    product = _write(folder, generation, loop.harvest, chat.spent, indices, time.monotonic() - start)
    folder.end(loop.harvest)
    return product


async def _run(chat: Chat, loop: Loop, strategy: Strategy) -> None:
    async with chat:
        if known := len(chat.ledger.memory.answers):
            log.info("reusing %d answers from the ledger", known)
        await loop.run(strategy)


def _benchmarks(wanted: Wanted) -> list[leakage.Index]:
    if not wanted.benchmarks:
        return []
    for name in leakage.missing():
        log.info("not compared with %s: set DEBIAS_DATA to the folder that holds it", name)
    names = leakage.available()
    return [leakage.benchmark_index(name) for name in bar("reading benchmarks")(names, len(names))]


def _known(generation: Generation, indices: Sequence[leakage.Index]) -> dict[str, NearDuplicates]:
    """Sentences that must not be repeated, by the reason for rejecting a repetition."""
    similarity = generation.wanted.similarity
    shown, others = NearDuplicates(similarity), NearDuplicates(similarity)
    for sentence in generation.strategy.examples():
        shown.add(sentence, sentence)
    for path in generation.wanted.against:
        for triplet in TripletFile("general", path).load().triplets:
            others.add(triplet.sentence, triplet.sentence)
    known = {"repeats an example of the prompt": shown, "repeats a sentence of generate.against": others}
    return known | {f"repeats a sentence of {index.name}": index.sentences for index in indices}


class _Live:
    """Progress: a changing line on a terminal, otherwise a log line after each wave."""

    def __init__(self, total: int) -> None:
        self.total, self.text, self._tally = total, "", tally(total)

    def __enter__(self) -> _Live:
        self._set = self._tally.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tally.__exit__(*error)

    def arrived(self, harvest: Harvest, spent: Spent) -> None:
        if self._set is not None:
            self._set(len(harvest.kept), _summary(harvest, spent, self.total))

    def paused(self, harvest: Harvest, spent: Spent) -> None:
        text = _summary(harvest, spent, self.total)
        if text != self.text:
            log.log(logging.INFO if self._set is None else logging.DEBUG, "%s", text)
        self.text = text


def _summary(harvest: Harvest, spent: Spent, total: int) -> str:
    counts = f"{len(harvest.kept)} of {total} accepted, {len(harvest.rejected)} rejected, {harvest.calls} calls"
    return f"{counts}, {dollars(spent.dollars)}"


# ---------------------------------------------------------------- the files


def _write(
    folder: DataFolder, generation: Generation, harvest: Harvest, spent: Spent, indices: Sequence[leakage.Index],
    seconds: float,
) -> report.Product:  # fmt: skip
    """Write the set, the rejected triplets, the card, the cost and the quality report."""
    path = folder.path / f"{_file_name(generation.name)}.jsonl"
    rows = list(_rows(harvest, generation.strategy.name))
    _write_lines(path, rows)
    _write_lines(folder.path / "rejected.jsonl", _rejected(harvest))
    diagnosis = doctor.examine(path, generation.task.label, indices, _unread(generation.wanted)) if rows else None
    write_json(folder.path / "quality.json", diagnosis.as_json() if diagnosis else {"records": 0})
    if diagnosis:
        write_text(folder.path / "quality.html", page(diagnosis))
    if harvest.losses:
        write_json(folder.path / "losses.json", {"rounds": harvest.losses})
    product = report.Product(
        path, generation.strategy, generation.llm, generation.task, harvest, spent, diagnosis, len(rows), seconds
    )
    write_json(folder.path / "cost.json", report.cost(product))
    write_text(folder.path / "README.md", report.card(product))
    return product


def _unread(wanted: Wanted) -> list[str]:
    return leakage.missing() if wanted.benchmarks else []


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name.rstrip("/").rsplit("/", 1)[-1]) or "triplets"


def _rows(harvest: Harvest, strategy: str) -> Iterator[dict[str, Any]]:
    for triplet, answer, prompt_sha256 in harvest.kept:
        yield {
            "sentence": triplet.sentence,
            "target": triplet.target,
            "attribute": triplet.attribute,
            "bias": triplet.bias,
            "source": triplet.source,
            "model": _model_name(answer.model),
            "strategy": strategy,
            "prompt_sha256": prompt_sha256,
            "request_id": answer.request_id,
            "time": answer.time,
        }


def _rejected(harvest: Harvest) -> Iterator[dict[str, Any]]:
    for item, reason, answer in harvest.rejected:
        yield {
            **item,
            "reason": reason,
            "like": reason.like,
            "model": _model_name(answer.model),
            "request_id": answer.request_id,
        }


def _model_name(name: str) -> str:
    """The server's name for the model. A local server may give a path, which should not get into the data."""
    return name.replace("\\", "/").rsplit("/", 1)[-1] if name.endswith(".gguf") or name.startswith("/") else name


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def biases(bias: str | Sequence[str]) -> tuple[str, ...]:
    """One or several biases as a tuple. Raises UserError if there is none."""
    found = tuple(str(b).strip() for b in ([bias] if isinstance(bias, str) else bias))
    if not found or not all(found):
        raise UserError(
            "bias is empty: name one, as in bias=age, or several for their intersection: bias=[race,gender]"
        )
    return found
