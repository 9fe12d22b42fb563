"""Sentences of the benchmarks, which training data must not contain."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from debias import assets
from debias.assets.cache import cached
from debias.data import quality
from debias.data.plaintext import split_sentences
from debias.data.quality import FixedSentences, NearDuplicates
from debias.files import whole_file

_FROM_THE_WEB = ("biastestgpt", "seat", "lambada")  # the files of all other benchmarks are in a data wheel
REMOTE = {
    benchmark: [remote for name, remote in assets.REMOTE.items() if re.split("[-/]", name)[0] == benchmark]
    for benchmark in _FROM_THE_WEB
}


class Index(NamedTuple):
    """One benchmark's sentences, ready for searching, and the target terms it tests (lower case)."""

    name: str
    sentences: NearDuplicates
    targets: frozenset[str]


def benchmark_index(name: str) -> Index:
    """One benchmark's index, made once and kept in the cache: sketching all benchmarks takes half a minute.

    Raises UserError if its file is missing or has another checksum.
    """
    pinned = {file: of.sha256 for file, of in assets.ASSETS.items()}
    pinned |= {file: of.sha256 for file, of in assets.REMOTE.items()}
    checksums = [checksum for file, checksum in pinned.items() if re.split("[-/]", file)[0] == name]
    here = [Path(module) for module in (__file__, quality.__file__)]
    here += [_GAPS / file for file in (f"{name}.json", "occupations.csv") if (_GAPS / f"{name}.json").is_file()]
    key = hashlib.sha256(b" ".join([" ".join(checksums).encode(), *(file.read_bytes() for file in here)])).hexdigest()
    path = assets.cache_dir() / "leakage" / f"{name}-{key[:16]}.npz"
    return cached(path, partial(_kept, name), partial(_made, name), _keep, f"read {name}")


def _made(name: str) -> Index:
    texts = list(_READERS[name]())
    targets = frozenset(target.lower() for _, *tested in texts for target in tested)
    assert texts, name  # an empty index would pass every file
    return Index(name, FixedSentences.of(sentence for sentence, *_ in texts), targets)


def _kept(name: str, path: Path) -> Index | None:
    try:
        with np.load(path) as file:
            targets = json.loads(file["targets"].tobytes())
            return Index(name, FixedSentences.read(file), frozenset(targets))
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _keep(path: Path, index: Index) -> None:
    assert isinstance(index.sentences, FixedSentences)
    targets = np.frombuffer(json.dumps(sorted(index.targets)).encode(), dtype=np.uint8)
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, targets=targets, **index.sentences.arrays())  # type: ignore[arg-type]


def available() -> list[str]:
    """Benchmarks that can be read offline: in a data wheel, below $DEBIAS_DATA or downloaded before."""
    return [name for name in _READERS if all(map(assets.on_disk, REMOTE.get(name, ())))]


def missing() -> list[str]:
    """Benchmarks that cannot be read offline."""
    return [name for name in _READERS if name not in available()]


Texts = Iterator[tuple[str, ...]]  # a sentence, and the target terms that the benchmark names with it
_GAPS = Path(__file__).parents[1] / "benchmarks"  # their words and sentences are files there
PRONOUNS = ("he", "she", "him", "her", "his", "hers")


def _stereoset() -> Texts:
    for split in ("dev", "test"):
        tasks = json.loads(assets.locate(f"stereoset-{split}").read_text(encoding="utf-8"))["data"]
        for task, examples in tasks.items():
            for example in examples:
                if task == "intersentence":  # in the other task the context is the sentence with a blank in it
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
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            # A line reads "1 [The nurse] asked ... [she] ...": number and brackets are not part of the sentence.
            names = re.findall(r"\[(?:the )?([^\]]+)\]", line, re.IGNORECASE)
            yield re.sub(r"^\d+ |[\[\]]", "", line), *(name for name in names if name not in PRONOUNS)


def _bbq() -> Texts:
    for path in _files("bbq"):
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            row = json.loads(line)
            groups = [text for text, group in row["answer_info"].values() if group != "unknown"]
            for sentence in re.split(r"(?<=[.?!]) ", f"{row['context']} {row['question']}"):
                yield sentence, *groups


def _files(benchmark: str) -> list[Path]:
    return [assets.locate(name) for name in assets.ASSETS if name.startswith(f"{benchmark}-")]


def _honest() -> Texts:
    for path in _files("honest"):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                yield (row["template_masked"].replace("[M]", ""),)


def _seat() -> Texts:
    for remote in REMOTE["seat"]:
        for part in json.loads(assets.fetch(remote).read_text(encoding="utf-8")).values():
            for sentence in part["examples"]:
                yield (sentence,)


def _lambada() -> Texts:
    for remote in REMOTE["lambada"]:
        for line in filter(None, assets.fetch(remote).read_text(encoding="utf-8").split("\n")):
            for sentence in split_sentences(json.loads(line)["text"]):
                yield (sentence,)


def _biastestgpt() -> Texts:
    for remote in REMOTE["biastestgpt"]:
        for row in json.loads(assets.fetch(remote).read_text(encoding="utf-8")):
            yield row["sentence"], row["grp_term1"]
            yield row["alt_sentence"], row["grp_term2"]


def _pronoun_gap() -> Texts:
    with (_GAPS / "occupations.csv").open(newline="", encoding="utf-8") as file:
        occupations = [row["occupation"] for row in csv.DictReader(file)]
    for sentence in chain.from_iterable(_asked("pronoun_gap").values()):
        for occupation, pronoun in product(occupations, ("she", "he")):
            yield sentence.format(occupation).replace("___", pronoun), occupation


def _group_gap() -> Texts:
    asked = _asked("group_gap")
    groups = [group for of_bias in asked["groups"].values() for group in of_bias]
    for split, by_order in asked["sentences"].items():
        pairs = chain.from_iterable(asked["attributes"][split].values())
        attributes = [attribute for pair in pairs for attribute in pair.split("/")]
        for order, sentences in by_order.items():
            for sentence, group, attribute in product(sentences, groups, attributes):
                given, blank = (group, attribute) if order == "group first" else (attribute, group)
                yield sentence.format(given).replace("___", blank), group


def _asked(gap: str) -> dict[str, Any]:
    return json.loads((_GAPS / f"{gap}.json").read_text(encoding="utf-8"))


_READERS: dict[str, Callable[[], Texts]] = {
    "stereoset": _stereoset,
    "crows_pairs": _crows_pairs,
    "winobias": _winobias,
    "bbq": _bbq,
    "biastestgpt": _biastestgpt,
    "honest": _honest,
    "seat": _seat,
    "lambada": _lambada,
    "pronoun_gap": _pronoun_gap,
    "group_gap": _group_gap,
}
