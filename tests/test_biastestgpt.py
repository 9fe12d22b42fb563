"""BiasTestGPT: the published counts, the score by hand, both kinds of models, and incomplete files."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from debias.benchmarks.biastestgpt import BiasTestGPT
from debias.benchmarks.evaluation import evaluate, prepared
from debias.models.base import BaseModel
from debias.records import Tokens, UserError
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import Scorer

HERE = Path(os.environ.get("DEBIAS_DATA", "")) / "biastestgpt"
needs_data = pytest.mark.skipif(
    "DEBIAS_DATA" not in os.environ or not HERE.is_dir(), reason="set DEBIAS_DATA to a folder with biastestgpt/"
)
CAUSAL = Tokens(None, "causal")


def row(first: str, second: str, attribute: str, stereotype_first: bool = True, **changes: str) -> dict[str, str]:
    labels = ["stereotype", "anti-stereotype"][:: 1 if stereotype_first else -1]
    content = {"sentence": f"The {first} is {attribute}.", "alt_sentence": f"The {second} is {attribute}.",
               "att_term": attribute, "grp_term1": first, "grp_term2": second, "label_1": labels[0],
               "label_2": labels[1], "bias_spec": "own"}  # fmt: skip
    return content | changes


def written(folder: Path, *rows: dict[str, str]) -> str:
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


@needs_data
def test_published_counts() -> None:
    benchmark = BiasTestGPT(BiasBench())
    candidates = benchmark.candidates(CAUSAL)
    pairs = {"career-family": 320, "math-arts": 336, "mexican-female": 240, "profession": 800}
    assert Counter(c.bias for c in candidates) == {bias: 2 * n for bias, n in pairs.items()}
    words = {(c.bias, c.target) for c in candidates}
    assert Counter(bias for bias, _ in words) == {
        "career-family": 16, "math-arts": 16, "mexican-female": 12, "profession": 40,
    }  # fmt: skip
    assert Counter(p.bias for p in benchmark._pairs if not p.named) == {"math-arts": 57}
    first = Counter(next(iter(p.sentences)) for p in benchmark._pairs)
    assert first["stereotype"] == 163 + 163 + 122 + 394
    assert len({c.example for c in candidates}) == 1696


def test_the_label_says_which_sentence_is_which(tmp_path: Path) -> None:
    path = written(tmp_path, row("man", "woman", "rich"), row("man", "woman", "kind", stereotype_first=False))
    texts = {(c.candidate, c.target): c.text for c in BiasTestGPT(BiasBench(), path).candidates(CAUSAL)}
    assert texts["stereotype", "rich"] == "The man is rich."
    assert texts["stereotype", "kind"] == "The woman is kind."


def test_score_by_hand() -> None:
    """Set a: words x (2 of 3 preferred) and y (0 of 1): SS 50. Set b: word x (1 of 1): 100. Overall 3 of 5: 60."""
    pairs = [("a", "x", -1, -2), ("a", "x", -1, -2), ("a", "x", -2, -1), ("a", "y", -1, -1), ("b", "x", -1, -2)]
    rows = pd.DataFrame(
        [(str(i), label, bias, word, score) for i, (bias, word, *scores) in enumerate(pairs)
         for label, score in zip(("stereotype", "anti-stereotype"), scores, strict=True)],
        columns=["example", "candidate", "bias", "target", "score"],
    )  # fmt: skip
    found = {c.bias: c for c in BiasTestGPT(BiasBench(), n_resamples=99).comparisons(rows, rows)}
    assert {bias: (c.base.value, c.n) for bias, c in found.items()} == {"overall": (60, 5), "a": (50, 4), "b": (100, 1)}
    assert (found["a"].base.low, found["a"].base.high) == (0, 100)  # two words say next to nothing


@needs_data
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_models_of_both_kinds(kind: str, tiny: Path, tiny_masked: Path, tmp_path: Path) -> None:
    base = BaseModel(str({"causal": tiny, "masked": tiny_masked}[kind])).load()
    scorer = Scorer(base, None, "32", 512, tmp_path)
    evaluation = evaluate(scorer, prepared([BiasTestGPT(BiasBench(), limit=12, n_resamples=99)], scorer.tokens))
    assert {f.bias for f in evaluation.figures} == {
        "overall", "career-family", "math-arts", "mexican-female", "profession",
    }  # fmt: skip
    assert all(0 <= f.value <= 100 and f.ideal == 50 for f in evaluation.figures)
    assert sum(f.n for f in evaluation.figures if f.bias == "overall") == 48


def test_pairs_without_their_group_term_are_scored_and_counted(tiny: Path, tmp_path: Path) -> None:
    odd = row("his", "her", "art", sentence="She gave him art.", alt_sentence="He gave her art.")
    benchmark = BiasTestGPT(BiasBench(), written(tmp_path, row("man", "woman", "rich"), odd), n_resamples=99)
    scorer = Scorer(BaseModel(str(tiny)).load(), None, "32", 512, tmp_path)
    evaluation = evaluate(scorer, prepared([benchmark], scorer.tokens))
    assert evaluation.notes == ("biastestgpt: 1 of 2 pairs lacks a group term and is scored as published",)
    assert evaluation.figures[0].n == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_2": "stereotype"}, r"row 1: labels \['stereotype'\] instead of one each of"),
    ],
)
def test_bad_rows(change: dict[str, str], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, row("man", "woman", "rich", **change))
    with pytest.raises(
        UserError, match=rf"pairs\.json is not a BiasTestGPT file \({message}.*check eval\.biastestgpt\.path"
    ):
        BiasTestGPT(BiasBench(), path).fingerprint()


def test_pairs_of_identical_sentences_are_left_out_and_counted(tmp_path: Path) -> None:
    pair, same = row("man", "woman", "rich"), row("man", "woman", "rich", alt_sentence="The man is rich.")
    benchmark = BiasTestGPT(BiasBench(), written(tmp_path, pair, same))
    assert len(benchmark._pairs) == 1
    assert benchmark.notes[0] == "biastestgpt: 1 of 2 examples is left out: 1 with two identical sentences"
    with pytest.raises(UserError, match="has no pair to compare"):
        BiasTestGPT(BiasBench(), written(tmp_path, same)).fingerprint()


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    incomplete = row("man", "woman", "rich")
    del incomplete["att_term"]
    with pytest.raises(UserError, match="row 1 has no 'att_term'"):
        BiasTestGPT(BiasBench(), written(tmp_path, incomplete)).fingerprint()
    path = Path(written(tmp_path, row("man", "woman", "rich")))
    path.write_text(path.read_text()[:60])
    with pytest.raises(UserError, match="line 1"):
        BiasTestGPT(BiasBench(), str(path)).fingerprint()
    with pytest.raises(UserError, match="No such file"):
        BiasTestGPT(BiasBench(), str(tmp_path / "none.json")).fingerprint()
