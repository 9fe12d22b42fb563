"""Where adapters go in models that are more than dense text models: experts are reached, images are left alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from adapter_table import check, config_of, weights_sha256
from zoo import build

from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import Base
from debias.models.targets import experts, layers, reached_parameters
from debias.records import UserError


def base_of(model: Any) -> Base:
    model.requires_grad_(False).eval()
    return Base(model, None, "tiny", weights_sha256(model), "causal")  # type: ignore[arg-type]


def gemma3() -> Any:
    """Two text layers of width 32 behind an image encoder of three layers of width 48."""
    torch.manual_seed(0)
    text = hf.Gemma3TextConfig(
        vocab_size=199, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, sliding_window=24,
    )  # fmt: skip
    images = {"hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    model = hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config=images, mm_tokens_per_image=4)
    )
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def test_lora_reaches_the_experts_and_says_how_much_it_reaches(tmp_path: Path) -> None:
    """Two matrices a layer hold all experts; attached, trained, saved, loaded and removed as on any model."""
    base = base_of(build("mixtral"))
    assert experts(base.model)[:2] == [
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    ]
    config = config_of("lora")
    check(base, config, tmp_path)
    assert {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"} == set(config.target_parameters)
    known = json.loads((tmp_path / "adapter" / "debias.json").read_text())
    # All but the embeddings, the output layer, the norms and the routers.
    outside = 2 * 199 * 32 + 5 * 32 + 2 * 4 * 32
    assert known["reached_parameters"] == known["base_parameters"] - outside
    assert adapter_folder.share_reached(tmp_path / "adapter") == "77%"


def test_experts_can_be_left_out() -> None:
    base = base_of(build("mixtral"))
    model = adapters.attach(base, config_of("lora", target_parameters=[]))
    assert reached_parameters(model) == sum(
        p.numel() for n, p in base.model.named_parameters() if "self_attn" in n and "lora" not in n
    )


def test_an_adapter_that_misses_the_experts_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        adapters.attach(base_of(build("mixtral")), config_of("dora"))
    assert "keeps its experts in fused parameters, which this adapter does not reach" in caplog.text


@pytest.mark.parametrize("name", ["ia3", "bottleneck", "full"])
def test_a_method_that_cannot_attach_to_experts_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"fused parameters.*choose.*adapter=lora"):
        adapters.attach(base_of(build("mixtral")), config_of(name))


@pytest.mark.parametrize("name", ["lora", "ia3", "bottleneck", "full", "ln_tuning"])
def test_only_the_text_part_of_a_multimodal_model_is_adapted(name: str) -> None:
    """Its widths are those of the text; the image encoder's longer list of layers is not taken for the text's."""
    base = base_of(gemma3())
    assert [name for name, _ in layers(base.model)] == [f"model.language_model.layers.{i}" for i in range(2)]
    model = adapters.attach(base, config_of(name))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("language_model" in name or "lm_head" in name for name in trained)
