"""The forward pass of one batch: where logits are computed, and the gradient of log-probabilities."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from zoo import VOCABULARY, build

from debias.records import Span
from debias.scoring import softmax
from debias.scoring.layouts import prefix_tree
from debias.scoring.likelihood import span_logprobs
from debias.scoring.softmax import Against, _add_token_gradient


def test_logits_are_computed_only_where_a_token_is_scored() -> None:
    model = build("llama")
    rows = []
    model.lm_head.register_forward_hook(lambda _, args, out: rows.append(tuple(out.shape)))
    span_logprobs(model, prefix_tree([Span((1, 2, 3, 4, 5), 4), Span((1, 2, 3, 4, 6), 4)]))
    assert rows == [(1, 1, VOCABULARY)]  # one position, two answers


def test_gradient_is_that_of_the_ordinary_loss() -> None:
    model = build("gpt2")
    ids = torch.tensor([[1, 2, 3, 4]])
    model(ids, labels=torch.tensor([[-100, -100, 3, 4]])).loss.backward()
    expected = model.transformer.wte.weight.grad.clone()
    model.zero_grad()
    (-span_logprobs(model, prefix_tree([Span((1, 2, 3, 4), 2)])).sum() / 2).backward()
    assert torch.allclose(model.transformer.wte.weight.grad, expected, atol=1e-6)


def against(dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...], Callable[[], tuple[Tensor, Tensor]]]:
    """Logits of five rows, of which two are compared with a base's; where they are scored; and what is made of them."""
    torch.manual_seed(0)
    logits_NV, hidden_MD, head_VD = (torch.randn(shape).to(dtype) for shape in ((5, 7), (2, 3), (7, 3)))
    logits_NV.requires_grad_()
    row_E, token_E, row_M = torch.tensor([0, 2, 2]), torch.tensor([6, 1, 3]), torch.tensor([2, 4])
    parts = (row_E, token_E, row_M, torch.tensor([1.0, 3.0]), hidden_MD, head_VD, None)
    return logits_NV, (row_E, token_E), lambda: Against.apply(logits_NV, *parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_beside_the_base_takes_no_memory_beyond_itself(dtype: torch.dtype) -> None:
    """It is the tensor that the forward pass made, bit for bit what two tensors would give."""
    logits_NV, (row_E, token_E), compute = against(dtype)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprob_E, drift = compute()
    _, logz_N, *_, of_drift_NV = kept
    expected_NV = of_drift_NV * torch.tensor(0.3).to(dtype)
    _add_token_gradient(expected_NV, logits_NV.detach(), logz_N, row_E, token_E, torch.full((3,), 0.7))
    (grad_NV,) = torch.autograd.grad(0.7 * logprob_E.sum() + 0.3 * drift, logits_NV)
    assert torch.equal(grad_NV, expected_NV)
    assert grad_NV.data_ptr() == of_drift_NV.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_rows_that_are_taken_at_once_change_no_bit(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of scores and gradients; the KL divergence is a sum, so its last digits change with the order."""

    def found() -> tuple[Tensor, Tensor, Tensor]:
        logits_NV, _, compute = against(dtype)
        logprob_E, drift = compute()
        (grad_NV,) = torch.autograd.grad(0.7 * logprob_E.sum() + 0.3 * drift, logits_NV)
        return logprob_E.detach(), drift.detach(), grad_NV

    whole = found()  # five rows at once
    monkeypatch.setattr(softmax, "PRODUCT", 1)
    monkeypatch.setattr(softmax, "rows_at_once", lambda _: rows)
    logprob_E, drift, grad_NV = found()
    assert torch.equal(logprob_E, whole[0])
    assert torch.equal(grad_NV, whole[2])
    assert drift.item() == pytest.approx(whole[1].item(), rel=1e-6)


def test_a_second_backward_pass_is_refused_instead_of_wrong() -> None:
    _, _, compute = against(torch.float32)
    _, drift = compute()
    drift.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        drift.backward()
