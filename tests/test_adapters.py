"""Every adapter on every architecture, our bottleneck, the prediction head, full fine-tuning and AdaLoRA's ranks."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from adapter_table import (
    BEGIN,
    DOCUMENT,
    END,
    ROWS,
    SIZE,
    SPANS,
    base_of,
    cell,
    config_of,
    documented,
    fitted,
    logits,
    table,
    trained,
)  # fmt: skip
from test_config import composed

from debias.cli.build import make_adapter
from debias.models import adapter as adapters
from debias.models import adapter_dtype, adapter_folder, targets
from debias.models.base import Base
from debias.models.bottleneck import BottleneckConfig
from debias.models.checksums import adapter_sha256
from debias.records import Recipe, UserError, Watch
from debias.scoring import batched
from debias.scoring.layout_trial import choose_layout
from debias.training import module as training
from debias.training.batches import SpanData
from debias.training.fitting import fit
from debias.training.objectives import Attribute

TRAINER = partial(training.make_trainer, accelerator="cpu", logger=False)


ALWAYS = ("GPT-2", "BERT")  # a causal and a masked model


@pytest.mark.parametrize(
    ("row", "column"), [place for place, said in documented().items() if place[1] in ALWAYS or said != "works"]
)
def test_every_adapter_does_what_the_docs_say(row: str, column: str) -> None:
    assert cell(row, column) == documented()[row, column], (
        "docs/adapters.md is stale: run `python tests/adapter_table.py`"
    )


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_the_program_does() -> None:
    committed = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert committed.strip() == table().strip(), "docs/adapters.md is stale: run `python tests/adapter_table.py`"


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("column", "place", "pattern"),
    [
        ("GPT-2", "pfeiffer", r"transformer\.h\.\d+\.mlp\.c_proj"),
        ("GPT-2", "keys-values-feed-forward", r"transformer\.h\.\d+\.attn\.c_attn|transformer\.h\.\d+\.mlp\.c_proj"),
        ("Llama", "houlsby", r"model\.layers\.\d+\.self_attn\.o_proj|model\.layers\.\d+\.mlp\.down_proj"),
        ("GPT-2", "norms", r"transformer\.h\.\d+\.ln_1|transformer\.h\.\d+\.ln_2|transformer\.ln_f"),
        ("BERT", "pfeiffer", r"bert\.encoder\.layer\.\d+\.output\.dense"),
        ("RoBERTa", "prediction-head", r"lm_head\.dense|lm_head\.layer_norm"),
        ("DistilBERT", "pfeiffer", r"distilbert\.transformer\.layer\.\d+\.ffn\.lin2"),
    ],
)  # fmt: skip
def test_places_are_found_by_structure(column: str, place: str, pattern: str) -> None:
    config = BottleneckConfig(target_modules=place)
    targets.resolve(config, base_of(column).model)
    assert config.target_modules == pattern


def test_all_linear_leaves_the_prediction_head_alone() -> None:
    model = adapters.attach(base_of("BERT"), config_of("lora", r=2))
    assert not [name for name, p in model.named_parameters() if p.requires_grad and ".cls." in name]
    assert adapters.trainable_parameters(model) == 2 * 2 * (4 * (16 + 16) + 2 * (16 + 32))  # layers x r x (in + out)


def test_target_modules_are_overridable() -> None:
    model = adapters.attach(base_of("Llama"), config_of("bottleneck", target_modules=["q_proj"], reduction_factor=4))
    assert adapters.trainable_parameters(model) == 2 * (16 * 4 + 4 + 4 * 16 + 16)


@pytest.mark.parametrize(
    ("column", "config", "words"),
    [
        ("BERT", lambda: config_of("lora", target_modules=["q_proj"]),
         r"LoraConfig does not fit BertForMaskedLM .*q_proj.* not found.*name the modules with adapter\.target_mod"),
        ("BERT", lambda: config_of("bottleneck", target_modules=["word_embeddings"]), "Embedding is not a linear"),
        ("Mamba", lambda: config_of("prefix"), r"PrefixTuningConfig does not fit .*choose another method"),
        ("Mamba", lambda: config_of("full"), "cannot be trained as a whole.*choose another adapter, such"),
        ("GPT-2", lambda: with_head(config_of("lora")), r"adapter\.train_head=true works with masked models only"),
        ("BERT", lambda: with_head(config_of("prompt")), r"does not work with prompts; choose adapter=lora"),
    ],
)  # fmt: skip
def test_what_an_architecture_cannot_take_is_told_in_one_line(
    column: str, config: Callable[[], Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        adapters.attach(base_of(column), config())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_method_that_does_not_fit_a_rounded_base_is_refused_with_the_type_as_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if a layer of the base did not take what a trained copy in float32 gives."""
    monkeypatch.setattr(adapter_dtype, "_give", lambda *_: None)
    base = base_of("Llama")
    base.model.to(torch.bfloat16)
    with pytest.raises(
        UserError, match=r"does not fit LlamaForCausalLM \(.*\); set model\.dtype=float32, name the mod"
    ):
        adapters.attach(base, config_of("ln_tuning"))


def test_an_adapter_that_the_model_ignores_is_refused() -> None:
    """ALBERT drops the prefix without a word."""
    config = hf.AlbertConfig(**SIZE, embedding_size=16)
    base = Base(hf.AlbertForMaskedLM(config).requires_grad_(False), None, "albert", "", "masked")
    with pytest.raises(UserError, match="the model ignores it"):
        adapters.attach(base, config_of("prefix"))


@pytest.mark.parametrize("name", ROWS)
def test_every_choice_builds_a_config_that_can_be_saved(tmp_path: Path, name: str) -> None:
    """A list of Hydra's inside it would fail only when training is over."""
    words = [f"adapter={name}"] + ([] if name.startswith("pr") else ["adapter.target_modules=[query,value]"])
    config = make_adapter(composed("run", *words).adapter)
    config.save_pretrained(str(tmp_path))
    assert type(peft.PeftConfig.from_pretrained(str(tmp_path))) is type(config)
    assert vars(config)["modules_to_save"] is None
    assert make_adapter(composed("run", *words, "adapter.train_head=true").adapter).modules_to_save == [
        "prediction-head"
    ]


# ---------------------------------------------------------------- bottleneck


@pytest.mark.parametrize(("place", "number"), [("pfeiffer", 894_528), ("houlsby", 2 * 894_528)])
def test_bottlenecks_of_bert_base(place: str, number: int) -> None:
    """12 x (768 x 48 + 48 + 48 x 768 + 768) = 894,528, counted without a single weight in memory."""
    with torch.device("meta"):
        model = peft.get_peft_model(hf.BertForMaskedLM(hf.BertConfig()), BottleneckConfig(target_modules=place))
    assert 12 * (768 * 48 + 48 + 48 * 768 + 768) == 894_528
    assert adapters.trainable_parameters(model) == number


def test_a_fresh_bottleneck_changes_nothing() -> None:
    base = base_of("GPT-2")
    before = logits(base.model, "causal")
    assert all(map(torch.equal, before, logits(adapters.attach(base, config_of("bottleneck")), "causal")))


def test_several_bottlenecks_on_one_base(tmp_path: Path) -> None:
    """Each gives what it gives alone; both together add up what each adds; the second can be taken off again."""
    for name, seed in (("a", 1), ("b", 2)):
        save_bottleneck(base_of("BERT"), tmp_path / name, seed)
    alone = {n: logits(adapter_folder.load(base_of("BERT"), tmp_path / n), "masked") for n in "ab"}
    model = adapter_folder.load(base_of("BERT"), tmp_path / "a")
    model.load_adapter(str(tmp_path / "b"), "b")
    assert all(map(torch.equal, alone["a"], logits(model, "masked")))
    model.set_adapter("b")
    assert all(map(torch.equal, alone["b"], logits(model, "masked")))
    assert not torch.equal(alone["a"][0], alone["b"][0])
    model.delete_adapter("b")
    model.set_adapter("default")
    assert all(map(torch.equal, alone["a"], logits(model, "masked")))


def save_bottleneck(base: Base, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = adapters.attach(base, config_of("bottleneck", reduction_factor=4))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "up" in name:
            parameter.data.normal_(0, 0.3)
    adapter_folder.save(model, base, folder)


def test_a_bottleneck_cannot_be_merged() -> None:
    base = base_of("BERT")
    model = adapters.attach(base, config_of("bottleneck"))
    with pytest.raises(ValueError, match="a bottleneck is not linear"):
        model.merge_and_unload()


def test_plain_peft_loads_a_bottleneck_after_the_import(tmp_path: Path) -> None:
    base = base_of("GPT-2")
    save_bottleneck(base, tmp_path / "adapter", 1)
    adapters.detach(adapter_folder.load(base_of("GPT-2"), tmp_path / "adapter"))
    base_of("GPT-2").model.save_pretrained(tmp_path / "base")
    code = (
        "import sys, peft, transformers, debias.models.bottleneck\n"
        "base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "model = peft.PeftModel.from_pretrained(base, sys.argv[2])\n"
        "print(model.peft_type, sum('bottleneck_up' in name for name, _ in model.named_parameters()))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "adapter")]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert shown.split()[-2:] == ["BOTTLENECK", "4"]


# ---------------------------------------------------------------- the prediction head


def with_head(config: Any) -> Any:
    """As `adapter.train_head=true` does."""
    config.modules_to_save = [targets.PREDICTION_HEAD]
    return config


@pytest.mark.parametrize("name", ["lora", "bottleneck", "ia3"])
def test_the_head_is_trained_and_counted_when_asked(tmp_path: Path, name: str) -> None:
    """BERT's head: a linear layer of 16 x 16 + 16 and a layer norm of 16 + 16; the embeddings it shares stay frozen."""
    base = base_of("BERT")
    before = logits(base.model, "masked")
    without = adapters.trainable_parameters(adapters.attach(base_of("BERT"), config_of(name)))
    model = trained(base, with_head(config_of(name)), tmp_path)
    assert adapters.trainable_parameters(model) == without + (16 * 16 + 16) + (16 + 16)
    trained_head = model.get_base_model().cls.predictions.transform.dense.modules_to_save["default"].weight
    assert not torch.equal(trained_head, base_of("BERT").model.cls.predictions.transform.dense.weight)
    with model.disable_adapter():
        assert all(map(torch.equal, before, logits(model, "masked")))
    known = json.loads((tmp_path / "adapter" / adapter_folder.PROVENANCE).read_text())
    assert known["prediction_head"] == ["cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"]
    assert known["trainable_parameters"] == without + 304
    loaded = adapter_folder.load(base_of("BERT"), tmp_path / "adapter")
    assert batched.score(loaded, SPANS["masked"], choose_layout(loaded, "masked")) == pytest.approx(
        batched.score(model, SPANS["masked"], choose_layout(model, "masked")), abs=1e-5
    )


def test_the_checksum_covers_head_and_scaling() -> None:
    """Scores are cached by it: adapters that differ in anything must not share them."""

    def checksum(change: Callable[[Any], None], **keys: Any) -> str:
        torch.manual_seed(3)
        model = adapters.attach(base_of("BERT"), with_head(config_of("lora", **keys)))
        change(model.get_base_model().cls.predictions.transform.dense.modules_to_save["default"])
        return adapter_sha256(model)

    same = [checksum(lambda head: None) for _ in range(2)]
    assert same[0] == same[1]
    assert checksum(lambda head: head.weight.data.add_(1)) != same[0]
    assert checksum(lambda head: None, lora_alpha=17) != same[0]


# ---------------------------------------------------------------- beside a base in bfloat16


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("column", "name"),
    [*itertools.product(("GPT-2", "Llama", "BERT"), ("full", "ln_tuning")), ("BERT", "head"), ("Llama", "adalora")],
)
def test_small_updates_beside_a_rounded_base_are_kept_saved_and_scored(
    column: str, name: str, autocast: bool, tmp_path: Path
) -> None:
    """Every weight of the adapter grows by a thousandth, which bfloat16 would round away; the model stays in it."""
    base = base_of(column)
    base.model.to(torch.bfloat16)
    model = adapters.attach(base, with_head(config_of("lora")) if name == "head" else config_of(name))
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            parameter.data *= 1.001
    adapter_folder.save(model, base, tmp_path / "adapter")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = logits(model, base.kind)
    assert {tensor.dtype for tensor in expected} == {torch.bfloat16}
    kept = weights_of(model)
    adapters.detach(model)
    loaded = adapter_folder.load(base, tmp_path / "adapter", effect=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert all(map(torch.equal, expected, logits(loaded, base.kind)))
    back = weights_of(loaded)
    assert kept.keys() == back.keys()
    assert all(torch.equal(kept[n], back[n]) for n in kept)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the adapter's weights; one that several modules share has several names."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: parameter.detach().clone() for name, parameter in named if "default" in name.split(".")}


# ---------------------------------------------------------------- full fine-tuning


def test_full_trains_every_weight_once_and_shared_ones_stay_shared(tmp_path: Path) -> None:
    base = base_of("GPT-2")
    whole = sum(p.numel() for p in base.model.parameters())
    model = trained(base, config_of("full"), tmp_path)
    assert adapters.trainable_parameters(model) == whole
    copies = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    embeddings, output = (next(p for n, p in copies.items() if part in n) for part in ("wte", "lm_head"))
    assert embeddings is output
    original = dict(base_of("GPT-2").model.named_parameters())["transformer.wte.weight"]
    assert not torch.equal(embeddings, original)
    tuned = logits(model, "causal")
    assert all(map(torch.equal, tuned, logits(model.merge_and_unload(), "causal")))


# ---------------------------------------------------------------- AdaLoRA


def adalora(folder: Path, **keys: Any) -> Any:
    folder.mkdir(exist_ok=True)
    return fitted(base_of("GPT-2"), config_of("adalora", init_r=4, target_r=2, **keys), folder, epochs=4)[0]


def test_adalora_ends_with_the_ranks_it_was_promised(tmp_path: Path) -> None:
    """Eight layers of rank 4 share 8 x 2 ranks at the end."""
    ranks = adalora(tmp_path).active_peft_config.rank_pattern
    assert (len(ranks), sum(map(sum, ranks.values()))) == (8, 16)


def test_adalora_resumes_with_what_it_knew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = adalora(tmp_path / "whole")
    step = training.Debiaser.training_step

    def dies(self: Any, batch: Any) -> torch.Tensor:
        if self.trainer.global_step == 5:
            raise RuntimeError("power cut")
        return step(self, batch)

    monkeypatch.setattr(training.Debiaser, "training_step", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        adalora(tmp_path / "cut")
    monkeypatch.setattr(training.Debiaser, "training_step", step)
    resumed = adalora(tmp_path / "cut")
    assert resumed.active_peft_config.rank_pattern == expected.active_peft_config.rank_pattern
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), resumed.parameters(), strict=True))


def test_adalora_wants_enough_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="take 5 and 3 of the run's 8 steps"):
        adalora(tmp_path, tinit=5, tfinal=3)


def test_adalora_cannot_go_back_to_its_best(tmp_path: Path) -> None:
    model = adapters.attach(base_of("GPT-2"), config_of("adalora"))
    recipe = Recipe(0.05, 4, 2, "constant", 0.0, 0.0, False, 0.0, 0, watch=Watch(every=1, patience=2))
    data = SpanData([(span,) for span in SPANS["causal"]], choose_layout(model), 2, seed=1)
    module = training.Debiaser(model, Attribute(), recipe, seed=1, dev_scores=lambda _: {"ICAT": 1.0, "SS": 60.0})
    with pytest.raises(UserError, match=r"remove training\.watch\.patience"):
        fit(module, data, TRAINER, tmp_path)
