"""A diagnosis of training data: on the terminal, as a section of a run's report, or as a page of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from debias.data.doctor import Diagnosis, Finding
from debias.report.grid import STYLES, Cell, Column, Grid, number_columns, row, text_columns
from debias.report.templating import fill
from debias.wording import counted

KINDS = {"error": "bad", "warning": "warning", "ok": ""}


def terminal(diagnosis: Diagnosis) -> RenderableType:
    """The diagnosis in 80 columns: faults with their lines, then measures, then leakage."""
    return Group(*_blocks(diagnosis))


def facts(diagnosis: Diagnosis | None) -> dict[str, Any]:
    """What `data_quality_section.html.j2` shows; None shows nothing."""
    from debias.report import plots  # the terminal does not need matplotlib

    return {
        "quality": diagnosis,
        "quality_grids": [grid for grid in _grids(diagnosis) if grid.lines] if diagnosis else [],
        "loss_plot": plots.histogram(diagnosis.loss) if diagnosis and diagnosis.loss else None,
    }


def page(diagnosis: Diagnosis) -> str:
    """The diagnosis as an HTML page."""
    return fill("data_quality.html.j2", facts(diagnosis))


def findings(diagnosis: Diagnosis) -> Grid:
    """What was found at least once, with examples."""
    lines = [
        row(f.name, Cell(f.level, kind=KINDS[f.level]), f"{f.count:,}", "; ".join(f.examples[:2]))
        for f in diagnosis.findings
        if f.count
    ]
    columns = [*text_columns("finding", "level"), *number_columns("count"), *text_columns("examples")]
    return Grid(columns, lines or [row("nothing was found", "", "", "")], name="Training data: faults")


def measures(diagnosis: Diagnosis) -> Grid:
    """Figures of the text, and what it repeats most."""
    lines = [row(name, value) for name, value in _measures(diagnosis)]
    lines += [
        row(f"most frequent {what}", ", ".join(f"{item} ({n})" for item, n in items[:5]))
        for what, items in diagnosis.common.items()
    ]
    return Grid(text_columns("measure", "value"), lines, name="Training data: measures")


def scores(diagnosis: Diagnosis) -> Grid:
    """How many records have each of a judge's scores."""
    columns = [*text_columns("judge"), *number_columns("1", "2", "3", "4", "5", "mean")]
    lines = []
    for name, counts in diagnosis.scores.items():
        mean = sum(score * count for score, count in counts.items()) / sum(counts.values())
        lines.append(row(name, *(f"{count:,}" for count in counts.values()), f"{mean:.2f}"))
    return Grid(columns, lines, name="Training data: a judge's scores, 1 (bad) to 5 (good)")


def leaks(diagnosis: Diagnosis) -> Grid:
    """How many sentences each benchmark shares with the training data."""
    columns = [
        *text_columns("benchmark"),
        *number_columns("its sentences"),
        Column("found exactly", numeric=True, short="exact"),
        Column("nearly", numeric=True, short="near"),
        *number_columns("targets it asks about"),
        *text_columns("examples"),
    ]
    lines = [
        row(
            leak.benchmark,
            f"{leak.sentences:,}",
            Cell(f"{leak.exact:,}", kind="bad" if leak.exact else ""),
            Cell(f"{leak.near:,}", kind="bad" if leak.near else ""),
            "" if leak.target_overlap is None else f"{leak.target_overlap:.0%}",
            "; ".join(leak.examples[:2]),
        )
        for leak in diagnosis.leaks
    ]
    return Grid(columns, lines, name="Training data: sentences of benchmarks")


def _grids(diagnosis: Diagnosis) -> list[Grid]:
    return [findings(diagnosis), scores(diagnosis), measures(diagnosis), leaks(diagnosis)]


# ---------------------------------------------------------------- the terminal


def _blocks(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    records = counted(diagnosis.records, "record")
    title = Text(f"{diagnosis.path}: {records}, {diagnosis.usable:,} usable: ", style="bold")
    verdict = ("passes", "bold green") if diagnosis.passes else ("does not pass", "bold red")
    yield title.append(*verdict)
    yield Text()
    found = [finding for finding in diagnosis.findings if finding.count]
    if found:
        yield _checks(found).terminal()
        yield Text()
    if clean := ", ".join(finding.name for finding in diagnosis.findings if not finding.count):
        yield Text(f"{'also checked' if found else 'checked'}, nothing found: {clean}", style="dim")
    for finding in found:
        if finding.level != "ok":
            yield Text(f"\n{finding.name}", style=STYLES[KINDS[finding.level]])
            yield from (Text(f"  {example}") for example in finding.examples[:3])
    yield Text()
    if diagnosis.scores:
        yield scores(diagnosis).terminal()
        yield Text()
    yield _side_by_side(diagnosis).terminal()
    if diagnosis.leaks:
        yield Text()
        yield leaks(diagnosis).without("its sentences", "examples").terminal()
    for leak in diagnosis.leaks:
        yield from (Text(f"  {leak.benchmark}: {example}", style="red") for example in leak.examples[:3])
    if diagnosis.unread:
        unread = ", ".join(diagnosis.unread)
        yield Text(f"not searched because the files are missing: {unread} (set DEBIAS_DATA)", style="dim")
    if diagnosis.loss:
        yield Text()
        yield from _losses(diagnosis.loss)


def _checks(findings: list[Finding]) -> Grid:
    """Findings with the lines they are at."""
    lines = []
    for f in findings:
        places = ", ".join(map(str, f.places[:6])) + (" ..." if len(f.places) > 6 else "")
        kind = KINDS[f.level]
        lines.append(row(*(Cell(t, kind=kind) for t in (f.name, f.level, f"{f.count:,}", places))))
    return Grid([*text_columns("what", ""), *number_columns("count"), *text_columns("lines")], lines)


def _side_by_side(diagnosis: Diagnosis) -> Grid:
    """Measures beside what is most frequent: in 80 columns there is room for both."""
    often = [
        f"{what}: {', '.join(f'{item} ({n})' for item, n in items[:3])}" for what, items in diagnosis.common.items()
    ]
    lines = [
        row(name, value, often[i] if i < len(often) else "") for i, (name, value) in enumerate(_measures(diagnosis))
    ]
    return Grid([*text_columns("measure"), *number_columns("value"), *text_columns("most often")], lines)


def _measures(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    for name, value in diagnosis.measures.items():
        yield name, f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _losses(loss: dict[str, Any]) -> Iterator[Text]:
    yield Text(
        f"base model's loss, nats per attribute token: mean {loss['mean']:.2f}, "
        f"quartiles {loss['q1']:.2f}, {loss['median']:.2f}, {loss['q3']:.2f}"
    )
    most = max(loss["counts"])
    for low, count in zip(loss["edges"], loss["counts"], strict=False):
        yield Text(f"  {low:6.2f} {'█' * round(40 * count / most)} {count}")
