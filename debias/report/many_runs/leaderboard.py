"""`debias report --leaderboard`: methods of debiasing side by side, as a page in Markdown to which others add rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import ArrowException, parquet

from debias.records import Figure, UserError
from debias.report.comparison import HEADLINES, Row, headlines, number
from debias.report.grid import Column, Grid, Line, markdown_text, number_columns, row, text_columns
from debias.report.many_runs import archive
from debias.report.many_runs.collection import Run, collect, nothing_in
from debias.report.many_runs.configurations import LabelledRun, mean_figures
from debias.report.many_runs.labels import differences, words
from debias.report.outcome import Outcome, by_adapter, outcome
from debias.results import run_of
from debias.wording import counted

TITLE = "# Leaderboard"
INTRODUCTION = """\
Methods of debiasing on StereoSet, made by `debias report --leaderboard` from archives of runs. Only
the rows of one table compare: they were scored on the same sentences, under the same protocol, from
the same base. The base comes first, then the highest ICAT; models that lost more ability than
allowed (`broken`) come last, whatever their bias did. Runs that differ only in the seed are one row
with their mean. Rows of the same method on the same data name the settings that differ. Where two
headings are otherwise the same, the end of each says why the base's figures differ: other code may
multiply in another order, and rounding moves single examples.

- **saw it**: whether sentences of StereoSet or CrowS-Pairs were trained on; "unknown" where the
  files do not say.
- **SS**: 50 is unbiased. **LMS**, **ICAT**: 100 is best. In brackets are 95% intervals over targets
  and seeds. **verdict**: of all benchmarks that were scored and of ability, as in a report.
- **LMS change**, **perplexity change**: the price in ability. Texts for perplexity may differ
  between rows.
- **seconds**: training, or fitting a method, without scoring, mean over seeds. Machines and their
  load differ. **dollars**: what the run itself paid a chat model; not what a corpus cost before.
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
bounds): the highest ICAT of each method, on the largest sample that it was scored on. Only rows with
the same base, bias and number of examples (n) compare.
"""
BEST_COLUMNS = (
    *text_columns("base", "bias", "method", "training data", "saw it"),
    *number_columns("SS", "ICAT of the base", "ICAT", "LMS change", "perplexity change"),
    *text_columns("verdict"),
    *number_columns("n", "runs"),
)
MAKING = ("data", "adapter", "objective", "training", "neutral", "balance")  # sections of a config that make an adapter
OWN_FILES = ("path", "text")  # settings of a data source that may name a file of the user's own
SHIPPED = (None, "gap", "bold")  # their values that do not
TESTED = {"StereoSetSentences": "StereoSet", "CrowsPairsSentences": "CrowS-Pairs"}  # data sources, and what they are


class Entry(NamedTuple):
    """One debiased model of one run; or the base alone, without a method."""

    run: Run  # that scored it
    figures: list[Figure]
    bias: str  # that the method is about
    method: str = ""
    data: str = ""
    saw: str = ""
    settings: Mapping[str, Any] = {}
    identity: str = ""  # the seed, or another name for one of several alike
    making: Mapping[str, Any] | None = None  # the stage in which the method was trained or fitted

    @property
    def heads(self) -> dict[str, Row]:
        """The figures that sum it up, of StereoSet only; empty if it was not scored."""
        found = headlines(self.figures, self.bias)
        return found if "SS" in found and found["SS"].base.benchmark == "stereoset" else {}

    @property
    def board(self) -> tuple[Any, ...]:
        """What it was scored on and started from, in the order of the page."""
        ss = self.heads["SS"].base
        split = next((e["split"] for e in _evaluations(self.run) if _class(e) == "StereoSet" and "split" in e), "test")
        values = tuple(round(self.heads[m].base.value, 6) for m in HEADLINES[:3] if m in self.heads)
        return (split != "test", ss.bias == "overall", ss.bias, -ss.n, ss.protocol, _base(self.run), values)


def leaderboard(paths: Sequence[Path]) -> tuple[str, list[str]]:
    """The page of the runs below the paths and in the archives there, and what is wrong with files, one line each.

    Raises UserError if there is nothing to show.
    """
    places = list(paths) or [Path("outputs")]
    found = collect([*places, *(file for place in places for file in _archives(place))])
    if not found.runs:
        raise UserError(nothing_in(found, places))
    makers = {run.name: run for run in found.runs if run.config.get("objective")}
    entries = [_entry(run, name, of, makers) for run in found.runs for name, of in by_adapter(run.figures).items()]
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


# ---------------------------------------------------------------- one model


def _entry(run: Run, name: str, figures: list[Figure], makers: Mapping[str, Run]) -> Entry:
    """A model of a run, described by the config that made it: its own, or that of the run that trained the adapter."""
    stages = (run.cost or {}).get("stages", {})
    baseline = run.config.get("baseline") or {}
    if _class(baseline) not in ("", "Nothing"):
        method = str(run.status.get("method") or _class(baseline))
        return Entry(run, figures, run.bias, method, "none", "no", {"baseline": baseline}, "", stages.get("fit"))
    if run.config.get("objective"):
        return _trained(run, figures, run)
    paths = (run.config.get("adapter") or {}).get("path") or []
    paths = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    if not paths:
        return Entry(run, figures, run.bias)
    if name:
        paths = [path for path in paths if _stem(path) == name] or [Path(name)]
    maker = makers.get("/".join(run_of(paths[0]).parts[-2:])) if len(paths) == 1 else None
    if maker:
        return _trained(run, figures, maker)
    short = max(len(_stem(path)) for path in paths) < 40  # the name of a sweep's run may fill a line
    weights = run.config["adapter"].get("weights") or []
    shares = [f"{weight:.3g} " for weight in weights] if len(weights) == len(paths) else [""] * len(paths)
    if short:
        named = " + ".join(share + _stem(path) for share, path in zip(shares, paths, strict=True))
    else:
        named = f"{len(paths)} adapters{' with weights ' if weights else ''}{', '.join(s.strip() for s in shares if s)}"
    method = f"{run.config['adapter'].get('combine') or 'adapter'} of {named}" if len(paths) > 1 else f"adapter {named}"
    return Entry(run, figures, run.bias, method, "unknown", "unknown", identity=str(paths))


def _trained(run: Run, figures: list[Figure], maker: Run) -> Entry:
    config = maker.config
    objective = config["objective"]
    chosen = [f"{key}={value}" for key, value in objective.items() if key != "_target_" and value is not None]
    adapter = _class(config.get("adapter") or {}).removesuffix("Config")
    method = ", ".join(filter(None, (adapter, " ".join([_class(objective), *chosen]))))
    data = maker.sources if maker.trained_on == maker.sources else f"{maker.sources} ({maker.trained_on})"
    settings = {key: _without_modules(config[key]) for key in MAKING if key in config}
    making = (maker.cost or {}).get("stages", {}).get("train")
    return Entry(run, figures, maker.bias, method, data, _saw(maker), settings, maker.seed, making)


def _saw(maker: Run) -> str:
    """Whether a run trained on sentences of a benchmark, from its data sources and from what it counted."""
    sources = list((maker.config.get("data", {}).get("sources") or {}).values())
    tested = [f"{TESTED[_class(s)]} {s.get('split', '')}".strip() for s in sources if _class(s) in TESTED]
    scored = {name: count for name, count in maker.status.get("trained_on_scored", {}).items() if count}
    tested += [f"{counted(count, 'sentence')} of {name}" for name, count in scored.items()]
    if tested:
        return f"yes: {', '.join(tested)}"
    ours = all(
        _target(s).startswith("debias.") and not any(s.get(key) not in SHIPPED for key in OWN_FILES) for s in sources
    )
    return "no" if ours or "trained_on_scored" in maker.status else "unknown"


def _stem(path: Path) -> str:
    return run_of(path).name


def _base(run: Run) -> str:
    model = run.config.get("model") or {}
    quantization = model.get("quantization")
    return str(model.get("path") or "base model") + (f" ({quantization})" if quantization else "")


def _evaluations(run: Run) -> Iterable[Mapping[str, Any]]:
    return (e for e in (run.config.get("eval") or {}).values() if isinstance(e, Mapping))


def _target(section: Mapping[str, Any]) -> str:
    return str(section.get("_target_") or "")


def _class(section: Mapping[str, Any]) -> str:
    return _target(section).rpartition(".")[2]


def _without_modules(node: Any) -> Any:
    """A section of a config in which classes have no module: modules move between versions."""
    if not isinstance(node, Mapping):
        return node
    return {key: _class(node) if key == "_target_" else _without_modules(value) for key, value in node.items()}


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
        return re.match(r"[^ (,]+(, \w+)?", self.group[0].method)[0]  # type: ignore[index]


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
    seconds = [float(e.making["seconds"]) for e in group if e.making]
    dollars = [(e.run.cost or {}).get("dollars") for e in group]
    known = [float(d) for d in dollars if d is not None]
    paid = f"{sum(known) / len(known):,.2f}" if len(known) == len(dollars) else "unknown"
    took = f"{sum(seconds) / len(seconds):,.0f}" if seconds else "unknown"
    made = (took, paid, str(len(group)), _commits(group))
    verdict = scored.outcome.brief
    return row(scored.method, _base(first.run), first.data, first.saw, *scores, *_prices(heads), verdict, *made)


def _base_line(entry: Entry) -> Line:
    scores = [_figure(entry.heads[metric].base if metric in entry.heads else None) for metric in HEADLINES[:3]]
    return row("base model", _base(entry.run), "", "", *scores, *[""] * 7)._replace(baseline=True)


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
        by_text.setdefault(f"{_base(entries[0].run)}, {base.bias}: {sample}", []).append(i)
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
            return [f"{name}: {', '.join(of_board)}".replace("None", "unknown") for of_board in values]
    return ["base scored differently, for a reason that the files do not give"] * len(boards)


def _best_of(tables: Sequence[Sequence[Scored]]) -> list[str]:
    """The best row of each kind of method that kept ability, on the largest sample of StereoSet test that has one."""
    best: dict[tuple[str, str, str], Scored] = {}
    for scored in (found for table in tables for found in table if found.outcome.ability == "kept"):
        base = scored.heads["SS"].base
        if not scored.group[0].board[0] and scored.icat:
            best.setdefault((_base(scored.group[0].run), base.bias, scored.kind), scored)
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
