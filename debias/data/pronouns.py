"""Whether `her` becomes `his` or `him`, and `his` becomes `her` or `hers`, by the parts of speech around it.

The tagger is HanTa (Wartena 2019). Its English model is in its wheel and uses the C5 tags of the British National
Corpus: DPS possessive determiner, PNP personal pronoun, NN/NP nouns, AJ adjectives, CRD and ORD numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

TOKEN = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")

# Tags that may come between a determiner and its noun.
_BEFORE_NOUN = ("AJ", "AV0", "CRD", "ORD", "DT0", "VVN", "VVG", "VVD", "PUQ", "POS")
_AFTER_PRONOUN = ("PUN", "PRP", "PRF", "VB", "VD", "VH", "VM", "VVD", "VVZ", "XX0", "CJS", "CJT", "TO0")
_NOUN = ("NN", "NP", "UNC", "ZZ0")
# Words that are nouns after a determiner: `she did her best`.
_LIKE_NOUNS = frozenset(("best", "all", "own", "worst", "utmost", "most"))
# Verbs with two objects, the second often a number: `it took her three years`.
_DITRANSITIVE = re.compile(r"(bear|cost|earn|grant|offer)(s|ed|ing)?|bore|(pa[yi]|tak|giv)(s|d|es|e|en|ing)|gave|took")
# Verbs followed by an object and what it becomes: `they elected her president`.
_FACTITIVE = re.compile(r"(appoint|elect|render)(s|ed|ing)?|(declar|deem|dubb|crown|proclaim)(ed|ing)")


class Token(NamedTuple):
    """A word or punctuation mark, its first character's position, and its C5 tag."""

    text: str
    start: int
    tag: str


def tagged(sentence: str) -> list[Token]:
    """The tokens of a sentence with their parts of speech."""
    found = list(TOKEN.finditer(sentence))
    words = [re.sub(r".+-", "", m.group()) for m in found]  # tag ex-husband as husband: the tagger knows few compounds
    tags = _tagger().tag_sent(words) if found else []
    return [Token(m.group(), m.start(), tag[2]) for m, tag in zip(found, tags, strict=True)]


@lru_cache(maxsize=1)
def _tagger() -> Any:
    from HanTa.HanoverTagger import HanoverTagger  # takes a fifth of a second, which only swaps need

    return HanoverTagger("morphmodel_en.pgz")


def masculine_of_her(tokens: Sequence[Token], i: int) -> str:
    """`his` if token i (her) is the determiner of a noun, else `him`."""
    after = [t.text.lower() for t in tokens[i + 1 : i + 3]]
    before = tokens[i - 1].text.lower() if i else ""
    nothing = Token("", 0, "")
    following = tokens[i + 1] if i + 1 < len(tokens) else nothing
    if after[:2] == ["and", "her"] or before == "'":
        return "him"
    if tokens[i].tag != "DPS":
        quoted = following.text in ("`", '"', "“", "‘") and len(after) > 1 and re.match(r"\w|`", after[1])
        return "his" if quoted and before not in ("called", "told", "asked", "said") else "him"
    if _DITRANSITIVE.fullmatch(before) and following.tag == "CRD":
        return "him"
    if _FACTITIVE.fullmatch(before) and following.tag.startswith(("NN", "AJ")):
        return "him"
    return "his" if _noun_follows(tokens, i) else "him"


def feminine_of_his(tokens: Sequence[Token], i: int) -> str:
    """`her` if a noun phrase follows token i (his), else `hers`."""
    after = [*(t.tag for t in tokens[i + 1 : i + 3]), "", ""]
    if after[0] == "AV0":  # "the fault was his alone."
        return "hers" if after[1] in ("", "PUN") else "her"
    if after[0] == "CJC":  # `hers and these`, but `her and his`, `her and Ann's`
        return "her" if after[1].startswith(("DPS", "NP", "PNP")) else "hers"
    return "hers" if after[0] == "" or after[0].startswith(_AFTER_PRONOUN) else "her"


def is_noun(tokens: Sequence[Token], i: int, width: int = 1) -> bool:
    """Whether `width` words from i, which can be an adjective or a noun (`Christian`), head a noun phrase."""
    before = tokens[i - 1].tag if i else ""
    after = tokens[i + width].tag if i + width < len(tokens) else ""
    return before.startswith(("AT0", "AJ", "DPS", "DT0", "CRD", "ORD")) and not after.startswith(("AJ", *_NOUN))


def _noun_follows(tokens: Sequence[Token], i: int) -> bool:
    """Whether a noun ends the phrase that token i begins: yes in `his long and happy life`, no in `his, not mine`."""
    between = False
    for k in range(i + 1, len(tokens)):
        tag = tokens[k].tag
        word = tokens[k].text.lower()
        if word == "while":  # the tagger mistakes it for a noun
            return False
        if tag.startswith(_NOUN) or word in _LIKE_NOUNS or word.endswith("ties"):  # "in her late thirties"
            return True
        joins = between and (tag == "CJC" or tokens[k].text == ",") and k + 1 < len(tokens)
        if not (tag.startswith(_BEFORE_NOUN) or tokens[k].text in "`'\"“‘" or joins):
            return False
        between = True
    return False
