"""The bias card as the model hub reads it, merging into full weights, and uploading without a hub."""

from __future__ import annotations

import email.message
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import huggingface_hub
import peft
import pytest
import torch
from adapter_table import base_of, config_of, logits, trained
from huggingface_hub.errors import OfflineModeIsEnabled
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from debias import __version__
from debias.assets import sha256_of
from debias.cli import main
from debias.jobs import export, export_plan, merging
from debias.models import adapter_folder
from debias.models.base import LOADERS, Base
from debias.models.composition import combined, shares
from debias.models.targets import PREDICTION_HEAD
from debias.records import Figure, UserError
from debias.report.one_run import bias_card

FIGURES = [
    Figure("stereoset", "bias_bench", "gender", "SS", "base", 64.1, 60.4, 67.7, 771, 50.0),
    Figure("stereoset", "bias_bench", "gender", "SS", "debiased", 49.54321, 45.1, 53.9, 771, 50.0),
    Figure("stereoset", "bias_bench", "gender", "SS", "delta", -14.6, -19.0, -9.9, 771, None, 0.001),
    Figure("perplexity", "causal", "all", "perplexity", "base", 48.6, 44.0, 53.6, 150, None),
    Figure("perplexity", "causal", "all", "perplexity", "debiased", 58.4, 53.0, 64.0, 150, None),
]


def test_the_card_names_the_data_by_the_hubs_ids_and_a_local_base_not_at_all() -> None:
    """Our own corpora are not on the hub and go by their names; a folder is nobody's base there."""
    card = bias_card.metadata(
        FIGURES, "/models/mine", "gender", "lora", "causal", ["panda", "stereoset", "ours", "my.jsonl"]
    )
    assert card.datasets == ["facebook/panda", "McGill-NLP/stereoset", "ours"]
    assert (card.base_model, card.base_model_relation) == (None, None)


def test_the_card_links_to_this_project_if_it_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    told = email.message.Message()
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: told)
    assert bias_card.project() == f"debias {__version__}"
    told["Project-URL"] = "Homepage, https://example.org/debias"
    assert bias_card.project() == f"[debias {__version__}](https://example.org/debias)"


def test_the_head_of_the_card_is_what_the_hub_reads() -> None:
    head = bias_card.metadata(FIGURES, "owner/model", "gender", "lora", "causal").to_yaml()
    read = huggingface_hub.ModelCard(f"---\n{head}\n---\n").data
    assert (read.base_model, read.library_name, read.pipeline_tag) == ("owner/model", "peft", "text-generation")
    assert read.tags == ["debiasing", "bias", "lora"]
    assert read.base_model_relation == "adapter"
    assert read.datasets is None
    by_name = {(r.dataset_type, r.metric_type): r for r in read.eval_results}
    assert set(by_name) == {("stereoset", "SS"), ("perplexity", "perplexity")}
    result = by_name["stereoset", "SS"]
    assert (result.dataset_name, result.metric_value) == ("StereoSet", 49.5432)
    assert result.metric_name == "SS, gender (95% interval 45.1 to 53.9, n = 771)"
    assert result.metric_args == {
        "bias": "gender", "protocol": "bias_bench", "n": 771, "base": 64.1, "ci_low": 45.1, "ci_high": 53.9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("base", "known"),
    [("HuggingFaceTB/SmolLM2-135M-Instruct", True), ("gpt2", True), ("bert-tiny", False), ("/models/mine", False)],
)
def test_only_names_of_the_hub_are_linked_as_base(base: str, known: bool) -> None:
    assert bias_card.on_hub(base) is known
    assert (bias_card.metadata([], base, "gender", "lora", "causal").base_model is not None) is known


def saved(tmp_path: Path, name: str, column: str = "GPT-2", **keys: Any) -> tuple[Path, list[torch.Tensor]]:
    """A trained adapter in a folder, and the logits it gives."""
    base = base_of(column)
    model = trained(base, config_of(name, **keys), tmp_path)
    head = bias_card.metadata(FIGURES, base.name, "gender", name, base.kind).to_yaml()
    (tmp_path / "adapter/README.md").write_text(
        f"---\n{head}\n---\n# Debiasing adapter for X\n\n```python\nfrom peft import PeftModel\n```\n\nSome text.\n"
    )
    return tmp_path / "adapter", logits(model, base.kind)


@pytest.mark.parametrize(
    ("name", "column"),
    [("lora", "GPT-2"), ("ia3", "GPT-2"), ("full", "GPT-2"), ("ln_tuning", "BERT"), ("dora", "BERT")],
)
def test_merged_weights_answer_as_the_adapter_does(tmp_path: Path, name: str, column: str) -> None:
    folder, expected = saved(tmp_path, name, column)
    plan = export_plan.planned(str(folder), merge=True, folder=None, repo=None)
    merging.merge(plan, base_of(column))
    auto = AutoModelForCausalLM if column == "GPT-2" else AutoModelForMaskedLM
    alone = auto.from_pretrained(tmp_path / "adapter-merged").eval()
    assert not hasattr(alone, "peft_config")
    for a, b in zip(expected, logits(alone, base_of(column).kind), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    merged_card = huggingface_hub.ModelCard.load(tmp_path / "adapter-merged/README.md")
    assert merged_card.data.library_name == "transformers"
    assert "PeftModel" not in merged_card.text
    with pytest.raises(UserError, match=r"exists already; choose another folder=\.\.\., or set overwrite=true"):
        export_plan.planned(str(folder), merge=True, folder=None, repo=None)


@pytest.mark.parametrize(
    ("combine", "weights"), [("average", None), ("average", [3.0, 1.0]), ("sum", [0.5, 2.0]), ("stack", None)]
)
def test_several_adapters_are_merged_as_one(tmp_path: Path, combine: str, weights: list[float] | None) -> None:
    """The merged model answers as `debias evaluate` makes the combination answer; no card tells of one of them."""
    folders = []
    for rank in (2, 4):
        (tmp_path / f"r{rank}").mkdir()
        folders.append(str(saved(tmp_path / f"r{rank}", "lora", r=rank)[0]))
    target = tmp_path / "merged"
    plan = export_plan.planned(folders, True, str(target), None, combine=combine, weights=weights)
    merging.merge(plan, base_of("GPT-2"))
    expected = logits(combined(base_of("GPT-2"), folders, combine, weights), "causal")
    for a, b in zip(expected, logits(AutoModelForCausalLM.from_pretrained(target).eval(), "causal"), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert not (target / "README.md").exists()
    assert export_plan.steps(plan)[0].startswith(
        f"merge the {combine} of {folders[0]} and {folders[1]} into the weights"
    )


def test_several_adapters_need_a_way_and_a_place(tmp_path: Path) -> None:
    folders = []
    for name in "ab":
        (tmp_path / name).mkdir()
        folders.append(str(saved(tmp_path / name, "lora")[0]))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "several adapters are exported as one: set adapter.combine=average"),
        ({"combine": "average"}, "needs a place for what it makes; set folder=NAME"),
        ({"weights": [1.0, 1.0]}, "several adapters are exported as one"),
        ({"combine": "stack", "weights": [1.0, 1.0]}, "weights belong to an average or a sum"),
    ]
    for how, message in wrong:
        with pytest.raises(UserError, match=message):
            export_plan.planned(folders, True, None, None, **how)
    for merge in (True, False):
        with pytest.raises(UserError, match="holds the adapter itself"):
            export_plan.planned(folders, merge, folders[1], None, combine="average")


@pytest.mark.parametrize(
    ("combine", "weights", "column", "one", "other"),
    [
        ("average", None, "GPT-2", {"r": 2}, {"r": 4, "lora_alpha": 3}),
        ("average", [3.0, 1.0], "GPT-2", {"use_rslora": True}, {}),
        ("sum", [0.5, 2.0], "GPT-2", {}, {"use_rslora": True, "r": 4}),
        ("sum", [0.0, 1.5], "Llama", {"target_modules": ["q_proj"]}, {"target_modules": ["v_proj", "q_proj"]}),
        ("stack", None, "GPT-2", {"rank_pattern": {"c_attn": 12}, "alpha_pattern": {"c_proj": 5}}, {"r": 2}),
        ("sum", [1.0, 1.0], "Llama", {"target_modules": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}),
    ],
    ids=["ranks", "rslora first", "rslora second", "other modules", "patterns", "embeddings"],
)
def test_several_adapters_are_written_as_one(
    tmp_path: Path, combine: str, weights: list[float] | None, column: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """The folder answers as the combination does, its rank is the sum, and the base is left as it was."""
    folders = []
    for name, keys in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        folders.append(str(saved(tmp_path / name, "lora", column, **keys)[0]))
    plan = export_plan.planned(folders, False, str(tmp_path / "both"), None, combine=combine, weights=weights)
    assert export_plan.steps(plan) == [
        f"write the {combine} of {folders[0]} and {folders[1]} to {plan.folder} as one adapter"
    ]
    base = base_of(column)
    assert merging.join(plan, base) < 1e-4
    expected = logits(combined(base_of(column), folders, combine, weights), "causal")
    found = adapter_folder.load(base, tmp_path / "both")
    for a, b in zip(expected, logits(found, "causal"), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    ranks = [peft.PeftConfig.from_pretrained(folder) for folder in folders]
    largest = sum(max(config.r, *config.rank_pattern.values(), 0) for config in ranks)
    assert peft.PeftConfig.from_pretrained(str(plan.folder)).r == largest
    known = json.loads((plan.folder / "debias.json").read_text())
    alone = [json.loads((Path(folder) / "debias.json").read_text()) for folder in folders]
    assert known["base_parameters"] == alone[0]["base_parameters"]
    assert known["reached_parameters"] == max(one["reached_parameters"] for one in alone)
    assert known["trainable_parameters"] == sum(p.numel() for p in load_file(plan.folder / WEIGHTS).values())
    weights_given = None if weights is None else list(weights)
    assert known["made"] == {
        "combine": combine, "weights": weights_given, "chosen_on": None, "parts": [None, None],
    }  # fmt: skip
    card = (plan.folder / "README.md").read_text()
    assert "Trained on: unknown. Saw sentences of StereoSet or CrowS-Pairs: unknown." in card
    for share, folder in zip(shares(2, combine, weights), folders, strict=True):
        assert f"- {share:.3g} x {Path(folder).parent.name}/adapter, SHA-256" in card
        assert sha256_of(Path(folder) / WEIGHTS) in card
    again = export_plan.planned(
        folders, False, str(plan.folder), None, overwrite=True, combine=combine, weights=weights
    )
    merging.join(again, base_of(column))  # replaces what it wrote itself


def test_beside_a_base_in_bf16_no_number_of_an_adapter_is_rounded(tmp_path: Path) -> None:
    """The factors of one adapter are those of its parts one after the other, times weight and scaling."""
    folders = []
    for name in "ab":
        (tmp_path / name).mkdir()
        folders.append(str(saved(tmp_path / name, "lora")[0]))
    plan = export_plan.planned(folders, False, str(tmp_path / "both"), None, combine="sum", weights=[0.3, 0.7])
    base = base_of("GPT-2")
    base.model.to(torch.bfloat16)
    merging.join(plan, base)
    parts, joined = [load_file(Path(folder) / WEIGHTS) for folder in folders], load_file(plan.folder / WEIGHTS)
    config = peft.LoraConfig.from_pretrained(folders[0])
    scaling = config.lora_alpha / config.r
    for key, tensor in joined.items():
        if "lora_A" in key:
            expected = torch.cat([part[key] * weight * scaling for part, weight in zip(parts, (0.3, 0.7), strict=True)])
        else:
            expected = torch.cat([part[key] for part in parts], dim=1)
        assert torch.equal(tensor, expected), key


def test_an_option_that_is_not_carried_over_is_noticed(tmp_path: Path) -> None:
    """PEFT gives the joined adapter the first one's layers; the second one's other layer would be lost in silence."""
    folders = []
    for name, layer in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        folders.append(
            str(saved(tmp_path / name, "lora", "Llama", layers_to_transform=[layer], target_modules=["q_proj"])[0])
        )
    plan = export_plan.planned(folders, False, str(tmp_path / "both"), None, combine="stack")
    with pytest.raises(UserError, match=r"they would answer otherwise .* set merge=true"):
        merging.join(plan, base_of("Llama"))
    assert not plan.folder.exists()


@pytest.mark.parametrize(
    ("name", "column", "keys", "message"),
    [
        ("bottleneck", "GPT-2", {}, "several BOTTLENECK adapters cannot be one adapter folder; set merge=true"),
        ("lora", "GPT-2", {"lora_bias": True}, "several LoRA adapters with lora_bias cannot be one adapter folder"),
        (
            "lora",
            "BERT",
            {"modules_to_save": [PREDICTION_HEAD]},
            "LoRA adapters with modules_to_save cannot be one adapter folder",
        ),
    ],
)
def test_other_methods_are_not_written_as_one(
    tmp_path: Path, name: str, column: str, keys: dict[str, Any], message: str
) -> None:
    folders = []
    for sub in "ab":
        (tmp_path / sub).mkdir()
        folders.append(str(saved(tmp_path / sub, name, column, **keys)[0]))
    with pytest.raises(UserError, match=message):
        export_plan.planned(folders, False, str(tmp_path / "both"), None, combine="average")


@pytest.mark.parametrize(("name", "reason"), [("bottleneck", "is not linear"), ("prompt", "does not change weights")])
def test_what_cannot_be_merged_is_told_in_one_line(tmp_path: Path, name: str, reason: str) -> None:
    folder, _ = saved(tmp_path, name)
    plan = export_plan.planned(str(folder), merge=True, folder=None, repo=None)
    with pytest.raises(UserError, match=f"cannot be merged .*{reason}.*; leave merge=true out"):
        merging.merge(plan, base_of("GPT-2"))
    assert not list(tmp_path.glob("*merged*"))


EMBEDDINGS = {"GPT-2": ("wte", "lm_head"), "BERT": ("word_embeddings", "decoder")}  # of one weight in the base
TIED: dict[str, tuple[str, Callable[[str, str], dict[str, Any]]]] = {
    "neither": ("lora", lambda words, head: {}),
    "head": ("lora", lambda words, head: {"target_modules": [head]}),
    "words": ("lora", lambda words, head: {"target_modules": [words]}),
    "both": ("lora", lambda words, head: {"target_modules": [words, head]}),
    "trained head": ("lora", lambda words, head: {"modules_to_save": [head]}),
    "trained words": ("lora", lambda words, head: {"modules_to_save": [words]}),
    "dora": ("dora", lambda words, head: {"target_modules": [words, head]}),
    "rslora": ("lora", lambda words, head: {"target_modules": [head], "use_rslora": True}),
    "ia3": ("ia3", lambda words, head: {"target_modules": [head], "feedforward_modules": []}),
    "copies": ("ln_tuning", lambda words, head: {"target_modules": [words]}),
    "full": ("full", lambda words, head: {}),
}


@pytest.mark.parametrize("column", EMBEDDINGS)
@pytest.mark.parametrize("case", TIED)
def test_tied_weights_are_untied_where_merging_changes_one_of_them(tmp_path: Path, case: str, column: str) -> None:
    """PEFT merges into the shared tensor: what the adapter does to one module would happen to both."""
    name, keys = TIED[case]
    folder, expected = saved(tmp_path, name, column, **keys(*EMBEDDINGS[column]))
    difference = merging.merge(export_plan.planned(str(folder), merge=True, folder=None, repo=None), base_of(column))
    assert difference < 1e-4
    alone = LOADERS[base_of(column).kind].from_pretrained(tmp_path / "adapter-merged").eval()
    for a, b in zip(expected, logits(alone, base_of(column).kind), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    words, output = (f().weight for f in (alone.get_input_embeddings, alone.get_output_embeddings))
    # BERT's head has a bias that it shares with its output layer; `full` trains the output layer's alone.
    assert (words is output) is (case == "neither" or (case, column) == ("full", "GPT-2"))


def test_trained_embeddings_of_single_tokens_are_merged(tmp_path: Path) -> None:
    folder, expected = saved(tmp_path, "lora", trainable_token_indices=[5, 7])
    merging.merge(export_plan.planned(str(folder), merge=True, folder=None, repo=None), base_of("GPT-2"))
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter-merged").eval()
    for a, b in zip(expected, logits(alone, "causal"), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_merged_model_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied again by force, as it was once, the output layer loses what the adapter did to it."""
    folder, _ = saved(tmp_path, "lora", target_modules=["lm_head"])
    monkeypatch.setattr(merging.Ties, "restore", lambda ties, model: model.set_output_embeddings(ties_of(model)))
    with pytest.raises(UserError, match=r"LORA cannot be merged \(its log-probabilities differ from .* by \d.* nats\)"):
        merging.merge(export_plan.planned(str(folder), merge=True, folder=None, repo=None), base_of("GPT-2"))
    assert not list(tmp_path.glob("*merged*"))


def ties_of(model: Any) -> Any:
    """An output layer with the word embeddings as weight, and a config that says so."""
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    return model.lm_head


def test_a_base_in_bf16_keeps_its_type(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "lora")
    (folder / adapter_folder.PROVENANCE).unlink()  # it names the float32 weights
    base = base_of("GPT-2")
    base.model.to(torch.bfloat16)
    difference = merging.merge(export_plan.planned(str(folder), merge=True, folder=None, repo=None), base)
    assert 1e-5 < difference < merging.TOLERANCES[torch.bfloat16]
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter-merged", dtype="auto")
    assert {parameter.dtype for parameter in alone.parameters()} == {torch.bfloat16}


class Given:
    """A base that is loaded already."""

    def load(self) -> Base:
        return base_of("GPT-2")


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "uploaded"])
def test_what_evaluate_refuses_is_not_exported(tmp_path: Path, merge: bool) -> None:
    """An adapter that would do nothing is neither merged nor uploaded, and no hub is asked."""
    folder, _ = saved(tmp_path, "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 0}))
    plan = export_plan.planned(str(folder), merge, folder=None, repo="me/mine")
    with pytest.raises(UserError, match="changes nothing"):
        export.carry_out(plan, Given())  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*merged*"))


class Hub:
    """Writes down what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.asked.append((repo_id, options))

    def upload_folder(self, **options: Any) -> None:
        self.asked.append((options.pop("repo_id"), options))


def test_uploading_asks_the_hub_for_a_repo_and_sends_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = saved(tmp_path, "lora")
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    plan = export_plan.planned(str(folder), merge=False, folder=None, repo="me/mine")
    assert export.carry_out(plan, Given()) == ["uploaded: https://huggingface.co/me/mine"]  # type: ignore[arg-type]
    assert hub.asked[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert hub.asked[1][1]["folder_path"] == folder


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            httpx2.HTTPError("403 Forbidden"),
            r"the model hub refused me/mine \(403 Forbidden\); set HF_TOKEN to a token",
        ),
        (httpx2.ConnectError("no route"), r"the model hub cannot be reached \(no route\); run the same command again"),
        (OfflineModeIsEnabled("offline"), "me/mine cannot be uploaded while HF_HUB_OFFLINE is set; unset it"),
    ],
)
def test_the_hub_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    """A token helps where the hub refuses, and nowhere else."""
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", Mock(side_effect=error))
    with pytest.raises(UserError, match=said):
        export.upload(tmp_path, "me/mine", private=True)


def test_dry_run_says_what_would_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = saved(tmp_path, "lora")
    monkeypatch.chdir(tmp_path)
    words = [f"adapter.path={folder}", "repo=me/mine", "private=false", "dry_run=true"]
    monkeypatch.setattr(sys, "argv", ["debias", "export", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "would create the public model repo me/mine unless it exists"
    assert shown[1].startswith(f"would upload {folder} (README.md, adapter_config.json, adapter_model.safetensors, deb")
    assert json.loads((folder / adapter_folder.PROVENANCE).read_text())["base_parameters"] == sum(
        p.numel() for p in base_of("GPT-2").model.parameters()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"merge": False, "repo": None}, "say what to do with the adapter"),
        ({"merge": False, "repo": "a/b/c"}, "write OWNER/NAME"),
    ],
)
def test_bad_plans(tmp_path: Path, words: dict[str, Any], message: str) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        export_plan.planned(str(tmp_path), folder=None, **words)
