"""Balance: its loss by hand, its pairs for both kinds of models, and what it does to a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from debias.benchmarks.pronoun_gap import BEGINNINGS, WITH_SHARES
from debias.models.base import BaseModel
from debias.records import Masked, Span
from debias.scoring.layouts import prefix_tree
from debias.training import balance
from debias.training.batches import SpanData


def logs(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_loss_by_hand() -> None:
    """No loss at the base where its odds are the aim; ln(4)^2 for odds of 4 to 1 whose joint mass stays one half."""
    base = logs((0.25, 0.25), (0.25, 0.25), (0.25, 0.25))
    model = logs((0.25, 0.25), (0.4, 0.1), (0.1, 0.1))
    held = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)  # joint mass of 0.2 for 0.5
    aims = torch.zeros(3)
    assert balance.losses(model, base, aims).tolist() == pytest.approx([0, math.log(4) ** 2, held])
    aims[1] = math.log(4)
    assert balance.losses(model, base, aims)[1].item() == pytest.approx(0)


def test_each_place_aims_at_its_own_mean() -> None:
    """Odds 1 and -3 in one place, 2 in the other."""
    pairs = [balance.Pair(Span((1, k), 1), Span((1, k + 1), 1), place) for k, place in ((2, 0), (4, 1), (6, 0))]
    base = torch.tensor([[-1.0, -2.0], [-1.0, -3.0], [-6.0, -3.0]])
    assert balance.aims(pairs, base) == pytest.approx([-1, 2, -1])


def test_pairs_are_at_the_end() -> None:
    spans = torch.tensor([-1.0, -2.0, -5.0, -3.0])
    assert balance.of_pairs(spans, 1).tolist() == [[-5, -3]]


def test_roles_and_places_are_not_those_of_the_witness() -> None:
    corpus = json.loads(balance.CORPUS.read_text(encoding="utf-8"))
    asked = {line.partition(",")[0] for line in WITH_SHARES.read_text(encoding="utf-8").splitlines()}
    assert len(set(corpus["roles"])) == len(corpus["roles"]) == 139
    assert not asked & set(corpus["roles"])
    places = {place["before"] for place in corpus["places"]}
    assert not places & {before for half in BEGINNINGS.values() for before, _ in half}
    assert all(place["before"].count("{}") == 1 for place in corpus["places"])


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_pairs_differ_in_one_scored_token(kind: str, tiny: Path, tiny_masked: Path) -> None:
    tokens = BaseModel(str(tiny if kind == "causal" else tiny_masked)).tokens()
    pairs = balance.Pronouns().pairs(tokens)
    assert pairs
    assert {pair.place for pair in pairs} <= set(range(14))
    for first, second, _ in pairs[:: len(pairs) // 20]:
        assert first.num_tokens == second.num_tokens == 1
        if kind == "causal":
            assert isinstance(first, Span)
            assert first.ids[:-1] == second.ids[:-1]
            assert first.ids[-1] != second.ids[-1]
        else:
            assert isinstance(first, Masked)
            assert first.ids == second.ids
            assert first.tokens != second.tokens


def test_a_step_holds_pairs_between_examples_and_neutral_texts() -> None:
    """Four examples, two neutral texts and two pairs a batch; in two parts each gets half of every kind."""
    examples = [(Span((1, 2, 3 + k), 2),) for k in range(8)]
    neutral = [Span((1, 30 + k, 5), 3) for k in range(3)]
    pairs = [balance.Pair(Span((1, 40 + k, 6), 2), Span((1, 40 + k, 7), 2), k) for k in range(5)]
    aims = [0.0, 0.1, 0.2, 0.3, 0.4]
    data = SpanData(examples, prefix_tree, 4, 1, neutral, 2, pairs=pairs, aims=aims, num_pairs=2)
    without = SpanData(examples, prefix_tree, 4, 1, neutral, 2)
    step, plain = data.batches(0)[0], without.batches(0)[0]
    assert step[:6] == plain  # the same examples and neutral texts, so that runs can be compared
    assert [index >= data.first_pair for index in step] == [False] * 6 + [True] * 2
    (part,) = data.divided(step, 1, 1)
    laid = data.lay(part)
    assert (laid.num_pairs, part.num_pairs) == (2, 2)
    assert laid.aim_P.tolist() == pytest.approx([aims[index - data.first_pair] for index in step[6:]])
    assert laid.batch.num_tokens_S.tolist() == [1] * 4 + [1] * 4 + [0] * 2
    halves = [data.lay(half) for half in data.divided(data.batches(0, 2)[0], 2, 1)]
    assert [(len(half.aim_P), float(half.num_pairs)) for half in halves] == [(2, 4), (2, 4)]
