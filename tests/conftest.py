"""Tiny models are folders made here; nothing is downloaded, and the user's own cache is left alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command import Shown, run
from filelock import FileLock

from debias.cli import terminal

os.environ["HF_HUB_OFFLINE"] = "1"
terminal.console.width = 160  # as in a pipe; pytest's worker processes say that they are 80 wide
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and lose on a busy machine


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test session's own cache, the same for all its processes: what one of them made, the others find."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker's folder is inside that of the session
        folder = folder.parent
    folder /= "debias-cache"
    folder.mkdir(exist_ok=True)
    os.environ["DEBIAS_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(cache: Path) -> Path:
    """Folder of the real model: the first process that asks converts it, behind a lock, for all of them."""
    from debias.models.embedded import converted

    return converted("smollm2")


@pytest.fixture(scope="session")
def smollm2_tokenizer(cache: Path) -> Path:
    """Folder of the real model's tokenizer alone, which takes a fifth of the time; made once as well."""
    from debias.assets import locate

    folder, gguf = cache / "tokenizer", locate("smollm2")
    with FileLock(cache / "tokenizer.lock"):
        if not folder.is_dir():
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(smollm2_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of width 16 with SmolLM2's tokenizer: the causal reference model (seed 7, untrained)."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=49152, n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of width 16 with an uncased WordPiece vocabulary: the masked reference model (seed 7, untrained)."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    from debias.assets import locate

    folder = tmp_path_factory.mktemp("tiny-masked")
    torch.manual_seed(7)
    # The reference's causal model was drawn first, from the same generator.
    GPT2LMHeadModel(GPT2Config(vocab_size=49152, n_positions=128, n_embd=16, n_layer=2, n_head=2))
    config = BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("bert-tiny-tokenizer").parent).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small(tiny: Path) -> list[str]:
    """Overrides that make a run take seconds: the tiny model, few sentences, few examples."""
    return [
        f"model={tiny}", "data.n=24", "training.batch_size=4", "training.epochs=2", "training.lr=1e-2", "threads=1",
        "eval=[stereoset,crows_pairs,perplexity]", "training.num_neutral=2",
        "neutral=own", "neutral.n=4", "neutral.longest=8",
        "show.samples=1", "show.longest=3",
        "eval.stereoset.limit=8", "eval.stereoset.whole=[]", "eval.crows_pairs.limit=4", "eval.crows_pairs.whole=[]",
        "eval.perplexity.limit=6", "eval.perplexity.window=100",
    ]  # fmt: skip


@pytest.fixture
def debias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shown]:
    """Run `debias WORDS` in this process, in an empty folder; returns status, output and error output."""
    monkeypatch.chdir(tmp_path)
    return partial(run, tmp_path)
