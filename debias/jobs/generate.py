"""`debias generate`: a chat model writes triplets into a folder with a data set."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from debias.data import doctor, leakage
from debias.data.doctor import CRITERIA
from debias.data.triplets import TripletFile, read_records
from debias.files import write_json, write_text
from debias.generation import client
from debias.generation.client import Chat
from debias.generation.counterparts import Naming, Pair
from debias.generation.exchange import Spent
from debias.generation.harvest import Harvest, Loop
from debias.generation.judge import Scores
from debias.generation.ledger import Ledger, Memory
from debias.generation.local import LlamaServer
from debias.generation.per_triplet import Replies
from debias.generation.wanted import Wanted
from debias.jobs.generate_counterparts import ask_pairs, named_of, pair_columns
from debias.jobs.generate_loop import Generation, benchmarks_of, chats_of, make_loop, run_loop
from debias.jobs.generated_folder import LEDGER, DataFolder, file_name, model_name, write_lines
from debias.progress import on_terminal, tally
from debias.records import UserError
from debias.report.one_run.data_quality import page
from debias.report.one_run.generated_set import Product, Verdicts, cost_of
from debias.report.one_run.generated_set_shown import data_card
from debias.report.templating import dollars
from debias.wording import counted

log = logging.getLogger(__name__)


def check(generation: Generation) -> None:
    """Raise UserError for what can be told without reading a benchmark or asking anybody: a key, an address, a file."""
    for model in generation.models:
        client.check(model)
    generation.strategy.check()
    for path in generation.wanted.against:
        TripletFile("general", path).load()
    if generation.counterparts is not None and generation.counterparts.file is not None:
        read_records(Path(generation.counterparts.file).expanduser())


def generate(folder: DataFolder, generation: Generation) -> Product:
    """Ask until there are enough triplets or it has to stop, and write everything. The ledger's answers are reused.

    Raises UserError or KeyboardInterrupt, after writing what was harvested so far.
    """
    ledger = Ledger(folder.path / LEDGER)
    with ledger, chats_of(generation.models, ledger) as chats:
        product = _generated(folder, generation, chats, ledger.memory)
    folder.end(len(product.harvest.kept), product.harvest.stopped, product.harvest.reason)
    return product


def _generated(folder: DataFolder, generation: Generation, chats: Sequence[Chat], memory: Memory) -> Product:
    start, before = time.monotonic(), memory.spent.calls
    indices = benchmarks_of(generation.wanted)
    with _Live(generation.wanted.n) as live:
        loop = make_loop(generation, chats, live, indices)

        def write(asker: Naming | None, pairs: Replies[Pair] | None) -> Product:
            seconds = time.monotonic() - start
            paid = memory.spent.calls - before
            return _write(folder, generation, loop, asker, pairs, memory.spent, paid, indices, seconds)

        asker = None if generation.counterparts is None else Naming(generation.counterparts, chats[-1])
        pairs: Replies[Pair] | None = None
        try:
            asyncio.run(run_loop(chats, loop, generation.strategy))
            if asker is not None:
                waits = loop.harvest.stopped in ("failed", "batch")
                pairs = asyncio.run(ask_pairs(asker, chats[-1], [one.triplet for one in loop.harvest.kept], waits))
        except BaseException as error:
            loop.harvest.stopped, loop.harvest.reason = "interrupted", str(error)
            if asker is not None:
                pairs = asyncio.run(asker.ask([one.triplet for one in loop.harvest.kept], only_known=True))
            with contextlib.suppress(OSError):
                if loop.harvest.calls:
                    write(asker, pairs)
            raise
    return write(asker, pairs)


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


def _write(
    folder: DataFolder, generation: Generation, loop: Loop, asker: Naming | None,
    pairs: Replies[Pair] | None, spent: Spent, paid: int,
    indices: Sequence[leakage.Index], seconds: float,
) -> Product:  # fmt: skip
    """Write the set, the rejected triplets, the card, the cost and the quality report."""
    harvest = loop.harvest
    path = folder.path / f"{file_name(generation.name)}.jsonl"
    rows = list(_rows(harvest, generation.strategy.name))
    if pairs is not None:
        rows = [row | pair_columns(reply.value) for row, reply in zip(rows, pairs.each, strict=True)]
    had = sum(map(bool, path.read_text(encoding="utf-8").split("\n"))) if path.is_file() else 0
    if had > len(rows):
        log.warning(
            "%s held %s and holds %d now; the ledger keeps the others", path.name, counted(had, "triplet"), len(rows)
        )
    write_lines(path, rows)
    write_lines(folder.path / "rejected.jsonl", _rejected(harvest))
    diagnosis = doctor.examine(path, generation.task.label, indices, _unread(generation.wanted)) if rows else None
    write_json(folder.path / "quality.json", diagnosis.as_json() if diagnosis else {"records": 0})
    if diagnosis:
        write_text(folder.path / "quality.html", page(diagnosis))
    if harvest.losses:
        write_json(folder.path / "losses.json", {"rounds": harvest.losses})
    product = Product(
        path, generation.strategy, generation.llms, generation.task, harvest, spent, paid, diagnosis, len(rows),
        seconds,
        _verdicts(loop), None if asker is None or pairs is None else named_of(asker, pairs),
        all(isinstance(writer.server, LlamaServer) and writer.server.tries_out for writer in generation.writers),
    )  # fmt: skip
    write_json(folder.path / "cost.json", cost_of(product))
    write_text(folder.path / "README.md", data_card(product))
    return product


def _verdicts(loop: Loop) -> Verdicts | None:
    """What the judge did; None if there is none."""
    if (judging := loop.judging) is None:
        return None
    every = [*(one.scores for one in loop.harvest.kept), *(one.scores for one in loop.harvest.rejected)]
    scored = [scores for scores in every if scores is not None]
    means = {name: statistics.mean(getattr(s, name) for s in scored) for name in CRITERIA} if scored else {}
    return Verdicts(judging.judge.llm, judging.judge.least, len(judging.used), len(scored), means, judging.dollars)


def _unread(wanted: Wanted) -> list[str]:
    return leakage.missing() if wanted.benchmarks else []


def _rows(harvest: Harvest, strategy: str) -> Iterator[dict[str, Any]]:
    for triplet, answer, prompt_sha256, scores in harvest.kept:
        yield {
            "sentence": triplet.sentence,
            "target": triplet.target,
            "attribute": triplet.attribute,
            "bias": triplet.bias,
            "source": triplet.source,
            "model": model_name(answer.model),
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
            "model": model_name(answer.model),
            "request_id": answer.request_id,
            **_score_columns(scores),
        }


def _score_columns(scores: Scores | None) -> dict[str, Any]:
    return {} if scores is None else {**scores._asdict(), "judge": model_name(scores.judge)}


def biases(bias: str | Sequence[str]) -> tuple[str, ...]:
    """One or several biases as a tuple. Raises UserError if there is none."""
    found = tuple(str(b).strip() for b in ([bias] if isinstance(bias, str) else bias))
    if not found or not all(found):
        raise UserError(
            "bias is empty: name one, as in bias=age, or several for their intersection: bias=[race,gender]"
        )
    return found
