"""What a set is made with: its settings, the clients of its models, and the loop that asks them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from debias.data import leakage
from debias.data.quality import NearDuplicates
from debias.data.triplets import TripletFile
from debias.generation.acceptance import Acceptance
from debias.generation.client import Chat
from debias.generation.counterparts import Counterparts
from debias.generation.exchange import LLM, ChatModel, Partner, Request
from debias.generation.harvest import Loop, Watcher
from debias.generation.judge import Judge, Judging
from debias.generation.ledger import Ledger
from debias.generation.strategies import Strategy, Task
from debias.generation.wanted import Wanted
from debias.generation.writers import Writers
from debias.progress import bar
from debias.wording import counted

log = logging.getLogger(__name__)


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


def make_loop(
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


def benchmarks_of(wanted: Wanted) -> list[leakage.Index]:
    """The sentences of the benchmarks that a set must not repeat; none if they are not wanted."""
    if not wanted.benchmarks:
        return []
    for name in leakage.missing():
        log.info("not compared with %s: set DEBIAS_DATA to the folder that holds it", name)
    names = leakage.available()
    return [leakage.benchmark_index(name) for name in bar("reading benchmarks")(names, len(names))]


@contextlib.contextmanager
def chats_of(models: Sequence[ChatModel], ledger: Ledger) -> Iterator[list[Chat]]:
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


async def run_loop(chats: Sequence[Chat], loop: Loop, strategy: Strategy) -> None:
    """Run a loop with its clients open."""
    async with contextlib.AsyncExitStack() as stack:
        for chat in chats:
            await stack.enter_async_context(chat)
        if known := len(chats[0].ledger.memory.answers):
            log.info("reusing %s from the ledger", counted(known, "answer"))
        await loop.run(strategy)
