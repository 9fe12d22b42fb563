"""How fast is training? debias, transformers.Trainer, and the paper's batches of one sentence.

    python benchmarks/training.py --sentences 160

All use the same model, sentences, LoRA adapter, loss (the attribute's tokens), optimiser, number of epochs and threads;
each runs in its own process. Retention is off but in one row, because the others have no equivalent: there the KL term
covers the sentences and eight neutral texts a step. debias trains as `debias run` does, in bfloat16 where that pays;
Trainer is measured in float32 and in bfloat16 (`bf16=True`). Ratios mean more than seconds. This is about the CPU: a
GPU is hidden (`gpu.py` measures it).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from debias.data.triplets import TripletFile
from debias.models import adapter as adapters
from debias.models.base import Base, BaseModel
from debias.records import Encoded, Recipe
from debias.scoring.encoding import encode
from debias.scoring.layout_trial import choose_layout
from debias.training.arithmetic import bf16_pays, fast_kernels, frozen_in_bf16
from debias.training.batches import SpanData
from debias.training.fitting import fit
from debias.training.module import Debiaser, make_trainer
from debias.training.neutral import SelfGenerated
from debias.training.objectives import Attribute
from debias.training.stage import CPU_ROW, asking

WAYS = {
    "debias": "debias, batches of 16",
    "float32": "debias, batches of 16, float32",
    "retention": "debias, the same as the first, with the KL term",
    "trainer": "transformers.Trainer, batches of 16",
    "trainer_bf16": "transformers.Trainer, batches of 16, bf16=True",
    "single": "transformers.Trainer, batches of 1 (as published)",
}


def prepared(sentences: int) -> tuple[Base, Any, list[Encoded]]:
    """Base, model with a fresh adapter, and the encoded sentences."""
    pl.seed_everything(1, verbose=False)
    base = BaseModel("smollm2", dtype="float32").load()
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    return base, adapters.attach(base, config), encode(TripletFile("gender").load().triplets[:sentences], base.tokens)


def with_debias(sentences: int, rounded: bool = True, retention: bool = False) -> float:
    """Seconds of one epoch; with retention, the base's answers are asked for within it."""
    base, model, texts = prepared(sentences)
    neutral = SelfGenerated().spans(base, start_token=True) if retention else []
    recipe = Recipe(2e-3, 1, 16, "linear", 0.0, 0.0, True, 2.0 if retention else 0.0, len(neutral) and 8)
    layout = choose_layout(model, base.kind, 64, CPU_ROW)
    spans = [(Attribute().span(text),) for text in texts]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as arithmetic:
        os.environ["DEBIAS_CACHE"] = folder  # nothing is known of an earlier run
        data = SpanData(
            spans, layout, 16, 1, neutral, len(neutral) and 8, ask=asking(model, base, layout) if retention else None
        )
        arithmetic.enter_context(fast_kernels(torch.device("cpu"), CPU_ROW))
        if rounded := rounded and bf16_pays(model):
            arithmetic.enter_context(frozen_in_bf16(model))
        trainer = partial(
            make_trainer, "bf16-mixed" if rounded else "32-true", accelerator="cpu", devices=1, logger=False
        )
        start = time.perf_counter()
        fit(Debiaser(model, Attribute(), recipe, 1), data, trainer, Path(folder))
        return time.perf_counter() - start


def with_transformers(sentences: int, batch_size: int, bf16: bool = False) -> float:
    """Seconds of one epoch."""
    from transformers import Trainer, TrainingArguments

    _, model, texts = prepared(sentences)
    rows = [
        {"input_ids": list(t.ids), "labels": [i if t.start <= k < t.stop else -100 for k, i in enumerate(t.ids)]}
        for t in texts
    ]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        fills = {"input_ids": 0, "labels": -100}
        columns = {k: [row[k] + [v] * (width - len(row[k])) for row in batch] for k, v in fills.items()}
        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
        return {name: torch.tensor(column) for name, column in {**columns, "attention_mask": mask}.items()}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch_size, num_train_epochs=1, learning_rate=2e-3, use_cpu=True,
            bf16=bf16,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


def measure(way: str, sentences: int) -> None:
    """Print one measurement as JSON."""
    logging.disable(logging.WARNING)
    ways: dict[str, Callable[[int], float]] = {
        "debias": with_debias,
        "float32": partial(with_debias, rounded=False),
        "retention": partial(with_debias, retention=True),
        "trainer_bf16": partial(with_transformers, batch_size=16, bf16=True),
        "trainer": partial(with_transformers, batch_size=16),
        "single": partial(with_transformers, batch_size=1),
    }
    seconds = ways[way](sentences)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "memory": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=160)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--way", choices=WAYS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        measure(options.way, options.sentences)
        return
    texts = encode(TripletFile("gender").load().triplets[: options.sentences], BaseModel("smollm2").tokens())
    tokens = sum(len(text.ids) for text in texts)
    found = {}
    for way in WAYS:
        command = [
            sys.executable,
            __file__,
            "--way",
            way,
            "--sentences",
            str(options.sentences),
            "--threads",
            str(options.threads),
        ]
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=hidden)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    table = Table(
        title=f"one epoch of {options.sentences} sentences, {tokens:,} tokens, {options.threads} threads", box=None
    )
    for name in ("", "seconds", "tokens/s", "debias is faster by", "peak memory, GB"):
        table.add_column(name, justify="left" if not name else "right")
    for way, row in found.items():
        ratio = row["seconds"] / found["debias"]["seconds"]
        table.add_row(
            WAYS[way],
            f"{row['seconds']:.1f}",
            f"{tokens / row['seconds']:.0f}",
            f"{ratio:.1f} x",
            f"{row['memory']:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
