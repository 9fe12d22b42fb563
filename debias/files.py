"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import fnmatch
import glob
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)


class _Noted(NamedTuple):
    """The files and folders that were written, and the folders whose files have been named."""

    paths: dict[Path, None]
    named: list[Path]


# Of the innermost `files_named`. A thread begins with none: what it writes beside a job is not the job's.
_noted: ContextVar[_Noted | None] = ContextVar("_noted", default=None)


@contextmanager
def files_named(folder: Path | None = None, level: int = logging.INFO) -> Iterator[None]:
    """Log the names of all files that the block has written, also if it fails, in one line at its end.

    Args:
        folder: of a job. All files in it count as the job's, and so do those that were written just before the block.
    """
    around, noted = _noted.get(), _Noted({}, [])
    if folder and around:
        noted.paths.update(around.paths)
        around.paths.clear()
        around.named.append(folder)
    token = _noted.set(noted)
    try:
        yield
    finally:
        _noted.reset(token)
        named = [*noted.named, *([folder] if folder else [])]
        with suppress(OSError):
            own = [_name(path, folder) for path in sorted(_entries(folder))] if folder else []
            others = [str(file) for path in noted.paths for file in _files_of(path)]
            others = [name for name in dict.fromkeys(others) if not any(Path(name).is_relative_to(f) for f in named)]
            words = [f"files in {folder}: {', '.join(own)}"] if own else []
            words += [f"{'other files' if folder else 'files'}: {', '.join(others)}"] if others else []
            if words:
                log.log(level, "%s", "; ".join(words))


def note(path: Path) -> None:
    """Let `files_named` name a file, or the files in a folder, that the functions below did not write."""
    if (noted := _noted.get()) is not None:
        noted.paths[path] = None


def _files_of(path: Path) -> list[Path]:
    """A file, or the files in a folder; none if it has been removed or renamed since it was written."""
    return sorted(_entries(path)) if path.is_dir() else [path] if path.exists() else []


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which replaces `path` if the block succeeds and is removed if it fails.

    Raises OSError with the name of `path` if the disk does not take it.
    """
    unfinished = _temporary(path)
    with naming(path):
        try:
            yield unfinished
            _sync(unfinished)
            unfinished.replace(path)
        except BaseException:  # also Ctrl-C
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
    log.debug("wrote %s", path)
    note(path)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` if the block succeeds and is removed if it fails.

    Raises OSError at the end if `path` holds files and `replace` is not set.
    """
    unfinished = _temporary(path)
    with naming(path):
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            for file in unfinished.rglob("*"):
                if file.is_file():
                    _sync(file)
            if replace and path.exists():  # no system can rename one folder over another, so move the old one away
                old = _temporary(path)
                path.rename(old)
                unfinished.rename(path)
                shutil.rmtree(old)
            else:
                unfinished.rename(path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    log.debug("wrote %s", path)
    note(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the disk inside the block name the file that was to be written, whatever library raises it."""
    try:
        yield
    except Exception as error:
        if number := _number_of(error):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _number_of(error: Exception) -> int | None:
    """The number of an error of the disk. Libraries written in other languages only say it in their text."""
    if isinstance(error, OSError) and error.errno and error.filename is None:
        return error.errno
    if isinstance(error, OSError) and error.errno and str(error.filename).endswith(".tmp"):  # nobody knows that name
        return error.errno
    if found := re.search(r"(?:os error|errno:?) (\d+)", str(error), re.IGNORECASE):
        return int(found[1])
    if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):  # torch.save keeps the cause to itself
        return errno.ENOSPC
    return None


def disk_error(error: OSError) -> str:
    """One line for an error of the disk: the path, what is wrong with it, and the remedy."""
    if error.filename is None:
        return " ".join(str(error).split()) or type(error).__name__
    path = Path(os.fsdecode(error.filename))
    if error.errno == errno.ENAMETOOLONG:  # first, because nothing can be asked about such a path
        longest = max(path.parts, key=lambda part: len(os.fsencode(part)))
        return f"{longest[:40]}... is longer than file systems allow; choose a shorter name"
    if link := next((p for p in (path, *path.parents) if p.is_symlink() and not p.exists()), None):
        return f"{link} is a link to {link.readlink()}, which does not exist; create that folder or remove the link"
    if file := next((p for p in path.parents if p.is_file()), None):
        return f"{file} is a file where a folder is needed ({path}); move it away, or choose another folder"
    if error.errno == errno.ENOSPC:
        return f"the disk that holds {path} is full; free space and run the same command again"
    if error.errno == errno.EDQUOT:
        return f"your quota on the disk that holds {path} is used up; free space and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{path}: {str(error.strerror).lower()}; work in a folder that you may write to, or change its permissions"
        )
    if error.errno == errno.ENOENT:
        return f"{path}: there is no such file or folder; check the path"
    return f"{path}: {error.strerror}; check that disk and run the same command again"


def remove_unfinished(folder: Path, name: str) -> None:
    """Remove what killed processes left of `name`, at any depth of the folder.

    Call it only under a lock that every writer of `name` holds: it cannot tell a dead process from one at work.
    """
    for path in list(folder.rglob(f"{glob.escape(name)}.{'[0-9a-f]' * 8}.tmp")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.tmp(?=/|$)")  # see `_temporary`


def remove_known(folder: Path, names: Collection[str], unfinished: bool = False) -> None:
    """Remove the files of these names from a folder, and its folders that are empty then. Links are not followed.

    Args:
        names: paths in the folder, with `*` for any text.
        unfinished: remove only what killed processes left of them.
    """
    for path in list(_entries(folder)):
        if _is_known(path, folder, names) and (not unfinished or UNFINISHED.search(_name(path, folder))):
            path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                while (path := path.parent) != folder:
                    path.rmdir()


def unknown(folder: Path, names: Collection[str]) -> list[Path]:
    """Everything in a folder that does not have one of these names, and all links."""
    return [path for path in _entries(folder) if not _is_known(path, folder, names)]


def _entries(folder: Path) -> Iterator[Path]:
    """All files and links in a folder, at any depth; links are not followed."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in [*files, *links])


def _is_known(path: Path, folder: Path, names: Collection[str]) -> bool:
    name = UNFINISHED.sub("", _name(path, folder))
    return not path.is_symlink() and any(fnmatch.fnmatchcase(name, known) for known in names)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


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
