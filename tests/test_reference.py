"""What the base says is asked once: the KL term, its gradient and a margin are those of asking it in every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf

from debias.records import Masked, Scored, Span
from debias.scoring import reference
from debias.scoring.layout_trial import choose_layout
from debias.scoring.layouts import Layout, masked_rows, padded, prefix_tree
from debias.scoring.likelihood import beside_base, beside_target
from debias.training.batches import SpanData

SPANS: dict[str, list[Scored]] = {
    # Two texts share 3 4 5: one only reads the position of 5, from which the other scores. The last scores nothing.
    "causal": [Span((3, 4, 5, 6), 3), Span((3, 4, 5, 7, 8, 9), 4), Span((2, 9, 1), 1), Span((3, 4, 5, 6, 7), 5)],
    "masked": [Masked((1, 5, 3, 7, 2), (2,), (6,)), Masked((1, 3, 3, 2), (1, 2), (8, 9)), Masked((4, 5, 6), (), ())],
}


def adapted(kind: str) -> Any:
    """A tiny model with a LoRA whose B is not zero, so that it differs from its base."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 11, "initializer_range": 0.5}
    if kind == "causal":
        base: Any = hf.GPT2LMHeadModel(hf.GPT2Config(**small, n_embd=16, n_layer=2, n_head=4, n_positions=32))
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
        base = hf.BertForMaskedLM(hf.BertConfig(**small, **sizes))
        config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    return peft.get_peft_model(base.eval().requires_grad_(False), config).eval()


def said(model: Any, spans: list[Scored], layout: Layout, **where: Any) -> list[reference.Said]:
    with model.disable_adapter():
        return reference.ask(model, spans, layout, 8, **where)


@pytest.mark.parametrize(("kind", "layout"), [("causal", prefix_tree), ("causal", padded), ("masked", masked_rows)])
def test_the_base_need_not_be_asked_again(kind: str, layout: Layout) -> None:
    """Log-probabilities, KL divergence, its weight and the gradient agree with a forward pass of the base."""
    model, spans = adapted(kind), SPANS[kind]
    answers = said(model, spans, layout)
    chosen = [2, 0, 1]  # a batch in another order than the base was asked in
    batch = layout([spans[i] for i in chosen])
    exact = beside_base(model, batch, drift=True)
    kept = beside_target(model, *reference.target(batch, [answers[i] for i in chosen]))
    for one, other in zip(exact, kept, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-5)
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(b.drift - (b.logprob_S * b.base_S).sum(), weights)])
        for b in (exact, kept)
    ]
    assert float(gradients[0].norm()) > 0.1
    assert torch.allclose(*gradients, atol=1e-4)


def test_without_a_kl_term_the_base_is_compared_on_the_spans_alone() -> None:
    model, spans = adapted("causal"), SPANS["causal"]
    batch = prefix_tree(spans)
    kept = beside_target(model, *reference.target(batch, said(model, spans, prefix_tree), kl=False))
    exact = beside_base(model, batch, drift=False)
    assert torch.allclose(kept.base_S, exact.base_S, atol=1e-5)
    assert torch.allclose(kept.logprob_S, exact.logprob_S, atol=1e-5)
    assert kept.drift == 0


def test_answers_are_kept_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spans = adapted("causal"), SPANS["causal"]
    first = said(model, spans, prefix_tree, cache=tmp_path, key="this base")
    monkeypatch.setattr(reference, "_answers", None)  # asking again would fail
    again = said(model, spans, prefix_tree, cache=tmp_path, key="this base")
    for one, other in zip(first, again, strict=True):
        assert one.logprob == other.logprob
        assert torch.equal(one.hidden_LD, other.hidden_LD)
    with pytest.raises(TypeError):
        said(model, spans, prefix_tree, cache=tmp_path, key="another base")
    (file,) = (tmp_path / "reference").glob("*.safetensors")
    file.write_bytes(b"half a file")
    with pytest.raises(TypeError):  # a damaged file is not read
        said(model, spans, prefix_tree, cache=tmp_path, key="this base")


def test_logits_that_are_capped_behind_the_output_layer_are_refused() -> None:
    """Gemma 2 caps its logits: hidden states and output layer do not tell them."""
    config = hf.Gemma2Config(
        vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        intermediate_size=24, final_logit_softcapping=0.5, initializer_range=0.5,
    )  # fmt: skip
    model = hf.Gemma2ForCausalLM(config).eval()
    with pytest.raises(ValueError, match="changes its logits behind the output layer"):
        reference.ask(model, SPANS["causal"], choose_layout(model), 8)


def test_every_text_is_asked_about_once() -> None:
    """Six examples in two epochs, and the neutral texts: examples and neutral texts are asked about apart."""
    asked: list[list[Scored]] = []

    def ask(spans: Any) -> list[reference.Said]:
        asked.append(list(spans))
        return [reference.Said(0.0, torch.zeros(span.num_context, 2)) for span in spans]

    examples = [(Span((1, 2, k), 2),) for k in range(6)]
    neutral = [Span((3, 4, k), 3) for k in range(4)]
    data = SpanData(examples, prefix_tree, 2, 1, neutral, num_neutral=1, ask=ask)
    for epoch in (0, 1):
        data._ask_all(index for step in data.batches(epoch) for index in step)
    assert [len(spans) for spans in asked] == [6, 4]
    step = data.lay(data.divided([0, 7], devices=1, accumulated=1)[0])
    assert step.target is not None
    # 1 2 | k scores from the position of 2 and only reads 1; the neutral 3 4 1 only reads 3 and 4.
    assert step.target.weight_M.tolist() == [1, 1, 1]
