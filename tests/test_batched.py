"""Scores of many spans: equality with plain scoring in every layout, and independence of batching."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zoo import build

from debias.baselines.editing import Dama
from debias.models.base import Base, BaseModel
from debias.records import Masked, Span, Tokens
from debias.scoring.batched import budget, likeliest, mean_hidden, score, score_and_greedy, score_of_two
from debias.scoring.layout_trial import choose_layout, only_rounded
from debias.scoring.layouts import Layout, masked_rows, padded
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import Scorer

TOKENS = [(5, 6, 7, 8), (5, 6, 9), (5, 6, 7, 4), (3, 2), (5, 6, 7, 8, 1, 1)]
SPANS = [Span(ids, 1) for ids in TOKENS] + [Span((5, 6, 7, 8, 2), 3)]


def plain(model: nn.Module, span: Span) -> float:
    """log p(ids[start:] | ids[:start]) by one ordinary forward pass."""
    logprob_TV = model(torch.tensor([span.ids])).logits[0].log_softmax(-1)
    return sum(logprob_TV[k - 1, span.ids[k]].item() for k in range(span.start, len(span.ids)))


def model_of(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    tiny = {
        "vocab_size": 11,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
    }
    make = {
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=11, n_embd=16, n_layer=2, n_head=4, n_positions=32)
        ),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**tiny, num_key_value_heads=2)),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**tiny, num_key_value_heads=2, sliding_window=16)),
        "a window of 8": lambda: hf.MistralForCausalLM(
            hf.MistralConfig(**tiny, num_key_value_heads=2, sliding_window=8)
        ),
        "gemma2": lambda: hf.Gemma2ForCausalLM(
            hf.Gemma2Config(**tiny, num_key_value_heads=2, head_dim=4, final_logit_softcapping=0.5)
        ),
        "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**tiny)),
        "opt": lambda: hf.OPTForCausalLM(
            hf.OPTConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=24,
                         word_embed_proj_dim=16, max_position_embeddings=32)
        ),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=11, hidden_size=16, n_layer=2, n_head=4)),
    }  # fmt: skip
    model = make[architecture]()
    for parameter in model.parameters():  # far from uniform predictions
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "gemma2", "neox", "opt", "bloom"])
def test_scores_equal_plain_scoring_in_every_layout(architecture: str) -> None:
    model = model_of(architecture)
    expected = [plain(model, span) for span in SPANS]
    layout = choose_layout(model)
    # BLOOM's ALiBi biases are computed from a two-dimensional mask: it cannot take a tree.
    assert layout.name == ("padded rows" if architecture == "bloom" else "prefix tree")
    for chosen in {layout, padded}:
        for token_budget in (1, 5, 100):
            assert score(model, SPANS, chosen, token_budget) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    "layout_of",
    [lambda model: padded, choose_layout],
    ids=["padded", "chosen"],
)
def test_a_sliding_window_shorter_than_the_texts(layout_of: Callable[[nn.Module], Layout]) -> None:
    """Texts of 12 tokens, of which the model looks back at eight; the layout is chosen with texts of 48."""
    spans = [Span((5, 6, 7, 8, 9, 1, 2, 3, 4, 5, *ids), 10) for ids in ((6, 7), (6, 8), (9, 2))]
    model, wide = model_of("a window of 8"), model_of("mistral")
    expected = [plain(model, span) for span in spans]
    assert np.abs(np.array(expected) - [plain(wide, span) for span in spans]).min() > 0.01  # the window matters
    assert score(model, spans, layout_of(model)) == pytest.approx(expected, abs=2e-5)


def test_uniform_model_gives_minus_log_vocabulary_per_token() -> None:
    head = nn.Linear(4, 11, bias=False)
    nn.init.zeros_(head.weight)

    class Uniform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 4), head

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            return SimpleNamespace(logits=self.head(self.embed(input_ids)))

    tokens = [len(s.ids) - s.start for s in SPANS]
    assert score(Uniform(), SPANS) == pytest.approx([-n * math.log(11) for n in tokens], rel=1e-6)


def test_scoring_leaves_every_module_in_its_mode() -> None:
    """A frozen base in eval mode and an adapter in training mode must stay so."""
    model = model_of("gpt2").train()
    model.transformer.eval()
    score(model, SPANS)
    assert model.training
    assert not model.transformer.training


def test_real_model_scores_do_not_depend_on_batching(smollm2: Path) -> None:
    """Any text alone or among others agrees within 1e-4 nats per token in float32, for the real model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from debias.benchmarks.stereoset import StereoSet

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    texts = [c.text for c in StereoSet(BiasBench(), limit=3).candidates(Tokens(tokenizer, "causal"))]
    spans = [Span(tuple(ids), 1) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    tokens = np.array([len(span.ids) - 1 for span in spans])
    together = score(model, spans, token_budget=512) / tokens
    alone = np.concatenate([score(model, [span]) for span in spans]) / tokens
    other = score(model, spans[::-1], padded, token_budget=64)[::-1] / tokens
    assert np.abs(together - alone).max() < 1e-4
    assert np.abs(together - other).max() < 1e-4


def masked_model_of(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    tiny = {
        "vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "max_position_embeddings": 40, "pad_token_id": 0,
    }  # fmt: skip
    make = {
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**tiny)),
        "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**tiny)),
        "electra": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**tiny, embedding_size=16)),
        "distilbert": lambda: hf.DistilBertForMaskedLM(
            hf.DistilBertConfig(vocab_size=11, dim=16, n_layers=2, n_heads=4, hidden_dim=24, max_position_embeddings=40)
        ),
        "modernbert": lambda: hf.ModernBertForMaskedLM(
            hf.ModernBertConfig(**tiny, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
        ),
    }
    model = make[architecture]()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


MASKED = [
    Masked((1, 5, 3, 7, 2), (2,), (6,)), Masked((1, 3, 3, 2), (1, 2), (8, 9)),
    Masked((1, 5, 6, 7, 8, 9, 2), (3, 5), (7, 9)), Masked((1, 3, 2), (1,), (4,)),
]  # fmt: skip


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert", "modernbert"])
def test_masked_scores_equal_plain_scoring_in_every_batch(architecture: str) -> None:
    """Many masked positions of many texts in one batch, against one text a forward pass."""
    model = masked_model_of(architecture)
    assert choose_layout(model, "masked") is masked_rows
    expected, likeliest = [], []
    for ids, at, tokens in MASKED:
        logprob_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(logprob_TV[k, token].item() for k, token in zip(at, tokens, strict=True)))
        likeliest.append(all(logprob_TV[k].argmax() == token for k, token in zip(at, tokens, strict=True)))
    for token_budget in (1, 8, 100):
        assert score(model, MASKED, masked_rows, token_budget) == pytest.approx(expected, abs=2e-5)
        assert score(model, MASKED[::-1], masked_rows, token_budget)[::-1] == pytest.approx(expected, abs=2e-5)
    assert score_and_greedy(model, MASKED, masked_rows)[:, 1].astype(bool).tolist() == likeliest


def test_a_likeliest_token_is_told() -> None:
    """The same span with each possible last token: one of the eleven is the likeliest, and it alone has the mark."""
    model = model_of("gpt2")
    answers = score_and_greedy(model, [Span((1, 2, 3, last), 3) for last in range(11)])
    assert answers[:, 1].sum() == 1
    assert answers[:, 1].argmax() == answers[:, 0].argmax()


class WithoutFloat64(TorchDispatchMode):
    """A device that has no float64, such as Apple's GPUs: an operation that makes it is an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for made in tree_leaves(result):
            assert getattr(made, "dtype", None) != torch.float64, func
        return result


@pytest.mark.parametrize(
    "work",
    [
        lambda model: score_and_greedy(model, SPANS),
        lambda model: score_of_two(model, SPANS, SPANS, lambda own, other: (own + other).log_softmax(-1)),
        lambda model: likeliest(model, [Span((1, 2, 3), 2)], 2, allowed=np.arange(11) > 4),
        lambda model: mean_hidden(model, TOKENS),
    ],
    ids=["score", "of two", "likeliest", "hidden states"],
)
def test_scoring_makes_no_float64_on_the_device(work: Callable[[nn.Module], np.ndarray]) -> None:
    model = model_of("llama")
    expected = work(model)
    with WithoutFloat64():
        assert (work(model) == expected).all()


def test_fitting_dama_makes_no_float64_on_the_device(tiny: Path) -> None:
    scorer = Scorer(BaseModel(str(tiny)).load(), None)
    with WithoutFloat64():
        Dama("gender", directions=1, layers=[1]).fit(scorer)


def test_scores_are_float64_on_the_host() -> None:
    """So that sums over thousands of texts do not depend on their order."""
    assert score(model_of("gpt2"), SPANS).dtype == np.float64


@pytest.mark.parametrize(
    ("errors", "odd", "same"),
    [
        ([0.00109], 0.01, True),  # one of a hundred tokens: SmolLM2 with three adapters, alone and in a padded batch
        ([0.00109, 0.00109], 0.01, False),  # two of a hundred
        ([0.021], 0.01, False),  # a layer that sees too much moves a token by tenths
        ([0.00109], 0, False),
        ([0.0009] * 100, 0, True),
    ],
)
def test_a_single_token_may_be_badly_rounded(errors: list[float], odd: float, same: bool) -> None:
    one_E = torch.full((101,), -14.0)
    other_E = one_E.clone()
    other_E[: len(errors)] -= torch.tensor(errors)
    assert only_rounded(one_E, other_E, torch.float32, odd) is same


def test_half_precision_is_rounded_in_proportion() -> None:
    """bfloat16 keeps 8 bits: eps is 1/128, so at -16 nats a token may move by 20/8 and half of them by 2/8."""
    one_E = torch.full((10,), -16.0)
    assert only_rounded(one_E + 0.25, one_E, torch.bfloat16)
    assert not only_rounded(one_E + 0.26, one_E, torch.bfloat16)
    one_far = torch.tensor([2.5, *[0.0] * 9])
    assert only_rounded(one_E + one_far, one_E, torch.bfloat16)
    assert not only_rounded(one_E + 1.1 * one_far, one_E, torch.bfloat16)


def on_gpu(vocab_size: int, size: dict[str, int], dtype: torch.dtype, device: str = "cuda") -> Any:
    """Stands in for a model on a GPU."""
    weight = SimpleNamespace(device=torch.device(device), dtype=dtype, is_floating_point=lambda: True)
    head = SimpleNamespace(weight=torch.empty(vocab_size, 1, device="meta"))
    config = hf.LlamaConfig(vocab_size=vocab_size, **size)
    return SimpleNamespace(parameters=lambda: iter([weight]), get_output_embeddings=lambda: head, config=config)


SMOLLM2 = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "intermediate_size": 1536}
LLAMA_8B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336}
# Numbers for each position: logits, 34 or 36 hidden states, attention over 512 positions, three inner activations.
EACH_SMOLLM2 = 49_152 + 34 * 576 + 9 * 512 + 3 * 1536
EACH_8B = 128_256 + 36 * 4096 + 32 * 512 + 3 * 14_336


@pytest.mark.parametrize(
    ("vocabulary", "size", "dtype", "free", "expected"),
    [
        (49_152, SMOLLM2, torch.bfloat16, 140e9, 32_768),
        (49_152, SMOLLM2, torch.float32, 140e9, 4e9 // (49_152 * 4)),  # logits of 4 GB
        (49_152, SMOLLM2, torch.bfloat16, 2 * 2 * EACH_SMOLLM2 * 9_000, 8_192),  # half of it holds 9,000 positions
        (128_256, LLAMA_8B, torch.bfloat16, 140e9, 4e9 // (128_256 * 2)),
        (128_256, LLAMA_8B, torch.bfloat16, 2 * 2 * EACH_8B * 4_096, 4_096),
        (128_256, LLAMA_8B, torch.bfloat16, 2 * 2 * EACH_8B * 4_095, 2_048),
        (128_256, LLAMA_8B, torch.bfloat16, 0, 512),
    ],
)
def test_the_budget_fits_the_gpu_the_model_and_its_vocabulary(
    vocabulary: int, size: dict[str, int], dtype: torch.dtype, free: float, expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A third of what is free is held unused by the process itself."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free - free // 3, 200e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5e9 + free // 3)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 5e9)
    assert budget(on_gpu(vocabulary, size, dtype)) == expected
    assert budget(on_gpu(vocabulary, size, dtype, "cpu")) == 512


def test_the_budget_of_an_apple_gpu_is_that_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1e9 + 2 * 4 * EACH_SMOLLM2 * 2_048)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 1e9)
    assert budget(on_gpu(49_152, SMOLLM2, torch.float32, "mps")) == 2_048


@pytest.mark.parametrize("architecture", ["gpt2", "mamba", "bloom", "opt"])
def test_the_budget_finds_the_sizes_of_every_family(architecture: str) -> None:
    """Under other names, or not at all; a device of unknown memory has only the logits' bound."""
    assert budget(build(architecture).to("meta")) == 32_768


def test_the_budget_takes_sizes_that_differ_between_layers() -> None:
    """A list is taken at its largest; what transformers will not name is left out."""

    class OfLayers:
        hidden_size, num_hidden_layers, intermediate_size = 8, 2, [16, 32]

        @property
        def num_attention_heads(self) -> int:
            raise RuntimeError("is a per-layer attribute")

    model = on_gpu(49_152, SMOLLM2, torch.bfloat16, "meta")
    model.config = SimpleNamespace(get_text_config=OfLayers)
    assert budget(model) == 32_768


def test_half_precision_leaves_rotary_frequencies_exact() -> None:
    """As transformers itself loads a checkpoint in bf16; at position 1,000 a frequency of 8 bits is off by radians."""
    base = Base(model_of("mistral"), None, "mistral", "causal", "")  # type: ignore[arg-type]
    before = {name: buffer.clone() for name, buffer in base.model.named_buffers() if "inv_freq" in name}
    Scorer(base, None, "bf16")
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    after = dict(base.model.named_buffers())
    assert before
    assert all(torch.equal(buffer, after[name]) for name, buffer in before.items())
