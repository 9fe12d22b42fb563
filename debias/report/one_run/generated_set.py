"""A generated data set: its estimated cost, the outcome on the terminal, and its data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Group, RenderableType
from rich.text import Text

from debias import __version__
from debias.data.doctor import Diagnosis
from debias.generation.exchange import LLM, Spent
from debias.generation.harvest import Harvest
from debias.generation.strategies import Strategy, Task
from debias.report.grid import Cell, Grid, number_columns, row, text_columns
from debias.report.templating import dollars, fill

TOKENS_A_TRIPLET = 45  # of an answer: 15 words, three field names, brackets and quotes

ENDINGS = {
    "n": "complete",
    "budget": "llm.max_cost_usd was reached",
    "patience": "generate.patience ran out",
    "filtered": "the server's content filter refuses the prompts",
    "failed": "the server failed",
    "batch": "a batch is still being processed",
    "interrupted": "interrupted",
}
REMEDIES = {  # what must change before the same command can continue
    "budget": "raise llm.max_cost_usd",
    "patience": "raise generate.patience, or change the request (strategy.*) or the acceptance rules (generate.*)",
    "filtered": "change the request (strategy.*) or the model (llm=...), or raise generate.max_filtered",
}


LESS_REASONING = (
    "turn reasoning down or off (++llm.extra_body.reasoning_effort=low, "
    "or ++llm.extra_body.chat_template_kwargs.enable_thinking=false), or raise llm.max_tokens"
)


class Estimate(NamedTuple):
    """The cost of a set: `likely` at the expected yield, `most` with every call at its upper bound."""

    calls: int
    paid: int  # answers already in the ledger
    kept: int  # triplets accepted from them
    wanted: int
    likely: tuple[int, int]  # prompt and completion tokens
    most: tuple[int, int]
    likely_dollars: float | None  # None if the price is unknown
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
    diagnosis: Diagnosis | None  # None if nothing was accepted
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
        """Accepted triplets as a share of all that the model wrote."""
        return self.n / max(1, self.n + len(self.harvest.rejected))


def counts(product: Product) -> Grid:
    """Triplets accepted and rejected, and calls that gave none."""
    lines = [row(Cell("accepted", kind="strong"), Cell(f"{product.n:,}", kind="strong"))]
    lines += [row(f"rejected: {reason}", f"{count:,}") for reason, count in product.reasons]
    lines += [
        row(f"calls without a triplet: {kind}", f"{count:,}") for kind, count in product.harvest.poor.most_common()
    ]
    return Grid([*text_columns("triplets"), *number_columns("count")], lines)


def measures(product: Product) -> Grid:
    """Size, diversity, and overlap with benchmarks."""
    lines = [row("triplets", f"{product.n} of {product.task.wanted.n} wanted")]
    if product.diagnosis:
        lines += [row(name, f"{value:.3g}") for name, value in product.diagnosis.measures.items()]
        lines += [
            row(f"sentences that repeat one of {leak.benchmark}", str(leak.exact + leak.near))
            for leak in product.diagnosis.leaks
        ]
    return Grid([*text_columns("figure"), *number_columns("value")], lines)


def estimate(e: Estimate) -> RenderableType:
    """The estimate as a table with notes."""
    lines = [
        row("calls", f"{e.calls:,}", "as many as it takes"),
        row("prompt tokens", f"{e.likely[0]:,}", f"{e.most[0]:,}"),
        row("answer tokens", f"{e.likely[1]:,}", f"{e.most[1]:,}"),
        row("cost", dollars(e.likely_dollars), dollars(e.most_dollars)),
    ]
    grid = Grid([*text_columns(""), *number_columns("expected", "at most")], lines)
    when = f" (prices of {e.model} on {e.priced_on})" if e.priced_on else ""
    limit = f"llm.max_cost_usd stops the run at {e.limit:g} dollars" if e.limit is not None else "no limit is set"
    notes = f'"At most" is for these calls; if fewer triplets are accepted, more calls follow: {limit}{when}.'
    paid = f"{e.paid} answers are in the ledger and cost nothing; {e.kept} of {e.wanted} triplets came from them."
    if e.stopped in REMEDIES:
        paid += f" They end the run, because {ENDINGS[e.stopped]}: {REMEDIES[e.stopped]}."
    return Group(Text("Nothing was sent.", style="bold"), grid.terminal(), Text(f"{notes} {paid}" if e.paid else notes))


def terminal(product: Product) -> RenderableType:
    """The outcome, and what to type next."""
    return Group(Text(), *_blocks(product))


def _blocks(product: Product) -> Iterator[RenderableType]:
    harvest, spent, folder = product.harvest, product.spent, product.path.parent
    yield counts(product).terminal()
    yield Text()
    new = f"{harvest.bought} of them new" if harvest.bought else "all of them from the ledger"
    yield Text(f"{harvest.calls} calls, {new}; {dollars(spent.dollars)} in all, {spent.prompt_tokens:,} prompt and "
               f"{spent.completion_tokens:,} answer tokens; {product.accepted_share:.0%} accepted")  # fmt: skip
    if harvest.filtered:
        share = f"{harvest.filtered / harvest.calls:.0%}"
        yield Text(f"{harvest.filtered} requests ({share}) were refused by the server's content filter, at no cost")
    if harvest.cut_off:
        share = f"{harvest.cut_off} of {harvest.calls} answers"
        yield Text(f"{share} were cut off at a token limit; what was complete in them was used. Raise llm.max_tokens "
                   "(or the server's context), or lower generate.per_call.")  # fmt: skip
    if harvest.thinking:
        share = f"{harvest.thinking} of {harvest.calls} answers"
        yield Text(f"{share} are nothing but reasoning, which used up their tokens: {LESS_REASONING}")
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
    elif harvest.stopped == "patience" and harvest.thinking > harvest.calls / 2:
        yield Text(f"next: {LESS_REASONING}")  # more patience would buy more reasoning
    elif product.reasons and product.reasons[0][0].endswith(")"):
        yield Text(f"next: raise the cap named in '{product.reasons[0][0]}', or ask for other terms")
    elif harvest.stopped in REMEDIES:
        yield Text(f"next: {REMEDIES[harvest.stopped]}; answers in the ledger are not paid for again")
    else:
        yield Text("next: run the same command again to continue")


def cost(product: Product) -> dict[str, Any]:
    """Content of cost.json; dollars are null if the price is unknown."""
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
    """The data card, with the header that data set hubs and loaders read."""
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
    facts = {"head": header, "p": product, "labels": labels, "version": __version__}
    return fill("data_card.md.j2", facts | {"measures": measures(product), "counts": counts(product)})


def _quoted(word: str) -> str:
    return word if word.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum() else f"'{word}'"
