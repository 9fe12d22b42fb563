"""Written text: figures by hand, the same random numbers for both models, and text that an adapter breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from command import succeed
from test_device_map import spread
from test_evaluation import save_adapter
from test_run import folder_of
from transformers import PreTrainedModel
from two_gpus import two_gpus

from debias.benchmarks.evaluation import evaluate, figures_of, prepared, scores_of
from debias.benchmarks.writing import WrittenText, distinct, repeated
from debias.models import adapter, adapter_folder
from debias.models.base import Base, BaseModel
from debias.records import Figure, Span, Tokens, UserError
from debias.report.outcome import outcome
from debias.results import read_figures
from debias.scoring.method import Method
from debias.scoring.scorer import Scorer
from debias.scoring.spans import start_id

FIVE = "The river\nA long letter\nTwo\n\nThe old clock stopped\nSoup\n"


@pytest.fixture
def base(tiny: Path) -> Base:
    return BaseModel(str(tiny)).load()


@pytest.fixture
def five(tmp_path: Path) -> str:
    (tmp_path / "five.txt").write_text(FIVE, encoding="utf-8")
    return str(tmp_path / "five.txt")


def written(five: str, longest: int = 8, seed: int = 1) -> WrittenText:
    return WrittenText(five, longest, seed, n_resamples=99)


def rows_of(benchmark: WrittenText, scorer: Scorer, model: str = "base") -> pd.DataFrame:
    return scores_of(scorer, prepared([benchmark], scorer.tokens), model)


def delta(figures: list[Figure], metric: str) -> Figure:
    return next(f for f in figures if (f.metric, f.model) == (metric, "delta"))


def ending(base: Base) -> peft.PeftModel:
    """An adapter after which the model writes one token for ever: the last layer norm puts out that token's row."""
    adapted = adapter.attach(base, peft.LNTuningConfig(target_modules=["ln_f"]))
    row_VD = base.model.get_output_embeddings().weight
    layer = adapted.base_model.model.transformer.ln_f.ln_tuning_layers.default
    torch.nn.init.zeros_(layer.weight)
    layer.bias.data = 100 * row_VD[row_VD.norm(dim=1).argmax()].detach().clone()
    return adapted


def test_repetition_and_variety_by_hand() -> None:
    """1234 2341 3412 4123 1234 2341 3412: seven runs of four tokens, of which the last three were there before."""
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4, 1, 2]) == (3, 7)
    assert repeated([5] * 8) == (4, 5)
    assert repeated([1, 2, 3]) == (0, 0)
    assert distinct("The cat saw the cat, the cat!") == (4, 6)  # the cat, cat saw, saw the, cat the; "the cat" thrice
    assert distinct("One") == distinct("") == (0, 0)


def test_figures_by_hand() -> None:
    """Two texts count by their length: 3 of 7 and 0 of 3 runs are 30%, not the mean of 42.9% and 0%.

    exp((7 + 1) / (7 + 1)) is the perplexity of eight tokens with a log-probability of -8 together.
    """

    def rows(*texts: tuple[float, int, int, int, int, int]) -> pd.DataFrame:
        found = []
        for example, (logprob, length, again, runs, different, pairs) in enumerate(texts):
            for name, value, of, score in (
                ("text", logprob, length, logprob / length),
                ("repeated", np.nan, runs, again),
                ("distinct", np.nan, pairs, different),
            ):
                found.append((str(example), name, "all", "news", value, of, float(score)))
        columns = ["example", "candidate", "bias", "target", "logprob", "num_tokens", "score"]
        return pd.DataFrame(found, columns=columns)

    before = rows((-7.0, 7, 3, 7, 4, 6), (-1.0, 1, 0, 3, 4, 4))
    after = rows((-14.0, 7, 7, 7, 3, 6), (-2.0, 1, 0, 3, 0, 0))
    found = {c.metric: (c.base.value, c.debiased.value, c.ideal, c.n) for c in WrittenText().comparisons(before, after)}
    assert found == {
        "repetition": (pytest.approx(30), pytest.approx(70), 0.0, 2),
        "variety": (pytest.approx(80), pytest.approx(50), None, 2),
        "perplexity to the base": (pytest.approx(np.e), pytest.approx(np.e**2), None, 2),
        "length": (4, 4, None, 2),
    }


def test_a_text_is_judged_up_to_its_end(base: Base, five: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end token (0) is written and scored, and what stands behind it is padding; it is no part of a repetition."""
    answer = [7, 7, 7, 7, 7, 0, 0, 0]
    seen = []

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        seen.append(input_ids)
        return torch.cat([input_ids, torch.tensor([answer] * len(input_ids))], dim=1)

    monkeypatch.setattr(base.model, "generate", generate)
    scorer = Scorer(base, None, "32", 512)
    rows = rows_of(written(five), scorer)
    of = dict(iter(rows.groupby("candidate")))
    assert set(of["text"]["num_tokens"]) == {6}
    assert set(of["repeated"]["num_tokens"]) == {2}
    assert set(of["repeated"]["score"]) == {1.0}
    lengths = [len(ids) for ids in base.tokenizer(FIVE.split("\n")).input_ids if ids]
    assert [ids.shape[1] for ids in seen] == [1 + n for n in dict.fromkeys(lengths)]  # those of one length in a batch
    assert sum(map(len, seen)) == len(lengths) == 5
    beginning = (start_id(base.tokenizer), *base.tokenizer("Two").input_ids)
    expected = scorer.logprobs([Span((*beginning, *answer[:6]), len(beginning))], "test")[0, 0]
    assert of["text"].query("example == '3'")["logprob"].item() == pytest.approx(expected, abs=1e-4)


def test_the_same_text_in_every_run(base: Base, five: str) -> None:
    state = torch.get_rng_state()
    first = rows_of(written(five), Scorer(base, None, "32", 512))
    assert torch.equal(torch.get_rng_state(), state)  # a run that goes on is not disturbed
    torch.manual_seed(99)
    pd.testing.assert_frame_equal(rows_of(written(five), Scorer(base, None, "32", 512)), first)
    assert not rows_of(written(five, seed=2), Scorer(base, None, "32", 512)).equals(first)


def test_both_models_draw_with_the_same_random_numbers(base: Base, five: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that changes nothing writes the base's texts; each batch begins with a seed of its own."""
    adapted = adapter.attach(base, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    seeds = []
    plain = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or plain(seed))
    scorer = Scorer(base, adapted, "32", 512)
    result = evaluate(scorer, prepared([written(five)], scorer.tokens))
    for metric in ("repetition", "variety", "perplexity to the base", "length"):
        assert delta(result.figures, metric).value == 0, metric
        assert np.isnan(delta(result.figures, metric).ci_low), metric
    half = len(seeds) // 2
    assert half == len(set(seeds)) > 1
    assert seeds[:half] == seeds[half:]


def test_text_that_an_adapter_breaks_is_seen(base: Base, five: str) -> None:
    """Eight times the same token: four of five runs were there before. The verdict does not read it."""
    scorer = Scorer(base, ending(base), "32", 512)
    figures = evaluate(scorer, prepared([written(five)], scorer.tokens)).figures
    values = {(f.metric, f.model): f.value for f in figures}
    assert values["repetition", "base"] == 0
    assert values["repetition", "debiased"] == pytest.approx(80)
    assert values["perplexity to the base", "debiased"] != values["perplexity to the base", "base"]
    assert outcome(figures, "gender").text == "No bias benchmark was scored."
    ss = [
        Figure("stereoset", "p", "gender", "SS", model, value, value - 1, value + 1, 9, ideal, p)
        for model, value, ideal, p in (("base", 60, 50, None), ("debiased", 55, 50, None), ("delta", -5, None, 0.001))
    ]
    assert outcome([*ss, *figures], "gender") == outcome(ss, "gender")


def test_a_killed_run_goes_on_with_what_was_written(
    base: Base, five: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the adapter's model writes, it reads the base's texts and scores from the cache."""
    save_adapter(base, tmp_path / "a", 3)
    scorer = Scorer(base, adapter_folder.load(base, tmp_path / "a"), "32", 512, tmp_path / "cache")
    plain, writing = scorer.model.generate, []

    def generate(**options: Any) -> torch.Tensor:
        writing.append(scorer.active)
        if writing.count("debiased") == 1:
            raise KeyboardInterrupt
        return plain(**options)

    monkeypatch.setattr(scorer.model, "generate", generate)
    to_score = prepared([written(five)], scorer.tokens)
    with pytest.raises(KeyboardInterrupt):
        evaluate(scorer, to_score)
    batches = writing.count("base")
    assert batches > 1
    result = evaluate(scorer, to_score)
    assert (writing.count("base"), writing.count("debiased")) == (batches, batches + 1)
    assert scorer.active == "debiased"
    again = evaluate(scorer, to_score)
    assert again.figures == figures_of([WrittenText(n_resamples=99)], result.likelihoods)  # from records alone
    assert len(writing) == 2 * batches + 1


def test_another_method_writes_and_the_base_judges(base: Base, five: str) -> None:
    """The method is off while the base judges, and on again afterwards."""

    class Louder(Method):
        @contextmanager
        def on(self, model: PreTrainedModel) -> Iterator[None]:
            handle = model.lm_head.register_forward_hook(lambda _, __, output: 3 * output)
            try:
                yield
            finally:
                handle.remove()

    scorer = Scorer(base, None, "32", 512, method=Louder("louder", "1"))
    span = [Span((0, 5, 6), 1)]

    def asked(*models: str) -> float:
        if not models:
            return float(scorer.logprobs(span, "test")[0, 0])
        with scorer.using(models[0]):
            return asked(*models[1:])

    assert asked("base") == asked("debiased", "base") != asked("debiased") == asked("base", "debiased")
    with scorer.using("debiased"):
        assert asked("base") != asked() == asked("debiased")
    assert not base.model.lm_head._forward_hooks
    one, two = (rows_of(written(five), scorer, model) for model in scorer.models())
    assert not one["score"].equals(two["score"])
    assert (two["logprob"].dropna() / 8 > -15).all()  # under the louder head, it would be thrice as low


@pytest.mark.parametrize("config", [peft.PrefixTuningConfig, peft.PromptTuningConfig])
def test_prompts_that_are_learned_write_too(config: Callable[..., peft.PeftConfig], base: Base, five: str) -> None:
    adapted = adapter.attach(base, config(task_type="CAUSAL_LM", num_virtual_tokens=2))
    rows = rows_of(written(five), Scorer(base, adapted, "bf16", 512), "debiased")
    assert rows["score"].notna().all()


def test_a_model_on_two_devices_writes_the_same(tiny: Path, five: str) -> None:
    one = rows_of(written(five), Scorer(BaseModel(str(tiny)).load(), None, "32", 512))
    whole = BaseModel(str(tiny)).load()
    with two_gpus():
        spread(whole.model)
        two = rows_of(written(five), Scorer(whole, None, "32", 512))
    pd.testing.assert_frame_equal(one, two, atol=1e-4)


def test_what_cannot_be_written(base: Base, five: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="eval=writing needs a causal model and this one is masked; choose other"):
        WrittenText().candidates(Tokens(None, "masked"))
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"none\.txt: there is no beginning in this file; write one a line"):
        WrittenText(str(tmp_path / "none.txt")).fingerprint()
    with pytest.raises(UserError, match=r"nowhere: cannot be read .*check eval\.writing\.path"):
        WrittenText(str(tmp_path / "nowhere")).fingerprint()
    (tmp_path / "long.txt").write_text("a " * 127 + "\n" + "a " * 400)
    with pytest.raises(UserError, match=r"beginning 2 of .*long\.txt fills the model's 128 tokens; shorten it"):
        rows_of(written(str(tmp_path / "long.txt")), Scorer(base, None, "32", 512))
    assert WrittenText(five).fingerprint() != WrittenText().fingerprint()


def test_our_beginnings() -> None:
    """Ten of each of ten kinds, none twice."""
    kinds = pd.Series([c.target for c in WrittenText().candidates(Tokens(None, "causal"))])
    assert len(kinds) == 100
    assert set(kinds.value_counts()) == {10}
    assert len({c.text for c in WrittenText().candidates(Tokens(None, "causal"))}) == 100


def test_the_command(tiny: Path, five: str, tmp_path: Path) -> None:
    words = [f"model={tiny}", "eval=[writing]", "eval.writing.longest=4", f"eval.writing.path={five}", "name=x"]
    shown = succeed(tmp_path, "evaluate", *words)
    figures = read_figures(folder_of(tmp_path / "outputs/x"))
    assert [f.metric for f in figures] == ["repetition", "variety", "perplexity to the base", "length"]
    assert "Written text" in shown.out
