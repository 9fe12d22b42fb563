"""Objectives on hand-worked log-probabilities, and the pairs that some of them compare."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from debias.data.benchmark_text import StereoSetSentences
from debias.data.triplets import Record, TripletFile, strict
from debias.records import Encoded, Masked, Span, Triplet, UserError
from debias.training import objectives
from debias.training.pairs import other_group, paired

ATTRIBUTE, LANGUAGE_MODEL = objectives.Attribute(), objectives.LanguageModel()


def loss(
    objective: objectives.Attribute, logprob: list[list[float]], num: list[list[int]], base: float = 0.0
) -> Tensor:
    """Weighted mean over the examples, which have one to three texts each."""
    logprob_BK = torch.tensor(logprob)
    loss_B = objective.losses(logprob_BK, torch.full_like(logprob_BK, base), torch.tensor(num))
    texts = [[Span((0,) * (n + 1), 1) for n in several] for several in num]
    return (loss_B.sum() / sum(map(objective.weight, texts))).detach()


def triplet(sentence: str, target: str, attribute: str, bias: str = "gender") -> Triplet:
    found = strict(Record(sentence, target, attribute, bias, "test"))
    assert isinstance(found, Triplet)
    return found


def test_attribute_and_language_model() -> None:
    """Two spans of 1 and 3 tokens with log-probabilities -1 and -5: (1 + 5) / 4 nats per token."""
    text = Encoded((9, 5, 6, 7, 8), 2, 4)
    assert ATTRIBUTE.span(text) == Span((9, 5, 6, 7), 2)
    assert LANGUAGE_MODEL.span(text) == Span((9, 5, 6, 7, 8), 1)
    for objective in (ATTRIBUTE, LANGUAGE_MODEL):
        assert loss(objective, [[-1.0], [-5.0]], [[1], [3]]) == 1.5
        assert not objective.needs_base


def test_plain_text_is_scored_from_its_second_token_on() -> None:
    assert ATTRIBUTE.span(Encoded((5, 6, 7), 0, 3)) == Span((5, 6, 7), 1)
    assert ATTRIBUTE.span(Encoded((0, 5, 6, 7), 1, 4)) == Span((0, 5, 6, 7), 1)  # after a start token


def test_a_margin_ends_where_the_attribute_is_that_much_likelier_than_under_the_base() -> None:
    """Base -10 nats for 2 tokens, margin 1.5 a token: up to -7. At -9 there are 2 nats to go, at -6 none."""
    objective = objectives.Attribute(margin=1.5)
    assert objective.needs_base
    assert loss(objective, [[-9.0]], [[2]], base=-10) == 2 / 2
    assert loss(objective, [[-6.0]], [[2]], base=-10) == 0


def test_unlikelihood() -> None:
    """Spans of 1 and 2 tokens with p = 1/2 and 1/4 a token: (ln 2 + 2 ln(4/3)) / 3; p = 1 stays finite."""
    objective = objectives.Unlikelihood()
    logprob_BK = torch.tensor([[math.log(0.5)], [2 * math.log(0.25)]], requires_grad=True)
    loss_B = objective.losses(logprob_BK, logprob_BK.detach(), torch.tensor([[1], [2]]))
    assert loss(objective, logprob_BK.tolist(), [[1], [2]]).item() == pytest.approx(loss_B.sum().item() / 3)
    assert loss_B.sum().item() == pytest.approx(math.log(2) + 2 * math.log(4 / 3))
    loss_B.sum().backward()
    assert (logprob_BK.grad > 0).all()  # descent lowers the attribute's likelihood
    assert math.isfinite(loss(objective, [[0.0]], [[1]]))
    assert objective.span(Encoded((9, 5, 6), 1, 2)) == Span((9, 5), 1)


def test_equalise_is_zero_on_equal_inputs_and_the_squared_difference_per_token_otherwise() -> None:
    """-6 and -2 nats over 2 tokens: means -3 and -1, (-3 + 1)^2 = 4; beside an equal pair the mean is 2."""
    objective = objectives.Equalise()
    assert loss(objective, [[-6.0, -6.0]], [[2, 2]]) == 0
    assert loss(objective, [[-6.0, -2.0]], [[2, 2]]) == 4
    assert loss(objective, [[-6.0, -2.0], [-1.0, -1.0]], [[2, 2], [1, 1]]) == 2
    assert not objective.needs_base


def test_equalise_learns_beside_it_up_to_a_bound() -> None:
    """Means -3 and -1: (-3 + 1)^2 = 4; of 4 nats above the base's -5 per token, 2 are missing: 4 + 0.5 * 2."""
    objective = objectives.Equalise(learn=0.5, margin=4)
    assert objective.needs_base
    assert loss(objective, [[-6.0, -2.0]], [[2, 2]], base=-10) == 5
    assert loss(objective, [[-2.0, -2.0]], [[2, 2]], base=-10) == 0


def test_preference_is_ln_2_at_the_start_and_falls_as_the_gap_grows() -> None:
    """beta 0.5, anti-stereotype 2 nats up, stereotype 1 nat down: -log sigmoid(0.5 * 3)."""
    objective = objectives.Preference(beta=0.5)
    assert objective.needs_base
    assert loss(objective, [[-7.0, -7.0]], [[1, 4]], base=-7).item() == pytest.approx(math.log(2))
    expected = math.log(1 + math.exp(-1.5))
    assert loss(objective, [[-5.0, -8.0]], [[1, 4]], base=-7).item() == pytest.approx(expected)


def test_equal_chance_is_the_symmetric_divergence_of_a_draw_and_keeps_the_unrelated_word() -> None:
    """Means -1 and -3 make odds of e^2 : 1; p = (s, 1 - s) and q = (1 - s, s). The unrelated word fell by 1 nat."""
    objective, s = objectives.EqualChance(hold=0.5), 1 / (1 + math.exp(-2))
    divergence = 2 * (s * math.log(s / (1 - s)) + (1 - s) * math.log((1 - s) / s))
    found = loss(objective, [[-2.0, -3.0, -6.0]], [[2, 1, 1]], base=-5)
    assert found == pytest.approx(divergence + 0.5)
    assert loss(objective, [[-3.0, -1.0, -5.0]], [[1, 1, 1]], base=-5) == pytest.approx(divergence)  # either way
    assert loss(objective, [[-4.0, -2.0, -5.0]], [[2, 1, 1]], base=-5) == 0


def test_preference_margin_is_what_is_missing_and_no_more() -> None:
    """Means -3 and -1: two nats to no preference, three to a margin of one; the other way round nothing is missing."""
    assert loss(objectives.PreferenceMargin(), [[-6.0, -1.0]], [[2, 1]]) == 2
    assert loss(objectives.PreferenceMargin(by=1.0), [[-6.0, -1.0]], [[2, 1]]) == 3
    assert loss(objectives.PreferenceMargin(by=1.0), [[-1.0, -6.0]], [[1, 2]]) == 0
    assert not objectives.PreferenceMargin().needs_base


def test_preference_margin_learns_beside_it_up_to_a_bound() -> None:
    """Means -3 and -1, so 2 nats are missing; of 4 nats above the base's -5 per token, 2 are missing: 2 + 0.5 * 2."""
    objective = objectives.PreferenceMargin(learn=0.5, margin=4)
    assert objective.needs_base
    assert loss(objective, [[-6.0, -1.0]], [[2, 1]], base=-10) == 3
    assert loss(objective, [[-2.0, -5.0]], [[2, 1]], base=-10) == 0


def test_npo_learns_unlearns_and_holds() -> None:
    """Means per token of 2, 1 and 4 tokens.

    At the base's likelihoods: the whole margin of 3, 2 ln 2, and nothing to hold. With gains of 2, -1 and 0.5 nats a
    token: 1 + 2 ln(1 + 1/e) + 0.25. The gradient on the stereotype is 1 per token at first and vanishes.
    """
    objective = objectives.NegativePreference(margin=3)
    assert objective.needs_base
    num = [[2, 1, 4]]
    assert loss(objective, [[-8.0, -8.0, -8.0]], num, base=-8).item() == pytest.approx(3 + 2 * math.log(2))
    moved = 1 + 2 * math.log(1 + math.exp(-1)) + 0.25
    assert loss(objective, [[-4.0, -9.0, -6.0]], num, base=-8).item() == pytest.approx(moved)
    weighted = objectives.NegativePreference(margin=3, beta=2, unlearn=3, hold=4)
    moved = 1 + 3 * math.log(1 + math.exp(-2)) + 4 * 0.25
    assert loss(weighted, [[-4.0, -9.0, -6.0]], num, base=-8).item() == pytest.approx(moved)

    for gain, slope in ((0.0, 1.0), (-20.0, 0.0)):
        logprob_BK = torch.tensor([[-8.0, -8.0 + gain, -8.0]], requires_grad=True)
        objective.losses(logprob_BK, torch.full((1, 3), -8.0), torch.tensor(num)).sum().backward()
        assert logprob_BK.grad is not None
        assert logprob_BK.grad[0, 1].item() == pytest.approx(slope, abs=1e-6)
        assert logprob_BK.grad[0, 2] == 0


def test_npo_only_learns_what_comes_alone() -> None:
    """Gains of 1 nat a token in both, with a margin of 3: the first has counterparts as at the base, 2 ln 2 more.

    What stands in the place of counterparts that a sentence lacks is not in its loss, nor in the gradient.
    """
    objective = objectives.NegativePreference(margin=3, biases=["gender"])
    logprob_BK = torch.tensor([[-7.0, -8.0, -8.0], [-6.0, -6.0, -6.0]], requires_grad=True)
    num_tokens_BK = torch.tensor([[1, 1, 1], [2, 0, 0]])
    loss_B = objective.losses(logprob_BK, torch.full((2, 3), -8.0), num_tokens_BK)
    assert loss_B.tolist() == pytest.approx([2 + 2 * math.log(2), 2])
    loss_B.sum().backward()
    assert logprob_BK.grad is not None
    assert logprob_BK.grad[1].tolist() == [-0.5, 0, 0]


def test_a_masked_model_learns_the_true_tokens_at_masked_places_and_refuses_plain_text() -> None:
    """Attribute 7 8 of [2] 5 7 8 3: both are masked (9), the labels are 7 and 8; plain text would be all masks."""
    text = Encoded((2, 5, 7, 8, 3), 2, 4, mask=9)
    assert ATTRIBUTE.span(text) == Masked((2, 5, 9, 9, 3), (2, 3), (7, 8))
    with pytest.raises(UserError, match="objective=language_model"):
        ATTRIBUTE.span(Encoded((2, 5, 7, 8, 3), 1, 4, mask=9))


def test_as_published_labels_are_the_mask_itself() -> None:
    """The notebook's bug: a masked place is taught to predict the mask; for causal models it is the attribute."""
    objective = objectives.AsPublished()
    assert objective.span(Encoded((2, 5, 7, 8, 3), 2, 4, mask=9)) == Masked((2, 5, 9, 9, 3), (2, 3), (9, 9))
    assert objective.span(Encoded((9, 5, 6, 7, 8), 2, 4)) == Span((9, 5, 6, 7), 2)


def test_a_masked_language_model_masks_a_share_of_the_tokens_always_the_same() -> None:
    ids = (2, *range(100, 120), 3)
    span = LANGUAGE_MODEL.span(Encoded(ids, 1, 21, mask=9))
    assert isinstance(span, Masked)
    assert len(span.at) == 3  # 15% of 20, special tokens left out
    assert {0, 21}.isdisjoint(span.at)
    assert span.tokens == tuple(ids[k] for k in span.at)
    assert [k for k, token in enumerate(span.ids) if token == 9] == list(span.at)
    assert span == LANGUAGE_MODEL.span(Encoded(ids, 1, 21, mask=9))
    assert LANGUAGE_MODEL.span(Encoded((2, 100, 3), 1, 2, mask=9)) == Masked((2, 9, 3), (1,), (100,))


# ---------------------------------------------------------------- pairs


def test_a_counterpart_has_the_other_group_and_the_same_attribute() -> None:
    other = other_group(triplet("The woman said that she was remarkably stoic.", "woman", "stoic"))
    assert isinstance(other, Triplet)
    assert other.sentence == "The man said that he was remarkably stoic."
    assert other.sentence[other.start : other.stop] == "stoic"


def test_the_attribute_is_found_where_its_word_stands_twice() -> None:
    """'She stood still and she was still.': the second one is marked, before and after the swap."""
    sentence = triplet("She stood still and she was still.", "She", "still")
    second = sentence._replace(start=28, stop=33)
    other = other_group(second)
    assert isinstance(other, Triplet)
    assert (other.sentence, other.start) == ("He stood still and he was still.", 26)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (triplet("The baker was strong.", "baker", "strong"), "no swappable word for a group"),
        (triplet("The old man wept.", "man", "wept", bias="age"), "no swappable word for a group"),
        (triplet("The girl became a king.", "girl", "king"), "the attribute is swapped too"),
    ],
)
def test_sentences_without_a_counterpart_are_counted(given: Triplet, reason: str) -> None:
    fits = triplet("He wept.", "He", "wept")
    pairs, dropped = paired([given, fits], ("group",))
    assert [texts[0] for texts in pairs] == [fits]
    assert dropped == {reason: 1}
    with pytest.raises(UserError, match=f"1 {reason}"):
        paired([given], ("group",))


def test_stereotypes_come_from_stereoset_and_from_files_that_name_them(tmp_path: Path) -> None:
    checked = StereoSetSentences("gender", "dev").load()
    pairs, _ = paired(checked.triplets, ("stereotype",))
    anti, stereo = pairs[0]
    assert anti.sentence != stereo.sentence
    assert anti.sentence[: anti.start] == stereo.sentence[: stereo.start]
    assert stereo.sentence[stereo.start : stereo.stop] == anti.stereotype

    path = tmp_path / "own.jsonl"
    row = {"sentence": "She was stoic.", "target": "She", "attribute": "stoic", "stereotype": "moody"}
    path.write_text(json.dumps(row), encoding="utf-8")
    ((_, stereo),), dropped = paired(TripletFile("gender", str(path)).load().triplets, ("stereotype",))
    assert (stereo.sentence, dropped) == ("She was moody.", {})

    path.write_text(json.dumps({**row, "stereotype": " "}), encoding="utf-8")
    with pytest.raises(UserError, match=r"own\.jsonl:1: 'stereotype' is empty"):
        TripletFile("gender", str(path)).load()


def test_a_sentence_has_as_many_counterparts_as_the_objective_asks_for(tmp_path: Path) -> None:
    """StereoSet names all three words; a sentence that lacks one is left out and counted by what it lacks."""
    both = objectives.NegativePreference().contrasts
    texts, dropped = paired(StereoSetSentences("gender", "dev").load().triplets, both)
    assert {len(several) for several in texts} == {3}
    assert len({several[2].attribute for several in texts} - {several[0].attribute for several in texts}) > 50
    assert sum(dropped.values()) < 10

    whole = triplet("She was stoic.", "She", "stoic")._replace(stereotype="moody", unrelated="wooden")
    lacking = whole._replace(unrelated=None)
    texts, dropped = paired([whole, lacking, whole._replace(stereotype=None)], both)
    assert [[text.sentence for text in several] for several in texts] == [
        ["She was stoic.", "She was moody.", "She was wooden."]
    ]
    assert dropped == {"no unrelated word in the record": 1, "no stereotype in the record": 1}
    with pytest.raises(UserError, match="counterparts=FILE"):
        paired([lacking], both)


def test_sentences_of_other_biases_come_alone_and_need_no_counterparts() -> None:
    about = triplet("She was stoic.", "She", "stoic")._replace(stereotype="moody", unrelated="wooden")
    other = triplet("The imam sang.", "imam", "sang", "religion")
    objective = objectives.NegativePreference(biases=["gender"])
    texts, dropped = paired([other, about, other._replace(bias="race")], objective.contrasts, objective.compares)
    assert [len(several) for several in texts] == [1, 3, 1]
    assert not dropped
    assert all(objectives.NegativePreference().compares(t) for t in (about, other))


def test_without_a_contrast_sentences_stand_alone() -> None:
    sentence = triplet("He wept.", "He", "wept")
    assert paired([sentence], ()) == ([(sentence,)], {})
