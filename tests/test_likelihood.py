"""Span likelihoods: layouts derived by hand, equality with plain scoring, independence of batching."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from debias.records import Masked, Span, Tokens
from debias.scoring.layouts import Layout, PrefixTree, Sight, common_prefix, masked_rows, padded, prefix_tree, visible
from debias.scoring.likelihood import choose_layout, score, score_and_greedy, span_logprobs
from debias.scoring.protocols import BiasBench

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


def test_prefix_tree_holds_each_prefix_once() -> None:
    """Spans 5 6 7 | 5 6 9: the nodes are 5, 6, and that is all, for the last token predicts nothing."""
    batch = prefix_tree([Span((5, 6, 7), 1), Span((5, 6, 9), 2)])
    assert batch.input_ids_BT.tolist() == [[5, 6]]
    assert batch.position_ids_BT.tolist() == [[0, 1]]
    assert visible(batch)[0].tolist() == [[True, False], [True, True]]
    assert batch.position_N.tolist() == [0, 1]
    assert batch.source_E.tolist() == [0, 1, 1]  # 5 -> 6, 6 -> 7, 6 -> 9
    assert batch.token_E.tolist() == [6, 7, 9]
    assert batch.span_E.tolist() == [0, 0, 1]
    assert batch.num_tokens_S.tolist() == [2, 1]


def test_branches_of_the_tree_do_not_see_each_other() -> None:
    """1 2 . and 1 3 .: node 2 (token 3) sees the root and itself, not its sibling."""
    batch = prefix_tree([Span((1, 2, 9), 1), Span((1, 3, 9), 1)])
    assert batch.input_ids_BT.tolist() == [[1, 2, 3]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 1]]
    assert visible(batch)[0, 2].tolist() == [True, False, True]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "gemma2", "neox", "opt", "bloom"])
def test_scores_equal_plain_scoring_in_every_layout(architecture: str) -> None:
    model = model_of(architecture)
    expected = [plain(model, span) for span in SPANS]
    layout = choose_layout(model)
    # BLOOM's ALiBi biases are computed from a two-dimensional mask: it cannot take a tree.
    assert layout.name == ("padded rows" if architecture == "bloom" else "prefix tree")
    for chosen in {layout, padded}:
        for budget in (1, 5, 100):
            assert score(model, SPANS, chosen, budget) == pytest.approx(expected, abs=2e-5)


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


def test_logits_are_computed_only_where_a_token_is_scored() -> None:
    model = model_of("llama")
    rows = []
    model.lm_head.register_forward_hook(lambda _, args, out: rows.append(tuple(out.shape)))
    span_logprobs(model, prefix_tree([Span((1, 2, 3, 4, 5), 4), Span((1, 2, 3, 4, 6), 4)]))
    assert rows == [(1, 1, 11)]  # one position, two answers


def test_gradient_is_that_of_the_ordinary_loss() -> None:
    model = model_of("gpt2")
    ids = torch.tensor([[1, 2, 3, 4]])
    model(ids, labels=torch.tensor([[-100, -100, 3, 4]])).loss.backward()
    expected = model.transformer.wte.weight.grad.clone()
    model.zero_grad()
    (-span_logprobs(model, prefix_tree([Span((1, 2, 3, 4), 2)])).sum() / 2).backward()
    assert torch.allclose(model.transformer.wte.weight.grad, expected, atol=1e-6)


def test_scoring_leaves_every_module_in_its_mode() -> None:
    """A frozen base in eval mode and an adapter in training mode must stay so."""
    model = model_of("gpt2").train()
    model.transformer.eval()
    score(model, SPANS)
    assert model.training
    assert not model.transformer.training


def test_batches_keep_to_the_budget_and_cover_everything() -> None:
    for layout in (prefix_tree, padded):
        batches = list(layout.packs(SPANS, 4))
        assert sorted(i for batch in batches for i in batch) == list(range(len(SPANS)))
        for batch in batches:
            assert layout([SPANS[i] for i in batch]).input_ids_BT.numel() <= 4 or len(batch) == 1


def test_a_long_tree_becomes_several_rows() -> None:
    """1 2 . | 1 3 . | 4 5 . in rows of three: the second row begins at its own root and is padded."""
    spans = [Span((1, 2, 9), 1), Span((1, 3, 9), 1), Span((4, 5, 9), 1)]
    layout = PrefixTree(row=3)
    batch = layout(spans)
    assert batch.input_ids_BT.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch.real_BT.tolist() == [[True, True, True], [True, True, False]]
    assert visible(batch)[1].tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert batch.span_E.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.position_N[batch.source_E].tolist() == [0, 1, 0, 2, 3, 4]
    assert list(layout.packs(spans, 6)) == [[0, 1, 2]]
    assert list(layout.packs(spans, 3)) == [[0, 1], [2]]


def test_a_window_counts_ancestors_not_places_in_the_row() -> None:
    """1 2 3 . | 1 4 . with a window of 2: token 4 (place 3, depth 1) sees its parent 1 and not the root of nothing."""
    batch = PrefixTree(Sight(window=2))([Span((1, 2, 3, 9), 1), Span((1, 4, 9), 1)])
    assert batch.input_ids_BT.tolist() == [[1, 2, 3, 4]]
    assert visible(batch)[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    of_layers = PrefixTree(Sight(("full_attention", "sliding_attention"), window=2))([Span((1, 2, 3, 9), 1)])
    assert visible(of_layers, "full_attention")[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert visible(of_layers, "sliding_attention")[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_stereoset_needs_81364_positions(smollm2_tokenizer: Path) -> None:
    """The count of distinct prefixes with a successor, over the 19,176 sentences of the test set."""
    from transformers import AutoTokenizer

    from debias.benchmarks.stereoset import StereoSet

    texts = [c.text for c in StereoSet(BiasBench()).candidates(Tokens(None, "causal"))]
    ids = AutoTokenizer.from_pretrained(smollm2_tokenizer)(texts, add_special_tokens=False).input_ids
    spans = [Span(tuple(i), 1) for i in ids]
    ordered = sorted(span.ids[:-1] for span in spans)
    positions = len(ordered[0]) + sum(len(b) - common_prefix(a, b) for a, b in pairwise(ordered))
    in_rows = sum(int(prefix_tree([spans[i] for i in pack]).real_BT.sum()) for pack in prefix_tree.packs(spans, 512))
    assert len(texts) == 19_176
    assert sum(map(len, ids)) == 194_100
    assert positions == 81_364
    assert positions <= in_rows < 1.02 * positions  # what rows of 512 share no more


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
    for budget in (1, 8, 100):
        assert score(model, MASKED, masked_rows, budget) == pytest.approx(expected, abs=2e-5)
        assert score(model, MASKED[::-1], masked_rows, budget)[::-1] == pytest.approx(expected, abs=2e-5)
    assert score_and_greedy(model, MASKED, masked_rows)[:, 1].astype(bool).tolist() == likeliest


def test_a_likeliest_token_is_told() -> None:
    """The same span with each possible last token: one of the eleven is the likeliest, and it alone has the mark."""
    model = model_of("gpt2")
    answers = score_and_greedy(model, [Span((1, 2, 3, last), 3) for last in range(11)])
    assert answers[:, 1].sum() == 1
    assert answers[:, 1].argmax() == answers[:, 0].argmax()
