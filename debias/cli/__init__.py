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
from debias.cli import build, jobs, sweep, sweepfiles
from debias.cli.config import check_words, config_dir, explain, keys, quoted, readable, shorthands, whole_values
from debias.cli.terminal import console, logging_to_terminal, next_step
from debias.files import disk_error, files_named, write_text
from debias.records import UserError
from debias.schema import nearest
from debias.wording import counted

VERBS = (*jobs.JOBS, "sweep", "report", "archive", "ls", "explain", "help")


def main() -> None:
    """Entry point of the `debias` command. The exit status is 0 only if every job succeeded."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a class of the user's own: _target_: mine.Benchmark
    if not sys.stderr.isatty():  # bars of other libraries do not belong into a log
        os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # torch then asks Linux for pages of 2 MB: a step on a CPU waits less for new memory (docs/performance.md).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        with logging_to_terminal(), files_named():
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
    if not words and "COMP_LINE" not in os.environ:
        return _help([])
    verb = words.pop(0) if words and re.fullmatch(r"[a-z]+", words[0]) else "run"
    if words[:1] in (["-h"], ["--help"]) and len(sys.argv) == 2:
        return _help([])
    if verb in VERBS and verb not in ("report", "archive") and sweep.flagged(words, "-h", "--help"):
        return _help([verb])  # the parsers of the other two print their own
    if verb == "help":
        return _help(words)
    if sys.argv[1:] == ["--version"]:
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
        from debias.cli import help as manual

        manual.listing(words, console)
    elif verb == "explain":
        from debias.cli import help as manual

        if len(words) != 1:
            raise UserError("name one key, group or option: debias explain training.retention")
        manual.explain(words[0], console)
    else:
        raise UserError(f"unknown verb {verb!r}{nearest(verb, VERBS)}; choose one of: {', '.join(VERBS)}")
    return 0


def _help(verbs: Sequence[str]) -> int:
    """Print what the command can do, or what one verb can do."""
    from debias.cli import help as manual

    verb = verbs[0] if verbs else "help"
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}{nearest(verb, VERBS)}; choose one of: {', '.join(VERBS)}")
    if verb in jobs.JOBS:
        manual.verb_help(verb, console)
    elif verb in ("report", "archive"):
        return _dispatch([verb, "--help"])
    else:
        manual.usage(verb, console)
    return 0


def _report(words: list[str]) -> int:
    """Print and write the report over many runs; returns 1 if some of them could not be read."""
    from debias.cli.sweep_size import planned
    from debias.report.many_runs.report import report

    parser = _parser(
        "report", "Tables, plots and tests over many runs.", "--recompute, --leaderboard, --out FOLDER or FILE.md"
    )
    parser.add_argument("path", nargs="*", type=Path, help="folders with runs below them, archives; default: outputs")
    parser.add_argument(
        "--recompute", action="store_true", help="compute the figures again from the records and compare"
    )
    parser.add_argument(
        "--leaderboard", action="store_true", help="print methods side by side as Markdown; reads archives in folders"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for report.html, .md, .tex and .csv; the .md file of a leaderboard"
    )
    asked = parser.parse_args(words)
    if asked.leaderboard:
        if asked.recompute:
            raise UserError("--recompute is for the report; leave --recompute or --leaderboard out")
        return _leaderboard(asked.path, asked.out)
    faults = report(asked.path, console, build.benchmarks_of, asked.recompute, asked.out, planned)
    return max((_complain(fault) for fault in faults), default=0)


def _leaderboard(paths: list[Path], out: Path | None) -> int:
    """Print the leaderboard, or write it to a file; returns 1 if some runs could not be read."""
    from debias.report.many_runs.leaderboard import leaderboard

    if out and out.suffix != ".md":
        raise UserError(f"--out {out}: name a file that ends in .md, or leave --out out to print the leaderboard")
    page, faults = leaderboard(paths)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
        console.print(f"leaderboard: {out}", highlight=False, soft_wrap=True, markup=False)
    else:
        print(page, end="")
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
    told = f"archive: {asked.out} ({counted(done.num_runs, 'run')}{with_records}, {size:.2f} MB)"
    console.print(told, highlight=False, soft_wrap=True, markup=False)
    next_step(f"debias report {asked.out}")
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

    given = _plain_words(verb, [word for word in overrides if word != "--dry-run"])
    words = whole_values(readable(shorthands(given), sweep.flagged(given, "-m", "--multirun")))
    check_words(words)
    if sweep.flagged(words, "-m", "--multirun") and sweep.flagged(words, "-c", "--cfg", "-i", "--info"):
        raise UserError("--cfg and --info show one config; leave -m out")
    if "--dry-run" in overrides and not sweep.is_multirun(words):
        raise UserError("--dry-run lists the runs of -m; `--cfg job --resolve` shows the config of a single one")
    try:
        if sweep.is_multirun(words) and verb != "doctor":
            planned = sweep.plan(verb, config_dir(), words)
            words = planned.words
            if planned.jobs:
                if "--dry-run" in overrides:
                    sweepfiles.preview(planned, console)
                    return 0
                return sweep.follow(planned, f"debias {verb}", console, partial(_start, verb, config_dir(), words))
        statuses = _start(verb, config_dir(), words)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, verb, words)) from error
    return max(statuses, default=0)


def _sweep(words: list[str]) -> int:
    """Run a sweep of `sweeps/`, or list them; returns 0 if every run is done."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not words or words[0].startswith("-"):
        sweepfiles.listing(console)
        return 0
    path = sweepfiles.find(words[0])
    grid = sweepfiles.grid_of(path)
    given = [word for word in words[1:] if word != "--dry-run"]
    told = sweepfiles.words_for(readable(shorthands(given, grid), several=True))
    check_words(told)
    try:
        if sweep.looks(told):
            return max(_start(path.stem, path.parent, told), default=0)
        planned = sweep.plan(path.stem, path.parent, told)
        if "--dry-run" in words:
            sweepfiles.preview(planned, console, path)
            return 0
        start = partial(_start, path.stem, path.parent, planned.words)
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
    if verb == "show":
        prompts = [word for word in words if " " in word or not ("=" in word or word.startswith("-"))]
        told = f"prompts=[{','.join(map(quoted, prompts))}]"
        return [*([told] if prompts else []), *(word for word in words if word not in prompts)]
    if verb != "doctor":
        return list(words)
    settings = keys(verb)
    files = [w for w in words if not w.startswith("-") and w.lstrip("+~").partition("=")[0] not in settings]
    files = [w for w in files if "=" not in w or Path(w).expanduser().is_file() or w.endswith((".json", ".jsonl"))]
    flags = [word for word in words if word in ("--json", "--html", "--fix")]
    others = [word for word in words if word not in files and word not in flags]
    listed = ",".join(map(quoted, files))
    return [*([f"files=[{listed}]"] if files else []), *(f"{flag[2:]}=true" for flag in flags), *others]


def _complete(words: list[str]) -> None:
    """Complete the command line: verbs and sweeps ourselves, the rest through Hydra with the verb's config."""
    line = os.environ["COMP_LINE"].split(" ", 2)
    verb = line[1] if len(line) > 2 else "run"
    if len(line) == 2:
        print("\n".join(name for name in VERBS if name.startswith(line[1])))
    elif verb == "sweep" and " " not in line[2]:
        print("\n".join(name for name in sweepfiles.names() if name.startswith(line[2])))
    elif verb in jobs.JOBS:
        os.environ["COMP_LINE"] = f"{line[0]} {line[2]}"
        _hydra(verb, words)
