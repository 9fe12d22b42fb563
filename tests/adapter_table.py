"""Which adapter works on which architecture: `python tests/adapter_table.py` writes the table of docs/adapters.md."""

from __future__ import annotations

import copy
import re
import tempfile
import textwrap
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from debias.cli.config import config_dir, make
from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import Base
from debias.models.checksums import weights_sha256
from debias.records import Masked, Recipe, Scored, Span, UserError
from debias.scoring import batched
from debias.scoring.layout_trial import choose_layout
from debias.training import module as training
from debias.training.batches import SpanData
from debias.training.fitting import fit
from debias.training.gate import Gate
from debias.training.objectives import Attribute

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/adapters.md"
BEGIN, END = "<!-- table: python tests/adapter_table.py -->\n", "<!-- end of table -->\n"

SIZE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
DISTILBERT = {"vocab_size": 64, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
MAMBA = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
COLUMNS: dict[str, tuple[str, Any]] = {
    "GPT-2": ("causal", lambda: GPT2LMHeadModel(GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0))),
    "Llama": ("causal", lambda: LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=1))),
    "BERT": ("masked", lambda: BertForMaskedLM(BertConfig(**SIZE))),
    "RoBERTa": ("masked", lambda: RobertaForMaskedLM(RobertaConfig(**SIZE))),
    "DistilBERT": ("masked", lambda: DistilBertForMaskedLM(DistilBertConfig(**DISTILBERT))),
    "Mamba": ("causal", lambda: MambaForCausalLM(MambaConfig(**MAMBA))),
}
CAUSAL = [Span((5, 6, 7, 8, 9), 2), Span((5, 6, 7, 10), 3), Span((5, 11, 12), 1), Span((13, 6, 7, 8, 9, 10), 4)]
MASKED = [Masked((5, 3, 7, 3), (1, 3), (6, 8)), Masked((5, 3, 7), (1,), (9,)), Masked((9, 10, 11, 12, 3), (4,), (13,)),
          Masked((3, 6, 7, 8), (0,), (5,))]  # fmt: skip
SPANS: dict[str, Sequence[Scored]] = {"causal": CAUSAL, "masked": MASKED}


def base_of(column: str) -> Base:
    """A tiny model of an architecture, with weights far enough from zero to matter."""
    kind, build = COLUMNS[column]
    torch.manual_seed(7)
    model = build().requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.1)
    return Base(model, None, f"tiny-{column}", weights_sha256(model), kind)


def config_of(name: str, **keys: Any) -> Any:
    """The PEFT config that a file of conf/adapter builds."""
    file = config_dir() / "adapter" / f"{name}.yaml"
    return make(DictConfig(OmegaConf.load(file)), "adapter", adapters.PEFT_TYPES, **keys)


def logits(model: Any, kind: str) -> list[torch.Tensor]:
    """One text at a time, without our own code."""
    rows = []
    with torch.inference_mode():
        for span in SPANS[kind]:
            ids = torch.tensor([span.ids])
            answer = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            rows.append(answer[0, -len(span.ids) :])
    return rows


def plain_scores(model: Any, kind: str) -> list[float]:
    """Log-probability of each span from those logits."""
    scores = []
    for span, row in zip(SPANS[kind], logits(model, kind), strict=True):
        logprob = row.log_softmax(-1)
        if isinstance(span, Span):
            scores.append(float(sum(logprob[k - 1, span.ids[k]] for k in range(span.start, len(span.ids)))))
        else:
            scores.append(float(sum(logprob[k, token] for k, token in zip(span.at, span.tokens, strict=True))))
    return scores


def fitted(base: Base, config: Any, folder: Path, epochs: int = 1) -> tuple[Any, Gate]:
    """The base with an adapter after two steps an epoch, half of the loss being drift; and the gate behind it."""
    torch.manual_seed(1)
    model = adapters.attach(base, config)
    layout = choose_layout(model, base.kind)
    recipe = Recipe(0.05, epochs, 2, "constant", 0.0, 0.0, start_token=False, retention=0.5, num_neutral=0)
    data = SpanData([(span,) for span in SPANS[base.kind]], layout, recipe.batch_size, seed=1)
    gate = Gate(model, SPANS[base.kind], layout)
    module = training.Debiaser(model, Attribute(), recipe, seed=1)
    spent = fit(module, data, partial(training.make_trainer, accelerator="cpu", logger=False), folder)
    assert spent.steps == 2 * epochs
    return model.eval(), gate


def trained(base: Base, config: Any, folder: Path) -> Any:
    """As `debias run` trains it; what is saved in `adapter` below the folder passed the gate."""
    model, gate = fitted(base, config, folder)
    adapter_folder.save(model, base, folder / "adapter")
    gate.check(folder / "adapter")
    return model


def check(base: Base, config: Any, folder: Path) -> None:
    """All that an adapter must do; raises UserError where the user is told that it cannot."""
    kind, spans, untouched = base.kind, SPANS[base.kind], copy.deepcopy(base.model)
    model = trained(base, config, folder)
    before, after = logits(untouched, kind), logits(model, kind)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(before, after, strict=True)), "training changes nothing"
    scores = batched.score(model, spans, choose_layout(model, kind))
    assert abs(torch.tensor(scores) - torch.tensor(plain_scores(model, kind))).max() < 1e-4, "spans are scored wrongly"
    with model.disable_adapter():
        assert all(map(torch.equal, before, logits(model, kind))), "the base is not as it was"
    adapters.detach(model)
    assert weights_sha256(base.model) == base.sha256, "the base's weights were changed"
    loaded = adapter_folder.load(base._replace(model=untouched), folder / "adapter")
    again = batched.score(loaded, spans, choose_layout(loaded, kind))
    assert abs(scores - again).max() < 1e-5, "saved and loaded it scores otherwise"


ROWS = sorted(path.stem for path in (config_dir() / "adapter").glob("*.yaml"))


@cache
def cell(row: str, column: str) -> str:
    """`works`, or the error that a user gets."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(base_of(column), config_of(row), Path(folder))
        except UserError as error:
            return str(error)
    return "works"


def table() -> str:
    """The table in Markdown, with the errors as numbered notes below."""
    notes: dict[str, int] = {}
    lines = [f"| adapter | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for row in ROWS:
        cells = [cell(row, column) for column in COLUMNS]
        marks = [c if c == "works" else f"error ({notes.setdefault(c, len(notes) + 1)})" for c in cells]
        lines.append(f"| `{row}` | {' | '.join(marks)} |")
    wrap = partial(textwrap.fill, width=100, subsequent_indent="   ", break_on_hyphens=False, break_long_words=False)
    below = [wrap(f"{number}. {note}") for note, number in notes.items()]
    return "\n".join([*lines, "", *below, ""] if below else [*lines, ""])


def documented() -> dict[tuple[str, str], str]:
    """What the committed table says of each adapter (row) and architecture (column)."""
    committed = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in committed.splitlines() if line[:1] == "|"
    ]
    notes = {n: " ".join(note.split()) for n, note in re.findall(r"^(\d+)\. ((?:.+\n)+?)(?=\d+\.|\n)", committed, re.M)}
    return {
        (row.strip("`"), column): said if said == "works" else notes[said.removeprefix("error (").rstrip(")")]
        for row, *cells in lines[2:]
        for column, said in zip(lines[0][1:], cells, strict=True)
    }


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
