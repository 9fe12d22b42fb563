"""GLUE by a linear probe: exact counts, the probe's optimum, figures by hand, and runs on tiny models."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import pytest
import torch

from debias import assets
from debias.benchmarks import metrics, probe
from debias.benchmarks.classifiers import FineTuned, Texts, _joint
from debias.benchmarks.evaluation import evaluate, prepared
from debias.benchmarks.glue import TASKS, Glue
from debias.models import adapter
from debias.models.base import BaseModel
from debias.records import Tokens, UserError
from debias.scoring import batched
from debias.scoring.scorer import Scorer

needs_data = pytest.mark.skipif(
    not (Path(os.environ.get("DEBIAS_DATA", "")) / "glue").is_dir() or "DEBIAS_DATA" not in os.environ,
    reason="set DEBIAS_DATA to a folder with glue/",
)
ANY = Tokens(None, "causal")


# ---------------------------------------------------------------- data


@needs_data
@pytest.mark.parametrize(
    ("task", "train", "dev"),
    [
        ("sst2", {"1": 37569, "0": 29780}, {"1": 444, "0": 428}),
        ("cola", {"1": 6023, "0": 2528}, {"1": 365 + 354, "0": 162 + 162}),
        ("rte", {"entailment": 1249, "not_entailment": 1241}, {"entailment": 146, "not_entailment": 131}),
        ("mrpc", {"1": 2753, "0": 1323}, {"1": 1147, "0": 578}),
    ],
)
def test_counts_are_the_published_ones(task: str, train: dict[str, int], dev: dict[str, int]) -> None:
    examples = Glue([task])._examples
    for part, labels in (("train", train), ("dev", dev)):
        assert Counter(e.label for e in examples if e.part == part) == labels
    assert {len(e.sentences) for e in examples} == {len(TASKS[task].sentences)}


@needs_data
def test_samples_are_fixed_and_quotation_marks_are_letters() -> None:
    small = Glue(["mrpc"], limit_train=300, limit=20)
    assert Counter(e.part for e in small._examples) == {"train": 300, "dev": 20}
    assert set(small._examples) <= set(Glue(["mrpc"])._examples)
    assert small.fingerprint() == Glue(["mrpc"], 300, 20).fingerprint() != Glue(["mrpc"], 301, 20).fingerprint()
    assert any('"' in s for e in small._examples for s in e.sentences)
    assert len(small.candidates(ANY)) == 40


@needs_data
def test_training_phrases_of_sst2_are_two_files_on_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their checksums are those of the two halves of the file in $DEBIAS_DATA; the second half's header is dropped."""
    whole = assets.fetch(assets.REMOTE["glue/SST-2/train.tsv"]).read_bytes()
    cut = whole.index(b"the expressive power of the camera \t1\nwell-conceived")
    parts = whole[:cut], b"sentence\tlabel\n" + whole[cut:]
    folder = Path(os.environ["DEBIAS_CACHE"])
    for k, part in enumerate(parts, start=1):
        (folder / f"{k}.tsv").write_bytes(part)
        assert assets.sha256_of(folder / f"{k}.tsv") == assets.REMOTE[f"glue/SST-2/train_{k}.tsv"].sha256
    one = Glue(["sst2"], limit=10)
    wanted = one._examples
    monkeypatch.setattr(assets, "held", lambda _: None)
    here = {"train_1.tsv": folder / "1.tsv", "train_2.tsv": folder / "2.tsv"}
    dev = Path(os.environ["DEBIAS_DATA"]) / "glue/SST-2/dev.tsv"
    monkeypatch.setattr(assets, "fetch", lambda remote: here.get(Path(remote.local).name, dev))
    assert Glue(["sst2"], limit=10)._examples == wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tiny files: sentiment is told by one word, paraphrases are equal."""
    (tmp_path / "SST-2").mkdir()
    rows = [f"the film number {k} is {('awful', 'great')[k % 2]} \t{k % 2}" for k in range(60)]
    for part, chosen in (("train", rows[:40]), ("dev", rows[40:])):
        (tmp_path / f"SST-2/{part}.tsv").write_text("\n".join(["sentence\tlabel", *chosen]) + "\n")
    (tmp_path / "MRPC").mkdir()
    pairs = [
        f'{k % 2}\t1\t2\tHe said "{k}" today.\t{("Nobody came at all.", f"He said {k} today.")[k % 2]}'
        for k in range(60)
    ]
    for part, chosen in (("train", pairs[:40]), ("test", pairs[40:])):
        text = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "\n".join(chosen)
        (tmp_path / f"MRPC/msr_paraphrase_{part}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_file_that_is_cut_a_wrong_label_and_a_missing_file(folder: Path) -> None:
    path = folder / "SST-2/dev.tsv"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"dev\.tsv: line \d+ does not have 2 fields and the label 0 or 1"):
        Glue(["sst2"], path=str(folder)).fingerprint()
    path.write_text(whole.replace("\t1\n", "\tgood\n", 1))
    with pytest.raises(UserError, match=r"line 3 .*check eval\.glue\.path"):
        Glue(["sst2"], path=str(folder)).fingerprint()
    path.write_text("\n".join(line for line in whole.split("\n") if not line.endswith("\t1")))
    with pytest.raises(UserError, match="sst2: all 10 examples of dev have the same label"):
        Glue(["sst2"], path=str(folder)).fingerprint()
    path.unlink()
    with pytest.raises(UserError, match=r"dev\.tsv: cannot be read"):
        Glue(["sst2"], path=str(folder)).fingerprint()


@pytest.mark.parametrize("tasks", [["mnli"], []])
def test_unknown_tasks_are_refused(tasks: list[str]) -> None:
    with pytest.raises(UserError, match="choose from: sst2, cola, rte, mrpc"):
        Glue(tasks)


# ---------------------------------------------------------------- arithmetic


def test_matthews_and_f1_by_hand() -> None:
    """3 true positives, 1 false positive, 2 false negatives, 4 true negatives: F1 = 6/9; Matthews = 10/sqrt(600)."""
    cells = [np.repeat(np.eye(4)[k], 1)[None] for k in (0, 0, 0, 1, 2, 2, 3, 3, 3, 3)]
    columns = np.concatenate(cells).T
    assert metrics.f1(*columns) == pytest.approx(100 * 6 / 9)
    assert metrics.matthews(*columns) == pytest.approx(100 * 10 / np.sqrt(4 * 5 * 5 * 6))
    constant = np.stack([np.ones(4), np.zeros(4), np.zeros(4), np.zeros(4)])
    assert (metrics.matthews(*constant), metrics.f1(*constant[::-1])) == (0.0, 0.0)
    resampled = np.stack([columns, columns[::-1]], axis=1)  # (4, 2 resamples, 10)
    assert metrics.matthews(*resampled).shape == (2,)


def test_matthews_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_f1_score, binary_matthews_corrcoef

    true, called = np.random.default_rng(0).integers(2, size=(2, 500)).astype(bool)
    cells = [c.astype(float) for c in (true & called, ~true & called, true & ~called, ~true & ~called)]
    both = torch.tensor(called), torch.tensor(true)
    assert metrics.matthews(*cells) == pytest.approx(100 * float(binary_matthews_corrcoef(*both)), abs=1e-4)
    assert metrics.f1(*cells) == pytest.approx(100 * float(binary_f1_score(*both)), abs=1e-4)


def test_probe_is_at_the_optimum() -> None:
    """One feature, standardised to -1 and 1, three of four right: sigma(w) - 3/4 = -penalty * w."""
    feature = np.array([-3.0, -3, -3, -3, 5, 5, 5, 5])[:, None]
    label = np.array([0, 0, 0, 1, 1, 1, 1, 0], dtype=bool)
    found = probe.fit(feature, label, 0.1)
    w = found.weight_D[0]
    assert 1 / (1 + np.exp(-w)) - 3 / 4 == pytest.approx(-0.1 * w, abs=1e-5)
    assert found.intercept == pytest.approx(0, abs=1e-5)
    assert found.predict(np.array([[-9.0], [0.9], [1.1]])).tolist() == [False, False, True]


def test_probe_is_that_of_scikit_learn() -> None:
    """C = 1 / (N * penalty) on standardised features."""
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    feature = rng.normal(3, 2, size=(200, 5))
    label = feature @ rng.normal(size=5) + rng.normal(size=200) > feature.mean()
    found = probe.fit(feature, label, 0.01)
    theirs = linear.LogisticRegression(C=1 / (200 * 0.01), tol=1e-8).fit(
        (feature - feature.mean(0)) / feature.std(0), label
    )
    assert found.weight_D == pytest.approx(theirs.coef_[0], abs=1e-3)
    assert found.intercept == pytest.approx(theirs.intercept_[0], abs=1e-3)


def test_penalty_is_the_one_that_does_best_on_what_is_held_out() -> None:
    """Labels that features do not tell: the strongest of equal penalties; a label that one feature tells: learned."""
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(300, 20))
    told = probe.tuned(feature, feature[:, 0] > 0)
    assert (told.predict(feature) == (feature[:, 0] > 0)).mean() > 0.95
    assert np.abs(probe.tuned(feature, np.ones(300, dtype=bool) * (np.arange(300) > 2)).weight_D).max() < 0.1


def test_figures_by_hand_from_records_alone() -> None:
    """CoLA: 2 true positives, 1 false positive, 1 true negative -> 2 / sqrt(3*2*1*2); MRPC: F1 2*2/(2*2+1)."""
    cells = [("1", "1"), ("1", "1"), ("1", "0"), ("0", "0")]
    rows = pd.DataFrame(
        [(f"{t}:{k}", c, t, y, float(c == y)) for t in ("cola", "mrpc") for k, (c, y) in enumerate(cells)],
        columns=["example", "candidate", "bias", "target", "score"],
    )
    found = {(c.bias, c.metric): c for c in Glue(n_resamples=99).comparisons(rows, rows[::-1])}
    assert list(found) == [("cola", "Matthews"), ("mrpc", "accuracy"), ("mrpc", "F1")]
    assert found["cola", "Matthews"].base.value == pytest.approx(100 * 2 / np.sqrt(3 * 2 * 1 * 2))
    assert found["mrpc", "F1"].base.value == pytest.approx(80)
    assert (found["mrpc", "accuracy"].base.value, found["mrpc", "accuracy"].test) == (75, "none")  # no answer changed
    assert all(c.delta.value == 0 and c.n == 4 for c in found.values())


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_features_are_the_mean_of_the_last_layer(kind: str, tiny: Path, tiny_masked: Path) -> None:
    """In batches of three lengths, against the model's own output one text at a time."""
    model = BaseModel(str({"causal": tiny, "masked": tiny_masked}[kind])).load().model
    texts = [(5, 6, 7), (5, 9), (5, 6, 7, 8, 9, 11)]
    found = batched.mean_hidden(model, texts, token_budget=9, skip=1)
    for ids, mean in zip(texts, found, strict=True):
        with torch.no_grad():
            wanted = model.base_model(torch.tensor([ids])).last_hidden_state[0, 1:].mean(0)
        assert mean == pytest.approx(wanted.numpy(), abs=1e-4)


@pytest.fixture(params=["causal", "masked"])
def adapted(request: pytest.FixtureRequest, tiny: Path, tiny_masked: Path, tmp_path: Path) -> Scorer:
    """Scores a tiny model of each kind with an adapter on it."""
    causal = request.param == "causal"
    base = BaseModel(str(tiny if causal else tiny_masked)).load()
    modules = ["c_attn"] if causal else ["query"]
    config = peft.LoraConfig(r=2, target_modules=modules, fan_in_fan_out=causal, init_lora_weights=False)
    torch.manual_seed(1)  # of the adapter's weights: whether 40 examples teach a task must not depend on other tests
    return Scorer(base, adapter.attach(base, config), "32", 512, tmp_path)


def test_benchmark_runs_with_the_adapter_on_and_off(adapted: Scorer, folder: Path, tmp_path: Path) -> None:
    benchmark = Glue(["sst2", "mrpc"], path=str(folder), n_resamples=99)
    found = evaluate(adapted, prepared([benchmark], adapted.tokens))
    rows = found.likelihoods
    assert len(rows) == 2 * (20 + 20)
    assert (rows["score"] == (rows["candidate"] == rows["target"])).all()
    value = {(f.bias, f.metric, f.model): f.value for f in found.figures}
    assert value["sst2", "accuracy", "base"] >= 70.0  # an untrained model of width 16, one word among six
    assert value["mrpc", "F1", "base"] > 90.0
    features = [np.load(path) for path in (tmp_path / "scores").glob("*.npy")]
    assert len(features) == 4
    before = adapted.positions
    assert before > 0
    pd.testing.assert_frame_equal(evaluate(adapted, prepared([benchmark], adapted.tokens)).likelihoods, rows)
    assert adapted.positions == before


def test_a_copy_is_fine_tuned_with_the_adapter_on_and_off(adapted: Scorer, folder: Path, tmp_path: Path) -> None:
    """A task is learned from 40 examples; the scored model stays as it is, and a second look trains nothing."""
    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    benchmark = Glue(["sst2"], path=str(folder), n_resamples=99, classifier=FineTuned(epochs=8, lr=1e-2, batch_size=8))
    found = evaluate(adapted, prepared([benchmark], adapted.tokens))
    value = {(f.metric, f.model): f.value for f in found.figures if f.protocol == "fine_tuned"}
    assert value["accuracy", "base"] >= 90.0
    assert value["accuracy", "debiased"] >= 90.0
    assert all(torch.equal(before[name], p) for name, p in adapted.model.named_parameters())
    off, on = (np.load(path) for path in (tmp_path / "scores").glob("*.npy"))
    assert not np.array_equal(off, on)
    adapted.model.forward = None
    again = evaluate(adapted, prepared([benchmark], adapted.tokens))
    pd.testing.assert_frame_equal(again.likelihoods, found.likelihoods)


def test_fine_tuning_that_diverges_says_so(tiny: Path, folder: Path, tmp_path: Path) -> None:
    scorer = Scorer(BaseModel(str(tiny)).load(), None, "32", 512, tmp_path)
    with pytest.raises(UserError, match=r"glue, sst2: fine-tuning diverged; lower .*classifier\.lr"):
        Glue(["sst2"], path=str(folder), classifier=FineTuned(lr=1e30)).measure(scorer, [])


def test_two_texts_are_read_one_behind_the_other() -> None:
    """Start token 1: the second text loses its own; seven tokens are cut to five."""
    assert _joint(Texts(((1, 5, 6), (1, 7, 8)), True), None) == ((1, 5, 6, 7, 8), True)
    assert _joint(Texts(((1, 5, 6, 9), (1, 7, 8, 9)), False), 5) == ((1, 5, 6, 9, 7), False)
    assert _joint(Texts(((1, 5),), False), 5) == ((1, 5), False)


def test_long_sentences_are_cut_and_counted(tiny: Path, folder: Path, tmp_path: Path) -> None:
    path = folder / "SST-2/dev.tsv"
    path.write_text(path.read_text() + "word " * 200 + "\t1\n")
    scorer = Scorer(BaseModel(str(tiny)).load(), None, "32", 512, tmp_path)
    assert len(Glue(["sst2"], path=str(folder)).measure(scorer, [])) == 21
    assert list(scorer.notes) == ["glue: sst2: 1 of 61 sentences is cut to the model's 128 tokens"]
