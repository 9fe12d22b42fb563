"""A model whose layers are on several devices does what it does on one. The GPUs are stand-ins (`two_gpus.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from command import succeed
from safetensors.torch import load_file
from two_gpus import CPU, FIRST, SECOND, spread, two_gpus
from zoo import build, spans
from zoo_adapters import tried

from debias.models import base as models
from debias.models.adapter import attach
from debias.models.base import Base, BaseModel
from debias.models.checksums import checksum
from debias.models.placement import inputs_on, is_spread, place, placed
from debias.records import UserError
from debias.scoring import batched
from debias.scoring.batched import score
from debias.scoring.layout_trial import choose_layout
from debias.training.module import Debiaser, check_spread, make_trainer


def devices(model: torch.nn.Module) -> set[torch.device]:
    return {parameter.device for parameter in model.parameters()}


def test_the_stand_ins_refuse_what_gpus_refuse() -> None:
    """Numbers on two GPUs cannot be added; moved, they can, and the gradient goes back."""
    with two_gpus():
        one, two = torch.ones(2, device=FIRST, requires_grad=True), torch.ones(2).to(SECOND)
        with pytest.raises(RuntimeError, match="same device"):
            one + two
        with pytest.raises(TypeError, match="host memory"):
            two.numpy()
        (one.to(SECOND) + two).sum().backward()
        assert one.grad is not None
        assert one.grad.device == FIRST


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "causal"), ("gpt2", "causal"), ("bert", "masked")])
def test_scores_and_checksum_are_those_of_one_device(architecture: str, kind: str) -> None:
    """The layout's trial, every score and the checksum; GPT-2's output layer is its word embeddings, on the first."""
    model, texts = build(architecture, kind), spans(kind)[:12]
    layout = choose_layout(model, kind, longest=300)
    expected, intact = score(model, texts, layout), checksum(model)
    with two_gpus():
        model = spread(model)
        assert devices(model) == {FIRST, SECOND}
        place(model)
        with placed(model):
            assert choose_layout(model, kind, longest=300).name == layout.name
        np.testing.assert_array_equal(score(model, texts, layout), expected)
        assert checksum(model) == intact
        assert devices(model) == {FIRST, SECOND}


@pytest.mark.parametrize("adapter", ["lora", "full", "vera", "bottleneck"])
def test_adapters_are_trained_saved_loaded_and_merged(adapter: str, tmp_path: Path) -> None:
    """Each on a model over two devices; `full` copies modules with their hooks, a bottleneck cannot be merged."""
    with two_gpus():
        base = Base(spread(build("llama").requires_grad_(False)), None, "llama", "", "causal")  # type: ignore[arg-type]
        if adapter == "bottleneck":
            with pytest.raises(Exception, match="not linear"):
                tried(base, adapter, tmp_path)
        else:
            tried(base, adapter, tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(num_virtual_tokens=2),
        peft.PrefixTuningConfig(num_virtual_tokens=2),
        peft.AdaLoraConfig(total_step=10),
    ],
)
def test_adapters_that_need_one_device_are_refused(config: peft.PeftConfig) -> None:
    with two_gpus(), pytest.raises(UserError, match=r"choose adapter=lora, or remove model\.device_map"):
        attach(Base(spread(build("llama")), None, "llama", "", "causal"), config)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("training.gradient_checkpointing=true",)], ids=["plain", "checkpointing"])
def test_a_run_gives_the_figures_of_one_device(
    more: tuple[str, ...], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Self-generated text, answers of the base, training with the KL term, gate, evaluation and samples.

    The second run dies in the second of two epochs, and goes on.
    """
    words = [*small, "data.bias=gender", "data.n=8", "neutral=own", "neutral.n=8", "neutral.longest=6",
             "training.epochs=2", "training.noise=5", "scoring.precision=32", "scoring.token_budget=512",
             "trainer.gradient_clip_val=1", *more]  # fmt: skip
    succeed(tmp_path, "run", *words, "name=one")
    load = BaseModel.load
    found: list[Base] = []

    def spread_out(self: BaseModel) -> Base:
        found.append(load(self))
        spread(found[0].model)
        return found[0]

    monkeypatch.setattr(BaseModel, "load", spread_out)
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))  # nothing may come from the run before
    monkeypatch.setattr(batched, "_free", lambda _: 1 << 30)  # bytes of a GPU's memory
    step = Debiaser.training_step

    def dies(self: Debiaser, batch: Any) -> torch.Tensor:
        if self.trainer.global_step == 3:
            raise RuntimeError("power cut")
        return step(self, batch)

    with two_gpus():
        with monkeypatch.context() as until:
            until.setattr(Debiaser, "training_step", dies)
            with pytest.raises(RuntimeError, match="power cut"):
                succeed(tmp_path, "run", *words, "name=two")
        assert (tmp_path / "outputs/two/checkpoint.ckpt").is_file()
        found.clear()
        succeed(tmp_path, "run", *words, "name=two")
        assert devices(found[0].model) == {FIRST, SECOND}
    one, two = (load_file(tmp_path / "outputs" / name / "adapter/adapter_model.safetensors") for name in ("one", "two"))
    assert max(float((two[key] - tensor).abs().max()) for key, tensor in one.items()) < 1e-5
    rows = [(tmp_path / "outputs" / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    before, after = ([json.loads(line)["value"] for line in lines] for lines in rows)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)  # a perplexity of 10,000


def test_a_resumed_optimiser_has_its_state_beside_each_parameter() -> None:
    """Lightning brings a checkpoint's state to the trainer's one device."""
    with two_gpus():
        parameter = torch.nn.Parameter(torch.ones(2, device=SECOND))
        state = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2, device=FIRST)}
        optimizer = SimpleNamespace(state={parameter: state})
        module = SimpleNamespace(
            model=SimpleNamespace(hf_device_map={"a": FIRST, "b": SECOND}),
            trainer=SimpleNamespace(optimizers=[optimizer]),
        )
        Debiaser.on_train_start(module)  # type: ignore[arg-type]
        assert (state["exp_avg"].device, state["step"].device) == (SECOND, CPU)


def test_what_the_map_excludes_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, several processes, several devices of the trainer, the CPU's trainer, layers left on the host."""
    with pytest.raises(UserError, match="this machine has none"):
        BaseModel("nowhere", device_map="auto").load()
    with pytest.raises(UserError, match="trainer=cpu trains on none"):
        check_spread(make_trainer(accelerator="cpu", logger=False), "auto")
    with pytest.raises(UserError, match=r"trainer\.devices=2"):
        check_spread(make_trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False), "auto")
    check_spread(make_trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False), None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(models, "launched_processes", lambda: 2)
    with pytest.raises(UserError, match="without torchrun or srun"):
        BaseModel("nowhere", device_map="auto").load()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="does not fit in the memory of 2 visible GPUs"):
        models._check_spread(SimpleNamespace(hf_device_map={"a": 0, "b": 1, "c": "cpu"}), "big")  # type: ignore[arg-type]


def test_the_map_goes_to_transformers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto`, where one device has a place of its own (a stand-in that loads the model as usual)."""
    asked: list[Any] = []
    load: Callable[..., Any] = models.LOADERS["causal"].from_pretrained

    def loaded(folder: str, device_map: Any = None, **options: Any) -> Any:
        asked.append(device_map)
        return load(folder, **options)

    monkeypatch.setitem(models.LOADERS, "causal", SimpleNamespace(from_pretrained=loaded))
    monkeypatch.setattr(models, "_check_can_spread", lambda: None)
    model = BaseModel(str(tiny), device_map="auto").load().model
    BaseModel(str(tiny)).load()
    assert asked == ["auto", None]
    assert not is_spread(model)
    assert inputs_on(model) == CPU
