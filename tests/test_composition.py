"""Several adapters as one model, by arithmetic: nothing added changes nothing, and a mean of equals is their value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from adapter_table import base_of, config_of, logits
from command import succeed

from debias.models import adapter as adapters
from debias.models.base import BaseModel
from debias.models.composition import combined
from debias.records import UserError

STACKABLE = ["lora", "bottleneck", "dora", "adalora", "vera", "ia3"]


def save(folder: Path, name: str, seed: int | None, **keys: Any) -> Path:
    """An adapter whose numbers are drawn with the seed, or a fresh one."""
    base = base_of("GPT-2")
    torch.manual_seed(seed or 0)
    model = adapters.attach(base, config_of(name, **keys))
    for parameter in model.parameters():
        if parameter.requires_grad and seed is not None:
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    adapters.save(model, base, folder)
    return folder


def answers(folders: Sequence[Path], *how: Any) -> list[torch.Tensor]:
    base = base_of("GPT-2")
    model = combined(base, folders, *how) if how else adapters.load(base, folders[0])
    before = logits(base_of("GPT-2").model, "causal")
    found = logits(model, "causal")
    with model.disable_adapter():
        assert all(map(torch.equal, before, logits(model, "causal")))
    assert all(map(torch.equal, found, logits(model, "causal")))  # switched on again it is what it was
    return found


def close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.allclose(x, y, atol=1e-4) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", STACKABLE)
def test_a_stack_with_a_fresh_adapter_is_the_other_alone(tmp_path: Path, name: str) -> None:
    a, fresh = save(tmp_path / "a", name, 1), save(tmp_path / "fresh", name, None)
    assert close(answers([a, fresh], "stack"), answers([a]))
    assert close(answers([fresh, a], "stack"), answers([a]))
    with pytest.raises(UserError, match="changes nothing"):  # alone it is refused
        answers([fresh])


def test_a_stack_of_two_loras_adds_their_changes(tmp_path: Path) -> None:
    """The same as one adapter that holds both, by the plain sum of their weight changes."""
    a, b = save(tmp_path / "a", "lora", 1), save(tmp_path / "b", "lora", 2, r=4)
    base = base_of("GPT-2")
    expected = base_of("GPT-2").model
    for folder in (a, b):
        merged = adapters.load(base_of("GPT-2"), folder).merge_and_unload()
        for changed, original, target in zip(
            merged.parameters(), base.model.parameters(), expected.parameters(), strict=True
        ):
            target.add_(changed - original)
    assert close(answers([a, b], "stack"), logits(expected, "causal"))


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_the_average_of_an_adapter_with_itself_is_the_adapter(tmp_path: Path, name: str) -> None:
    a = save(tmp_path / "a", name, 1)
    assert close(answers([a, a], "average"), answers([a]))
    assert close(answers([a, a, a], "average", [1, 2, 5]), answers([a]))


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_all_weight_on_one_is_that_one(tmp_path: Path, name: str) -> None:
    a, b = save(tmp_path / "a", name, 1), save(tmp_path / "b", name, 2)
    assert close(answers([a, b], "average", [0, 3]), answers([b]))
    assert not close(answers([a, b], "average", [1, 1]), answers([b]))


def test_the_command_line_scores_them_as_one_model(tiny: Path, small: list[str], tmp_path: Path) -> None:
    base = BaseModel(str(tiny)).load()
    for name in "ab":
        model = adapters.attach(base, config_of("bottleneck"))
        adapters.save(model, base, tmp_path / name)
        adapters.detach(model)
    words = [word for word in small if word.startswith(("model", "eval.stereoset", "threads"))]
    words += ["eval=[stereoset]", f"adapter.path=[{tmp_path / 'a'},{tmp_path / 'b'}]", "adapter.combine=stack"]
    succeed(tmp_path, "evaluate", *words)
    (found,) = tmp_path.rglob("likelihoods.parquet")
    scores = pd.read_parquet(found).pivot(index=["example", "candidate"], columns="model", values="score")
    assert list(scores) == ["base", "debiased"]
    assert scores["debiased"].to_numpy() == pytest.approx(scores["base"].to_numpy())  # fresh adapters


@pytest.mark.parametrize(
    ("kinds", "how", "message"),
    [
        (("lora", "ia3"), ("stack",), "LORA and IA3 adapters cannot be combined"),
        (("prompt", "prompt"), ("stack",), "does not work for PROMPT_TUNING adapters; remove adapter.combine"),
        (("ln_tuning", "ln_tuning"), ("average",), "average does not work for LN_TUNING adapters"),
        (
            ("bottleneck", "bottleneck"),
            ("average",),
            "does not work for BOTTLENECK adapters; set adapter.combine=stack",
        ),
        (("dora", "dora"), ("average",), "does not work for DORA adapters; set adapter.combine=stack"),
        (("lora",), ("stack",), "needs several adapters"),
        (("lora", "lora"), ("sum",), "'sum' is unknown; choose stack or average"),
        (("lora", "lora"), ("stack", [1, 2]), "weights belong to an average"),
        (("lora", "lora"), ("average", [1]), "one weight of 0 or more for each of the 2"),
    ],
)
def test_what_cannot_be_combined(tmp_path: Path, kinds: tuple[str, ...], how: tuple[Any, ...], message: str) -> None:
    folders = [save(tmp_path / str(i), name, 1) for i, name in enumerate(kinds)]
    with pytest.raises(UserError, match=message):
        combined(base_of("GPT-2"), folders, *how)
