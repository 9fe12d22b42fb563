"""`debias doctor`: files of triplets in; a diagnosis of each, and on request a page and a cleaned copy, out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from debias.data import leakage
from debias.data.doctor import Diagnosis, cleaned, diagnose, histogram
from debias.data.triplets import FIELDS, Record, read_records, strict
from debias.files import write_text
from debias.progress import bar
from debias.records import Triplet, UserError
from debias.report.one_run import data_quality

if TYPE_CHECKING:
    from debias.models.base import BaseModel


class Fixed(NamedTuple):
    """A cleaned copy: its path, the number of records kept, and of those dropped for each reason."""

    path: str
    kept: int
    dropped: dict[str, int]


class Examined(NamedTuple):
    """A file's diagnosis, and the page and the cleaned copy that were written; None if they were not asked for."""

    diagnosis: Diagnosis
    page: Path | None
    fixed: Fixed | None

    def as_json(self) -> dict[str, Any]:
        """The diagnosis and the cleaned copy as plain values."""
        return self.diagnosis.as_json() | ({"fixed": self.fixed._asdict()} if self.fixed else {})


def examine_files(
    paths: Sequence[Path],
    bias: str = "",
    search_leakage: bool = True,
    write_page: bool = False,
    fix: bool = False,
    overwrite: bool = False,
    model: BaseModel | None = None,
) -> Iterator[Examined]:
    """Examine files one after the other.

    Args:
        bias: for records that do not name one.
        search_leakage: search the file for sentences of the benchmarks.
        write_page: write FILE.quality.html.
        fix: write FILE.fixed.jsonl, without what cannot be trained on, repeats and benchmark sentences.
        overwrite: replace earlier files of these names.
        model: measures its loss on each attribute, if given.

    Raises UserError before examining any if one cannot be read or has no place to be written to.
    """
    read = {path: read_records(path, bias) for path in paths}
    _check_targets([_fixed(path) for path in read if fix], overwrite)
    _check_targets([_page(path) for path in read if write_page], overwrite)
    names = leakage.available() if search_leakage else []
    indices = [leakage.benchmark_index(name) for name in bar("reading benchmarks")(names, len(names))] if names else []
    unread = leakage.missing() if search_leakage else []
    for path, (records, broken) in read.items():
        diagnosis = diagnose(str(path), records, broken, indices, unread)
        if model is not None:
            _ask_model(diagnosis, model, records)
        if write_page:
            write_text(_page(path), data_quality.page(diagnosis))
        copy = _write_fixed(_fixed(path), *cleaned(records, broken, indices)) if fix else None
        yield Examined(diagnosis, _page(path) if write_page else None, copy)


def _check_targets(targets: Sequence[Path], overwrite: bool) -> None:
    for target in targets:
        if targets.count(target) > 1:
            raise UserError(f"two of the files would be written to {target}; examine them one at a time")
        if target.exists() and not overwrite:
            raise UserError(f"{target} exists already; move it away, or set overwrite=true")


def _page(path: Path) -> Path:
    return path.with_suffix(".quality.html")


def _fixed(path: Path) -> Path:
    return path.with_suffix(".fixed.jsonl")


def _write_fixed(target: Path, kept: Sequence[Record], dropped: Mapping[str, int]) -> Fixed:
    """Write the records to keep with all the fields that their file gave them."""
    if not kept:
        raise UserError(f"nothing is left to write to {target}; choose another file")
    rows = [{**r.row, **{name: getattr(r, name) for name in (*FIELDS, "bias") if getattr(r, name)}} for r in kept]
    write_text(target, "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows))
    return Fixed(str(target), len(kept), dict(dropped))


def _ask_model(diagnosis: Diagnosis, model: BaseModel, records: Sequence[Record]) -> None:
    """Add which usable records this model cannot be trained on, and its loss on the attributes of the others."""
    from debias.scoring import batched  # seconds of imports that other examinations do not need
    from debias.scoring.layout_trial import choose_layout
    from debias.training.examples import examples
    from debias.training.objectives import Attribute

    usable = [(r, triplet) for r in records if isinstance(triplet := strict(r), Triplet)]
    if not usable:
        return
    base = model.load()
    found = examples([(triplet,) for _, triplet in usable], Attribute(), base.tokens, base.max_positions)
    refused = [(r, why) for (r, _), why in zip(usable, found, strict=True) if isinstance(why, str)]
    diagnosis.add_refused(refused)
    spans = [texts[0] for texts in found if not isinstance(texts, str)]
    if not spans:
        return
    layout = choose_layout(base.model, base.kind, max(span.num_positions for span in spans))
    logprob_S = batched.score(base.model, spans, layout, progress=bar("scoring attributes"))
    losses = [-float(logprob) / span.num_tokens for logprob, span in zip(logprob_S, spans, strict=True)]
    diagnosis.loss = histogram(losses)
