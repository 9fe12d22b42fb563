"""How fast is scoring, and what share of the machine's peak does it reach? All in one process, as ratios.

    python benchmarks/scoring.py [--sample 300] [--threads N] [--bias gender]

(a) the published way: one sentence per forward pass in float32, softmax over all positions;
(b) length-sorted padded batches, if a bias is chosen; (c) prefix trees in float32;
(d) prefix trees in bfloat16, if the processor supports it.
The sentences are those of StereoSet test under the `bias_bench` protocol; (a) scores a sample of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from debias.benchmarks import metrics
from debias.benchmarks.stereoset import StereoSet
from debias.models.base import BaseModel, bf16_is_native
from debias.records import Scored
from debias.scoring.batched import score
from debias.scoring.layouts import common_prefix, padded, prefix_tree
from debias.scoring.protocols import BiasBench
from debias.scoring.spans import start_id


def main() -> None:
    """Print one line per way of scoring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=300, help="sentences for the slow, published way")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bias", help="gender, race, religion or profession; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    base = BaseModel("smollm2", dtype="float32").load()
    model, tokenizer, protocol = base.model, base.tokenizer, BiasBench()
    chosen = {"limit": 0, "whole": arguments.bias} if arguments.bias else {}
    benchmark = StereoSet(protocol, **chosen)
    candidates = benchmark.candidates(base.tokens)
    ids = tokenizer([c.text for c in candidates], add_special_tokens=False).input_ids
    start = start_id(tokenizer, None, "<|endoftext|>")
    spans_of = protocol.reading(base.tokens).spans(candidates, tokenizer)
    spans = [span for several in spans_of for span in several]
    tokens = sum(map(len, ids))
    prefixes = sorted(span.ids[:-1] for span in spans)  # the last token predicts nothing
    positions = len(prefixes[0]) + sum(len(b) - common_prefix(a, b) for a, b in pairwise(prefixes))
    flops = positions * 2 * sum(p.numel() for p in model.parameters())  # tied embeddings: the head counts once
    print(f"{torch.get_num_threads()} threads, {len(ids)} sentences, {tokens} tokens, {positions} distinct prefixes")

    sample = np.random.default_rng(0).permutation(len(ids))[: arguments.sample]
    with torch.inference_mode():
        first_V = model(torch.tensor([[start]], device=model.device)).logits[0, 0].softmax(-1)
        begin = time.perf_counter()
        slow = np.array([one_by_one(model, first_V, ids[i]) for i in sample])
        per_sentence = (time.perf_counter() - begin) / len(sample)
    print(f"(a) one by one, float32:      {1e3 * per_sentence:7.2f} ms a sentence")

    def report(name: str, run: Callable[[], np.ndarray], peak: float) -> None:
        begin = time.perf_counter()
        scores = mean_per_token(run(), spans_of, ids)
        seconds = time.perf_counter() - begin
        print(
            f"{name} {1e3 * seconds / len(ids):7.2f} ms a sentence, {per_sentence * len(ids) / seconds:5.1f} x (a), "
            f"{tokens / seconds:6.0f} tokens/s, {flops / seconds / peak:4.0%} of peak, "
            f"largest difference {np.abs(scores[sample] - slow).max():.1e}, SS {ss(candidates, scores):.2f}"
        )

    fp32 = peak_flops(torch.float32, model.device)
    score(model, spans[:64])  # warm up
    if arguments.bias:  # the whole set would take half an hour
        report("(b) padded batches, float32: ", lambda: score(model, spans, padded), fp32)
    report("(c) prefix trees, float32:   ", lambda: score(model, spans, prefix_tree), fp32)
    print(f"peak of a 2048 x 2048 product: {fp32 / 1e9:.0f} GFLOP/s in float32")
    if model.device.type == "cuda" or bf16_is_native():
        nn.Module.to(model, torch.bfloat16)  # transformers' own `to` is typed wrongly
        bf16 = peak_flops(torch.bfloat16, model.device)
        score(model, spans[:64])
        report("(d) prefix trees, bfloat16:  ", lambda: score(model, spans, prefix_tree), bf16)
        print(f"peak in bfloat16: {bf16 / 1e9:.0f} GFLOP/s")


def one_by_one(model: PreTrainedModel, first_V: torch.Tensor, ids: list[int]) -> float:
    """The published way: mean log-probability per token of one sentence."""
    probability_TV = model(torch.tensor([ids], device=model.device)).logits[0].softmax(-1)
    joint = [first_V[ids[0]].item(), *(probability_TV[k - 1, ids[k]].item() for k in range(1, len(ids)))]
    return float(np.log(joint).mean())


def mean_per_token(logprob_S: np.ndarray, spans_of: Sequence[Sequence[Scored]], ids: list[list[int]]) -> np.ndarray:
    """Sum of a sentence's spans, divided by its length."""
    owner = np.repeat(np.arange(len(ids)), [len(several) for several in spans_of])
    return np.bincount(owner, logprob_S) / np.array([len(i) for i in ids])


def ss(candidates: list, scores: np.ndarray) -> float:
    """StereoSet's stereotype score."""
    import pandas as pd

    terms = metrics.stereoset_terms(pd.DataFrame(candidates).assign(score=scores))
    return float(terms["ss"].mean())


def peak_flops(dtype: torch.dtype, device: torch.device, size: int = 2048, seconds: float = 2.0) -> float:
    """Operations per second of a square matrix product."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    (a @ b).sum().item()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        for _ in range(8):
            product = a @ b
        product[0, 0].item()  # a GPU is behind the program: wait for it
        count += 8
    return 2 * size**3 * count / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
