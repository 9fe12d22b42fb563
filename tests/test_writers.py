"""Several chat models write one set: whose turn it is, whose words they are, and one ledger and budget for all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from chat_server import serving, settings
from command import run, succeed
from test_generate import PRICES, folder_of, triplets, words, writer

from debias.cli.config import shorthands
from debias.generation.exchange import LLM
from debias.generation.writers import Turns, writers_of
from debias.records import UserError


@pytest.mark.parametrize(
    ("shares", "order"),
    [([1], "aaaa"), ([1, 1], "abababab"), ([3, 1], "aabaaaba"), ([1, 3], "babbbabb"), ([2, 1, 1], "abcaabca")],
)  # fmt: skip
def test_each_has_its_share_of_any_number_of_calls(shares: list[float], order: str) -> None:
    turns = Turns(shares)
    assert "".join("abc"[turns[call]] for call in range(len(order))) == order
    for calls in range(1, 200):
        count = Counter(turns[call] for call in range(calls))
        assert all(abs(count[i] - calls * share / sum(shares)) < 1 for i, share in enumerate(shares))


def test_a_list_of_models_is_short_for_the_first_and_its_others() -> None:
    assert shorthands(["llm=[openai:3,local]", "seed=2"]) == [
        "llm=openai", "llm.share=3", "+llm@llm.others.local=local", "seed=2",
    ]  # fmt: skip
    assert shorthands(["llm=[openai,openai:0.5,openai]"]) == [
        "llm=openai", "+llm@llm.others.openai=openai", "llm.others.openai.share=0.5",
        "+llm@llm.others.openai2=openai",
    ]  # fmt: skip
    assert shorthands(["llm=openai"]) == ["llm=openai"]
    assert shorthands(["judge.llm=local"]) == ["+llm@judge.llm=local"]
    assert shorthands(["judge.llm.model=x"]) == ["judge.llm.model=x"]
    assert shorthands(["counterparts=my.jsonl"]) == ["counterparts=llm", "counterparts.file=my.jsonl"]
    assert shorthands(["counterparts=llm"]) == ["counterparts=llm"]


@pytest.mark.parametrize(
    "typed",
    [
        ["llm.prices={gpt-4.1: {prompt: 1, completion: 2, date: 2026-01-01}}"],
        ["llm.prices.gpt-4.1={prompt: 1, completion: 2, date: 2026-01-01}"],
        [f"llm.prices.gpt-4.1.{setting}" for setting in ("prompt=1", "completion=2", "date=2026-01-01")],
    ],
)
def test_a_price_of_a_model_whose_name_has_a_dot(tmp_path: Path, typed: list[str]) -> None:
    words = ["generate", "llm=openai", "llm.model=gpt-4.1", "generate.dry_run=true", "generate.benchmarks=false"]
    assert "(prices of gpt-4.1 on 2026-01-01)" in succeed(tmp_path, *words, *typed).out


def test_all_keep_within_one_budget_and_a_wrong_setting_is_named() -> None:
    plain = {name: value for name, value in vars(settings("http://a")).items() if name != "server"}
    other = {**plain, "model": "b", "price_prompt": None, "price_completion": None, "base_url": "http://b"}
    one, two = writers_of({**plain, "others": {"b": {**plain, "model": "b"}}, "max_cost_usd": 2.0})
    assert (one.llm.max_cost_usd, two.llm.max_cost_usd) == (2.0, 2.0)
    with pytest.raises(UserError, match=r"the price of b is unknown; set llm\.others\.b\.price_prompt"):
        writers_of({**plain, "others": {"b": other}, "max_cost_usd": 2.0})
    with pytest.raises(UserError, match=r"llm\.others\.b\.share=0 must be a number more than 0"):
        writers_of({**plain, "others": {"b": {**other, "share": 0}}})
    assert isinstance(one.llm, LLM)


def test_two_servers_write_one_set(tmp_path: Path) -> None:
    """Three calls of four go to the first. Killed or repeated, every request finds its own answer again."""
    with serving(reply=writer) as first, serving(reply=writer) as second:
        several = [w for w in words(first) if w != "llm=compatible"]
        more = [
            "llm=[compatible:3,compatible]", f"llm.others.compatible.base_url={second.base_url}",
            "llm.others.compatible.model=other", "llm.others.compatible.price_prompt=1",
            "llm.others.compatible.price_completion=5", "generate.n=40", "generate.cap_target=0.2",
        ]  # fmt: skip
        shown = run(tmp_path, *several, *more)
        assert shown.status == 0, shown.err
        rows = triplets(tmp_path)
        assert (first.counts.calls, second.counts.calls) == (8, 2)  # of ten calls, the third and the seventh
        wrote = Counter((row["model"], row["source"]) for row in rows)
        assert set(wrote) == {("mock-1", "targeted/mock"), ("other-1", "targeted/other")}
        cost = json.loads((folder_of(tmp_path) / "cost.json").read_text())
        assert cost["dollars"] == pytest.approx(first.counts.dollars(2, 10) + second.counts.dollars(1, 5))
        card = (folder_of(tmp_path) / "README.md").read_text(encoding="utf-8")
        assert "`mock and other`" in card
        for (model, _), count in wrote.items():
            assert any(line.startswith(f"| {model} ") and f" {count} " in line for line in card.splitlines())
        assert run(tmp_path, *several, *more).status == 0
        assert (first.counts.calls, second.counts.calls) == (8, 2)  # a repeat pays nothing
        assert triplets(tmp_path) == rows
        dry = run(tmp_path, *several, *more, "generate.n=200", "generate.dry_run=true")
        assert dry.status == 0, dry.err
    assert PRICES == ["llm.price_prompt=2", "llm.price_completion=10"]
