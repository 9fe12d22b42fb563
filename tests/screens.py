"""Makes docs/screens/: what the commands print at 80, 100 and 160 columns, with a tiny untrained model, and a log.

Run it with `python tests/screens.py`. The figures mean nothing; the pages show what fits on a terminal.
`python tests/screens.py outputs/run/default/adapter` makes two others instead, of the demo: demo.txt is its table and
headline, show.txt what its adapter changes.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

WIDTHS = (80, 100, 160)
SCREENS = Path(__file__).resolve().parents[1] / "docs/screens"
SMALL = [
    "data.n=16", "training.batch_size=8", "training.epochs=1", "training.num_neutral=2", "neutral=wikipedia",
    "threads=1",
    "eval.stereoset.limit=8", "eval.stereoset.whole=[]", "eval.crows_pairs.limit=4", "eval.crows_pairs.whole=[]",
    "eval.perplexity.limit=4", "eval.perplexity.window=64", "show.samples=1", "show.longest=8",
]  # fmt: skip
COMMANDS = (
    ["help"],
    ["help", "run"],
    ["ls"],
    ["ls", "data"],
    ["explain", "training.retention"],
    ["run", "model=./tiny", "name=one", *SMALL],
    ["run", "-m", "model=./tiny", "name=many", "seed=1,2", "training.lr=1e-3,1e-2", *SMALL],
    ["report", "outputs/many"],
    ["doctor", "mine.jsonl", "leakage=false"],
    ["evaluate", "model=./tiny", "eval=[pairs]", "eval.pairs.path=mine.csv", "eval.pairs.name=acme", "threads=1"],
    ["show", "model=./tiny", "The nurse said that", "show.longest=8", "threads=1"],
)


def main() -> None:
    """Run every command at every width."""
    from command import run

    from debias.cli.terminal import console

    SCREENS.mkdir(exist_ok=True)
    for width in WIDTHS:
        os.environ["COLUMNS"] = str(width)
        console.width = width
        place = Path(tempfile.mkdtemp())
        prepare(place)
        shown = []
        for words in COMMANDS:
            done = run(place, *words)
            text = done.out + ("" if done.status == 0 else done.err)
            told = [word if word not in SMALL else "..." for word in words]
            line = re.sub(r"(\.\.\. ?)+", "... ", " ".join(told)).rstrip()
            shown.append(f"$ debias {line}\n{cleaned(text, place)}")
        shown.append(preview(place))
        (SCREENS / f"{width}.txt").write_text("\n".join(shown), encoding="utf-8")
        if width == max(WIDTHS):
            done = run(place, "run", "model=./tiny", "name=logged", *SMALL)
            text = "$ debias run ... 2> log.txt\n" + cleaned(done.err, place)
            (SCREENS / "log.txt").write_text(text, encoding="utf-8")
        shutil.rmtree(place)


def preview(place: Path) -> str:
    """What `generate preview` prints, with a chat server that has nothing but answers of a test."""
    from chat_server import serving
    from command import run
    from test_generate import PRICES, words, writer

    with serving(reply=writer) as server:
        done = run(place, *words(server, "preview=3"))
    settings = " ".join(word for word in PRICES)
    shown = done.out + ("" if done.status == 0 else done.err)
    return f"$ debias generate ... {settings} preview=3\n{cleaned(shown, place)}"


def prepare(place: Path) -> None:
    """A model of width 16 with SmolLM2's tokenizer, three triplets, one of them bad, and three pairs."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from debias.assets import locate

    gguf = locate("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=49152, n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(place / "tiny")
    tokenizer.save_pretrained(place / "tiny")
    (place / "mine.jsonl").write_text(
        '["The woman was remarkably stoic.", "woman", "stoic"]\n["The man wept.", "man", "cried"]\n'
        '["My aunt repairs engines.", "aunt", "engines"]\n'
    )
    (place / "mine.csv").write_text(
        "more,less,bias\nWomen cook.,Men cook.,gender\nMen lead.,Women lead.,gender\n"
        "The old forget.,The young forget.,age\n"
    )


def cleaned(text: str, place: Path) -> str:
    """Without what differs from machine to machine or from day to day."""
    text = text.replace(place.as_uri(), "file:///home/me").replace(str(place), "/home/me")
    text = text.replace(str(SCREENS.parents[1]), "/home/me/debias")
    text = re.sub(r"\b(?=\d*[a-f])[0-9a-f]{8}\b", "0a1b2c3d", text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def demo(adapter: Path) -> None:
    """The table and the headline of an adapter's run at 80 columns."""
    from command import run

    from debias.cli.terminal import console

    place = adapter.resolve().parents[3]
    os.environ["COLUMNS"], console.width = "80", 80
    done = run(place, "report", "outputs/run/default")
    text = f"$ debias report outputs/run/default\n{cleaned(done.out, place)}"
    (SCREENS / "demo.txt").write_text(text, encoding="utf-8")


def show(adapter: Path) -> None:
    """What SmolLM2 writes with an adapter and without it, at 100 columns."""
    from command import run

    from debias.cli.terminal import console

    console.width = 100
    done = run(Path.cwd(), "show", f"adapter.path={adapter}")
    text = f"$ debias show adapter.path=outputs/run/default/adapter\n{cleaned(done.out, Path.cwd())}"
    (SCREENS / "show.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        demo(Path(sys.argv[1]))
        show(Path(sys.argv[1]))
    else:
        main()
