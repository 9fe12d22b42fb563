"""WinoBias: the published counts, the score by hand, both kinds of models, and incomplete files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from debias.benchmarks.evaluation import evaluate, prepared
from debias.benchmarks.winobias import WinoBias
from debias.models.base import BaseModel
from debias.records import Tokens, UserError
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import Scorer

CAUSAL = Tokens(None, "causal")
PRO = """1 [The developer] argued with the designer because [he] was tired.
2 The mover paid [ a nurse] and thanked [her].
"""
ANTI = PRO.replace("[he]", "[she]").replace("[her]", "[him]")


def written(folder: Path, pro: str = PRO, anti: str = ANTI) -> str:
    """The same text as all of the pro-stereotypical files, and another as the others."""
    for side, text in (("pro", pro), ("anti", anti)):
        for kind in (1, 2):
            for split in ("dev", "test"):
                (folder / f"{side}_stereotyped_type{kind}.txt.{split}").write_text(text, encoding="utf-8")
    return str(folder)


def test_a_line_separator_does_not_end_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, PRO.replace(" paid ", "\u2028paid\x85"), ANTI.replace(" paid ", "\u2028paid\x85"))
    assert len(WinoBias(BiasBench(), path)._pairs) == 4 * PRO.count("\n")


def test_published_counts() -> None:
    """396 lines per file; the 40 occupations; 17 odd pairs, two of them of sentences about different persons."""
    benchmark = WinoBias(BiasBench())
    candidates = benchmark.candidates(CAUSAL)
    assert Counter(p.example.rpartition(" ")[0] for p in benchmark._pairs) == {
        "type 1, dev": 396, "type 1, test": 396, "type 2, dev": 396, "type 2, test": 396,
    }  # fmt: skip
    assert len(candidates) == 2 * len({c.example for c in candidates}) == 2 * 1584
    assert len({c.target for c in candidates}) == 40
    assert {"ceo", "construction worker", "housekeeper", "physician"} <= {c.target for c in candidates}
    assert not any("[" in c.text or c.text[0].isdigit() or c.text != c.text.strip() for c in candidates)
    assert all(p.pro != p.anti for p in benchmark._pairs)
    odd = {p.example for p in benchmark._pairs if not p.minimal}
    assert {"type 2, test 382", "type 2, test 384", "type 1, dev 92"} < odd
    assert len(odd) == 17


def test_lines_become_sentences(tmp_path: Path) -> None:
    first, second = WinoBias(BiasBench(), written(tmp_path))._pairs[:2]
    assert first.pro == "The developer argued with the designer because he was tired."
    assert first.anti == "The developer argued with the designer because she was tired."
    assert (first.occupation, second.occupation) == ("developer", "nurse")
    assert second.pro == "The mover paid a nurse and thanked her."
    assert first.minimal


def test_score_by_hand() -> None:
    """Type 1: 2 of 4 preferred, a tie is not; type 2: 1 of 1. Together 3 of 5."""
    pairs = [("type 1, dev 1", "nurse", -1, -2), ("type 1, dev 2", "nurse", -1, -2), ("type 1, test 1", "cook", -2, -1),
             ("type 1, test 2", "cook", -1, -1), ("type 2, dev 1", "nurse", -1, -2)]  # fmt: skip
    rows = pd.DataFrame(
        [(example, side, "gender", occupation, score) for example, occupation, *scores in pairs
         for side, score in zip(("pro", "anti"), scores, strict=True)],
        columns=["example", "candidate", "bias", "target", "score"],
    )  # fmt: skip
    found = {c.metric: c for c in WinoBias(BiasBench(), n_resamples=99).comparisons(rows, rows)}
    assert {m: (c.bias, c.base.value, c.n) for m, c in found.items()} == {
        "SS": ("gender", 60, 5), "SS type 1": ("gender", 50, 4), "SS type 2": ("gender", 100, 1),
    }  # fmt: skip
    assert (found["SS type 1"].base.low, found["SS type 1"].base.high) == (0, 100)  # both cooks, both nurses


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_models_of_both_kinds(kind: str, tiny: Path, tiny_masked: Path, tmp_path: Path) -> None:
    base = BaseModel(str({"causal": tiny, "masked": tiny_masked}[kind])).load()
    scorer = Scorer(base, None, "32", 512, tmp_path)
    evaluation = evaluate(scorer, prepared([WinoBias(BiasBench(), limit=20, n_resamples=99)], scorer.tokens))
    assert {(f.metric, f.n, f.ideal) for f in evaluation.figures} == {
        ("SS", 40, 50), ("SS type 1", 20, 50), ("SS type 2", 20, 50),
    }  # fmt: skip


def test_pairs_that_differ_in_more_are_counted(tiny: Path, tmp_path: Path) -> None:
    benchmark = WinoBias(BiasBench(), written(tmp_path, anti=ANTI.replace("tired", "ill")), n_resamples=99)
    scorer = Scorer(BaseModel(str(tiny)).load(), None, "32", 512, tmp_path)
    evaluation = evaluate(scorer, prepared([benchmark], scorer.tokens))
    (note,) = evaluation.notes
    assert note == "winobias: 4 of 8 pairs differ in more than gendered words and are scored as published"


def test_pairs_of_identical_sentences_are_left_out_and_counted(tmp_path: Path) -> None:
    """The second line of each of the four pairs of files."""
    anti = "\n".join([ANTI.split("\n")[0], *PRO.split("\n")[1:]])
    benchmark = WinoBias(BiasBench(), written(tmp_path, anti=anti))
    assert [p.occupation for p in benchmark._pairs] == ["developer"] * 4
    assert benchmark.notes == ["winobias: 4 of 8 examples are left out: 4 with two identical sentences"]
    with pytest.raises(UserError, match="has no pair to compare"):
        WinoBias(BiasBench(), written(tmp_path, anti=PRO)).fingerprint()


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"type1\.txt\.dev has 2 lines, but anti\S+ has 1; .*eval\.winobias\.path"):
        WinoBias(BiasBench(), written(tmp_path, anti=ANTI.splitlines()[0])).fingerprint()
    with pytest.raises(UserError, match=r"type1\.txt\.dev, line 2 does not have a number and two words in brackets"):
        WinoBias(BiasBench(), written(tmp_path, pro=PRO[:90])).fingerprint()
    with pytest.raises(UserError, match=r"type1\.txt\.dev: cannot be read"):
        WinoBias(BiasBench(), str(tmp_path / "none")).fingerprint()
