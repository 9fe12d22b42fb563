"""The demonstration masked model: its recipe lowers the loss, repeats itself, and leaves whole folders or none."""

from __future__ import annotations

import multiprocessing
import re
from itertools import islice
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import torch
from command import FORKED, gets
from transformers import AutoModelForMaskedLM, AutoTokenizer

from debias.models import bert_tiny
from debias.models.base import BaseModel
from debias.models.bert_tiny import Recipe
from debias.records import UserError

SENTENCES = [
    f"The {who} went to the {where} and bought some {what}."
    for who in ("woman", "man", "child")
    for where in ("market", "shop", "fair", "station")
    for what in ("bread", "milk", "fruit", "tea")
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little text, so that making a model takes a second."""
    monkeypatch.setattr(bert_tiny, "training_text", lambda: SENTENCES)
    monkeypatch.setattr(bert_tiny, "held_out_texts", lambda: {"sentences": SENTENCES})


def test_the_wheel_holds_a_masked_model_that_knows_no_words(tmp_path: Path) -> None:
    model, tokenizer = bert_tiny.untrained()
    before = bert_tiny.score(model, tokenizer, bert_tiny.held_out_texts()["GAP validation"])
    assert before.perplexity > 1000
    assert before.top1 < 0.02
    bert_tiny.write(model, tokenizer, "a card", tmp_path / "model")
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert AutoTokenizer.from_pretrained(tmp_path / "model").tokenize("A [MASK] went.") == ["a", "[MASK]", "went", "."]


def test_a_few_steps_lower_the_loss_and_change_every_weight() -> None:
    model, tokenizer = bert_tiny.untrained()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    texts = bert_tiny.training_text()[:2000]
    losses = list(bert_tiny.train(model, tokenizer, texts, Recipe(steps=12, batch_tokens=1024)))
    assert losses[0] > 8
    assert losses[-1] < losses[0] - 1
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_batches_hold_every_row_once_and_no_more_tokens_than_asked() -> None:
    rows: Any = [{"input_ids": [k] * (1 + k % 7)} for k in range(100)]
    made = bert_tiny.batches(rows, 10, torch.Generator().manual_seed(0))
    assert sorted(row["input_ids"][0] for batch in made for row in batch) == list(range(100))
    assert max(len(batch) * max(len(row["input_ids"]) for row in batch) for batch in made) <= 10
    assert made != bert_tiny.batches(rows, 10, torch.Generator().manual_seed(1))


def test_masks_are_the_ordinary_ones() -> None:
    """15% of the tokens are to be guessed: of these 80% are replaced by [MASK], 10% by another word."""
    model, tokenizer = bert_tiny.untrained()
    seen: list[dict[str, torch.Tensor]] = []
    original = bert_tiny.predict

    def predict(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(dict(batch))
        return original(model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bert_tiny, "predict", predict)
        list(islice(bert_tiny.train(model, tokenizer, bert_tiny.training_text()[:3000], Recipe(steps=5)), 5))
    ids, labels = (torch.cat([batch[key].flatten() for batch in seen]) for key in ("input_ids", "labels"))
    chosen = labels != -100
    assert chosen.sum() / (ids > 103).sum() == pytest.approx(0.15, abs=0.02)
    assert (ids[chosen] == tokenizer.mask_token_id).float().mean() == pytest.approx(0.8, abs=0.04)
    assert (ids[chosen] == labels[chosen]).float().mean() == pytest.approx(0.1, abs=0.03)


def test_training_text_is_not_what_is_measured_on() -> None:
    text = set(bert_tiny.training_text())
    assert len(text) > 20_000
    for name in ("gap-test", "gap-validation"):
        assert not text & set(bert_tiny.read_passages(name))


@pytest.mark.usefixtures("small")
def test_two_runs_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert bert_tiny.main(["--steps=3", f"--seed={seed}", f"--output={tmp_path / name}"]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.usefixtures("small")
def test_the_folder_is_whole_and_its_card_is_honest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bert_tiny.main(["--steps=3", f"--output={tmp_path / 'model'}"]) == 0
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    card = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert "It does not replace BERT base" in card
    assert "{" not in card
    assert re.search(r"\| sentences \| [\d,]+ \| [\d,.]+ \| [\d.]+% \| [\d.]+% \| \d+ \|", card)
    printed = capsys.readouterr().out
    assert "before, sentences: perplexity" in printed
    assert "after 0.0 minutes, sentences: perplexity" in printed
    assert bert_tiny.main(["--steps=3", f"--output={tmp_path / 'model'}"]) == 1
    assert "exists; choose another folder" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_it_is_found_once_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path))
    monkeypatch.setattr(bert_tiny, "Recipe", lambda **given: Recipe(**{**given, "steps": 2}))
    monkeypatch.setattr(bert_tiny.Recipe, "_field_defaults", {}, raising=False)
    with pytest.raises(UserError, match=r"run `make bert-tiny`, or `python -m debias.models.bert_tiny`"):
        BaseModel("bert-tiny").tokens()
    assert bert_tiny.main([]) == 0
    written = bert_tiny.folder() / "model.safetensors"
    changed = written.stat().st_mtime_ns
    assert written.is_relative_to(tmp_path / "models")
    assert bert_tiny.main([]) == 0  # it is there already
    assert written.stat().st_mtime_ns == changed
    tokens = BaseModel("bert-tiny").tokens()
    assert (tokens.kind, tokens.tokenizer.mask_token) == ("masked", "[MASK]")


@pytest.mark.usefixtures("small")
def test_a_failure_while_writing_leaves_no_folder_and_the_next_run_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    place = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(bert_tiny, "card", interrupted)
        assert bert_tiny.main(["--steps=2", f"--output={place}"]) == 130
    assert "the same command starts again" in capsys.readouterr().err
    assert not place.exists()
    assert bert_tiny.main(["--steps=2", f"--output={place}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def killed(place: Path, moment: str) -> None:
    """Make a model of little text in a process that dies on the way."""
    multiprocessing.current_process().name = "MainProcess"  # transformers draws its masks with a seed in no other
    bert_tiny.training_text = lambda: SENTENCES
    bert_tiny.held_out_texts = lambda: {"sentences": SENTENCES}
    gets(SIGKILL, moment)
    bert_tiny.main(["--steps=3", f"--output={place}"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("moment", ["torch.optim:AdamW.step", "pathlib:Path.rename"], ids=["training", "half a folder"])
def test_a_killed_run_leaves_no_folder_and_the_next_one_tidies_up(tmp_path: Path, moment: str) -> None:
    process = FORKED.Process(target=killed, args=(tmp_path / "model", moment))
    process.start()
    process.join()
    assert process.exitcode == -SIGKILL
    assert not (tmp_path / "model").exists()
    assert bert_tiny.main(["--steps=3", f"--output={tmp_path / 'model'}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_place_depends_on_the_recipe_and_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {Recipe().fingerprint(), Recipe(seed=2).fingerprint(), Recipe(steps=5).fingerprint()}
    monkeypatch.setattr(bert_tiny, "TEXT", ("gap-development",))
    places.add(Recipe().fingerprint())
    assert len(places) == 4
    assert all(re.fullmatch("[0-9a-f]{12}", place) for place in places)


@pytest.mark.slow
def test_the_full_recipe_brings_its_words_back(tmp_path: Path) -> None:
    scores = bert_tiny.make(Recipe(), tmp_path / "model")
    for before, after in scores.values():
        assert before.perplexity > 1000
        assert after.perplexity < 250
        assert after.top1 > 0.2
