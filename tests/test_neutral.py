"""Neutral text: where the KL term keeps the model close to its base."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from debias.cli.config import config_dir, make
from debias.models.base import Base, BaseModel
from debias.models.identity import tensors_sha256
from debias.records import UserError
from debias.training.neutral import (
    SHIPPED,
    SHIPPED_FOLDER,
    ByKind,
    NeutralText,
    SelfGenerated,
    Settings,
    Wikipedia,
    _shipped,
)

START = [1, 284, 253]


@pytest.fixture
def base(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A tiny model, and a cache of its own."""
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path))
    return BaseModel(str(tiny)).load()


def configured(name: str) -> NeutralText:
    """The source of a config file."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return make(compose(f"neutral/{name}").neutral, "neutral")


def test_self_generated_text_scores_nothing_and_is_as_long_as_asked(base: Base) -> None:
    """At most 6 tokens behind the start token, whatever `start_token` says of the sentences."""
    spans = SelfGenerated(n=10, longest=6, batch_size=4).spans(base, start_token=False)
    assert 0 < len(spans) <= 10
    assert all(span.ids[0] == 1 and 3 <= len(span.ids) <= 7 and span.start == len(span.ids) for span in spans)


def test_beginnings_share_the_samples_and_do_not_depend_on_each_other(base: Base) -> None:
    """Six samples of two beginnings are three of each, those that each gives by itself; each has the start token."""
    both = SelfGenerated(n=6, longest=4, start=[None, "1 9"], batch_size=2).spans(base, start_token=True)
    none = SelfGenerated(n=3, longest=4, batch_size=2).spans(base, start_token=True)
    text = SelfGenerated(n=3, longest=4, start="1 9", batch_size=2).spans(base, start_token=True)
    assert both == [*none, *text]
    front = (1, *base.tokenizer.encode("1 9", add_special_tokens=False))
    assert len(none) == len(text) == 3
    assert all(span.ids[: len(front)] == front and len(front) < len(span.ids) <= len(front) + 4 for span in text)


def test_self_generated_text_is_written_once_and_the_draw_leaves_no_trace(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call reads the cache; a process that finds it draws the same numbers afterwards."""
    state = torch.random.get_rng_state()
    first = SelfGenerated(n=5, longest=4).spans(base, start_token=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.setattr(base.model, "generate", None)
    assert SelfGenerated(n=5, longest=4).spans(base, start_token=True) == first


def test_a_damaged_cache_is_written_anew(base: Base, tmp_path: Path) -> None:
    first = SelfGenerated(n=5, longest=4).spans(base, start_token=True)
    (file,) = (tmp_path / "self_generated").glob("*.json")
    file.write_text("[[1, 2", encoding="utf-8")
    assert SelfGenerated(n=5, longest=4).spans(base, start_token=True) == first


def test_self_generated_text_follows_the_models_distribution(base: Base) -> None:
    """The likeliest token behind "1 9" comes as often as the model says it does, within four standard errors."""
    with torch.inference_mode():
        base.model.get_output_embeddings().weight *= 12  # a distribution with a peak
        p_V = base.model(torch.tensor([START])).logits[0, -1].softmax(-1)
    n = 400
    text = base.tokenizer.decode(START)
    spans = SelfGenerated(n=n, longest=2, start=text, batch_size=100).spans(
        base._replace(sha256="sharper"), start_token=True
    )
    token = int(p_V.argmax())
    p = float(p_V[token])
    found = Counter(span.ids[len(START)] for span in spans)[token]
    assert len(spans) == n
    assert 0.02 < p < 0.98
    assert abs(found / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_a_text_that_the_model_ends_is_cut_there(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids 1 5 6 2 2 with 2 as the end: 1 5 6 is left; what ends at once is no text."""
    answer = torch.tensor([[1, 5, 6, 2, 2], [1, 2, 2, 2, 2], [1, 5, 6, 7, 8]])
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", 2)
    monkeypatch.setattr(base.model, "generate", lambda *_, **__: answer)
    assert [span.ids for span in SelfGenerated(n=3).spans(base, True)] == [(1, 5, 6), (1, 5, 6, 7, 8)]


# ---------------------------------------------------------------- the text that comes with the program


def shipped_for(sha256: str) -> Base:
    """A base of these weights, in which no model can be asked."""
    return Base(None, None, "", sha256, "causal")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "number", "front"), [("own", 640, ()), ("stories", 128, (6403, 1980, 253, 655))])
def test_the_embedded_models_text_comes_with_the_program(
    name: str, number: int, front: tuple[int, ...], smollm2: Path
) -> None:
    """By its checksum, and as the config file is written; no model generates anything. Stories begin as they should."""
    spans = configured(name).spans(shipped_for(tensors_sha256(smollm2)), start_token=True)
    assert len(spans) == number
    assert {(span.ids[: 1 + len(front)], span.num_tokens) for span in spans} == {((1, *front), 0)}


@pytest.mark.parametrize("settings", SHIPPED)
def test_text_that_was_changed_is_not_used(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that it was not made for generates its own, but not from a folder in which a file was changed."""
    name, _ = SHIPPED[settings]
    assert _shipped(shipped_for("of another base"), settings) is None
    assert _shipped(shipped_for("of another base"), (1, *settings[1:])) is None  # other settings
    content = (SHIPPED_FOLDER / name).read_bytes()
    monkeypatch.setattr("debias.training.neutral.SHIPPED_FOLDER", tmp_path)
    (tmp_path / name).write_bytes(content.replace(b"[[1,", b"[[2,", 1))
    with pytest.raises(UserError, match=rf"{name} was changed; install debias again, or set neutral\.seed=2"):
        _shipped(shipped_for("of another base"), settings)


@pytest.mark.parametrize(
    ("name", "causal", "masked"), [("own", 4, 4), ("stories", 2, 2), ("wikipedia", 4, 4), ("auto", 2, 4)]
)
def test_a_step_takes_fewer_of_longer_texts(name: str, causal: int, masked: int) -> None:
    """Four of up to 48 tokens are as much work as two of 96."""
    neutral = configured(name)
    assert (neutral.texts_per_step("causal"), neutral.texts_per_step("masked")) == (causal, masked)


def test_masked_models_write_nothing(tiny_masked: Path) -> None:
    base = BaseModel(str(tiny_masked)).load()
    assert len(Wikipedia().spans(base, True)) > 1000
    with pytest.raises(UserError, match="choose neutral=wikipedia"):
        SelfGenerated().spans(base, True)
    assert ByKind(SelfGenerated(), Wikipedia()).spans(base, True) == Wikipedia().spans(base, True)
