"""Score CrowS-Pairs in three ways on one machine: the published loop, lm-evaluation-harness, and debias.

    python benchmarks/harness.py [--sample 3016] [--threads N] [--no-scaling]

(a) one sentence per forward pass, softmax over all positions, one token at a time;
(b) lm-evaluation-harness with batch_size=auto, on its own CrowS-Pairs task, with a local file instead of the hub's;
(c) debias, protocol `conditional_sum`, prefix trees.
All compute a sentence's log-likelihood given a start token; (a) and (b) must agree with (c) in float32 to 0.001 nats.
Each way runs in its own process, so that their memory peaks are separate. Weights are loaded and warmed up before the
clock starts. (b) and (c) are timed from texts to figures; the time of (b) includes its search for a batch size, also
shown apart. `useful` is the arithmetic that the sentences' tokens need (2 operations per token and parameter) per
second, as a share of what a 2048 x 2048 matrix product of the same type reaches. The bfloat16 lines need a processor
with bfloat16 instructions.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from debias import assets
from debias.benchmarks.crows_pairs import CrowsPairs
from debias.models.base import Base, BaseModel, bf16_is_native
from debias.models.placement import device
from debias.records import Candidate
from debias.scoring.protocols import Conditional
from debias.scoring.scorer import PRECISIONS, Scorer
from debias.scoring.spans import start_id

VARIANTS = {
    "(a) one by one, float32": ("loop", "32"),
    "(b) harness, float32": ("harness", "32"),
    "(c) debias, float32": ("debias", "32"),
    "(b) harness, bfloat16": ("harness", "bf16"),
    "(c) debias, bfloat16": ("debias", "bf16"),
}
SCALING = 800  # most sentences of the second table
BUDGETS = (128, 256, 512, 1024, 2048)
VOCABULARIES = (1, 2, 4)  # times the model's size
TOLERANCE = 1e-3  # nats


def main() -> None:
    """Run every way in a child process and print the table; with `--child`, be one of the children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=3016, help="sentences, two for each pair")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-scaling", action="store_true", help="skip the second table")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "PRECISION"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        way, precision = arguments.child
        print(json.dumps(WAYS[way](arguments.folder, precision)))
        return
    BaseModel("smollm2").load()  # converts the weights before anything is measured
    with tempfile.TemporaryDirectory() as folder:
        print(f"{write_files(Path(folder), arguments.sample)} sentences, {arguments.threads} threads")
        has_bf16 = device().type == "cuda" or bf16_is_native()
        ways = {name: way for name, way in VARIANTS.items() if way[1] == "32" or has_bf16}
        found = {name: child(Path(folder), arguments.threads, *way) for name, way in ways.items()}
        print_comparison(found)
        if not arguments.no_scaling:
            print_scaling(child(Path(folder), arguments.threads, "scaling", "32"))
    reference = np.array(found["(c) debias, float32"]["scores"])
    for name, result in found.items():
        difference = np.abs(np.array(result["scores"]) - reference).max()
        if "float32" in name and difference > TOLERANCE:
            sys.exit(f"{name} differs from (c) by {difference:.2g} nats")


# ---------------------------------------------------------------- the data


def write_files(folder: Path, sentences: int) -> int:
    """A fixed sample of pairs as JSON lines; returns the number of sentences."""
    with assets.locate("crows_pairs").open(newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))
    chosen = sorted(np.random.default_rng(0).permutation(len(pairs))[: sentences // 2])
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for i in chosen:
            file.write(json.dumps({key: pairs[i][key] for key in ("sent_more", "sent_less", "bias_type")}) + "\n")
    return 2 * len(chosen)


def candidates_of(folder: Path) -> list[Candidate]:
    """Two sentences per pair."""
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    pairs = [json.loads(line) for line in lines]
    return [
        Candidate(str(i), key, pair["bias_type"], "stereo", pair[key])
        for i, pair in enumerate(pairs)
        for key in ("sent_more", "sent_less")
    ]


# ---------------------------------------------------------------- the three ways; each runs in its own process


def loop(folder: Path, precision: str) -> dict[str, Any]:
    """The published way: one sentence, one softmax, one token at a time."""
    base = loaded(precision)
    texts = [c.text for c in candidates_of(folder)]
    start = start_id(base.tokenizer)

    def one(text: str) -> float:
        ids = [start, *base.tokenizer.encode(text, add_special_tokens=False)]
        probability_TV = base.model(torch.tensor([ids], device=base.model.device)).logits[0].softmax(-1)
        return float(sum(np.log(probability_TV[k - 1, ids[k]].item()) for k in range(1, len(ids))))

    with torch.inference_mode():
        return measured(base, folder, precision, lambda: [one(text) for text in texts])


def harness(folder: Path, precision: str) -> dict[str, Any]:
    """lm-evaluation-harness as it is, with a local file."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets"), "TQDM_DISABLE": "1"}
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = Path(lm_eval.__file__).parent / "tasks/crows_pairs/crows_pairs_english.yaml"
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks/local.yaml").write_text(
        f"include: {own}\ntask: crows_pairs_local\ntag: null\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'pairs.jsonl'}}}}}\n"
    )
    tasks = TaskManager(include_path=folder / "tasks", include_defaults=False).load(["crows_pairs_local"])["tasks"]
    base = loaded(precision)
    model = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size="auto")
    searching: list[float] = []
    search = model._detect_batch_size

    def timed(*arguments: Any) -> int:
        begin = time.perf_counter()
        size = search(*arguments)
        searching.append(time.perf_counter() - begin)
        return size

    model._detect_batch_size = timed

    def run() -> list[float]:
        with quiet():
            answer = lm_eval.simple_evaluate(model, tasks=list(tasks.values()), bootstrap_iters=0)
        samples = sorted(answer["samples"]["crows_pairs_local"], key=lambda s: s["doc_id"])
        return [float(logprob) for sample in samples for logprob, _ in sample["filtered_resps"]]

    return measured(base, folder, precision, run) | {"search": sum(searching)}


def debias(folder: Path, precision: str) -> dict[str, Any]:
    """debias with an empty cache."""
    base = loaded(precision)
    return measured(base, folder, precision, lambda: scored(base, candidates_of(folder), precision, 512))


def scaling(folder: Path, precision: str) -> dict[str, Any]:
    """Cost of debias by number of sentences, length, token budget and vocabulary: (name, sentences, tokens, ...)."""
    base = loaded(precision)
    candidates = candidates_of(folder)[:SCALING]
    length = np.array([num_tokens(base, [c]) for c in candidates])
    shuffled = np.random.default_rng(1).permutation(len(candidates))
    parts = {f"{len(candidates) // k} sentences": shuffled[: len(candidates) // k] for k in (8, 4, 2, 1)}
    thirds = np.array_split(np.argsort(length, kind="stable"), 3)
    for name, third in zip(("shortest", "middle", "longest"), thirds, strict=True):
        parts[f"{name} third ({length[third].mean():.0f} tokens)"] = third
    settings = [(name, chosen, 512) for name, chosen in parts.items()]
    settings += [(f"token_budget {budget}", shuffled, budget) for budget in BUDGETS]
    lines = []
    for name, chosen, budget in settings:
        cost = cost_of(base, [candidates[i] for i in chosen], precision, budget)
        lines.append((name, len(chosen), int(length[chosen].sum()), *cost))
    for times in VOCABULARIES:
        with repeated_vocabulary(base.model, times) as size:
            cost = cost_of(base, candidates, precision, 512)
        lines.append((f"vocabulary {size:,}", len(candidates), int(length.sum()), *cost))
    return {"lines": lines}


def cost_of(base: Base, candidates: list[Candidate], precision: str, budget: int) -> tuple[float, float]:
    """Seconds and peak memory (GB) to score some sentences."""
    with peak_memory() as memory:
        begin = time.perf_counter()
        scored(base, candidates, precision, budget)
        seconds = time.perf_counter() - begin
    return seconds, memory[0]


@contextmanager
def repeated_vocabulary(model: torch.nn.Module, times: int) -> Iterator[int]:
    """Repeat every row of the output layer `times` times, to measure its cost; yields its size."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    weight = head.weight
    try:
        head.weight = torch.nn.Parameter(weight.repeat(times, 1), requires_grad=False)
        yield len(head.weight)
    finally:
        head.weight = weight


def scored(base: Base, candidates: list[Candidate], precision: str, token_budget: int) -> list[float]:
    """Scores of `Scorer` under `conditional_sum`, with a temporary cache."""
    with tempfile.TemporaryDirectory() as cache:
        scorer = Scorer(base, None, precision, token_budget, Path(cache))
        return scorer.score(candidates, Conditional(unit="text"), CrowsPairs.name)["score"].tolist()


WAYS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "loop": loop, "harness": harness, "debias": debias, "scaling": scaling,
}  # fmt: skip


# ---------------------------------------------------------------- measuring


def loaded(precision: str) -> Base:
    """The warmed-up model in this precision."""
    base = BaseModel("smollm2", dtype="float32").load()
    torch.nn.Module.to(base.model, PRECISIONS[precision])  # transformers' own `to` is typed wrongly
    with torch.inference_mode():
        for _ in range(3):
            base.model(torch.arange(64, device=base.model.device)[None])
    return base


def measured(base: Base, folder: Path, precision: str, run: Callable[[], list[float]]) -> dict[str, Any]:
    """Scores, seconds, memory above the loaded model (GB), tokens, and the useful share of the peak."""
    from scoring import peak_flops

    with peak_memory() as memory:
        begin = time.perf_counter()
        scores = run()
        seconds = time.perf_counter() - begin
    tokens = num_tokens(base, candidates_of(folder))
    flops = 2 * tokens * sum(p.numel() for p in base.model.parameters())  # tied embeddings: the head counts once
    useful = flops / seconds / peak_flops(PRECISIONS[precision], base.model.device)
    return {"scores": scores, "seconds": seconds, "memory": memory, "tokens": tokens, "useful": useful}


def num_tokens(base: Base, candidates: list[Candidate]) -> int:
    """Number of scored tokens."""
    return sum(map(len, base.tokenizer([c.text for c in candidates], add_special_tokens=False).input_ids))


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yields a list that, after the block, holds its peak resident memory in GB: above the level before, and in all."""
    found: list[float] = []
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if status.exists():
        clear.write_text("5")  # forget the peak of loading the weights

    def peak() -> float:
        if status.exists():
            return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)

    before = peak()
    yield found
    found += [peak() - before, peak()]


@contextmanager
def quiet() -> Iterator[None]:
    """Send the harness's prints to stderr: a child's stdout is its answer."""
    output, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = output


def child(folder: Path, threads: int, way: str, precision: str) -> dict[str, Any]:
    """Result of a measurement in its own process."""
    command = [sys.executable, __file__, "--child", way, precision, "--folder", str(folder), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{way}, {precision}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- tables


def print_comparison(found: dict[str, dict[str, Any]]) -> None:
    """One line per way."""
    slow = found["(a) one by one, float32"]["seconds"]
    reference = np.array(found["(c) debias, float32"]["scores"])
    print(
        f"{'':<26}{'ms/sentence':>12}{'x (a)':>7}{'x (b)':>7}{'tokens/s':>10}{'useful':>8}"
        f"{'GB, + model':>12}{'GB in all':>10}{'max diff':>10}{'SS':>7}"
    )
    for name, result in found.items():
        scores, seconds = np.array(result["scores"]), result["seconds"]
        same_type = found[f"(b) harness, {name.partition(', ')[2]}"]["seconds"]
        print(
            f"{name:<26}{1e3 * seconds / len(scores):>12.2f}{slow / seconds:>7.1f}{same_type / seconds:>7.1f}"
            f"{result['tokens'] / seconds:>10.0f}{result['useful']:>8.0%}"
            f"{result['memory'][0]:>12.2f}{result['memory'][1]:>10.2f}"
            f"{np.abs(scores - reference).max():>10.1e}{100 * (scores[::2] > scores[1::2]).mean():>7.2f}"
        )
    for name, result in found.items():
        if "search" in result:
            rest = result["seconds"] - result["search"]
            ours = found[name.replace("(b) harness", "(c) debias")]["seconds"]
            print(
                f"{name}: the search for a batch size takes {result['search']:.1f} s of {result['seconds']:.1f} s; "
                f"without it (c) would be {rest / ours:.1f} x (b)"
            )


def print_scaling(result: dict[str, Any]) -> None:
    """Print how the time of (c) grows."""
    print(f"\n{'(c) debias, float32':<30}{'seconds':>9}{'ms/sentence':>13}{'tokens/s':>10}{'GB, + before':>14}")
    for name, sentences, tokens, seconds, memory in result["lines"]:
        print(f"{name:<30}{seconds:>9.2f}{1e3 * seconds / sentences:>13.2f}{tokens / seconds:>10.0f}{memory:>14.2f}")


if __name__ == "__main__":
    main()
