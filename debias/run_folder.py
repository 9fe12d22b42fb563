"""A run folder, claimed by one process and written. Every file appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from debias.files import remove_known, unknown, whole_file, write_json, write_text
from debias.locks import Lock
from debias.records import Figure, UserError, without_passwords
from debias.results import INTERRUPTED, LIKELIHOODS, LOCK, LOCKS, REFUSED, RUN_FILES, read_status
from debias.run_identity import git_commit, versions

if TYPE_CHECKING:
    import pandas as pd


class InUseError(UserError):
    """Another process is working in the folder."""


class OtherCodeError(UserError):
    """The folder holds a finished run that differs only in the code that made it."""


class RunFolder:
    """The folder of one run.

    A run is identified by three checksums: of its config, its data and the code. The folder remembers them, so that the
    same command continues or skips its own run and never overwrites another one.

    Args:
        config: the resolved config as YAML; passwords in addresses are not written.
        identity: the checksums by name: `config_sha256`, `data_sha256`, `code_sha256`.
    """

    own = RUN_FILES  # all that the program may remove
    kept: frozenset[str] = frozenset()  # what it writes and never removes

    def __init__(self, path: Path, config: str, identity: Mapping[str, str]) -> None:
        self.path, self.config, self.identity = path, without_passwords(config), dict(identity)
        self.started = _now()
        self.opened = ""  # what was found in the folder, where the log should say so
        self.facts: dict[str, Any] = {}
        self._stale = False  # what is in the folder is to be replaced
        self._lock = Lock(path / LOCK)

    @contextlib.contextmanager
    def claim(self, overwrite: bool = False, accept_other_code: bool = False, wait: bool = False) -> Iterator[bool]:
        """Lock the folder for this process; yields False if the same run is already finished in it.

        Args:
            overwrite: replace the run in the folder.
            accept_other_code: a finished run that other code made is the same run.
            wait: wait for another process that has locked it.

        Raises:
            InUseError: another process has locked the folder.
            OtherCodeError: the folder holds this run, finished by other code.
            UserError: the folder holds a run with another config, data or model.
        """
        if (self.path.parent / "status.json").is_file():
            raise UserError(f"{self.path.parent} is the folder of another run; set name=OTHER")
        # The operating system releases the lock when a process dies, so a killed run never blocks its folder. Wait a
        # second for it: `running` below takes it for an instant.
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            if wait:
                self._lock.wait(f"work in {self.path}")
            else:
                self._lock.acquire(timeout=1)
        except Timeout as error:
            raise InUseError(
                f"{self.path} is in use by another debias process ({self._lock.holder()}); "
                "wait for it, or set name=OTHER"
            ) from error
        try:
            to_do = self._open(overwrite, accept_other_code)
            if to_do and self._stale:
                self._check_only_ours()
            yield to_do
        finally:
            self._lock.release()
            if {path.name for path in self.path.iterdir()} <= LOCKS:  # a refused job leaves no folder behind
                remove_known(self.path, LOCKS)
                with contextlib.suppress(OSError):
                    self.path.rmdir()

    def _open(self, overwrite: bool, accept_other_code: bool) -> bool:
        """Decide what to do with what is in the folder; returns whether there is work to do.

        What is to be replaced stays until the work begins, so that a job which is refused later removes nothing.

        | folder                       | same identity | other code only        | other data or model | other config |
        | ---------------------------- | ------------- | ---------------------- | ------------------- | ------------ |
        | finished run                 | skip          | refuse; accepted: skip | refuse              | refuse       |
        | unfinished run               | resume        | start again            | start again         | refuse       |
        | files without a run          | refuse        | refuse                 | refuse              | refuse       |
        | any run, with overwrite=true | start again   | start again            | start again         | start again  |
        """
        (self.path / REFUSED).unlink(missing_ok=True)
        before = self._status(overwrite)
        state = before.get("state")
        if state == "failed" and "config_sha256" not in before:  # `record_failure` wrote it: there never was a run
            self._stale = True
            return True
        differs = [what for what in self.identity if before.get(what) != self.identity[what]]
        if state is not None and overwrite:
            self._stale = True
        elif state == "done" and not differs:
            return False
        elif state == "done" and differs == ["code_sha256"]:
            if accept_other_code:
                self.opened = "made by other code of debias and accepted"
                return False
            raise OtherCodeError(
                f"{self.path} was done by other code of debias; take its figures with accept_other_code=true, or run "
                "it again with overwrite=true"
            )
        elif state == "done" or (state is not None and "config_sha256" in differs):
            what = " and ".join(name.removesuffix("_sha256") for name in differs)
            raise UserError(
                f"{self.path} holds a run with another {what}; "
                "keep both with name=OTHER, or replace it with overwrite=true"
            )
        elif state is not None and differs:  # its checkpoint would mix two versions in one result
            what = " and ".join(f"other {name.removesuffix('_sha256')}" for name in differs)
            self.opened = f"the unfinished run in this folder was made by {what}: starting it afresh"
            self._stale = True
        elif state is None and self._files():
            raise UserError(self._without_a_run("run"))
        elif state is not None:
            self.opened = "resuming the unfinished run in this folder"
        return True

    def _without_a_run(self, what: str) -> str:
        """What is wrong with a folder that has files, but not what this job would continue."""
        if any(self.path.glob("*/status.json")):
            return f"{self.path} holds other runs, each in a folder of its own; set name=OTHER"
        return f"{self.path} has files in it but no {what}; empty it, or set name=OTHER"

    def _files(self) -> list[Path]:
        """What is in the folder, without hidden files such as locks."""
        return [path for path in self.path.iterdir() if not path.name.startswith(".")]

    def _check_only_ours(self) -> None:
        """Raise UserError if the folder holds anything that this program did not write; hidden files may stay."""
        if self.path.is_symlink():
            raise UserError(f"{self.path} is a link, and nothing behind it is removed; set name=OTHER")
        foreign = [str(path.relative_to(self.path)) for path in unknown(self.path, self.own | self.kept)]
        if visible := [name for name in foreign if not name.startswith(".")]:
            more = f" and {len(visible) - 3} more" if len(visible) > 3 else ""
            raise UserError(
                f"{self.path} holds files that debias did not write ({', '.join(sorted(visible)[:3])}{more}); "
                "move them away, or set name=OTHER"
            )

    def _status(self, overwrite: bool = False) -> dict[str, Any]:
        path = self.path / "status.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            if overwrite:
                return {"state": "damaged"}
            raise UserError(f"{path} is damaged ({error}); remove the folder or set overwrite=true") from error

    def start(self) -> None:
        """Remove what is to be replaced, write the config and the state `running`."""
        if self._stale:
            self._check_only_ours()
            remove_known(self.path, self.own)
            self._stale = False
        remove_known(self.path, self.own, unfinished=True)  # of a killed process: nobody else can be writing here
        self._write_status("running")
        write_text(self.path / "config.yaml", self.config)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Work in a claimed folder: the state is `running`, and `failed` with the error if the block raises."""
        self.start()
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    def refine(self, **checksums: str) -> None:
        """Correct checksums that are known only now that the work has begun, and write the state `running` again."""
        self.identity = {**self.identity, **checksums}
        self._write_status("running")

    def describe(self, **facts: Any) -> None:
        """Add to status.json what became known while working, and is not the run's identity."""
        self.facts |= facts
        self._write_status("running")

    def finish(self, hardware: Mapping[str, Any]) -> None:
        """Write the state `done`, after all other files."""
        self._write_status("done", hardware=dict(hardware))

    def fail(self, error: BaseException) -> None:
        """Write the state `failed` with the error, unless that fails too (disk full)."""
        with contextlib.suppress(OSError):
            self._write_status("failed", **_described(error))

    def _write_status(self, state: str, **more: Any) -> None:
        ended = None if state == "running" else _now()
        status = {
            "state": state,
            "started": self.started,
            "ended": ended,
            **self.identity,
            "versions": versions(),
            "git_commit": git_commit(),
            **self.facts,
            **more,
        }
        write_json(self.path / "status.json", status)

    def write_figures(self, figures: Iterable[Figure]) -> None:
        """Write metrics.jsonl."""
        lines = [json.dumps({k: _finite(v) for k, v in figure._asdict().items()}) for figure in figures]
        write_text(self.path / "metrics.jsonl", "\n".join(lines) + "\n")

    def write_likelihoods(self, likelihoods: pd.DataFrame) -> None:
        """Write likelihoods.parquet."""
        with whole_file(self.path / "likelihoods.parquet") as unfinished:
            likelihoods[LIKELIHOODS].to_parquet(unfinished, index=False)


def _described(error: BaseException) -> dict[str, str]:
    text = INTERRUPTED if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
    return {"error": text, "traceback": "".join(traceback.format_exception(error))}


def record_failure(path: Path, error: Exception) -> None:
    """Write the error of a sweep's job that did not get its folder.

    If the folder holds a run already, its status stays as it is, and the error goes into a file beside it.
    """
    with contextlib.suppress(OSError), Lock(path / LOCK).at_once():  # a timeout is one: another process works there
        described = _described(error)
        others = [entry for entry in path.iterdir() if entry.name not in LOCKS]
        if not others:
            write_json(path / "status.json", {"state": "failed", "started": _now(), "ended": _now(), **described})
        elif read_status(path).get("error") != described["error"]:
            write_text(path / REFUSED, described["error"] + "\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not (abs(value) < float("inf")) else value  # JSON has no NaN


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
