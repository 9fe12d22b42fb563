"""What identifies a run: checksums of what it reads and of the code that makes its figures; and the code's versions."""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Protocol

from debias import __version__

PACKAGE = Path(__file__).resolve().parent

# The rooms and modules that make figures. Command line, reports, trackers and exports are not among them; what a chat
# model wrote and what the benchmarks hold are checksums of their own. The shipped self-generated text, the occupations,
# the pairs and the words that are swapped are files beside the code that reads them, and count with it.
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
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".json", ".csv", ".txt")):
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


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "peft", "pytorch-lightning", "scipy")
    return {
        "debias": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def git_commit() -> str | None:
    """Commit of the program's source, with `+` for uncommitted changes; None outside a checkout."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
