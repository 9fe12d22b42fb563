"""`debias generate`: a chat model writes triplets into a folder with a data set."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from debias.data import doctor, leakage
from debias.data.doctor import CRITERIA
from debias.data.quality import NearDuplicates
from debias.data.triplets import TripletFile
from debias.files import write_json, write_text
from debias.generation.acceptance import Acceptance
from debias.generation.client import Chat
from debias.generation.exchange import LLM, Answer, ChatModel, Outcome, Partner, Request, Spent, question_of
from debias.generation.harvest import Harvest, Loop, Watcher
from debias.generation.judge import Judge, Judging, Scores
from debias.generation.ledger import Ledger, Memory, read_ledger
from debias.generation.per_triplet import Replies
from debias.generation.strategies import Strategy, Task
from debias.generation.wanted import Wanted
from debias.generation.writers import Turns, Writers
from debias.progress import bar, tally
from debias.records import Triplet, UserError
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
    writers: tuple[ChatModel, ...]
    strategy: Strategy
    wanted: Wanted
    biases: tuple[str, ...]
    seed: int
    judge: Judge | None = None

    @property
    def llms(self) -> list[LLM]:
        """The settings of the writers."""
        return [writer.llm for writer in self.writers]

    @property
    def models(self) -> list[ChatModel]:
        """All models that are asked: the writers, then the judge."""
        return [*self.writers, *([self.judge.model] if self.judge else [])]

    @property
    def task(self) -> Task:
        biases = self.biases if self.strategy.biased else ("general",)
        return Task(biases, self.seed, self.writers[0].llm.max_tokens, self.wanted)


# ---------------------------------------------------------------- what it would cost


def estimate(generation: Generation, ledger: Path) -> report.Estimate:
    """Likely and largest calls, tokens and dollars. Nothing is sent or written."""
    llms, wanted = generation.llms, generation.wanted
    first, typical = generation.strategy.preview(generation.task)
    memory = read_ledger(ledger)
    loop = _replayed(generation, memory)
    ended = loop.harvest.stopped in ("n", "patience", "filtered")  # the ledger already holds the whole run
    writer = Turns([llm.share for llm in llms])
    requests = [] if ended else [*(first if not memory.answers else []), *[typical] * loop.to_come()]
    sized = [(request, llms[writer[call]]) for call, request in enumerate(requests)]
    bounds = [question_of(request._replace(max_tokens=llm.max_tokens), llm).bound for request, llm in sized]
    writing = report.costs(bounds, wanted.per_call * report.TOKENS_A_TRIPLET)
    judging = None
    if generation.judge is not None:
        scored = len(loop.harvest.kept) + sum(one.scores is not None for one in loop.harvest.rejected)
        passed = len(loop.harvest.kept) / scored if scored else 1.0
        judged = math.ceil((wanted.n - len(loop.harvest.kept)) / max(passed, 0.1)) if not ended else 0
        sentence = " ".join(["letters"] * wanted.max_words)
        asked = generation.judge.request(Triplet(sentence, "a dozen letters", "letters", "a dozen", "", 0, 0), 0)
        judging = report.costs([question_of(asked, generation.judge.llm).bound] * judged, report.TOKENS_A_VERDICT)
    return report.Estimate(
        writing, judging, len(memory.answers), len(loop.harvest.kept), wanted.n, llms[0].max_cost_usd, llms,
        loop.harvest.stopped if ended else "",
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
    partners = [_Replay(model.llm, memory) for model in generation.models]
    loop = _loop(generation, partners, _Silent(), indices)
    if memory.answers:
        asyncio.run(loop.run(generation.strategy))
    return loop


def _loop(
    generation: Generation, partners: Sequence[Partner], watcher: Watcher, indices: Sequence[leakage.Index],
    one_call: bool = False,
) -> Loop:  # fmt: skip
    """The loop of a set; `partners` are the chat clients of its models, in their order."""
    writers = Writers(generation.llms, partners[: len(generation.writers)])
    judging = None if generation.judge is None else Judging(generation.judge, partners[-1])
    acceptance = Acceptance(generation.wanted, _known(generation, indices))

    def source(request: Request) -> str:
        return f"{generation.strategy.name}/{generation.llms[writers.writer(request)].model}"

    return Loop(writers, acceptance, generation.task, source, watcher, judging, one_call)


class _Silent:
    def arrived(self, harvest: Harvest, spent: Spent) -> None: ...

    def paused(self, harvest: Harvest, spent: Spent) -> None: ...


# ---------------------------------------------------------------- a preview


def preview(folder: DataFolder, generation: Generation, size: int) -> report.Preview:
    """What the first call for triplets brings, and what the set would cost. Only the ledger is written.

    The calls are those that the set begins with, so the set finds their answers in the ledger.

    Args:
        size: triplets to show, of those accepted and of those rejected; a judge scores no more than these.
    """
    writers = tuple(writer._replace(llm=replace(writer.llm, batch=False)) for writer in generation.writers)
    now = generation._replace(writers=writers)  # nobody waits a day for a preview
    if size < 1:
        raise UserError(f"preview={size} must be 1 or more")
    indices = _benchmarks(generation.wanted)
    ledger = Ledger(folder.path / LEDGER)
    with _chats(now.models, ledger) as chats, ledger:
        loop = _loop(now._replace(judge=None), chats, _Silent(), indices, one_call=True)
        asyncio.run(_run(chats[: len(writers)], loop, generation.strategy))
        kept = loop.harvest.kept[:size]
        replies: Replies[Scores] | None = None
        if generation.judge is not None:
            replies = asyncio.run(_scored(generation.judge, chats[-1], [one.triplet for one in kept]))
    return report.Preview(
        size, loop.harvest, loop.last_request, replies, generation.judge, ledger.memory.spent,
        estimate(generation, ledger.path), ledger.path,
    )  # fmt: skip


async def _scored(judge: Judge, chat: Chat, triplets: Sequence[Triplet]) -> Replies[Scores]:
    async with chat:
        return await Judging(judge, chat).ask(triplets)


# ---------------------------------------------------------------- the job


def generate(folder: DataFolder, generation: Generation) -> report.Product:
    """Ask until there are enough triplets or it has to stop, and write everything. The ledger's answers are reused.

    Raises UserError or KeyboardInterrupt, after writing what was harvested so far.
    """
    start = time.monotonic()
    indices = _benchmarks(generation.wanted)
    ledger = Ledger(folder.path / LEDGER)
    with _Live(generation.wanted.n) as live, _chats(generation.models, ledger) as chats, ledger:
        loop = _loop(generation, chats, live, indices)
        try:
            asyncio.run(_run(chats, loop, generation.strategy))
        except BaseException as error:
            loop.harvest.stopped, loop.harvest.reason = "interrupted", str(error)
            with contextlib.suppress(OSError):
                if loop.harvest.calls:
                    _write(folder, generation, loop, ledger.memory.spent, indices, time.monotonic() - start)
            raise
    product = _write(folder, generation, loop, ledger.memory.spent, indices, time.monotonic() - start)
    folder.end(loop.harvest)
    return product


@contextlib.contextmanager
def _chats(models: Sequence[ChatModel], ledger: Ledger) -> Iterator[list[Chat]]:
    """A client for each model; models with the same server of ours share it."""
    with contextlib.ExitStack() as stack:
        started: list[tuple[AbstractContextManager[str], str]] = []
        chats = []
        for model in models:
            address = next((address for server, address in started if server == model.server), None)
            if model.server is not None and address is None:
                address = stack.enter_context(model.server)
                started.append((model.server, address))
            chats.append(Chat(model.llm, ledger, address))
        yield chats


async def _run(chats: Sequence[Chat], loop: Loop, strategy: Strategy) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for chat in chats:
            await stack.enter_async_context(chat)
        if known := len(chats[0].ledger.memory.answers):
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
    folder: DataFolder, generation: Generation, loop: Loop, spent: Spent, indices: Sequence[leakage.Index],
    seconds: float,
) -> report.Product:  # fmt: skip
    """Write the set, the rejected triplets, the card, the cost and the quality report."""
    harvest = loop.harvest
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
        path, generation.strategy, generation.llms, generation.task, harvest, spent, diagnosis, len(rows), seconds,
        _verdicts(loop),
    )  # fmt: skip
    write_json(folder.path / "cost.json", report.cost(product))
    write_text(folder.path / "README.md", report.card(product))
    return product


def _verdicts(loop: Loop) -> report.Verdicts | None:
    """What the judge did; None if there is none."""
    if (judging := loop.judging) is None:
        return None
    every = [*(one.scores for one in loop.harvest.kept), *(one.scores for one in loop.harvest.rejected)]
    scored = [scores for scores in every if scores is not None]
    means = {name: statistics.mean(getattr(s, name) for s in scored) for name in CRITERIA} if scored else {}
    return report.Verdicts(
        judging.judge.llm, judging.judge.least, len(judging.used), len(scored), means, judging.dollars
    )


def _unread(wanted: Wanted) -> list[str]:
    return leakage.missing() if wanted.benchmarks else []


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name.rstrip("/").rsplit("/", 1)[-1]) or "triplets"


def _rows(harvest: Harvest, strategy: str) -> Iterator[dict[str, Any]]:
    for triplet, answer, prompt_sha256, scores in harvest.kept:
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
            **_score_columns(scores),
        }


def _rejected(harvest: Harvest) -> Iterator[dict[str, Any]]:
    for item, reason, answer, scores in harvest.rejected:
        yield {
            **item,
            "reason": reason,
            "like": reason.like,
            "model": _model_name(answer.model),
            "request_id": answer.request_id,
            **_score_columns(scores),
        }


def _score_columns(scores: Scores | None) -> dict[str, Any]:
    return {} if scores is None else {**scores._asdict(), "judge": _model_name(scores.judge)}


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
