"""The stereotype's word and an unrelated word for each triplet: of a set, or of a file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from debias.data.triplets import FIELDS, Record, read_records, strict
from debias.files import write_json
from debias.generation.client import Chat
from debias.generation.counterparts import Counterparts, Naming, Pair
from debias.generation.ledger import Ledger
from debias.generation.per_triplet import Replies
from debias.jobs.generate_loop import chats_of
from debias.jobs.generated_folder import LEDGER, DataFolder, file_name, model_name, write_lines
from debias.records import Triplet, UserError
from debias.report.one_run.generated_set import Named


async def ask_pairs(asker: Naming, chat: Chat, triplets: Sequence[Triplet], only_known: bool = False) -> Replies[Pair]:
    """Counterparts for each triplet, from a model or only from the ledger."""
    async with chat:
        return await asker.ask(triplets, only_known)


def named_of(asker: Naming, pairs: Replies[Pair]) -> Named:
    """What came of asking for counterparts."""
    found = sum(reply.value is not None for reply in pairs.each)
    waiting = sum(not reply.settled for reply in pairs.each)
    refused = dict(asker.counterparts.refused)
    return Named(len(pairs.each), found, waiting, pairs.stopped, pairs.reason, refused, asker.dollars)


def pair_columns(pair: Pair | None) -> dict[str, Any]:
    """Counterparts as columns of a row; none if there are none."""
    if pair is None:
        return {}
    return {"stereotype": pair.stereotype, "unrelated": pair.unrelated, "counterparts": model_name(pair.model)}


def add_counterparts(
    folder: DataFolder, counterparts: Counterparts, source: Path
) -> tuple[Path, Named]:  # fmt: skip
    """Write a copy of a file of triplets with counterparts, into the folder.

    Records that have both keep them, records that cannot be used keep what they have, and no record is lost.
    """
    records, broken = read_records(source)
    if broken:
        raise UserError(f"{broken[0].where}: {broken[0].reason}; fix or delete it (`debias doctor` lists all faults)")
    found = [strict(record) for record in records]
    asked = [i for i, t in enumerate(found) if isinstance(t, Triplet) and not (t.stereotype and t.unrelated)]
    ledger = Ledger(folder.path / LEDGER)
    with ledger, chats_of([counterparts.model], ledger) as (chat,):
        asker = Naming(counterparts, chat)
        triplets = [t for i in asked if isinstance(t := found[i], Triplet)]
        pairs = asyncio.run(ask_pairs(asker, chat, triplets))
    added = dict(zip(asked, (reply.value for reply in pairs.each), strict=True))
    path = folder.path / f"{file_name(source.name.partition('.')[0])}.jsonl"
    rows = ({**_row(record), **pair_columns(added.get(i))} for i, record in enumerate(records))
    write_lines(path, rows)
    named, spent = named_of(asker, pairs), ledger.memory.spent
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
