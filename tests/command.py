"""The command as tests start it: in this process, or in a fresh one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from hydra._internal.hydra import Hydra
from hydra.types import RunMode

# Its processes are forked from one that has imported the program and has done nothing yet: no start-up, no threads.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([
    "pytest", "hydra.main", "debias.cli.jobs", "debias.cli.launch", "debias.jobs.run", "debias.jobs.generate",
    "debias.jobs.tracking", "pyarrow.parquet", "matplotlib.backends.backend_svg", "sacrebleu.metrics", "peft.utils",
])  # fmt: skip


class Shown(NamedTuple):
    """How a command ended: exit status, output and error output."""

    status: int
    out: str
    err: str


class _Terminal(StringIO):
    """Text that was shown on a terminal, with everything that moved the cursor."""

    def isatty(self) -> bool:
        return True


_get_mode = Hydra.get_mode
_modes: dict[tuple[str, ...], RunMode | None] = {}


def _mode(hydra: Hydra, config_name: str, overrides: list[str]) -> RunMode | None:
    """Whether Hydra starts one job or several, for which it composes the whole config a second time.

    Here it does so once for each config file and each set of words to Hydra itself, which saves about a third of a test
    without a model. Commands in processes of their own (`start`) find out as those of users do.
    """
    deciding = [word for word in overrides if word.lstrip("+~").startswith("hydra")]
    key = (str(hydra.config_loader.get_search_path()), config_name, *deciding)
    if key not in _modes:
        _modes[key] = _get_mode(hydra, config_name, deciding)
    return _modes[key]


def run(cwd: Path, *words: str, terminal: bool = False) -> Shown:
    """Run `debias WORDS` in this process, in a folder; its error output may be a terminal."""
    from debias import cli

    out, err = StringIO(), _Terminal() if terminal else StringIO()
    with (
        chdir(cwd), redirect_stdout(out), redirect_stderr(err),
        patch.object(sys, "argv", ["debias", *words]), patch.object(Hydra, "get_mode", _mode),
    ):  # fmt: skip
        try:
            cli.main()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
    return Shown(status, out.getvalue(), err.getvalue())


def succeed(cwd: Path, *words: str) -> Shown:
    """Run a command that must end well."""
    shown = run(cwd, *words)
    assert shown.status == 0, shown.err
    return shown


def start(
    cwd: Path,
    *words: str,
    first: Callable[[], object] | None = None,
    environment: Mapping[str, str] | None = None,
    err: Path = Path(os.devnull),
) -> BaseProcess:
    """Start `debias WORDS` in a process of its own, in a folder.

    Args:
        first: what the process does before, such as `partial(gets, signal.SIGKILL, ...)`.
        environment: variables beside this process's own.
        err: the file for its error output.
    """
    process = FORKED.Process(target=_main, args=(cwd, words, first, {**os.environ, **(environment or {})}, err))
    process.start()
    return process


def _main(
    cwd: Path, words: tuple[str, ...], first: Callable[[], object] | None, environment: dict[str, str], err: Path
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, file in enumerate((Path(os.devnull), Path(os.devnull), err)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that forks ignores it
    sys.argv = ["debias", *words]
    if first:
        first()
    from debias import cli

    cli.main()


def gets(number: signal.Signals, place: str, call: int = 1, after: bool = False, about: str = "") -> None:
    """Let this process send itself a signal at a call of a function; SIGKILL ends it as a power cut would.

    Args:
        place: `module:function` or `module:Class.method`.
        call: which call, of those that count.
        after: whether the function has done its work by then.
        about: only calls with this text in their arguments count.
    """
    module, _, path = place.partition(":")
    owner: Any = import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    whole, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += about in str(arguments)
        now = calls == call and about in str(arguments)
        if now and not after:
            os.kill(os.getpid(), number)
        answer = whole(*arguments, **named)
        if now and after:
            os.kill(os.getpid(), number)
        return answer

    setattr(owner, name, counted)
