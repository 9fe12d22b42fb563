"""How well a judge agrees with hand labels: 60 sentences of ours, good and bad, in judge_labels.jsonl.

    python benchmarks/judge.py [OVERRIDES]       such as: llm=local, or judge.llm=openai judge.llm.model=gpt-5.4

The overrides are those of `debias generate judge=llm`. Each label is yes or no (fluent, breaks a stereotype,
respectful); a score counts as yes from `judge.least` on. `agree` is the share of equal answers, `kappa` is Cohen's
kappa (0 is what chance gives, 1 is perfect), `always yes` the agreement of a judge that likes everything. The last row
is the decision that counts: whether the triplet would be accepted. Answers are kept in outputs/judge_labels/, so that a
second call pays nothing, beside a file of the sentences with their scores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from rich.console import Console

from debias.cli.config import config_dir, make, shorthands
from debias.data.doctor import CRITERIA
from debias.data.triplets import read_records, strict
from debias.files import write_text
from debias.generation.client import Chat
from debias.generation.judge import Judge, Judging, Scores
from debias.generation.ledger import Ledger
from debias.generation.per_triplet import Replies
from debias.generation.writers import writers_of
from debias.records import Triplet, UserError
from debias.report.grid import Grid, number_columns, row, text_columns

LABELS = Path(__file__).with_name("judge_labels.jsonl")


def judge_of(overrides: Sequence[str]) -> Judge:
    """The judge that `debias generate judge=llm` would use."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("generate", ["judge=llm", *shorthands(overrides)])
    judge: Judge = make(cfg.judge, _convert_="all")
    return judge.beside(writers_of(make(cfg.llm, _convert_="all"))[0])


def labelled() -> tuple[list[Triplet], list[dict[str, Any]]]:
    """The sentences and their labels."""
    records, broken = read_records(LABELS)
    triplets = [strict(record) for record in records]
    assert not broken
    assert all(isinstance(triplet, Triplet) for triplet in triplets)
    return triplets, [dict(record.row) for record in records]  # type: ignore[return-value]


async def asked(judge: Judge, chat: Chat, triplets: Sequence[Triplet]) -> Replies[Scores]:
    """The judge's replies."""
    async with chat:
        return await Judging(judge, chat).ask(triplets)


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Cohen's kappa of two yes-or-no raters; NaN if chance alone agrees always."""
    n = len(pairs)
    agreed = sum(a == b for a, b in pairs) / n
    yes = [sum(pair[i] for pair in pairs) / n for i in (0, 1)]
    chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    return (agreed - chance) / (1 - chance) if chance < 1 else float("nan")


def agreement(judge: Judge, rows: Sequence[dict[str, Any]], replies: Sequence[Scores | None]) -> Grid:
    """A line for each criterion and one for the decision; a triplet without scores is judged as the config says."""
    lines = []
    for name in (*CRITERIA, "accepted"):
        if name == "accepted":
            pairs = [
                (all(label[c] for c in CRITERIA), judge.rejects(scores) is None)
                for label, scores in zip(rows, replies, strict=True)
            ]
        else:
            pairs = [
                (bool(label[name]), getattr(scores, name) >= judge.least[name])
                for label, scores in zip(rows, replies, strict=True)
                if scores is not None
            ]
        if pairs:
            count = Counter(pairs)
            good, bad = sum(label for label, _ in pairs), sum(not label for label, _ in pairs)
            agree = (count[True, True] + count[False, False]) / len(pairs)
            found = [f"{count[True, True]} of {good}", f"{count[False, False]} of {bad}"]
            numbers = [f"{len(pairs)}", f"{agree:.0%}", f"{kappa(pairs):.2f}", f"{good / len(pairs):.0%}", *found]
            lines.append(row(name, *numbers))
    columns = number_columns("scored", "agree", "kappa", "always yes", "good kept", "bad found")
    return Grid([*text_columns("label"), *columns], lines)


def main(overrides: Sequence[str]) -> None:
    """Ask the judge and print its agreement."""
    judge = judge_of(overrides)
    triplets, rows = labelled()
    name = re.sub(r"[^\w.-]+", "_", judge.llm.model)
    path = Path("outputs/judge_labels") / f"{name}.ledger.jsonl"
    with judge.model.server or contextlib.nullcontext() as address:
        ledger = Ledger(path)
        with ledger:
            replies = asyncio.run(asked(judge, Chat(judge.llm, ledger, address), triplets))
    if replies.stopped:
        raise UserError(f"the judge stopped: {replies.stopped} {replies.reason}; run the same command again")
    scores = [reply.value for reply in replies.each]
    rows_scored = [
        {**dict(zip(("sentence", "target", "attribute", "bias"), triplet, strict=False)), **one._asdict()}
        for triplet, one in zip(triplets, scores, strict=True)
        if one is not None
    ]
    write_text(path.with_suffix("").with_suffix(".jsonl"), "".join(json.dumps(one) + "\n" for one in rows_scored))
    console = Console()
    console.print(f"{judge.llm.model}: {sum(s is not None for s in scores)} of {len(rows)} sentences scored")
    console.print(agreement(judge, rows, scores).terminal())
    kinds = {label["label"]: Counter[str]() for label in rows}
    for label, one in zip(rows, scores, strict=True):
        kinds[label["label"]]["kept" if judge.rejects(one) is None else "rejected"] += 1
    for kind, counts in kinds.items():
        console.print(f"{kind}: {counts['kept']} kept, {counts['rejected']} rejected")


if __name__ == "__main__":
    main(sys.argv[1:])
