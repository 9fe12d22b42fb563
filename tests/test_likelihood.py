"""The forward pass of one batch: where logits are computed, and the gradient of log-probabilities."""

from __future__ import annotations

import torch
from zoo import VOCABULARY, build

from debias.records import Span
from debias.scoring.layouts import prefix_tree
from debias.scoring.likelihood import span_logprobs


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
