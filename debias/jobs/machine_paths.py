"""Texts that others may see: paths and addresses without the machine that they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from debias.records import without_passwords

ROOT = r"(?:file://)?(?:/|\.\.[\\/]|~[\w.-]*[\\/]|[A-Za-z]:[\\/]|\\\\)"  # how a path starts that says where it lies
ALONE = re.compile(rf"{ROOT}[^\n]+")
QUOTED = re.compile(rf"(?<=([\"'`])){ROOT}[^\"'`\n]+(?=\1)")
# In running text a path has two parts or more: `</s>` and `/no_think` are not paths.
IN_TEXT = re.compile(rf"(?<![\w/\\.<~]){ROOT}[\w.@+=~-]+(?:[\\/][\w.@+=~-]*)+")
HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:/Users)/[^/]+")
PRIVATE_HOST = re.compile(
    r"\b((?:https?|wss?|tcp|grpc|ray|redis)://)(?:[^/@\s]+@)?(?!localhost\b|127\.0\.0\.1\b)"
    r"(?:[\w-]+|[\d.]+|\[[^\]]*\]|[\w.-]+\.(?:local|internal|intranet|lan|home|corp))(?=[:/\s]|$)"
)
# A run folder's name says `key-value` for each override, with `_` for a slash, and ends in a checksum where it was cut.
IN_RUN_NAME = re.compile(
    r"((?:^|(?<=[+/: ]))[\w.]*(?:model|paths?|files?|folder|dir|root))-(?:\.\.)?_[\w.-]*?(?=-[0-9a-f]{8}(?:/|$)|[+/]|$)"
)

Keyed = tuple[str, str]  # a text of a config, with its key


def shortened(text: str) -> str:
    """A text whose paths are cut to what is below the current folder, else to their last part; hosts become `***`."""
    text = PRIVATE_HOST.sub(r"\1***", without_passwords(text))
    if ALONE.fullmatch(text):
        text = _shortened_path(text)
    else:
        for folder, instead in ((Path.cwd(), ""), (Path.home(), "~/")):  # may hold spaces, at which the patterns stop
            text = text.replace(f"{folder}{os.sep}", instead) if folder.name else text
        for pattern in (QUOTED, IN_TEXT):
            text = pattern.sub(lambda found: _shortened_path(found[0]), text)
    return IN_RUN_NAME.sub(r"\1", text)


def _shortened_path(path: str) -> str:
    path = path.removeprefix("file://").replace("\\", "/").rstrip("/")
    known = os.path.expanduser(path)  # noqa: PTH111 (pathlib raises where the user is unknown)
    full = Path(os.path.abspath(known))  # noqa: PTH100 (pathlib keeps `..`)
    if known.startswith(("/", "..")) and full.is_relative_to(Path.cwd()):
        return str(full.relative_to(Path.cwd()))
    last = path.rpartition("/")[2]
    return "~" if last == Path.home().name or HOME.fullmatch(path) else last  # a user's name


def names(texts: Iterable[Keyed]) -> dict[Keyed, str]:
    """Each text of a key shortened, with a number where different texts of the key would become the same."""
    by_key: dict[str, set[str]] = {}
    for key, text in texts:
        by_key.setdefault(key, set()).add(text)
    found: dict[Keyed, str] = {}
    for key, of_key in by_key.items():
        ordered = sorted(of_key, key=lambda text: (shortened(text) != text, text))  # what is short keeps its name
        short = distinct([shortened(text) for text in ordered])
        found |= {(key, text): name for text, name in zip(ordered, short, strict=True)}
    return found


def distinct(texts: Sequence[str]) -> list[str]:
    """The texts, with a number behind those that have been there before."""
    found: dict[str, None] = {}
    for text in texts:
        name, number = text, 1
        while name in found:
            number += 1
            name = f"{text} ({number})"
        found[name] = None
    return list(found)


def without_values(name: str, values: Iterable[str]) -> str:
    """The name of a run folder without these values of its config, even where it was cut in the middle of one."""
    for value in values:
        written = re.sub(r"[^\w.-]+", "_", value)  # as the command line writes it into the name
        for length in range(len(written), 5, -1):
            cut = "" if length == len(written) else r"(?=-[0-9a-f]{8}$)"
            name = re.sub(re.escape(written[:length]) + cut, "_", name)
    return name


def texts_in(node: Any, key: str = "") -> list[Keyed]:
    """All texts in nested mappings and lists, each with the key that it is the value of."""
    if isinstance(node, dict):
        return [pair for name, value in node.items() for pair in texts_in(value, str(name))]
    if isinstance(node, list):
        return [pair for value in node for pair in texts_in(value, key)]
    return [(key, node)] if isinstance(node, str) else []


def renamed(node: Any, known: Mapping[Keyed, str], key: str = "") -> Any:
    """The same nested mappings and lists with other texts: those of `names`, else shortened."""
    if isinstance(node, dict):
        return {name: renamed(value, known, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [renamed(value, known, key) for value in node]
    return known.get((key, node), shortened(node)) if isinstance(node, str) else node
