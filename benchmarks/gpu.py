"""Speed and memory on one GPU, beside what people use: `python benchmarks/gpu.py --out gpu.jsonl`, about eight minutes.

Each part runs in a process of its own, one after another, and prints a JSON line for each measurement; the table at the
end is Markdown. Models of 1.2B and 8B have random weights, made on the spot: time and memory do not depend on meaning.
Without a GPU the same parts run with a tiny model (`--tiny`), as a rehearsal.

Parts: `score` (StereoSet test: padded batches as harnesses score them, prefix trees as debias does), `train` (one
epoch: `transformers.Trainer` with PEFT, and debias without and with the KL term), `run` (`debias run` as a whole).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SIZES = {  # hidden, feed-forward, layers, heads, key-value heads, vocabulary, tied embeddings
    "tiny": (64, 176, 2, 4, 2, 49_152, True),
    "1b": (2048, 8192, 16, 32, 8, 128_256, True),
    "8b": (4096, 14_336, 32, 32, 8, 128_256, False),
}


def say(**facts: Any) -> None:
    """One measurement."""
    print(json.dumps(facts), flush=True)


def clocked(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds, and peak GPU memory in GB."""
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = work()
    if CUDA:
        torch.cuda.synchronize()
    return result, time.perf_counter() - start, torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0


def random_model(size: str, folder: Path) -> None:
    """A Llama with random bf16 weights and SmolLM2's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from debias.models.base import BaseModel

    width, inner, layers, heads, shared, vocabulary, tied = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared, max_position_embeddings=8192, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")
    BaseModel("smollm2").tokens().tokenizer.save_pretrained(folder)


# ---------------------------------------------------------------- parts


def score(model: str, precision: str, examples: int | None) -> None:
    """Milliseconds a sentence of StereoSet test, padded and as prefix trees, and the share of the peak."""
    import numpy as np
    import pandas as pd

    from debias.benchmarks import metrics
    from debias.benchmarks.stereoset import StereoSet
    from debias.models.base import BaseModel
    from debias.scoring import batched
    from debias.scoring.layout_trial import choose_layout
    from debias.scoring.protocols import Conditional

    base, seconds, _ = clocked(lambda: BaseModel(model).load())
    say(part="score", model=model, way="load", seconds=round(seconds, 1))
    dtype = {"32": torch.float32, "bf16": torch.bfloat16}[precision]
    base.model.to(DEVICE, dtype)
    protocol = Conditional()
    candidates = StereoSet(protocol, limit=examples).candidates(base.tokens)
    reading = protocol.reading(base.tokens)
    spans: list[Any] = [s for several in reading.spans(candidates, base.tokenizer) for s in several]
    tokens = np.array([span.num_tokens for span in spans])
    parameters = sum(p.numel() for p in base.model.parameters())
    size = 8192 if CUDA else 512
    left, right = torch.randn(2, size, size, device=DEVICE).to(dtype)
    _ = left @ right
    _, seconds, _ = clocked(partial(_products, left, right))
    peak = 20 * size**3 / seconds
    del left, right

    def told(way: str, scores: Any, seconds: float, memory: float, computed: int) -> None:
        terms = metrics.stereoset_terms(pd.DataFrame(candidates).assign(score=scores / tokens))
        say(
            part="score", model=model, precision=precision, way=way, sentences=len(spans),
            ms=round(1e3 * seconds / len(spans), 4), memory_gb=round(memory, 2),
            of_peak=round(2 * parameters * computed / seconds / peak, 3), peak_tflops=round(peak / 1e12, 1),
            ss=round(float(terms["ss"].mean()), 2), lms=round(float(terms["lms"].mean()), 2),
        )  # fmt: skip

    def padded(batch: int) -> Any:
        """Length-sorted padded batches, logits everywhere: what harnesses do."""
        order = sorted(range(len(spans)), key=lambda i: -len(spans[i].ids))
        found = np.zeros(len(spans))
        with torch.inference_mode():
            for k in range(0, len(order), batch):
                part = order[k : k + batch]
                ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(spans[i].ids) for i in part], batch_first=True)
                real = torch.nn.utils.rnn.pad_sequence([torch.ones(len(spans[i].ids)) for i in part], batch_first=True)
                ids, real = ids.to(DEVICE), real.long().to(DEVICE)
                logprob = base.model(input_ids=ids, attention_mask=real).logits[:, :-1].float().log_softmax(-1)
                found[part] = (logprob.gather(2, ids[:, 1:, None])[..., 0] * real[:, 1:]).sum(1).cpu().numpy()
        return found

    for batch in (64, 512) if CUDA else (16,):
        padded(batch) if batch == 64 else None
        scores, seconds, memory = clocked(partial(padded, batch))
        told(f"padded {batch}", scores, seconds, memory, int(tokens.sum()))
    longest = max(span.num_positions for span in spans)
    layout, seconds, _ = clocked(lambda: choose_layout(base.model, longest=longest))
    say(part="score", model=model, way="choose layout", layout=layout.name, seconds=round(seconds, 2))
    auto = batched.budget(base.model)
    computed = sum(int(layout([spans[i] for i in pack]).real_BT.sum()) for pack in layout.packs(spans, auto))
    for budget in dict.fromkeys([auto, auto, 4096, 32_768] if CUDA else [auto]):
        batched.score(base.model, spans[:300], layout, budget)
        scores, seconds, memory = clocked(partial(batched.score, base.model, spans, layout, budget))
        told(f"prefix trees {budget}{' (default)' if budget == auto else ''}", scores, seconds, memory, computed)


def _products(left: torch.Tensor, right: torch.Tensor) -> None:
    for _ in range(10):
        left @ right


def train(way: str, model: str, sentences: int, batch: int) -> None:
    """Seconds and memory of one epoch with a LoRA adapter on all linear layers."""
    import peft
    import pytorch_lightning as pl

    from debias.data.triplets import TripletFile
    from debias.models import adapter as adapters
    from debias.models.base import BaseModel
    from debias.scoring.encoding import encode

    pl.seed_everything(1, verbose=False)
    base = BaseModel(model).load()
    base.model.to(DEVICE)
    adapted = adapters.attach(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    texts = encode(TripletFile("gender").load().triplets[:sentences], base.tokens)
    tokens = sum(len(text.ids) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        ways = {"trainer": _trainer, "debias": partial(_debias, 0.0), "debias with KL": partial(_debias, 2.0)}
        work = ways[way](base, adapted, texts, batch, Path(folder))
        for turn in ("first", "again"):  # the first one pays for what a process needs once
            for parameter in adapted.parameters():
                parameter.grad = None
            _, seconds, memory = clocked(work)
            say(
                part="train", way=way, model=model, turn=turn, sentences=len(texts), batch=batch,
                seconds=round(seconds, 2), tokens_s=round(tokens / seconds), memory_gb=round(memory, 2),
            )  # fmt: skip
        if os.environ.get("PROFILE"):
            profiled(work, way=way, model=model)


def profiled(work: Callable[[], Any], **facts: Any) -> None:
    """What takes the time: the ten functions with most time of their own, on the host and on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities) as found:
        work()
    events = found.key_averages()
    for column in ("self_cpu_time_total", *(("self_device_time_total",) if CUDA else ())):
        top = sorted(events, key=lambda event: -getattr(event, column))[:10]
        total = sum(getattr(event, column) for event in events)
        shown = [f"{e.key[:50]} {getattr(e, column) / 1e3:.0f} ms x{e.count}" for e in top]
        say(part="profile", column=column, total_ms=round(total / 1e3), top=shown, **facts)


def _trainer(base: Any, adapted: Any, texts: Sequence[Any], batch: int, folder: Path) -> Callable[[], Any]:
    from transformers import Trainer, TrainingArguments

    if CUDA:
        adapted.to(torch.bfloat16)
    rows = [
        {"input_ids": list(t.ids), "labels": [i if t.start <= k < t.stop else -100 for k, i in enumerate(t.ids)]}
        for t in texts
    ]

    def collate(chosen: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in chosen)
        columns = {
            key: [row[key] + [fill] * (width - len(row[key])) for row in chosen]
            for key, fill in {"input_ids": 0, "labels": -100}.items()
        }
        columns["attention_mask"] = [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in chosen]
        return {key: torch.tensor(value) for key, value in columns.items()}

    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=2e-3, use_cpu=not CUDA,
        bf16=CUDA, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    return lambda: Trainer(model=adapted, args=arguments, train_dataset=rows, data_collator=collate).train()  # type: ignore[arg-type]


def _debias(
    retention: float, base: Any, adapted: Any, texts: Sequence[Any], batch: int, folder: Path
) -> Callable[[], Any]:
    from debias.records import Recipe
    from debias.scoring.layout_trial import choose_layout
    from debias.training import stage
    from debias.training.batches import SpanData
    from debias.training.module import Debiaser, fit, make_trainer
    from debias.training.neutral import Wikipedia
    from debias.training.objectives import Attribute

    objective = Attribute()
    examples: list[Any] = [(objective.span(text),) for text in texts]
    neutral = Wikipedia(48).spans(base, True) if retention else []
    recipe = Recipe(2e-3, 1, batch, "linear", 0.0, 0.0, True, retention=retention, num_neutral=batch // 2)
    turns = iter(range(100))

    def work() -> None:
        spans = [span for (span,) in examples] + neutral
        layout = choose_layout(adapted, base.kind, max(span.num_positions for span in spans))
        ask = stage.asking(adapted, base, layout) if retention else None
        count = recipe.num_neutral if retention else 0
        data = SpanData(examples, layout, batch, 1, neutral, count, ask=ask)
        place = folder / str(next(turns))
        place.mkdir()
        module = Debiaser(adapted, objective, recipe, 1)
        fit(module, data, partial(make_trainer, accelerator="auto", devices=1, logger=False), place)

    return work


def run(model: str, words: Sequence[str]) -> None:
    """Wall seconds of `debias run`, by stage, with the peaks of memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = [] if model == "smollm2" else [f"model={Path(model).resolve()}"]
        command = [sys.executable, "-m", "debias", "run", *path, *words, "name=speed"]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            say(part="run", model=model, error=done.stderr.strip()[-600:])
            return
        result = Path(folder) / "outputs/speed"
        facts = json.loads((result / "cost.json").read_text())
        stages = {name: spent["seconds"] for name, spent in facts["stages"].items()}
        host = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        log = (result / "run.log").read_text()
        say(
            part="run", model=model, seconds=round(seconds, 1), stages=stages, host_gb=round(host, 2),
            gpu_gb=facts["peak_gpu_memory_gb"], outcome=done.stdout.strip().splitlines()[-3][:300],
            slow=[line[11:140] for line in log.splitlines() if " debias" in line][-12:],
        )  # fmt: skip


# ---------------------------------------------------------------- the whole


def plan(tiny: bool, folder: Path, minutes: float) -> list[list[str]]:
    """Words of each part, the most important first."""
    if tiny:
        small = ["data.n=16", "eval.stereoset.limit=4", "eval.crows_pairs.limit=4", "eval.perplexity.limit=4"]
        few = ["eval.stereoset.whole=[]", "eval.crows_pairs.whole=[]", "training.epochs=1", "neutral=wikipedia"]
        ways = [["train", way, f"{folder}/tiny", "32", "8"] for way in ("trainer", "debias", "debias with KL")]
        return [
            ["make", "tiny"],
            ["score", f"{folder}/tiny", "32", "4"],
            *ways,
            ["run", f"{folder}/tiny", *small, *few],
        ]
    ways = ("trainer", "debias", "debias with KL")
    return [
        ["score", "smollm2", "32", "0"], ["score", "smollm2", "bf16", "0"],
        *(["train", way, "smollm2", "480", "16"] for way in ways),
        ["run", "smollm2"],
        ["make", "1b"], *(["train", way, f"{folder}/1b", "320", "16"] for way in ways),
        ["make", "8b"], ["score", f"{folder}/8b", "bf16", "300"],
        ["run", f"{folder}/8b", "data.n=500", "eval=paper"],
    ]  # fmt: skip


def main() -> None:
    """Run every part, keep what they say, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", nargs="*")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "debias-gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no further part after this long")
    parser.add_argument("--only", default="", help="parts whose words contain this")
    asked, words = parser.parse_known_args()
    part = [*asked.part, *words]
    if part:
        {
            "make": lambda: random_model(part[1], asked.folder / part[1]),
            "score": lambda: score(part[1], part[2], int(part[3]) or None),
            "train": lambda: train(part[1], part[2], int(part[3]), int(part[4])),
            "run": lambda: run(part[1], part[2:]),
        }[part[0]]()
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    start, lines = time.perf_counter(), []
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths}
    for words in plan(asked.tiny, asked.folder, asked.minutes):
        if asked.only not in " ".join(words):
            continue
        if time.perf_counter() - start > 60 * asked.minutes:
            print(f"left out for want of time: {' '.join(words)}", flush=True)
            continue
        begun = time.perf_counter()
        command = [sys.executable, __file__, "--folder", str(asked.folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        found = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode:
            found.append(json.dumps({"part": words, "error": done.stderr.strip()[-1500:]}))
        print(*found, f"# {' '.join(words)}: {time.perf_counter() - begun:.0f} s", sep="\n", flush=True)
        lines += found
        asked.out.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
