"""Why does an adapter move SS on StereoSet gender: by its words, its content, or a flatter model? Example by example.

    python benchmarks/margins.py write stereotypes.jsonl     # to train on with data.path=
    python benchmarks/margins.py read RUN... [--words FILE] [--split dev]

`write` copies the gender corpus with the stereotype's words in place of the attributes: sentences as sensible as its
own that say the opposite.

`read` takes folders of `debias run` or `debias evaluate` in which StereoSet gender was scored in full, and prints a
column for each debiased model. Scores are what the run's protocol compares, in nats per token, and `+x` is a change
from the base. The margin is the anti-stereotype's score minus the stereotype's. A word is seen if it, or one with the
same stem, is an attribute of FILE (default: the gender corpus). The fit explains a margin's change by

    level + slope * (the base's margin) + words * (anti-stereotype seen - stereotype seen)

The slope is flattening: alone it turns no preference round. What the fit leaves is scatter, which turns round those
that were weak, and so moves SS towards 50. Brackets: 95%, from a bootstrap over the target terms.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from debias.benchmarks.statistics import within
from debias.benchmarks.stereoset import StereoSet
from debias.data.triplets import TripletFile
from debias.files import write_text
from debias.records import Candidate
from debias.results import read_likelihoods
from debias.scoring.protocols import BiasBench

RESAMPLES = 9999
LATE = 3  # words between person and blank from which the blank is `late`
PLACES = ("close", "late", "before")
SUFFIXES = ("iness", "fully", "ness", "ing", "ily", "ful", "ies", "ied", "ers", "ed", "ly", "er", "es", "s", "y", "e")
ANTI, STEREOTYPE, UNRELATED = OPTIONS = ("anti-stereotype", "stereotype", "unrelated")

Statistic = Callable[..., np.ndarray]  # of weights (R, N) and columns (N,): one value per resample


# ---------------------------------------------------------------- a file to train on


def write(path: Path) -> None:
    """The gender corpus with its stereotypes as attributes."""
    rows = [
        {"sentence": t.sentence[: t.start] + t.stereotype + t.sentence[t.stop :], "target": t.target,
         "attribute": t.stereotype, "bias": "gender"}
        for t in TripletFile("gender").load().triplets
        if t.stereotype
    ]  # fmt: skip
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


# ---------------------------------------------------------------- examples


def stem(word: str) -> str:
    """A word without its ending, roughly: what is left has at least four letters."""
    word = word.lower()
    ending = next((e for e in SUFFIXES if word.endswith(e) and len(word) - len(e) >= 4), "")
    return word.removesuffix(ending)


def place(candidate: Candidate) -> str:
    """Where the blank is, seen from the last mention of the person before it: close, late, or before the person."""
    assert candidate.cloze
    mentions = list(re.finditer(rf"\b{candidate.target}\w*", candidate.cloze.before, re.IGNORECASE))
    if not mentions:
        return "before"
    between = candidate.cloze.before[mentions[-1].end() :].split()
    return "late" if len(between) >= LATE else "close"


def examples(split: Any, words: Path | None) -> pd.DataFrame:
    """One row per gender example: `place`, and which of its words are seen."""
    seen = {stem(w) for t in TripletFile("gender", str(words) if words else None).load().triplets
            for w in t.attribute.split()}  # fmt: skip
    rows: dict[str, dict[str, Any]] = {}
    for candidate in StereoSet(BiasBench(), split=split).candidates(None):  # type: ignore[arg-type]
        if candidate.bias == "gender" and candidate.cloze:
            row = rows.setdefault(candidate.example, {"place": place(candidate)})
            row[f"seen {candidate.candidate}"] = stem(candidate.cloze.filling) in seen
    return pd.DataFrame.from_dict(rows, orient="index")


def changes(folder: Path, about: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """For each debiased model of a folder, its name and the examples with base scores and their changes."""
    scores = read_likelihoods(folder)
    scores = scores[(scores["benchmark"] == "stereoset") & (scores["bias"] == "gender")]
    tables = {
        model: rows.pivot(index=["example", "target"], columns="candidate", values="score").reset_index("target")
        for model, rows in scores.groupby("model", sort=False)
    }
    base = tables.pop("base")
    for model, after in tables.items():
        table = base.join(about, how="inner")
        for option in OPTIONS:
            table[f"+{option}"] = after[option] - base[option]
        table["margin"] = base[ANTI] - base[STEREOTYPE]
        table["+margin"] = table[f"+{ANTI}"] - table[f"+{STEREOTYPE}"]
        yield folder.name if model == "debiased" else str(model).removeprefix("debiased:"), table


# ---------------------------------------------------------------- statistics


def mean(weight_RN: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Weighted mean."""
    return (weight_RN @ y_N) / weight_RN.sum(1)


def fitted(weight_RN: np.ndarray, y_N: np.ndarray, *x_N: np.ndarray) -> np.ndarray:
    """Coefficients of a weighted least-squares fit: the level, then one for each of `x_N`; shape (R, K)."""
    x_NK = np.stack([np.ones_like(y_N), *x_N], axis=1)
    square_RKK = np.einsum("rn,nk,nl->rkl", weight_RN, x_NK, x_NK, optimize=True)
    return np.linalg.solve(square_RKK, ((weight_RN * y_N) @ x_NK)[..., None])[..., 0]


def coefficient(k: int) -> Statistic:
    """The k-th of `fitted`."""
    return lambda weight_RN, *columns: fitted(weight_RN, *columns)[:, k]


def correlation(weight_RN: np.ndarray, x_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Pearson's."""
    spread = [np.sqrt(mean(weight_RN, v**2) - mean(weight_RN, v) ** 2) for v in (x_N, y_N)]
    return fitted(weight_RN, y_N, x_N)[:, 1] * spread[0] / spread[1]


def shown(table: pd.DataFrame, statistic: Statistic, *columns: str, digits: int = 2) -> str:
    """A statistic and its interval: the value -+ t standard errors, as in the program's own tables."""
    if len(table) < 2:
        return "-"
    values = [table[c].to_numpy(dtype=float) for c in columns]
    terms, term_N = np.unique(table["target"].to_numpy(dtype=str), return_inverse=True)
    drawn = within([len(terms)], RESAMPLES)
    count_RT = np.stack([(drawn == k).sum(1) for k in range(len(terms))], axis=1)
    value = statistic(np.ones((1, len(table))), *values)[0]
    with np.errstate(invalid="ignore"):
        error = np.nanstd(statistic(count_RT[:, term_N].astype(float), *values)) * np.sqrt(
            len(terms) / (len(terms) - 1)
        )
    reach = stats.t.ppf(0.975, len(terms) - 1) * error
    return f"{value:+.{digits}f} ({value - reach:+.{digits}f} to {value + reach:+.{digits}f})"


def described(name: str, table: pd.DataFrame, first: pd.DataFrame) -> dict[str, str]:
    """All figures of one model."""
    anti, stereotype = table[f"seen {ANTI}"].astype(bool), table[f"seen {STEREOTYPE}"].astype(bool)
    table = table.assign(first=first["+margin"], words=anti.astype(float) - stereotype.astype(float))
    level = fitted(np.ones((1, len(table))), *(table[c].to_numpy() for c in ("+margin", "margin", "words")))[0, 0]
    after = table["margin"] + table["+margin"]
    # Within an example, over its three words: does an unlikely one rise more than a likely one?
    options = list(OPTIONS)
    three = pd.concat(
        pd.DataFrame({
            "target": table["target"],
            "base": table[o] - table[options].mean(axis=1),
            "gain": table[f"+{o}"] - table[[f"+{p}" for p in options]].mean(axis=1),
        })
        for o in options
    )  # fmt: skip

    def of(rows: pd.Series, column: str) -> str:
        return f"{shown(table[rows], mean, column)}, n = {rows.sum()}"

    return {
        "model": name,
        **{f"+{o}": shown(table, mean, f"+{o}") for o in OPTIONS},
        **{
            f"+{o}, {'seen' if yes else 'not seen'}": of(table[f"seen {o}"] == yes, f"+{o}")
            for o in OPTIONS
            for yes in (True, False)
        },
        "margin of the base": shown(table, mean, "margin"),
        "+margin": shown(table, mean, "+margin"),
        "+margin, only the anti-stereotype seen": of(anti & ~stereotype, "+margin"),
        "+margin, only the stereotype seen": of(stereotype & ~anti, "+margin"),
        "+margin, neither seen": of(~stereotype & ~anti, "+margin"),
        "fit, level": shown(table, coefficient(0), "+margin", "margin", "words"),
        "fit, slope": shown(table, coefficient(1), "+margin", "margin", "words"),
        "fit, words": shown(table, coefficient(2), "+margin", "margin", "words"),
        "slope, some word seen": shown(table[anti | stereotype], coefficient(1), "+margin", "margin"),
        "slope, neither seen": shown(table[~anti & ~stereotype], coefficient(1), "+margin", "margin"),
        "slope over all three words": shown(three, coefficient(1), "gain", "base"),
        **{f"+margin, blank {where}": of(table["place"] == where, "+margin") for where in PLACES},
        "correlation of +margin with the first": shown(table, correlation, "first", "+margin"),
        "stereotype preferred in %: base, the model without the level, the model": ", ".join(
            f"{100 * np.mean(margin < 0):.1f}" for margin in (table["margin"], after - level, after)
        ),
        "turned: to the anti-stereotype, to the stereotype": (
            f"{((table['margin'] < 0) & (after > 0)).sum()}, {((table['margin'] > 0) & (after < 0)).sum()}"
        ),
    }


def main() -> None:
    """Write the file, or read the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("write").add_argument("path", type=Path)
    reading = verbs.add_parser("read")
    reading.add_argument("runs", type=Path, nargs="+")
    reading.add_argument("--words", type=Path)
    reading.add_argument("--split", choices=["dev", "test"], default="dev")
    args = parser.parse_args()
    if args.verb == "write":
        write(args.path)
        return
    about = examples(args.split, args.words)
    models = [found for run in args.runs for found in changes(run, about)]
    columns = [described(name, table, models[0][1]) for name, table in models]
    for key in columns[0]:
        print(f"| {key} | " + " | ".join(column[key] for column in columns) + " |")


if __name__ == "__main__":
    main()
