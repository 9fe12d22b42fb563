"""SEAT: published tests, effect sizes and p-values worked out by hand, hidden states against the plain model's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModel

from debias.benchmarks import metrics, statistics
from debias.benchmarks.evaluation import evaluate, figures_of, prepared
from debias.benchmarks.seat import LISTS, TESTS, Seat, words
from debias.models.adapter import attach
from debias.models.base import BaseModel
from debias.records import Tokens, UserError
from debias.scoring import batched
from debias.scoring.scorer import Scorer

SENTENCES = {
    "targ1": ["This is a cross.", "Those are crosses.", "This is a church."],
    "targ2": ["This is a mosque.", "Mosques are things.", "Here is an imam, in the old town behind the river."],
    "attr1": ["This is a friend.", "That is good."],
    "attr2": ["There is hatred.", "These are bombs.", "This is bad."],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four tests on religion, all alike and tiny."""
    path = tmp_path_factory.mktemp("seat")
    for test in TESTS["religion"]:
        content = {name: {"category": name, "examples": texts} for name, texts in SENTENCES.items()}
        (path / f"{test}.jsonl").write_text(json.dumps(content), encoding="utf-8")
    return path


published = pytest.mark.skipif(
    not (Path(os.environ.get("DEBIAS_DATA", "")) / "seat").is_dir() or "DEBIAS_DATA" not in os.environ,
    reason="set DEBIAS_DATA to a folder that holds seat/, the tests as bias-bench has them",
)


@published
def test_counts_are_those_of_the_published_files() -> None:
    """17 tests; both target lists of a test are equally long."""
    seat = Seat()
    assert len(seat.tests) == 17
    counts = {test: tuple(len(lists[name]) for name in LISTS) for test, lists in seat.tests.items()}
    assert counts["sent-weat6"] == (64, 64, 101, 112)
    assert counts["sent-weat3"] == (256, 256, 215, 249)
    assert counts["sent-religion2b"] == (84, 84, 215, 249)
    assert counts["sent-angry_black_woman_stereotype_b"] == (52, 52, 54, 54)
    candidates = seat.candidates(Tokens(None, "causal"))
    assert len(candidates) == 3_620
    assert len({(c.example, c.candidate) for c in candidates}) == 3_620


@published
def test_words_of_the_published_lists() -> None:
    """Each list has the words of WEAT; `hers` counts as `her`."""
    tests = Seat().tests
    number = {test: [len(set(words(lists[name]))) for name in LISTS[:2]] for test, lists in tests.items()}
    assert number["sent-weat6"] == [8, 8]
    assert number["sent-weat6b"] == [8, 7]
    assert number["sent-weat3"] == [32, 32]
    assert number["sent-religion1"] == [6, 6]
    assert set(words(tests["sent-weat7"]["targ1"])) == {
        "math", "algebra", "geometry", "calculus", "equation", "computation", "number", "addition"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sentences", "found"),
    [
        (["This is a church.", "Churches are things.", "The church is here."], ["church"] * 3),
        (["This is a technology.", "Those are technologies."], ["technology"] * 2),
        (["That is a Polish American.", "Polish Americans are people."], ["polish american"] * 2),
        (["The woman is here.", "These are women.", "This is John."], ["woman", "woman", "john"]),
    ],
)
def test_words(sentences: list[str], found: list[str]) -> None:
    assert words(sentences) == found


def rows(first: list[float], second: list[float], test: str = "sent-religion1") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"example": f"{test} {i}", "candidate": name, "bias": "religion", "target": f"{name} {i}", "score": s}
            for name, scores in (("targ1", first), ("targ2", second))
            for i, s in enumerate(scores)
        ]
    )


def test_effect_size_and_p_by_hand() -> None:
    """Associations 3, 1 against 0, 0: means differ by 2, the standard deviation of 3, 1, 0, 0 is sqrt(6 / 3).

    Of the 6 ways to halve four sentences one has a difference as large. Turned round the effect is the opposite, and
    all 6 differences are as large.
    """
    for scores, effect, p in ((rows([3, 1], [0, 0]), 2**0.5, 1 / 6), (rows([0, 0], [3, 1]), -(2**0.5), 1.0)):
        found = {(c.bias, c.metric): c for c in Seat(n_resamples=99).comparisons(scores, scores)}
        assert found["religion", "effect religion1"].base.value == pytest.approx(effect)
        assert found["religion", "p religion1"].base.value == pytest.approx(p)
        assert found["religion", "mean |effect|"].base.value == pytest.approx(2**0.5)
        assert found["overall", "mean |effect|"].n == 4


def test_chance_is_seldom_significant_and_an_interval_goes_with_every_p() -> None:
    """Two models that differ by chance alone, 100 times: some 5 p are below 0.05, where the interval excludes 0."""
    rng = np.random.default_rng(5)
    significant = 0
    for _ in range(100):
        base, debiased = (rows(*rng.normal(size=(2, 12)).tolist()) for _ in range(2))
        found = {c.metric: c for c in Seat(n_resamples=199).comparisons(base, debiased)}
        for metric in ("effect religion1", "mean |effect|"):
            _, low, high = found[metric].delta
            assert low < high
            assert (low > 0 or high < 0) == (found[metric].p_value < 0.05)
        significant += found["effect religion1"].p_value < 0.05
        assert found["effect religion1"].freedom == 22  # 24 words in two lists
    assert 1 <= significant <= 12


def test_one_word_a_list_has_no_interval() -> None:
    base, debiased = (rows(*of).assign(target=lambda r: r["candidate"]) for of in (([1, 2], [0, 1]), ([3, 2], [0, 0])))
    found = {c.metric: c for c in Seat(n_resamples=99).comparisons(base, debiased)}
    assert np.isnan(found["effect religion1"].p_value)


def test_effect_size_is_that_of_the_formula_whatever_the_words() -> None:
    """Sums per word give what the sentences give: Cohen's d with the pooled sample standard deviation."""
    rng = np.random.default_rng(1)
    scores = rows(list(rng.normal(1, 2, 12)), list(rng.normal(0, 1, 12)))
    scores["target"] = [f"word {i % 3}" for i in range(24)]
    first, second = scores["score"][:12], scores["score"][12:]
    words_3W, number = metrics.seat_words(scores)
    assert (words_3W.shape, number) == ((3, 6), 3)
    expected = (first.mean() - second.mean()) / scores["score"].std(ddof=1)
    assert metrics.effect_size(words_3W, number) == pytest.approx(expected)


def test_resamples_stay_within_their_list() -> None:
    drawn_RW = statistics.within((3, 5), 200)
    assert drawn_RW.shape == (200, 8)
    assert set(drawn_RW[:, :3].flat) == {0, 1, 2}
    assert set(drawn_RW[:, 3:].flat) == {3, 4, 5, 6, 7}


def test_p_of_no_difference_is_uniform() -> None:
    """Sampled divisions: of 100 pairs of lists from one distribution about 10 have a p below 0.1."""
    rng = np.random.default_rng(3)
    p = [statistics.permutation_p(rng.normal(size=20), rng.normal(size=20), 199) for _ in range(100)]
    assert 3 <= np.sum(np.array(p) < 0.1) <= 18
    assert min(p) >= 1 / 200


@pytest.mark.parametrize("kind", ["tiny", "tiny_masked"])
def test_hidden_states_in_batches_are_those_of_one_sentence_at_a_time(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Against the plain model without its output layer, as bias-bench averages it: special tokens included."""
    path = str(request.getfixturevalue(kind))
    base = BaseModel(path).load()
    texts = [s for sentences in SENTENCES.values() for s in sentences]
    ids = [tuple(i) for i in base.tokenizer(texts).input_ids]
    found = batched.mean_hidden(base.model, ids, token_budget=40)
    plain = AutoModel.from_pretrained(path).eval()
    with torch.no_grad():
        expected = torch.cat([plain(torch.tensor([i])).last_hidden_state.mean(1) for i in ids]).numpy()
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("kind", ["tiny", "tiny_masked"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_end_to_end(kind: str, precision: str, folder: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """An adapter that changes the model changes the associations; the figures come from the records alone."""
    base = BaseModel(str(request.getfixturevalue(kind))).load()
    target = {"tiny": ["c_attn"], "tiny_masked": ["query"]}[kind]
    adapted = attach(base, LoraConfig(r=2, init_lora_weights=False, target_modules=target))
    seat = Seat("religion", str(folder), n_resamples=99)
    scorer = Scorer(base, adapted, precision, 512, tmp_path)
    result = evaluate(scorer, prepared([seat], scorer.tokens))
    by_model = {name: r["score"].to_numpy() for name, r in result.likelihoods.groupby("model")}
    assert np.isfinite(by_model["base"]).all()
    assert np.abs(by_model["base"]).max() <= 2
    assert not np.allclose(by_model["base"], by_model["debiased"])
    assert len(result.figures) == 3 * (1 + 1 + 4 * 2)
    again = figures_of([Seat("religion", "/nowhere", n_resamples=99)], result.likelihoods)
    assert str(again) == str(result.figures)  # as text, since p has no interval and NaN equals nothing


def test_association_is_the_mean_cosine(folder: Path, tiny: Path, tmp_path: Path) -> None:
    base = BaseModel(str(tiny)).load()
    seat = Seat("religion", str(folder))
    scored = seat.measure(Scorer(base, None, "32", 512, tmp_path), seat.candidates(base.tokens))

    def vector(text: str) -> np.ndarray:
        return batched.mean_hidden(base.model, [tuple(base.tokenizer(text).input_ids)])[0]

    def cosines(text: str, name: str) -> list[float]:
        a, others = vector(text), [vector(s) for s in SENTENCES[name]]
        return [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for b in others]

    cross = SENTENCES["targ1"][0]
    expected = np.mean(cosines(cross, "attr1")) - np.mean(cosines(cross, "attr2"))
    assert scored["score"][0] == pytest.approx(expected, abs=1e-5)
    assert scored["target"].tolist()[:6] == [
        "cross",
        "cross",
        "church",
        "mosque",
        "mosque",
        words(SENTENCES["targ2"])[2],
    ]


def test_an_unknown_bias_is_named() -> None:
    with pytest.raises(UserError, match="'age' is unknown; choose from: gender, race, religion"):
        Seat(["race", "age"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "JSONDecodeError"),
        (lambda text: text.replace("attr2", "attr3"), "attr2"),
        (lambda text: text.replace("examples", "sentences"), "examples"),
        (lambda text: json.dumps(json.loads(text) | {"attr1": {"examples": ["one"]}}), "attr1 is not a list"),
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[str], str], message: str, folder: Path, tmp_path: Path) -> None:
    text = (folder / "sent-religion1.jsonl").read_text(encoding="utf-8")
    (tmp_path / "sent-religion1.jsonl").write_text(damage(text), encoding="utf-8")
    with pytest.raises(UserError, match=rf"religion1\.jsonl is not a SEAT test .*{message}.*check eval\.seat\.path"):
        Seat("religion", str(tmp_path)).fingerprint()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sent-weat6\.jsonl is not a SEAT test .*check eval\.seat\.path"):
        Seat(path=str(tmp_path)).fingerprint()
