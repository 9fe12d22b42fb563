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
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file

from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import BaseModel
from debias.models.composition import combined
from debias.models.targets import PREDICTION_HEAD
from debias.records import UserError

STACKABLE = ["lora", "bottleneck", "dora", "adalora", "vera", "ia3"]


def save(folder: Path, name: str, seed: int | None, column: str = "GPT-2", **keys: Any) -> Path:
    """An adapter whose numbers are drawn with the seed, or a fresh one."""
    base = base_of(column)
    torch.manual_seed(seed or 0)
    model = adapters.attach(base, config_of(name, **keys))
    for parameter in model.parameters():
        if parameter.requires_grad and seed is not None:
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    adapter_folder.save(model, base, folder)
    return folder


def answers(folders: Sequence[Path], *how: Any, column: str = "GPT-2") -> list[torch.Tensor]:
    base = base_of(column)
    model = combined(base, folders, *how) if how else adapter_folder.load(base, folders[0])
    before = logits(base_of(column).model, base.kind)
    found = logits(model, base.kind)
    with model.disable_adapter():
        assert all(map(torch.equal, before, logits(model, base.kind)))
    assert all(map(torch.equal, found, logits(model, base.kind)))  # switched on again it is what it was
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
        merged = adapter_folder.load(base_of("GPT-2"), folder).merge_and_unload()
        for changed, original, target in zip(
            merged.parameters(), base.model.parameters(), expected.parameters(), strict=True
        ):
            target.add_(changed - original)
    assert close(answers([a, b], "stack"), logits(expected, "causal"))


@pytest.mark.parametrize("name", ["lora", "bottleneck", "adalora"])
def test_a_sum_takes_weights_as_they_are(tmp_path: Path, name: str) -> None:
    """Halves are the average, ones are the stack, and 2 and 0 are twice the first alone."""
    a, b = save(tmp_path / "a", name, 1), save(tmp_path / "b", name, 2)
    assert close(answers([a, b], "sum", [0.5, 0.5]), answers([a, b], "average"))
    assert close(answers([a, b], "sum"), answers([a, b], "stack"))
    assert close(answers([a, b], "sum", [2, 0]), answers([a, a], "stack"))
    assert not close(answers([a, b], "sum"), answers([a, b], "average"))


# Two adapters each: method, architecture, and the options of one and of the other.
AVERAGES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("lora", "GPT-2", {}, {}),
    "r and alpha": ("lora", "GPT-2", {"r": 4, "lora_alpha": 3}, {"r": 8, "lora_alpha": 16}),
    "rslora": ("lora", "GPT-2", {"use_rslora": True}, {"use_rslora": True, "r": 4}),
    "rslora and lora": ("lora", "GPT-2", {"use_rslora": True}, {}),
    "rank_pattern": ("lora", "GPT-2", {"rank_pattern": {"c_attn": 12}, "alpha_pattern": {"c_proj": 5}}, {"r": 2}),
    "lora_bias": ("lora", "GPT-2", {"lora_bias": True}, {}),
    "other modules": ("lora", "Llama", {"target_modules": ["q_proj"]}, {"target_modules": ["v_proj", "q_proj"]}),
    "embeddings": ("lora", "Llama", {"target_modules": ["embed_tokens", "lm_head"]}, {"target_modules": ["lm_head"]}),
    "two heads": ("lora", "BERT", {"modules_to_save": [PREDICTION_HEAD]}, {"modules_to_save": [PREDICTION_HEAD]}),
    "one head": ("lora", "BERT", {}, {"modules_to_save": [PREDICTION_HEAD]}),
    "adalora": ("adalora", "GPT-2", {}, {"init_r": 6}),
    "vera": ("vera", "Llama", {}, {}),
    "ia3": ("ia3", "Llama", {}, {}),
    "ia3 of other modules": (
        "ia3", "Llama", {"target_modules": ["k_proj"], "feedforward_modules": []},
        {"target_modules": ["down_proj", "k_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "bottleneck": ("bottleneck", "BERT", {}, {"reduction_factor": 4, "non_linearity": "gelu"}),
    "bottleneck with a head": ("bottleneck", "BERT", {"modules_to_save": [PREDICTION_HEAD]}, {}),
    "ln_tuning": ("ln_tuning", "BERT", {}, {}),
    "ln_tuning of other modules": ("ln_tuning", "Llama", {"target_modules": ["norm"]}, {}),
    "full": ("full", "GPT-2", {}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "column", "one", "other"), AVERAGES.values(), ids=AVERAGES)
def test_an_average_adds_the_mean_of_what_its_adapters_add(
    tmp_path: Path, name: str, column: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Averaged with itself, an adapter is what it is; of two, every module gives 3/4 of one and 1/4 of the other."""
    a, b = save(tmp_path / "a", name, 1, column, **one), save(tmp_path / "b", name, 2, column, **other)
    assert close(answers([a, a], "average", column=column), answers([a], column=column))
    assert close(answers([a, a, a], "average", [1, 2, 5], column=column), answers([a], column=column))
    assert close(answers([a, b], "average", [0, 3], column=column), answers([b], column=column))
    assert not close(answers([a, b], "average", column=column), answers([b], column=column))
    mean = modules(combined(base_of(column), [a, b], "average", [3, 1]))
    alone = [modules(adapter_folder.load(base_of(column), folder)) for folder in (a, b)]
    inputs = inputs_of(mean)
    assert inputs
    for module, x in inputs.items():
        expected = 0.75 * alone[0][module](x) + 0.25 * alone[1][module](x)
        assert torch.allclose(mean[module](x), expected, atol=1e-4), module


def modules(model: Any) -> dict[str, torch.nn.Module]:
    """The model itself under an empty name, and its modules as the base names them."""
    return dict(model.eval().get_base_model().named_modules())


def inputs_of(model: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """What each adapted module reads when the model reads a text."""
    inputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].clone()}))
        for name, module in model.items()
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
    ]
    with torch.no_grad():
        model[""](input_ids=torch.arange(1, 9)[None])
    for hook in hooks:
        hook.remove()
    return inputs


def test_a_part_that_is_broken_is_refused_as_an_adapter_alone_is(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", "lora", 1), save(tmp_path / "b", "lora", 2)
    file = b / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "h.0" in k}, file, {"format": "pt"})
    for combine in ("stack", "average"):
        for folders in ([a, b], [b, a]):
            with pytest.raises(UserError, match=r"b/adapter_model\.safetensors lacks .*h\.1"):
                combined(base_of("GPT-2"), folders, combine)


def test_the_command_line_scores_them_as_one_model(tiny: Path, small: list[str], tmp_path: Path) -> None:
    base = BaseModel(str(tiny)).load()
    for name in "ab":
        model = adapters.attach(base, config_of("bottleneck"))
        adapter_folder.save(model, base, tmp_path / name)
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
        (("prefix", "prefix"), ("average",), "does not work for PREFIX_TUNING adapters; remove adapter.combine"),
        (("full", "full"), ("stack",), "does not work for LN_TUNING adapters; set adapter.combine=average"),
        (("dora", "dora"), ("average",), "does not work for DORA adapters; set adapter.combine=stack"),
        (("lora",), ("stack",), "needs several adapters"),
        (("lora", "lora"), ("mean",), "'mean' is unknown; choose stack, average, sum"),
        (("lora", "lora"), ("stack", [1, 2]), "weights belong to an average or a sum"),
        (("ia3", "ia3"), ("sum",), "does not work for IA3 adapters; set adapter.combine=stack"),
        (("lora", "lora"), ("average", [1]), "one weight of 0 or more for each of the 2"),
    ],
)
def test_what_cannot_be_combined(tmp_path: Path, kinds: tuple[str, ...], how: tuple[Any, ...], message: str) -> None:
    folders = [save(tmp_path / str(i), name, 1) for i, name in enumerate(kinds)]
    with pytest.raises(UserError, match=message):
        combined(base_of("GPT-2"), folders, *how)


@pytest.mark.parametrize(
    ("combine", "keys", "message"),
    [
        ("average", {"trainable_token_indices": [3, 5]}, "does not work with trainable_token_indices"),
        ("stack", {"trainable_token_indices": [3, 5]}, "does not work with trainable_token_indices"),
        ("stack", {"modules_to_save": ["lm_head"]}, "at most one of the adapters.*set adapter.combine=average"),
        ("sum", {"modules_to_save": ["lm_head"]}, "none of the adapters may have.*set adapter.combine=average"),
    ],
)
def test_options_that_cannot_be_combined(tmp_path: Path, combine: str, keys: dict[str, Any], message: str) -> None:
    folders = [save(tmp_path / part, "lora", 1, "Llama", **keys) for part in "ab"]
    with pytest.raises(UserError, match=message):
        combined(base_of("Llama"), folders, combine)
