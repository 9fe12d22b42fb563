"""The bridge to lm-evaluation-harness: local tasks over local files, on a tiny model, without a hub."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest

from debias.benchmarks import metrics
from debias.benchmarks.crows_pairs import CrowsPairs
from debias.benchmarks.evaluation import evaluate, prepared
from debias.benchmarks.lm_eval import LmEval, documents
from debias.models import adapter
from debias.models.base import BaseModel
from debias.records import UserError
from debias.scoring.protocols import Conditional
from debias.scoring.scorer import Scorer

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install lm-eval")
PAIRS = """task: local_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sent_more, sent_less]}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
TEXT = """task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "My neighbour says:"
doc_to_target: "{{{{sent_more}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The harness's data library keeps its copies in a folder of the test session's."""
    datasets = pytest.importorskip("datasets", reason="lm-eval is not installed: pip install lm-eval")
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, datasets_cache: None) -> Path:
    """A folder with the two tasks over twelve CrowS-Pairs pairs."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "pairs.jsonl"
    pairs = CrowsPairs(Conditional(), limit=2)._pairs[:12]
    data.write_text("".join(json.dumps({"sent_more": p.more, "sent_less": p.less}) + "\n" for p in pairs))
    for name, text in (("local_pairs", PAIRS), ("local_text", TEXT)):
        (folder / f"{name}.yaml").write_text(text.format(path=data))
    (folder / "absent.yaml").write_text(PAIRS.format(path=folder / "no.jsonl").replace("local_pairs", "absent"))
    cut = folder / "cut.jsonl"
    cut.write_text(data.read_text()[:200])
    (folder / "cut.yaml").write_text(PAIRS.format(path=cut).replace("local_pairs", "cut"))
    (folder / "field.yaml").write_text(PAIRS.format(path=data).replace("local_pairs", "field").replace("less", "none"))
    return folder


@pytest.fixture
def scorer(tiny: Path, tmp_path: Path) -> Scorer:
    """Base and an adapter whose weights are far from zero."""
    base = BaseModel(str(tiny)).load()
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return Scorer(base, adapter.attach(base, config), "32", 512, tmp_path)


def test_accuracy_is_the_stereotype_score_of_the_same_sentences(scorer: Scorer, tasks: Path) -> None:
    """Adapter on and off: share of pairs whose first sentence is likelier, the harness's and ours; and the cache."""
    ours = CrowsPairs(Conditional(unit="text"), limit=2)
    harness = LmEval("local_pairs", include_path=str(tasks), n_resamples=99)
    texts = {c.text for c in harness.candidates(scorer.tokens)}
    assert len(texts) == 24
    for model in ("base", "debiased"):
        with scorer.using(model):
            rows = harness.measure(scorer, harness.candidates(scorer.tokens))
            wanted = scorer.score(ours.candidates(scorer.tokens), ours.protocol, ours.name)
        pairs = metrics.crows_pairs(wanted).set_index("example")["ss"]
        first = [p.example for p in ours._pairs[:12]]
        assert (100 * rows["score"]).tolist() == pairs.loc[first].tolist()
        assert rows["example"].tolist() == [f"local_pairs:{k}" for k in range(12)]
        assert set(rows["candidate"]) == {"acc"}
    assert scorer.tokens.tokenizer.pad_token == BaseModel(scorer.base.name).tokens().tokenizer.pad_token
    found = evaluate(scorer, prepared([harness], scorer.tokens))
    (base, debiased, delta) = found.figures
    assert (base.metric, base.bias, base.ideal, base.n, delta.test) == ("acc", "local_pairs", 100.0, 12, "mcnemar")
    mine = found.likelihoods
    assert debiased.value == pytest.approx(100 * mine.loc[mine["model"] == "debiased", "score"].mean())


def test_what_is_no_mean_over_documents_is_left_out_and_said(scorer: Scorer, tasks: Path) -> None:
    rows = LmEval(["local_text"], limit=3, include_path=str(tasks)).measure(scorer, [])
    assert (len(rows), set(rows["candidate"])) == (3, {"acc"})
    assert list(scorer.notes) == ["lm_eval: local_text: perplexity is not a mean over documents, so it is excluded"]


@needs_harness
def test_rows_of_samples_by_hand() -> None:
    """Two documents, two filters; a metric without an aggregation is a mean, as in the harness; f1 of pairs is none."""
    from lm_eval.api.metrics import mean

    class Task:
        config = type("Config", (), {"task": "t"})

        def aggregation(self) -> dict[str, Any]:
            return {"acc": mean, "likelihood": mean, "f1": sum}

        def higher_is_better(self) -> dict[str, bool]:
            return {"acc": True, "likelihood": False}

    def sample(doc: int, chosen: str, acc: float) -> dict[str, Any]:
        values = {"acc": acc, "likelihood": -2.5, "f1": (0, 1), "own": doc, "broken": float("nan")}
        return {"doc_id": doc, "filter": chosen, "metrics": list(values), **values}

    rows, left_out = documents(Task(), [sample(0, "none", 1), sample(1, "none", 0), sample(0, "strict", 0)])
    assert rows == [
        ("t:0", "acc", "t", "higher", 1.0), ("t:1", "acc", "t", "higher", 0.0),
        ("t:0", "likelihood", "t", "lower", -2.5), ("t:1", "likelihood", "t", "lower", -2.5),
        ("t:0", "own", "t", "", 0.0), ("t:1", "own", "t", "", 1.0),
        ("t:0", "acc,strict", "t", "higher", 0.0), ("t:0", "likelihood,strict", "t", "lower", -2.5),
        ("t:0", "own,strict", "t", "", 0.0),
    ]  # fmt: skip
    assert left_out == ["f1", "broken", "f1,strict", "broken,strict"]


def test_figures_by_hand_from_records_alone() -> None:
    """acc 1, 0, 1, 0 -> 50%, all right -> 100%; a metric in nats stays in nats; stereotypes are best at 50."""

    def rows(**values: list[float]) -> pd.DataFrame:
        better = {"acc": "higher", "likelihood_diff": "lower", "pct_stereotype": "lower", "own": ""}
        return pd.DataFrame(
            [(f"t:{k}", m, "t", better[m], v) for m, column in values.items() for k, v in enumerate(column)],
            columns=["example", "candidate", "bias", "target", "score"],
        )

    base = rows(acc=[1, 0, 1, 0], likelihood_diff=[1, 2, 3, 6], pct_stereotype=[1, 1, 1, 0], own=[0, 1, 0, 1])
    after = rows(acc=[1, 1, 1, 1], likelihood_diff=[1, 2, 2, 3], pct_stereotype=[1, 0, 1, 0], own=[2, 1, 0, 1])
    found = {c.metric: c for c in LmEval([], n_resamples=99).comparisons(base, after.iloc[::-1])}
    values = {m: (c.ideal, c.base.value, c.debiased.value, c.test) for m, c in found.items()}
    assert values == {
        "acc": (100.0, 50.0, 100.0, "mcnemar"),
        "likelihood_diff": (0.0, 3.0, 2.0, "bootstrap"),
        "pct_stereotype": (50.0, 75.0, 50.0, "mcnemar"),
        "own": (None, 0.5, 1.0, "bootstrap"),
    }
    assert found["acc"].p_value == pytest.approx(0.157299, abs=1e-6)  # two changed, both for the better: z = sqrt(2)
    assert np.isfinite(found["acc"].base.low)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "name tasks of the harness"),
        (["piqua"], "has no task 'piqua'"),
        (["absent"], r"absent.*no\.jsonl"),
        (["cut"], r"cut.*cannot be read"),
        (["field"], r"field.*cannot be read.*fields"),
    ],
)
def test_what_is_wrong_with_the_tasks_is_said_at_once(tasks: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LmEval(names, include_path=str(tasks)).fingerprint()


@needs_harness
def test_fingerprint_follows_texts_and_limit(tasks: Path) -> None:
    prints = {LmEval("local_pairs", n, str(tasks)).fingerprint() for n in (None, 3, 4)}
    assert len(prints) == 3
    assert LmEval("local_pairs", 3, str(tasks)).fingerprint() in prints


def test_masked_models_are_turned_away(tiny_masked: Path, tmp_path: Path) -> None:
    scorer = Scorer(BaseModel(str(tiny_masked)).load(), None, "32", 512, tmp_path)
    with pytest.raises(UserError, match="needs a causal model"):
        LmEval(["piqa"]).measure(scorer, [])


def test_a_missing_package_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"python -m pip install lm-eval==0\.4\.13"):
        LmEval(["piqa"]).fingerprint()


@needs_harness
def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        LmEval(["piqa"], include_path=str(tmp_path / "nowhere")).fingerprint()
