"""What the command can do, read from the config files: their comments are the documentation of each key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console
from rich.text import Text

from debias import __version__
from debias.cli.config import config_dir, groups, options
from debias.cli.terminal import next_step
from debias.records import UserError
from debias.report.grid import Grid, row, text_columns
from debias.schema import nearest

OF_GROUP = {"llm": "llm_defaults", "strategy": "strategy_defaults"}  # files with the keys that all options share
HIDDEN = ("defaults", "hydra", "_target_", "_convert_", "_partial_")
LONGEST = 36  # characters of KEY=VALUE that fit beside a comment in 80 columns
Lines = Sequence[tuple[str, str]]
VERBS: Lines = (
    ("debias run [KEY=VALUE ...]", "data -> adapter -> scores of base and debiased model -> report"),
    ("debias generate [KEY=VALUE ...]", "a chat model writes training sentences, which are checked"),
    ("debias evaluate [KEY=VALUE ...]", "score any base model, alone or with adapters"),
    ("debias show [PROMPT] [KEY=VALUE ...]", "what a model writes, with and without an adapter"),
    ("debias sweep [NAME] [KEY=VALUE ...]", "many runs that answer a question, resumable"),
    ("debias report PATH...", "tables, plots and tests over many runs"),
    ("debias archive PATH...", "put many runs into one file to share, which debias report reads"),
    ("debias doctor FILE...", "what is wrong with this training data: spans, repetitions, leakage, balance"),
    ("debias export [KEY=VALUE ...]", "merge an adapter into the model's weights, or upload it to the model hub"),
    ("debias ls [GROUP ...]", "models, data sources, adapters, benchmarks, protocols: a line each"),
    ("debias explain KEY", "what a key, a group or an option is for: debias explain training.retention"),
    ("debias help [VERB]", "this text, or all that can be set for a verb; the same as debias VERB --help"),
)
SETTINGS: Lines = (
    ("debias run training.lr=3e-4 seed=2", "one run with different settings"),
    ("debias run -m seed=1,2,3", "many runs; --dry-run only lists them"),
    ("debias run --cfg job --resolve", "print the whole config and run nothing"),
)
SWEEP: Lines = (
    ("debias sweep", "list the questions in sweeps/, their number of runs and their time"),
    ("debias sweep NAME --dry-run", "the runs of one of them, and how long those left will take; starts nothing"),
    ("debias sweep NAME [KEY=VALUE ...]", "start them; again: skip what is done, retry the rest"),
    ("debias sweep FILE.yaml", "a file of your own, in the form of those in sweeps/"),
)
LS: Lines = (
    ("debias ls", "every group and its options, a line each; * marks what is taken if nothing else is asked"),
    ("debias ls GROUP...", "some groups: data, eval, model, adapter, objective, protocol, ..."),
)
FLAGS: Lines = (
    ("--cfg job --resolve", "print the whole config and run nothing"),
    ("-m, --multirun", "a run for each of the values in KEY=A,B; with --dry-run they are only listed"),
)


class Key(NamedTuple):
    """A key that can be set: its dotted name, its value in the file, and the comment beside it."""

    name: str
    value: str
    comment: str
    file: str


def keys_in(path: Path, package: str = "") -> list[Key]:
    """The keys of a config file under the package that it names, or under `package`."""
    text = path.read_text(encoding="utf-8")
    if named := re.search(r"^# @package (\S+)", text, re.MULTILINE):
        package = "" if named[1] == "_global_" else named[1]
    lines = text.splitlines()
    file = f"conf/{path.relative_to(config_dir()).as_posix()}"

    def walk(node: yaml.Node, prefix: str) -> Iterator[Key]:
        assert isinstance(node, yaml.MappingNode)
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if key.value in HIDDEN:
                continue
            if isinstance(value, yaml.MappingNode) and value.value:
                if not value.flow_style:
                    yield Key(name, "", _comment(lines[key.start_mark.line]), file)
                yield from walk(value, f"{name}.")
            else:
                written = " ".join(text[value.start_mark.index : value.end_mark.index].split())
                yield Key(name, written, _comment(lines[min(value.end_mark.line, len(lines) - 1)]), file)

    root = yaml.compose(text)
    found = list(walk(root, f"{package}." if package else "")) if isinstance(root, yaml.MappingNode) else []
    return [key for key in found if key.value or key.comment]


def _comment(line: str) -> str:
    return (re.search(r"(?:^|\s)# (.*)$", line) or [""] * 2)[1]


def comments(path: Path) -> list[str]:
    """The comment lines of a config file, without Hydra's own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @package")]


def defaults(verb: str) -> list[Key]:
    """The options that a verb takes if nothing else is asked: `model`, `smollm2`, and the comment beside it."""
    path = config_dir() / f"{verb}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    root = yaml.compose("\n".join(lines))
    assert isinstance(root, yaml.MappingNode)
    (entries,) = (value for key, value in root.value if key.value == "defaults")
    chosen = [pair for entry in entries.value if isinstance(entry, yaml.MappingNode) for pair in entry.value]
    return [
        Key(group.value, ",".join(n.value for n in option.value) if isinstance(option.value, list) else option.value,
            _comment(lines[group.start_mark.line]), path.name)
        for group, option in chosen
    ]  # fmt: skip


def is_default(group: str, option: str) -> bool:
    """Whether a verb takes this option of a group if nothing else is asked."""
    verbs = ("run", "generate")
    return any(key.name == group and option in key.value.split(",") for verb in verbs for key in defaults(verb))


# ---------------------------------------------------------------- what is printed


def usage(verb: str, console: Console) -> None:
    """Print how `debias sweep` or `debias ls` is called, or the whole command."""
    if verb in ("sweep", "ls"):
        _pairs({"sweep": SWEEP, "ls": LS}[verb], console)
        next_step({"sweep": "debias sweep smoke --dry-run", "ls": "debias ls data eval"}[verb])
        return
    console.print(Text(f"debias {__version__}: make a language model prefer stereotypes less, and prove it\n"))
    _pairs(VERBS, console)
    console.print("\nSettings are written KEY=VALUE:")
    _pairs([(f"  {words}", meaning) for words, meaning in SETTINGS], console)
    next_step("debias run")


def _pairs(lines: Lines, console: Console) -> None:
    console.print(Grid(text_columns("", ""), [row(*line) for line in lines]).terminal())


def verb_help(verb: str, console: Console) -> None:
    """Print what a verb does, which options it takes and every key, each with the comment beside it."""
    path = config_dir() / f"{verb}.yaml"
    chosen = [key for key in defaults(verb) if key.name in groups()]
    own = keys_in(path)
    if verb == "generate":
        own += keys_in(config_dir() / "generation.yaml", "generate")
    for line in comments(path)[:1]:
        console.print(line, highlight=False, markup=False)
    _section(console, "Options of a group, GROUP=OPTION (`debias ls GROUP` lists them):", chosen)
    _section(console, "Keys, KEY=VALUE, with their defaults:", own)
    shared = [group for group in ("data", "eval", "objective", "llm", "strategy") if group in {k.name for k in chosen}]
    if shared:
        names = ", ".join(f"debias explain {group}" for group in shared)
        console.print(Text(f"\nOptions have keys of their own: {names}"))
    console.print()
    _pairs(FLAGS, console)
    next_step(f"debias explain KEY, or debias {verb} --cfg job --resolve")


def _section(console: Console, title: str, keys: Sequence[Key]) -> None:
    if keys:
        console.print(Text(f"\n{title}", style="bold"))
        _print_keys(console, keys)


def _print_keys(console: Console, keys: Sequence[Key]) -> None:
    lines = []
    for key in keys:
        name, words = f"{key.name}={key.value}" if key.value else key.name, key.comment
        if len(name) > LONGEST:  # the value goes beside the key, where it can be wrapped
            name, words = f"{key.name}=", "; ".join(filter(None, [re.sub(r",(?=\S)", ", ", key.value), words]))
        lines.append((f"  {name}", words))
    _pairs(lines, console)


def explain(name: str, console: Console) -> None:
    """Print what a key, a section of keys, a group or one of its options is for.

    Raises UserError if there is nothing of that name.
    """
    group, _, option = re.sub(r"[=/]", " ", name, count=1).partition(" ")
    if group in groups() and option in options(group):
        path = config_dir() / group / f"{option}.yaml"
        for line in comments(path):
            console.print(line, highlight=False, markup=False)
        _section(console, "Its keys:", keys_in(path, group))
        next_step(f"debias run {group}={option}")
        return
    known = every_key()
    exact = [key for key in known if key.name == name]
    if found := (exact if exact and exact[0].value else [key for key in known if key.name.startswith(f"{name}.")]):
        for file in dict.fromkeys(key.file for key in [*exact, *found]):
            console.print(Text(file, style="dim"))
            _print_keys(console, [key for key in dict.fromkeys([*exact, *found]) if key.file == file])
        if name not in groups():
            next_step("debias run KEY=VALUE")
            return
        console.print()
    if name in groups():
        listing([name], console)
        return
    names = sorted({key.name for key in known} | groups())
    raise UserError(f"no key or group is called {name!r}{nearest(name, names)}; `debias ls` lists the groups")


def every_key() -> list[Key]:
    """The keys of all verbs and of all options, in the order of their files."""
    folder = config_dir()
    found = [
        key
        for verb in ("run", "evaluate", "generate", "show", "doctor", "export")
        for key in keys_in(folder / f"{verb}.yaml")
    ]
    found += keys_in(folder / "generation.yaml", "generate")
    for group, file in OF_GROUP.items():
        found += keys_in(folder / f"{file}.yaml", group)
    for group in sorted(groups() - {"hydra"}):
        for path in sorted((folder / group).glob("*.yaml")):
            found += keys_in(path, group)
    return found


def listing(chosen: Sequence[str], console: Console) -> None:
    """Print the options of config groups, all or those chosen, with what they are and what they need."""
    known = sorted(groups() - {"hydra"})
    for group in chosen:
        if group not in known:
            raise UserError(f"unknown group {group!r}{nearest(group, known)}; choose one of: {', '.join(known)}")
    lines = []
    for group in known:
        if chosen and group not in chosen:
            continue
        for path in sorted((config_dir() / group).glob("*.yaml")):
            first, *more = comments(path)
            needs = next((line.removeprefix("Needs: ") for line in more if line.startswith("Needs: ")), "")
            mark = "*" if is_default(group, path.stem) else ""
            lines.append(row(group, f"{path.stem}{mark}", first + (f" (needs {needs})" if needs else "")))
    grid = Grid(text_columns("group", "option", "what it is"), lines)
    console.print((grid.without("group") if len(chosen) == 1 else grid).terminal())
    console.print(Text("* taken if nothing else is asked", style="dim"))
    group, option = (cell.text.rstrip("*") for cell in lines[0].cells[:2])
    next_step(f"debias explain {group}={option}, or debias run {group}={option}")
