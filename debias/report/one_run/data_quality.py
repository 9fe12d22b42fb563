"""A diagnosis of training data for people: tables for the terminal, a section of a report, a page of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from debias.data.doctor import Diagnosis, Finding
from debias.report.templating import fill

STYLES = {"error": "red", "warning": "yellow", "ok": ""}


def terminal(diagnosis: Diagnosis) -> RenderableType:
    """The diagnosis in 80 columns: faults with their lines, then measures, then leakage."""
    verdict = "passes" if diagnosis.passes else "does not pass"
    style = "bold green" if diagnosis.passes else "bold red"
    title = Text(f"{diagnosis.path}: {diagnosis.records:,} records, {diagnosis.usable:,} usable: ", style="bold")
    return Group(title + Text(verdict, style=style), Text(), *_tables(diagnosis))


def facts(diagnosis: Diagnosis | None) -> dict[str, Any]:
    """What `data_quality_section.html.j2` shows; None: there is nothing to show."""
    from debias.report import plots  # matplotlib is not needed for the terminal

    return {
        "quality": diagnosis,
        "loss_plot": plots.histogram(diagnosis.loss) if diagnosis and diagnosis.loss else None,
    }


def page(diagnosis: Diagnosis) -> str:
    """The diagnosis as an HTML page."""
    return fill("data_quality.html.j2", facts(diagnosis))


def _tables(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    yield _faults(diagnosis.findings)
    for finding in diagnosis.findings:
        if finding.level != "ok":
            yield Text(f"\n{finding.name}", style=STYLES[finding.level])
            yield from (Text(f"  {example}") for example in finding.examples[:3])
    yield Text()
    yield _measures(diagnosis)
    if diagnosis.leaks:
        yield Text()
        yield _leaks(diagnosis)
    for leak in diagnosis.leaks:
        yield from (Text(f"  {leak.benchmark}: {example}", style="red") for example in leak.examples[:3])
    if diagnosis.unread:
        yield Text(f"not searched, for want of the files: {', '.join(diagnosis.unread)} (set DEBIAS_DATA)", style="dim")
    if diagnosis.loss:
        yield Text()
        yield from _losses(diagnosis.loss)


def _faults(findings: list[Finding]) -> Table:
    table = _table("what", "", "count", "lines")
    for f in findings:
        places = ", ".join(map(str, f.places[:6])) + (" ..." if len(f.places) > 6 else "")
        table.add_row(f.name, f.level if f.count else "", f"{f.count:,}", places, style=STYLES[f.level])
    return table


def _measures(diagnosis: Diagnosis) -> Table:
    table = _table("measure", "value", "most often", "")
    often = [
        f"{what}: {', '.join(f'{item} ({n})' for item, n in items[:3])}" for what, items in diagnosis.common.items()
    ]
    measures = [
        (name, f"{value:.0f}" if value >= 100 else f"{value:.3g}") for name, value in diagnosis.measures.items()
    ]
    for i, (name, value) in enumerate(measures):
        table.add_row(name, value, often[i] if i < len(often) else "")
    return table


def _leaks(diagnosis: Diagnosis) -> Table:
    table = _table("benchmark", "exact", "near", "targets it asks about")
    for leak in diagnosis.leaks:
        overlap = "" if leak.target_overlap is None else f"{leak.target_overlap:.0%}"
        style = "red" if leak.exact or leak.near else ""
        table.add_row(leak.benchmark, f"{leak.exact:,}", f"{leak.near:,}", overlap, style=style)
    return table


def _losses(loss: dict) -> Iterator[Text]:
    yield Text(
        f"base model's loss, nats per attribute token: mean {loss['mean']:.2f}, "
        f"quartiles {loss['q1']:.2f}, {loss['median']:.2f}, {loss['q3']:.2f}"
    )
    most = max(loss["counts"])
    for low, count in zip(loss["edges"], loss["counts"], strict=False):
        yield Text(f"  {low:6.2f} {'█' * round(40 * count / most)} {count}")


def _table(*names: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="right" if name in ("count", "value", "exact", "near") else "left")
    return table
