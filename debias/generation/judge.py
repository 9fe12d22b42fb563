"""The judge: a chat model that scores an accepted triplet, and the scores that reject it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from debias.data.doctor import CRITERIA
from debias.generation import parser
from debias.generation.exchange import LLM, Answer, ChatModel, Message, Partner, Request
from debias.generation.per_triplet import Asker
from debias.generation.prompts import Prompt, quoted
from debias.records import Count, Range, Triplet, UserError

LOWEST, HIGHEST = 1, 5
Score = Annotated[int, Range(LOWEST, HIGHEST)]
AGAIN = "\n\nThe answer must be this JSON object and nothing else. This is attempt number $attempt."


class Scores(NamedTuple):
    """What the judge says of a triplet, from 1 (bad) to 5 (good)."""

    fluency: int
    breaks_stereotype: int  # 3: it neither repeats a stereotype nor breaks one
    respectful: int
    judge: str  # the model, as the server names it


class Judge:
    """Scores triplets and rejects those with a low score; `conf/judge/llm.yaml` explains the keys.

    Args:
        llm: settings of the chat model that judges.
        least: the lowest score that is accepted, for each criterion.
        keep_unscored: whether a triplet is kept for which the judge gave no readable scores.
        attempts: times that it is asked for readable scores.
        system, prompt: templates.
    """

    def __init__(
        self, llm: Mapping[str, Any], least: Mapping[str, Score], keep_unscored: bool, attempts: Count, system: str,
        prompt: str,
    ) -> None:  # fmt: skip
        self.model = ChatModel.of(llm, "judge.llm")
        if set(least) != set(CRITERIA):
            raise UserError(f"judge.least needs a bound for each of {', '.join(CRITERIA)}, and no other")
        self.least, self.keep_unscored, self.attempts = dict(least), keep_unscored, attempts
        self.system = system
        self.prompt = Prompt("judge.prompt", prompt, ["triplet"])
        self.again = Prompt("judge.prompt", AGAIN, ["attempt"])

    @property
    def llm(self) -> LLM:
        """The settings of the judging model."""
        return self.model.llm

    def beside(self, writer: ChatModel) -> Judge:
        """The judge of a writer's triplets, paid from the same budget."""
        self.model = self.model.beside(writer)
        return self

    def request(self, triplet: Triplet, attempt: int) -> Request:
        """The triplet as quoted JSON, with the question about it."""
        data = {name: getattr(triplet, name) for name in ("sentence", "target", "attribute", "bias")}
        text = self.prompt.fill(triplet=quoted(data))
        if attempt:
            text += f"\n\n{self.again.fill(attempt=attempt + 1)}"
        messages = (Message("system", self.system), Message("user", text))
        return Request(messages, score_schema(), self.llm.max_tokens, attempt)

    def read(self, triplet: Triplet, answer: Answer) -> Scores | None:
        """The scores in an answer; None if there are none, or several that differ."""
        found = {scores for value in parser.objects(answer.text) if (scores := _scores_in(value))}
        if len(found) != 1:
            return None
        fluency, breaks_stereotype, respectful = found.pop()
        return Scores(fluency, breaks_stereotype, respectful, answer.model)

    def rejects(self, scores: Scores | None) -> str | None:
        """Why a triplet with these scores is rejected; None if it is kept."""
        if scores is None:
            return None if self.keep_unscored else "judge: no readable scores"
        low = next((name for name in CRITERIA if getattr(scores, name) < self.least[name]), None)
        return low and f"judge: {low} below judge.least.{low}={self.least[low]}"


class Judging(Asker[Scores]):
    """A judge at work."""

    def __init__(self, judge: Judge, partner: Partner) -> None:
        super().__init__(judge, partner)
        self.judge = judge


def score_schema() -> dict[str, Any]:
    """JSON schema of an answer with scores."""
    score = {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))}
    properties = dict.fromkeys(CRITERIA, score)
    return {"type": "object", "properties": properties, "required": list(CRITERIA), "additionalProperties": False}


def _scores_in(value: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The scores of an object that has all of them; `"4"` and `4.0` are 4, `4.5` and `true` are not scores."""
    scores = []
    for name in CRITERIA:
        score = value.get(name)
        if isinstance(score, str):
            score = _number(score)
        if isinstance(score, bool) or not isinstance(score, int | float) or score not in range(LOWEST, HIGHEST + 1):
            return None
        scores.append(int(score))
    return tuple(scores)


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
