"""Command line -> Hydra's config -> objects, with every error in one line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from debias.generation.wanted import BESIDE
from debias.records import UserError, without_passwords


def config_dir() -> Path:
    """The config tree: in the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def any_model(overrides: Sequence[str]) -> list[str]:
    """Expand `model=ID` to `model=hf model.path=ID` unless ID is a config of its own."""
    known = options("model")
    words = []
    for word in overrides:
        key, _, value = word.partition("=")
        if key == "model" and value and not set(value.split(",")) & known:
            words += ["model=hf", f"model.path={value}"]
        else:
            words.append(word)
    return words


def whole_values(overrides: Sequence[str]) -> list[str]:
    """Let `llm.extra_body={...}` replace what the config has there: Hydra merges, so that {} would clear nothing."""
    words = []
    for word in overrides:
        replaces = word.startswith("llm.extra_body={")
        words += ["~llm.extra_body", f"+{word}"] if replaces else [word]
    return words


def chat_models(overrides: Sequence[str]) -> list[str]:
    """Expand `judge.llm=NAME`: the settings of a config of the group `llm`, for the judge.

    Hydra knows the group by its place in the config, and adds to it only what is marked by a plus.
    """
    return [f"+llm@{word}" if re.match(r"(judge|counterparts)\.llm=\w", word) else word for word in overrides]


def several_models(overrides: Sequence[str]) -> list[str]:
    """Expand `llm=[A:3,B]`, the models that write and their shares, to `llm=A`, its share, and `llm.others.B`."""
    words = []
    for word in overrides:
        if not (several := re.fullmatch(r"llm=\[(.+)\]", word)):
            words.append(word)
            continue
        names = [name.strip().partition(":") for name in several[1].split(",")]
        for i, (name, _, share) in enumerate(names):
            twice = sum(other == name for other, _, _ in names[1:i])
            place = f"llm.others.{name}{twice + 1 if twice else ''}" if i else "llm"
            words.append(f"+llm@{place}={name}" if i else f"llm={name}")
            words += [f"{place}.share={share}"] if share else []
    return words


def counterparts_of(overrides: Sequence[str]) -> list[str]:
    """Expand `counterparts=FILE` to `counterparts=llm counterparts.file=FILE` unless FILE is a config of the group."""
    words = []
    for word in overrides:
        key, _, value = word.partition("=")
        of_file = key == "counterparts" and value not in options("counterparts")
        words += ["counterparts=llm", f"counterparts.file={value}"] if of_file else [word]
    return words


def shorthands(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra understands them."""
    return whole_values(chat_models(several_models(counterparts_of(any_model(overrides)))))


def groups() -> set[str]:
    """The names of the config groups."""
    return {path.name for path in config_dir().iterdir() if path.is_dir()}


def options(group: str) -> set[str]:
    """The configs of a group."""
    return {path.stem for path in (config_dir() / group).glob("*.yaml")}


def job_name(overrides: Sequence[str], verb: str = "run") -> str:
    """Folder name of a job: its overrides in short form, or `default`. Long names are cut and get a hash.

    It contains nothing that Hydra or a shell would want quoted, so that `adapter.path=FOLDER` can be typed as it is.
    """
    beside = {"name", "overwrite", "accept_other_code", "logger"}
    if verb == "generate":  # a set that is to grow stays in its folder
        beside |= {"preview", "counterparts"}
        beside |= {f"{section}.{name}" for section, names in BESIDE.items() for name in names}

    def counts(word: str) -> bool:
        key = word.lstrip("+").partition("=")[0]
        return re.sub(r"^(judge\.llm|counterparts\.llm|llm\.others\.\w+)\.", "llm.", key) not in beside

    kept = sorted(without_passwords(word) for word in overrides if counts(word))
    short = [re.sub(r"^\+*\w+\.(?=[\w.]+=)", "", word) for word in kept]  # training.lr=1e-3 -> lr=1e-3
    short = [b if short.count(b) == 1 else a for a, b in zip(kept, short, strict=True)]
    words = [re.sub(r"[^\w.-]+", "_", word.replace("=", "-")) for word in sorted(short)]
    name = "+".join(words) or "default"
    if len(name) > 120:
        name = f"{name[:110]}-{hashlib.sha256(','.join(kept).encode()).hexdigest()[:8]}"
    return name


# Launchers that need an extra of this package, and the name of the extra.
LAUNCHERS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


def explain(error: Exception, verb: str, words: Sequence[str] = ()) -> str:
    """One line for an error of Hydra, with the nearest known name."""
    from hydra.errors import OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        said = text.split("\nSee https")[0].splitlines()[0]
        return f"{error.override!r} cannot be read ({said}); quote blanks, commas or brackets: \"KEY='TEXT'\""
    if launcher := re.search(r"Could not (?:find|load) 'hydra/launcher/([^']+)'", text):
        if extra := LAUNCHERS.get(launcher[1]):
            return f"hydra/launcher={launcher[1]} needs a package that is not installed: {install(extra)}"
        known = ["basic", *LAUNCHERS]
        return (
            f"there is no hydra/launcher={launcher[1]}{nearest(launcher[1], known)}; choose one of: {', '.join(known)}"
        )
    if group := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        choices = sorted(options(group[1]))
        if choices:
            hint = nearest(group[2], choices)
            return f"there is no {group[1]}={group[2]}{hint}; choose one of: {', '.join(choices)}"
    if key := re.search(r"Could not override '([^']+)'", text):
        if key[1] in groups():
            users = "data=generated and `debias generate` do" if key[1] in ("llm", "strategy") else "another verb does"
            return f"`debias {verb}` does not use {key[1]}=... with these settings; {users}"
        chosen = [word for word in words if word.partition("=")[0] in groups()]
        if key[1] not in keys(verb):
            return f"unknown key {key[1]!r}{nearest(key[1], keys(verb, chosen))}; see `debias {verb} --cfg job`"
        return f"{key[1]} is not a key of {' '.join(chosen)}, only of other options; leave it out"
    if group := re.search(r"Could not override '?([^'\s]+)'?\.\s*No match in the defaults list", text):
        return f"unknown group {group[1]!r}{nearest(group[1], keys(verb))}; see `debias ls`"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} must be set: add {missing[1]}=VALUE"
    return text.split("\nSee https")[0]


def install(extra: str) -> str:
    """The command that installs an extra of this package."""
    return f"python -m pip install 'debias[{extra}]'"


def keys(verb: str, chosen: Sequence[str] = ()) -> list[str]:
    """All keys that can be overridden, in dotted form, and the groups; `chosen` replaces options of the defaults."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    def walk(node: DictConfig, prefix: str) -> Iterator[str]:
        for key in map(str, node):
            yield f"{prefix}{key}"
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                yield from walk(child, f"{prefix}{key}.")

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return [
            *walk(compose(verb, list(chosen)), ""),
            *sorted(groups()),
        ]


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint with the known name that was probably meant; empty if none is close.

    A key is looked for beside its siblings (`training.` has those of `training`), then under its own name elsewhere.
    """
    section, _, last = name.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    found = _closest(last, list(siblings))
    if found is None:
        namesakes = [key for key in known if key.rpartition(".")[2] == last]
        meant = namesakes[0] if namesakes else None if siblings else _closest(name, known)
    else:
        meant = siblings[found]
    return f" (did you mean {meant!r}?)" if meant else ""


def _closest(name: str, known: Sequence[str]) -> str | None:
    """The name with the fewest edits, if they are one in four letters at most, or one that begins like this."""
    allowed = max(1, len(name) // 4)
    edits = {other: _edits(name, other) for other in known if abs(len(other) - len(name)) <= allowed}
    best = min(edits, key=lambda other: edits[other], default=None)
    if best is not None and edits[best] <= allowed and edits[best] < max(len(name), len(best)):
        return best
    longer = [other for other in known if len(name) > 2 and other.startswith(name)]
    return longer[0] if len(longer) == 1 else None


def _edits(a: str, b: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour (optimal string alignment)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        rows.append([i])
        for j, y in enumerate(b, 1):
            cost = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (x != y))
            if i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2]):
                cost = min(cost, rows[i - 2][j - 2] + 1)
            rows[i].append(cost)
    return rows[-1][-1]


def make(cfg: DictConfig | ListConfig, **more: Any) -> Any:
    """Build the object that a config names by `_target_`. A UserError inside is raised as such, not as Hydra's."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(cfg, **more)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise
