"""Parity with the published implementation (Meade et al. 2022), sentence by sentence, on a tiny untrained GPT-2."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from debias.benchmarks.crows_pairs import CrowsPairs
from debias.benchmarks.stereoset import StereoSet
from debias.evaluation import Scorer, score_candidates
from debias.likelihood import BiasBench
from debias.models.base import BaseModel

REFERENCE = json.loads((Path(__file__).parent / "reference_causal.json").read_text())


@pytest.fixture(scope="module")
def scorer(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(BaseModel(str(tiny)).load(), None, "32", 512, tmp_path_factory.mktemp("scores"))


def test_stereoset(scorer: Scorer) -> None:
    """600 sentences of 200 dev examples: geometric mean of the token probabilities."""
    expected = REFERENCE["stereoset"]
    benchmark = StereoSet(BiasBench(), split="dev")
    sentences = [s for example in benchmark.examples for s in example["sentences"] if s["id"] in expected]
    texts = pd.DataFrame({"id": [s["id"] for s in sentences], "text": [s["sentence"] for s in sentences]})
    scored = score_candidates(scorer, benchmark, texts, "base")
    assert len(scored) == 600
    for sentence, score in zip(scored["id"], scored["score"], strict=True):
        assert math.exp(score) == pytest.approx(expected[sentence], rel=1e-4)


def test_crows_pairs(scorer: Scorer) -> None:
    """Both sentences of the first 200 pairs."""
    benchmark = CrowsPairs(BiasBench())
    candidates = pd.DataFrame(benchmark.candidates(None))
    candidates = candidates[candidates["example"].astype(int) < 200]
    scored = score_candidates(scorer, benchmark, candidates, "base").set_index(["example", "candidate"])["score"]
    assert len(REFERENCE["crows_pairs"]) == 200
    for row, more, less in REFERENCE["crows_pairs"]:
        assert math.exp(scored[str(row), "sent_more"]) == pytest.approx(more, rel=1e-4)
        assert math.exp(scored[str(row), "sent_less"]) == pytest.approx(less, rel=1e-4)
