"""`debias report --leaderboard`: methods of debiasing side by side, as a page in Markdown to which others add rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import ArrowException, parquet

from debias.records import Figure, UserError
from debias.report.comparison import HEADLINES, Row, headlines, number
from debias.report.grid import Grid, Line, markdown_text, number_columns, row, text_columns
from debias.report.many_runs import archive
from debias.report.many_runs.collection import Run, collect, nothing_in
from debias.report.many_runs.configurations import LabelledRun, mean_figures
from debias.report.many_runs.labels import differences, words
from debias.report.outcome import by_adapter, outcome
from debias.results import run_of
from debias.wording import counted

TITLE = "# Leaderboard"
INTRODUCTION = """\
Methods of debiasing on StereoSet, made by `debias report --leaderboard` from archives of runs. Only
the rows of one table compare: they were scored on the same sentences, under the same protocol, from
the same base. The base comes first, then the highest ICAT; models that lost more ability than
allowed (`broken`) come last, whatever their bias did. Runs that differ only in the seed are one row
with their mean. Rows of the same method on the same data name the settings that differ.

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
    sections = [_section(boards[key]) for key in sorted(boards)]
    return "\n\n".join([TITLE, INTRODUCTION.rstrip("\n"), *note, *sections]) + "\n", found.faults


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


def _section(entries: Sequence[Entry]) -> str:
    """A table of what was scored on the same sentences, from the same base."""
    first, base = entries[0], entries[0].heads["SS"].base
    lines = [_base_line(first)]
    alike: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in (e for e in entries if e.method):
        alike.setdefault((entry.method, entry.data, entry.saw), []).append(entry)
    made = [line for group in alike.values() for line in _lines(group)]
    lines += [line for _, line in sorted(made, key=lambda pair: (pair[0], [cell.text for cell in pair[1].cells]))]
    split = "dev" if first.board[0] else "test"
    heading = f"{_base(first.run)}, {base.bias}: StereoSet {split}, {counted(base.n, 'example')}, {base.protocol}"
    return f"## {markdown_text(heading)}\n\n{Grid(COLUMNS, lines).markdown().rstrip()}"


def _lines(alike: Sequence[Entry]) -> list[tuple[tuple[bool, float], Line]]:
    """A row for each choice of settings, with what to sort it by; of one seed the latest run counts."""
    by_settings: dict[str, dict[str, Entry]] = {}
    labels = differences([{**entry.settings} for entry in alike])
    for entry, label in sorted(zip(alike, labels, strict=True), key=lambda pair: str(pair[0].run.status.get("ended"))):
        settings = words({key: value for key, value in label.items() if value != "None"})
        by_settings.setdefault(settings, {})[entry.identity] = entry
    found = []
    for settings, by_seed in by_settings.items():
        group = list(by_seed.values())
        figures = mean_figures([LabelledRun(e.run, e.figures, {}) for e in group])
        heads, told = headlines(figures, group[0].bias), outcome(figures, group[0].bias)
        icat = heads["ICAT"].debiased.value if "ICAT" in heads and heads["ICAT"].debiased else 0.0
        found.append(((told.ability == "broken", -icat), _line(group, heads, settings, told.brief)))
    return found


def _line(group: Sequence[Entry], heads: Mapping[str, Row], settings: str, verdict: str) -> Line:
    first, base = group[0], _base(group[0].run)
    method = f"{first.method}; {settings}" if settings else first.method
    scores = [_figure(heads[metric].debiased if metric in heads else None) for metric in HEADLINES[:3]]
    prices = [_price(heads.get(metric)) for metric in ("LMS", "perplexity")]
    seconds = [float(e.making["seconds"]) for e in group if e.making]
    dollars = [(e.run.cost or {}).get("dollars") for e in group]
    known = [float(d) for d in dollars if d is not None]
    paid = f"{sum(known) / len(known):,.2f}" if len(known) == len(dollars) else "unknown"
    took = f"{sum(seconds) / len(seconds):,.0f}" if seconds else "unknown"
    made = (took, paid, str(len(group)), _commits(group))
    return row(method, base, first.data, first.saw, *scores, *prices, verdict, *made)


def _base_line(entry: Entry) -> Line:
    scores = [_figure(entry.heads[metric].base if metric in entry.heads else None) for metric in HEADLINES[:3]]
    return row("base model", _base(entry.run), "", "", *scores, *[""] * 7)._replace(baseline=True)


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return number(figure.value, figure.metric) + _interval(figure.ci_low, figure.ci_high, figure.metric)


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
