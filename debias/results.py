"""The run folder: claimed, written and read. Every file appears whole or not at all."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import logging
import platform
import subprocess
import traceback
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import Timeout

from debias import __version__
from debias.files import remove_known, unknown, whole_file, write_json, write_text
from debias.locks import Lock
from debias.records import Figure, UserError, without_passwords

if TYPE_CHECKING:
    import pandas as pd  # importing it takes as long as all else that a command needs before it shows something

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
ADAPTER = "adapter"
LOCK = ".lock"  # held while a process works in a run folder
LOCKS = frozenset({LOCK, f"{LOCK}.held"})
REFUSED = ".refused"  # why a sweep's job could not use the folder
INTERRUPTED = "interrupted"
# All that a job may write into its run folder, and so all that may be removed from it.
RUN_FILES = frozenset({
    "status.json", "config.yaml", "run.log", "train.csv", "likelihoods.parquet", "metrics.jsonl", "cost.json",
    "report.html", "report.md", "checkpoint.ckpt", "best.ckpt", REFUSED,
    *(f"{folder}/{file}" for folder in (ADAPTER, f"{ADAPTER}.unchecked", f"{ADAPTER}.before_divergence")
      for file in ("adapter_config.json", "adapter_model.safetensors", "README.md", "debias.json")),
    "tensorboard/events.out.tfevents.*", "tensorboard/hparams.yaml",
})  # fmt: skip
LIKELIHOODS = [
    "benchmark", "protocol", "example", "candidate", "bias", "target", "model", "logprob", "num_tokens", "score",
]  # fmt: skip


# The rooms and modules that make figures. Command line, reports, trackers and exports are not among them; what a chat
# model wrote and what the benchmarks hold are checksums of their own. The shipped self-generated text, the occupations
# and the pairs are files beside the code that reads them, and count with it.
MAKE_FIGURES = (
    "assets", "baselines", "benchmarks", "data", "models", "scoring", "training", "records.py", "jobs/evaluate.py",
    "jobs/run.py", "corpora/group_pairs.json", "corpora/pronoun_pairs.json",
)  # fmt: skip


@functools.cache  # a long sweep runs the code that it imported first, even if the files change meanwhile
def code_sha256(*rooms: str) -> str:
    """Checksum of what the source files do, and of the data beside them; by default, of those that make figures.

    Comments, docstrings and layout do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".json", ".csv")):
        name = path.relative_to(PACKAGE).as_posix()
        if any(name == room or name.startswith(f"{room}/") for room in rooms or MAKE_FIGURES):
            text = path.read_text(encoding="utf-8")
            digest.update(f"{name} {_without_words(text) if path.suffix == '.py' else text}".encode())
    return digest.hexdigest()


def _without_words(source: str) -> str:
    """The syntax tree of a source text, without docstrings."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def text_sha256(text: str) -> str:
    """Checksum of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


class Input(Protocol):
    """Data or a benchmark: its checksum is part of a run's identity."""

    def fingerprint(self) -> str: ...


def data_sha256(inputs: Iterable[Input]) -> str:
    """Checksum of everything that a run reads."""
    return text_sha256(" ".join(part.fingerprint() for part in inputs))


class InUseError(UserError):
    """Another process is working in the folder."""


class OtherCodeError(UserError):
    """The folder holds a finished run that differs only in the code that made it."""


def run_of(adapter: Path) -> Path:
    """The folder of the run that an adapter's folder belongs to, or the same folder for one from elsewhere."""
    return adapter.parent if adapter.name == ADAPTER else adapter


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
        versions = {"versions": _versions(), "git_commit": _git_commit()}
        status = {
            "state": state,
            "started": self.started,
            "ended": ended,
            **self.identity,
            **versions,
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


def read_status(path: Path) -> dict[str, Any]:
    """Content of status.json of a run folder; empty if it is missing or damaged."""
    try:
        return json.loads((path / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def settled(config: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with the parts that suited its data (`chosen` in status.json) in place of the choice."""
    chosen = {key: config[key][name] for key, name in status.get("chosen", {}).items() if name in config.get(key, {})}
    return {**config, **chosen}


def running(path: Path, wait: bool = False) -> bool:
    """Whether a process is working in a run folder; with `wait`, returns False as soon as none is."""
    if not path.is_dir():
        return False
    lock = Lock(path / LOCK)
    if not wait:
        return not lock.is_free()
    with lock.held(f"run {path}"):
        return False


def read_figures(folder: Path) -> list[Figure]:
    """Read metrics.jsonl of a run. Raises UserError, with the line, if it is missing or damaged."""
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: no figures here ({error.strerror}); is the run finished?") from error
    figures = []
    for i, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            numbers = {k: float("nan") if row[k] is None else row[k] for k in ("value", "ci_low", "ci_high")}
            figures.append(Figure(**{**row, **numbers}))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{i}: not a figure ({error}); run this job again with overwrite=true") from error
    return figures


def read_likelihoods(folder: Path) -> pd.DataFrame:
    """Read likelihoods.parquet of a run. Raises UserError if it is missing or damaged."""
    import pandas as pd

    path = folder / "likelihoods.parquet"
    try:
        return pd.read_parquet(path)[LIKELIHOODS]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no records ({error}); run this job again with overwrite=true") from error


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not (abs(value) < float("inf")) else value  # JSON has no NaN


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "peft", "pytorch-lightning", "scipy")
    return {
        "debias": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _git_commit() -> str | None:
    """Commit of the program's source, with `+` for uncommitted changes; None outside a checkout."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
