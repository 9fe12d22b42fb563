"""Training on a tiny model: what moves, what stays, and what a killed run ends with."""

from __future__ import annotations

import csv
import math
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import pytest
import pytorch_lightning as pl
import torch

from debias import objectives, training
from debias.data.encoding import encode
from debias.data.matching import steps_of_tokens
from debias.data.neutral import neutral_spans
from debias.data.triplets import TripletFile
from debias.layouts import padded, prefix_tree
from debias.likelihood import score, span_logprobs_and_drift
from debias.models import adapter as adapters
from debias.models.base import Base, BaseModel, weights_sha256
from debias.records import Encoded, Masked, Span, UserError
from debias.training import Debiaser, SpanData, fit, make_trainer

TRAINER = partial(make_trainer, accelerator="cpu", logger=False)


def prepared(
    tiny: Path, seed: int = 1, dropout: float = 0.1, steps: int | None = None
) -> tuple[Base, Any, Debiaser, SpanData]:
    pl.seed_everything(seed, verbose=False)
    base = BaseModel(str(tiny)).load()
    model = adapters.attach(base, peft.LoraConfig(r=2, lora_dropout=dropout))
    objective = objectives.Attribute()
    spans = [objective.span(text) for text in encode(TripletFile("gender").load().triplets[:20], base.tokens)]
    return base, model, Debiaser(model, objective.loss, 1e-2, seed, steps=steps), SpanData(spans, prefix_tree, 4, seed)


def trained(
    tiny: Path, folder: Path, epochs: int = 3, seed: int = 1, steps: int | None = None
) -> dict[str, torch.Tensor]:
    _, model, module, data = prepared(tiny, seed, steps=steps)
    folder.mkdir(exist_ok=True)
    fit(module, data, TRAINER, folder, epochs)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "train.csv").open(newline="") as file:
        return [(row["step"], row["epoch"], row["loss"]) for row in csv.DictReader(file)]


def test_only_the_adapter_moves(tiny: Path, tmp_path: Path) -> None:
    _, model, module, data = prepared(tiny)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (16 * 2 + 2 * 48)  # c_attn: 16 -> 48
    before = score(model, data.spans)
    fit(module, data, TRAINER, tmp_path, 3)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if not p.requires_grad)
    assert score(model, data.spans).mean() > before.mean()
    with model.disable_adapter():
        assert score(model, data.spans) == pytest.approx(before)
    assert not (tmp_path / training.CHECKPOINT).exists()


def test_base_stays_in_eval_mode_while_the_adapters_dropout_is_on(tiny: Path, tmp_path: Path) -> None:
    _, model, module, data = prepared(tiny)
    modes: dict[str, bool] = {}

    def watch(*_: Any) -> None:
        modes.update({name: m.training for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)})

    model.register_forward_hook(watch)
    fit(module, data, TRAINER, tmp_path, 1)
    assert any("lora_dropout" in name for name in modes)
    assert all(on == ("lora_dropout" in name) for name, on in modes.items())


def test_same_seed_same_adapter(tiny: Path, tmp_path: Path) -> None:
    first, second = trained(tiny, tmp_path / "a"), trained(tiny, tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    other = trained(tiny, tmp_path / "c", seed=2)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("epochs", "steps"), [(3, None), (1, 13), (9, 15)])
def test_resumes_from_the_last_epoch_with_the_same_loss_sequence(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, steps: int | None
) -> None:
    """A run that dies in its third epoch goes on after the second, dropout and order included."""
    expected = trained(tiny, tmp_path / "whole", epochs, steps=steps)
    step = Debiaser.training_step

    def dies(self: Debiaser, batch: Any) -> torch.Tensor:
        if self.trainer.global_step == 12:  # five batches an epoch
            raise RuntimeError("power cut")
        return step(self, batch)

    monkeypatch.setattr(Debiaser, "training_step", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        trained(tiny, tmp_path / "cut", epochs, steps=steps)
    assert (tmp_path / "cut" / training.CHECKPOINT).is_file()
    monkeypatch.setattr(Debiaser, "training_step", step)
    torch.manual_seed(99)
    resumed = trained(tiny, tmp_path / "cut", epochs, steps=steps)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "cut")) == (steps or 15)


@pytest.mark.parametrize("moment", ["save_adapter", "unlink"])
def test_killed_after_the_last_of_matched_steps(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Seven steps end in the middle of the second epoch; what died right then has nothing left to train."""
    expected = trained(tiny, tmp_path / "whole", steps=7)
    unlink = Path.unlink

    def dies(self: Path, *_: Any, **__: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(Path, "unlink", dies if moment == "unlink" else lambda *_, **__: None)
    if moment == "unlink":
        with pytest.raises(RuntimeError, match="power cut"):
            trained(tiny, tmp_path / "cut", steps=7)
    else:
        trained(tiny, tmp_path / "cut", steps=7)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert (tmp_path / "cut" / training.CHECKPOINT).is_file()
    resumed = trained(tiny, tmp_path / "cut", steps=7)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("steps", [3, 5, 13])
def test_matched_steps_are_exact_and_the_schedule_ends_with_them(tiny: Path, tmp_path: Path, steps: int) -> None:
    """Linear decay without warm-up: the rate of step k is 1e-2 (1 - k / steps); five batches are an epoch."""
    _, _, module, data = prepared(tiny, steps=steps)
    module.warmup = 0.0
    spent = fit(module, data, TRAINER, tmp_path, 1)
    with (tmp_path / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert spent.steps == len(rows) == steps
    assert spent.tokens > 0
    assert [int(row["epoch"]) for row in rows] == [k // 5 for k in range(steps)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(
        [1e-2 * (1 - k / steps) for k in range(1, steps + 1)], abs=1e-5
    )


def test_tokens_per_step_by_hand() -> None:
    """Six sentences of 2 tokens in batches of 2: 4 a step; neutral spans do not count, two devices read 8."""
    data = SpanData([Span((1, 2), 1)] * 6, prefix_tree, 2, 1, [Span((1, 2, 3), 3)], num_neutral=5)
    assert list(islice(data.tokens_per_step(), 5)) == [4, 4, 4, 4, 4]
    assert list(islice(data.tokens_per_step(accumulated=2), 4)) == [8, 4, 8, 4]  # an epoch ends with a step
    assert list(islice(data.tokens_per_step(devices=2), 3)) == [8, 8, 8]  # the third batch of an epoch has no pair
    assert steps_of_tokens(2.0 * 6 * 2, data.tokens_per_step()) == 6  # two epochs' worth


def test_checkpoint_holds_the_adapter_alone(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # keep the checkpoint
    trained(tiny, tmp_path, epochs=1)
    assert (tmp_path / training.CHECKPOINT).stat().st_size < 100_000  # the base alone has 3 MB


def test_adapter_folder_round_trip(tiny: Path, tmp_path: Path) -> None:
    """Saved, loaded by us and by plain PEFT: the same scores."""
    base, model, module, data = prepared(tiny)
    fit(module, data, TRAINER, tmp_path, 1)
    adapters.save(model, base, tmp_path / "adapter")
    expected = score(model, data.spans)
    fresh = BaseModel(str(tiny)).load()
    assert score(adapters.load(fresh, tmp_path / "adapter"), data.spans) == pytest.approx(expected)
    plain = peft.PeftModel.from_pretrained(BaseModel(str(tiny)).load().model, str(tmp_path / "adapter"))
    assert score(plain, data.spans) == pytest.approx(expected)
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "debias.json"
    }  # fmt: skip


def test_adapter_of_another_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    base, model, *_ = prepared(tiny)
    adapters.save(model, base, tmp_path / "adapter")
    other = BaseModel(str(tiny)).load()
    next(other.model.parameters()).data += 1
    other = other._replace(sha256=weights_sha256(other.model))
    with pytest.raises(UserError, match="was trained on"):
        adapters.load(other, tmp_path / "adapter")
    with pytest.raises(UserError, match="is no adapter folder"):
        adapters.load(base, tmp_path)


def test_unknown_modules_are_named(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"name the modules with adapter\.target_modules"):
        adapters.attach(BaseModel(str(tiny)).load(), peft.LoraConfig(target_modules=["nowhere"]))


@pytest.mark.parametrize("layout", [prefix_tree, padded])
def test_drift_is_the_divergence_from_the_base_where_nothing_is_scored(tiny: Path, layout: Any) -> None:
    """Worked out position by position: 7 8 | 9 scores 9 after 8, so only the position of 7 is free; 5 6 is all free."""
    _, model, *_ = prepared(tiny, dropout=0.0)
    spans = [Span((7, 8, 9), 2), Span((5, 6), 2)]
    assert span_logprobs_and_drift(model, layout(spans))[1].item() == pytest.approx(0, abs=1e-6)  # not trained yet
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))

    def distributions(ids: list[int]) -> torch.Tensor:
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    with torch.no_grad():
        after = torch.stack([distributions([7])[0], distributions([5])[0]])
        with model.disable_adapter():
            before = torch.stack([distributions([7])[0], distributions([5])[0]])
        expected = (before.exp() * (before - after)).sum(-1).mean()
        logprob_S, drift = span_logprobs_and_drift(model, layout(spans))
    assert expected > 0.01
    assert drift.item() == pytest.approx(expected.item(), rel=1e-4)
    assert logprob_S[0].item() == pytest.approx(score(model, spans[:1])[0], rel=1e-5)
    assert logprob_S[1] == 0


def test_neutral_spans_score_nothing_and_join_every_batch(tiny: Path) -> None:
    base, *_ = prepared(tiny)
    neutral = neutral_spans(base.tokens, start_token=True)
    assert len(neutral) > 1000
    assert all(span.start == len(span.ids) <= 33 and span.ids[0] == 1 for span in neutral)
    data = SpanData([Span((1, 2), 1)] * 10, prefix_tree, 4, 1, neutral, num_neutral=3)
    batches = data.batches(0)
    assert [len(b) for b in batches] == [7, 7, 5]
    assert sorted(i for b in batches for i in b if i < 10) == list(range(10))
    assert all(sum(i >= 10 for i in b) == 3 for b in batches)
    assert batches == data.batches(0) != data.batches(1)


def test_lengths_are_mixed_where_an_epoch_may_be_cut() -> None:
    """The same batches in another order, the same again for the same epoch."""
    spans = [Span((1,) * (2 + i), 1) for i in range(40)]
    grouped = SpanData(spans, prefix_tree, 4, 1).batches(0)
    mixed = SpanData(spans, prefix_tree, 4, 1, mix_lengths=True)
    assert mixed.batches(0) != grouped
    assert sorted(mixed.batches(0)) == sorted(grouped)
    assert mixed.batches(0) == mixed.batches(0) != mixed.batches(1)


def test_unlikelihood_by_hand() -> None:
    """Spans of 1 and 2 tokens with p = 1/2 and 1/4 a token: (ln 2 + 2 ln(4/3)) / 3; p = 1 stays finite."""
    objective = objectives.Unlikelihood()
    logprob_S = torch.tensor([math.log(0.5), 2 * math.log(0.25)], requires_grad=True)
    loss = objective.loss(logprob_S, torch.tensor([1, 2]))
    assert loss.item() == pytest.approx((math.log(2) + 2 * math.log(4 / 3)) / 3)
    loss.backward()
    assert (logprob_S.grad > 0).all()  # descent lowers the attribute's likelihood
    assert math.isfinite(objective.loss(torch.tensor([0.0]), torch.tensor([1])).item())
    with_neutral = objective.loss(torch.cat([logprob_S, torch.zeros(1)]), torch.tensor([1, 2, 0]))
    assert with_neutral.item() == pytest.approx(loss.item())
    assert objective.span(Encoded((9, 5, 6), 1, 2)) == Span((9, 5), 1)


def test_plain_text_is_scored_from_its_second_token_on() -> None:
    assert objectives.Attribute().span(Encoded((5, 6, 7), 0, 3)) == Span((5, 6, 7), 1)
    assert objectives.Attribute().span(Encoded((0, 5, 6, 7), 1, 4)) == Span((0, 5, 6, 7), 1)  # after a start token


def test_objectives_on_hand_worked_log_probabilities() -> None:
    """Two spans of 1 and 3 tokens with log-probabilities -1 and -5: (1 + 5) / 4 nats per token."""
    text = Encoded((9, 5, 6, 7, 8), 2, 4)
    logprob_S, num_tokens_S = torch.tensor([-1.0, -5.0]), torch.tensor([1, 3])
    attribute, language_model = objectives.Attribute(), objectives.LanguageModel()
    assert attribute.span(text) == Span((9, 5, 6, 7), 2)
    assert language_model.span(text) == Span((9, 5, 6, 7, 8), 1)
    assert attribute.loss(logprob_S, num_tokens_S) == language_model.loss(logprob_S, num_tokens_S) == 1.5


def test_a_masked_model_learns_the_true_tokens_at_masked_places_and_refuses_plain_text() -> None:
    """Attribute 7 8 of [2] 5 7 8 3: both are masked (9), the labels are 7 and 8; plain text would be all masks."""
    text = Encoded((2, 5, 7, 8, 3), 2, 4, mask=9)
    assert objectives.Attribute().span(text) == Masked((2, 5, 9, 9, 3), (2, 3), (7, 8))
    for objective in (objectives.Attribute(), objectives.LanguageModel()):
        with pytest.raises(UserError, match="a masked model is trained on sentences with an attribute"):
            objective.span(Encoded((2, 5, 7, 8, 3), 1, 4, mask=9))
