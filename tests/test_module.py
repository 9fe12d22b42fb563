"""Training on a tiny model: what moves, what stays, and what a killed run ends with."""

from __future__ import annotations

import csv
import itertools
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import peft
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import get_scheduler

from debias.data.triplets import TripletFile
from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import Base, BaseModel
from debias.models.checksums import weights_sha256
from debias.records import Recipe, Schedule, Span, UserError
from debias.scoring.batched import score
from debias.scoring.encoding import encode
from debias.scoring.layouts import Batch, padded, prefix_tree
from debias.scoring.likelihood import beside_base
from debias.training import fitting, objectives
from debias.training.balance import Pair
from debias.training.batches import SpanData
from debias.training.fitting import fit
from debias.training.matching import steps_of_tokens
from debias.training.module import Debiaser, make_trainer
from debias.training.neutral import Wikipedia
from debias.training.noise import noisy_embeddings

TRAINER = partial(make_trainer, accelerator="cpu", logger=False)


def prepared(
    tiny: Path, seed: int = 1, dropout: float = 0.1, steps: int | None = None
) -> tuple[Base, Any, Debiaser, SpanData]:
    pl.seed_everything(seed, verbose=False)
    base = BaseModel(str(tiny)).load()
    model = adapters.attach(base, peft.LoraConfig(r=2, lora_dropout=dropout))
    objective = objectives.Attribute()
    texts = encode(TripletFile("gender").load().triplets[:20], base.tokens)
    data = SpanData([(objective.span(text),) for text in texts], prefix_tree, 4, seed)
    return base, model, Debiaser(model, objective, recipe(), seed, steps), data


def recipe(**changes: Any) -> Recipe:
    """Linear decay from 1e-2, three epochs, the paper's loss alone; five batches of 20 sentences are an epoch."""
    plain = {"lr": 1e-2, "epochs": 3, "batch_size": 4, "schedule": "linear", "warmup": 0.05, "weight_decay": 0.0}
    return Recipe(**{**plain, "start_token": True, "retention": 0.0, "num_neutral": 0, **changes})


def spans_of(data: SpanData) -> list[Any]:
    return [span for texts in data.examples for span in texts]


def trained(
    tiny: Path, folder: Path, epochs: int = 3, seed: int = 1, steps: int | None = None
) -> dict[str, torch.Tensor]:
    _, model, module, data = prepared(tiny, seed, steps=steps)
    module.recipe.epochs = epochs
    folder.mkdir(exist_ok=True)
    fit(module, data, TRAINER, folder)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "train.csv").open(newline="") as file:
        return [(row["step"], row["epoch"], row["loss"]) for row in csv.DictReader(file)]


def test_only_the_adapter_moves(tiny: Path, tmp_path: Path) -> None:
    _, model, module, data = prepared(tiny)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (16 * 2 + 2 * 48)  # c_attn: 16 -> 48
    before = score(model, spans_of(data))
    fit(module, data, TRAINER, tmp_path)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if not p.requires_grad)
    assert score(model, spans_of(data)).mean() > before.mean()
    with model.disable_adapter():
        assert score(model, spans_of(data)) == pytest.approx(before)


def test_after_training_the_model_stays_where_it_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would move it to the CPU, and gate and scoring would then compute there."""
    _, _, module, data = prepared(tiny)
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda _: pytest.fail("the model was moved"))
    module.recipe.epochs = 1
    fit(module, data, TRAINER, tmp_path)


def test_base_stays_in_eval_mode_while_the_adapters_dropout_is_on(tiny: Path, tmp_path: Path) -> None:
    _, model, module, data = prepared(tiny)
    modes: dict[str, bool] = {}

    def watch(*_: Any) -> None:
        modes.update({name: m.training for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)})

    model.register_forward_hook(watch)
    fit(module, data, TRAINER, tmp_path)
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
    assert (tmp_path / "cut" / fitting.CHECKPOINT).is_file()
    monkeypatch.setattr(Debiaser, "training_step", step)
    torch.manual_seed(99)
    resumed = trained(tiny, tmp_path / "cut", epochs, steps=steps)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "cut")) == (steps or 15)


@pytest.mark.parametrize("steps", [None, 7])
def test_a_run_that_has_ended_is_not_trained_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int | None
) -> None:
    """Three epochs, or seven steps that end in the middle of the second one: the checkpoint says so."""
    expected = trained(tiny, tmp_path, steps=steps)
    curve = losses(tmp_path)
    monkeypatch.setattr(Debiaser, "training_step", lambda *_: pytest.fail("a step was repeated"))
    resumed = trained(tiny, tmp_path, steps=steps)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert losses(tmp_path) == curve


@pytest.mark.parametrize("steps", [3, 5, 13])
def test_matched_steps_are_exact_and_the_schedule_ends_with_them(tiny: Path, tmp_path: Path, steps: int) -> None:
    """Linear decay without warm-up: the rate of step k is 1e-2 (1 - k / steps); five batches are an epoch."""
    _, _, module, data = prepared(tiny, steps=steps)
    module.recipe.warmup = 0.0
    spent = fit(module, data, TRAINER, tmp_path)
    with (tmp_path / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert spent.steps == len(rows) == steps
    assert spent.tokens > 0
    assert [int(row["epoch"]) for row in rows] == [k // 5 for k in range(steps)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(
        [1e-2 * (1 - k / steps) for k in range(1, steps + 1)], abs=1e-5
    )


def test_tokens_per_step_by_hand() -> None:
    """Six sentences of 2 tokens in batches of 2: 4 a step, 8 on two devices; neutral spans do not count."""
    data = SpanData([(Span((1, 2), 1),)] * 6, prefix_tree, 2, 1, [Span((1, 2, 3), 3)], num_neutral=5)
    assert list(islice(data.tokens_per_step(), 5)) == [4, 4, 4, 4, 4]
    assert list(islice(data.tokens_per_step(accumulated=2), 4)) == [8, 4, 8, 4]  # an epoch ends with a step
    assert list(islice(data.tokens_per_step(devices=2), 3)) == [8, 4, 8]  # four sentences, the last two, four again
    assert steps_of_tokens(2.0 * 6 * 2, data.tokens_per_step()) == 6  # two epochs' worth


def test_parts_of_a_step_by_hand() -> None:
    """Five examples of 1 + 2 scored tokens and four neutral texts on two devices, two batches each: four parts.

    Every fourth text goes to the same part. All parts know 5 x 2 scored tokens, no pairs, 5 x 0 + 4 x 2 unscored
    positions, and three tokens a text.
    """
    data = SpanData([(Span((1, 2, 3), 1),)] * 5, prefix_tree, 2, 1, [Span((1, 2, 3), 3)], num_neutral=1)
    parts = data.divided([0, 1, 2, 3, 4, 5, 5, 5, 5], devices=2, accumulated=2)
    assert [part.texts for part in parts] == [[0, 4, 5], [1, 5], [2, 5], [3, 5]]
    assert {part[1:] for part in parts} == {(10, 0, 8, 3, 4)}
    assert len(data.divided([0, 1, 2], devices=1, accumulated=4)) == 3  # no part without an example
    layout = data.lay(parts[0]).batch
    assert layout.num_tokens_S.tolist() == [2, 2, 0]
    assert len(layout.context_R) == 2


def test_examples_with_and_without_counterparts_share_a_step() -> None:
    """Texts of 1, 3 and 1 spans, with 2, 1 + 2 + 1 and 1 scored tokens, and a pair behind them.

    The spans are numbered 0, 1 2 3 and 4; an example that comes alone has its own number thrice, and no tokens there.
    """
    alone, counterparts = (Span((1, 2, 3), 1),), (Span((4, 5), 1), Span((4, 6, 7), 1), Span((4, 8), 1))
    pair = Pair(Span((9, 1), 1), Span((9, 2), 1), 0)
    data = SpanData(
        [alone, counterparts, (Span((7, 1), 1),)], prefix_tree, 3, 1, [Span((2, 2), 2)], 1,
        pairs=[pair], aims=[0.5], num_pairs=1,
    )  # fmt: skip
    (part,) = data.divided([0, 1, 2, 3, 4], devices=1, accumulated=1)
    step = data.lay(part)
    assert step.text_BK.tolist() == [[0, 0, 0], [1, 2, 3], [4, 4, 4]]
    assert step.num_tokens_BK.tolist() == [[2, 0, 0], [1, 2, 1], [1, 0, 0]]
    assert step.scored_I.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert step.aim_P.tolist() == [0.5]


def test_checkpoint_holds_the_adapter_alone(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, tmp_path, epochs=1)
    assert (tmp_path / fitting.CHECKPOINT).stat().st_size < 100_000  # the base alone has 3 MB


def test_adapter_folder_round_trip(tiny: Path, tmp_path: Path) -> None:
    """Saved, loaded by us and by plain PEFT: the same scores."""
    base, model, module, data = prepared(tiny)
    fit(module, data, TRAINER, tmp_path)
    adapter_folder.save(model, base, tmp_path / "adapter")
    expected = score(model, spans_of(data))
    fresh = BaseModel(str(tiny)).load()
    assert score(adapter_folder.load(fresh, tmp_path / "adapter"), spans_of(data)) == pytest.approx(expected)
    plain = peft.PeftModel.from_pretrained(BaseModel(str(tiny)).load().model, str(tmp_path / "adapter"))
    assert score(plain, spans_of(data)) == pytest.approx(expected)
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "debias.json"
    }  # fmt: skip


def test_adapter_of_another_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    base, model, *_ = prepared(tiny)
    adapter_folder.save(model, base, tmp_path / "adapter")
    other = BaseModel(str(tiny)).load()
    next(other.model.parameters()).data += 1
    other = other._replace(sha256=weights_sha256(other.model))
    with pytest.raises(UserError, match="was trained on"):
        adapter_folder.load(other, tmp_path / "adapter")
    with pytest.raises(UserError, match="is not an adapter folder"):
        adapter_folder.load(base, tmp_path)


def test_unknown_modules_are_named(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"name the modules with adapter\.target_modules"):
        adapters.attach(BaseModel(str(tiny)).load(), peft.LoraConfig(target_modules=["nowhere"]))


@pytest.mark.parametrize("layout", [prefix_tree, padded])
def test_drift_is_the_divergence_from_the_base_where_nothing_is_scored(tiny: Path, layout: Any) -> None:
    """Worked out position by position: 7 8 | 9 scores 9 after 8, so only the position of 7 is free; 5 6 is all free."""
    _, model, *_ = prepared(tiny, dropout=0.0)
    spans = [Span((7, 8, 9), 2), Span((5, 6), 2)]
    untrained = beside_base(model, layout(spans), drift=True)
    assert untrained.drift.item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(untrained.logprob_S, untrained.base_S)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))

    def distributions(ids: list[int]) -> torch.Tensor:
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    with torch.no_grad():
        after = torch.stack([distributions([7])[0], distributions([5])[0]])
        with model.disable_adapter():
            before = torch.stack([distributions([7])[0], distributions([5])[0]])
        expected = (before.exp() * (before - after)).sum()
        logprob_S, base_S, drift, num_free = beside_base(model, layout(spans), drift=True)
        with model.disable_adapter():
            assert base_S[0].item() == pytest.approx(score(model, spans[:1])[0], rel=1e-5)
    assert expected > 0.01
    assert num_free == 2
    assert drift.item() == pytest.approx(expected.item(), rel=1e-4)
    assert logprob_S[0].item() == pytest.approx(score(model, spans[:1])[0], rel=1e-5)
    assert logprob_S[1] == 0


def test_neutral_spans_score_nothing_and_join_every_batch(tiny: Path) -> None:
    base, *_ = prepared(tiny)
    neutral = Wikipedia().spans(base, start_token=True)
    assert len(neutral) > 1000
    assert all(span.start == len(span.ids) <= 33 and span.ids[0] == 1 for span in neutral)
    data = SpanData([(Span((1, 2), 1),)] * 10, prefix_tree, 4, 1, neutral, num_neutral=3)
    batches = data.batches(0)
    assert [len(b) for b in batches] == [7, 7, 5]
    assert sorted(i for b in batches for i in b if i < 10) == list(range(10))
    assert all(sum(i >= 10 for i in b) == 3 for b in batches)
    assert batches == data.batches(0) != data.batches(1)


def test_lengths_are_mixed_where_an_epoch_may_be_cut() -> None:
    """The same batches in another order, the same again for the same epoch."""
    spans = [(Span((1,) * (2 + i), 1),) for i in range(40)]
    grouped = SpanData(spans, prefix_tree, 4, 1).batches(0)
    mixed = SpanData(spans, prefix_tree, 4, 1, mix_lengths=True)
    assert mixed.batches(0) != grouped
    assert sorted(mixed.batches(0)) == sorted(grouped)
    assert mixed.batches(0) == mixed.batches(0) != mixed.batches(1)


@pytest.mark.parametrize("name", get_args(Schedule))
def test_every_schedule_needs_no_settings_of_its_own(name: str) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    get_scheduler(name, optimizer, 1, 10).step()
    assert 0 < optimizer.param_groups[0]["lr"] <= 1


def test_noise_is_within_its_bound_and_the_base_answers_without_it(tiny: Path) -> None:
    """alpha / sqrt(mean length * width). Then the hook is gone."""
    base = BaseModel(str(tiny)).load()
    model, embeddings = adapters.attach(base, peft.LoraConfig(r=2)), base.model.get_input_embeddings()
    batch = padded([Span((1, 2, 3), 1), Span((4, 5, 6), 1)])
    plain = embeddings(batch.input_ids_BT)
    with noisy_embeddings(model, batch, alpha=2.0, length=torch.tensor(3.0), seed=(1, 0)):
        noise = (embeddings(batch.input_ids_BT) - plain).abs()
        with torch.no_grad():
            assert torch.equal(embeddings(batch.input_ids_BT), plain)
    most = 2.0 / (3 * plain.shape[-1]) ** 0.5
    assert 0.9 * most < noise.max() <= most * (1 + 1e-5)
    assert torch.equal(embeddings(batch.input_ids_BT), plain)


def test_a_token_at_a_place_gets_the_same_noise_however_a_step_is_laid_out(tiny: Path) -> None:
    """In a tree, in padded rows, or alone; another place, another token, another step or another seed: other noise."""
    base = BaseModel(str(tiny)).load()
    model, embeddings = adapters.attach(base, peft.LoraConfig(r=2)), base.model.get_input_embeddings()

    def noise(batch: Batch, seed: tuple[int, int] = (1, 0)) -> dict[tuple[int, int], Tensor]:
        """By token and place."""
        plain = embeddings(batch.input_ids_BT)
        with noisy_embeddings(model, batch, 2.0, torch.tensor(3.0), seed):
            added = embeddings(batch.input_ids_BT) - plain
        real = batch.real_BT
        keys = zip(batch.input_ids_BT[real].tolist(), batch.position_ids_BT[real].tolist(), strict=True)
        return dict(zip(keys, added[real].detach(), strict=True))

    texts = [Span((1, 2, 3), 1), Span((1, 2, 4), 1), Span((2, 1), 1)]
    rows, tree, alone = noise(padded(texts)), noise(prefix_tree(texts)), noise(padded(texts[2:]))
    assert rows.keys() == tree.keys() == {(1, 0), (2, 1), (2, 0)}
    assert all(torch.allclose(tree[key], rows[key], atol=1e-6) for key in rows)
    assert torch.allclose(alone[2, 0], rows[2, 0], atol=1e-6)
    others = [noise(padded(texts), seed)[1, 0] for seed in ((1, 1), (2, 0))]
    for one, other in itertools.combinations([*rows.values(), *others], 2):
        assert (one - other).abs().max() > 0.1 * one.abs().max()
