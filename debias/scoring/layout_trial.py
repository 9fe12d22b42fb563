"""The trial that finds a model's layout: the fastest one under which the model scores a text as it does alone.

Shapes: E scored tokens.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from debias.models.base import LanguageModel, max_positions
from debias.records import Masked, Span, UserError
from debias.scoring.layouts import ROW, Batch, Layout, PrefixTree, Sight, masked_rows, padded
from debias.scoring.likelihood import dtype, evaluating, logits_of, name, on_device, token_logprobs, vocabulary


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
        for layout in candidates:
            try:
                together_E = _answers(model, layout(spans))
            except (IndexError, AssertionError, RuntimeError, TypeError, ValueError, KeyError, AttributeError):
                continue
            if only_rounded(together_E, alone_E, dtype(model)):
                return layout
    raise UserError(
        f"{name(model)} gives a text another likelihood in a batch than alone, so debias cannot score with it; "
        "choose another model, or other settings of the baseline or adapter that changes it"
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
    return token_logprobs(logits_of(model, batch), batch).cpu()


def only_rounded(one_E: Tensor, other_E: Tensor, dtype: torch.dtype, odd: float = 0.01) -> bool:
    """Whether rounding explains the difference between two ways to score the same tokens, in nats.

    A wrong layout moves many tokens, or a few by tenths. In float32 rounding moves a token by 1e-5, but the probe's
    random tokens can be so improbable that a single one moves by 1e-3: a share of `odd` may move by up to 2e-2. In half
    precision differences grow with the logits, of which the log-probabilities of random tokens are a measure: bfloat16
    rounds a logit of 16 to eighths.
    """
    error_E = (one_E - other_E).abs()
    if dtype in (torch.float16, torch.bfloat16):
        step = float(other_E.abs().median()) * torch.finfo(dtype).eps
        return bool(error_E.median() <= 2 * step and error_E.max() <= 20 * step)
    usual = error_E.quantile(1 - odd, interpolation="lower") if odd else error_E.max()
    return bool(usual <= 1e-3 and error_E.max() <= 2e-2)


def _check_causal(model: LanguageModel, span: Span) -> None:
    """Raises UserError where a later token changes what is predicted before it: the model is not a causal one."""
    other = (span.ids[-2] + 1) % vocabulary(model)
    changed = Span((*span.ids[:-2], other, span.ids[-1]), span.start)
    one_E, two_E = (_answers(model, padded([s]))[: len(span.ids) - 4] for s in (span, changed))
    if not only_rounded(two_E, one_E, dtype(model), odd=0):  # the same shapes, so nearly the same rounding
        raise UserError(
            f"{name(model)} sees the tokens after the one that it predicts, so it is not a causal model; "
            "if it is a masked model, say so with model.kind=masked"
        )
