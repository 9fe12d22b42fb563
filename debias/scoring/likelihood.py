"""Where tokens meet a model: log-probabilities of token spans, in nats.

Every objective and every likelihood benchmark asks for the same thing: the log-probability of marked tokens given
others. Those are the tokens before them (`Span`, causal models) or the rest of a text (`Masked`, masked models). So
training and scoring share this file.

Logits are computed only at the positions that predict a scored token (`debias/scoring/layouts.py`).

Shapes: B rows, T positions, N positions with logits, V vocabulary, D width, E scored tokens, S spans.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
from torch import Tensor, nn

from debias.models.base import LanguageModel, max_positions
from debias.records import Masked, Scored, Span, UserError
from debias.scoring.layouts import ROW, Batch, Layout, PrefixTree, Sight, masked_rows, padded, prefix_tree, visible

# ---------------------------------------------------------------- the forward pass


def span_logprobs(model: LanguageModel, batch: Batch) -> Tensor:
    """Log-probability of each span of a batch, in nats, shape (S,); differentiable."""
    return _of_spans(_logits(model, batch), batch)


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
    logits_NV = _logits(model, batch)
    logprob_S = _of_spans(logits_NV, batch)
    with torch.no_grad(), model.disable_adapter():
        base_NV = _logits(model, batch)
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
    logprob_E, drift = _Against.apply(
        _logits(model, batch), batch.source_E, batch.token_E, target.row_M, target.weight_M, target.hidden_MD,
        head.weight, getattr(head, "bias", None),
    )  # fmt: skip
    return Beside(_sums(logprob_E, batch), target.base_S, drift, target.weight_M.sum())


class _Against(torch.autograd.Function):
    """Log-probabilities of tokens, and the weighted KL divergence from the base at other rows of the same logits.

    Both need the softmax of the model's logits, which is taken once, some rows at a time. The gradient of the KL term,
    softmax(model) - softmax(base) at each row, falls out of the same pass and is kept in place of either softmax.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, row_E: Tensor, token_E: Tensor, row_M: Tensor, weight_M: Tensor,
        hidden_MD: Tensor, head_VD: Tensor, bias_V: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        logz_N = torch.cat([chunk_NV.float().logsumexp(-1) for chunk_NV in _chunks(logits_NV)])
        grad_NV = torch.zeros_like(logits_NV) if ctx.needs_input_grad[0] else None
        drift = logz_N.new_zeros(())
        size = len(_chunks(logits_NV)[0])
        for rows, weight, hidden in zip(row_M.split(size), weight_M.split(size), hidden_MD.split(size), strict=True):
            base_MV = torch.nn.functional.linear(hidden.to(head_VD.dtype), head_VD, bias_V).float().log_softmax(-1)
            model_MV = logits_NV[rows].float() - logz_N[rows, None]
            base_p_MV = base_MV.exp()
            drift += (weight[:, None] * base_p_MV * (base_MV - model_MV)).sum()
            if grad_NV is not None:
                grad_NV[rows] = (weight[:, None] * (model_MV.exp_() - base_p_MV)).to(grad_NV.dtype)
        ctx.save_for_backward(logits_NV, logz_N, row_E, token_E, grad_NV)
        return logits_NV[row_E, token_E].float() - logz_N[row_E], drift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_E, grad_drift = grads
        logits_NV, logz_N, row_E, token_E, grad_NV = ctx.saved_tensors
        grad_NV = grad_NV * grad_drift.to(grad_NV.dtype)
        _add_token_gradient(grad_NV, logits_NV, logz_N, row_E, token_E, grad_E)
        return grad_NV, *[None] * 7


def _add_token_gradient(
    grad_NV: Tensor, logits_NV: Tensor, logz_N: Tensor, row_E: Tensor, token_E: Tensor, grad_E: Tensor
) -> None:
    """Add the gradient of log-probabilities: d logprob[row, token] / d logits[row] = onehot(token) - softmax."""
    used_R, of_E = torch.unique(row_E, return_inverse=True)
    sum_R = torch.zeros(len(used_R), dtype=grad_E.dtype, device=grad_E.device).index_add_(0, of_E, grad_E)
    size = len(_chunks(logits_NV)[0]) if len(logits_NV) else 1
    for rows, sums in zip(used_R.split(size), sum_R.split(size), strict=True):
        softmax_RV = (logits_NV[rows].float() - logz_N[rows, None]).exp_()
        grad_NV[rows] -= (softmax_RV * sums[:, None]).to(grad_NV.dtype)
    grad_NV.view(-1).scatter_add_(0, row_E * logits_NV.shape[1] + token_E, grad_E.to(grad_NV.dtype))


def context(batch: Batch) -> tuple[Tensor, Tensor]:
    """Flat positions that spans only read, in order, and how many spans read each, shapes (M,)."""
    position_M, count_M = torch.unique(batch.context_R, return_counts=True)
    return position_M, count_M.float()


def with_logits_at(batch: Batch, position_M: Tensor) -> tuple[Batch, Tensor]:
    """The batch with logits at further positions, and the rows (N) of these."""
    position_N, row = torch.unique(torch.cat([batch.position_N, position_M]), return_inverse=True)
    scored = len(batch.position_N)
    return batch._replace(position_N=position_N, source_E=row[:scored][batch.source_E]), row[scored:]


class _TokenLogprobs(torch.autograd.Function):
    """Log-probabilities of tokens at rows of logits, with one softmax a row and no float32 copy of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, row_E: Tensor, token_E: Tensor) -> Tensor:
        logz_N = torch.cat([chunk_NV.float().logsumexp(-1) for chunk_NV in _chunks(logits_NV)])
        ctx.save_for_backward(logits_NV, logz_N, row_E, token_E)
        return logits_NV[row_E, token_E].float() - logz_N[row_E]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, logz_N, row_E, token_E = ctx.saved_tensors
        grad_NV = torch.zeros_like(logits_NV)
        _add_token_gradient(grad_NV, logits_NV, logz_N, row_E, token_E, grads[0])
        return grad_NV, None, None


def _logits(model: LanguageModel, batch: Batch) -> Tensor:
    """Logits at the batch's N positions, shape (N, V)."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids_BT, "use_cache": False}
    if batch.sight is None:
        inputs["attention_mask"] = batch.real_BT
    else:
        inputs["attention_mask"], inputs["position_ids"] = _masks(model, batch, batch.sight), batch.position_ids_BT
    with _logits_only_at(_head(model), batch):
        return model(**inputs).logits[0]


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


def _chunks(logits_NV: Tensor) -> Sequence[Tensor]:
    """Positions whose softmax is taken at a time: the float32 copy of the logits is never held as a whole."""
    rows = 64 if logits_NV.device.type == "cpu" else max(64, 2**26 // logits_NV.shape[1])  # 256 MB on a GPU
    return logits_NV.split(rows)


def _of_spans(logits_NV: Tensor, batch: Batch) -> Tensor:
    """Log-probabilities of spans from logits; the softmax is taken in float32."""
    return _sums(_TokenLogprobs.apply(logits_NV, batch.source_E, batch.token_E), batch)


def _sums(logprob_E: Tensor, batch: Batch) -> Tensor:
    """Sum of each span's tokens, shape (S,)."""
    return logprob_E.new_zeros(len(batch.num_tokens_S)).index_add(0, batch.span_E, logprob_E)


def _greedy(logits_NV: Tensor, batch: Batch) -> Tensor:
    """Whether every scored token of a span is the likeliest one at its place, shape (S,)."""
    best_N = torch.cat([chunk_NV.amax(-1) for chunk_NV in _chunks(logits_NV)])
    missed_E = (logits_NV[batch.source_E, batch.token_E] < best_N[batch.source_E]).long()
    return missed_E.new_zeros(len(batch.num_tokens_S)).index_add(0, batch.span_E, missed_E) == 0


def dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _head(model: LanguageModel) -> Any:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise UserError(f"{type(model).__name__} has no output embeddings; debias needs a model that predicts tokens")
    return head


@contextmanager
def _logits_only_at(head: nn.Module, batch: Batch) -> Iterator[None]:
    """Let the output layer see the N wanted positions only, so that logits are (1, N, V) and not (B, T, V)."""
    width = batch.input_ids_BT.shape[1]

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD = args[0][:, -width:]  # prompt tuning puts virtual tokens in front
        return (hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[batch.position_N][None], *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def choose_layout(model: LanguageModel, kind: str = "causal", longest: int = 48, row: int = ROW) -> Layout:
    """The fastest layout under which this model scores a text as it does alone: prefix trees, else padded rows.

    The model itself is asked, because no config tells: each layout scores a few texts, and every token must get the
    log-probability that it gets in a forward pass of its text alone.

    Args:
        kind: `causal` or `masked`.
        longest: tokens of the longest text that will be scored. Sliding windows matter only beyond their width, so
            texts of that length are tried.
        row: positions of a row of a tree. Some models look at a token's place in the row, so a full row is tried.

    Raises UserError where no layout is right, or where the model sees later tokens.
    """
    limit = max_positions(model)
    if limit is not None:  # no text and no row is longer than the model's table of positions
        longest, row = min(longest, limit), min(row, limit)
    if kind == "masked":
        texts = _probe_texts(model, longest, 3 * longest)
        spans: list[Any] = [Masked(ids, (len(ids) // 2,), (ids[len(ids) // 2],)) for ids in texts]
        candidates: list[Layout] = [masked_rows]
    else:
        spans = [Span(ids, 1) for ids in _probe_texts(model, longest, row)]
        candidates = [*(PrefixTree(sight, row) for sight in _sights(model, longest)), padded]
    with torch.inference_mode(), evaluating(model):
        rows: Layout = masked_rows if kind == "masked" else padded
        try:
            alone = [_answers(model, rows([span])) for span in spans]
        except (IndexError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{name(model)} cannot score plain texts ({type(error).__name__}: {reason})") from error
        alone_E = torch.cat(alone)
        if not alone_E.isfinite().all():
            raise UserError(
                f"{name(model)} gives log-probabilities that are NaN or inf; try scoring.precision=32 and "
                "model.dtype=float32, or choose another checkpoint"
            )
        if kind == "causal":
            _check_causal(model, max(spans, key=lambda span: len(span.ids)))
        median, largest = _rounding(model, alone_E)
        for layout in candidates:
            try:
                together_E = _answers(model, layout(spans))
            except (IndexError, AssertionError, RuntimeError, TypeError, ValueError, KeyError, AttributeError):
                continue
            error_E = (together_E - alone_E).abs()
            if error_E.median() <= median and error_E.max() <= largest:
                return layout
    raise UserError(
        f"{name(model)} gives a text another likelihood in a batch than alone, so debias cannot score with it; "
        "choose another model"
    )


def _sights(model: LanguageModel, longest: int) -> list[Sight]:
    """What the layers of a causal model may see of a tree, by its config; the most likely first."""
    config = model.config.get_text_config() if hasattr(getattr(model, "config", None), "get_text_config") else None
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    if not (window or chunk) or longest <= min(filter(None, (window, chunk))):
        return [Sight()]  # no text reaches beyond a window
    kinds = {"full_attention", "sliding_attention", "chunked_attention"} & set(
        getattr(config, "layer_types", None) or ()
    )
    per_layer = [Sight(tuple(sorted(kinds)), window, chunk)] if kinds else []
    return [*per_layer, Sight((), window, chunk), Sight()]


def _probe_texts(model: LanguageModel, longest: int, row: int) -> list[tuple[int, ...]]:
    """Texts that fill a row, in lexicographic order: some branch early, far apart in the row, and others late."""
    size = vocabulary(model)
    draw = np.random.default_rng(0)
    longest = max(6, longest)
    stem = tuple(int(i) for i in draw.integers(size, size=longest))
    texts, used = {stem}, longest
    for branch in itertools.cycle((2, longest // 2, 1, longest - 2, 3)):
        length = min(longest, max(branch + 2, branch + row - used))
        texts.add((*stem[:branch], *(int(i) for i in draw.integers(size, size=length - branch))))
        used += length - branch
        if used >= row or len(texts) >= 12:
            return sorted(texts)
    raise AssertionError


def _answers(model: LanguageModel, batch: Batch) -> Tensor:
    """Log-probability of each scored token in nats, shape (E,), in the order of the spans."""
    batch = on_device(model, batch)
    return _TokenLogprobs.apply(_logits(model, batch), batch.source_E, batch.token_E).cpu()


def _rounding(model: LanguageModel, alone_E: Tensor) -> tuple[float, float]:
    """Median and largest difference, in nats, that rounding explains between two ways to score the same tokens.

    In half precision both grow with the logits, of which the log-probabilities of random tokens are a measure: bfloat16
    rounds a logit of 16 to eighths.
    """
    if dtype(model) not in (torch.float16, torch.bfloat16):
        return 1e-3, 1e-3
    step = float(alone_E.abs().median()) * torch.finfo(dtype(model)).eps
    return 2 * step, 20 * step


def _check_causal(model: LanguageModel, span: Span) -> None:
    """Raises UserError where a later token changes what is predicted before it: the model is not a causal one."""
    other = (span.ids[-2] + 1) % vocabulary(model)
    changed = Span((*span.ids[:-2], other, span.ids[-1]), span.start)
    one_E, two_E = (_answers(model, padded([s]))[: len(span.ids) - 4] for s in (span, changed))
    error_E = (one_E - two_E).abs()
    median, largest = _rounding(model, one_E)
    if error_E.median() > median or error_E.max() > largest:
        raise UserError(
            f"{name(model)} sees the tokens after the one that it predicts, so it is not a causal model; "
            "if it is a masked model, say so with model.kind=masked"
        )


def budget(model: LanguageModel) -> int:
    """Positions of one forward pass that keep a device busy and leave memory for the rest.

    A CPU works from its cache: 512 is best there. A GPU wants thousands, and what bounds them is the memory of the
    logits, which is at most 4 GB here.
    """
    if next(model.parameters()).device.type == "cpu":
        return 512
    bytes_each = vocabulary(model) * torch.finfo(dtype(model)).bits // 8
    return int(min(32_768, max(512, 4e9 // bytes_each)))


def name(model: LanguageModel) -> str:
    """Class of the model, without the adapter around it."""
    return type(model.get_base_model() if isinstance(model, peft.PeftModel) else model).__name__


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
    return batch.to(next(model.parameters()).device)


# ---------------------------------------------------------------- scoring many spans


Progress = Callable[[Iterable[list[int]], int], Iterable[list[int]]]


def score(
    model: LanguageModel,
    spans: Sequence[Scored],
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    progress: Progress | None = None,
) -> np.ndarray:
    """Log-probability of every span in nats, float64, in the order given; it does not depend on the batching.

    Args:
        token_budget: positions of one forward pass; with the vocabulary it bounds the memory (N * V logits).
        progress: wraps the batches (lists of span numbers) and their number, to show how far it is.
    """
    return score_and_greedy(model, spans, layout, token_budget, progress)[:, 0]


def score_and_greedy(
    model: LanguageModel,
    spans: Sequence[Scored],
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    progress: Progress | None = None,
) -> np.ndarray:
    """As `score`, shape (S, 2): the log-probability, and 1 where every scored token is the likeliest at its place."""

    def answer(batch: Batch) -> Tensor:
        logits_NV = _logits(model, batch)
        return torch.stack([_of_spans(logits_NV, batch), _greedy(logits_NV, batch).float()], dim=1).double()

    return _per_span(model, spans, layout, token_budget, progress, answer)


def score_of_two(
    model: LanguageModel,
    spans: Sequence[Scored],
    others: Sequence[Scored],
    combine: Callable[[Tensor, Tensor], Tensor],
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    progress: Progress | None = None,
) -> np.ndarray:
    """As `score_and_greedy`, under a distribution that is made of two at each place.

    Args:
        others: for each span, the same scored tokens behind another context.
        combine: logits behind both contexts -> log-probabilities, all of shape (places, V).
    """
    batches = list(layout.packs(others, token_budget))
    device = next(model.parameters()).device
    result = np.empty((len(spans), 2))
    with torch.inference_mode(), evaluating(model):
        for numbers in progress(batches, len(batches)) if progress else batches:
            batch, other = (layout([of[i] for i in numbers]).to(device) for of in (spans, others))
            result[numbers] = _of_two(_logits(model, batch), batch, _logits(model, other), other, combine).cpu().numpy()
    return result


def _of_two(
    logits_NV: Tensor, batch: Batch, other_NV: Tensor, other: Batch, combine: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Log-probability of each span, and 1 where every token is the likeliest one, shape (S, 2)."""
    # Spans that share a prefix share its distributions: they are combined once, in R places.
    place_2R, place_E = torch.stack([batch.source_E, other.source_E]).unique(dim=1, return_inverse=True)
    logprob_E = logits_NV.new_empty(len(place_E), dtype=torch.float64)
    missed_E = torch.zeros_like(place_E)
    size, first = len(_chunks(logits_NV)[0]), 0
    for own_R, other_R in zip(*(places.split(size) for places in place_2R), strict=True):
        logprob_RV = combine(logits_NV[own_R].float(), other_NV[other_R].float())
        here_E = (place_E >= first) & (place_E < first + size)
        row_E = place_E[here_E] - first
        found_E = logprob_RV[row_E, batch.token_E[here_E]]
        logprob_E[here_E] = found_E.double()
        missed_E[here_E] = (found_E < logprob_RV.amax(-1)[row_E]).long()
        first += size
    missed_S = missed_E.new_zeros(len(batch.num_tokens_S)).index_add(0, batch.span_E, missed_E)
    return torch.stack([_sums(logprob_E, batch), (missed_S == 0).double()], dim=1)


def likeliest(
    model: LanguageModel,
    spans: Sequence[Scored],
    k: int,
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    allowed: np.ndarray | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """The k likeliest tokens, likeliest first, at the one scored place of each span, shape (S, k).

    Args:
        allowed: which tokens of the vocabulary may be chosen; all when empty.
    """

    def answer(batch: Batch) -> Tensor:
        logits_SV = _logits(model, batch)[batch.source_E].float()
        if allowed is not None:
            logits_SV[:, ~torch.from_numpy(allowed).to(logits_SV.device)] = -torch.inf
        return logits_SV.topk(k).indices

    return _per_span(model, spans, layout, token_budget, progress, answer)


def with_last_hidden(model: LanguageModel, batch: Batch, position_M: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each span (S,), and the last hidden states at some flat positions (M, D).

    Raises ValueError where the output layer alone does not make the logits of hidden states: some models scale or cap
    them afterwards.
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        hidden_BTD = args[0][:, -batch.input_ids_BT.shape[1] :]
        caught.append(hidden_BTD.reshape(-1, hidden_BTD.shape[-1]))

    head = _head(model)
    with _first_hook(head, catch):
        logits_NV = _logits(model, batch)
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


def plain_head(model: LanguageModel) -> bool:
    """Whether the output layer is a linear one that no adapter touches."""
    return type(_head(model)) is nn.Linear and not any(p.requires_grad for p in _head(model).parameters())


def vocabulary(model: LanguageModel) -> int:
    """Tokens that a model tells apart."""
    return _head(model).weight.shape[0]


def width(model: LanguageModel) -> int:
    """Width of the hidden states."""
    return model.config.get_text_config().hidden_size


def mean_hidden(
    model: LanguageModel,
    texts: Sequence[tuple[int, ...]],
    token_budget: int = 512,
    progress: Progress | None = None,
    skip: int = 0,
    layer: int = -1,
) -> np.ndarray:
    """`mean_hidden_of` for any number of texts, shape (texts, width), float32, without gradients."""

    def answer(batch: Batch) -> Tensor:
        return mean_hidden_of(model, batch, skip, layer)

    return _per_span(model, rows_of(texts), masked_rows, token_budget, progress, answer)


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


def _per_span(
    model: LanguageModel,
    spans: Sequence[Scored],
    layout: Layout,
    token_budget: int,
    progress: Progress | None,
    answer: Callable[[Batch], Tensor],
) -> np.ndarray:
    """What `answer` makes of each batch, a row per span, in the order of the spans."""
    batches = list(layout.packs(spans, token_budget))
    device = next(model.parameters()).device
    found: list[Tensor] = []
    with torch.inference_mode(), evaluating(model):
        laid = _ahead(lambda numbers: layout([spans[i] for i in numbers]), batches)
        for batch, _ in zip(laid, progress(batches, len(batches)) if progress else batches, strict=True):
            found.append(answer(batch.to(device)))
        # One transfer at the end: the GPU never waits for an answer to be read.
        row_SK = torch.cat(found).cpu().numpy() if found else np.empty((0, 2))
    result = np.empty_like(row_SK)
    result[[i for numbers in batches for i in numbers]] = row_SK
    return result


def _ahead(make: Callable[[list[int]], Batch], batches: Sequence[list[int]], depth: int = 2) -> Iterator[Batch]:
    """Batches made in a thread while the model works on earlier ones."""
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[Batch]] = deque()
        for numbers in batches:
            waiting.append(thread.submit(make, numbers))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
