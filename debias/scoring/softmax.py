"""The softmax of logits, a few rows at a time: log-probabilities of tokens, and the KL divergence from a base.

Both bring their own gradient, so that no float32 copy of the logits is ever held as a whole.

Shapes: N positions with logits, V vocabulary, D width, E scored tokens, M positions compared with the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TokenLogprobs(torch.autograd.Function):
    """Log-probabilities of tokens at rows of logits, with one softmax a row and no float32 copy of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, row_E: Tensor, token_E: Tensor) -> Tensor:
        logz_N = torch.cat([chunk_NV.float().logsumexp(-1) for chunk_NV in in_chunks(logits_NV)])
        ctx.save_for_backward(logits_NV, logz_N, row_E, token_E)
        return logits_NV[row_E, token_E].float() - logz_N[row_E]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, logz_N, row_E, token_E = ctx.saved_tensors
        grad_NV = torch.zeros_like(logits_NV)
        _add_token_gradient(grad_NV, logits_NV, logz_N, row_E, token_E, grads[0])
        return grad_NV, None, None


def _add_token_gradient(
    grad_NV: Tensor, logits_NV: Tensor, logz_N: Tensor, row_E: Tensor, token_E: Tensor, grad_E: Tensor
) -> None:
    """Add the gradient of log-probabilities: d logprob[row, token] / d logits[row] = onehot(token) - softmax."""
    used_R, of_E = torch.unique(row_E, return_inverse=True)
    sum_R = torch.zeros(len(used_R), dtype=grad_E.dtype, device=grad_E.device).index_add_(0, of_E, grad_E)
    size = rows_at_once(logits_NV)
    for rows, sums in zip(used_R.split(size), sum_R.split(size), strict=True):
        softmax_RV = logits_NV[rows].float().sub_(logz_N[rows, None]).exp_()
        grad_NV[rows] -= softmax_RV.mul_(sums[:, None]).to(grad_NV.dtype)
    grad_NV.view(-1).scatter_add_(0, row_E * logits_NV.shape[1] + token_E, grad_E.to(grad_NV.dtype))


def rows_at_once(logits_NV: Tensor) -> int:
    """Positions whose softmax is taken at a time: the float32 copy of the logits is never held as a whole.

    On a CPU 1 MB, which the cache of a core holds from one operation to the next; on a GPU 256 MB.
    """
    return max(1, (2**18 if logits_NV.device.type == "cpu" else 2**26) // logits_NV.shape[1])


def in_chunks(logits_NV: Tensor) -> Sequence[Tensor]:
    """The logits, `rows_at_once` positions at a time."""
    return logits_NV.split(rows_at_once(logits_NV))


PRODUCT = 64  # positions of the output layer's product at a time: its weights are read for each


class Against(torch.autograd.Function):
    """Log-probabilities of tokens, and the weighted KL divergence from the base at other rows of the same logits.

    Both need the softmax of the model's logits, which is taken once, some rows at a time. The gradient of the KL term,
    softmax(model) - softmax(base) at each row, falls out of the same pass and is kept in place of either softmax.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, row_E: Tensor, token_E: Tensor, row_M: Tensor, weight_M: Tensor,
        hidden_MD: Tensor, head_VD: Tensor, bias_V: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        logz_N = torch.cat([chunk_NV.float().logsumexp(-1) for chunk_NV in in_chunks(logits_NV)])
        grad_NV = torch.zeros_like(logits_NV) if ctx.needs_input_grad[0] else None
        drift = logz_N.new_zeros(())
        size = rows_at_once(logits_NV)
        product = max(PRODUCT, size)
        for rows_M, weights_M, hidden in zip(*(x.split(product) for x in (row_M, weight_M, hidden_MD)), strict=True):
            logits_MV = torch.nn.functional.linear(hidden.to(head_VD.dtype), head_VD, bias_V)
            for rows, weight, chunk_MV in zip(*(x.split(size) for x in (rows_M, weights_M, logits_MV)), strict=True):
                base_MV = chunk_MV.float().log_softmax(-1)
                model_MV = logits_NV[rows].float().sub_(logz_N[rows, None])
                base_p_MV = base_MV.exp()
                drift += weight @ torch.linalg.vecdot(base_p_MV, base_MV.sub_(model_MV))
                if grad_NV is not None:
                    grad_MV = model_MV.exp_().sub_(base_p_MV).mul_(weight[:, None])
                    grad_NV[rows] = grad_MV.to(grad_NV.dtype)
        ctx.save_for_backward(logits_NV, logz_N, row_E, token_E, grad_NV)
        return logits_NV[row_E, token_E].float() - logz_N[row_E], drift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_E, grad_drift = grads
        logits_NV, logz_N, row_E, token_E, grad_NV = ctx.saved_tensors
        # In place, because it is as large as the logits. It is good for one backward pass; torch refuses a second one.
        grad_NV.mul_(grad_drift.to(grad_NV.dtype))
        _add_token_gradient(grad_NV, logits_NV, logz_N, row_E, token_E, grad_E)
        return grad_NV, *[None] * 7
