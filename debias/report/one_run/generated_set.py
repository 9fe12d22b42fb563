"""A generated set for people: what it would cost, what came of it, and its data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from debias import __version__
from debias.data.doctor import Diagnosis
from debias.generation.exchange import LLM, Spent
from debias.generation.harvest import Harvest
from debias.generation.strategies import Strategy, Task
from debias.report.templating import fill

TOKENS_A_TRIPLET = 45  # of an answer: 15 words, three names of fields, brackets and quotes

ENDINGS = {
    "n": "complete",
    "budget": "llm.max_cost_usd is reached",
    "patience": "generate.patience is used up",
    "filtered": "the server's content filter refuses the prompts",
    "failed": "the server failed",
    "batch": "a batch is on its way",
    "interrupted": "interrupted",
}
AHEAD = {  # what must change before the same command can go further
    "budget": "raise llm.max_cost_usd",
    "patience": "raise generate.patience, or change what is asked (strategy.*) or what may get in (generate.*)",
    "filtered": "change what is asked (strategy.*) or who is asked (llm=...), or raise generate.max_filtered",
}


class Estimate(NamedTuple):
    """What a set would cost: `likely` at the expected yield, `most` with every call at its upper bound."""

    calls: int
    paid: int  # answers that the ledger has already
    kept: int  # triplets that were accepted from them
    wanted: int
    likely: tuple[int, int]  # prompt and completion tokens
    most: tuple[int, int]
    likely_dollars: float | None  # None: the price is unknown
    most_dollars: float | None
    limit: float | None
    model: str
    priced_on: str | None
    stopped: str  # why the answers in the ledger end the run, as in `Harvest`; empty if they do not


class Product(NamedTuple):
    """A generated set, and how it came about."""

    path: Path
    strategy: Strategy
    llm: LLM
    task: Task
    harvest: Harvest
    spent: Spent
    diagnosis: Diagnosis | None  # None: nothing was accepted
    n: int
    seconds: float

    @property
    def ending(self) -> str:
        """Why it ended, in words."""
        end = f"{self.n} of {self.task.wanted.n} triplets, {ENDINGS[self.harvest.stopped]}"
        return f"{end}: {self.harvest.reason}" if self.harvest.reason else end

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Rejected triplets by reason, the most frequent first."""
        return Counter(str(r.reason) for r in self.harvest.rejected).most_common()

    @property
    def accepted_share(self) -> float:
        """Accepted of all triplets that came."""
        return self.n / max(1, self.n + len(self.harvest.rejected))


def dollars(amount: float | None) -> str:
    """An amount for people."""
    if amount is None:
        return "dollars unknown (no price in the config)"
    return f"{amount:.2f} dollars" if amount >= 1 or amount == 0 else f"{amount:.4f} dollars"


def estimate(e: Estimate) -> RenderableType:
    """The estimate as a table."""
    table = _table("", "expected", "at most")
    table.add_row("calls", f"{e.calls:,}", "as many as it takes")
    table.add_row("prompt tokens", f"{e.likely[0]:,}", f"{e.most[0]:,}")
    table.add_row("answer tokens", f"{e.likely[1]:,}", f"{e.most[1]:,}")
    table.add_row("cost", dollars(e.likely_dollars), dollars(e.most_dollars))
    when = f" (prices of {e.model} of {e.priced_on})" if e.priced_on else ""
    limit = f"{e.limit:g} dollars are never exceeded (llm.max_cost_usd)" if e.limit is not None else "no limit is set"
    notes = f"The most that these calls can cost; if fewer triplets are accepted, more calls follow: {limit}{when}."
    paid = f"{e.paid} answers are in the ledger and cost nothing; {e.kept} of {e.wanted} triplets came of them."
    if e.stopped in AHEAD:
        paid += f" They end the run, because {ENDINGS[e.stopped]}: {AHEAD[e.stopped]}."
    return Group(Text("Nothing was sent.", style="bold"), table, Text(f"{notes} {paid}" if e.paid else notes))


def terminal(product: Product) -> RenderableType:
    """What came of it, and what to type next."""
    return Group(Text(), *_lines(product))


def _lines(product: Product) -> Iterator[RenderableType]:
    harvest, spent, folder = product.harvest, product.spent, product.path.parent
    table = _table("triplets", "count")
    table.add_row("accepted", f"{product.n:,}", style="bold")
    for reason, count in product.reasons:
        table.add_row(f"rejected: {reason}", f"{count:,}")
    for kind, count in harvest.poor.most_common():
        table.add_row(Text(f"calls without a triplet: {kind}"), f"{count:,}")  # the server's word: no markup
    yield table
    yield Text()
    new = "nothing had to be paid" if not harvest.bought else f"{harvest.bought} of them asked now"
    yield Text(f"{harvest.calls} calls, {new}; {dollars(spent.dollars)} in all, {spent.prompt_tokens:,} prompt and "
               f"{spent.completion_tokens:,} answer tokens; {product.accepted_share:.0%} accepted")  # fmt: skip
    if harvest.filtered:
        share = f"{harvest.filtered / harvest.calls:.0%}"
        yield Text(f"{harvest.filtered} requests ({share}) were refused by the server's content filter, at no cost")
    if spent.bounded:
        yield Text(f"{spent.bounded} calls came without a usage report and count at their upper bound")
    if product.diagnosis is not None:
        verdict = "passes" if product.diagnosis.passes else "does not pass"
        yield Text(f"quality: {verdict} (see {folder}/quality.html)")
    yield Text(product.ending, style="bold green" if harvest.stopped == "n" else "bold yellow")
    yield Text(f"files: {folder}/ ({product.path.name}, rejected.jsonl, README.md, quality.json)")
    label = product.task.label
    if harvest.stopped == "n":
        yield Text(f"next: debias run data.path={_quoted(str(product.path))} data.bias={_quoted(label)}")
    elif product.reasons and product.reasons[0][0].endswith(")"):
        yield Text(f"next: the cap named in '{product.reasons[0][0]}' can be raised, or other terms be given")
    elif harvest.stopped in AHEAD:
        yield Text(f"next: {AHEAD[harvest.stopped]}; the answers at hand are not paid again")
    else:
        yield Text("next: the same command goes on from here")


def cost(product: Product) -> dict[str, Any]:
    """Content of cost.json; dollars are null where the price is unknown."""
    spent = product.spent
    tokens = spent.prompt_tokens + spent.completion_tokens
    stage = {"seconds": round(product.seconds, 2), "tokens": tokens, **spent._asdict()}
    return {
        "tokens": tokens,
        "dollars": spent.dollars,
        "seconds": round(product.seconds, 2),
        "stages": {"generate": stage},
    }


def card(product: Product) -> str:
    """The data card, with the header that dataset hubs and loaders read."""
    labels = sorted({kept.triplet.bias for kept in product.harvest.kept})
    sizes = [(1000, "n<1K"), (10_000, "1K<n<10K"), (10**9, "10K<n<100K")]
    head = {
        "license": product.task.wanted.licence,
        "language": ["en"],
        "pretty_name": f"Sentences that break stereotypes ({product.task.label})",
        "size_categories": [next(name for bound, name in sizes if product.n < bound)],
        "tags": ["debiasing", "bias", "stereotypes", "synthetic", "debias"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": product.path.name}]}],
    }
    header = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)
    facts = {"head": header, "p": product, "labels": labels, "dollars": dollars, "version": __version__}
    return fill("data_card.md.j2", facts)


def _quoted(word: str) -> str:
    return word if word.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum() else f"'{word}'"


def _table(*names: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left")
    return table
