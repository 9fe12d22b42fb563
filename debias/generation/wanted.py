"""Settings of a generated set: its size, when to give up, and the limits that a triplet must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from debias.records import Count, Range, SomeShare, UserError

# Settings by config section that do not affect the identity of the set: how much, how fast, at what price.
BESIDE = {
    "llm": (
        "max_cost_usd", "concurrency", "batch", "batch_price_factor", "max_retries", "timeout", "price_prompt",
        "price_completion", "priced_on", "prices", "api_key_env", "adapt", "system_role",
    ),
    "generate": ("n", "patience", "max_filtered", "expected_yield", "licence", "dry_run"),
}  # fmt: skip


def lasting_llm(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a chat model that affect the identity of a set."""
    kept = {name: value for name, value in settings.items() if name not in BESIDE["llm"]}
    others = {name: lasting_llm(other) for name, other in (kept.pop("others", None) or {}).items()}
    share = kept.pop("share", 1)
    return kept | ({"share": share, "others": others} if others else {})


def lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `debias generate` that affect the identity of a set."""
    kept = {name: part for name, part in config.items() if name not in ("name", "overwrite", "threads", "preview")}
    kept["llm"] = lasting_llm(config["llm"])
    kept["generate"] = {k: value for k, value in config["generate"].items() if k not in BESIDE["generate"]}
    judge, counterparts = kept.pop("judge"), kept.pop("counterparts")
    if counterparts["file"]:  # otherwise they are more columns of the same set
        kept["counterparts"] = {**counterparts, "llm": lasting_llm(counterparts["llm"])}
    return kept | ({"judge": {**judge, "llm": lasting_llm(judge["llm"])}} if judge["llm"] else {})


@dataclass
class Wanted:
    """Settings of a generated set; `conf/generation.yaml` explains the keys, and these types check them."""

    n: Count
    per_call: Count
    patience: Count
    max_filtered: Count
    expected_yield: SomeShare
    dry_run: bool
    against: list[str]
    benchmarks: bool
    min_words: Count
    max_words: Count
    similarity: Annotated[float, Range(0.3, 1)]
    cap_target: SomeShare
    cap_attribute: SomeShare
    cap_opening: SomeShare
    licence: str

    def __post_init__(self) -> None:
        if self.max_words < self.min_words:
            raise UserError(f"generate.max_words={self.max_words} is less than generate.min_words={self.min_words}")

    def cap(self, share: float) -> int:
        """How many triplets of the set may share a word or opening, at least 2 so that small sets are possible."""
        return max(2, int(share * self.n + 1e-9))  # 1e-9: 0.07 * 100 is 7
