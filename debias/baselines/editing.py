"""DAMA: the directions in which upper feed-forward blocks lean towards a pronoun are projected out of their outputs.

After Limisiewicz et al. 2024 (Debiasing Algorithm through Model Adaptation). Code and prompts are ours.

Letters of shapes: N prompts, P pronouns, D width, K directions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from debias.baselines import checksum
from debias.baselines.projection import body
from debias.data.rows import sha256
from debias.data.triplets import CORPORA
from debias.models import targets
from debias.progress import bar
from debias.records import Candidate, Cloze, Count, UserError
from debias.scoring.method import Method
from debias.scoring.protocols import Continuation
from debias.scoring.scorer import Scorer
from debias.wording import counted

CORPUS = CORPORA / "pronoun_pairs.json"  # no occupation and no sentence of the pronoun gap
PRONOUNS = (" she", " he", " they")
ENOUGH = 0.05  # a pronoun's loss in nats at which its value is found, as in the published code
STEPS = 7  # SmolLM2's losses are within 0.001 of it then
OTHER = "choose another baseline (debias ls baseline)"


class Edited(Method):
    """The output y of linear layers becomes y - B'B y at every position.

    Args:
        name: what records call it.
        bases: B by the layer's name in the model, orthonormal, shape (K, D).
    """

    def __init__(self, name: str, bases: Mapping[str, np.ndarray]) -> None:
        super().__init__(name, checksum("editing", (name, list(bases)), *bases.values()))
        self.bases = bases

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Project the outputs."""
        with ExitStack() as edits:
            for name, values_KD in self.bases.items():
                basis_KD = torch.from_numpy(np.asarray(values_KD, dtype=np.float32)).to(model.device)
                edits.enter_context(_changed(model.get_submodule(name), partial(_without, basis_KD=basis_KD)))
            yield


def _without(plain_BTD: Tensor, basis_KD: Tensor) -> Tensor:
    basis_KD = basis_KD.to(plain_BTD.device)
    return plain_BTD - plain_BTD @ basis_KD.T @ basis_KD


def _instead(_: Tensor, hidden_ND: Tensor) -> Tensor:
    return hidden_ND[:, None]


@contextmanager
def _changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change a module's output, shape (B, T, D), in float32."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        several = isinstance(output, tuple)
        plain_BTD = output[0] if several else output
        changed_BTD = change(plain_BTD.float()).to(plain_BTD.dtype)
        return (changed_BTD, *output[1:]) if several else changed_BTD

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class Dama:
    """Fits `Edited` to the upper layers, the lowest first; each sees the edits below it.

    Args:
        bias: gender alone.
        directions: to remove from each feed-forward block; null: a sixteenth of its width.
        layers: counted from 1; null: from two thirds to fifteen sixteenths of the model.
    """

    def __init__(
        self, bias: Literal["gender"], directions: Count | None = None, layers: Sequence[Count] | None = None
    ) -> None:
        self.bias, self.directions, self.layers = bias, directions, layers

    def fingerprint(self) -> str:
        """Checksum of occupations and prompts."""
        return sha256(CORPUS)

    def fit(self, scorer: Scorer) -> Edited:
        """Find what each pronoun needs, then what goes with it in each block. Raises UserError for other models."""
        ids, token_NP = prompts(scorer)
        model = scorer.base.model
        blocks, top = feed_forward_outputs(model), list(targets.layers(model))[-1][1]
        number = len(blocks)
        first = number * 21 // 32 + 1  # LLaMA 7B, of 32 layers, was edited in the 22nd to the 30th
        layers = self.layers or range(first, max(first, number * 30 // 32) + 1)
        if max(layers) > number:
            has = counted(number, "layer")
            raise UserError(f"baseline.layers={list(layers)}, but the model has {has}; choose from 1 to {number}")
        # The published code stacks the pronouns' values; their outputs being the same, the mean has the same weights.
        value_ND = values(model, top, at_last_token(model, top, ids), token_NP).mean(1)
        directions = self.directions or max(1, value_ND.shape[1] // 16)
        bases: dict[str, np.ndarray] = {}
        for layer in bar("reading feed-forward blocks")(sorted(layers), len(layers)):
            name, block = blocks[layer - 1]
            with Edited("", bases).on(model):
                output_ND = at_last_token(model, block, ids)
            x_ND, y_ND = (found_ND.cpu().numpy().astype(np.float64) for found_ND in (output_ND, value_ND))
            bases[name] = pls_weights(x_ND, y_ND, directions)
        return Edited(f"dama ({counted(directions, 'direction')}, layers {min(layers)} to {max(layers)})", bases)


def prompts(scorer: Scorer) -> tuple[list[tuple[int, ...]], Tensor]:
    """Ids of a prompt for each occupation up to where a pronoun is due, short ones first, and the pronouns' (N, P)."""
    if scorer.tokens.kind != "causal":
        raise UserError(f"baseline=dama edits causal models, and this is a masked one; {OTHER}")
    corpus = json.loads(CORPUS.read_text(encoding="utf-8"))
    places = [place["before"] for place in corpus["places"] if place["words"] == "subject"]
    texts = [places[i % len(places)].format(role) for i, role in enumerate(corpus["roles"])]
    candidates = [Candidate("", "", "", "", text + p, Cloze(text, p, "")) for text in texts for p in PRONOUNS]
    found = Continuation().reading(scorer.tokens, blanks=True).spans(candidates, scorer.tokens.tokenizer)
    spans = [span for several in found for span in several]
    if len(spans) < len(candidates) or any(span.num_tokens != 1 for span in spans):
        raise UserError(f"baseline=dama: she, he and they are not one token each for this model; {OTHER}")
    rows = sorted(zip(spans[::3], spans[1::3], spans[2::3], strict=True), key=lambda row: len(row[0].ids))
    return [row[0].ids[:-1] for row in rows], torch.tensor([[span.ids[-1] for span in row] for row in rows])


def feed_forward_outputs(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The last linear layer of every feed-forward block. Raises UserError unless each layer has attention and one."""
    found, attention = list(targets.feed_forward_outputs(model)), list(targets.attention_outputs(model))
    number = sum(1 for _ in targets.layers(model))
    if not len(found) == len(attention) == number or any("expert" in name for name, _ in found):
        reason = f"not every layer of {type(model).__name__} has attention and one feed-forward block"
        raise UserError(f"baseline=dama: {reason}; {OTHER}")
    return found


def at_last_token(model: PreTrainedModel, module: nn.Module, ids: Sequence[tuple[int, ...]]) -> Tensor:
    """Output of a module at the last token of each text, in the order of their lengths, shape (N, D)."""
    seen: list[Tensor] = []

    def look(output_BTD: Tensor) -> Tensor:
        seen.append(output_BTD)
        return output_BTD

    last: list[Tensor] = []
    with _changed(module, look):
        for _, alike in groupby(ids, key=len):
            ids_BT = torch.tensor(list(alike), device=model.device)
            body(model)(ids_BT, use_cache=False)
            last.append(seen.pop().view(*ids_BT.shape, -1)[:, -1])  # OPT's blocks see all texts as one
    return torch.cat(last)


def values(model: PreTrainedModel, top: nn.Module, hidden_ND: Tensor, token_NP: Tensor) -> Tensor:
    """What to add to a prompt's hidden state behind the last layer for each pronoun to follow, shape (N, P, D).

    A step against the gradient is as long as would bring the loss to `ENOUGH` on a straight line (Polyak's step).
    """
    token_NP = token_NP.to(hidden_ND.device)
    found: list[Tensor] = []
    for token_N in token_NP.T:
        value_ND = torch.zeros_like(hidden_ND)
        for _ in range(STEPS):
            value_ND.requires_grad_()
            with _changed(top, partial(_instead, hidden_ND=hidden_ND + value_ND)):
                logits_NV = model(token_N[:, None], use_cache=False).logits[:, -1]  # what it reads does not matter
            loss_N = cross_entropy(logits_NV.float(), token_N, reduction="none")
            (grad_ND,) = torch.autograd.grad(loss_N.sum(), value_ND)
            step_N = (loss_N.detach() - ENOUGH).clamp(min=0) / grad_ND.square().sum(1)
            value_ND = value_ND.detach() - step_N[:, None] * grad_ND
        found.append(value_ND)
    return torch.stack(found, 1)


def pls_weights(x_ND: np.ndarray, y_ND: np.ndarray, number: int) -> np.ndarray:
    """First weights of a partial least squares regression of y on x, orthonormal, shape (K, D).

    Fewer than `number` if no more of x goes with y.
    """
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    nothing = 1e-9 * np.linalg.norm(x_ND.T @ y_ND)
    weights: list[np.ndarray] = []
    while len(weights) < number and np.linalg.norm(covariance_DD := x_ND.T @ y_ND) > nothing:
        weight_D = svds(covariance_DD, k=1, v0=np.ones(len(covariance_DD)), return_singular_vectors="u")[0][:, 0]
        score_N = x_ND @ weight_D
        x_ND = x_ND - np.outer(score_N, score_N @ x_ND) / (score_N @ score_N)
        weights.append(weight_D)
    return np.stack(weights)
