"""What a model cannot read is left out and counted before it trains, and the doctor says the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import peft
import pytest

from debias.data.mixture import Mixture
from debias.data.triplets import TripletFile
from debias.jobs.doctor import examine_files
from debias.models.base import Base, BaseModel
from debias.records import Recipe, Scored, Span, UserError
from debias.training import objectives
from debias.training.examples import examples, fits
from debias.training.module import make_trainer
from debias.training.neutral import SelfGenerated
from debias.training.stage import Tuning, train

LIMIT = 128  # of the tiny model
SHORT = [["The woman was calm.", "woman", "calm"], ["The man was gentle.", "man", "gentle"]]
LATE = ["The woman was " + "very " * 200 + "calm.", "woman", "calm"]  # the attribute is beyond the limit
EARLY = ["The woman was calm and " + "very " * 200 + "kind.", "woman", "calm"]  # nothing behind it is read


def file_of(path: Path, *rows: list[str]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


class Neutral:
    """Neutral texts of some lengths."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def spans(self, base: Base, start_token: bool) -> list[Scored]:
        return [Span(tuple(range(100, 100 + n)), n) for n in self.lengths]


def tuning(path: Path, *lengths: int) -> Tuning:
    recipe = Recipe(lr=1e-2, epochs=1, batch_size=2, schedule="linear", warmup=0.0, weight_decay=0.0, start_token=True,
                    retention=0.5, num_neutral=1)  # fmt: skip
    data = Mixture("gender", {"t": TripletFile("gender", str(path))})
    trainer = partial(make_trainer, accelerator="cpu", logger=False)
    return Tuning(data, peft.LoraConfig(r=2), objectives.Attribute(), Neutral(*lengths), recipe, trainer, seed=1)


def test_the_limit_is_that_of_scoring() -> None:
    """A causal model does not read the last token of a text."""
    assert fits(Span(tuple(range(LIMIT + 1)), 1), LIMIT)
    assert not fits(Span(tuple(range(LIMIT + 2)), 1), LIMIT)
    assert fits(Span(tuple(range(10_000)), 1), None)


def test_long_text_is_left_out_before_training(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file_of(tmp_path / "a.jsonl", *SHORT, LATE, EARLY)
    plan = tuning(path, 5, LIMIT + 1, LIMIT + 2)
    with caplog.at_level("INFO"):
        _, spent = train(plan, plan.data.load(1).triplets, BaseModel(str(tiny)).load(), tmp_path, tmp_path / "adapter")
    assert spent.steps == 2  # three sentences, two a step
    assert [message for message in caplog.messages if message.startswith("note:")] == [
        "note: 1 of 4 sentences is not trained on: longer than the model's 128 tokens",
        "note: 1 of 3 neutral texts is left out: longer than the model's 128 tokens",
    ]


def test_nothing_left_is_one_line(tiny: Path, tmp_path: Path) -> None:
    base = BaseModel(str(tiny)).load()
    for rows, lengths, message in (
        ([LATE], [5], "none of 1 sentence can be trained on \\(longer than the model's 128 tokens\\)"),
        (SHORT, [LIMIT + 2], "no neutral text is within the model's 128 tokens; set neutral.longest"),
    ):
        plan = tuning(file_of(tmp_path / "a.jsonl", *rows), *lengths)
        with pytest.raises(UserError, match=message):
            train(plan, plan.data.load(1).triplets, base, tmp_path, tmp_path / "adapter")


def test_a_masked_model_counts_its_special_tokens(tiny_masked: Path, tmp_path: Path) -> None:
    """BERT reads 512 tokens; 506 times "very", six words, signs and special tokens are one too many."""
    base = BaseModel(str(tiny_masked)).load()
    rows = [["The woman was " + "very " * n + "calm.", "woman", "calm"] for n in (505, 506)]
    triplets = TripletFile("gender", str(file_of(tmp_path / "a.jsonl", *rows))).load().triplets
    one, two = examples([(t,) for t in triplets], objectives.Attribute(), base.tokens, base.max_positions)
    assert isinstance(one, tuple)
    assert one[0].num_positions == 512
    assert two == "longer than the model's 512 tokens"


def test_an_attribute_that_the_tokenizer_drops_has_its_reason(tiny_masked: Path, tmp_path: Path) -> None:
    """BERT's tokenizer removes marks that stand alone: here the sign of an accent without its letter."""
    base = BaseModel(str(tiny_masked)).load()
    rows = [["The woman was \u00b4\u0301 calm.", "woman", "calm"], ["The woman was \ufffd .", "woman", "\ufffd"]]
    triplets = TripletFile("gender", str(file_of(tmp_path / "a.jsonl", *rows))).load().triplets
    one, two = examples([(t,) for t in triplets], objectives.Attribute(), base.tokens, base.max_positions)
    assert isinstance(one, tuple)
    assert two == "the model's tokenizer has no token for the attribute"


def test_the_doctor_says_the_same(tiny: Path, tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.jsonl", *SHORT, LATE, EARLY)
    (examined,) = examine_files([path], search_leakage=False, model=BaseModel(str(tiny)))
    found = examined.diagnosis
    (refused,) = (f for f in found.findings if f.name == "cannot be trained on with this model")
    assert (found.usable, found.passes, refused.places) == (3, False, [3])
    assert refused.examples[0].startswith("longer than the model's 128 tokens, at 3: The woman was very")
    (plain,) = examine_files([path], search_leakage=False)
    assert plain.diagnosis.passes


def test_self_generated_text_stays_within_the_context(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path))
    spans = SelfGenerated(n=2, longest=LIMIT + 50).spans(BaseModel(str(tiny)).load(), start_token=True)
    assert spans
    assert all(fits(span, LIMIT) for span in spans)
