"""Evaluation as a whole: masked models, several adapters, what cannot be scored, and figures from records alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import peft
import pytest
import torch
from command import run, succeed
from rich.console import Console
from test_run import folder_of

from debias.benchmarks.crows_pairs import CrowsPairs
from debias.benchmarks.evaluation import evaluate, figures_of, prepared, scores_of, work_of
from debias.benchmarks.perplexity import Perplexity
from debias.benchmarks.stereoset import StereoSet
from debias.cli.build import benchmarks_of
from debias.jobs.archive import archive
from debias.jobs.evaluate import adapter_names
from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import Base, BaseModel
from debias.records import Candidate, UserError
from debias.report.many_runs.report import report
from debias.results import LIKELIHOODS, read_figures
from debias.scoring.protocols import BiasBench, Conditional, Unmasked
from debias.scoring.scorer import Scorer


def scorer_of(base: Base, cache: Path, adapted: object = None, name: str = "debiased") -> Scorer:
    return Scorer(base, adapted, "32", 512, cache, name)


def save_adapter(base: Base, folder: Path, seed: int) -> None:
    """A LoRA adapter that changes something."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = adapters.attach(base, config)
    adapter_folder.save(adapted, base, folder)
    adapters.detach(adapted)


def test_a_masked_model_is_evaluated(tiny_masked: Path, tmp_path: Path) -> None:
    scorer = scorer_of(BaseModel(str(tiny_masked)).load(), tmp_path)
    benchmarks = [
        StereoSet(BiasBench(), limit=4),
        CrowsPairs(BiasBench(), limit=30),
        Perplexity(Conditional(), limit=2),
    ]
    result = evaluate(scorer, prepared(benchmarks, scorer.tokens))
    assert set(result.likelihoods.columns) == set(LIKELIHOODS)
    assert set(result.likelihoods["benchmark"]) == {"stereoset", "crows_pairs", "perplexity"}
    (note,) = result.notes
    assert note.startswith("crows_pairs (bias_bench): ")
    assert note.endswith(" examples cannot be scored and is left out")
    missing = result.likelihoods.query("benchmark == 'crows_pairs' and score != score")["example"].nunique()
    assert missing == int(note.split()[2])
    overall = next(f for f in result.figures if f.benchmark == "crows_pairs" and f.bias == "overall")
    assert overall.n == 9 * 30 - missing


def test_base_is_as_before_when_an_adapter_is_taken_off(tiny: Path, tmp_path: Path) -> None:
    base = BaseModel(str(tiny)).load()
    benchmarks = prepared([StereoSet(BiasBench(), limit=2)], base.tokens)
    before = scores_of(scorer_of(base, tmp_path / "1"), benchmarks, "base")
    save_adapter(base, tmp_path / "a", 1)
    after = scores_of(scorer_of(base, tmp_path / "2"), benchmarks, "base")
    pd.testing.assert_frame_equal(before, after)


def test_several_adapters_give_what_each_gives_alone(tiny: Path, small: list[str], tmp_path: Path) -> None:
    base = BaseModel(str(tiny)).load()
    for seed, name in enumerate("ab"):
        save_adapter(base, tmp_path / name, seed)
    words = [w for w in small if w.startswith(("model", "eval", "threads"))]
    succeed(tmp_path, "evaluate", *words, f"adapter.path=[{tmp_path / 'a'},{tmp_path / 'b'}]", "name=both")
    both = read_figures(folder_of(tmp_path / "outputs/both"))
    assert {f.model for f in both} == {"base", "debiased:a", "delta:a", "debiased:b", "delta:b"}
    # The second one is the one that the first might have left traces in.
    succeed(tmp_path, "evaluate", *words, f"adapter.path={tmp_path / 'b'}", "name=alone")
    alone = {f[:5]: f for f in read_figures(folder_of(tmp_path / "outputs/alone"))}
    of_b = [figure for figure in both if figure.model.endswith(":b")]
    assert of_b
    for figure in of_b:
        expected = alone[*figure[:4], figure.model.partition(":")[0]]
        assert figure[5:8] == pytest.approx(expected[5:8], rel=1e-15, nan_ok=True)


def test_a_missing_adapter_is_found_before_anything_is_scored(tiny: Path, small: list[str], tmp_path: Path) -> None:
    save_adapter(BaseModel(str(tiny)).load(), tmp_path / "a", 1)
    words = [w for w in small if w.startswith(("model", "eval", "threads"))]
    answer = run(tmp_path, "evaluate", *words, f"adapter.path=[{tmp_path / 'a'},nowhere]", "name=x")
    assert answer.status == 1
    assert "nowhere is not an adapter folder" in answer.err
    assert "stereoset" not in answer.err


def test_names_of_adapters() -> None:
    assert adapter_names([]) == {}
    assert adapter_names(["x/adapter"]) == {"debiased": "x/adapter"}
    assert list(adapter_names(["x/adapter", "y/x", "z"])) == ["debiased:x", "debiased:x (2)", "debiased:z"]


def test_texts_beyond_the_context_are_counted(tiny_masked: Path, tmp_path: Path) -> None:
    """512 positions: `a` 510 times fits with its special tokens, 511 times does not."""
    scorer = scorer_of(BaseModel(str(tiny_masked)).load(), tmp_path)
    texts = [Candidate(str(n), "x", "b", "t", "a " * n) for n in (3, 511)]
    protocol = Unmasked()
    rows = scorer.score(texts, protocol, "long")
    assert rows["score"].isna().tolist() == [False, True]
    assert list(scorer.notes) == [
        "long (aul): 1 of 2 examples cannot be scored and is left out, 1 of them longer than the model's 512 tokens"
    ]
    with pytest.raises(
        UserError, match=r"none of 1 example can be scored, 1 of them longer than .* 512 tokens; choose"
    ):
        scorer.score(texts[1:], protocol, "long")


def test_roberta_counts_positions_from_behind_its_padding() -> None:
    import transformers as hf

    config = hf.RobertaConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.max_position_embeddings = 20
    assert Base(hf.RobertaForMaskedLM(config), None, "", "", "masked").max_positions == 18


def test_every_protocol_that_fits_is_in_one_table(tiny: Path, tmp_path: Path) -> None:
    shown = succeed(
        tmp_path, "evaluate", f"model={tiny}", "eval=[crows_pairs]", "eval.protocols=all", "threads=1",
        "eval.crows_pairs.limit=3", "eval.crows_pairs.whole=[]",
    ).out  # fmt: skip
    for protocol in ("bias_bench", "conditional", "conditional_sum", "conditional_ties_0.5", "no_start"):
        assert f"CrowS-Pairs ({protocol})" in shown
    assert "aul" not in shown  # for masked models
    assert "How much depends on the protocol" in shown
    assert "all are the same" in succeed(tmp_path, "report", "outputs", "--recompute").out


def test_figures_need_records_alone_and_a_false_one_is_found(tiny: Path, small: list[str], tmp_path: Path) -> None:
    words = [w for w in small if w.startswith(("model", "eval", "threads"))]
    succeed(tmp_path, "evaluate", *words, "name=x")
    folder = folder_of(tmp_path)
    assert list(pd.read_parquet(folder / "likelihoods.parquet").columns) == LIKELIHOODS
    console = Console(record=True, width=200)
    report([folder], console, benchmarks_of, recompute=True)
    archive([folder], tmp_path / "x.parquet", records=True)
    report([tmp_path / "x.parquet"], console, benchmarks_of, recompute=True)
    count = len(read_figures(folder))
    proof = f"recomputed {count} figures of 1 run from records alone: all are the same"
    assert console.export_text().count(proof) == 2  # from the folder, and from the archive

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps({**row, "value": row["value"] + 0.1})
    shutil.copytree(folder, tmp_path / "forged/run")
    (tmp_path / "forged/run/metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(
        UserError, match=r"metrics.jsonl: stereoset bias_bench overall SS base is .*, but its records give"
    ):
        report([tmp_path / "forged"], console, benchmarks_of, recompute=True)


def test_missing_records_are_an_error(tmp_path: Path) -> None:
    frame = pd.DataFrame(columns=LIKELIHOODS)
    with pytest.raises(UserError, match=r"likelihoods.parquet has no scores for stereoset"):
        figures_of([StereoSet(BiasBench())], frame)


def test_what_the_texts_of_an_example_share_is_read_once() -> None:
    """Two texts share the 13 characters of `The nurse is `."""
    two = [
        Candidate("1", str(i), "gender", "", text) for i, text in enumerate(["The nurse is kind", "The nurse is rude"])
    ]
    assert work_of(two) == 13 + 4 + 4
    assert work_of([two[0], two[1]._replace(example="2")]) == 2 * 17
