"""What a set would cost, without a call, and what it would look like, after one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from debias.generation.client import Chat
from debias.generation.exchange import LLM, Answer, Outcome, Request, Spent, question_of
from debias.generation.harvest import Harvest, Loop
from debias.generation.judge import Judge, Judging, Scores
from debias.generation.ledger import Ledger, Memory, read_ledger
from debias.generation.per_triplet import Replies
from debias.generation.writers import Turns
from debias.jobs.generate_loop import Generation, benchmarks_of, chats_of, make_loop, run_loop
from debias.jobs.generated_folder import LEDGER, DataFolder
from debias.records import Triplet
from debias.report.one_run.generated_set import TOKENS_A_TRIPLET, TOKENS_A_VERDICT, Estimate, Preview, costs


def estimate(generation: Generation, ledger: Path) -> Estimate:
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
    writing = costs(bounds, wanted.per_call * TOKENS_A_TRIPLET)
    judging = None
    if generation.judge is not None:
        scored = len(loop.harvest.kept) + sum(one.scores is not None for one in loop.harvest.rejected)
        passed = len(loop.harvest.kept) / scored if scored else 1.0
        judged = math.ceil((wanted.n - len(loop.harvest.kept)) / max(passed, 0.1)) if not ended else 0
        sentence = " ".join(["letters"] * wanted.max_words)
        asked = generation.judge.request(Triplet(sentence, "a dozen letters", "letters", "a dozen", "", 0, 0), 0)
        judging = costs([question_of(asked, generation.judge.llm).bound] * judged, TOKENS_A_VERDICT)
    naming = None
    if generation.counterparts is not None:
        sentence = " ".join(["letters"] * wanted.max_words)
        asked = generation.counterparts.request(Triplet(sentence, "a dozen letters", "letters", "a dozen", "", 0, 7), 0)
        bound = question_of(asked, generation.counterparts.model.llm).bound
        naming = costs([bound] * wanted.n, TOKENS_A_VERDICT)
    return Estimate(
        writing, judging, naming, len(memory.answers), len(loop.harvest.kept), wanted.n, llms[0].max_cost_usd, llms,
        loop.harvest.stopped if ended else "",
    )  # fmt: skip


def _replayed(generation: Generation, memory: Memory) -> Loop:
    """The loop, run as far as the answers in the ledger go."""
    indices = benchmarks_of(generation.wanted) if memory.answers else []
    partners = [_Replay(model.llm, memory) for model in generation.models]
    loop = make_loop(generation, partners, Silent(), indices)
    if memory.answers:
        asyncio.run(loop.run(generation.strategy))
    return loop


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


class Silent:
    def arrived(self, harvest: Harvest, spent: Spent) -> None: ...

    def paused(self, harvest: Harvest, spent: Spent) -> None: ...


def preview(folder: DataFolder, generation: Generation, size: int) -> Preview:
    """What the first call for triplets brings, and what the set would cost. Only the ledger is written.

    The calls are those that the set begins with, so the set finds their answers in the ledger.

    Args:
        size: triplets to show, of those accepted and of those rejected; a judge scores no more than these.
    """
    writers = tuple(writer._replace(llm=replace(writer.llm, batch=False)) for writer in generation.writers)
    now = generation._replace(writers=writers)  # nobody waits a day for a preview
    ledger = Ledger(folder.path / LEDGER)
    with ledger, chats_of(now.models, ledger) as chats:
        loop = make_loop(now._replace(judge=None), chats, Silent(), benchmarks_of(generation.wanted), one_call=True)
        asyncio.run(run_loop(chats[: len(writers)], loop, generation.strategy))
        kept = loop.harvest.kept[:size]
        replies: Replies[Scores] | None = None
        if generation.judge is not None:
            replies = asyncio.run(_scored(generation.judge, chats[len(writers)], [one.triplet for one in kept]))
    return Preview(
        size, loop.harvest, loop.last_request, replies, generation.judge, ledger.memory.spent,
        estimate(generation, ledger.path), ledger.path,
    )  # fmt: skip


async def _scored(judge: Judge, chat: Chat, triplets: Sequence[Triplet]) -> Replies[Scores]:
    async with chat:
        return await Judging(judge, chat).ask(triplets)
