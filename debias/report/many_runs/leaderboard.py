"""`debias report --leaderboard`: methods of debiasing side by side, as a page in Markdown to which others add rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import ArrowException, parquet

from debias.records import Figure, UserError
from debias.report.comparison import HEADLINES, Row, headlines, number
from debias.report.grid import Column, Grid, Line, markdown_text, number_columns, row, text_columns
from debias.report.many_runs import archive
from debias.report.many_runs.collection import Run, collect, nothing_in
from debias.report.many_runs.configurations import LabelledRun, mean_figures
from debias.report.many_runs.entries import Entry, base_of, entries_of
from debias.report.many_runs.labels import differences, words
from debias.report.outcome import Outcome, outcome
from debias.wording import counted

TITLE = "# Leaderboard"
INTRODUCTION = """\
Methods of debiasing on StereoSet, made by `debias report --leaderboard` from archives of runs. Only
the rows of one table compare: they were scored on the same sentences, under the same protocol, from
the same base. The base comes first, then the highest ICAT; models that lost more ability than
allowed (`broken`) come last, whatever their bias did. Runs that differ only in the seed are one row
with their mean; where a file does not tell the seeds of the adapters that it scored, they stay
apart. Rows of the same method on the same data name the settings that differ. Where two headings
are otherwise the same, the end of each says why the base's figures differ: other code may multiply
in another order, and rounding moves single examples.

- **method**: adapter, objective, and settings that differ. `NegativePreference` is `objective=npo`,
  `Attribute` with `margin=4` is `bounded` and without it the paper's `attribute`; `SelfGenerated`
  is the text of `neutral=own` or `stories`, and `ByKind` that of `neutral=auto`.
- **saw it**: whether sentences of StereoSet or CrowS-Pairs were trained on; "unknown" where the
  files do not say. Where the program chose the weights of a sum, on which sentences it did.
- **SS**: 50 is unbiased. **LMS**, **ICAT**: 100 is best. In brackets are 95% intervals over targets
  and seeds. **verdict**: of all benchmarks that were scored and of ability, as in a report.
- **LMS change**, **perplexity change**: the price in ability. Texts for perplexity may differ
  between rows.
- **seconds**: training (of all adapters of a sum), or fitting a method, without scoring, mean over
  seeds. Machines and their load differ. **dollars**: what the run itself paid a chat model; not
  what a corpus cost before.
- **runs**: how many, of different seeds. **commit**: of the code that scored.

To add rows:

```
debias archive outputs/mine --out mine.parquet
debias report --leaderboard docs mine.parquet --out docs/leaderboard.md
```
"""
COLUMNS = (
    *text_columns("method", "base", "training data", "saw it"),
    *number_columns("SS", "LMS", "ICAT", "LMS change", "perplexity change"),
    *text_columns("verdict"),
    *number_columns("seconds", "dollars", "runs"),
    *text_columns("commit"),
)
BEST = """\
## The best of each method

On StereoSet test, of the rows below that are shown to have kept ability (both intervals within the
bounds): the highest ICAT of each method, on the largest sample that it was scored on. Only rows
with the same base, bias and number of examples (n) compare.
"""
BEST_COLUMNS = (
    *text_columns("base", "bias", "method", "training data", "saw it"),
    *number_columns("SS", "ICAT of the base", "ICAT", "LMS change", "perplexity change"),
    *text_columns("verdict"),
    *number_columns("n", "runs"),
)


def leaderboard(paths: Sequence[Path]) -> tuple[str, list[str]]:
    """The page of the runs below the paths and in the archives there, and what is wrong with files, one line each.

    Raises UserError if there is nothing to show.
    """
    places = list(paths) or [Path("outputs")]
    found = collect([*places, *(file for place in places for file in _archives(place))])
    if not found.runs:
        raise UserError(nothing_in(found, places))
    entries = entries_of(found.runs)
    boards: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in (e for e in entries if e.heads):
        boards.setdefault(entry.board, []).append(entry)
    if not boards:
        raise UserError("no run was scored on StereoSet; add eval=stereoset to its command")
    left_out = sum(not entry.heads for entry in entries)
    models = "model without a score on StereoSet is" if left_out == 1 else "models without a score on StereoSet are"
    note = [f"{left_out} {models} left out."] if left_out else []
    ordered = [boards[key] for key in sorted(boards)]
    tables = [_ranked(entries) for entries in ordered]
    sections = [
        f"## {markdown_text(heading)}\n\n{_markdown([_base_line(entries[0]), *map(_line, table)], COLUMNS)}"
        for heading, entries, table in zip(_headings(ordered), ordered, tables, strict=True)
    ]
    page = [TITLE, INTRODUCTION.rstrip("\n"), *note, *_best_of([table for table in tables if table]), *sections]
    return "\n\n".join(page) + "\n", found.faults


def _archives(folder: Path) -> list[Path]:
    """The archives below a folder; other Parquet files are not for us."""
    found = []
    for path in sorted(folder.rglob("*.parquet")) if folder.is_dir() else []:
        try:
            metadata = parquet.read_schema(path).metadata
        except (OSError, ArrowException):
            continue  # a run's own file, whose damage `collect` reports
        if archive.KEY.encode() in (metadata or {}):
            found.append(path)
    return found


# ---------------------------------------------------------------- one table


class Scored(NamedTuple):
    """A row: runs of one method, data and settings that differ only in the seed, with their mean figures."""

    group: Sequence[Entry]
    settings: str  # those that tell it apart from other rows of its method and data
    heads: Mapping[str, Row]
    outcome: Outcome

    @property
    def icat(self) -> float:
        """The mean ICAT; 0 where it was not measured."""
        debiased = self.heads["ICAT"].debiased if "ICAT" in self.heads else None
        return debiased.value if debiased else 0.0

    @property
    def method(self) -> str:
        """The method with these settings."""
        return f"{self.group[0].method}; {self.settings}" if self.settings else self.group[0].method

    @property
    def kind(self) -> str:
        """What the method is without its settings: `Lora, Attribute`, `steering` or `sum`."""
        return re.match(r"[^ (,]*(, \w+)?", self.group[0].method)[0]  # type: ignore[index]


def _ranked(entries: Sequence[Entry]) -> list[Scored]:
    """The rows of a table, the highest ICAT first and models that lost more ability than allowed last."""
    alike: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in (e for e in entries if e.method):
        alike.setdefault((entry.method, entry.data, entry.saw), []).append(entry)
    found = [scored for group in alike.values() for scored in _by_settings(group)]
    return sorted(found, key=lambda row: (row.outcome.ability == "broken", -row.icat, row.method, row.group[0].data))


def _by_settings(alike: Sequence[Entry]) -> list[Scored]:
    """A row for each choice of settings; of one seed the latest run counts."""
    by_settings: dict[str, dict[str, Entry]] = {}
    labels = differences([{**entry.settings} for entry in alike])
    for entry, label in sorted(zip(alike, labels, strict=True), key=lambda pair: str(pair[0].run.status.get("ended"))):
        settings = words({key: value for key, value in label.items() if value != "None"})
        by_settings.setdefault(settings, {})[entry.identity] = entry
    found = []
    for settings, by_seed in by_settings.items():
        group = list(by_seed.values())
        figures = mean_figures([LabelledRun(e.run, e.figures, {}) for e in group])
        found.append(Scored(group, settings, headlines(figures, group[0].bias), outcome(figures, group[0].bias)))
    return found


def _line(scored: Scored) -> Line:
    group, heads = scored.group, scored.heads
    first = group[0]
    scores = [_figure(heads[metric].debiased if metric in heads else None) for metric in HEADLINES[:3]]
    seconds = [e.seconds for e in group if e.seconds is not None]
    dollars = [(e.run.cost or {}).get("dollars") for e in group]
    known = [float(d) for d in dollars if d is not None]
    paid = f"{sum(known) / len(known):,.2f}" if len(known) == len(dollars) else "unknown"
    took = f"{sum(seconds) / len(seconds):,.0f}" if seconds else "unknown"
    made = (took, paid, str(len(group)), _commits(group))
    verdict = scored.outcome.brief
    return row(scored.method, base_of(first.run), first.data, first.saw, *scores, *_prices(heads), verdict, *made)


def _base_line(entry: Entry) -> Line:
    scores = [_figure(entry.heads[metric].base if metric in entry.heads else None) for metric in HEADLINES[:3]]
    return row("base model", base_of(entry.run), "", "", *scores, *[""] * 7)._replace(baseline=True)


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return number(figure.value, figure.metric) + _interval(figure.ci_low, figure.ci_high, figure.metric)


def _prices(heads: Mapping[str, Row]) -> list[str]:
    return [_price(heads.get(metric)) for metric in ("LMS", "perplexity")]


def _price(found: Row | None) -> str:
    """The change of an ability; that of perplexity in percent of the base's."""
    if found is None or found.delta is None:
        return ""
    change, percent = found.delta, found.base.metric == "perplexity"
    scale, sign = (100 / found.base.value, "%") if percent else (1.0, "")
    low, high = scale * change.ci_low, scale * change.ci_high
    return f"{number(scale * change.value, 'LMS', '+')}{sign}{_interval(low, high, 'LMS', '+')}"


def _interval(low: float, high: float, metric: str, sign: str = "") -> str:
    return f" ({number(low, metric, sign)} to {number(high, metric, sign)})" if low == low else ""


def _commits(group: Sequence[Entry]) -> str:
    commits = [str(entry.run.status.get("git_commit") or "none") for entry in group]
    return ", ".join(dict.fromkeys(commit[:7] + ("+" if commit.endswith("+") else "") for commit in commits))


def _markdown(lines: Sequence[Line], columns: Sequence[Column]) -> str:
    return Grid(columns, lines).markdown().rstrip()


# ---------------------------------------------------------------- the page


def _headings(boards: Sequence[Sequence[Entry]]) -> list[str]:
    """What each table was scored on, with what tells apart those that were scored on the same."""
    by_text: dict[str, list[int]] = {}
    for i, entries in enumerate(boards):
        base, split = entries[0].heads["SS"].base, "dev" if entries[0].board[0] else "test"
        sample = f"StereoSet {split}, {counted(base.n, 'example')}, {base.protocol}"
        by_text.setdefault(f"{base_of(entries[0].run)}, {base.bias}: {sample}", []).append(i)
    found: dict[int, str] = {}
    for text, places in by_text.items():
        reasons = _reasons([boards[i] for i in places]) if len(places) > 1 else [""]
        found |= {i: f"{text}; {reason}" if reason else text for i, reason in zip(places, reasons, strict=True)}
    return [found[i] for i in range(len(boards))]


def _reasons(boards: Sequence[Sequence[Entry]]) -> list[str]:
    """Why the base has other figures on each board: the first fact that no two of them share, as their runs tell it."""
    facts: dict[str, Callable[[Run], str]] = {
        "type of weights": lambda run: str((run.config.get("model") or {}).get("dtype")),
        "precision": lambda run: str((run.config.get("scoring") or {}).get("precision")),
        "version of torch": lambda run: str(run.status.get("versions", {}).get("torch")),
        "commits": lambda run: str(run.status.get("git_commit") or "None")[:7],
    }
    for name, of in facts.items():
        values = [dict.fromkeys(of(entry.run) for entry in entries) for entries in boards]
        if len(set().union(*values)) == sum(map(len, values)):
            return [f"{name}: {_listed([*of_board])}".replace("None", "unknown") for of_board in values]
    return ["base scored differently, for a reason that the files do not give"] * len(boards)


def _listed(values: Sequence[str]) -> str:
    """A few values, or the first of many: a heading is one line."""
    return ", ".join(values) if len(values) < 3 else f"{values[0]} and {len(values) - 1} others"


def _best_of(tables: Sequence[Sequence[Scored]]) -> list[str]:
    """The best row of each kind of method that kept ability, on the largest sample of StereoSet test that has one."""
    best: dict[tuple[str, str, str], Scored] = {}
    for scored in (found for table in tables for found in table if found.outcome.ability == "kept"):
        base = scored.heads["SS"].base
        if not scored.group[0].board[0] and scored.icat:
            best.setdefault((base_of(scored.group[0].run), base.bias, scored.kind), scored)
    if not best:
        return []
    lines = []
    for (start, bias, _), scored in best.items():
        heads, n = scored.heads, scored.heads["SS"].base.n
        scores = [
            _figure(heads["SS"].debiased),
            number(heads["ICAT"].base.value, "ICAT"),
            _figure(heads["ICAT"].debiased),
        ]
        of = (start, bias, scored.method, scored.group[0].data, scored.group[0].saw)
        lines.append(row(*of, *scores, *_prices(heads), scored.outcome.brief, f"{n:,}", str(len(scored.group))))
    return [BEST.rstrip("\n"), _markdown(lines, BEST_COLUMNS)]
