"""Every config file composes, resolves, says what it is for, and builds what it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from command import Shown
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, OmegaConf

from debias.cli.build import make_benchmarks
from debias.cli.config import any_model, config_dir, job_name, make, quoted, readable, run_dir
from debias.data.mixture import Mixture
from debias.records import UserError

GROUPS = {path.name: path for path in config_dir().iterdir() if path.is_dir()}
CHOICES = [(group, file.stem) for group, folder in GROUPS.items() for file in sorted(folder.glob("*.yaml"))]
REQUIRED = {
    ("data", "triplets"): ["data.bias=gender", "data.path=x"],
    ("eval", "pairs"): ["eval.pairs.path=x"],
    ("model", "hf"): ["model.path=x"],
    ("llm", "vllm"): ["llm.model=x"],
    ("llm", "ollama"): ["llm.model=x"],
    ("llm", "openrouter"): ["llm.model=x"],
    ("llm", "compatible"): ["llm.model=x", "llm.base_url=http://x"],
}
ADDED = {"llm", "strategy"}  # groups that `run` does not have of its own
VERBS = {"judge": "generate", "counterparts": "generate", "baseline": "evaluate"}  # all others belong to `run`


def composed(verb: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("job", job_name, replace=True)
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(verb, list(overrides))


def targets(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in targets(value)]
    return []


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_names_something_real(group: str, choice: str) -> None:
    verb, added = VERBS.get(group, "run"), "+" * (group in ADDED)
    cfg = composed(verb, f"{added}{group}={choice}", *REQUIRED.get((group, choice), []))
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for target in targets(content):
        assert callable(get_method(target) if target.endswith("make_trainer") else get_class(target))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_says_in_one_line_what_it_is(group: str, choice: str) -> None:
    lines = (GROUPS[group] / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("# ") and "@package" not in line]
    assert comments


@pytest.mark.parametrize("verb", ["run", "generate", "evaluate"])
def test_verbs_compose(verb: str) -> None:
    assert OmegaConf.to_container(composed(verb), resolve=True, throw_on_missing=True)


def test_defaults_are_those_of_the_design() -> None:
    cfg = composed("run")
    assert (cfg.model.path, cfg.data.bias, cfg.seed) == ("smollm2", "gender", 1)
    witnesses = ["winobias", "pronoun_gap", "group_gap"]
    assert list(cfg.eval) == ["protocols", "stereoset", "crows_pairs", *witnesses, "witnesses", "perplexity"]
    assert cfg.eval.protocols is None
    assert cfg.eval.stereoset.whole == "gender"
    assert cfg.eval.stereoset.protocol["_target_"].endswith("BiasBench")


def test_a_benchmark_that_is_named_is_scored_or_refused(debias: Callable[..., Shown]) -> None:
    """`witnesses` leaves WinoBias out of a run about race."""
    for verb in ("run", "evaluate"):
        status, _, error = debias(verb, "data.bias=race", "eval=[witnesses,winobias]", "model=gone")
        assert status == 1
        assert "eval=[...] names winobias, which witnesses leaves out of a run about race; in place of" in error
        assert error.rstrip().endswith("group_gap, winobias")
    status, _, error = debias("evaluate", "data.bias=gender", "eval=[witnesses,winobias]", "model=gone")
    assert "error: model 'gone' is neither a local folder" in error


@pytest.mark.parametrize(
    ("words", "witnesses"),
    [
        ("data.bias=gender", "winobias pronoun_gap"),
        ("data.bias=profession", "winobias pronoun_gap"),
        ("data.bias=race", "group_gap"),
        ("data.bias=religion", "group_gap"),
        ("data=all", "winobias pronoun_gap group_gap"),  # several
        ("data.bias=age", "winobias pronoun_gap group_gap"),  # of which none asks
    ],
)
def test_the_default_run_has_the_witnesses_of_its_bias(words: str, witnesses: str) -> None:
    names = [benchmark.name for benchmark in make_benchmarks(composed("run", words))]
    assert names == ["stereoset", "crows_pairs", *witnesses.split(), "perplexity"]


def test_a_benchmark_that_is_named_is_asked_whatever_the_bias() -> None:
    assert [b.name for b in make_benchmarks(composed("run", "data.bias=race", "eval=[winobias]"))] == ["winobias"]


def test_a_data_source_brings_its_bias_and_may_bring_its_objective() -> None:
    assert (composed("run", "data=targeted").data.bias, composed("run", "data=general").data.bias) == (
        "gender",
        "general",
    )
    scored_whole = composed("run", "data=general", "data.bias=gender")
    assert (scored_whole.eval.stereoset.whole, scored_whole.data.sources.general.bias) == ("gender", "general")
    assert composed("run", "data=stereotyped").objective["_target_"].endswith("Unlikelihood")
    assert composed("run", "data=stereotyped", "objective=attribute").objective["_target_"].endswith("Attribute")


def test_sources_merge_into_a_mixture() -> None:
    mixed = composed("run", "data=[targeted,general]", "data.bias=race", "data.weights={targeted: 2, general: 1}").data
    assert (list(mixed.sources), mixed.sources.targeted.bias, mixed.weights.targeted) == (
        ["targeted", "general"], "race", 2,
    )  # fmt: skip
    mixture = make(mixed)
    assert isinstance(mixture, Mixture)
    assert {t.bias for t in mixture.load(1).triplets} >= {"race", "gender"}
    with pytest.raises(UserError, match=r"set data\.bias=gender"):
        make(composed("run", "data=[targeted,general]").data).fingerprint()


def test_data_path_is_what_the_default_source_trains_on(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"sentence": "She was stoic.", "target": "She", "attribute": "stoic"}', encoding="utf-8")
    (triplet,) = make(composed("run", f"data.path={path}").data).load(1).triplets
    assert triplet.sentence == "She was stoic."


@pytest.mark.parametrize("suite", ["quick", "bias", "ability", "paper", "full"])
def test_suites_compose(suite: str) -> None:
    cfg = composed("evaluate", f"eval={suite}")
    names = {make(node).name for name, node in cfg.eval.items() if name != "protocols"}
    assert len(names) == len(cfg.eval) - 1 >= 3


def test_paper_suite_scores_everything() -> None:
    cfg = composed("run", "eval=paper", "data=general")
    assert cfg.eval.stereoset.limit is None
    assert cfg.eval.crows_pairs.limit is None


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["seed=2", "training.lr=1e-3"], "lr-1e-3+seed-2"),
        (["name=x", "overwrite=true"], "default"),
        (["seed=2", "threads=1"], "threads-1+seed-2"),
        (["logger=wandb", "logger.mode=offline"], "default"),
        (["model=hf", "model.path=/a/b c"], "model-_a_b_c-HASH"),
        (["model=hf", "model.path=gpt2"], "model-gpt2"),
        (["model=a/m"], "model-a_m-HASH"),
        (["model=a_m"], "model-a_m"),
        (["data.path='x.jsonl'"], "path-x.jsonl"),
        (["data.path=a", "model.path=b"], "path-a+path-b"),
        (["data.n=3", "eval.n=3"], "data.n-3+eval.n-3"),
    ],
)
def test_job_names_are_the_overrides_in_short_form(overrides: list[str], name: str) -> None:
    assert re.sub(r"-[0-9a-f]{8}$", "-HASH", job_name(overrides)) == name


@pytest.mark.parametrize(
    ("overrides", "left_out", "name"),
    [
        (["name=x", "seed=2", "data=cda", "threads=1"], ["threads"], "data-cda+seed-2"),
        (["name=x", "seed=2", f"training.lr={'1' * 200}", "eval=[a,b]"], ["training.lr", "eval"], "seed-2"),
        (["name=x", "model=hf", "model.path=gpt2", "seed=2"], [], "model-gpt2+seed-2"),
        (["name=x", "model=hf", "model.path=gpt2", "seed=2"], ["model"], "seed-2"),
        (["seed=2", "threads=1"], ["threads"], "seed-2-HASH"),
        (["seed=2", "logger=csv"], ["logger"], "seed-2"),
    ],
)
def test_a_job_of_a_sweep_is_named_after_what_is_swept(overrides: list[str], left_out: list[str], name: str) -> None:
    """In a folder of the sweep's own; where unnamed sweeps share one, a hash tells their common settings apart."""
    assert re.sub(r"-[0-9a-f]{8}$", "-HASH", job_name(overrides, left_out=left_out)) == name


def test_settings_in_common_tell_unnamed_sweeps_apart() -> None:
    assert len({job_name(["seed=2", f"threads={n}"], left_out=["threads"]) for n in (1, 2)}) == 2


def test_a_named_run_has_a_folder_of_its_own() -> None:
    assert run_dir("x", ["name=x", "seed=2"], "run") == "outputs/x"
    assert run_dir("run", ["seed=2"], "run") == "outputs/run/seed-2"
    assert run_dir("run", [], "run") == "outputs/run/default"


def test_long_job_names_are_cut_but_differ() -> None:
    for letter in "x中":
        a, b = (job_name([f"bias={letter * 200}{c}"]) for c in "ab")
        assert a != b
        assert len(a.encode()) <= 120


def test_config_files_are_short() -> None:
    assert all(len(p.read_text().splitlines()) <= 70 for p in Path(config_dir()).rglob("*.yaml"))


TYPED = [
    "~/my.jsonl", "~", "runs/lr=1e-3/adapter", "/srv/josé/m", "género", "São Paulo", "a  b", "[x].jsonl", "a[1].jsonl",
    "o'brien.jsonl", 'say "hi"', "a#b", "C:\\dir\\x", "\\\\server\\share\\my.jsonl", "a\\\\b", "C:\\dir\\",
    "it's \\'odd\\'", "people (Scottish, Irish)", "x{1}", "a:b",
    "%x", "a@b", "é,ü", "a'b\"c", "ends\\'", "中文", "a\tb", "(", "'",
]  # fmt: skip


@pytest.mark.parametrize("text", TYPED)
def test_what_people_type_is_what_they_get(text: str) -> None:
    for word in (*readable([f"data.path={text}"], several=False), f"data.path={quoted(text)}"):
        assert composed("run", word).data.path == text


@pytest.mark.parametrize(("typed", "read"), [
    ("data.path=~/a,b,c d/é", "data.path='~/a',b,'c d/é'"), ("seed=1,2", "seed=1,2"), ("~data", "~data"), ("-m", "-m"),
    ("name=lr=1e-3 x", "name='lr=1e-3 x'"), ("name='lr=1e-3 x'", "name='lr=1e-3 x'"), ("eval=[a,b]", "eval=[a,b]"),
])  # fmt: skip
def test_values_of_a_sweep_are_read_one_by_one(typed: str, read: str) -> None:
    assert readable([typed], several=True) == [read]


def test_several_models_may_be_configs_and_paths() -> None:
    assert any_model(["model=smollm2,./other"]) == ["model=hf", "model.path=smollm2,./other"]
    assert any_model(["model=bert_tiny,~/x"]) == ["model=hf", "model.path=bert-tiny,~/x"]
    assert any_model(["model=smollm2,bert_tiny"]) == ["model=smollm2,bert_tiny"]


class Own:
    """A class of a user, with no import of ours."""

    def __init__(self, size: int, kind: Literal["a", "b"] = "a", names: list[str] | None = None) -> None:
        self.size, self.kind, self.names = size, kind, names


@pytest.mark.parametrize(("settings", "answer"), [
    ({"size": "big"}, "mine.size='big' must be a whole number"), ({}, "mine.size must be set"),
    ({"size": 1, "kind": "c"}, "mine.kind='c' is unknown; choose a or b"),
    ({"size": 1, "names": [3]}, "must be a list such as .A,B., each text"),
    ({"size": 1, "nmes": []}, "unknown key 'mine.nmes' .did you mean 'mine.names'"),
])  # fmt: skip
def test_the_signature_of_an_own_class_is_its_schema(settings: dict[str, object], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        make(OmegaConf.create({"_target_": f"{__name__}.Own", **settings}), "mine")


def test_an_own_class_is_built() -> None:
    cfg = OmegaConf.create({"mine": {"_target_": f"{__name__}.Own", "size": 2, "names": ["x"]}})
    assert vars(make(cfg.mine)) == {"size": 2, "kind": "a", "names": ["x"]}
