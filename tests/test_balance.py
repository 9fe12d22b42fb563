"""Balance: its loss by hand, its pairs for both kinds of models, and what it does to a tiny model."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from debias.benchmarks import group_gap
from debias.benchmarks.pronoun_gap import SENTENCES, WITH_SHARES
from debias.models.base import BaseModel
from debias.records import Masked, Span, UserError
from debias.scoring.layouts import prefix_tree
from debias.training import balance
from debias.training.batches import SpanData


def read(source: type[balance.Words]) -> dict[str, Any]:
    corpus: dict[str, Any] = json.loads((balance.CORPORA / source.corpus).read_text(encoding="utf-8"))
    return corpus


def words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in re.findall("[a-z]+", text.lower())}


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
    corpus = read(balance.Pronouns)
    asked = {line.partition(",")[0] for line in WITH_SHARES.read_text(encoding="utf-8").splitlines()}
    assert len(set(corpus["roles"])) == len(corpus["roles"]) == 139
    assert not asked & set(corpus["roles"])
    places = {place["before"] for place in corpus["places"]}
    assert not places & {sentence.partition(" ___")[0] for half in SENTENCES.values() for sentence in half}
    assert all(place["before"].count("{}") == 1 for place in corpus["places"])


def test_words_of_groups_are_not_those_of_the_witness() -> None:
    """Of either split: no attribute, nor a word that begins like one, and nothing of a sentence but `the`, `is`."""
    corpus = read(balance.Groups)
    assert list(corpus["words"].values()) == [list(groups) for groups in group_gap.GROUPS.values()]
    said = words([*corpus["roles"], *(place["before"] + place["after"] for place in corpus["places"])])
    attributes = words(pair for split in group_gap.ATTRIBUTES.values() for pairs in split.values() for pair in pairs)
    assert len(attributes) > 120
    assert not said & attributes
    assert not {word[:6] for word in said if len(word) > 5} & {word[:6] for word in attributes}
    sentences = words(
        b.partition("___")[0] for split in group_gap.SENTENCES.values() for o in split.values() for b in o
    )
    assert said & sentences == {"as", "by", "in", "is", "my", "on", "that", "the", "to", "was"}


def test_groups_of_a_sentence_take_turns() -> None:
    """In a circle of five, those next to each other and those two apart; each once on either side."""
    assert balance.choices(["she", "he"]) == [[("she", "he")]]
    near, far = balance.choices("abcde")
    assert ["".join(two) for two in near] == ["ab", "bc", "cd", "de", "ea"]
    assert ["".join(two) for two in far] == ["ac", "bd", "ce", "da", "eb"]


def test_every_role_meets_every_two_groups(tiny: Path) -> None:
    """100 roles in 24 sentences; 120 places of 20 roles each; a group is first as often as second."""
    corpus, tokens = read(balance.Groups), BaseModel(str(tiny)).tokens()
    assert len(set(corpus["roles"])) == len(corpus["roles"]) == 100
    assert len({place["before"] for place in corpus["places"]}) == len(corpus["places"]) == 24
    pairs = balance.Groups().pairs(tokens)
    assert Counter(pair.place for pair in pairs) == dict.fromkeys(range(120), 20)
    first = [tokens.tokenizer.decode(pair.first.ids[-1:]).strip() for pair in pairs]
    second = [tokens.tokenizer.decode(pair.second.ids[-1:]).strip() for pair in pairs]
    groups = [group for kind in corpus["words"].values() for group in kind]
    assert Counter(first) == Counter(second) == dict.fromkeys(groups, 240)
    met = {(k % 100, frozenset(two)) for k, two in enumerate(zip(first, second, strict=True))}
    every = [frozenset(two) for kind in corpus["words"].values() for two in combinations(kind, 2)]
    assert met == {(role, two) for role in range(100) for two in every}


def test_pairs_of_pronouns_stay_what_they_were(tiny: Path) -> None:
    """Earlier runs were trained on these, drawn by their numbers."""
    tokens = BaseModel(str(tiny)).tokens()
    pairs = balance.Pronouns().pairs(tokens)
    said = [tuple(tokens.tokenizer.decode(span.ids[1:]) for span in pairs[k][:2]) for k in (0, -1)]
    assert said[0] == ("The astronaut told me that she", "The astronaut told me that he")
    last = "The cave explorer bought a ticket for"
    assert said[1] == (f"{last} herself", f"{last} himself")
    assert [pair.place for pair in pairs] == [place for place in range(14) for _ in range(139)]


def test_sources_get_equal_shares() -> None:
    """Of two pairs and three, the first is repeated; places do not meet."""
    one, two = ([balance.Pair(Span((1, k), 1), Span((2, k), 1), k) for k in range(n)] for n in (2, 3))
    shared = balance.equal_shares([one, two])
    assert [(pair.first.ids[1], pair.place) for pair in shared] == [(0, 0), (0, 0), (1, 1), (0, 2), (1, 3), (2, 4)]


def test_a_model_without_such_words_is_told(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [{"words": "few", "before": "The {} is", "after": "."}]
    corpus = {"words": {"few": ["Zoroastrian", "Rastafarian"]}, "roles": ["cook"], "places": places}
    (tmp_path / "group_pairs.json").write_text(json.dumps(corpus))
    monkeypatch.setattr(balance, "CORPORA", tmp_path)
    with pytest.raises(UserError, match=r"no two words of group_pairs.json are one token each .* choose another"):
        balance.Groups().pairs(BaseModel(str(tiny)).tokens())


@pytest.mark.parametrize("source", [balance.Pronouns(), balance.Groups()])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_pairs_differ_in_one_scored_token(kind: str, source: balance.Words, tiny: Path, tiny_masked: Path) -> None:
    tokens = BaseModel(str(tiny if kind == "causal" else tiny_masked)).tokens()
    pairs = source.pairs(tokens)
    assert len(pairs) > 1900
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
