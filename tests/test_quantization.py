"""Real quantised weights: bitsandbytes computes with them on a CPU too, through the modules that a GPU uses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_table import ROWS
from command import run, succeed
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from zoo_adapters import NotMergedError, tried

from debias.models import base as models
from debias.models.base import BaseModel
from debias.records import Span, UserError
from debias.scoring.batched import score
from debias.scoring.layout_trial import choose_layout

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def llama(smollm2_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of width 64, the size of a block that shares a scale."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: no weight is packed for a CPU's instructions (`_check_can_quantize` says why)."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    monkeypatch.setattr(models, "_check_can_quantize", lambda _: None)


def figures(folder: Path) -> dict[str, float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {f"{r['benchmark']} {r['bias']} {r['metric']} {r['model']}": r["value"] for r in rows}


@pytest.mark.parametrize("bits", ["4bit", pytest.param("8bit", marks=pytest.mark.slow)])
def test_an_adapter_is_trained_saved_and_read_back_beside_quantised_weights(
    bits: str, llama: Path, small: list[str], tmp_path: Path
) -> None:
    """The gate passes, another command scores the same, the plain base refuses it, and it is not merged into bits."""
    quantised = [f"model={llama}", f"model.quantization={bits}", "model.dtype=bf16"]
    words = [w for w in small if not w.startswith(("model=", "eval.stereo", "eval.perp"))]
    words = ["eval=[crows_pairs]" if w.startswith("eval=[") else w for w in words]
    succeed(tmp_path, "run", *words, *quantised, "data.n=8", "training.epochs=1", "data.bias=gender", "name=q")
    adapter = "adapter.path=outputs/q/adapter"
    scored = [w for w in words if w.startswith(("eval", "threads"))]
    succeed(tmp_path, "evaluate", *scored, *quantised, adapter, "name=again")
    trained, again = (figures(tmp_path / "outputs" / name) for name in ("q", "again"))
    assert again == pytest.approx(trained)
    changed = [key for key in trained if key.endswith("delta") and trained[key]]
    assert changed
    both = "adapter.path=[outputs/q/adapter,outputs/q/adapter]", "adapter.combine=average"
    succeed(tmp_path, "evaluate", *scored, *quantised, *both, "name=twice")
    twice = [*figures(tmp_path / "outputs/twice").values()]  # under another name
    assert bits == "8bit" or twice == pytest.approx([*trained.values()], abs=0.5)  # 8 bits: other sums
    joined = run(tmp_path, "export", *quantised, *both, "folder=joined")
    assert joined.status == 1
    assert "combine them where they are scored" in joined.err
    refused = run(tmp_path, "evaluate", *scored, f"model={llama}", "model.dtype=bf16", adapter, "name=plain")
    assert refused.status == 1
    assert f"was trained beside weights in {bits}, this base has weights that are not quantised" in refused.err
    assert f"set model.quantization={bits}" in refused.err
    merged = run(tmp_path, "export", *quantised, adapter, "merge=true", "folder=merged")
    assert merged.status == 1
    assert "leave merge=true out" in merged.err


UNFIT = {"4bit": {"full", "ia3"}, "8bit": {"full", "ia3", "adalora", "dora"}}


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("adapter", ROWS)
def test_every_adapter_works_beside_quantised_weights_or_is_refused_at_once(
    adapter: str, bits: str, llama: Path, tmp_path: Path
) -> None:
    """Attached, trained for a step, saved and read back; what is refused says what to choose."""
    base = BaseModel(str(llama), quantization=bits, dtype="bf16").load()  # type: ignore[arg-type]
    if adapter in UNFIT[bits]:
        with pytest.raises(UserError, match=r"choose adapter=lora, or remove model\.quantization"):
            tried(base, adapter, tmp_path)
    else:
        with pytest.raises(NotMergedError, match="leave merge=true out"):
            tried(base, adapter, tmp_path)


def test_a_text_scores_alike_alone_and_in_a_tree_in_four_bits(llama: Path) -> None:
    """Prefix trees are taken, and what bfloat16 rounds is all that differs."""
    base = BaseModel(str(llama), quantization="4bit", dtype="bf16").load()
    assert {p.dtype for p in base.model.parameters()} == {torch.uint8, torch.bfloat16}
    layout = choose_layout(base.model, longest=64)
    assert layout.name == "prefix tree"
    texts = [Span((5, 9, 7, k, k + 1, 11), 3) for k in range(20, 28)]
    alone = np.concatenate([score(base.model, [text], layout) for text in texts])
    np.testing.assert_allclose(score(base.model, texts, layout), alone, atol=0.1)


def test_what_does_not_go_with_quantised_weights_is_said(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"leave out model\.dtype=float32"):
        BaseModel(str(llama), quantization="4bit", dtype="float32").load()
    with caplog.at_level(logging.WARNING):
        BaseModel(str(llama), quantization="4bit", dtype="bf16").load()
        assert "depends on the whole batch" not in caplog.text
        BaseModel(str(llama), quantization="8bit", dtype="bf16").load()
    assert "depends on the whole batch" in caplog.text
