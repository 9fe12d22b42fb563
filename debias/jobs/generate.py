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
from debias.data.triplets import FIELDS, Record, TripletFile, read_records, strict
from debias.files import write_json, write_text
from debias.generation import client
from debias.generation.acceptance import Acceptance
from debias.generation.client import Chat
from debias.generation.counterparts import Counterparts, Naming, Pair
from debias.generation.exchange import LLM, Answer, ChatModel, Outcome, Partner, Request, Spent, question_of
from debias.generation.harvest import Harvest, Loop, Watcher
from debias.generation.judge import Judge, Judging, Scores
from debias.generation.ledger import Ledger, Memory, read_ledger
from debias.generation.local import LlamaServer
from debias.generation.per_triplet import Replies
from debias.generation.strategies import Strategy, Task
from debias.generation.wanted import Wanted
from debias.generation.writers import Turns, Writers
from debias.progress import bar, on_terminal, tally
from debias.records import Triplet, UserError
from debias.report.one_run import generated_set as report
from debias.report.one_run.data_quality import page
from debias.report.templating import dollars
from debias.results import REFUSED, RunFolder
from debias.wording import counted

log = logging.getLogger(__name__)

LEDGER = "ledger.jsonl"
# All that may be removed from the folder of a set, beside the set itself and never the ledger.
SET_FILES = frozenset({
    "status.json", "config.yaml", "run.log", "rejected.jsonl", "quality.json", "quality.html", "losses.json",
    "cost.json", "README.md", REFUSED,
})  # fmt: skip


class DataFolder(RunFolder):
    """The folder of a generated set. The set can always grow, and its ledger is never removed."""

    kept = frozenset({LEDGER})

    def __init__(self, path: Path, config: str, identity: Mapping[str, str], name: str) -> None:
        super().__init__(path, config, identity)
        self.own = SET_FILES | {f"{_file_name(name)}.jsonl"}

    def _open(self, overwrite: bool, accept_other_code: bool) -> bool:
        before = self._status(overwrite)
        if before and overwrite:
            self._stale = True
        elif before and before.get("config_sha256") != self.identity["config_sha256"]:
            raise UserError(
                f"{self.path} holds a set made by another config; keep both with name=OTHER, or replace it with "
                "overwrite=true (the ledger with its paid answers stays)"
            )
        elif not before and [path for path in self._files() if path.name != LEDGER]:
            raise UserError(self._without_a_run("generated set"))
        return True

    def end(self, triplets: int, stopped: str, reason: str) -> None:
        """Write the state `done`, with the size of the set and the reason why it is not larger."""
        self._write_status("done", triplets=triplets, stopped=stopped, reason=reason)


class Generation(NamedTuple):
    """Everything that determines a set, and its budget."""

    name: str
    writers: tuple[ChatModel, ...]
    strategy: Strategy
    wanted: Wanted
    biases: tuple[str, ...]
    seed: int
    judge: Judge | None = None
    counterparts: Counterparts | None = None

    @property
    def llms(self) -> list[LLM]:
        """The settings of the writers."""
        return [writer.llm for writer in self.writers]

    @property
    def models(self) -> list[ChatModel]:
        """All models that are asked: the writers, the judge, the one that names counterparts."""
        return [*self.writers, *(job.model for job in (self.judge, self.counterparts) if job is not None)]

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
    naming = None
    if generation.counterparts is not None:
        sentence = " ".join(["letters"] * wanted.max_words)
        asked = generation.counterparts.request(Triplet(sentence, "a dozen letters", "letters", "a dozen", "", 0, 7), 0)
        bound = question_of(asked, generation.counterparts.model.llm).bound
        naming = report.costs([bound] * wanted.n, report.TOKENS_A_VERDICT)
    return report.Estimate(
        writing, judging, naming, len(memory.answers), len(loop.harvest.kept), wanted.n, llms[0].max_cost_usd, llms,
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
    judging = None if generation.judge is None else Judging(generation.judge, partners[len(generation.writers)])
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
    ledger = Ledger(folder.path / LEDGER)
    with ledger, _chats(now.models, ledger) as chats:
        loop = _loop(now._replace(judge=None), chats, _Silent(), _benchmarks(generation.wanted), one_call=True)
        asyncio.run(_run(chats[: len(writers)], loop, generation.strategy))
        kept = loop.harvest.kept[:size]
        replies: Replies[Scores] | None = None
        if generation.judge is not None:
            replies = asyncio.run(_scored(generation.judge, chats[len(writers)], [one.triplet for one in kept]))
    return report.Preview(
        size, loop.harvest, loop.last_request, replies, generation.judge, ledger.memory.spent,
        estimate(generation, ledger.path), ledger.path,
    )  # fmt: skip


async def _scored(judge: Judge, chat: Chat, triplets: Sequence[Triplet]) -> Replies[Scores]:
    async with chat:
        return await Judging(judge, chat).ask(triplets)


# ---------------------------------------------------------------- the job


def check(generation: Generation) -> None:
    """Raise UserError for what can be told without reading a benchmark or asking anybody: a key, an address, a file."""
    for model in generation.models:
        client.check(model)
    generation.strategy.check()
    for path in generation.wanted.against:
        TripletFile("general", path).load()
    if generation.counterparts is not None and generation.counterparts.file is not None:
        read_records(Path(generation.counterparts.file).expanduser())


def generate(folder: DataFolder, generation: Generation) -> report.Product:
    """Ask until there are enough triplets or it has to stop, and write everything. The ledger's answers are reused.

    Raises UserError or KeyboardInterrupt, after writing what was harvested so far.
    """
    ledger = Ledger(folder.path / LEDGER)
    with ledger, _chats(generation.models, ledger) as chats:
        product = _generated(folder, generation, chats, ledger.memory)
    folder.end(len(product.harvest.kept), product.harvest.stopped, product.harvest.reason)
    return product


def _generated(folder: DataFolder, generation: Generation, chats: Sequence[Chat], memory: Memory) -> report.Product:
    start = time.monotonic()
    indices = _benchmarks(generation.wanted)
    with _Live(generation.wanted.n) as live:
        loop = _loop(generation, chats, live, indices)

        def write(asker: Naming | None, pairs: Replies[Pair] | None) -> report.Product:
            seconds = time.monotonic() - start
            return _write(folder, generation, loop, asker, pairs, memory.spent, indices, seconds)

        asker = None if generation.counterparts is None else Naming(generation.counterparts, chats[-1])
        pairs: Replies[Pair] | None = None
        try:
            asyncio.run(_run(chats, loop, generation.strategy))
            if asker is not None:
                waits = loop.harvest.stopped in ("failed", "batch")
                pairs = asyncio.run(_asked(asker, chats[-1], [one.triplet for one in loop.harvest.kept], waits))
        except BaseException as error:
            loop.harvest.stopped, loop.harvest.reason = "interrupted", str(error)
            if asker is not None:
                pairs = asyncio.run(asker.ask([one.triplet for one in loop.harvest.kept], only_known=True))
            with contextlib.suppress(OSError):
                if loop.harvest.calls:
                    write(asker, pairs)
            raise
    return write(asker, pairs)


async def _asked(asker: Naming, chat: Chat, triplets: Sequence[Triplet], only_known: bool = False) -> Replies[Pair]:
    async with chat:
        return await asker.ask(triplets, only_known)


def _named(asker: Naming, pairs: Replies[Pair]) -> report.Named:
    """What came of asking for counterparts."""
    found = sum(reply.value is not None for reply in pairs.each)
    waiting = sum(not reply.settled for reply in pairs.each)
    refused = dict(asker.counterparts.refused)
    return report.Named(len(pairs.each), found, waiting, pairs.stopped, pairs.reason, refused, asker.dollars)


# ---------------------------------------------------------------- counterparts of a file


def add_counterparts(
    folder: DataFolder, counterparts: Counterparts, source: Path
) -> tuple[Path, report.Named]:  # fmt: skip
    """Write a copy of a file of triplets with counterparts, into the folder.

    Records that have both keep them, records that cannot be used keep what they have, and no record is lost.
    """
    records, broken = read_records(source)
    if broken:
        raise UserError(f"{broken[0].where}: {broken[0].reason}; fix or delete it (`debias doctor` lists all faults)")
    found = [strict(record) for record in records]
    asked = [i for i, t in enumerate(found) if isinstance(t, Triplet) and not (t.stereotype and t.unrelated)]
    ledger = Ledger(folder.path / LEDGER)
    with ledger, _chats([counterparts.model], ledger) as (chat,):
        asker = Naming(counterparts, chat)
        triplets = [t for i in asked if isinstance(t := found[i], Triplet)]
        pairs = asyncio.run(_asked(asker, chat, triplets))
    added = dict(zip(asked, (reply.value for reply in pairs.each), strict=True))
    path = folder.path / f"{_file_name(source.name.partition('.')[0])}.jsonl"
    rows = ({**_row(record), **_pair_columns(added.get(i))} for i, record in enumerate(records))
    _write_lines(path, rows)
    named, spent = _named(asker, pairs), ledger.memory.spent
    tokens = spent.prompt_tokens + spent.completion_tokens
    write_json(
        folder.path / "cost.json",
        {"tokens": tokens, "dollars": spent.dollars, "stages": {"counterparts": spent._asdict()}},
    )
    folder.end(len(records), named.stopped, named.reason)
    return path, named


def _row(record: Record) -> dict[str, Any]:
    """All that the file says about a record, with its texts as columns."""
    return {**record.row, **{name: getattr(record, name) for name in (*FIELDS, "bias") if getattr(record, name)}}


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
            log.info("reusing %s from the ledger", counted(known, "answer"))
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
        self.total, self.text, self._tally = total, "", tally("generate", total)

    def __enter__(self) -> _Live:
        self._set = self._tally.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tally.__exit__(*error)

    def arrived(self, harvest: Harvest, spent: Spent) -> None:
        self._set(len(harvest.kept), _summary(harvest, spent))

    def paused(self, harvest: Harvest, spent: Spent) -> None:
        text = f"{len(harvest.kept)} of {self.total} accepted, {_summary(harvest, spent)}"
        if text != self.text:
            log.log(logging.DEBUG if on_terminal() else logging.INFO, "%s", text)
        self.text = text


def _summary(harvest: Harvest, spent: Spent) -> str:
    return f"{len(harvest.rejected)} rejected, {counted(harvest.calls, 'call')}, {dollars(spent.dollars)}"


# ---------------------------------------------------------------- the files


def _write(
    folder: DataFolder, generation: Generation, loop: Loop, asker: Naming | None,
    pairs: Replies[Pair] | None, spent: Spent,
    indices: Sequence[leakage.Index], seconds: float,
) -> report.Product:  # fmt: skip
    """Write the set, the rejected triplets, the card, the cost and the quality report."""
    harvest = loop.harvest
    path = folder.path / f"{_file_name(generation.name)}.jsonl"
    rows = list(_rows(harvest, generation.strategy.name))
    if pairs is not None:
        rows = [row | _pair_columns(reply.value) for row, reply in zip(rows, pairs.each, strict=True)]
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
        _verdicts(loop), None if asker is None or pairs is None else _named(asker, pairs),
        all(isinstance(writer.server, LlamaServer) and writer.server.tries_out for writer in generation.writers),
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


def _pair_columns(pair: Pair | None) -> dict[str, Any]:
    if pair is None:
        return {}
    return {"stereotype": pair.stereotype, "unrelated": pair.unrelated, "counterparts": _model_name(pair.model)}


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
