"""What a model writes: base and adapter side by side, the same each time, and harmless on every screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluation import save_adapter

from debias.jobs.show import CHAT, PLAIN, _reads_padding, prompts_in, written
from debias.models import adapter_folder
from debias.models.base import BaseModel
from debias.records import UserError, Writing
from debias.report.one_run.written import Written, grid
from debias.report.templating import TEMPLATES

Run = Callable[..., tuple[int, str, str]]
SHORT = Writing(samples=2, longest=5)


def test_both_models_write_and_the_base_is_not_disturbed(tiny: Path, tmp_path: Path) -> None:
    base = BaseModel(str(tiny)).load()
    save_adapter(base, tmp_path / "adapter", 3)
    alone = written(base, None, ["The nurse said"], SHORT)
    adapted = adapter_folder.load(base, tmp_path / "adapter")
    (both,) = written(base, adapted, ["The nurse said"], SHORT)
    assert len(both.base) == len(both.debiased) == 2
    assert both.base == alone[0].base
    assert both.debiased != both.base
    assert both.base[0] != both.base[1]  # several samples


def test_the_same_seed_gives_the_same_texts_and_the_cache_is_used(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path))
    base = BaseModel(str(tiny)).load()
    state = torch.get_rng_state()
    first = written(base, None, ["A"], SHORT)
    assert torch.equal(torch.get_rng_state(), state)  # a run that goes on is not disturbed
    monkeypatch.setattr(base.model, "generate", None)  # nothing is generated again
    assert written(base, None, ["A"], SHORT) == first


def test_prompts_share_a_batch_where_padding_changes_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that reads the padding writes after one prompt at a time."""
    base = BaseModel(str(tiny)).load()
    begins = [[1, 5, 6, 7], [1, 8], [1, 9, 10]]
    assert _reads_padding(base.model, begins)
    plain, rows = base.model.generate, []

    def counted(**options: Any) -> Any:
        rows.append(len(options["input_ids"]))
        return plain(**options)

    prompts = ["The nurse said", "A", "The old man"]
    monkeypatch.setattr(base.model, "generate", counted)
    assert [len(w.base) for w in written(base, None, prompts, SHORT)] == [2, 2, 2]
    assert rows == [3, 1, 1, 1, 6]  # the comparison, then three prompts with two samples each

    def heedless(**options: Any) -> Any:
        return counted(**{**options, "attention_mask": torch.ones_like(options["input_ids"])})

    monkeypatch.setattr(base.model, "generate", heedless)
    assert not _reads_padding(base.model, begins)
    rows.clear()
    written(base, None, [*prompts, "B"], SHORT)
    assert rows == [4, 1, 1, 1, 1, 2, 2, 2, 2]


def test_questions_are_asked_only_where_there_is_a_chat_template(tiny: Path) -> None:
    base = BaseModel(str(tiny)).load()
    template, few = base.tokenizer.chat_template, Writing(samples=1, longest=1)
    try:
        base.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}:"
        assert [w.prompt for w in written(base, None, (), few)] == [*PLAIN, *CHAT]
        base.tokenizer.chat_template = None
        assert [w.prompt for w in written(base, None, (), few)] == [*PLAIN]
    finally:
        base.tokenizer.chat_template = template
    assert (len(PLAIN), len(CHAT)) == (8, 4)


def test_a_masked_model_is_refused(tiny_masked: Path) -> None:
    with pytest.raises(UserError, match="a masked model does not write text"):
        written(BaseModel(str(tiny_masked)).load(), None, (), SHORT)


def test_texts_are_shown_and_not_obeyed() -> None:
    import jinja2

    table = grid([Written("<b>Hi", ["\x1b[31mred\n<script>alert(1)</script>"], ["| a | b"])])
    cells = [cell.text for cell in table.lines[0].cells]
    assert cells == ["<b>Hi", "\ufffd[31mred <script>alert(1)</script>", "| a | b"]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    page = environment.get_template("grid.html.j2").module.table(table)  # type: ignore[attr-defined]
    assert "<script" not in page
    assert "<script" not in table.markdown()
    assert grid([Written("A", ["x"], [])]).columns[-1].name == "base"


def test_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("One\n\n Two \n")
    assert prompts_in(tmp_path / "p.txt") == ["One", "Two"]
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(UserError, match="there is no prompt in this file"):
        prompts_in(tmp_path / "p.txt")


def test_the_command(debias: Run, tiny: Path, tmp_path: Path) -> None:
    words = [f"model={tiny}", "show.longest=3", "show.samples=1"]
    status, shown, error = debias("show", "It's 1+1=2, she said", *words)
    assert status == 0, error
    assert "It's 1+1=2, she said" in shown
    (tmp_path / "p.txt").write_text("From a file\n")
    assert "From a file" in debias("show", "prompts=p.txt", *words)[1]
