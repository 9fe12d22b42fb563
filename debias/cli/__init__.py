"""verb -> Hydra -> job. Only this room knows Hydra."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from debias import __version__
from debias.cli import build, jobs, sweep
from debias.cli.config import any_model, config_dir, explain, nearest, whole_values
from debias.cli.terminal import console
from debias.files import disk_error
from debias.records import UserError

VERBS = (*jobs.JOBS, "sweep", "report", "archive", "ls")
USAGE = """\
debias run       [overrides]     data -> adapter -> scores of base and debiased model -> report (the default verb)
debias generate  [overrides]     a chat model writes training sentences, which are checked
debias evaluate  [overrides]     score any base model, alone or with adapters
debias sweep     [NAME] [overrides]  many runs that answer a question, resumable; --dry-run shows number and time
debias report    PATH...         tables, plots and tests over many runs (--out FOLDER); --recompute checks all figures
debias archive   PATH...         put many runs into one file to share (--out FILE.parquet), which debias report reads
debias doctor    FILE...         what is wrong with this training data (spans, duplicates, leakage, balance)
debias export    [overrides]     merge an adapter into the model's weights, or upload it to the model hub
debias ls        [GROUP]         models, data sources, adapters, benchmarks, protocols: a line each

After the verb everything is Hydra:
  debias run training.lr=3e-4 seed=2                one run with different settings
  debias run -m data.bias=gender seed=1,2,3         a sweep
  debias run --cfg job --resolve                    print the whole config and run nothing
  debias run --help                                 list what can be overridden
"""


def main() -> None:
    """Entry point of the `debias` command. The exit status is 0 only if every job succeeded."""
    try:
        status = _dispatch(sys.argv[1:])
    except UserError as error:
        sys.exit(_complain(str(error)))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; run the same command again to continue", status=130))
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        sys.exit(_complain(disk_error(error)))
    sys.exit(status)


def _dispatch(words: list[str]) -> int:
    """Run the verb; returns the exit status."""
    verb = words.pop(0) if words and re.fullmatch(r"[a-z]+", words[0]) else "run"
    if words[:1] in (["-h"], ["--help"]) and len(sys.argv) == 2:
        print(f"debias {__version__}: make a language model prefer stereotypes less, and prove it\n\n{USAGE}", end="")
    elif sys.argv[1:] == ["--version"]:
        print(f"debias {__version__}")
    elif "COMP_LINE" in os.environ and any(word.startswith("query=") for word in words):
        _complete(words)
    elif verb in jobs.JOBS:
        return _hydra(verb, words)
    elif verb == "report":
        return _report(words)
    elif verb == "archive":
        return _archive(words)
    elif verb == "sweep":
        return _sweep(words)
    elif verb == "ls":
        _list(words)
    else:
        raise UserError(f"unknown verb {verb!r}{nearest(verb, VERBS)}; choose one of: {', '.join(VERBS)}")
    return 0


def _report(words: list[str]) -> int:
    """Print and write the report over many runs; returns 1 if some of them could not be read."""
    from debias.cli.sweep_size import planned
    from debias.report.many_runs.report import report

    parser = _parser("report", "Tables, plots and tests over many runs.", "--recompute, --out FOLDER")
    parser.add_argument("path", nargs="*", type=Path, help="folders with runs below them, archives; default: outputs")
    parser.add_argument(
        "--recompute", action="store_true", help="compute the figures again from the records and compare"
    )
    parser.add_argument("--out", type=Path, help="folder for report.html, .md, .tex and .csv")
    asked = parser.parse_args(words)
    faults = report(asked.path, console, build.benchmarks_of, asked.recompute, asked.out, planned)
    return max((_complain(fault) for fault in faults), default=0)


def _archive(words: list[str]) -> int:
    """Write many runs to one file; returns 1 if some of them could not be read."""
    from debias.cli.sweep_size import planned
    from debias.jobs.archive import archive

    parser = _parser(
        "archive",
        "Put many runs into one file for debias report. The word overwrite=true replaces an existing file.",
        "--out FILE.parquet, --records, overwrite=true",
    )
    parser.add_argument("path", nargs="+", type=Path, help="folders with runs below them, or other archives")
    parser.add_argument("--out", type=Path, required=True, help="the file, which ends in .parquet")
    parser.add_argument("--records", action="store_true", help="also keep the scores of single texts")
    overwrite = "overwrite=true" in words
    asked = parser.parse_args([word for word in words if word != "overwrite=true"])
    done = archive(asked.path, asked.out, asked.records, overwrite, planned)
    with_records = f", {done.num_with_records} with records" if asked.records else ""
    size = asked.out.stat().st_size / 1e6
    told = f"archive: {asked.out} ({done.num_runs} runs{with_records}, {size:.2f} MB)"
    console.print(told, highlight=False, soft_wrap=True, markup=False)
    return max((_complain(fault) for fault in done.faults), default=0)


def _parser(verb: str, description: str, options: str) -> ArgumentParser:
    """A parser whose errors are one line that names the options."""

    def wrong(message: str) -> NoReturn:
        raise UserError(f"{message}; the options are: {options}")

    parser = ArgumentParser(prog=f"debias {verb}", description=description)
    parser.error = wrong  # type: ignore[method-assign]
    return parser


def _complain(text: str, status: int = 1) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return status


# ---------------------------------------------------------------- Hydra


def _hydra(verb: str, overrides: list[str]) -> int:
    """Compose the verb's config and start its job or jobs; returns the worst exit status."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    words = whole_values(any_model(_plain_words(verb, overrides)))
    if sweep.flagged(words, "-m", "--multirun") and sweep.flagged(words, "-c", "--cfg", "-i", "--info"):
        raise UserError("--cfg and --info show one config; leave -m out")
    try:
        if sweep.is_multirun(words) and verb != "doctor" and (planned := sweep.plan(verb, config_dir(), words)):
            return sweep.follow(planned, f"debias {verb}", console, partial(_start, verb, config_dir(), words))
        statuses = _start(verb, config_dir(), words)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, verb, words)) from error
    return max(statuses, default=0)


def _sweep(words: list[str]) -> int:
    """Run a sweep of `sweeps/`, or list them; returns 0 if every run is done."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from debias.cli import sweepfiles

    if not words or words[0].startswith("-"):
        sweepfiles.listing(console)
        return 0
    path = sweepfiles.find(words[0])
    sweepfiles.check(path)
    told = sweepfiles.words_for(any_model([word for word in words[1:] if word != "--dry-run"]))
    start = partial(_start, path.stem, path.parent, told)
    try:
        if sweep.looks(told):
            return max(start(), default=0)
        planned = sweep.plan(path.stem, path.parent, told)
        if "--dry-run" in words:
            sweepfiles.preview(path, planned, console)
            return 0
        return sweep.follow(planned, f"debias sweep {words[0]}", console, start)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, "run")) from error


def _start(config: str, folder: Path, words: Sequence[str]) -> list[int]:
    """Hand over to Hydra; returns the exit status of each job that this process ran without an error.

    Raises the error of a single job. The errors of a sweep's jobs are in their folders.
    """
    import hydra

    from debias.cli import launch

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra must not print errors: we print one line
    sys.argv = [f"debias {config}", *words]
    launch.ended.clear()
    hydra.main(version_base="1.3", config_path=str(folder), config_name=config)(launch.task)()
    errors = [status for status in launch.ended if isinstance(status, Exception)]
    if errors and not sweep.is_multirun(words):
        raise errors[0]
    return [status for status in launch.ended if isinstance(status, int)]


def _plain_words(verb: str, words: Sequence[str]) -> list[str]:
    """`debias doctor a.jsonl --json` is short for `debias doctor files=[a.jsonl] json=true`."""
    if verb != "doctor":
        return list(words)
    files = [word for word in words if "=" not in word and not word.startswith("-")]
    flags = [word for word in words if word in ("--json", "--html", "--fix")]
    others = [word for word in words if word not in files and word not in flags]
    quoted = ",".join("'" + file.replace("\\", "\\\\").replace("'", "\\'") + "'" for file in files)
    return [*([f"files=[{quoted}]"] if files else []), *(f"{flag[2:]}=true" for flag in flags), *others]


def _complete(words: list[str]) -> None:
    """Complete the command line: verbs and sweeps ourselves, the rest through Hydra with the verb's config."""
    line = os.environ["COMP_LINE"].split(" ", 2)
    verb = line[1] if len(line) > 2 else "run"
    if len(line) == 2:
        print("\n".join(name for name in VERBS if name.startswith(line[1])))
    elif verb == "sweep" and " " not in line[2]:
        from debias.cli.sweepfiles import names

        print("\n".join(name for name in names() if name.startswith(line[2])))
    elif verb in jobs.JOBS:
        os.environ["COMP_LINE"] = f"{line[0]} {line[2]}"
        _hydra(verb, words)


# ---------------------------------------------------------------- ls


def _list(groups: Sequence[str]) -> None:
    """Print the options of each config group with the first comment line of their files."""
    from debias.report.grid import Grid, row, text_columns

    folders = sorted(path for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra")
    known = [folder.name for folder in folders]
    for group in groups:
        if group not in known:
            raise UserError(f"unknown group {group!r}{nearest(group, known)}; choose one of: {', '.join(known)}")
    lines = []
    for folder in folders:
        if groups and folder.name not in groups:
            continue
        for path in sorted(folder.glob("*.yaml")):
            comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
            lines.append(row(folder.name, path.stem, next(c for c in comments if not c.startswith("@package"))))
    console.print(Grid(text_columns("", "", ""), lines).terminal())
