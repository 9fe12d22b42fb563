"""Asks a chat model for counterparts: what the stereotype would say in an attribute's place, and an unrelated word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from debias.data.counterparts import COUNTERPARTS, misfits
from debias.generation import parser
from debias.generation.exchange import Answer, ChatModel, Message, Partner, Request
from debias.generation.per_triplet import Asker
from debias.generation.prompts import LONGEST_WORD, Prompt, quoted
from debias.records import Count, Triplet

AGAIN = "This is attempt number $attempt: mind the rules above."
BLANK = "____"


class Pair(NamedTuple):
    """The two counterparts, and the model that wrote them, as the server names it."""

    stereotype: str
    unrelated: str
    model: str


class Counterparts:
    """Asks for the counterparts of each triplet; `conf/counterparts/llm.yaml` explains the keys.

    Args:
        llm: settings of the chat model that is asked.
        file: triplets that get counterparts; None means those of the set that is generated.
        attempts: times that a triplet is asked about until two words fit.
        system, prompt: templates.
    """

    def __init__(self, llm: Mapping[str, Any], file: str | None, attempts: Count, system: str, prompt: str) -> None:
        self.model = ChatModel.of(llm, "counterparts.llm")
        self.file, self.attempts, self.system = file, attempts, system
        self.prompt = Prompt("counterparts.prompt", prompt, ["triplet"])
        self.again = Prompt("counterparts.prompt", AGAIN, ["attempt"])
        self.refused: Counter[str] = Counter()  # answers without two fitting words, by reason

    def beside(self, writer: ChatModel) -> Counterparts:
        """Those for a writer's triplets, paid from the same budget."""
        self.model = self.model.beside(writer)
        return self

    def request(self, triplet: Triplet, attempt: int) -> Request:
        """The sentence with a blank in the attribute's place, quoted as data."""
        blank = f"{triplet.sentence[: triplet.start]}{BLANK}{triplet.sentence[triplet.stop :]}"
        data = {"sentence": blank, "target": triplet.target, "attribute": triplet.attribute, "bias": triplet.bias}
        text = self.prompt.fill(triplet=quoted(data))
        if attempt:
            text += f"\n\n{self.again.fill(attempt=attempt + 1)}"
        messages = (Message("system", self.system), Message("user", text))
        word = {"type": "string", "minLength": 1, "maxLength": LONGEST_WORD}
        schema = {
            "type": "object",
            "properties": dict.fromkeys(COUNTERPARTS, word),
            "required": list(COUNTERPARTS),
            "additionalProperties": False,
        }
        return Request(messages, schema, self.model.llm.max_tokens, attempt)

    def read(self, triplet: Triplet, answer: Answer) -> Pair | None:
        """The first two words in the answer that fit; words that the triplet has already are kept."""
        wrong = "no words in the answer"
        for value in parser.objects(answer.text):
            stereotype = triplet.stereotype or _word(value.get("stereotype"))
            unrelated = triplet.unrelated or _word(value.get("unrelated"))
            if not stereotype or not unrelated:
                continue
            faults = misfits(triplet._replace(stereotype=stereotype, unrelated=unrelated))
            if not faults:
                return Pair(stereotype, unrelated, answer.model)
            wrong = faults[0]
        self.refused[wrong] += 1
        return None


def _word(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


class Naming(Asker[Pair]):
    """Counterparts at work."""

    def __init__(self, counterparts: Counterparts, partner: Partner) -> None:
        super().__init__(counterparts, partner)
        self.counterparts = counterparts
