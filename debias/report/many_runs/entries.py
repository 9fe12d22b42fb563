"""Runs -> the models of the leaderboard: what each was scored on, and how it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from debias.records import Figure
from debias.report.comparison import HEADLINES, Row, headlines
from debias.report.many_runs import making
from debias.report.many_runs.collection import Run
from debias.report.many_runs.making import UNKNOWN, Making, class_of
from debias.report.outcome import by_adapter
from debias.results import run_of


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
    seconds: float | None = None  # of training or fitting

    @property
    def heads(self) -> dict[str, Row]:
        """The figures that sum it up, of StereoSet only; empty if it was not scored."""
        found = headlines(self.figures, self.bias)
        return found if "SS" in found and found["SS"].base.benchmark == "stereoset" else {}

    @property
    def board(self) -> tuple[Any, ...]:
        """What it was scored on and started from, in the order of the page."""
        ss = self.heads["SS"].base
        split = next(
            (e["split"] for e in _evaluations(self.run) if class_of(e) == "StereoSet" and "split" in e), "test"
        )
        values = tuple(round(self.heads[m].base.value, 6) for m in HEADLINES[:3] if m in self.heads)
        return (split != "test", ss.bias == "overall", ss.bias, -ss.n, ss.protocol, base_of(self.run), values)


def base_of(run: Run) -> str:
    """What to call a run's base model."""
    model = run.config.get("model") or {}
    quantization = model.get("quantization")
    return str(model.get("path") or "base model") + (f" ({quantization})" if quantization else "")


def _evaluations(run: Run) -> Iterable[Mapping[str, Any]]:
    return (e for e in (run.config.get("eval") or {}).values() if isinstance(e, Mapping))


def entries_of(runs: Sequence[Run]) -> list[Entry]:
    """The models of all runs; the base alone where a run scored nothing else."""
    trained = [run for run in runs if run.config.get("objective")]
    names = Counter(run.name for run in trained)
    makers = {run.name: run for run in trained if names[run.name] == 1}  # two of one name: nobody knows which it was
    return [_entry(run, name, of, makers) for run in runs for name, of in by_adapter(run.figures).items()]


def _entry(run: Run, name: str, figures: list[Figure], makers: Mapping[str, Run]) -> Entry:
    """A model of a run, described by what made it: this run, the run that trained its adapter, or a note on that."""
    baseline = run.config.get("baseline") or {}
    if class_of(baseline) not in ("", "Nothing"):
        method = str(run.status.get("method") or class_of(baseline))
        fit = (run.cost or {}).get("stages", {}).get("fit") or {}
        return Entry(run, figures, run.bias, method, "none", "no", {"baseline": baseline}, "", fit.get("seconds"))
    if run.config.get("objective"):
        return _made(run, figures, making.of_run(run))
    config = run.config.get("adapter") or {}
    paths = [config["path"]] if isinstance(config.get("path"), str) else list(config.get("path") or [])
    if not paths:
        return Entry(run, figures, run.bias)
    notes = run.status.get("adapters") or [None] * len(paths)
    found = [(Path(path), _making(Path(path), note, makers)) for path, note in zip(paths, notes, strict=True)]
    if name:
        found = [one for one in found if _stem(one[0]) == name] or [(Path(name), None)]
    if len(found) == 1:
        ((path, made),) = found
        if made:
            return _made(run, figures, made)
        return Entry(run, figures, run.bias, f"adapter {_stem(path)}", UNKNOWN, UNKNOWN, identity=str(path))
    combine, parts = str(config.get("combine")), [made for _, made in found]
    several = making.of_several(parts, [_stem(path) for path, _ in found], combine, config.get("weights"))
    if all(parts):
        return _made(run, figures, several._replace(bias=run.bias))
    method = several.method
    if max(len(_stem(path)) for path, _ in found) >= 40:  # the name of a sweep's run may fill a line
        weights = ", ".join(f"{weight:.3g}" for weight in config.get("weights") or [])
        method = f"{combine} of {len(found)} adapters{f' with weights {weights}' if weights else ''}"
    identity = str([path for path, _ in found])
    return Entry(run, figures, run.bias, method, several.data, several.saw, identity=identity)


def _making(path: Path, note: Mapping[str, Any] | None, makers: Mapping[str, Run]) -> Making | None:
    """How an adapter was made, by the note on it, or by the run of its name if that is among the files."""
    maker = makers.get("/".join(run_of(path).parts[-2:]))
    return making.of_note(note) or (making.of_run(maker) if maker else None)


def _made(run: Run, figures: list[Figure], made: Making) -> Entry:
    return Entry(run, figures, made.bias, made.method, made.data, made.saw, made.settings, made.seeds, made.seconds)


def _stem(path: Path) -> str:
    return run_of(path).name
