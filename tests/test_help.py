"""Help, `ls` and `explain`: everything that can be set is named with the comment beside it in its config file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from debias.cli import VERBS, help
from debias.cli.config import groups, options
from debias.cli.help import every_key, keys_in
from debias.cli.terminal import console
from debias.schema import nearest

Run = Callable[..., tuple[int, str, str]]


def test_the_command_alone_shows_help_and_starts_nothing(debias: Run, tmp_path: Path) -> None:
    status, shown, _ = debias()
    assert status == 0
    assert all(f"debias {verb}" in shown for verb in VERBS)
    assert shown == debias("help")[1] == debias("--help")[1]
    assert not list(tmp_path.iterdir())


def test_commands_are_in_one_line_at_80_columns(debias: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they can be copied."""
    monkeypatch.setattr(console, "width", 80)
    shown = debias("help")[1]
    for words, _ in (*help.VERBS, *help.SETTINGS):
        assert f"{words} " in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(debias: Run, verb: str) -> None:
    status, shown, _ = debias("help", verb)
    assert status == 0
    assert shown == debias(verb, "--help")[1]
    if verb == "run":
        assert "training.retention=3.0" in shown
        assert "weight of the KL term" in shown
        assert "unrelated text on which the KL term keeps" in shown  # of the group `neutral`


def test_no_value_is_cut_at_80_columns(debias: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is too long for its column goes beside its key, with a blank after each comma."""
    monkeypatch.setattr(console, "width", 80)
    shown = debias("help", "run")[1]
    assert "  eval= " in shown
    assert "stereoset, crows_pairs, witnesses, perplexity" in shown


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("training.retention", ["conf/run.yaml", "training.retention=3.0", "weight of the KL term"]),
        ("eval.stereoset.limit", ["conf/eval/stereoset.yaml", "eval.stereoset.limit=100", "examples per bias"]),
        ("training.watch", ["training.watch.every=null", "score StereoSet dev during training"]),
        ("generate.patience", ["consecutive calls without an accepted triplet"]),
        ("llm", ["llm.timeout=300", "seconds per call", "openrouter"]),
        ("data=cda", ["Counterfactual data augmentation", "data.sources.cda.sides=two"]),
        ("adapter=lora", ["LoRA", "adapter.r=8"]),
    ],
)
def test_explain(debias: Run, name: str, words: list[str]) -> None:
    status, shown, _ = debias("explain", name)
    assert status == 0
    assert all(word in shown for word in words)


def test_explain_guesses_a_misspelt_key(debias: Run) -> None:
    said = debias("explain", "training.lrr")[2]
    assert "no key or group is called 'training.lrr' (did you mean 'training.lr'?)" in said
    assert "name one key, group or option" in debias("explain")[2]


def test_every_option_can_be_explained() -> None:
    """Each config file has a first comment, and those of data and eval say what they need."""
    for group in groups() - {"hydra"}:
        for option in options(group):
            first, *more = help.comments(help.config_dir() / group / f"{option}.yaml")
            assert first
            if group in ("data", "eval"):
                assert more[0].startswith("Needs: ")


def test_keys_are_read_with_their_comments() -> None:
    keys = {key.name: key for key in every_key()}
    assert keys["seed"].value == "1"
    assert keys["adapter.train_head"].comment == "true trains a masked model's prediction head too (docs/adapters.md)"
    assert not any(key.name.startswith("hydra") or "_target_" in key.name for key in keys.values())
    stereoset = keys_in(help.config_dir() / "eval/stereoset.yaml", "eval")
    assert stereoset[0].name == "eval.stereoset.split"


def test_ls_marks_what_is_taken_if_nothing_else_is_asked(debias: Run) -> None:
    shown = debias("ls", "data", "eval")[1]
    marked = [word for word in shown.split() if word.endswith("*") and len(word) > 1]
    assert marked == ["targeted*", "crows_pairs*", "perplexity*", "stereoset*", "witnesses*"]
    assert "(needs a chat server and its key (llm=))" in " ".join(shown.split())


KNOWN = ["data", "data.bias", "data.n", "training", "training.lr", "training.epochs", "all", "cda", "targeted", "run"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("age", ""),  # not `all`, not `targeted`
        ("targetd", "targeted"),
        ("rnu", "run"),  # neighbours swapped: one edit
        ("data.bais", "data.bias"),
        ("lr", "training.lr"),  # the same name in a section
        ("data.epochs", "training.epochs"),
        ("data.bia", "data.bias"),
        ("trainig.lr", "training.lr"),
        ("targ", "targeted"),  # begins like one name only
        ("data.x", ""),
    ],
)
def test_near_names_are_guessed_only_when_close(name: str, meant: str) -> None:
    assert nearest(name, KNOWN) == (f" (did you mean {meant!r}?)" if meant else "")
