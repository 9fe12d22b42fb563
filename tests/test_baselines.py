"""Methods beside data: each by hand, on models of both kinds, and never under the key of the plain base."""

from __future__ import annotations

import json
import math
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from command import run, succeed
from torch import Tensor
from zoo import build

from debias.baselines.editing import Dama, Edited, at_last_token, feed_forward_outputs, pls_weights, prompts, values
from debias.baselines.projection import Bias, NullSpace, Projection, SentenceDebias, bias_subspace, nullspace, without
from debias.baselines.prompts import Prefix, Prompted, SelfDebiased, debiased
from debias.baselines.sentences import Sentences
from debias.baselines.steering import Gate, Steered, Steering, mean_difference
from debias.data.swapping import Swapper
from debias.models.base import Base, BaseModel
from debias.records import Candidate, Masked, Scored, Span, UserError
from debias.results import read_figures
from debias.scoring.method import Method
from debias.scoring.protocols import Conditional
from debias.scoring.scorer import Scorer

WIDTH = 16  # of both tiny models
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(params=["causal", "masked"])
def base(request: pytest.FixtureRequest, tiny: Path, tiny_masked: Path) -> Base:
    return BaseModel(str(tiny if request.param == "causal" else tiny_masked)).load()


def logits(base: Base, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return base.model(input_ids=ids).logits


# ---------------------------------------------------------------- projections


def test_the_subspace_by_hand() -> None:
    """Both sentences differ in x alone once their lengths are 1: (3, 4) / 5 and (-3, 4) / 5; (8, 6) / 10 and so on."""
    features = np.array([[[3.0, 4.0, 0.0], [-3.0, 4.0, 0.0]], [[8.0, 6.0, 0.0], [-4.0, 3.0, 0.0]]])
    basis = bias_subspace(features, 1)
    assert np.abs(basis) == pytest.approx(np.array([[1.0, 0.0, 0.0]]))
    assert without(basis) == pytest.approx(np.diag([0.0, 1.0, 1.0]))


def test_a_removed_subspace_is_gone_and_the_rest_is_as_it_was() -> None:
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 2)))[0].T
    rest = np.linalg.svd(basis)[2][2:]
    matrix = without(basis)
    assert matrix @ basis.T == pytest.approx(np.zeros((5, 2)))
    assert matrix @ rest.T == pytest.approx(rest.T)


def test_nullspace_by_hand() -> None:
    """The label is the sign of x: the first round removes x, and the others find nothing more to remove."""
    features = np.array(list(product((-1.0, 1.0), (-2.0, 2.0), (-3.0, 3.0))))
    assert nullspace(features, features[:, 0] > 0, 5) == pytest.approx(np.diag([0.0, 1.0, 1.0]), abs=1e-6)


def test_nullspace_is_the_product_of_its_rounds() -> None:
    """Of three classes each round removes three directions; P_2 P_1 is the projection to the common nullspace."""
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(60, 10)), np.arange(60) % 3
    first, both = nullspace(features, labels, 1), nullspace(features, labels, 2)
    second = np.eye(10) - (first - both)  # I minus what the second round removed
    assert [round(np.trace(matrix)) for matrix in (first, second, both)] == [7, 7, 4]
    for matrix in (first, second, both):
        assert matrix @ matrix == pytest.approx(matrix)
    assert second @ first == pytest.approx(both)


def test_the_projection_comes_before_the_prediction_head(base: Base) -> None:
    basis = np.eye(WIDTH)[3:5]
    with torch.inference_mode():
        hidden = getattr(base.model, base.model.base_model_prefix)(input_ids=IDS).last_hidden_state.clone()
        hidden[..., 3:5] = 0
        head = base.model.lm_head if base.kind == "causal" else base.model.cls
        wanted = head(hidden)
    before = logits(base)
    with Projection("test", without(basis)).on(base.model):
        assert torch.allclose(logits(base), wanted, atol=1e-5)
        assert not torch.allclose(logits(base), before, atol=1e-2)
        shown = base.model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
        assert not shown[..., 3:5].any()  # what SEAT reads
    assert torch.equal(logits(base), before)


# ---------------------------------------------------------------- steering


def test_the_vector_by_hand() -> None:
    features = np.array([[[1.0, 2.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 4.0]]])
    assert mean_difference(features) == pytest.approx(np.array([2.0, -2.0]))  # of (1, 0) and (3, -4)


@pytest.mark.parametrize("gated", [False, True])
def test_the_vector_is_added_behind_the_layer(gated: bool, base: Base) -> None:
    """To the output of layer 1, whole or times 1 / (1 + exp(-(2 h_0 - 1)))."""
    vector = np.linspace(-1, 1, WIDTH)
    gate = Gate(2.0 * np.eye(WIDTH)[0], -1.0) if gated else None
    seen: list[Tensor] = []
    layer = base.model.transformer.h[1] if base.kind == "causal" else base.model.bert.encoder.layer[1]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(base)
    with Steered("test", vector, 1, gate).on(base.model):
        logits(base)
    logits(base)
    handle.remove()
    before, steered, after = seen
    share = [[1 / (1 + math.exp(-(2 * float(h[0]) - 1)))] for h in before[0]] if gated else [[1.0]] * 4
    assert (steered - before)[0].numpy() == pytest.approx(np.array(share) * vector, abs=1e-5)
    assert torch.equal(before, after)


def test_a_layer_that_is_not_there_is_named(tiny: Path) -> None:
    scorer = Scorer(BaseModel(str(tiny)).load(), None, "32", 512)
    for layer in (2, 3):  # behind the last one, the vector would be measured after the final norm and added before it
        with pytest.raises(UserError, match=rf"baseline\.layer={layer}, but the model has 2 layers .* one of 1 to 1"):
            Steering("gender", layer=layer).fit(scorer)


# ---------------------------------------------------------------- editing


def test_a_linear_layer_loses_one_direction_and_nothing_orthogonal_to_it(base: Base) -> None:
    """Its output is (3, 4) in two of its places and 7 in a third; without (.6, .8) only the 7 is left."""
    name, layer = feed_forward_outputs(base.model)[0]
    kept = {key: value.clone() for key, value in base.model.state_dict().items()}
    direction, known = torch.zeros(WIDTH), torch.zeros(WIDTH)
    direction[:2], known[:3] = torch.tensor([0.6, 0.8]), torch.tensor([3.0, 4.0, 7.0])
    given = torch.ones(1, 1, layer.weight.shape[0 if base.kind == "causal" else 1])
    free = torch.linalg.qr(torch.cat([direction[None], torch.randn(3, WIDTH)]).T).Q.T[1:]  # orthogonal to it
    before, layer.bias.data = layer(given), layer.bias.data - layer(given)[0, 0] + known
    with Edited("test", {name: direction[None].numpy()}).on(base.model):
        assert layer(given)[0, 0].tolist() == pytest.approx([0, 0, 7] + [0] * 13, abs=1e-5)
        other = torch.randn(1, 5, given.shape[-1])
        edited = layer(other)
    assert layer(given)[0, 0].tolist() == pytest.approx(known.tolist(), abs=1e-5)
    assert (edited @ direction).abs().max() < 1e-5
    assert torch.allclose(edited @ free.T, layer(other) @ free.T, atol=1e-5)
    layer.bias.data = kept[f"{name}.bias"]
    assert torch.equal(layer(given), before)


def test_the_weights_of_partial_least_squares_by_hand() -> None:
    """x is y in its first place, -2 y in its second, and something that y does not follow in its third."""
    one = np.array([-1.0, -1.0, 1.0, 1.0])
    x, y = np.column_stack([one, -2 * one, [5.0, -5.0, 5.0, -5.0]]) + 9, np.column_stack([one, 0 * one, 3 * one])
    assert np.abs(pls_weights(x, y, 2)) == pytest.approx(np.array([[1, 2, 0]]) / math.sqrt(5))  # no second


def test_the_weights_are_those_of_the_textbook() -> None:
    """Each is the first singular vector of what is left of x, after the scores so far, with y; all are orthogonal."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 5))
    found, left = pls_weights(x, y, 3), x - x.mean(0)
    assert found @ found.T == pytest.approx(np.eye(3))
    for weight in found:
        assert abs(weight @ np.linalg.svd(left.T @ (y - y.mean(0)))[0][:, 0]) == pytest.approx(1)
        left = left - np.outer(left @ weight, np.linalg.lstsq((left @ weight)[:, None], left)[0])


def test_stacked_values_have_the_weights_of_their_mean() -> None:
    rng = np.random.default_rng(2)
    x, ys = rng.normal(size=(20, 6)), [rng.normal(size=(20, 6)) for _ in range(3)]
    stacked = pls_weights(np.vstack([x] * 3), np.vstack(ys), 4)
    assert np.abs(stacked @ pls_weights(x, sum(ys) / 3, 4).T) == pytest.approx(np.eye(4), abs=1e-6)


def test_prompts_end_where_a_pronoun_is_due(tiny: Path) -> None:
    base = BaseModel(str(tiny)).load()
    ids, token = prompts(Scorer(base, None, "32", 512))
    assert "The astronaut told me that" in [base.tokenizer.decode(i[1:]) for i in ids]
    assert len({i[-2:] for i in ids}) > 8  # the beginnings take turns
    assert base.tokenizer.decode(token[0]) == " she he they"
    assert (len(ids), token.shape, (token == token[0]).all()) == (139, (139, 3), True)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_value_makes_its_token_follow(name: str) -> None:
    """Checked by the rest of the model, by hand: the last norm and the output layer."""
    model = build(name)
    inner = model.transformer if name == "gpt2" else model.model
    layers, norm = (inner.h, inner.ln_f) if name == "gpt2" else (inner.layers, inner.norm)
    ids, token = [(5, 6, 7), (9, 8, 7), (5, 6, 7, 8)], torch.tensor([[11, 12]] * 3)
    hidden = at_last_token(model, layers[-1], ids)
    expected = [model(torch.tensor([i])).logits[0, -1] for i in ids]
    assert torch.allclose(model.lm_head(norm(hidden)), torch.stack(expected), atol=1e-3)
    found = values(model, layers[-1], hidden, token)
    loss = -model.lm_head(norm(hidden[:, None] + found)).log_softmax(-1).gather(-1, token[..., None])[..., 0]
    before = -torch.stack(expected).log_softmax(-1).gather(-1, token)
    assert before.min() > 3.5
    assert loss.max() < (0.06 if name == "gpt2" else 0.75)  # the other's norm divides by a length that grows


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt2", "opt"])
def test_the_end_of_each_feed_forward_block_is_found(name: str) -> None:
    end = {"gpt2": "mlp.c_proj", "opt": "fc2"}.get(name, "mlp.down_proj")
    found = [module for module, _ in feed_forward_outputs(build(name))]
    assert [module.rpartition(".layers.")[2].rpartition("h.")[2] for module in found] == [f"0.{end}", f"1.{end}"]


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt2", "opt"])
def test_an_edited_block_has_nothing_left_of_its_directions(name: str) -> None:
    """Every prompt in a forward pass of its own; the model is the same afterwards, to the bit."""
    model, ids = build(name).requires_grad_(False), [(5, 6, 7), (9, 8, 7), (5, 6, 7, 8), (3, 4, 5, 6)]
    block, module = feed_forward_outputs(model)[0]
    found = at_last_token(model, module, ids)
    assert torch.allclose(found, torch.cat([at_last_token(model, module, [i]) for i in ids]), atol=1e-5)
    basis = pls_weights(found.double().numpy(), np.random.default_rng(1).normal(size=found.shape), 2)
    plain = model(torch.tensor([ids[-1]])).logits
    with Edited("test", {block: basis}).on(model):
        edited = at_last_token(model, module, ids)
        assert not torch.equal(model(torch.tensor([ids[-1]])).logits, plain)
    assert torch.equal(model(torch.tensor([ids[-1]])).logits, plain)
    assert edited.numpy() == pytest.approx(found.numpy() @ without(basis), abs=1e-4)


@pytest.mark.parametrize("name", ["mamba", "mixtral", "deepseek_v3"])
def test_a_model_without_such_blocks_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"not every layer of .* has attention and one feed-forward block"):
        feed_forward_outputs(build(name))


def test_dama_leaves_the_model_as_it_was(tiny: Path, tmp_path: Path) -> None:
    scorer = Scorer(BaseModel(str(tiny)).load(), None, "32", 512)
    kept = {key: value.clone() for key, value in scorer.base.model.state_dict().items()}
    before = logits(scorer.base)
    method = Dama("gender", directions=2, layers=[2, 1]).fit(scorer)
    assert method.name == "dama (2 directions, layers 1 to 2)"
    assert method.sha256 == Dama("gender", directions=2, layers=[1, 2]).fit(scorer).sha256
    with method.on(scorer.base.model):
        assert not torch.allclose(logits(scorer.base), before, atol=1e-2)
    assert torch.equal(logits(scorer.base), before)
    assert all(torch.equal(value, kept[key]) for key, value in scorer.base.model.state_dict().items())
    assert [b.shape for b in Dama("gender").fit(scorer).bases.values()] == [(1, WIDTH)]  # a sixteenth, one layer
    with pytest.raises(UserError, match=r"baseline\.layers=\[3\], but the model has 2 layers; choose from 1 to 2"):
        Dama("gender", layers=[3]).fit(scorer)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.bias=race"], "baseline.bias='race' is unknown; choose gender"),
        (["model=MASKED"], "baseline=dama edits causal models, and this is a masked one; choose another baseline"),
    ],
)
def test_dama_refuses_in_one_line(words: list[str], line: str, tiny: Path, tiny_masked: Path, tmp_path: Path) -> None:
    words = [f"model={tiny}", *(word.replace("MASKED", str(tiny_masked)) for word in words)]
    refused = run(tmp_path, "evaluate", "eval=[pronoun_gap]", "baseline=dama", *words)
    assert refused.status == 1
    assert line in refused.err


def test_dama_in_an_evaluation(tiny: Path, tmp_path: Path) -> None:
    shown = succeed(tmp_path, "evaluate", f"model={tiny}", "eval=[pronoun_gap]", "baseline=dama", "name=one")
    assert "the debiased model is the base with dama (1 direction, layers 2 to 2)" in shown.err


# ---------------------------------------------------------------- what they are fitted on


@pytest.mark.parametrize(
    ("bias", "sentence", "group"),
    [
        ("gender", "The man lost his hat.", 0),
        ("gender", "She told her sister.", 1),
        ("gender", "He met his sister.", None),
        ("gender", "It rained.", None),
        ("religion", "The rabbi read the Torah.", 2),
        ("religion", "The rabbi met an imam.", None),
    ],
)
def test_the_group_of_a_sentence(bias: str, sentence: str, group: int | None) -> None:
    assert Swapper(bias).group(sentence) == group


def test_versions_stand_in_the_order_of_the_groups(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "The rabbi read the Torah.\nAn imam came to the town.\nIt rained all day.\nThe rabbi met an imam.\n"
    )
    sentences = Sentences("religion", 9, str(text))
    assert sorted(row[1] for row in sentences.versions) == ["An imam came to the town.", "The imam read the Quran."]
    assert all(len(row) == 5 and "pastor" in row[0] and "rabbi" in row[2] for row in sentences.versions)
    assert sentences.neutral == ["It rained all day."]


# ---------------------------------------------------------------- text in front


def test_tokens_that_become_likelier_behind_the_prefix_lose_by_hand() -> None:
    """p = (.5, .5), q = (.9, .1): the first exceeds by .4, so its factor is exp(-.4 decay) and the other's is 1.

    A decay of ln 2 / .4 halves it: (.25, .5) / .75. Any large decay ends at epsilon: (.005, .5) / .505.
    """
    plain, biased = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert debiased(plain, biased, math.log(2) / 0.4, 0.01).exp().tolist() == [pytest.approx([1 / 3, 2 / 3])]
    assert debiased(plain, biased, 1e6, 0.01).exp().tolist() == [pytest.approx([0.005 / 0.505, 0.5 / 0.505])]
    assert debiased(plain, plain, 50, 0.01).exp().tolist() == [pytest.approx([0.5, 0.5])]


def test_the_prefix_stands_behind_the_start_token() -> None:
    prefix = Prefix((8, 9), special=(1,))
    assert prefix(Span((1, 5, 6), 1)) == Span((1, 8, 9, 5, 6), 3)
    assert prefix(Span((5, 6), 1)) == Span((8, 9, 5, 6), 3)
    assert prefix(Masked((1, 5, 0, 2), (2,), (6,))) == Masked((1, 8, 9, 5, 0, 2), (4,), (6,))


SPANS = {
    "causal": [Span((0, 5, 6, 7, 8), 1), Span((0, 5, 6, 9), 2), Span((7, 8, 9), 1)],
    "masked": [Masked((101, 5, 103, 7, 102), (2,), (6,)), Masked((101, 103, 9, 102), (1,), (8,))],
}


def distributions(base: Base, span: Scored) -> Tensor:
    """Log-probabilities of all tokens at the scored places of a span, in a forward pass of its own."""
    ids = torch.tensor([span.ids])
    at = list(span.at) if isinstance(span, Masked) else list(range(span.start - 1, len(span.ids) - 1))
    return logits(base, ids)[0, at].log_softmax(-1)


@pytest.mark.parametrize("method", ["prompting", "self_debias"])
def test_text_in_front_is_scored_as_one_by_one(method: str, base: Base) -> None:
    """The plain way: a forward pass for each text, alone. Only tokens of the text count."""
    prefix = Prefix((11, 12, 13), special=(0, 101))
    made = Prompted("p", prefix) if method == "prompting" else SelfDebiased("s", prefix, 5e4, 0.01)
    spans = SPANS[base.kind]
    scorer = Scorer(base, None, "32", 512, method=made)
    with scorer.using("debiased"):
        found = scorer.logprobs(spans, "test")
    with scorer.using("base"):
        plain = scorer.logprobs(spans, "test")
    for span, (logprob, greedy), (before, _) in zip(spans, found, plain, strict=True):
        expected = behind = distributions(base, prefix(span))
        if method == "self_debias":
            p, q = distributions(base, span).exp(), behind.exp()
            scaled = p * torch.exp(-5e4 * (q - p).clamp(min=0)).clamp(min=0.01)
            expected = (scaled / scaled.sum(-1, keepdim=True)).log()
        tokens = torch.tensor(span.tokens if isinstance(span, Masked) else span.ids[span.start :])
        own = expected[range(len(tokens)), tokens]
        assert logprob == pytest.approx(own.sum().item(), abs=1e-4)
        assert greedy == (own == expected.amax(-1)).all()
        assert abs(logprob - before) > 1e-4


def test_what_is_in_front_takes_room(tiny: Path) -> None:
    """Of 1,024 positions of GPT-2, three are the prefix's."""
    base = BaseModel(str(tiny)).load()
    assert base.max_positions is not None
    made = Prompted("p", Prefix((11, 12, 13), ()))
    assert Scorer(base, None, "32", 512, method=made).max_positions == base.max_positions - 3


@pytest.mark.skipif(
    not (Path(os.environ.get("DEBIAS_DATA", "")) / "seat").is_dir() or "DEBIAS_DATA" not in os.environ,
    reason="set DEBIAS_DATA to a folder that holds seat/, the tests as bias-bench has them",
)
def test_what_text_in_front_cannot_change_is_refused(tiny: Path, tmp_path: Path) -> None:
    refused = run(tmp_path, "evaluate", f"model={tiny}", "eval=[pronoun_gap,seat]", "baseline=self_debias")
    assert refused.status == 1
    assert "self_debias (gender, decay 50) changes likelihoods alone; leave seat out of eval=[...]" in refused.err


def test_an_instruction_without_words_is_refused(tiny: Path, tmp_path: Path) -> None:
    words = ("evaluate", f"model={tiny}", "eval=[pronoun_gap]", "baseline=prompting", "baseline.instruction=''")
    assert "has no tokens; write some words" in run(tmp_path, *words).err


@pytest.mark.parametrize("name", ["prompting", "self_debias"])
def test_text_in_front_in_an_evaluation(name: str, tiny: Path, tmp_path: Path) -> None:
    shown = succeed(tmp_path, "evaluate", f"model={tiny}", "eval=[pronoun_gap]", f"baseline={name}", "name=one")
    assert f"the debiased model is the base with {name}" in shown.err
    figures = read_figures(tmp_path / "outputs/one")
    assert {f.model for f in figures} == {"base", "debiased", "delta"}
    assert any(f.model == "delta" and f.value for f in figures)


# ---------------------------------------------------------------- in an evaluation

CANDIDATES = [Candidate("1", name, "gender", "", f"The nurse said that {name} was late.") for name in ("she", "he")]


def scores(base: Base, method: Method | None, cache: Path) -> list[list[float]]:
    scorer = Scorer(base, None, "32", 512, cache, method=method)
    found = []
    for model in scorer.models():
        with scorer.using(model):
            found.append(scorer.score(CANDIDATES, Conditional(), "test")["score"].tolist())
    return found


def test_no_method_shares_a_key_with_the_base_or_another(base: Base, tmp_path: Path) -> None:
    vector_D = np.linspace(0, 5, WIDTH)  # a constant vector would be lost in a layer norm
    last = feed_forward_outputs(base.model)[-1][0]
    methods = [
        None,
        Projection("one", without(np.eye(WIDTH)[:1])),
        Projection("one", without(np.eye(WIDTH)[1:2])),
        Steered("one", vector_D, 1),
        Steered("one", vector_D, 2),
        Steered("one", vector_D, 1, Gate(np.ones(WIDTH), 0.0)),
        Steered("one", vector_D, 1, Gate(np.ones(WIDTH), 1.0)),
        Edited("one", {last: np.eye(WIDTH)[:1]}),
        Edited("one", {last: np.eye(WIDTH)[1:2]}),
        Prompted("one", Prefix((11, 12), ())),
        Prompted("one", Prefix((11, 13), ())),
        SelfDebiased("one", Prefix((11, 12), ()), 5e4, 0.01),
        SelfDebiased("one", Prefix((11, 12), ()), 9e4, 0.01),
    ]
    fresh = [scores(base, method, tmp_path / str(i)) for i, method in enumerate(methods)]
    kept = [scores(base, method, tmp_path / "shared") for method in methods for _ in range(2)]
    assert kept == [found for found in fresh for _ in range(2)]  # the second time from the cache
    assert len(list((tmp_path / "shared" / "scores").glob("*.npy"))) == len(methods)
    assert all(found[0] == fresh[0][0] for found in fresh)
    assert len({tuple(found[-1]) for found in fresh}) == len(methods)


@pytest.mark.parametrize("kind", [SentenceDebias, NullSpace, Steering])
def test_each_is_fitted_to_models_of_both_kinds(kind: type, base: Base, tmp_path: Path) -> None:
    scorer = Scorer(base, None, "32", 512, tmp_path)
    options = {"gated": True} if kind is Steering else {"rounds": 2} if kind is NullSpace else {}
    method = kind("gender", n=6, **options).fit(scorer)
    again = kind("gender", n=6, **options).fit(scorer)
    assert method.sha256 == again.sha256
    plain, debiased = scores(base, method, tmp_path)
    assert plain != debiased
    assert np.isfinite(debiased).all()


@pytest.mark.parametrize(("bias", "directions"), [("gender", 3), ("race", 1), ("religion", 1)])
def test_a_round_of_inlp_asks_about_any_group_or_women_and_men(tiny: Path, bias: Bias, directions: int) -> None:
    """As in bias-bench: women, men and nobody are three classes, and any race (or religion) and none are two."""
    method = NullSpace(bias, n=20, rounds=1).fit(Scorer(BaseModel(str(tiny)).load(), None, "32", 512))
    assert np.linalg.matrix_rank(np.eye(16) - method.matrix_DD.numpy(), tol=1e-4) == directions


def test_evaluate_has_a_baseline_in_place_of_an_adapter(tiny: Path, tmp_path: Path) -> None:
    words = ("evaluate", f"model={tiny}", "eval=[pronoun_gap]", "baseline=sentence_debias", "baseline.n=4", "name=one")
    shown = succeed(tmp_path, *words)
    assert "the debiased model is the base with sentence_debias (gender), not with an adapter" in shown.err
    assert "change" in shown.out
    assert json.loads((tmp_path / "outputs/one/status.json").read_text())["method"] == "sentence_debias (gender)"
    refused = run(tmp_path, *words, "adapter.path=somewhere")
    assert refused.status == 1
    assert "leave out one of baseline and adapter.path" in refused.err
