"""Texts that others may see: paths and addresses without the machine that they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
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
    r"((?:^|(?<=[+/: ]))[\w.]*(?:paths?|files?|folder|dir|root))-(?:\.\.)?_[\w.-]*?(?=-[0-9a-f]{8}(?:/|$)|[+/]|$)"
)


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


def names(texts: Iterable[str]) -> dict[str, str]:
    """Each text shortened. Texts that differ still do: of those that became equal, all but one have a number behind."""
    ordered = sorted(set(texts), key=lambda text: (shortened(text) != text, text))  # what is short keeps its name
    return dict(zip(ordered, distinct([shortened(text) for text in ordered]), strict=True))


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


def strings(node: Any) -> list[str]:
    """All texts in nested mappings and lists."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []
