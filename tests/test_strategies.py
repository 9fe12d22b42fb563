"""What is asked for: waves of each strategy as its config builds it, the loop's arithmetic, and guiding losses."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from test_acceptance import wanted
from test_config import composed

from debias.cli.config import make
from debias.generation.acceptance import Acceptance
from debias.generation.exchange import Answer, Outcome, Request, Spent
from debias.generation.harvest import Loop
from debias.generation.prompts import Prompt, turn
from debias.generation.strategies import Task, often
from debias.records import UserError


def built(*overrides: str) -> Any:
    return make(composed("generate", *overrides).strategy)


def task(*biases: str, seed: int = 1, **changes: Any) -> Task:
    return Task(biases or ("gender",), seed, 500, wanted(**changes))


def text_of(request: Request) -> str:
    return request.messages[-1].content


def answered(*rows: tuple[str, str, str]) -> str:
    return json.dumps({"triplets": [dict(zip(("sentence", "target", "attribute"), row, strict=True)) for row in rows]})


def test_targeted_asks_for_terms_first_and_then_about_a_few_at_a_time() -> None:
    strategy = built("strategy.num_terms=6", "strategy.terms_per_call=2", "strategy.calls_per_wave=3")
    waves = strategy.waves(task("gender"))
    first = next(waves)
    assert (first.holds, len(first.requests)) == ("terms", 1)
    assert "women and men" in text_of(first.requests[0])  # what the bias means, in words
    names = [f"term{i}" for i in range(6)]
    wave = waves.send([json.dumps({"terms": [{"term": n, "stereotypes": ["loud"]} for n in names]})])
    assert (wave.holds, len(wave.requests)) == ("triplets", 3)
    shown = [[n for n in names if f"- {n} (often said to be loud)" in text_of(r)] for r in wave.requests]
    assert [len(s) for s in shown] == [2, 2, 2]
    assert sorted(chain(*shown)) == names  # each once before any comes again


def test_the_same_answers_lead_to_the_same_requests_and_another_seed_to_others() -> None:
    def requests(seed: int) -> list[Request]:
        strategy = built("strategy.terms=[nurse,sailor,widow,uncle]", "strategy.terms_per_call=2")
        waves = strategy.waves(task(seed=seed))
        first = next(waves)
        return (
            first.requests
            + waves.send([answered(("A nurse sang low.", "nurse", "low"))] * len(first.requests)).requests
        )

    assert requests(1) == requests(1)
    assert requests(1) != requests(2)
    assert len({str(r) for r in requests(1)}) == len(requests(1))  # no request is made twice


def test_later_waves_are_told_what_is_overused() -> None:
    strategy = built("strategy.terms=[nurse]", "strategy.calls_per_wave=3")
    waves = strategy.waves(task())
    next(waves)
    wave = waves.send([answered(("A nurse was brave.", "nurse", "brave"))] * 3)
    assert "too often already: brave" in text_of(wave.requests[0])
    assert often(Counter(a=3, b=2, c=5)) == ["c", "a"]


def test_several_biases_are_one_prompt_about_their_intersection() -> None:
    strategy = built("strategy.terms=null")
    text = text_of(next(strategy.waves(task("race", "gender"))).requests[0])
    assert "all at the same time" in text
    assert "ethnic groups" in text
    assert "women and men" in text
    assert task("race", "gender").label == "race+gender"
    assert "left-handed people" in text_of(next(strategy.waves(task("left-handed people"))).requests[0])


def test_general_names_no_bias_and_wants_labels() -> None:
    strategy = built("strategy=general")
    request = next(strategy.waves(task("general"))).requests[0]
    assert not strategy.biased
    assert "bias" in request.schema["properties"]["triplets"]["items"]["required"]


def test_prompts_take_data_as_data() -> None:
    prompt = Prompt("here", "About $bias for $$5.", ["bias"])
    assert prompt.fill(bias="${HOME} {x} $bias") == "About ${HOME} {x} $bias for $5."
    for text in ("About $bais.", "About $ 5."):
        with pytest.raises(UserError, match="here: "):
            Prompt("here", text, ["bias"])


def test_turns() -> None:
    drawn = [turn("abcde", 2, call, 1) for call in range(5)]
    assert sorted(chain(*drawn)) == sorted("abcde" * 2)


class Partner:
    """Answers from a function; remembers what was asked."""

    def __init__(self, reply: Callable[[Request], str | None]) -> None:
        self.reply, self.asked, self.given_up = reply, [], []
        self.spent = Spent(0, 0, 0, 0.0, 0, 0, 0.0)

    async def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> Outcome:
        self.asked += requests
        texts = [self.reply(request) for request in requests]
        return Outcome([None if t is None else answer(t) for t in texts], "", "")

    def known(self, requests: Sequence[Request]) -> list[Answer | None]:
        return [None for _ in requests]

    def give_up(self, requests: Sequence[Request]) -> None:
        self.given_up += requests


def answer(text: str) -> Answer:
    return Answer("k", text, "stop", 1, 1, 0.0, "r", "t", "m", False)


class Silent:
    def arrived(self, *_: Any) -> None: ...

    def paused(self, *_: Any) -> None: ...


def harvested(partner: Partner, **changes: Any) -> Any:
    job = task(**changes)
    loop = Loop(partner, Acceptance(job.wanted, {}), job, lambda _: "test", Silent())
    return asyncio.run(loop.run(built("strategy.terms=[nurse]")))


def test_the_loop_stops_at_n() -> None:
    """Each call brings one good and one bad triplet; three are wanted."""
    number = iter(range(100))

    def reply(_: Request) -> str:
        i = next(number)
        word = "abcdefghij"[i]
        return answered(
            (f"{word}x {word}y the nurse{word} {word}z bold{word}.", f"nurse{word}", f"bold{word}"), ("x", "y", "z")
        )

    harvest = harvested(Partner(reply), n=3)
    assert (len(harvest.kept), harvest.stopped) == (3, "n")
    assert len(harvest.rejected) == 2  # what stands after the third accepted one is not looked at


def test_patience_counts_calls_in_a_row_and_failed_requests_are_asked_again() -> None:
    partner = Partner(lambda _: "no JSON here")
    harvest = harvested(partner, patience=4)
    assert (harvest.stopped, harvest.calls, len(partner.asked)) == ("patience", 4, 4)
    assert harvest.poor == {"no triplet in it": 4}
    partner = Partner(lambda _: None)
    harvest = harvested(partner, patience=2)
    assert harvest.poor == {"no answer": 2}
    assert len(partner.asked) == 6  # three attempts at each
    assert len(partner.given_up) == 2


def test_loss_guided_shows_the_extremes(tiny: Path, tmp_path: Path) -> None:
    """Losses are those of the base model, per token or in all; the highest and lowest stand in the prompt."""
    sentences = [f"The {t} from the village was {a}." for t, a in zip(
        ("nurse", "sailor", "widow", "uncle", "aunt", "boy"),
        ("bold", "calm", "lachrymosely", "shy", "philosophical", "kind"), strict=True)]  # fmt: skip
    rows = [(s, s.split()[1], s.split()[-1].strip(".")) for s in sentences]
    start = tmp_path / "start.jsonl"
    start.write_text("\n".join(json.dumps(row) for row in rows))
    words = ["strategy=loss_guided", f"strategy.start={start}", f"model={tiny}", "strategy.extremes=2"]
    words[2:3] = ["model=hf", f"model.path={tiny}"]
    strategy = built(*words)
    triplets = strategy.start.load().triplets
    means = strategy.losses(triplets)
    wave = next(strategy.waves(task()))
    assert wave.losses["n"] == 6
    assert wave.losses["mean"] == pytest.approx(sum(means) / 6)
    ordered = sorted(range(6), key=lambda i: means[i])
    text = text_of(wave.requests[0])
    first, second = text.index("First list, least expected"), text.index("Second list, most expected")
    assert all(first < text.index(sentences[i]) < second for i in ordered[-2:])
    assert all(second < text.index(sentences[i]) for i in ordered[:2])
    assert not any(sentences[i] in text for i in ordered[2:4])

    sums = built(*words, "strategy.loss=sum").losses(triplets)
    ratios = [total / mean for total, mean in zip(sums, means, strict=True)]
    assert ratios[0] == pytest.approx(1)  # one token
    assert ratios[2] > 1.5  # several: the sum grows with their number
    assert all(ratio == pytest.approx(round(ratio)) for ratio in ratios)
    with pytest.raises(UserError, match="mean or sum"):
        built(*words, "strategy.loss=median")


def test_loss_guided_scores_once_a_round_and_then_keeps_its_extremes(tiny: Path, tmp_path: Path) -> None:
    """Two rounds, each over all triplets so far; the third wave shows what the second round found."""
    start = tmp_path / "start.jsonl"
    rows = [(f"The {t} from the village was {a}.", t, a) for t, a in (("nurse", "bold"), ("sailor", "shy"))]
    start.write_text("\n".join(json.dumps(row) for row in rows))
    words = ["strategy=loss_guided", f"strategy.start={start}", "model=hf", f"model.path={tiny}"]
    strategy = built(*words, "strategy.extremes=1", "strategy.side=low", "strategy.rounds=2")
    waves = strategy.waves(task())
    wave = next(waves)
    assert (wave.losses["round"], wave.losses["n"], sum(wave.losses["counts"])) == (1, 2, 2)
    assert "expects as well as those of the second list" in text_of(wave.requests[0])

    def row(i: int) -> tuple[str, str, str]:
        target, attribute = f"{'abcd'[i]}aunt", f"calm{'efgh'[i]}"
        return f"In the harbour the {target} looked quite {attribute}.", target, attribute

    wave = waves.send([answered(row(0)), answered(row(1))])
    assert (wave.losses["round"], wave.losses["n"]) == (2, 4)
    start.write_text("\n".join(json.dumps(r) for r in [*rows, row(0), row(1)]))
    pool = strategy.start.load().triplets
    likeliest = min(zip(strategy.losses(pool), pool, strict=True))[1].sentence
    assert likeliest in text_of(wave.requests[0])
    later = waves.send([answered(row(2)), answered(row(3))])
    assert later.losses is None
    assert likeliest in text_of(later.requests[0])
