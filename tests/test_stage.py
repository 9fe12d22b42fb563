"""The stage that trains, from checked sentences to an adapter that passed the gate; and what may go wrong there."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file
from test_config import composed
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from debias.benchmarks.evaluation import evaluate, prepared
from debias.benchmarks.stereoset import StereoSet
from debias.cli.build import make_adapter
from debias.cli.config import config_dir
from debias.data.mixture import Mixture
from debias.data.triplets import TripletFile
from debias.models import adapter as adapters
from debias.models import adapter_folder, placement
from debias.models.base import Base, BaseModel
from debias.models.checksums import weights_sha256
from debias.records import Recipe, Scored, Span, Tokens, Triplet, UserError, Watch
from debias.scoring import batched
from debias.scoring.batched import score
from debias.scoring.layouts import padded, prefix_tree
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import Scorer
from debias.training import arithmetic, balance, objectives, stage
from debias.training import module as training
from debias.training.callbacks import LossCurve
from debias.training.dev_set import DevSet
from debias.training.fitting import Spent
from debias.training.gate import Gate, GateError
from debias.training.module import make_trainer
from debias.training.neutral import SelfGenerated
from debias.training.stage import Tuning, rounds_base, train

TRAINER = partial(make_trainer, accelerator="cpu", logger=False)
SPANS = [Span((5, 6, 7, 8), 1), Span((9, 10, 11), 1)]


class FewTexts:
    """Ten neutral texts of ids that stand for nothing, in place of a tokenised encyclopedia."""

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        return [Span((1, *range(100 + k, 104 + 2 * k)), 5 + k) for k in range(10)]

    def texts_per_step(self, kind: str) -> int:
        return 3


@cache
def twenty() -> list[Triplet]:
    """Twenty sentences of the gender corpus, read once."""
    return Mixture("gender", {"targeted": TripletFile("gender")}, n=20).load(1).triplets


def tuning(make: Any = TRAINER, objective: Any = None, **changes: Any) -> Tuning:
    plain = {"lr": 1e-2, "epochs": 2, "batch_size": 4, "schedule": "linear", "warmup": 0.0, "weight_decay": 0.0}
    recipe = Recipe(**{**plain, "start_token": True, "retention": 0.5, "num_neutral": 2, **changes})
    data = Mixture("gender", {"targeted": TripletFile("gender")}, n=20)
    return Tuning(data, peft.LoraConfig(r=2), objective or objectives.Attribute(), FewTexts(), recipe, make, seed=1)


def fitted(tiny: Path, folder: Path, plan: Tuning) -> Spent:
    """What the training took."""
    folder.mkdir(exist_ok=True)
    return train(plan, twenty(), BaseModel(str(tiny)).load(), folder, folder / "adapter")[1]


def trained(tiny: Path, folder: Path, plan: Tuning) -> dict[str, torch.Tensor]:
    """Tensors of the saved adapter."""
    fitted(tiny, folder, plan)
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def losses(folder: Path) -> list[tuple[str, str]]:
    with (folder / "train.csv").open(newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def attached(tiny: Path) -> tuple[Base, Any]:
    base = BaseModel(str(tiny)).load()
    return base, adapters.attach(base, peft.LoraConfig(r=2))


def nudge(model: Any, part: str, by: float = 0.1) -> None:
    next(p for name, p in model.named_parameters() if part in name).data.add_(by)


def test_a_step_takes_as_many_neutral_texts_as_suit_them_unless_the_recipe_says() -> None:
    """Three, as their source says; two, as the recipe says; none where no KL term reads them."""
    assert tuning(num_neutral=None).num_neutral("causal") == 3
    assert tuning(num_neutral=2).num_neutral("causal") == 2
    assert tuning(num_neutral=0).num_neutral("causal") == 0
    assert tuning(num_neutral=None, retention=0.0).num_neutral("causal") == 0


def test_stereotypes_of_some_biases_are_unlearned_beside_sentences_that_are_learned(tiny: Path, tmp_path: Path) -> None:
    """Every fifth sentence is about race and lacks a stereotype; the others have both words.

    Before the first update no likelihood has changed: a sentence with counterparts costs the margin of 4 and 2 ln 2,
    one without costs 4. All twenty are one step.
    """
    bare = {"bias": "race", "stereotype": None, "unrelated": None}
    mixed = [triplet._replace(**bare) if k % 5 == 0 else triplet for k, triplet in enumerate(twenty())]
    plan = tuning(objective=objectives.NegativePreference(biases=["gender"]), batch_size=20, retention=0.0)
    train(plan, mixed, BaseModel(str(tiny)).load(), tmp_path, tmp_path / "adapter")
    assert float(losses(tmp_path)[0][1]) == pytest.approx(4 + 16 / 20 * 2 * math.log(2), abs=1e-4)
    with pytest.raises(UserError, match=r"about a bias .* \(objective\.biases\); choose objective=bounded"):
        train(plan, mixed[::5], BaseModel(str(tiny)).load(), tmp_path, tmp_path / "other")


# ---------------------------------------------------------------- the gate


def test_a_sound_adapter_passes_and_stays_active(tiny: Path, tmp_path: Path) -> None:
    base, model = attached(tiny)
    gate = Gate(model, SPANS, prefix_tree)
    nudge(model, "lora_B")
    adapter_folder.save(model, base, tmp_path / "adapter")
    gate.check(tmp_path / "adapter")
    assert model.active_adapters == ["default"]
    assert list(model.peft_config) == ["default"]
    assert adapters.trainable_parameters(model) > 0


def test_the_gate_catches_an_adapter_that_does_nothing(tiny: Path, tmp_path: Path) -> None:
    base, model = attached(tiny)
    gate = Gate(model, SPANS, prefix_tree)
    adapter_folder.save(model, base, tmp_path / "adapter")
    with pytest.raises(GateError, match="changes nothing"):
        gate.check(tmp_path / "adapter")


def test_the_gate_catches_a_base_that_moved(tiny: Path, tmp_path: Path) -> None:
    base, model = attached(tiny)
    gate = Gate(model, SPANS, prefix_tree)
    nudge(model, "lora_B")
    nudge(model, "wte", 1e-6)
    adapter_folder.save(model, base, tmp_path / "adapter")
    with pytest.raises(GateError, match="base's weights"):
        gate.check(tmp_path / "adapter")


def test_the_gate_catches_parameters_that_were_not_declared(tiny: Path, tmp_path: Path) -> None:
    base, model = attached(tiny)
    gate = Gate(model, SPANS, prefix_tree)
    nudge(model, "lora_B")
    next(p for name, p in model.named_parameters() if "wte" in name).requires_grad_(True)
    adapter_folder.save(model, base, tmp_path / "adapter")
    with pytest.raises(GateError, match=r"set of trainable parameters changed during training: .*wte"):
        gate.check(tmp_path / "adapter")


def test_the_gate_catches_a_file_that_is_not_the_adapter(tiny: Path, tmp_path: Path) -> None:
    """A save that misses the last step: what is read back does not score as what was trained."""
    base, model = attached(tiny)
    gate = Gate(model, SPANS, prefix_tree)
    nudge(model, "lora_B")
    adapter_folder.save(model, base, tmp_path / "adapter")
    nudge(model, "lora_B")
    with pytest.raises(GateError, match="does not score as the trained one"):
        gate.check(tmp_path / "adapter")


def test_a_failed_gate_fails_the_training_and_leaves_no_adapter(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate of zero in all but name: the optimiser does nothing."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: closure() if closure else None)
    for _ in range(2):  # what the first attempt left is in nobody's way
        with pytest.raises(GateError, match="changes nothing"):
            trained(tiny, tmp_path, tuning())
    assert not (tmp_path / "adapter").exists()
    assert (tmp_path / "adapter.unchecked").is_dir()
    assert not list(tmp_path.glob("*.ckpt"))  # the next attempt trains again


class PowerCut(Exception):
    """Like a kill: no part of the program handles it."""


@pytest.mark.parametrize(
    ("watch", "matched"),
    [({}, False), ({}, True), ({"every": 2}, False), ({"every": 2, "patience": 2, "stop_at": None}, False)],
    ids=["epochs", "matched", "overshoot", "early"],
)
def test_killed_in_the_gate_a_run_only_repeats_the_gate(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: dict[str, Any], matched: bool
) -> None:
    """Ten steps; eight matched ones; a stop at the third look, step 6; the best of step 4 after a stop at step 8."""

    def plan() -> Tuning:
        looks(monkeypatch, [(60, 70), (58, 80), (49, 75), (58, 75)])
        made = tuning(watch=Watch(**watch))
        if matched:
            made.data.match, made.data.match_to = "steps", 14  # two epochs of 14 sentences, 4 a step
        return made

    expected = trained(tiny, tmp_path / "whole", plan())
    with monkeypatch.context() as patch:
        patch.setattr(Gate, "check", raises(PowerCut))
        with pytest.raises(PowerCut):
            trained(tiny, tmp_path / "cut", plan())
    monkeypatch.setattr(training.Debiaser, "training_step", raises(AssertionError("a step was repeated")))
    resumed = trained(tiny, tmp_path / "cut", plan())
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert not [*(tmp_path / "whole").glob("*.ckpt"), *(tmp_path / "cut").glob("*.ckpt")]


def raises(error: Exception | type[Exception]) -> Callable[..., None]:
    def stand_in(*_: Any, **__: Any) -> None:
        raise error

    return stand_in


@pytest.mark.parametrize(
    ("name", "held", "moved", "passes"),
    [
        ("adalora", "bf16", 0.02, True),
        ("adalora", "bf16", 0.5, False),
        ("adalora", "float32", 0.02, False),
        ("lora", "bf16", 0.02, False),
    ],
)
def test_only_pruned_ranks_may_round(
    name: str, held: Any, moved: float, passes: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tokens with -10 nats, bfloat16 rounds each by 10 * 2^-7 = 0.08; read back, their sum moved by `moved`."""
    scores = iter([[-22.0, -24.0], [-20.0, -20.0], [-20.0 - moved, -20.0 - moved]])
    monkeypatch.setattr(Gate, "_scores", lambda _: np.array(next(scores)))
    base = BaseModel(str(tiny), dtype=held).load()
    model = adapters.attach(base, make_adapter(composed("run", f"adapter={name}").adapter))
    gate = Gate(model, [Span((5, 6, 7), 1), Span((8, 9, 10), 1)], prefix_tree)
    adapter_folder.save(model, base, tmp_path / "adapter")
    with nullcontext() if passes else pytest.raises(GateError, match="does not score as the trained one"):
        gate.check(tmp_path / "adapter")


# ---------------------------------------------------------------- objectives that compare


@pytest.mark.parametrize("objective", [objectives.Equalise(), objectives.Attribute(margin=0.5)])
def test_objectives_beside_the_base_train(tiny: Path, tmp_path: Path, objective: Any) -> None:
    """The first loss of equalise is that of the pairs, of a margin the margin itself (nothing is learned yet)."""
    trained(tiny, tmp_path, tuning(objective=objective, retention=0.0, num_neutral=0))
    first = float(losses(tmp_path)[0][1])
    assert first == pytest.approx(0.5, abs=1e-4) if objective.margin else first > 0


# ---------------------------------------------------------------- where training computes


@pytest.mark.parametrize(("options", "device"), [({}, "meta"), ({"accelerator": "cpu"}, "cpu")])
def test_the_base_is_moved_before_anything_computes(
    options: dict[str, str], device: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to compute attaches the adapter; the second device is `meta`, which stands in for a GPU."""
    base, seen = BaseModel(str(tiny)).load(), []

    def stop(base: Base, _: Any) -> None:
        seen.append(base.model.device.type)
        raise PowerCut

    monkeypatch.setattr(placement, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(adapters, "attach", stop)
    with pytest.raises(PowerCut):
        train(tuning(partial(make_trainer, logger=False, **options)), twenty(), base, tmp_path, tmp_path / "adapter")
    assert seen == [device]


# ---------------------------------------------------------------- what may go wrong


def test_divergence_stops_the_run_with_step_and_remedy_and_keeps_the_last_good_adapter(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss turns NaN at step 6: the adapter of step 0 (remembered every ten) is kept, and is finite."""
    step = training.Debiaser.training_step

    def diverges(self: Any, batch: Any) -> torch.Tensor:
        return step(self, batch) * (float("nan") if self.global_step == 5 else 1.0)

    monkeypatch.setattr(training.Debiaser, "training_step", diverges)
    with pytest.raises(UserError, match=r"at step 6: training diverged; the adapter of step 0.*lower training\.lr"):
        trained(tiny, tmp_path, tuning())
    kept = load_file(tmp_path / "adapter.before_divergence" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert not (tmp_path / "adapter").exists()


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="trainer=cpu works everywhere"):
        make_trainer(accelerator="gpu", logger=False)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "transformer-engine"])
def test_a_precision_that_would_change_the_base_is_refused(precision: str) -> None:
    with pytest.raises(UserError, match=rf"trainer.precision={precision} .* choose 32-true, bf16-mixed or 16-mixed"):
        make_trainer(precision, accelerator="cpu", logger=False)


@pytest.mark.parametrize(
    ("word", "message"), [("trainer.precision=bf16-true", "converts the base"), ("trainer=gpu", "does not work here")]
)
def test_a_trainer_that_cannot_be_built_stops_the_job_before_the_model_loads(
    word: str, message: str, small: list[str], debias: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(BaseModel, "load", lambda self: pytest.fail("the model was loaded"))
    answer = debias("run", *small, "data.bias=gender", word)
    assert answer.status == 1
    assert message in answer.err
    assert answer.err.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantization_without_a_gpu_is_refused_before_anything_is_loaded(bits: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=f"model.quantization={bits} needs a GPU"):
        BaseModel("no such model", quantization=bits).load()


@pytest.mark.parametrize(("batches", "finished"), [(1, 8), (2, 7)])
def test_asked_to_end_it_saves_and_goes_on_with_the_next_batch(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int, finished: int
) -> None:
    """SIGTERM in the third of five steps of the second epoch: the same losses, adapter, steps and tokens in the end.

    A step of one batch is finished first; a step of two is taken again, because its gradients are not saved.
    """

    def plan() -> Tuning:
        made = tuning(partial(TRAINER, accumulate_grad_batches=batches), batch_size=4 // batches)
        return made._replace(adapter=peft.LoraConfig(r=2, lora_dropout=0.1))

    whole = fitted(tiny, tmp_path / "whole", plan())
    start = LossCurve.on_train_batch_start

    def asked(self: LossCurve, trainer: Any, *more: Any, **named: Any) -> None:
        start(self, trainer, *more, **named)
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LossCurve, "on_train_batch_start", asked)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny, tmp_path / "cut", plan())
    assert len(losses(tmp_path / "cut")) == finished
    monkeypatch.setattr(LossCurve, "on_train_batch_start", start)
    assert fitted(tiny, tmp_path / "cut", plan()) == whole
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    expected, resumed = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_gradient_checkpointing_changes_no_loss(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, tmp_path / "plain", tuning(epochs=1))
    trained(tiny, tmp_path / "other", tuning(epochs=1, gradient_checkpointing=True))
    for (_, one), (_, other) in zip(losses(tmp_path / "plain"), losses(tmp_path / "other"), strict=True):
        assert float(other) == pytest.approx(float(one), abs=1e-4)


# ---------------------------------------------------------------- looking at dev


def looks(monkeypatch: pytest.MonkeyPatch, figures: list[tuple[float, float]]) -> None:
    """Let looks at the dev set find these SS and ICAT, one after the other."""
    found = iter(figures)
    monkeypatch.setattr(
        "debias.training.dev_set.DevSet.__call__", lambda *_: dict(zip(("SS", "ICAT"), next(found), strict=True))
    )


def test_training_stops_once_the_bias_is_gone(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look every second of ten steps: SS 60, 55, 49: it ends after the third look, at step 6."""
    looks(monkeypatch, [(60, 70), (55, 75), (49, 80)])
    trained(tiny, tmp_path, tuning(watch=Watch(every=2)))
    assert len(losses(tmp_path)) == 6


def test_looks_are_counted_in_steps_and_not_in_batches(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches a step: ten steps as before, and the third look, at step 6, ends them."""
    looks(monkeypatch, [(60, 70), (55, 75), (49, 80)])
    two = partial(TRAINER, accumulate_grad_batches=2)
    plan = tuning(two, batch_size=2, watch=Watch(every=2))
    trained(tiny, tmp_path, plan)
    assert max(int(step) for step, _ in losses(tmp_path)) == 6


@pytest.mark.parametrize("what", ["texts", "pairs", "samples"])
def test_what_the_base_said_is_kept_for_this_base_alone(tmp_path: Path, what: str) -> None:
    """Two checkpoints with the same tensors and other rotary embeddings share one cache."""
    answers = []
    for theta in (10_000.0, 100.0):
        torch.manual_seed(1)
        config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                             num_attention_heads=2, initializer_range=0.5,
                             rope_parameters={"rope_type": "default", "rope_theta": theta})  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        vocabulary = Tokenizer(models.WordLevel({f"t{i}": i for i in range(64)}, "t0"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, bos_token="t1", eos_token="t2")
        base = Base(model, tokenizer, "tiny", weights_sha256(model), "causal")
        if what == "samples":
            answers.append(SelfGenerated(4, 12).spans(base, True))
            continue
        adapted, spans = adapters.attach(base, peft.LoraConfig(r=2)), [Span((1, 5, 6, 7, 8, 9), 3)]
        if what == "texts":
            ask = stage.asking(adapted, base, prefix_tree)
            assert ask is not None
            answers.append([ask(spans)[0].logprob])
        else:
            two = [balance.Pair(*spans, Span((1, 5, 6, 7, 8, 10), 5), 0)]
            answers.append(stage._aims(adapted, base, prefix_tree, two, nullcontext))
    assert answers[0] != answers[1]


def test_what_a_rounded_base_said_is_not_what_the_exact_one_says(tiny: Path) -> None:
    """Training beside rounded weights asks within its block; the same question outside has another answer."""
    base, adapted = attached(tiny)
    ask = stage.asking(adapted, base, prefix_tree)
    assert ask is not None
    exact = ask(SPANS)[0].logprob
    with arithmetic.frozen_in_bf16(adapted):
        assert ask(SPANS)[0].logprob != exact
    assert ask(SPANS)[0].logprob == exact


def test_early_stopping_keeps_the_best_adapter(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ICAT 70, 80, 75, 75 with patience 2: it ends at step 8 with the adapter of step 4."""
    looks(monkeypatch, [(60, 70), (58, 80), (59, 75), (58, 75)])
    best = trained(tiny, tmp_path / "early", tuning(watch=Watch(every=2, patience=2, stop_at=None)))
    assert len(losses(tmp_path / "early")) == 8
    states: list[dict[str, torch.Tensor]] = []
    step = training.Debiaser.training_step

    def remembers(self: Any, batch: Any) -> torch.Tensor:
        states.append({n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad})
        return step(self, batch)

    monkeypatch.setattr(training.Debiaser, "training_step", remembers)
    trained(tiny, tmp_path / "whole", tuning())
    after_four = {name.replace(".default", ""): tensor for name, tensor in states[4].items()}
    assert all(torch.equal(after_four[name], best[name]) for name in best)


@pytest.mark.parametrize(("every", "at"), [(2, [2, 4, 6, 8, 10]), (5, [5, 10]), (7, [7])])
def test_a_watched_run_resumes_after_its_last_whole_epoch(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, at: list[int]
) -> None:
    """Cut off in the seventh of ten steps, it goes on with the sixth: same looks, same losses, same adapter."""
    seen: list[int] = []
    taken: list[int] = []
    cuts: list[int] = []
    step = training.Debiaser.training_step

    def watched(self: training.Debiaser, batch: Any, batch_idx: int) -> None:
        seen.append(self.global_step)
        self.log_dict({"dev_SS": 60.0, "dev_ICAT": 70.0}, batch_size=1)

    def counted(self: training.Debiaser, batch: Any) -> torch.Tensor:
        if self.global_step in cuts:
            raise PowerCut
        taken.append(self.global_step)
        return step(self, batch)

    monkeypatch.setattr(training.Debiaser, "validation_step", watched)
    monkeypatch.setattr(training.Debiaser, "training_step", counted)
    expected = trained(tiny, tmp_path / "whole", tuning(watch=Watch(every=every)))
    assert seen == at
    cuts.append(6)
    with pytest.raises(PowerCut):
        trained(tiny, tmp_path / "cut", tuning(watch=Watch(every=every)))
    for noted in (seen, taken, cuts):
        noted.clear()
    resumed = trained(tiny, tmp_path / "cut", tuning(watch=Watch(every=every)))
    assert taken == [5, 6, 7, 8, 9]
    assert seen == [k for k in at if k > 5]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_dev_figures_are_those_of_the_evaluation(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look after the last of five steps finds what an evaluation of the saved adapter finds."""
    trained(tiny, tmp_path / "plain", tuning(epochs=1, lr=0.1))
    seen: list[dict[str, float]] = []
    look = DevSet.__call__

    def remembers(self: DevSet, model: Any) -> dict[str, float]:
        seen.append(look(self, model))
        return seen[-1]

    monkeypatch.setattr(DevSet, "__call__", remembers)
    trained(tiny, tmp_path / "watched", tuning(epochs=1, lr=0.1, watch=Watch(every=5, limit=30, stop_at=None)))
    assert losses(tmp_path / "plain") == losses(tmp_path / "watched")  # training goes on as without a look

    base = BaseModel(str(tiny)).load()
    scorer = Scorer(base, adapter_folder.load(base, tmp_path / "watched/adapter"), "32", 512, None)
    figures = evaluate(scorer, prepared([StereoSet(BiasBench(), split="dev", limit=30)], base.tokens)).figures
    expected = {f.metric: f.value for f in figures if (f.bias, f.model) == ("gender", "debiased")}
    assert seen == [pytest.approx(expected)]
    before = {f.metric: f.value for f in figures if (f.bias, f.model) == ("gender", "base")}
    assert expected != before  # the look is not at the base


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_look_converts_no_weight_and_is_not_autocast(
    precision: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a base in bfloat16, as on a GPU: base and adapter stay in their types, and the gate passes."""
    seen: list[tuple[bool, set[torch.dtype], set[torch.dtype]]] = []
    score_and_greedy = batched.score_and_greedy

    def noted(model: Any, *rest: Any) -> Any:
        if rest[-1] is not None:  # the gate shows no progress
            seen.append((torch.is_autocast_enabled("cpu"), *types(model)))
        return score_and_greedy(model, *rest)

    monkeypatch.setattr("debias.scoring.batched.score_and_greedy", noted)
    plan = tuning(partial(TRAINER, precision=precision), epochs=1, watch=Watch(every=2, limit=2, stop_at=None))
    adapted, _ = train(plan, twenty(), BaseModel(str(tiny), dtype="bf16").load(), tmp_path, tmp_path / "adapter")
    assert seen == [(False, {torch.bfloat16}, {torch.float32})] * 2
    assert types(adapted) == ({torch.bfloat16}, {torch.float32})


def types(model: Any) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of the frozen weights and of the trained ones."""
    frozen, trained = ({p.dtype for p in model.parameters() if p.requires_grad is of} for of in (False, True))
    return frozen, trained


# ---------------------------------------------------------------- several processes


def test_a_step_does_not_depend_on_how_it_is_divided(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Five steps an epoch of 4 sentences and 4 neutral texts: at once, in two batches, or one by one on two devices.

    With noise. Adapter and curve agree within float error, and so do the epochs' losses: means over the epoch, not of
    means. What the first of two spawned processes logs (here warnings of Lightning's) arrives here, once.
    """
    ways = {
        "whole": tuning(num_neutral=4, noise=5),
        "accumulated": tuning(partial(TRAINER, accumulate_grad_batches=2), batch_size=2, num_neutral=2, noise=5),
        "both": tuning(
            partial(TRAINER, strategy="ddp", devices=2, accumulate_grad_batches=2),
            batch_size=1,
            num_neutral=1,
            noise=5,
        ),
    }
    made = {
        way: trained(tiny, tmp_path / way, plan._replace(logger=CSVLogger(tmp_path / way, "log", "")))
        for way, plan in ways.items()
    }
    epochs = {way: pd.read_csv(tmp_path / way / "log/metrics.csv")["epoch_loss"].dropna().tolist() for way in ways}
    assert len(epochs["whole"]) == 2
    for way in ("accumulated", "both"):
        assert [step for step, _ in losses(tmp_path / way)] == [step for step, _ in losses(tmp_path / "whole")]
        for (_, one), (_, other) in zip(losses(tmp_path / "whole"), losses(tmp_path / way), strict=True):
            assert float(other) == pytest.approx(float(one), abs=2e-5)
        assert epochs[way] == pytest.approx(epochs["whole"], abs=2e-5)
        assert all(torch.allclose(tensor, made[way][name], atol=2e-4) for name, tensor in made["whole"].items())
    brought = [record for record in caplog.records if record.process != os.getpid()]
    assert len({record.process for record in brought}) == 1
    messages = [record.getMessage() for record in brought]
    assert sum("in eval mode at the start of training" in message for message in messages) == 1
    assert messages.count(f"wrote {tmp_path}/both/train.csv") == 1


@pytest.mark.parametrize("num_neutral", [0, 2])
def test_the_base_asked_once_says_what_it_says_in_every_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_neutral: int
) -> None:
    """The KL term covers the unscored tokens of training sentences, with and without neutral text beside them."""
    trained(tiny, tmp_path / "once", tuning(num_neutral=num_neutral))
    monkeypatch.setattr("debias.training.stage.asking", lambda *_, **__: None)
    trained(tiny, tmp_path / "always", tuning(num_neutral=num_neutral))
    once, always = ([float(loss) for _, loss in losses(tmp_path / way)] for way in ("once", "always"))
    assert once == pytest.approx(always, abs=1e-4)


def test_no_step_asks_a_base_that_was_asked_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "beside_base", raises(AssertionError("a step asked the base")))
    trained(tiny, tmp_path, tuning())


def test_accumulated_batches_draw_different_dropout(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps of two batches are twenty seeds."""
    seeds: list[int] = []
    step = training.Debiaser.training_step

    def noted(self: training.Debiaser, batch: Any) -> torch.Tensor:
        seeds.append(torch.initial_seed())
        return step(self, batch)

    monkeypatch.setattr(training.Debiaser, "training_step", noted)
    trained(tiny, tmp_path, tuning(partial(TRAINER, accumulate_grad_batches=2), batch_size=2))
    assert len(seeds) == len(set(seeds)) == 20


def test_too_few_sentences_for_a_step_are_still_one_step(tiny: Path, tmp_path: Path) -> None:
    """Twenty sentences one by one, but 32 batches a step: both epochs are one step, as with one batch of 32."""
    whole = trained(tiny, tmp_path / "whole", tuning(batch_size=32, retention=0.0))
    one_by_one = partial(TRAINER, accumulate_grad_batches=32)
    single = trained(tiny, tmp_path / "single", tuning(one_by_one, batch_size=1, retention=0.0))
    assert [float(loss) for _, loss in losses(tmp_path / "single")] == pytest.approx(
        [float(loss) for _, loss in losses(tmp_path / "whole")], abs=2e-5
    )
    assert all(torch.allclose(tensor, single[name], atol=2e-4) for name, tensor in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_shares_the_training_of_a_run(tiny: Path, tmp_path: Path, small: list[str], strategy: str) -> None:
    """The first process holds the folder and scores; the adapter is that of one process with twice the batch."""
    options = [w for w in small if not w.startswith(("training.batch_size", "training.num_neutral"))]
    debias = ["-m", "debias", "run", *options]
    shared = [f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", "training.batch_size=2"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    two = [*launcher, *debias, "name=two", *shared, "training.num_neutral=1", "training.num_pairs=2"]
    whole = ["training.batch_size=4", "training.num_neutral=2", "training.num_pairs=4"]
    one = [sys.executable, *debias, "name=one", *whole]
    for command in (two, one):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=600)
    files = [tmp_path / "outputs" / n / "adapter/adapter_model.safetensors" for n in ("one", "two")]
    first, second = (load_file(file) for file in files)
    assert all(torch.allclose(first[name], second[name], atol=2e-4) for name in first)


def test_balance_brings_the_odds_of_roles_together(tiny: Path, tmp_path: Path) -> None:
    """Six pairs whose odds the base tells apart: after training their spread is a fraction of what it was."""
    base = BaseModel(str(tiny)).load()
    found = balance.Pronouns().pairs(base.tokens)[:6]
    spans = [span for pair in found for span in pair[:2]]

    class Few:
        def pairs(self, tokens: Tokens) -> list[balance.Pair]:
            return found

    def spread(model: Any) -> float:
        logprob = torch.as_tensor(score(model, spans))
        return float((logprob[::2] - logprob[1::2]).std())

    before = spread(base.model)
    plan = tuning(epochs=8, balance=20.0, num_pairs=6)._replace(balance=Few())
    adapted, _ = train(plan, twenty(), base, tmp_path, tmp_path / "adapter")
    assert spread(adapted) < before / 3


@pytest.mark.parametrize("objective", [objectives.Attribute(margin=0.5), objectives.NegativePreference()])
def test_a_base_that_was_rounded_for_training_is_exact_again(
    tiny: Path, tmp_path: Path, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls as in float32, the gate passes, and the base scores as it did to the last bit."""
    monkeypatch.setattr(arithmetic, "LARGE", 1)
    monkeypatch.setattr(arithmetic, "_multiplies_bf16", lambda: True)
    seen = {}
    for precision in ("auto", "32-true"):
        base = BaseModel(str(tiny)).load()
        (folder := tmp_path / precision).mkdir()
        before = score(base.model, SPANS)
        plan = tuning(partial(TRAINER, precision=precision), objective, epochs=4)
        adapted, _ = train(plan, twenty(), base, folder, folder / "adapter")
        assert {p.dtype for p in adapted.parameters()} == {torch.float32}
        with adapted.disable_adapter():
            assert score(adapted, SPANS).tolist() == before.tolist()
        seen[precision] = [float(loss) for _, loss in losses(folder)]
    assert seen["auto"] != seen["32-true"]
    assert seen["auto"] == pytest.approx(seen["32-true"], abs=0.1 * seen["32-true"][0])


def test_the_base_stays_exact_where_the_run_or_the_device_asks_for_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "LARGE", 1)
    monkeypatch.setattr(arithmetic, "_multiplies_bf16", lambda: True)
    model, auto = BaseModel(str(tiny)).load().model, partial(TRAINER, precision="auto")
    assert rounds_base(tuning(auto), model)
    assert not rounds_base(tuning(partial(TRAINER, precision="32-true")), model)
    assert not rounds_base(tuning(auto, watch=Watch(every=5)), model)
    assert not rounds_base(tuning(auto), model.to("meta"))


@pytest.mark.parametrize("held", ["float32", "bf16"])
@pytest.mark.parametrize("name", sorted(path.stem for path in (config_dir() / "adapter").glob("*.yaml")))
def test_every_adapter_trains_beside_a_rounded_base(
    name: str, held: Literal["float32", "bf16"], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own weights are in float32 and come back exactly: on a CPU that rounds for training, and as on a GPU."""
    monkeypatch.setattr(arithmetic, "LARGE", 0)
    monkeypatch.setattr(arithmetic, "_multiplies_bf16", lambda: True)
    make = partial(TRAINER, precision="bf16-mixed" if held == "bf16" else "auto")
    adapter = make_adapter(composed("run", f"adapter={name}").adapter)
    plan = tuning(make, objectives.NegativePreference(), epochs=1)._replace(adapter=adapter)
    base = BaseModel(str(tiny), dtype=held).load()
    adapted, _ = train(plan, twenty(), base, tmp_path, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    fresh = adapters.attach(BaseModel(str(tiny)).load(), make_adapter(composed("run", f"adapter={name}").adapter))
    assert trained == adapters.trainable_parameters(fresh)
    scores = score(adapted, SPANS, padded)
    adapters.detach(adapted)
    assert score(adapter_folder.load(base, tmp_path / "adapter"), SPANS, padded) == pytest.approx(scores, abs=1e-4)


def test_the_base_is_asked_about_the_steps_that_are_trained(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of ceil(2 / 4) steps of 4 sentences: 8 of the 20. A large source would be asked for hours."""
    asked: list[Scored] = []
    once = stage.ask
    monkeypatch.setattr(stage, "ask", lambda model, spans, *more: asked.extend(spans) or once(model, spans, *more))
    plan = tuning()
    plan.data.match, plan.data.match_to = "steps", 2
    steps = fitted(tiny, tmp_path / "few", plan).steps
    neutral = {span.ids for span in FewTexts().spans(BaseModel(str(tiny)).load(), True)} | {(1, 2, 3)}  # and a trial
    assert (steps, len({span.ids for span in asked if span.num_tokens} - neutral)) == (2, 8)
    asked.clear()
    fitted(tiny, tmp_path / "all", tuning())
    assert len({span.ids for span in asked if span.num_tokens} - neutral) == 20
