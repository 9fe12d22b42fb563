"""Whole files and folders: the old one or the new one, never a part, and no temporary name left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from debias.files import remove_known, remove_unfinished, unknown, whole_file, whole_folder, write_json, write_text


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with whole_file(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert contents(tmp_path) == {"a.txt": "new"}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with whole_file(tmp_path / "a.txt") as unfinished:
            unfinished.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.txt", "new")
    with pytest.raises(OSError, match="No space"), whole_folder(tmp_path / "f") as unfinished:
        (unfinished / "x").write_text("new")
    assert contents(tmp_path) == {"a.txt": "old"}


def test_two_writers_do_not_share_a_name(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as first, whole_file(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
    assert contents(tmp_path) == {"a": "1"}  # the outer block ends last


def test_text_reaches_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: named.append((tmp_path / "a.json").exists()))
    write_json(tmp_path / "a.json", {"é": 1})
    assert named == [False]
    assert (tmp_path / "a.json").read_bytes() == '{\n  "é": 1\n}\n'.encode()


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one\r\ntwo\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\r\ntwo\n"


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "deep/f") as unfinished:
        (unfinished / "sub").mkdir()
        (unfinished / "sub/x").write_text("1")
        assert not (tmp_path / "deep/f").exists()
    assert contents(tmp_path) == {"deep/f/sub/x": "1"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["f"]


def fill(path: Path, text: str, replace: bool = False, fail: bool = False) -> None:
    with whole_folder(path, replace) as unfinished:
        (unfinished / text).write_text(text)
        if fail:
            raise RuntimeError


def test_a_folder_is_replaced_only_on_request_and_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    fill(path, "old")
    with pytest.raises(OSError, match="not empty"):
        fill(path, "new")
    with pytest.raises(RuntimeError):
        fill(path, "new", replace=True, fail=True)
    assert contents(tmp_path) == {"f/old": "old"}
    fill(path, "new", replace=True)
    assert contents(tmp_path) == {"f/new": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Only names of ours go, and with a name given only those of that name, its brackets read as they are."""
    for name in ("a[1].0123abcd.tmp", "a1.0123abcd.tmp", "a[1].tmp", "a[1].0123abcX.tmp", "a[1]"):
        (tmp_path / name).write_text("")
    (tmp_path / "f.0123abcd.tmp/g.0123abcd.tmp").mkdir(parents=True)
    remove_unfinished(tmp_path, "a[1]")
    assert not (tmp_path / "a[1].0123abcd.tmp").exists()
    assert len(list(tmp_path.iterdir())) == 5


def test_only_known_names_are_removed(tmp_path: Path) -> None:
    """Names with a star, in folders, and unfinished; never what a link leads to."""
    for name in (
        "own/run.log",
        "own/a/b.1",
        "own/a/b.1.0123abcd.tmp",
        "own/a.0123abcd.tmp/b.2",
        "own/a/mine",
        "out/b",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    folder, names = tmp_path / "own", ["run.log", "a/b.*", "link/*", "dangling"]
    (folder / "link").symlink_to(tmp_path / "out")
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    assert sorted(p.name for p in unknown(folder, names)) == ["dangling", "link", "mine"]
    remove_known(folder, names, unfinished=True)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "a/b.1",
        "a/mine",
        "run.log",
    ]
    remove_known(folder, names)
    assert [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()] == ["a/mine"]
    assert (tmp_path / "out/b").exists()
