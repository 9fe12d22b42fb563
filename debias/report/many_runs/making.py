"""How an adapter was made, in words: the method, the training data, and whether it saw a benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from debias.report.many_runs.collection import Run
from debias.wording import counted

UNKNOWN = "unknown"
SECTIONS = ("data", "adapter", "objective", "training", "neutral", "balance")  # of a config, that make an adapter
OWN_FILES = ("path", "text")  # settings of a data source that may name a file of the user's own
SHIPPED = (None, "gap", "bold")  # their values that do not
TESTED = {"StereoSetSentences": "StereoSet", "CrowsPairsSentences": "CrowS-Pairs"}  # data sources, and what they are


class Making(NamedTuple):
    """What is known of how an adapter was made."""

    method: str
    data: str
    saw: str  # `yes: ...`, `no` or `unknown`
    settings: Mapping[str, Any]
    seeds: str
    seconds: float | None
    bias: str


def of_run(run: Run) -> Making:
    """From the run that trained it."""
    config = run.config
    objective = config["objective"]
    chosen = [f"{key}={value}" for key, value in objective.items() if key != "_target_" and value is not None]
    adapter = class_of(config.get("adapter") or {}).removesuffix("Config")
    method = ", ".join(filter(None, (adapter, " ".join([class_of(objective), *chosen]))))
    data = run.sources if run.trained_on == run.sources else f"{run.sources} ({run.trained_on})"
    settings = {key: _without_modules(config[key]) for key in SECTIONS if key in config}
    seconds = ((run.cost or {}).get("stages", {}).get("train") or {}).get("seconds")
    return Making(method, data, _saw(run), settings, run.seed, seconds, run.bias)


def of_note(made: Mapping[str, Any] | None) -> Making | None:
    """From the note in the adapter's folder (`debias.jobs.making`); None if nothing is known."""
    if not made:
        return None
    if "parts" in made:
        parts = [of_note(part) for part in made["parts"]]
        return of_several(parts, [UNKNOWN] * len(parts), made["combine"], made["weights"], made.get("chosen_on"))
    scored = made.get("trained_on_scored")
    status = {} if scored is None else {"trained_on_scored": scored}
    return of_run(Run(Path(), made["config"], [], status, {"stages": {"train": {"seconds": made.get("seconds")}}}))


def of_several(
    parts: Sequence[Making | None],
    names: Sequence[str],
    combine: str,
    weights: Sequence[float] | None,
    chosen_on: str | None = None,
) -> Making:
    """Of several adapters in one. Parts that differ only in the seed are named once.

    Args:
        names: what to call the parts of which nothing is known.
        chosen_on: the sentences on which the weights were chosen.
    """
    shares = [f"{weight:.3g} " for weight in weights] if weights and len(weights) == len(parts) else [""] * len(parts)
    seeds: dict[tuple[str, str, str], set[str]] = {}
    for i, (share, name, part) in enumerate(zip(shares, names, parts, strict=True)):
        alike = (share, part.data, json.dumps(part.settings, default=str)) if part else (share, name, str(i))
        seeds.setdefault(alike, set()).add(part.seeds if part else "")
    listed = [f"{share}{name}{f' ({len(of)} seeds)' if len(of) > 1 else ''}" for (share, name, _), of in seeds.items()]
    method = f"{combine} of {' + '.join(listed)}"
    known = [part for part in parts if part]
    methods = dict.fromkeys(part.method for part in known)
    if len(known) == len(parts) and len(methods) == 1:
        method += f", each {next(iter(methods))}"
    saw = _seen_by(parts) + (f"; weights chosen on {chosen_on}" if chosen_on else "")
    data = " + ".join(dict.fromkeys(part.data if part else UNKNOWN for part in parts))
    seconds = [part.seconds for part in known if part.seconds is not None]
    total = sum(seconds) if len(seconds) == len(parts) else None
    of_all = ", ".join(dict.fromkeys(part.seeds for part in known))
    first = known[0] if known else None
    alike_all = first is not None and all(part and part.settings == first.settings for part in parts)
    settings = {f"part {i}": part.settings if part else {} for i, part in enumerate(parts, start=1)}
    bias = first.bias if first else "overall"
    return Making(method, data, saw, first.settings if first and alike_all else settings, of_all, total, bias)


def _seen_by(parts: Sequence[Making | None]) -> str:
    seen = [part.saw.removeprefix("yes: ") for part in parts if part and part.saw.startswith("yes: ")]
    if seen:
        return f"yes: {', '.join(dict.fromkeys(seen))}"
    found = [part.saw if part else UNKNOWN for part in parts]
    return UNKNOWN if UNKNOWN in found else ", ".join(dict.fromkeys(found))


def _saw(run: Run) -> str:
    """Whether a run trained on sentences of a benchmark, from its data sources and from what it counted."""
    sources = list((run.config.get("data", {}).get("sources") or {}).values())
    tested = [f"{TESTED[class_of(s)]} {s.get('split', '')}".strip() for s in sources if class_of(s) in TESTED]
    scored = {name: count for name, count in run.status.get("trained_on_scored", {}).items() if count}
    tested += [f"{counted(count, 'sentence')} of {name}" for name, count in scored.items()]
    if tested:
        return f"yes: {', '.join(tested)}"
    ours = all(
        _target(s).startswith("debias.") and not any(s.get(key) not in SHIPPED for key in OWN_FILES) for s in sources
    )
    return "no" if ours or "trained_on_scored" in run.status else UNKNOWN


def _target(section: Mapping[str, Any]) -> str:
    return str(section.get("_target_") or "")


def class_of(section: Mapping[str, Any]) -> str:
    """The class that a section of a config builds, without its module."""
    return _target(section).rpartition(".")[2]


def _without_modules(node: Any) -> Any:
    """A section of a config in which classes have no module: modules move between versions."""
    if not isinstance(node, Mapping):
        return node
    return {key: class_of(node) if key == "_target_" else _without_modules(value) for key, value in node.items()}
