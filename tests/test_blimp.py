"""BLiMP: the published counts, accuracy by hand, both kinds of models, and incomplete archives."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from debias.benchmarks.blimp import Blimp
from debias.benchmarks.evaluation import evaluate, prepared
from debias.models.base import BaseModel
from debias.records import Tokens, UserError
from debias.scoring.protocols import Conditional
from debias.scoring.scorer import Scorer

HERE = Path(os.environ.get("DEBIAS_DATA", "")) / "blimp/BLiMP.zip"
needs_data = pytest.mark.skipif(
    "DEBIAS_DATA" not in os.environ or not HERE.is_file(), reason="set DEBIAS_DATA to a folder with blimp/BLiMP.zip"
)
CAUSAL = Tokens(None, "causal")
PAIR = {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps.", "linguistics_term": "agreement",
        "UID": "u", "pairID": "0"}  # fmt: skip


def benchmark(path: str | None = None, limit: int | None = None) -> Blimp:
    return Blimp(Conditional(unit="text"), path, limit, n_resamples=99)


def archive(folder: Path, **members: str) -> str:
    path = folder / "own.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            file.writestr(f"data/{name}.jsonl", text)
        file.writestr("__MACOSX/data/._u.jsonl", "not a pair")
    return str(path)


@needs_data
def test_published_counts() -> None:
    """67 paradigms of 1,000 pairs in the 12 phenomena of the paper's table 2."""
    pairs = benchmark()._pairs
    assert len(pairs) == 67_000
    assert set(Counter(p["UID"] for p in pairs).values()) == {1000}
    assert sum(p["sentence_good"] == p["sentence_bad"] for p in pairs) == 7
    candidates = benchmark(limit=1).candidates(CAUSAL)
    assert Counter(c.bias for c in candidates if c.candidate == "good") == {
        "anaphor_agreement": 2, "argument_structure": 9, "binding": 7, "control_raising": 5,
        "determiner_noun_agreement": 8, "ellipsis": 2, "filler_gap_dependency": 7, "irregular_forms": 2,
        "island_effects": 8, "npi_licensing": 7, "quantifiers": 4, "subject_verb_agreement": 6,
    }  # fmt: skip


@needs_data
def test_a_sample_has_the_same_number_of_each_paradigm() -> None:
    candidates = benchmark(limit=20).candidates(CAUSAL)
    assert len({c.example for c in candidates}) == 67 * 20
    assert set(Counter(c.target for c in candidates).values()) == {40}


def test_accuracy_by_hand() -> None:
    """Paradigm x: 3 of 4 right (a tie is wrong), y: 0 of 1. Overall 37.5, not 60; phenomenon a holds x, b holds y."""
    pairs = [("a", "x", -1, -2), ("a", "x", -1, -2), ("a", "x", -1, -2), ("a", "x", -1, -1), ("b", "y", -2, -1)]
    rows = pd.DataFrame(
        [(str(i), side, bias, paradigm, score) for i, (bias, paradigm, *scores) in enumerate(pairs)
         for side, score in zip(("good", "bad"), scores, strict=True)],
        columns=["example", "candidate", "bias", "target", "score"],
    )  # fmt: skip
    found = {c.bias: c for c in benchmark().comparisons(rows, rows)}
    assert {bias: (c.base.value, c.n, c.ideal) for bias, c in found.items()} == {
        "overall": (37.5, 5, 100), "a": (75, 4, 100), "b": (0, 1, 100),
    }  # fmt: skip
    assert (found["overall"].base.low, found["overall"].base.high) == (0, 100)  # two paradigms say next to nothing
    assert np.isnan(found["a"].base.low)  # and one says nothing, however many pairs it has


@needs_data
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_models_of_both_kinds(kind: str, tiny: Path, tiny_masked: Path, tmp_path: Path) -> None:
    base = BaseModel(str({"causal": tiny, "masked": tiny_masked}[kind])).load()
    scorer = Scorer(base, None, "32", 512, tmp_path)
    evaluation = evaluate(scorer, prepared([benchmark(limit=2)], scorer.tokens))
    assert len(evaluation.figures) == 13
    assert (evaluation.figures[0].bias, evaluation.figures[0].n) == ("overall", 134)
    assert {f.protocol for f in evaluation.figures} == {"conditional_sum"}
    assert not evaluation.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(PAIR) + '\n{"sentence_good": "The', r"data/u\.jsonl, line 2: Unterminated string"),
        (json.dumps({k: v for k, v in PAIR.items() if k != "UID"}), r"data/u\.jsonl, line 1 has no 'UID'"),
        ("", r"no data/\*\.jsonl"),
    ],
)
def test_archives_that_are_not_whole(text: str, message: str, tmp_path: Path) -> None:
    path = archive(tmp_path, u=text) if text else archive(tmp_path)
    with pytest.raises(UserError, match=rf"own\.zip is not a BLiMP archive \({message}.*check eval\.blimp\.path"):
        benchmark(path).fingerprint()


def test_a_line_separator_in_a_sentence_does_not_end_a_line(tmp_path: Path) -> None:
    odd = {**PAIR, "sentence_good": "Many girls\u2028insulted\x85themselves."}
    path = archive(tmp_path, u=json.dumps(odd, ensure_ascii=False) + "\n")
    assert [c.text for c in benchmark(path).candidates(CAUSAL)] == [odd["sentence_good"], PAIR["sentence_bad"]]


def test_half_an_archive_and_none(tmp_path: Path) -> None:
    path = Path(archive(tmp_path, u=json.dumps(PAIR)))
    assert len(benchmark(str(path)).candidates(CAUSAL)) == 2
    path.write_bytes(path.read_bytes()[:120])
    with pytest.raises(UserError, match=r"own\.zip is not a BLiMP archive \(File is not a zip file"):
        benchmark(str(path)).fingerprint()
    with pytest.raises(UserError, match="No such file"):
        benchmark(str(tmp_path / "none.zip")).fingerprint()
