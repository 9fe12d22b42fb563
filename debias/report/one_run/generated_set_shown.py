"""A generated set as people see it: its estimate, preview and outcome on the terminal, and its data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import yaml
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from debias import __version__
from debias.data.doctor import CRITERIA
from debias.generation.judge import Judge, Scores
from debias.generation.per_triplet import Replies
from debias.report.grid import Cell, Grid, number_columns, row, text_columns
from debias.report.one_run.generated_set import ENDINGS, Estimate, Named, Preview, Product, Verdicts, total
from debias.report.templating import dollars, fill
from debias.wording import counted, plural

REMEDIES = {  # what must change before the same command can continue
    "budget": "raise llm.max_cost_usd",
    "patience": "raise generate.patience, or change the request (strategy.*) or the acceptance rules (generate.*)",
    "filtered": "change the request (strategy.*) or the model (llm=...), or raise generate.max_filtered",
}
TRIES_OUT = (
    "llm=local is there to try out prompts, checks and files at no cost: its model has 135M parameters and seldom "
    "writes a sentence that passes. For data to train on, choose another model (debias ls llm) or take our own corpus: "
    "debias run data=targeted"
)
LESS_REASONING = (
    "turn reasoning down or off (++llm.extra_body.reasoning_effort=low, "
    "or ++llm.extra_body.chat_template_kwargs.enable_thinking=false), or raise llm.max_tokens"
)


def counts(product: Product) -> Grid:
    """Triplets accepted and rejected, and calls that gave none."""
    lines = [row(Cell("accepted", kind="strong"), Cell(f"{product.n:,}", kind="strong"))]
    lines += [row(f"rejected: {reason}", f"{count:,}") for reason, count in product.reasons]
    lines += [
        row(f"calls without a triplet: {kind}", f"{count:,}") for kind, count in product.harvest.poor.most_common()
    ]
    return Grid([*text_columns("triplets"), *number_columns("count")], lines)


def writers(product: Product) -> Grid:
    """Triplets accepted and rejected by the model that wrote them, as the server names it."""
    kept = Counter(one.answer.model for one in product.harvest.kept)
    rejected = Counter(one.answer.model for one in product.harvest.rejected)
    lines = [row(name, f"{kept[name]:,}", f"{rejected[name]:,}") for name in sorted(kept | rejected)]
    return Grid([*text_columns("model"), *number_columns("accepted", "rejected")], lines)


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
    writing = e.writing
    lines = [
        row("calls", f"{writing.calls:,}", "as many as it takes"),
        row("prompt tokens", f"{writing.likely[0]:,}", f"{writing.most[0]:,}"),
        row("answer tokens", f"{writing.likely[1]:,}", f"{writing.most[1]:,}"),
        row("cost", dollars(writing.likely_dollars), dollars(writing.most_dollars)),
    ]
    more = {"the judge's": e.judging, "the counterparts'": e.naming}
    costly = {name: part for name, part in more.items() if part is not None}
    for name, part in costly.items():
        lines.append(row(f"{name} calls", f"{part.calls:,}", "as many as it takes"))
        lines.append(row(f"{name} cost", dollars(part.likely_dollars), dollars(part.most_dollars)))
    if costly:
        parts = [writing, *costly.values()]
        likely, most = total([p.likely_dollars for p in parts]), total([p.most_dollars for p in parts])
        lines.append(row("cost in all", dollars(likely), dollars(most)))
    grid = Grid([*text_columns(""), *number_columns("expected", "at most")], lines)
    dated = [f"{llm.model} on {llm.priced_on}" for llm in e.llms if llm.priced_on]
    when = f" (prices of {', '.join(dict.fromkeys(dated))})" if dated else ""
    limit = f"llm.max_cost_usd stops the run at {e.limit:g} dollars" if e.limit is not None else "no limit is set"
    notes = f'"At most" is for these calls; if fewer triplets are accepted, more calls follow: {limit}{when}.'
    of = counted(e.wanted, "triplet")
    answers, came = counted(e.paid, "answer"), plural(e.kept, "comes", "come")
    paid = f"The ledger holds {answers}, which cost nothing more; {e.kept} of {of} {came} from there."
    if e.stopped in REMEDIES:
        paid += f" They end the run, because {ENDINGS[e.stopped]}: {REMEDIES[e.stopped]}."
    return Group(grid.terminal(), Text(f"{notes} {paid}" if e.paid else notes))


def dry_run(e: Estimate) -> RenderableType:
    """What would be paid."""
    return Group(Text("Nothing was sent.", style="bold"), estimate(e))


def preview(p: Preview) -> RenderableType:
    """The prompt, some accepted and some rejected triplets, and the price of the set."""
    return Group(*_preview(p))


def _preview(p: Preview) -> Iterator[RenderableType]:
    harvest = p.harvest
    head = f"One call to {' and '.join(dict.fromkeys(llm.model for llm in p.estimate.llms))}"
    if harvest.calls > 1:
        head += f", after {harvest.calls - 1} for the terms"
    yield Text(f"{head}. Nothing is written but the answers, in", style="bold")
    yield Text(f"{p.ledger}", overflow="fold")
    yield Text(f"The set begins with them: they are paid once. Paid so far: {dollars(p.spent.dollars)}.")
    for message in p.request.messages if p.request else ():
        yield Text(f"\nThe prompt, {message.role}", style="bold")
        yield Padding(Text(message.content), (0, 0, 0, 2))
    verdicts = [] if p.judge is None or p.replies is None else _verdicts(p.judge, p.replies)
    few = min(p.size, len(harvest.kept))
    yield Text(f"\nAccepted: {len(harvest.kept)}, of which {few} are shown", style="bold")
    for i, (triplet, *_) in enumerate(harvest.kept[:few]):
        yield _triplet(triplet.sentence, triplet.target, triplet.attribute)
        if verdicts:
            yield Padding(Text(verdicts[i], style="dim"), (0, 0, 0, 4))
    few = min(p.size, len(harvest.rejected))
    yield Text(f"\nRejected: {len(harvest.rejected)}, of which {few} are shown", style="bold")
    for one in harvest.rejected[:few]:
        yield _triplet(*(str(one.item.get(name, "(missing)")) for name in ("sentence", "target", "attribute")))
        like = f": {one.reason.like}" if one.reason.like else ""
        yield Padding(Text(f"{one.reason}{like}", style="yellow"), (0, 0, 0, 4))
    if not harvest.kept and not harvest.rejected:
        why = ", ".join([*harvest.poor, *filter(None, [harvest.reason])])
        yield Text(f"The call brought no triplet ({why})")
    yield Text(
        f"\nThe whole set of {p.estimate.wanted:,}: what it still costs, at the yield of this call", style="bold"
    )
    yield estimate(p.estimate)
    yield Text("next: the same command without preview")


def _verdicts(judge: Judge, replies: Replies[Scores]) -> list[str]:
    """A line for each triplet that the judge was to score."""
    lines = []
    for scores, settled in replies.each:
        told = " ".join(f"{name} {getattr(scores, name)}" for name in CRITERIA) if scores else "no readable scores"
        why = judge.rejects(scores)
        lines.append(f"judge: {told}{f'; rejected ({why})' if why else ''}" if settled else f"judge: {replies.reason}")
    return lines


def _triplet(sentence: str, target: str, attribute: str) -> RenderableType:
    return Padding(Text(sentence).append(f"  [{target} / {attribute}]", style="cyan"), (0, 0, 0, 2))


def terminal(product: Product) -> RenderableType:
    """The outcome, and what to type next."""
    return Group(Text(), *_blocks(product))


def _blocks(product: Product) -> Iterator[RenderableType]:
    harvest, spent, folder = product.harvest, product.spent, product.path.parent
    yield counts(product).terminal()
    yield Text()
    tokens = f"{spent.prompt_tokens:,} prompt and {counted(spent.completion_tokens, 'answer token')}"
    paid = f"{counted(product.paid, 'call')} paid now, {spent.calls:,} in all ({dollars(spent.dollars)}, {tokens})"
    yield Text(f"{counted(harvest.calls, 'answer')} used, {product.accepted_share:.0%} accepted; {paid}")
    if harvest.filtered:
        share = f"{harvest.filtered / harvest.calls:.0%}"
        refused = counted(harvest.filtered, "request")
        yield Text(f"the server's content filter refused {refused} ({share}), at no cost")
    if harvest.cut_off:
        share = f"{harvest.cut_off} of {counted(harvest.calls, 'answer')}"
        yield Text(f"cut off at a token limit: {share}; what was complete in them was used. Raise llm.max_tokens "
                   "(or the server's context), or lower generate.per_call.")  # fmt: skip
    if harvest.thinking:
        share = f"{harvest.thinking} of {counted(harvest.calls, 'answer')}"
        yield Text(f"nothing but reasoning, which used up the tokens: {share}; {LESS_REASONING}")
    if product.verdicts is not None:
        yield _judged(product.verdicts)
    if product.counterparts is not None:
        yield Text(named(product.counterparts))
    if harvest.unjudged:
        waiting = counted(harvest.unjudged, "triplet waits", "triplets wait")
        yield Text(f"{waiting} for the judge before joining the set")
    if spent.bounded:
        yield Text(f"{counted(spent.bounded, 'call')} without a usage report, counted at the upper bound")
    if product.diagnosis is not None:
        verdict = "passes" if product.diagnosis.passes else "does not pass"
        yield Text(f"quality: {verdict} (see {folder}/quality.html)")
    yield Text(product.ending, style="bold green" if harvest.stopped == "n" else "bold yellow")
    yield Text(f"files: {folder}/ ({product.path.name}, rejected.jsonl, README.md, quality.json)")
    label = product.task.label
    if harvest.stopped == "n":
        yield Text(f"next: debias run data.path={_quoted(str(product.path))} data.bias={_quoted(label)}")
    elif harvest.stopped == "patience" and product.tries_out:
        yield Text(f"next: {TRIES_OUT}")
    elif harvest.stopped == "patience" and harvest.thinking > harvest.calls / 2:
        yield Text(f"next: {LESS_REASONING}")  # more patience would buy more reasoning
    elif product.reasons and product.reasons[0][0].endswith(")"):
        yield Text(f"next: raise the cap named in '{product.reasons[0][0]}', or ask for other terms")
    elif harvest.stopped in REMEDIES:
        yield Text(f"next: {REMEDIES[harvest.stopped]}; answers in the ledger are not paid for again")
    else:
        yield Text("next: run the same command again to continue")


def named(n: Named) -> str:
    """What came of asking for counterparts, in words."""
    found = f"{n.found} of {counted(n.asked, 'triplet')} {plural(n.found, 'has', 'have')} them"
    text = f"counterparts: {found}, {dollars(n.dollars)}"
    reasons = sorted(n.refused.items(), key=lambda pair: -pair[1])[:3]
    if reasons:
        text += "; answers that did not fit: " + ", ".join(f"{count} ({reason})" for reason, count in reasons)
    if n.stopped:
        text += f"; {n.waiting} wait: {n.reason or ENDINGS.get(n.stopped, n.stopped)}"
    return text


def _judged(verdicts: Verdicts) -> Text:
    means = ", ".join(f"{name} {mean:.1f}" for name, mean in verdicts.means.items())
    calls = counted(verdicts.calls, "call")
    scored = f"{counted(verdicts.scored, 'triplet')} scored in {calls}, {dollars(verdicts.dollars)} of the above"
    return Text(f"judge {verdicts.llm.model}: {scored}" + (f"; mean scores of 5: {means}" if means else ""))


def data_card(product: Product) -> str:
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
    return fill(
        "data_card.md.j2",
        facts | {"measures": measures(product), "counts": counts(product), "writers": writers(product)},
    )


def _quoted(word: str) -> str:
    return word if word.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum() else f"'{word}'"
