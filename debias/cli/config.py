"""Command line -> Hydra's config -> objects, with every error in one line."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from debias.generation.wanted import BESIDE
from debias.records import UserError, without_passwords
from debias.schema import check_call, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def config_dir() -> Path:
    """The config tree: in the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def any_model(overrides: Sequence[str], always: bool = False) -> list[str]:
    """Expand `model=ID` to `model=hf model.path=ID`, also each of `model=A,B`; a config of its own only if `always`."""
    known = options("model")
    words = []
    for word in overrides:
        key, _, value = word.partition("=")
        several = value.split(",")
        if key == "model" and value and (always or not set(several) <= known):
            paths = [_path_of(one) if one in known else one for one in several]
            words += ["model=hf", f"model.path={','.join(paths)}"]
        else:
            words.append(word)
    return words


def _path_of(option: str) -> str:
    """The path of a model that has a config of its own."""
    return str(DictConfig(OmegaConf.load(config_dir() / "model" / f"{option}.yaml")).path)


def readable(overrides: Sequence[str], several: bool) -> list[str]:
    """Quote values that Hydra's grammar cannot read, such as `~/a.jsonl` or `runs/lr=1e-3`, so that they are text.

    Args:
        several: whether commas separate the values of a sweep, each of which is then looked at by itself.
    """
    return [_readable(word, several) for word in overrides]


TWO = 2 * "\\"  # backslashes, as at the start of a Windows share


def _readable(word: str, several: bool) -> str:
    key, equals, value = word.partition("=")
    is_key = equals and re.fullmatch(r"\+{0,2}[\w./@:][\w./@:-]*", key)
    if not is_key:
        return word
    if _value(word) is not None:  # outside quotes Hydra reads two backslashes as one
        return word if re.search("[\"']", value) else f"{key}={value.replace(TWO, TWO * 2)}"
    parts = value.split(",") if several and not re.search(r"""["'()\[\]{}]""", value) else [value]
    return f"{key}={','.join(part if _value(f'{key}={part}') is not None else quoted(part) for part in parts)}"


def _value(word: str) -> Override | None:
    """An override that Hydra can read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def quoted(text: str) -> str:
    """A text as Hydra reads it: in quotes, with a backslash before those inside and before backslashes that end it."""
    inside = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    return "'" + re.sub(r"\\+$", lambda found: found[0] * 2, inside) + "'"


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


def prices_of(overrides: Sequence[str]) -> list[str]:
    """Expand `llm.prices.MODEL.prompt=1` to `++llm.prices={MODEL: {prompt: 1}}`, since names of models have dots.

    Any model may be added to the list, so that `llm.prices={MODEL: ...}` needs no plus.
    """
    words = []
    for word in overrides:
        key, _, value = word.partition("=")
        told = re.fullmatch(r"\+{0,2}((?:\w+\.)*llm(?:\.others\.\w+)?\.prices)(?:\.(.+?)(?:\.([a-z_]+))?)?", key)
        if told is None or not (told[2] or value.startswith("{")):
            words.append(word)
            continue
        inner = value if _value(f"x={value}") is not None else quoted(value)
        for name in filter(None, (told[3], told[2])):
            inner = "{" + re.sub(r"[^\w./-]", r"\\\g<0>", name) + f": {inner}}}"
        words.append(f"++{told[1]}={inner}")
    return words


def counterparts_of(overrides: Sequence[str]) -> list[str]:
    """Expand `counterparts=FILE` to `counterparts=llm counterparts.file=FILE` unless FILE is a config of the group."""
    words = []
    for word in overrides:
        key, _, value = word.partition("=")
        of_file = key == "counterparts" and value not in options("counterparts")
        words += ["counterparts=llm", f"counterparts.file={value}"] if of_file else [word]
    return words


def shorthands(overrides: Sequence[str], grid: Collection[str] = ()) -> list[str]:
    """Overrides as Hydra understands them; `grid` holds the keys that a sweep file goes through."""
    paths = "model.path" in grid  # which would replace that of model=NAME
    return chat_models(several_models(prices_of(counterparts_of(any_model(overrides, always=paths)))))


def check_words(words: Sequence[str]) -> None:
    """Raise UserError for a flag that Hydra does not know, and for a group without an option."""
    from hydra._internal.utils import get_args_parser

    def wrong(message: str) -> NoReturn:
        raise UserError(f"{message}; see `debias --help`")

    parser = get_args_parser()
    parser.error = wrong  # type: ignore[method-assign]
    parser.parse_args(list(words))
    for word in words:
        group, _, value = word.partition("=")
        if group in groups() and value in ("null", ""):
            raise UserError(f"there is no {word}; choose one of: {', '.join(sorted(options(group)))}")


def groups() -> set[str]:
    """The names of the config groups."""
    return {path.name for path in config_dir().iterdir() if path.is_dir()}


def options(group: str) -> set[str]:
    """The configs of a group."""
    return {path.stem for path in (config_dir() / group).glob("*.yaml")}


NOT_IDENTITY = ("name", "overwrite", "accept_other_code", "logger")  # keys that do not change what a job computes
LONGEST = 120  # bytes of a job's name; most file systems take 255, and temporary names are longer


def run_dir(name: object, overrides: Sequence[str], verb: str) -> str:
    """The folder of a single job: `outputs/NAME` if the user named it, else one in the folder that unnamed ones share.

    The shared folder is named after the verb.
    """
    folder = f"outputs/{name}"
    return folder if is_named(overrides, verb) else f"{folder}/{job_name(overrides, verb)}"


def is_named(overrides: Sequence[str], verb: str) -> bool:
    """Whether a job or a sweep has a folder of its own: a name on the command line, or that of a sweep file."""
    return "name" in map(key_of, overrides) or not (config_dir() / f"{verb}.yaml").is_file()


def key_of(override: str) -> str:
    """The key or group of an override, without what says how it is set."""
    return override.lstrip("+~").partition("=")[0]


def job_name(overrides: Sequence[str], verb: str = "run", left_out: Sequence[str] = ()) -> str:
    """Folder name of a job: its overrides in short form, the seed last, or `default`.

    It contains nothing that Hydra or a shell would want quoted, so that `adapter.path=FOLDER` can be typed as it is. A
    name that had to be changed or cut for that ends with a hash, so that no two jobs share a folder.

    Args:
        left_out: keys that all jobs of a sweep have in common. A sweep in the folder that unnamed ones share has a hash
            of their values in its place.
    """
    beside = {"preview", "counterparts"} if verb == "generate" else set()  # a set that is to grow stays in its folder
    if verb == "generate":
        beside |= {f"{section}.{name}" for section, names in BESIDE.items() for name in names}

    def counts(word: str) -> bool:
        key = re.sub(r"^(judge\.llm|counterparts\.llm|llm\.others\.\w+)\.", "llm.", key_of(word))
        return key not in beside and key.partition(".")[0] not in NOT_IDENTITY

    def told(words: Sequence[str]) -> list[str]:
        return sorted(without_passwords(word) for word in words if counts(word))

    typed = as_typed(overrides)
    kept = told([word for word in typed if key_of(word) not in left_out])
    constant = [] if is_named(overrides, verb) else told([word for word in typed if key_of(word) in left_out])
    short = [re.sub(r"^\+*\w+\.(?=[\w.]+=)", "", word) for word in kept]  # training.lr=1e-3 -> lr=1e-3
    short = [b if short.count(b) == 1 else a for a, b in zip(kept, short, strict=True)]
    plain = [re.sub(r"""^([^=]*=)(["'])(.*)\2$""", r"\1\3", word).replace("=", "-", 1) for word in sorted(short)]
    plain.sort(key=lambda word: word.startswith("seed-"))
    words = [re.sub(r"[^\w.-]+", "_", word) for word in plain]
    name = "+".join(words) or "default"
    if words == plain and not constant and len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(",".join([*kept, *constant]).encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST - 9].decode(errors='ignore')}-{digest}"


def as_typed(words: Sequence[str]) -> list[str]:
    """Overrides as people type them: `model=ID` where Hydra was told `model=hf model.path=ID`."""
    if "model=hf" not in words or "model.path" not in map(key_of, words):
        return list(words)
    return [re.sub(r"^model\.path=", "model=", word) for word in words if word != "model=hf"]


# Launchers that need an extra of this package, and the name of the extra.
LAUNCHERS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


def explain(error: Exception, verb: str, words: Sequence[str] = ()) -> str:
    """One line for an error of Hydra, with the nearest known name."""
    from hydra.errors import OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        name, _, value = str(error.override).partition("=")
        return f"{error.override!r} cannot be read; write KEY=VALUE, and text in quotes: {_typed(name, value)}"
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        name, value = ambiguous[1], ambiguous[2]
        return f"{name}={value} has several values: add -m to run each, or write one text as {_typed(name, value)}"
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
        inner = getattr(error.__cause__, "full_key", None)  # the key that {KEY: VALUE} would have added
        if inner and inner != key[1] and inner not in keys(verb):
            return f"unknown key {inner!r}{nearest(inner, keys(verb)) or f'; write +{key[1]}=... to add it'}"
        return f"{key[1]} is not a key of {' '.join(chosen)}, only of other options; leave it out"
    if group := re.search(r"Could not override '?([^'\s]+)'?\.\s*No match in the defaults list", text):
        return f"unknown group {group[1]!r}{nearest(group[1], keys(verb))}; see `debias ls`"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} must be set: add {missing[1]}=VALUE"
    return text.split("\nSee https")[0]


def _typed(key: str, value: str) -> str:
    """How to type a text in a shell so that Hydra reads it as one."""
    return shlex.quote(f"{key}={quoted(value)}")


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


def make(cfg: DictConfig, place: str = "", types: Mapping[str, Any] | None = None, /, **more: Any) -> Any:
    """Build the object that a config names by `_target_`. Its signature is the schema of the config.

    Raises UserError for a setting that does not fit, and for whatever the object itself complains about.

    Args:
        place: the config's key, for messages; found by itself for a part of a job's config.
        types: types of settings that are stricter than those of the signature.
        more: objects that replace settings.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if "_target_" not in cfg:  # a section, which may have configs inside it
        values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        return {key: make(cfg[key]) if OmegaConf.is_dict(cfg[key]) else value for key, value in values.items()}
    place = place or str(cfg._get_full_key(None))
    node = check_call(cfg, place, types or {})
    try:
        own = {key: value for key, value in node.items() if key not in more}
        return instantiate({"_convert_": "all", **own}, **more)  # lists as lists: nothing below knows Hydra
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        reason = " ".join(str(cause).split())[:300]
        raise UserError(f"{place} does not work with these settings ({type(cause).__name__}: {reason})") from error
