"""What tells runs apart: the config keys in which they differ, under the shortest unambiguous names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

IRRELEVANT = ("name", "overwrite", "logger", "threads")  # keys that do not influence a run's result
Label = dict[str, str]


def words(label: Mapping[str, str]) -> str:
    """A label as text."""
    return " ".join(f"{key}={value}" for key, value in label.items())


def ordered(label: Mapping[str, str]) -> list[tuple[str, float, str]]:
    """The sort key of a label: key by key, numbers by size, without the seed."""
    return [(key, *_size(value)) for key, value in label.items() if key != "seed"]


def by_choice_and_seed(label: Mapping[str, str]) -> tuple[list[tuple[str, float, str]], tuple[float, str]]:
    """The sort key of a label, with the seed after everything else."""
    return ordered(label), _size(label.get("seed", ""))


def _size(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def content(config: Mapping[str, Any]) -> str:
    """Everything in a config that influences the result, except the seed, as JSON.

    A key without a value counts as absent: configs of older versions lack keys that are null since.
    """
    kept = {key: value for key, value in config.items() if key not in (*IRRELEVANT, "seed")}
    return json.dumps(_without_null(kept), sort_keys=True, default=str)


def _without_null(node: Any) -> Any:
    return {k: _without_null(v) for k, v in node.items() if v is not None} if isinstance(node, Mapping) else node


def differences(configs: Sequence[Mapping[str, Any]]) -> list[Label]:
    """The keys whose values differ, under their shortest names, and each run's values.

    A key that only some configs have, such as an objective's own, counts if those differ in it.
    """
    if not configs:
        return []
    flat = [dict(_flat(config)) for config in configs]
    for of_run, label in zip(flat, _sources(configs), strict=True):
        if label:
            of_run["data"] = label
    keys = list(dict.fromkeys(key for of_run in flat for key in of_run))
    varying = [key for key in keys if len({str(of_run[key]) for of_run in flat if key in of_run}) > 1]
    varying.sort(key=lambda key: (key == "seed", key))
    short = {key: key.removesuffix("._target_").rsplit(".", 1)[-1] for key in varying}
    names = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    return [{names[key]: _shown(key, of_run[key]) for key in varying if key in of_run} for of_run in flat]


def _shown(key: str, value: object) -> str:
    """A value as text; of a class only its name."""
    return str(value).rsplit(".", 1)[-1] if "_target_" in key else str(value)


def _sources(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The data sources of each run, with the settings in which runs on the same source differ.

    What is the run's own setting, a key of its own, is left out, and so is a source's bias, which usually is.
    """
    sources = [config.get("data", {}).get("sources", {}) for config in configs]
    values: dict[tuple[str, str], set[str]] = {}
    for name, key, value in ((n, k, v) for of in sources for n, settings in of.items() for k, v in settings.items()):
        values.setdefault((name, key), set()).add(str(value))
    return [
        "+".join(
            name
            + "".join(
                f" {k}={v}"
                for k, v in settings.items()
                if k != "bias" and len(values[name, k]) > 1 and v != config["data"].get(k)
            )
            for name, settings in of.items()
        )
        for of, config in zip(sources, configs, strict=True)
    ]


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if prefix == "data." and key == "sources":
            continue  # see `_sources`
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix or key not in IRRELEVANT:
            yield f"{prefix}{key}", value
