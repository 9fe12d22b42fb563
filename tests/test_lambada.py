"""LAMBADA: the published count and its odd targets, figures by hand, both kinds of models, and bad files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from debias.benchmarks.evaluation import evaluate, prepared
from debias.benchmarks.lambada import Lambada
from debias.models.base import BaseModel
from debias.records import Tokens, UserError
from debias.scoring.protocols import Greedy, Pieces, greedy
from debias.scoring.scorer import Scorer

HERE = Path(os.environ.get("DEBIAS_DATA", "")) / "lambada/lambada_test.jsonl"
needs_data = pytest.mark.skipif(
    "DEBIAS_DATA" not in os.environ or not HERE.is_file(), reason="set DEBIAS_DATA to a folder with lambada/"
)
CAUSAL = Tokens(None, "causal")


def written(folder: Path, *texts: str) -> str:
    path = folder / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@needs_data
def test_published_count_and_targets() -> None:
    candidates = Lambada(Greedy()).candidates(CAUSAL)
    assert len(candidates) == len({c.example for c in candidates}) == 5153
    assert [c.target for c in candidates[:3]] == ["signs", "Shane", "insurance"]
    assert all(c.cloze.before + c.cloze.filling == c.text and c.cloze.before[-1].isspace() for c in candidates)
    assert sum(c.cloze.before[-1] != " " for c in candidates) == 7
    assert sum(not c.target.isalpha() for c in candidates) == 38


def test_a_word_after_a_line_break(tmp_path: Path) -> None:
    (candidate,) = Lambada(Greedy(), written(tmp_path, "He ran, and ran:\n\nhome \n")).candidates(CAUSAL)
    assert candidate.cloze[:2] == ("He ran, and ran:\n\n", "home")


def test_greedy_needs_every_token() -> None:
    """Candidate 0: two pieces, both likeliest; 1: one of two; 2: none to score."""
    pieces = Pieces(np.zeros(4), np.array([True, True, True, False]), np.ones(4), np.array([0, 0, 1, 1]), 3)
    assert greedy(pieces)[:2].tolist() == [1, 0]
    assert np.isnan(greedy(pieces)[2])


def test_figures_by_hand() -> None:
    """1 of 4 guessed: 25%. Words of probability 1/2, 1/2, 1/4, 1/16, of any number of tokens: 2 ** (8 / 4) = 4."""
    rows = pd.DataFrame({"score": [1.0, 0, 0, 0], "logprob": -np.log([2, 2, 4, 16]), "num_tokens": [1, 2, 3, 4]})
    accuracy, perplexity = Lambada(Greedy(), n_resamples=99).comparisons(rows, rows)
    assert (accuracy.base.value, accuracy.ideal, accuracy.n, accuracy.test) == (25, 100, 4, "none")
    assert perplexity.base.value == pytest.approx(4)
    assert (perplexity.ideal, perplexity.test) == (1, "none")


@needs_data
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_models_of_both_kinds(kind: str, tiny: Path, tiny_masked: Path, tmp_path: Path) -> None:
    base = BaseModel(str({"causal": tiny, "masked": tiny_masked}[kind])).load()
    scorer = Scorer(base, None, "32", 512, tmp_path)
    evaluation = evaluate(scorer, prepared([Lambada(Greedy(), limit=5, n_resamples=99)], scorer.tokens))
    accuracy, perplexity = evaluation.figures
    assert (accuracy.metric, accuracy.protocol, accuracy.n) == ("accuracy", "continuation_greedy", 5)
    assert (perplexity.metric, perplexity.bias) == ("perplexity", "all")
    assert perplexity.value > 1


def test_greedy_is_what_the_model_would_write(tiny: Path, tmp_path: Path) -> None:
    """The likeliest next token, where it is a word, is a hit behind its passage; the second likeliest word is not."""
    import torch

    base = BaseModel(str(tiny)).load()
    tokenizer = base.tokens.tokenizer
    words = {i for token, i in tokenizer.get_vocab().items() if token[:1] == "Ġ" and token[1:].isalpha()}
    for passage in (f"The {animal} and the cat" for animal in ("dog", "fox", "cow", "hen", "ant", "bee", "owl", "rat")):
        ids = torch.tensor([[0, *tokenizer(passage, add_special_tokens=False).input_ids]])
        with torch.inference_mode():
            best, *others = base.model(ids).logits[0, -1].argsort(descending=True).tolist()
        if best in words:
            break
    assert best in words
    second = next(i for i in others if i in words)
    path = written(tmp_path, *(passage + tokenizer.decode([i]) for i in (best, second)))
    lambada = Lambada(Greedy(), path)
    scorer = Scorer(base, None, "32", 512, tmp_path)
    rows = scorer.score(lambada.candidates(base.tokens), lambada.protocol, lambada.name)
    assert rows["score"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a b"}\n{"text": "a', "line 2 has no text, JSONDecodeError: Unterminated string"),
        ('{"txt": "a b"}', "line 1 has no text, KeyError: 'text'"),
        ('{"text": "word"}', "line 1 has fewer than two words"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"\.jsonl is not a LAMBADA file \({message}.*check eval\.lambada\.path"):
        Lambada(Greedy(), str(path)).fingerprint()
    with pytest.raises(UserError, match="No such file"):
        Lambada(Greedy(), str(tmp_path / "none")).fingerprint()
