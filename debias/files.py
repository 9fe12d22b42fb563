"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which replaces `path` if the block succeeds and is removed if it fails."""
    unfinished = _temporary(path)
    try:
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
    except BaseException:  # also Ctrl-C
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` if the block succeeds and is removed if it fails.

    Raises OSError at the end if `path` holds files and `replace` is not set.
    """
    unfinished = _temporary(path)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for file in unfinished.rglob("*"):
            if file.is_file():
                _sync(file)
        if replace and path.exists():  # no system can rename one folder over another, so move the old one away first
            old = _temporary(path)
            path.rename(old)
            unfinished.rename(path)
            shutil.rmtree(old)
        else:
            unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of `name`, at any depth of the folder.

    Call it only under a lock that every writer of `name` holds: it cannot tell a dead process from one at work.
    """
    pattern = "*" if name == "*" else glob.escape(name)
    for path in list(folder.rglob(f"{pattern}.{'[0-9a-f]' * 8}.tmp")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file: UTF-8, with the line ends it has."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a whole JSON file."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _temporary(path: Path) -> Path:
    # In the same folder, because a rename across file systems copies. Random, because two processes may write the
    # same cache entry at once, and process numbers repeat between the machines that share a disk.
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync(path: Path) -> None:
    """Wait until the disk has the content, or a power failure could keep the new name and lose what it names."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
