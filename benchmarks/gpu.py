"""Speed and memory on one GPU, beside what people use: `python benchmarks/gpu.py`, at most eight minutes.

    python benchmarks/gpu.py                       # the parts that eight minutes allow, the most important first
    python benchmarks/gpu.py --minutes 30          # all parts
    python benchmarks/gpu.py --only "train 1b"     # the parts with this in their name, and what they need
    python benchmarks/gpu.py --tiny                # a rehearsal of every kind of part, on any machine
    python benchmarks/gpu.py --table gpu.jsonl     # the tables of an earlier command

A part is a process (`gpu_parts.py`) that prints a JSON line for each measurement. It is stopped after its limit, or at
the end of the minutes; what it had measured by then is kept, and the next part begins. All lines go to gpu.jsonl. At
the end the command prints Markdown tables of them. Its exit status is 1 if a part failed or ran into its own limit.
Models of 1.2B and 8B have random weights, made on the spot: time and memory do not depend on meaning. The CPU's parts
run the same code with the GPU hidden; without a GPU they are all there is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Line = dict[str, Any]  # a measurement, as the parts print it

# A run that takes seconds.
SMALL = ("eval=[stereoset]", "eval.stereoset.limit=4", "eval.stereoset.whole=[]", "training.epochs=1", "show.samples=0")
LEAST = 10.0  # seconds; a part needs them to import what it uses


class Part(NamedTuple):
    """A process of the plan."""

    name: str
    words: tuple[str, ...]  # of gpu_parts.py
    limit: float  # seconds
    needs: tuple[str, ...] = ()  # parts that must have ended well
    cache: str = ""  # whose cache it reads and writes; empty: its own, so that nothing is read from an earlier part
    on_cpu: bool = False  # the GPU is hidden


def plan(folder: Path, tiny: bool = False, gpu: bool = True) -> list[Part]:
    """All parts, the most important first.

    Args:
        folder: where models are made.
        tiny: every kind of part, with a model that takes seconds.
        gpu: whether there is one; without it, the CPU's parts alone.
    """

    def made(size: str) -> str:
        return str(folder / size)

    checks = Part("checks", ("checks", made("tiny"), "data.n=16", "neutral=wikipedia", *SMALL), 150, ("make tiny",))
    if tiny:
        run = ("run", made("tiny"), "data.n=16", "neutral=wikipedia", *SMALL)
        return [
            Part("make tiny", ("make", "tiny", made("tiny")), 120),
            Part("run tiny", run, 120, ("make tiny",)),
            checks._replace(limit=240),
            Part("score tiny", ("score", made("tiny"), "4", "bf16", "32"), 120, ("make tiny",)),
            Part("train tiny", ("train", made("tiny"), "16", "8"), 120, ("make tiny",)),
            Part("rerun tiny", ("rerun", *run[1:]), 120, ("run tiny",), cache="run tiny"),
            Part("cpu score tiny", ("score", made("tiny"), "4", "32"), 120, ("make tiny",), on_cpu=True),
        ]
    large = (made("8b"), "data.n=500", "eval=paper")
    on_gpu = [
        Part("make 8b", ("make", "8b", made("8b")), 120),
        Part("run 8b", ("run", *large), 200, ("make 8b",)),
        Part("make tiny", ("make", "tiny", made("tiny")), 60),
        checks,
        Part("score 8b", ("score", made("8b"), "300", "bf16"), 120, ("make 8b",)),
        Part("train 8b", ("train", made("8b"), "320", "16"), 120, ("make 8b",)),
        Part("make 1b", ("make", "1b", made("1b")), 60),
        Part("train 1b", ("train", made("1b"), "320", "16"), 90, ("make 1b",)),
        Part("score 1b", ("score", made("1b"), "300", "bf16"), 60, ("make 1b",)),
        Part("make smollm2", ("make", "smollm2", ""), 60),
        Part("score smollm2", ("score", "smollm2", "0", "bf16", "32"), 120, ("make smollm2",)),
        Part("train smollm2", ("train", "smollm2", "480", "16"), 90, ("make smollm2",)),
        Part("run smollm2", ("run", "smollm2"), 150, ("make smollm2",)),
        Part("rerun smollm2", ("rerun", "smollm2"), 120, ("run smollm2",), cache="run smollm2"),
        Part("rerun 8b", ("rerun", *large), 200, ("run 8b",), cache="run 8b"),
    ]
    make = [] if gpu else [part for part in on_gpu if part.name == "make smollm2"]
    return [
        *(on_gpu if gpu else make),
        Part("cpu score smollm2", ("score", "smollm2", "25", "32"), 120, ("make smollm2",), on_cpu=True),
        Part("cpu train smollm2", ("train", "smollm2", "64", "16"), 240, ("make smollm2",), on_cpu=True),
        Part("cpu run smollm2", ("run", "smollm2", "data.n=64", *SMALL), 300, ("make smollm2",), on_cpu=True),
    ]


def chosen(parts: Sequence[Part], only: str) -> list[Part]:
    """The parts whose name contains `only`, and what they need, in the order of the plan."""
    by_name = {part.name: part for part in parts}
    wanted: set[str] = set()

    def want(name: str) -> None:
        wanted.add(name)
        for need in by_name[name].needs:
            want(need)

    for part in parts:
        if only in part.name:
            want(part.name)
    return [part for part in parts if part.name in wanted]


# ---------------------------------------------------------------- carrying it out


def carry_out(
    parts: Sequence[Part],
    command: Callable[[Part], list[str]],
    environment: Callable[[Part], Mapping[str, str]],
    minutes: float,
    keep: Callable[[Line], None],
) -> bool:
    """Run the parts one after another; returns whether none failed and none ran into its own limit.

    Args:
        keep: is called with every line of the parts, and with one that says how each ended.
    """
    end = time.monotonic() + 60 * minutes
    ended: dict[str, str] = {}
    for part in parts:
        missing = [need for need in part.needs if ended.get(need) != "well"]
        left = end - time.monotonic()
        if missing:
            how, reason, seconds = "left out", f"it needs {missing[0]}", 0.0
        elif left < min(LEAST, part.limit):
            how, reason, seconds = "left out", "no time is left", 0.0
        else:
            begun = time.monotonic()
            lines, how, reason = _run(command(part), environment(part), min(part.limit, left))
            seconds = time.monotonic() - begun
            if how == "stopped" and left < part.limit:
                how, reason = "cut off", "no time was left"
            for line in lines:
                keep(line)
        ended[part.name] = how
        keep({"part": "end", "name": part.name, "ended": how, "reason": reason, "seconds": round(seconds, 1)})
    return not {"failed", "stopped"} & set(ended.values())


def _run(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> tuple[list[Line], str, str]:
    """A process's lines, how it ended (well, failed, stopped), and why."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # A session of its own, so that what the part has started is stopped with it.
        process = subprocess.Popen(command, stdout=out, stderr=err, env=dict(environment), start_new_session=True)
        how, reason = "well", ""
        try:
            if status := process.wait(seconds):
                how, reason = "failed", f"status {status}"
        except subprocess.TimeoutExpired:
            how, reason = "stopped", f"it took more than {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        if how == "failed":
            reason += f": {err.read().decode(errors='replace').strip()[-1500:]}"
        return list(parsed(out.read().decode(errors="replace").splitlines())), how, reason


def parsed(lines: Iterable[str]) -> Iterable[Line]:
    """The JSON objects among some lines; libraries print other things, and a stopped part may end within a line."""
    for line in lines:
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                continue


# ---------------------------------------------------------------- tables

# Title and columns (heading, key) of the lines of each kind.
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "run": (
        "`debias run` as a whole",
        {
            "device": "device", "model": "model", "settings": "settings", "cache": "cache", "seconds": "seconds",
            "by stage": "stages", "host memory, GB": "host_gb", "GPU memory, GB": "gpu_gb", "outcome": "outcome",
        },
    ),
    "check": (
        "What works",
        {"device": "device", "settings": "way", "ended": "ended", "seconds": "seconds", "message": "message"},
    ),
    "score": (
        "Scoring StereoSet test",
        {
            "device": "device", "model": "model", "precision": "precision", "way": "way", "sentences": "sentences",
            "ms a sentence": "ms", "share of the peak": "of_peak", "memory, GB": "memory_gb", "SS": "ss", "LMS": "lms",
        },
    ),
    "train": (
        "One epoch of training",
        {
            "device": "device", "model": "model", "way": "way", "turn": "turn", "sentences": "sentences",
            "batch": "batch", "seconds": "seconds", "tokens/s": "tokens_s", "memory, GB": "memory_gb",
        },
    ),
}  # fmt: skip


def tables(lines: Sequence[Line]) -> str:
    """Markdown tables of the measurements, and what is missing."""
    found = []
    for kind, (title, columns) in TABLES.items():
        rows = [line for line in lines if line.get("part") == kind]
        if rows:
            found.append(
                f"{title}:\n\n{_table(list(columns), [[_cell(row, k) for k in columns.values()] for row in rows])}"
            )
    facts = [line for line in lines if line.get("part") in ("machine", "layout", "peak", "load", "note")]
    told = [", ".join(f"{key} {value}" for key, value in fact.items() if key != "part") for fact in facts]
    notes = [f"{fact['part']}: {text}" for fact, text in zip(facts, told, strict=True)]
    ends = [line for line in lines if line.get("part") == "end" and line["ended"] != "well"]
    notes += [f"{end['name']}: {end['ended']} ({' '.join(end['reason'].split())[-300:]})" for end in ends]
    if notes:
        found.append("\n".join(f"- {note}" for note in dict.fromkeys(notes)))
    return "\n\n".join(found)


def _cell(row: Line, key: str) -> str:
    value = row.get("error" if "error" in row and key in ("seconds", "ms") else key)
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:.0f}" for name, number in value.items())
    if key == "of_peak":
        return f"{value:.0%}"
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ---------------------------------------------------------------- the command


def main() -> None:
    """Carry out the plan and print its tables, or print those of earlier lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with a tiny model, on any machine")
    parser.add_argument("--only", default="", help="the parts with this in their name, and what they need")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "debias-gpu", help="for models")
    parser.add_argument("--table", type=Path, help="print the tables of these lines, and measure nothing")
    asked = parser.parse_args()
    if asked.table:
        print(tables(list(parsed(asked.table.read_text(encoding="utf-8").splitlines()))))
        return
    import torch  # takes seconds

    gpu, folder = torch.cuda.is_available(), asked.folder.resolve()
    if not gpu and not asked.tiny:
        print("no GPU here: the CPU's parts alone (--tiny rehearses the others)", flush=True)
    parts = chosen(plan(folder, asked.tiny, gpu), asked.only)
    if not parts:
        sys.exit(f"no part's name contains {asked.only!r}: {', '.join(p.name for p in plan(folder, asked.tiny, gpu))}")
    shutil.rmtree(folder / "caches", ignore_errors=True)
    (folder / "models").mkdir(parents=True, exist_ok=True)  # converted weights, which all parts share
    lines: list[Line] = []
    with asked.out.open("w", encoding="utf-8") as file:

        def keep(line: Line) -> None:
            lines.append(line)
            text = json.dumps(line)
            print(text, file=file, flush=True)
            print(text if len(text) <= 300 else f"{text[:300]} ...", flush=True)

        well = carry_out(parts, _command, lambda part: _environment(part, folder), asked.minutes, keep)
    print(f"\n{tables(lines)}", flush=True)
    if not well:
        sys.exit(1)


def _command(part: Part) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), *part.words]


def _environment(part: Part, folder: Path) -> dict[str, str]:
    """This process's environment with a cache for the part; makes the cache."""
    cache = folder / "caches" / (part.cache or part.name).replace(" ", "_")
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "models").is_symlink():
        (cache / "models").symlink_to(folder / "models", target_is_directory=True)
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    found = {**os.environ, "DEBIAS_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return found | ({"CUDA_VISIBLE_DEVICES": ""} if part.on_cpu else {})


if __name__ == "__main__":
    main()
