"""What each adapter of conf/adapter does on an architecture of the zoo."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from adapter_table import ROWS, config_of
from zoo import VOCABULARY, build

from debias.jobs import export_plan, merging
from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import Base
from debias.models.checksums import checksum
from debias.records import UserError
from debias.training.gate import GateError

TEXTS = torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def refused(architecture: str, kind: str, rows: list[str] = ROWS) -> dict[str, str]:
    """The adapters that are refused on an architecture, or that the gate behind the training refuses, with the reason.

    An adapter that can be trained, saved and loaded but not merged is there as `NAME merged`.
    """
    model = build(architecture, kind).requires_grad_(False)
    base, reasons = Base(model, None, architecture, "", kind), {}
    for row in rows:
        try:
            with tempfile.TemporaryDirectory() as folder:
                tried(base._replace(model=copy.deepcopy(model)), row, Path(folder))
        except (UserError, GateError) as error:
            reasons[row] = str(error)
        except NotMergedError as error:
            reasons[f"{row} merged"] = str(error)
    return reasons


class NotMergedError(Exception):
    """An adapter works but cannot be merged."""


def tried(base: Base, row: str, folder: Path) -> None:
    """Attach, train a step, save, load and merge. Raises UserError for what users are told that they cannot do."""
    untouched, before = copy.deepcopy(base.model), checksum(base.model)
    torch.manual_seed(1)
    adapted = adapters.attach(base, config_of(row))
    moved = one_step(adapted, base.kind)
    assert moved, "training moves nothing"
    after = logits(adapted)
    assert not torch.equal(after, logits(untouched)), "training changes nothing"
    adapter_folder.save(adapted, base, folder / "adapter")
    adapters.detach(adapted)
    assert checksum(base.model) == before, "the base was changed"
    loaded = adapter_folder.load(base, folder / "adapter")
    if not torch.allclose(logits(loaded), after, atol=1e-4):  # as the gate behind every training finds
        raise GateError("saved and loaded it answers otherwise")
    adapters.detach(loaded)
    plan = export_plan.planned(str(folder / "adapter"), merge=True, folder=None, repo=None)
    try:
        merging.merge(plan, base)  # which compares the answers
    except UserError as error:
        raise NotMergedError(str(error)) from error


def one_step(model: Any, kind: str) -> bool:
    """Take a step on the plain loss; returns whether every part that has a gradient moved."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    old = [parameter.detach().clone() for parameter in trained]
    answers = model(input_ids=TEXTS, attention_mask=torch.ones_like(TEXTS), use_cache=False).logits
    logprobs = answers[:, -TEXTS.shape[1] :].log_softmax(-1)
    ahead = 1 if kind == "causal" else 0
    loss = -logprobs[:, : TEXTS.shape[1] - ahead].gather(2, TEXTS[:, ahead:, None]).mean()
    assert loss.isfinite(), "the loss is not finite"
    loss.backward()
    torch.optim.AdamW(trained, lr=0.01).step()
    return any(not torch.equal(a, b) for a, b in zip(old, trained, strict=True))


def logits(model: Any) -> torch.Tensor:
    """Answers to the texts, without those at a prompt's own positions."""
    with torch.no_grad():
        answers = model(input_ids=TEXTS, attention_mask=torch.ones_like(TEXTS), use_cache=False).logits
    return answers[:, -TEXTS.shape[1] :]
