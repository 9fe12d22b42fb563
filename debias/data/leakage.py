"""Sentences of the benchmarks, which training data must not hold: from the data wheel, checked like all assets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from debias import assets
from debias.data.quality import NearDuplicates

BIASTESTGPT = [remote for name, remote in assets.REMOTE.items() if name.startswith("biastestgpt-")]


class Index(NamedTuple):
    """One benchmark's sentences, ready to be searched, and the target terms it asks about (lower case)."""

    name: str
    sentences: NearDuplicates
    targets: frozenset[str]


def benchmark_index(name: str) -> Index:
    """Read one benchmark. Raises UserError when its asset is missing or not the file we know."""
    sentences = NearDuplicates()
    targets: set[str] = set()
    for sentence, *asked in _READERS[name]():
        sentences.add(sentence, sentence)
        targets.update(target.lower() for target in asked)
    assert len(sentences), name  # an empty index would find nothing and be believed
    return Index(name, sentences, frozenset(targets))


def available() -> list[str]:
    """Benchmarks that can be read here; BiasTestGPT where it lies below $DEBIAS_DATA or was fetched before."""
    return [name for name in _READERS if name != "biastestgpt" or all(map(assets.on_disk, BIASTESTGPT))]


def missing() -> list[str]:
    """Benchmarks that cannot be read here."""
    return [name for name in _READERS if name not in available()]


Texts = Iterator[tuple[str, ...]]  # a sentence, and the target terms that the benchmark names with it
PRONOUNS = ("he", "she", "him", "her", "his", "hers")


def _stereoset() -> Texts:
    for split in ("dev", "test"):
        tasks = json.loads(assets.locate(f"stereoset-{split}").read_text(encoding="utf-8"))["data"]
        for task, examples in tasks.items():
            for example in examples:
                if task == "intersentence":  # elsewhere the context is the sentence itself with a blank in it
                    yield example["context"], example["target"]
                for sentence in example["sentences"]:
                    yield sentence["sentence"], example["target"]


def _crows_pairs() -> Texts:
    with assets.locate("crows_pairs").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield (row["sent_more"],)
            yield (row["sent_less"],)


def _winobias() -> Texts:
    for path in _files("winobias"):
        for line in path.read_text(encoding="utf-8").splitlines():
            asked = [name for name in re.findall(r"\[(?:the )?([^\]]+)\]", line, re.IGNORECASE) if name not in PRONOUNS]
            yield re.sub(r"^\d+ |[\[\]]", "", line), *asked  # "1 [The nurse] ...", number and brackets being no text


def _bbq() -> Texts:
    for path in _files("bbq"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            asked = [text for text, group in row["answer_info"].values() if group != "unknown"]
            for sentence in re.split(r"(?<=[.?!]) ", f"{row['context']} {row['question']}"):
                yield sentence, *asked


def _files(benchmark: str) -> list[Path]:
    return [assets.locate(name) for name in assets.ASSETS if name.startswith(f"{benchmark}-")]


def _biastestgpt() -> Texts:
    for remote in BIASTESTGPT:
        for row in json.loads(assets.fetch(remote).read_text(encoding="utf-8")):
            yield row["sentence"], row["grp_term1"]
            yield row["alt_sentence"], row["grp_term2"]


_READERS: dict[str, Callable[[], Texts]] = {
    "stereoset": _stereoset,
    "crows_pairs": _crows_pairs,
    "winobias": _winobias,
    "bbq": _bbq,
    "biastestgpt": _biastestgpt,
}
