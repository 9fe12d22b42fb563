"""The forward pass of one batch: log-probabilities of token spans, in nats, and hidden states.

Every objective and every likelihood benchmark asks for the same thing: the log-probability of marked tokens given
others. Those are the tokens before them (`Span`, causal models) or the rest of a text (`Masked`, masked models). So
training and scoring share this file. `debias/scoring/batched.py` scores any number of spans with it.

Logits are computed only at the positions that predict a scored token (`debias/scoring/layouts.py`).

Shapes: B rows, T positions, N positions with logits, V vocabulary, D width, E scored tokens, S spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import peft
import torch
from torch import Tensor, nn

from debias.models.base import LanguageModel
from debias.models.placement import inputs_on
from debias.records import Masked, UserError
from debias.scoring.layouts import Batch, Sight, visible
from debias.scoring.softmax import Against, TokenLogprobs

# ---------------------------------------------------------------- spans


def span_logprobs(model: LanguageModel, batch: Batch) -> Tensor:
    """Log-probability of each span of a batch, in nats, shape (S,); differentiable."""
    return _of_spans(logits_of(model, batch), batch)


def _of_spans(logits_NV: Tensor, batch: Batch) -> Tensor:
    """Log-probabilities of spans from logits; the softmax is taken in float32."""
    return span_sums(token_logprobs(logits_NV, batch), batch)


def token_logprobs(logits_NV: Tensor, batch: Batch) -> Tensor:
    """Log-probability of each scored token in nats, shape (E,), float32; differentiable."""
    return TokenLogprobs.apply(logits_NV, batch.source_E, batch.token_E)


def span_sums(logprob_E: Tensor, batch: Batch) -> Tensor:
    """Sum of each span's tokens, shape (S,)."""
    return logprob_E.new_zeros(len(batch.num_tokens_S)).index_add(0, batch.span_E, logprob_E)


# ---------------------------------------------------------------- a model beside its base


class Beside(NamedTuple):
    """A model beside its base, which is the same model with its adapter off."""

    logprob_S: Tensor  # log-probability of each span in nats, differentiable
    base_S: Tensor  # the same of the base
    drift: Tensor  # sum of KL(base || model) in nats over the positions that spans only read, differentiable
    num_context: Tensor  # how many there are; a position counts once for each span that only reads it


def beside_base(model: peft.PeftModel, batch: Batch, drift: bool) -> Beside:
    """Log-probability of each span under model and base, and how far the model has drifted where nothing is scored.

    The exact way: the base, too, is asked in every step. `beside_target` reads what it said before.

    Args:
        drift: needs logits at the positions that are only read; without it the drift is 0.
    """
    position_M, weight_M = context(batch)
    if drift:
        batch, row_M = with_logits_at(batch, position_M)
    logits_NV = logits_of(model, batch)
    logprob_S = _of_spans(logits_NV, batch)
    with torch.no_grad(), model.disable_adapter():
        base_NV = logits_of(model, batch)
    base_S = _of_spans(base_NV, batch)
    if not drift:
        return Beside(logprob_S, base_S, logprob_S.new_zeros(()), weight_M.sum())
    base_MV, model_MV = (logits[row_M].float().log_softmax(-1) for logits in (base_NV, logits_NV))
    kl_M = torch.nn.functional.kl_div(model_MV, base_MV, log_target=True, reduction="none").sum(-1)
    return Beside(logprob_S, base_S, (kl_M * weight_M).sum(), weight_M.sum())


class Target(NamedTuple):
    """The base's side of a batch, asked beforehand (`debias.scoring.reference`). M positions that spans only read."""

    base_S: Tensor  # log-probability of each span, in nats
    row_M: Tensor  # rows of logits (N) of these positions
    weight_M: Tensor  # how many spans read each
    hidden_MD: Tensor  # the base's last hidden states there: its output layer makes its logits of them


def beside_target(model: LanguageModel, batch: Batch, target: Target) -> Beside:
    """As `beside_base`, without asking the base again: one forward pass, and one more product of the output layer."""
    head = _head(model)
    logprob_E, drift = Against.apply(
        logits_of(model, batch), batch.source_E, batch.token_E, target.row_M, target.weight_M, target.hidden_MD,
        head.weight, getattr(head, "bias", None),
    )  # fmt: skip
    return Beside(span_sums(logprob_E, batch), target.base_S, drift, target.weight_M.sum())


def context(batch: Batch) -> tuple[Tensor, Tensor]:
    """Flat positions that spans only read, in order, and how many spans read each, shapes (M,)."""
    position_M, count_M = torch.unique(batch.context_R, return_counts=True)
    return position_M, count_M.float()


def with_logits_at(batch: Batch, position_M: Tensor) -> tuple[Batch, Tensor]:
    """The batch with logits at further positions, and the rows (N) of these."""
    position_N, row = torch.unique(torch.cat([batch.position_N, position_M]), return_inverse=True)
    scored = len(batch.position_N)
    return batch._replace(position_N=position_N, source_E=row[:scored][batch.source_E]), row[scored:]


# ---------------------------------------------------------------- logits


def logits_of(model: LanguageModel, batch: Batch) -> Tensor:
    """Logits at the batch's N positions, shape (N, V)."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids_BT, "use_cache": False}
    if batch.sight is None:
        inputs["attention_mask"] = batch.real_BT
    else:
        inputs["attention_mask"], inputs["position_ids"] = _masks(model, batch, batch.sight), batch.position_ids_BT
    with _logits_only_at(_head(model), batch):
        return model(**inputs).logits.squeeze(0)  # [0] would copy the gradient


def _masks(model: LanguageModel, batch: Batch, sight: Sight) -> Tensor | dict[str, Tensor]:
    """Attention masks of a prefix tree, (B, 1, T, T): one, or one for each kind of layer."""
    kind = dtype(model)

    def additive(layer_type: str) -> Tensor:
        # The one form that every attention implementation takes, in the dtype of the queries.
        hidden_BTT = ~visible(batch, layer_type)
        mask_BTT = torch.zeros(hidden_BTT.shape, dtype=kind, device=hidden_BTT.device)
        return mask_BTT.masked_fill_(hidden_BTT, torch.finfo(kind).min)[:, None]

    if not sight.layer_types:
        return additive("full_attention")
    return {layer_type: additive(layer_type) for layer_type in sight.layer_types}


@contextmanager
def _logits_only_at(head: nn.Module, batch: Batch) -> Iterator[None]:
    """Let the output layer see the N wanted positions only, so that logits are (1, N, V) and not (B, T, V)."""
    width = batch.input_ids_BT.shape[1]

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD = args[0][:, -width:]  # prompt tuning puts virtual tokens in front
        # A layer before the output layer may be on another device.
        position_N = batch.position_N.to(hidden_BTD.device)
        return (hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[position_N][None], *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


# ---------------------------------------------------------------- hidden states


def with_last_hidden(model: LanguageModel, batch: Batch, position_M: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each span (S,), and the last hidden states at some flat positions (M, D).

    Raises ValueError where the output layer alone does not make the logits of hidden states: some models scale or cap
    them afterwards.
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        hidden_BTD = args[0][:, -batch.input_ids_BT.shape[1] :]
        caught.append(hidden_BTD.reshape(-1, hidden_BTD.shape[-1]).to(position_M.device))

    head = _head(model)
    with _first_hook(head, catch):
        logits_NV = logits_of(model, batch)
    (hidden_PD,) = caught
    few = hidden_PD[batch.position_N[:8]]
    if not torch.allclose(head(few).float(), logits_NV[:8].float(), atol=1e-2, rtol=1e-2):
        raise ValueError(f"{name(model)} changes its logits behind the output layer")
    return _of_spans(logits_NV, batch), hidden_PD[position_M]


@contextmanager
def _first_hook(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """Call a hook before the others."""
    handle = module.register_forward_pre_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def rows_of(texts: Sequence[tuple[int, ...]]) -> list[Masked]:
    """Texts of which hidden states are wanted: one logit each, so that the output layer costs nothing."""
    return [Masked(ids, (0,), (0,)) for ids in texts]


def mean_hidden_of(model: LanguageModel, batch: Batch, skip: int = 0, layer: int = -1) -> Tensor:
    """Mean of a layer's hidden states over the tokens of each row, shape (B, width), float32.

    Args:
        batch: of `rows_of` in the layout `masked_rows`.
        skip: tokens at the front, such as a start token, that are read but left out of the mean.
        layer: behind which of the model's layers, counted from 1; -1: what the output layer reads.
    """
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.real_BT, "use_cache": False}
    with _logits_only_at(_head(model), batch):
        output = model(**inputs, output_hidden_states=True)
    length = batch.input_ids_BT.shape[1]
    hidden_BTD = output.hidden_states[layer][:, -length:].float()  # prompt tuning puts virtual tokens in front
    counted_BT1 = batch.real_BT.clone()[..., None]
    counted_BT1[:, :skip] = False
    return (hidden_BTD * counted_BT1).sum(1) / counted_BT1.sum(1).clamp(min=1)


# ---------------------------------------------------------------- the model


def name(model: LanguageModel) -> str:
    """Class of the model, without the adapter around it."""
    return type(model.get_base_model() if isinstance(model, peft.PeftModel) else model).__name__


def dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def vocabulary(model: LanguageModel) -> int:
    """Tokens that a model tells apart."""
    return _head(model).weight.shape[0]


def width(model: LanguageModel) -> int:
    """Width of the hidden states."""
    return model.config.get_text_config().hidden_size


def plain_head(model: LanguageModel) -> bool:
    """Whether the output layer is a linear one that no adapter touches."""
    return type(_head(model)) is nn.Linear and not any(p.requires_grad for p in _head(model).parameters())


def _head(model: LanguageModel) -> Any:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise UserError(f"{type(model).__name__} has no output embeddings; debias needs a model that predicts tokens")
    return head


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, and afterwards every module as it was: a frozen base and its adapter may be in different modes."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def on_device(model: LanguageModel, batch: Batch) -> Batch:
    """A batch where the model is."""
    return batch.to(inputs_on(model))
