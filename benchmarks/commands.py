"""CPU seconds of the commands that need no model, their processes' start included: the median of three.

`python benchmarks/commands.py` measures this checkout; `python benchmarks/commands.py FOLDER` another one, with the
same Python. Each command runs once before it is measured, so the leakage index of `doctor` is in the cache by then.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("targeted", "general", "cda", "wikitext", "panda", "paper", "shuffled", "stereotyped")
COMMANDS = (
    ["--help"],
    ["ls"],
    ["run", "-sc", "query=bash"],
    ["sweep", "data_size", "--dry-run"],
    ["report", "runs"],
    ["doctor", "mine.jsonl"],
)


def main(checkout: Path) -> None:
    """Print a line for each command."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for words in COMMANDS:
            completing = {"COMP_LINE": "debias run data=", "COMP_POINT": "16"} if "-sc" in words else {}
            command = [sys.executable, "-m", "debias", *words]
            taken = []
            for _ in range(4):
                before = cpu_seconds()
                subprocess.run(command, cwd=folder, env={**environment, **completing}, check=True, capture_output=True)
                taken.append(cpu_seconds() - before)
            print(f"{'debias ' + ' '.join(words):40}{statistics.median(taken[1:]):6.2f} s")


def prepare(folder: Path) -> None:
    """24 run folders, as the tests write them, and a file of one triplet."""
    sys.path.insert(0, str(ROOT / "tests"))
    from run_folders import config, scores, write_run

    for i, source in enumerate(SOURCES):
        for seed in (1, 2, 3):
            write_run(folder / f"runs/data-{source}+seed-{seed}", config(source, seed), scores(55 + i + seed / 10))
    (folder / "mine.jsonl").write_text('["The woman was remarkably stoic.", "woman", "stoic"]\n')


def cpu_seconds() -> float:
    """User and system seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
