"""Parity with the published implementation (Meade et al. 2022), sentence by sentence, on tiny untrained models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from debias.benchmarks.crows_pairs import CrowsPairs
from debias.benchmarks.stereoset import StereoSet
from debias.models.base import BaseModel
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import Scorer


@pytest.fixture(scope="module", params=["causal", "masked"])
def case(
    request: pytest.FixtureRequest, tiny: Path, tiny_masked: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Scorer, dict]:
    folder = {"causal": tiny, "masked": tiny_masked}[request.param]
    base = BaseModel(str(folder)).load()
    assert base.kind == request.param
    reference = json.loads((Path(__file__).parent / f"reference_{base.kind}.json").read_text())
    return Scorer(base, None, "32", 512, tmp_path_factory.mktemp("scores")), reference


def largest_difference(found: list[float], expected: list[float]) -> float:
    """Largest relative difference."""
    return float(np.max(np.abs(np.array(found) / np.array(expected) - 1)))


def test_stereoset(case: tuple[Scorer, dict], capsys: pytest.CaptureFixture[str]) -> None:
    """600 sentences of 200 dev examples: probabilities, geometric mean over tokens or mean over a filling's pieces."""
    scorer, reference = case
    expected = reference["stereoset"]
    benchmark = StereoSet(BiasBench(), split="dev")
    id_of = {(e["id"], s["gold_label"]): s["id"] for e in benchmark.examples for s in e["sentences"]}
    candidates = [c for c in benchmark.candidates(scorer.tokens) if id_of[c.example, c.candidate] in expected]
    rows = scorer.score(candidates, benchmark.protocol, "parity")
    assert len(rows) == 600
    wanted = [expected[id_of[c.example, c.candidate]] for c in candidates]
    largest = largest_difference(list(np.exp(rows["score"])), wanted)
    with capsys.disabled():
        print(f"\nStereoSet, {scorer.base.kind}: largest relative difference of 600 scores {largest:.1e}")
    assert largest < 1e-4


def test_crows_pairs(case: tuple[Scorer, dict], capsys: pytest.CaptureFixture[str]) -> None:
    """Both sentences of the first 200 pairs; the one pair that the published code skips has no score here either."""
    scorer, reference = case
    benchmark = CrowsPairs(BiasBench())
    candidates = [c for c in benchmark.candidates(scorer.tokens) if int(c.example) < 200]
    candidates.sort(key=lambda c: (int(c.example), c.candidate == "sent_less"))
    rows = scorer.score(candidates, benchmark.protocol, "parity")
    wanted = [score for _, more, less in reference["crows_pairs"] for score in (more, less)]
    assert len(wanted) == len(rows) == 400
    scored = [k for k, score in enumerate(wanted) if score is not None]
    assert rows["score"].isna().tolist() == [score is None for score in wanted]
    mean = rows["logprob"] / rows["num_tokens"]  # before it is rounded for the comparison
    found = mean if scorer.base.kind == "masked" else np.exp(mean)
    largest = largest_difference([found[k] for k in scored], [wanted[k] for k in scored])
    with capsys.disabled():
        print(f"\nCrowS-Pairs, {scorer.base.kind}: largest relative difference of {len(scored)} scores {largest:.1e}")
    assert largest < 1e-4
