"""Layouts and training losses under many architectures equal one forward pass per text."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from zoo import (
    CAUSAL,
    FAST,
    FAST_ADAPTERS,
    FAST_ADAPTERS_MASKED,
    FAST_MASKED,
    LONG,
    MASKED,
    build,
    cells_of,
    documented,
    plain,
    spans,
    worst,
)  # fmt: skip
from zoo_adapters import refused

from debias.records import UserError
from debias.scoring.layout_trial import choose_layout
from debias.scoring.layouts import padded
from debias.scoring.likelihood import span_logprobs

SLOW = sorted(set(CAUSAL) - set(FAST) - set(LONG))
SLOW_MASKED = sorted(set(MASKED) - set(FAST_MASKED))


def check(name: str, kind: str) -> None:
    """Two token budgets score as plain passes do, and the loss's gradient is that of plain passes."""
    model, texts = build(name, kind), spans(kind)
    layout = choose_layout(model, kind, longest=300)
    expected = np.array([plain(model, span) for span in texts])
    for budget in (300, 1024):
        assert worst(model, layout, budget, texts, expected) < 1e-3
    few = sorted(texts[:6], key=lambda span: span.ids)
    together = span_logprobs(model, layout(few)).sum()
    assert together.item() == pytest.approx(sum(plain(model, span) for span in few), rel=1e-4)
    if layout.name == "prefix tree":  # only there a mask of ours could let a gradient through where none belongs
        weight = model.get_input_embeddings().weight
        (found,) = torch.autograd.grad(together, weight)
        alone = sum(span_logprobs(model, padded([span])).sum() for span in few)
        (wanted,) = torch.autograd.grad(alone, weight)
        assert torch.allclose(found, wanted, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", [name for name in FAST if name not in ("cpmant",)])
def test_a_causal_model_is_scored_as_alone(name: str) -> None:
    check(name, "causal")


@pytest.mark.parametrize("name", FAST_MASKED)
def test_a_masked_model_is_scored_as_alone(name: str) -> None:
    check(name, "masked")


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    """CPM-Ant reads its prompt in both directions, and BERT as loaded for causal use does not hide later tokens."""
    with pytest.raises(UserError, match="is not a causal model"):
        choose_layout(build("cpmant"))
    encoder = build("bert", "masked")
    with pytest.raises(UserError, match=r"not a causal model.*model\.kind=masked"):
        choose_layout(encoder, "causal")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_causal_model_is_scored_as_alone_or_refused(name: str) -> None:
    check_or_refused(name, "causal")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_MASKED)
def test_every_masked_model_is_scored_as_alone_or_refused(name: str) -> None:
    check_or_refused(name, "masked")


def check_or_refused(name: str, kind: str) -> None:
    try:
        plain(build(name, kind), spans(kind)[0])
    except Exception as error:
        pytest.skip(f"cannot be built small: {type(error).__name__}: {str(error)[:80]}")
    with contextlib.suppress(UserError):
        check(name, kind)


FEW = [*((name, "causal") for name in FAST_ADAPTERS), *((name, "masked") for name in FAST_ADAPTERS_MASKED)]


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_every_adapter_works_or_is_refused_as_the_table_says(name: str, kind: str) -> None:
    """Attached, trained for a step, saved, read back, merged: all of it, or one line."""
    reasons = refused(name, kind)
    assert cells_of(reasons) == documented()[name, kind], reasons
    assert not any("\n" in reason for reason in reasons.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [row for row in documented() if row not in FEW])
def test_every_adapter_does_on_every_architecture_what_the_table_says(name: str, kind: str) -> None:
    test_every_adapter_works_or_is_refused_as_the_table_says(name, kind)
