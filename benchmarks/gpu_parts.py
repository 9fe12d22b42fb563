"""The parts of `gpu.py`, each a process: makes a model, or measures and prints a JSON line for each measurement.

`make` a model; `run` and `rerun`: `debias run` as a whole, with an empty cache and with a full one; `checks`: settings
that run code of their own on a GPU; `score`: StereoSet test as harnesses do it and as debias does; `train`: an epoch of
`transformers.Trainer` with PEFT and of debias. A way that fails is told and the next begins; the exit status is then 1.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import peft
import pytorch_lightning as pl
import torch
import transformers
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from debias.benchmarks import metrics
from debias.benchmarks.stereoset import StereoSet
from debias.data.triplets import TripletFile
from debias.models import adapter as adapters
from debias.models.base import Base, BaseModel, LanguageModel
from debias.records import Candidate, Recipe, Scored, Triplet
from debias.scoring import batched
from debias.scoring.layout_trial import choose_layout
from debias.scoring.layouts import ROW, Layout
from debias.scoring.protocols import Conditional
from debias.training import stage
from debias.training.arithmetic import bf16_pays, fast_kernels, frozen_in_bf16
from debias.training.balance import Balance, Nothing, Pronouns
from debias.training.batches import SpanData
from debias.training.examples import examples
from debias.training.fitting import fit
from debias.training.module import Debiaser, make_trainer
from debias.training.neutral import SelfGenerated
from debias.training.objectives import Attribute, NegativePreference
from debias.training.pairs import paired

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SIZES = {  # hidden, feed-forward, layers, heads, key-value heads, vocabulary, tied embeddings
    "tiny": (64, 176, 2, 4, 2, 49_152, True),
    "1b": (2048, 8192, 16, 32, 8, 128_256, True),
    "8b": (4096, 14_336, 32, 32, 8, 128_256, False),
}
TINY = 16  # sentences of a rehearsal
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
CHECKS = (  # settings that run code of their own on a GPU
    ("adapter=prompt",), ("adapter=prefix",), ("adapter=adalora",), ("adapter=full", "training.lr=5e-5"),
    ("adapter=ln_tuning",), ("training.watch.every=2",), ("model.dtype=float32", "scoring.precision=32"),
    ("model.quantization=4bit",), ("model.quantization=8bit",),
)  # fmt: skip

Scores = Callable[[Sequence[Scored]], np.ndarray]  # log-probabilities of texts

failed: list[str] = []  # ways of this part


def say(part: str, **facts: Any) -> None:
    """One measurement."""
    device = torch.cuda.get_device_name() if CUDA else "CPU"
    print(json.dumps({"part": part, "device": device, **facts}), flush=True)


@contextmanager
def attempt(part: str, **facts: Any) -> Iterator[None]:
    """In the block, an error is told and goes no further."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        failed.append(str(facts))
        say(part, **facts, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def clocked(work: Callable[[], Any]) -> tuple[Any, float, float | None]:
    """Result, seconds, and peak GPU memory in GB."""
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = work()
    if CUDA:
        torch.cuda.synchronize()
    return result, time.perf_counter() - start, torch.cuda.max_memory_allocated() / 1e9 if CUDA else None


def rounded(memory: float | None) -> float | None:
    """Gigabytes as they are told."""
    return None if memory is None else round(memory, 2)


# ---------------------------------------------------------------- models


def make(size: str, place: str) -> None:
    """A Llama with random bf16 weights and SmolLM2's tokenizer; or SmolLM2, converted into the cache."""
    say("machine", torch=torch.__version__, transformers=transformers.__version__, cores=os.cpu_count())
    if size == "smollm2":
        BaseModel("smollm2").load()
        return
    folder = Path(place)
    if folder.is_dir():  # of an earlier command
        return
    width, inner, layers, heads, shared, vocabulary, tied = SIZES[size]
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared, max_position_embeddings=8192, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    unfinished = folder.with_name(f"{folder.name}.unfinished")  # a part may be stopped at any time
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished, max_shard_size="4GB")
    BaseModel("smollm2").tokens().tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


# ---------------------------------------------------------------- scoring


def score(model: str, examples_per_bias: str, *precisions: str) -> None:
    """Milliseconds a sentence, the share of the peak, and memory; 0 examples: all."""
    for precision in precisions:
        with attempt("score", model=Path(model).name, precision=precision):
            _score(model, precision, int(examples_per_bias) or None)


def _score(model: str, precision: str, limit: int | None) -> None:
    name, dtype = Path(model).name, DTYPES[precision]
    # In this type from the file on: weights rounded to bf16 would stay rounded in float32.
    kind = "float32" if precision == "32" else "bf16"
    base, seconds, _ = clocked(lambda: BaseModel(model, dtype=kind).load())  # type: ignore[arg-type]
    say("load", model=name, precision=precision, seconds=round(seconds, 1))
    protocol = Conditional()
    candidates = StereoSet(protocol, limit=limit).candidates(base.tokens)
    reading = protocol.reading(base.tokens)
    spans = [span for several in reading.spans(candidates, base.tokenizer) for span in several]
    layout, seconds, _ = clocked(lambda: choose_layout(base.model, longest=max(s.num_positions for s in spans)))
    say("layout", model=name, precision=precision, chosen=layout.name, seconds=round(seconds, 2))
    peak = peak_of_products(dtype)
    say("peak", precision=precision, tflops=round(peak / 1e12, 1))
    body, head = weights(base.model)
    of_rows = operations(body, head, *read_alone(spans))
    auto = batched.budget(base.model)
    of_layout = operations(body, head, *read_by(layout, spans, auto))

    def told(way: str, work: Scores, computed: int, warm_up: Sequence[Scored] = ()) -> None:
        with attempt("score", model=name, precision=precision, way=way):
            if warm_up:
                work(warm_up)
            scores, seconds, memory = clocked(lambda: work(spans))
            say(
                "score", model=name, precision=precision, way=way, sentences=len(spans),
                ms=round(1e3 * seconds / len(spans), 4), memory_gb=rounded(memory),
                of_peak=round(computed / seconds / peak, 4), **figures(candidates, spans, scores),
            )  # fmt: skip

    def trees(budget: int, note: str = "", warm: bool = True) -> None:
        first = [spans[i] for i in next(iter(layout.packs(spans, budget)))] if warm else []  # a batch of the same size
        work = partial(batched.score, base.model, layout=layout, token_budget=budget)
        told(f"debias, {layout.name}, {budget:,} positions{note}", work, of_layout, first)

    trees(auto, " (default, first pass of the process)", warm=False)
    for size in (64, 512) if CUDA else (16,):
        longest = sorted(spans, key=lambda span: -span.num_positions)[:size]
        told(f"padded, {size}", partial(padded, base.model, size), of_rows, longest)
    if importlib.util.find_spec("lm_eval"):
        told("lm-evaluation-harness, auto", partial(by_harness, base), of_rows)
    else:
        say("note", text="lm-evaluation-harness is not installed, so it is not measured (pip install lm-eval)")
    for budget in sorted({4096, 32_768} - {auto}) if CUDA else ():
        trees(budget)
    trees(auto, " (default, warm)")


def figures(candidates: Sequence[Candidate], spans: Sequence[Scored], scores: np.ndarray) -> dict[str, float]:
    """StereoSet's SS and LMS, which all ways should agree on."""
    per_token = scores / np.array([span.num_tokens for span in spans])
    terms = metrics.stereoset_terms(pd.DataFrame(candidates).assign(score=per_token))
    return {name: round(float(terms[name].mean()), 2) for name in ("ss", "lms")}


def padded(model: LanguageModel, size: int, spans: Sequence[Any]) -> np.ndarray:
    """Length-sorted padded batches with logits everywhere, as harnesses score."""
    order = sorted(range(len(spans)), key=lambda i: -len(spans[i].ids))
    found = np.zeros(len(spans))
    with torch.inference_mode():
        for k in range(0, len(order), size):
            numbers = order[k : k + size]
            texts = [torch.tensor(spans[i].ids) for i in numbers]
            ids_BT = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(DEVICE)
            real_BT = nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True).to(DEVICE)
            # The last token predicts nothing.
            logits_BTV = model(input_ids=ids_BT[:, :-1], attention_mask=real_BT[:, :-1]).logits
            logprob_BT = logits_BTV.float().log_softmax(-1).gather(2, ids_BT[:, 1:, None])[..., 0]
            found[numbers] = (logprob_BT * real_BT[:, 1:]).sum(1).cpu().numpy()
    return found


def by_harness(base: Base, spans: Sequence[Any]) -> np.ndarray:
    """lm-evaluation-harness on the same tokens; the time includes its search for a batch size."""
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size="auto")
    requests = [(("", ""), list(span.ids[: span.start]), list(span.ids[span.start :])) for span in spans]
    return np.array([logprob for logprob, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)])


def weights(model: LanguageModel) -> tuple[int, int]:
    """Weights that are multiplied at a position: those of the body's linear layers, and those of the output layer."""
    head: Any = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    return sum(module.weight.numel() for module in linear), head.weight.numel()


def operations(body: int, head: int, positions: int, scored: int) -> int:
    """Operations of the matrix products with weights: attention, norms and the softmax are left out."""
    return 2 * (body * positions + head * scored)


def read_alone(spans: Sequence[Scored]) -> tuple[int, int]:
    """Positions that texts need one by one, without padding, and those that predict a scored token."""
    return sum(span.num_positions for span in spans), sum(span.num_tokens for span in spans)


def read_by(layout: Layout, spans: Sequence[Scored], budget: int) -> tuple[int, int]:
    """The same for a layout, which may share positions between texts."""
    batches = [layout([spans[i] for i in numbers]) for numbers in layout.packs(spans, budget)]
    return sum(int(batch.real_BT.sum()) for batch in batches), sum(len(batch.position_N) for batch in batches)


def peak_of_products(dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product."""
    size = 8192 if CUDA else 1024
    left, right = torch.randn(2, size, size, device=DEVICE).to(dtype)

    def products() -> None:
        for _ in range(10):
            left @ right

    products()
    return 20 * size**3 / clocked(products)[1]


# ---------------------------------------------------------------- training


def train(model: str, sentences: str, size: str) -> None:
    """Seconds and memory of one epoch with a LoRA adapter on all linear layers.

    The base is in bf16 on a GPU and the adapter in float32, under autocast, in all ways. No way writes checkpoints.
    """
    name, batch = Path(model).name, int(size)
    base = BaseModel(model).load()
    triplets = TripletFile("gender").load().triplets[: int(sentences)]
    length = sum(len(ids) for ids in base.tokenizer([t.sentence for t in triplets]).input_ids)
    for way, prepare in WAYS.items():
        with attempt("train", model=name, way=way), tempfile.TemporaryDirectory() as folder, ExitStack() as afterwards:
            pl.seed_everything(1, verbose=False)
            base.model.eval()
            config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
            adapted = adapters.attach(base, config)
            afterwards.callback(adapters.detach, adapted)
            work = prepare(base, adapted, triplets, batch, Path(folder))
            for number, turn in enumerate(TURNS[way]):
                # What the base says is kept in a cache: an empty one for each turn but the last.
                os.environ["DEBIAS_CACHE"] = f"{folder}/cache-{min(number, 1)}"
                adapted.zero_grad()
                _, seconds, memory = clocked(work)
                say(
                    "train", model=name, way=way, turn=turn, sentences=len(triplets), batch=batch,
                    seconds=round(seconds, 2), tokens_s=round(length / seconds), memory_gb=rounded(memory),
                )  # fmt: skip
            if os.environ.get("PROFILE"):
                profiled(work, model=name, way=way)


Prepared = Callable[[], Any]


def _trainer(base: Base, adapted: peft.PeftModel, triplets: Sequence[Triplet], batch: int, folder: Path) -> Prepared:
    """`transformers.Trainer` on the attribute's tokens."""
    spans = [span for (span,) in _examples(base, triplets, Attribute())]
    rows = [{"input_ids": list(s.ids), "labels": [-100] * s.start + list(s.ids[s.start :])} for s in spans]

    def collate(chosen: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in chosen)
        columns = {
            key: [row[key] + [fill] * (width - len(row[key])) for row in chosen]
            for key, fill in {"input_ids": 0, "labels": -100}.items()
        }
        columns["attention_mask"] = [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in chosen]
        return {key: torch.tensor(value) for key, value in columns.items()}

    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=2e-3, use_cpu=not CUDA,
        bf16=CUDA or bf16_pays(adapted), report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    return lambda: transformers.Trainer(
        model=adapted,
        args=arguments,
        train_dataset=rows,
        data_collator=collate,
    ).train()


def _debias(
    objective: Attribute,
    balance: Balance,
    retention: float,
    base: Base,
    adapted: peft.PeftModel,
    triplets: Sequence[Triplet],
    batch: int,
    folder: Path,
) -> Prepared:
    """debias as `debias run` trains, without the gate and without checkpoints."""
    trained_on = _examples(base, triplets, objective)
    # Made beforehand: the part `run` says how long that takes.
    number = 128 if len(triplets) > TINY else TINY  # a rehearsal needs few
    stories = SelfGenerated(number, 96, "Once upon a time", top_p=0.95, per_step=2)
    neutral = stories.spans(base, True) if retention else []
    pairs = balance.pairs(base.tokens)
    recipe = Recipe(2e-3, 1, batch, "linear", 0.05, 0.0, True, retention, balance=0.3 if pairs else 0.0, num_pairs=4)
    several = [*trained_on, tuple(neutral), *(pair[:2] for pair in pairs)]
    longest = max(span.num_positions for texts in several for span in texts)
    row = ROW if CUDA else stage.CPU_ROW
    layout = choose_layout(adapted, base.kind, longest, row)
    kernels = partial(fast_kernels, DEVICE, max(longest, row))
    in_bf16 = not CUDA and bf16_pays(adapted)
    numbers = count()

    def trainer(callbacks: Sequence[pl.Callback], **options: Any) -> pl.Trainer:
        kept = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        precision = "bf16-mixed" if in_bf16 else "auto"
        return make_trainer(precision, devices=1, callbacks=kept, enable_checkpointing=False, **options)

    def work() -> None:
        data = SpanData(
            trained_on, layout, batch, 1, neutral, stories.per_step if retention else 0,
            ask=stage.asking(adapted, base, layout) if retention or objective.needs_base else None,
            kl=bool(retention), weight=objective.weight, pairs=pairs,
            aims=stage._aims(adapted, base, layout, pairs, kernels), num_pairs=recipe.num_pairs,
        )  # fmt: skip
        place = folder / str(next(numbers))
        place.mkdir()
        with ExitStack() as arithmetic:
            arithmetic.enter_context(kernels())
            if in_bf16:
                arithmetic.enter_context(frozen_in_bf16(adapted))
            fit(Debiaser(adapted, objective, recipe, 1), data, trainer, place)

    return work


WAYS: dict[str, Callable[[Base, peft.PeftModel, Sequence[Triplet], int, Path], Prepared]] = {
    "transformers.Trainer, attribute loss": _trainer,
    "debias, attribute loss": partial(_debias, Attribute(), Nothing(), 0.0),
    "debias, default recipe": partial(_debias, NegativePreference(), Pronouns(), 3.0),
}
TURNS = dict.fromkeys(WAYS, ("first", "again")) | {
    "debias, default recipe": ("first, base asked", "again, base asked", "again, base's answers read from the cache")
}


def _examples(base: Base, triplets: Sequence[Triplet], objective: Attribute) -> list[Any]:
    """The spans of each sentence that this objective can be trained on."""
    texts, _ = paired(triplets, objective.contrasts, objective.compares)
    found = examples(texts, objective, base.tokens, base.max_positions)
    return [spans for spans in found if not isinstance(spans, str)]


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
        say("profile", column=column, total_ms=round(total / 1e3), top=shown, **facts)


# ---------------------------------------------------------------- the program as a whole


def run(again: bool, model: str, *words: str) -> None:
    """Wall seconds of `debias run`, by stage, with the peaks of memory."""
    facts = {"model": Path(model).name, "settings": " ".join(words), "cache": "full" if again else "empty"}
    with attempt("run", **facts), tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "debias", "run", f"model={model}", *words, "name=speed"]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"status {done.returncode}: {done.stderr.strip()[-300:]}")
        result = Path(folder) / "outputs/speed"
        cost = json.loads((result / "cost.json").read_text(encoding="utf-8"))
        host = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
        say(
            "run", **facts, seconds=round(seconds, 1), host_gb=round(host, 2), gpu_gb=cost["peak_gpu_memory_gb"],
            stages={name: round(spent["seconds"], 1) for name, spent in cost["stages"].items()},
            outcome=outcome(done.stdout),
            log=(result / "run.log").read_text(encoding="utf-8").splitlines()[-40:],
        )  # fmt: skip


def outcome(printed: str) -> str:
    """The paragraph in which a run sums up what it did, which is behind its tables and before the names of files."""
    paragraphs = [" ".join(text.split()) for text in printed.split("\n\n")]
    return ([text for text in paragraphs if text and not text.startswith(("page:", "next:"))] or [""])[-1][:300]


def checks(model: str, *words: str) -> None:
    """Whether `debias run` works with each of some settings, in one process."""
    for settings in CHECKS:
        _check(" ".join(settings), f"model={model}", *words, "training.batch_size=4", *settings)


def _check(name: str, *words: str) -> None:
    from debias import cli

    out, err = StringIO(), StringIO()
    start = time.perf_counter()
    ended, message = "well", ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = ["debias", "run", *words]
            with chdir(folder), redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", command):
                cli.main()
        except SystemExit as error:
            if error.code:  # the program's own refusal: a setting, or a package, that does not fit
                ended, message = f"refused, status {error.code}", (err.getvalue().strip().splitlines() or [""])[-1]
        except Exception as error:
            traceback.print_exc()
            failed.append(name)
            ended, message = "failed", f"{type(error).__name__}: {error}"
    message = " ".join(message.split())[:300]
    say("check", way=name, ended=ended, seconds=round(time.perf_counter() - start, 1), message=message)


PARTS: dict[str, Callable[..., None]] = {
    "make": make, "score": score, "train": train, "checks": checks,
    "run": partial(run, False), "rerun": partial(run, True),
}  # fmt: skip

if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
    sys.exit(1 if failed else 0)
