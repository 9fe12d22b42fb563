"""The folder of a generated set, and what its files are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from debias.files import write_text
from debias.records import UserError
from debias.results import REFUSED
from debias.run_folder import RunFolder

LEDGER = "ledger.jsonl"
# All that may be removed from the folder of a set, beside the set itself and never the ledger.
SET_FILES = frozenset({
    "status.json", "config.yaml", "run.log", "rejected.jsonl", "quality.json", "quality.html", "losses.json",
    "cost.json", "README.md", REFUSED,
})  # fmt: skip


class DataFolder(RunFolder):
    """The folder of a generated set. The set can always grow, and its ledger is never removed."""

    kept = frozenset({LEDGER})

    def __init__(self, path: Path, config: str, identity: Mapping[str, str], name: str) -> None:
        super().__init__(path, config, identity)
        self.own = SET_FILES | {f"{file_name(name)}.jsonl"}

    def _open(self, overwrite: bool, accept_other_code: bool) -> bool:
        before = self._status(overwrite)
        if before and overwrite:
            self._stale = True
        elif before and before.get("config_sha256") != self.identity["config_sha256"]:
            raise UserError(
                f"{self.path} holds a set made by another config; keep both with name=OTHER, or replace it with "
                "overwrite=true (the ledger with its paid answers stays)"
            )
        elif not before and [path for path in self._files() if path.name != LEDGER]:
            raise UserError(self._without_a_run("generated set"))
        return True

    def end(self, triplets: int, stopped: str, reason: str) -> None:
        """Write the state `done`, with the size of the set and the reason why it is not larger."""
        self._write_status("done", triplets=triplets, stopped=stopped, reason=reason)


def file_name(name: str) -> str:
    """The name of a set's file, without its ending."""
    return re.sub(r"[^\w.-]+", "_", name.rstrip("/").rsplit("/", 1)[-1]) or "triplets"


def model_name(name: str) -> str:
    """The server's name for the model. A local server may give a path, which should not get into the data."""
    return name.replace("\\", "/").rsplit("/", 1)[-1] if name.endswith(".gguf") or name.startswith("/") else name


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file of JSON Lines."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
