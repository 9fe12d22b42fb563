"""What is known of a generated set: its estimated cost, a preview, what came of it, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from debias.data.doctor import Diagnosis
from debias.generation.exchange import LLM, Bound, Request, Spent
from debias.generation.harvest import Harvest
from debias.generation.judge import Judge, Scores
from debias.generation.per_triplet import Replies
from debias.generation.strategies import Strategy, Task
from debias.wording import counted

TOKENS_A_TRIPLET = 45  # of an answer: 15 words, three field names, brackets and quotes
TOKENS_A_VERDICT = 30  # of an answer: three names and three scores

ENDINGS = {
    "n": "complete",
    "budget": "llm.max_cost_usd was reached",
    "patience": "generate.patience ran out",
    "filtered": "the server's content filter refuses the prompts",
    "failed": "the server failed",
    "batch": "a batch is still being processed",
    "preview": "a preview",
    "interrupted": "interrupted",
}


class Costs(NamedTuple):
    """The cost of calls: `likely` if answers are as long as usual, `most` with every call at its upper bound."""

    calls: int
    likely: tuple[int, int]  # prompt and completion tokens
    most: tuple[int, int]
    likely_dollars: float | None  # None if the price is unknown
    most_dollars: float | None


def costs(bounds: Sequence[Bound], answer_tokens: int) -> Costs:
    """The cost of calls with these upper bounds; answers usually have `answer_tokens`."""
    likely = [(bound.prompt_tokens // 4, min(bound.completion_tokens, answer_tokens)) for bound in bounds]
    prices = [bound.dollars(*tokens) for bound, tokens in zip(bounds, likely, strict=True)]
    largest = [bound.dollars(bound.prompt_tokens, bound.completion_tokens) for bound in bounds]
    return Costs(
        len(bounds),
        (sum(prompt for prompt, _ in likely), sum(answer for _, answer in likely)),
        (sum(bound.prompt_tokens for bound in bounds), sum(bound.completion_tokens for bound in bounds)),
        total(prices),
        total(largest),
    )


def total(prices: Sequence[float | None]) -> float | None:
    """The sum; None if one price is unknown."""
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None


class Estimate(NamedTuple):
    """The cost of what is missing in a set."""

    writing: Costs
    judging: Costs | None  # None: there is no judge
    naming: Costs | None  # of counterparts, for the whole set; None: they are not asked for
    paid: int  # answers already in the ledger
    kept: int  # triplets accepted from them
    wanted: int
    limit: float | None
    llms: list[LLM]  # of the writers
    stopped: str  # why the answers in the ledger end the run, as in `Harvest`; empty if they do not


class Verdicts(NamedTuple):
    """What a judge did for a set."""

    llm: LLM
    least: dict[str, int]  # the lowest scores that were accepted
    calls: int  # answers, in this run or before it
    scored: int  # triplets with readable scores
    means: dict[str, float]  # of their scores
    dollars: float | None


class Named(NamedTuple):
    """What came of asking for counterparts."""

    asked: int  # triplets
    found: int  # of them, those that got counterparts
    waiting: int  # those that were not asked about, because asking stopped
    stopped: str  # as in `Outcome`
    reason: str
    refused: dict[str, int]  # answers without two fitting words, by reason
    dollars: float | None


class Preview(NamedTuple):
    """What the first call for triplets brought."""

    size: int  # triplets to show of each kind
    harvest: Harvest
    request: Request | None  # None: no call was made, or it was not answered
    replies: Replies[Scores] | None  # of the judge, to the accepted triplets that are shown; None without a judge
    judge: Judge | None
    spent: Spent
    estimate: Estimate
    ledger: Path


class Product(NamedTuple):
    """A generated set, and how it came about."""

    path: Path
    strategy: Strategy
    llms: list[LLM]  # of the writers
    task: Task
    harvest: Harvest
    spent: Spent
    paid: int  # calls in this run, by the writers, the judge and for counterparts, with or without a usable answer
    diagnosis: Diagnosis | None  # None if nothing was accepted
    n: int
    seconds: float
    verdicts: Verdicts | None = None
    counterparts: Named | None = None
    tries_out: bool = False  # whether a model wrote it that is there to try things out

    @property
    def ending(self) -> str:
        """Why it ended, in words."""
        end = f"{self.n} of {counted(self.task.wanted.n, 'triplet')}, {ENDINGS[self.harvest.stopped]}"
        return f"{end}: {self.harvest.reason}" if self.harvest.reason else end

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Rejected triplets by reason, the most frequent first."""
        return Counter(str(r.reason) for r in self.harvest.rejected).most_common()

    @property
    def models(self) -> str:
        """The models that were asked to write."""
        return " and ".join(dict.fromkeys(llm.model for llm in self.llms))

    @property
    def priced_on(self) -> str:
        """The dates of the prices that are known."""
        return ", ".join(dict.fromkeys(llm.priced_on for llm in self.llms if llm.priced_on))

    @property
    def temperatures(self) -> str:
        """The temperatures of the writers."""
        return " and ".join(dict.fromkeys(str(llm.temperature) for llm in self.llms))

    @property
    def replaces_system_prompt(self) -> bool:
        """Whether a writer has a system prompt of its own."""
        return any(llm.system_prompt is not None for llm in self.llms)

    @property
    def accepted_share(self) -> float:
        """Accepted triplets as a share of all that the model wrote."""
        return self.n / max(1, self.n + len(self.harvest.rejected))


def cost_of(product: Product) -> dict[str, Any]:
    """Content of cost.json; dollars are null if the price is unknown."""
    spent = product.spent
    tokens = spent.prompt_tokens + spent.completion_tokens
    stage = {"seconds": round(product.seconds, 2), "tokens": tokens, **spent._asdict()}
    if product.verdicts is not None:  # this and the next: parts of the above
        stage["judge"] = {"calls": product.verdicts.calls, "dollars": product.verdicts.dollars}
    if product.counterparts is not None:
        stage["counterparts"] = {"triplets": product.counterparts.found, "dollars": product.counterparts.dollars}
    return {
        "tokens": tokens,
        "dollars": spent.dollars,
        "seconds": round(product.seconds, 2),
        "stages": {"generate": stage},
    }
