"""`auto`: the objective and the pairs that suit the data, and how a run's config tells what was chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_config import composed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from debias.cli.config import make
from debias.data.mixture import Mixture
from debias.data.triplets import CORPORA, TripletFile
from debias.records import Tokens, Triplet
from debias.results import settled
from debias.training.balance import Nothing, Pronouns
from debias.training.by_data import BalanceOfData, ObjectiveOfData, choices
from debias.training.objectives import Attribute, NegativePreference

WHOLE = Triplet("The nurse fixed cars.", "nurse", "cars", "gender", "ours", 16, 20, "scarves", "clouds")
BARE = WHOLE._replace(stereotype=None, unrelated=None)
OTHER = BARE._replace(bias="race")
OBJECTIVE = ObjectiveOfData(NegativePreference(biases=["gender"]), Attribute(margin=4), share=0.9, gender=0.1)
BALANCE = BalanceOfData(Pronouns(), Nothing(), share=0.1)


@pytest.fixture(scope="module")
def tokens(smollm2_tokenizer: Path) -> Tokens:
    return Tokens(AutoTokenizer.from_pretrained(smollm2_tokenizer), "causal")


@pytest.mark.parametrize(
    ("sentences", "objective", "balance"),
    [
        ([WHOLE] * 9 + [BARE], "compared", "gender"),  # nine tenths have both words
        ([WHOLE] * 8 + [BARE] * 2, "alone", "gender"),
        ([WHOLE] * 8 + [WHOLE._replace(unrelated=None)] * 2, "alone", "gender"),
        ([BARE] * 10, "alone", "other"),  # plain sentences and the shuffled control
        ([WHOLE] + [OTHER] * 9, "compared", "gender"),  # a tenth is about gender; the others need no words
        ([WHOLE] + [OTHER] * 10, "alone", "other"),
        ([WHOLE] * 9 + [BARE] + [OTHER] * 80, "compared", "gender"),  # nine tenths of those about gender have both
    ],
)
def test_the_sentences_decide(sentences: list[Triplet], objective: str, balance: str, tokens: Tokens) -> None:
    found = choices({"objective": OBJECTIVE, "balance": BALANCE, "neutral": object()}, sentences, tokens)
    assert found == {"objective": objective, "balance": balance}


def test_a_model_that_splits_every_pronoun_is_trained_without_pairs(caplog: pytest.LogCaptureFixture) -> None:
    """The user did not ask for pairs, so the run goes on and says so; `balance=pronouns` would be refused."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(vocabulary, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only = Tokens(PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="!"), "causal")
    assert choices({"balance": BALANCE}, [WHOLE], bytes_only) == {"balance": "other"}
    assert "trained without pairs: no two words of pronoun_pairs.json are one token each" in caplog.text


@pytest.mark.parametrize(
    ("data", "objective", "balance"),
    [
        (["data=targeted", "data.bias=gender"], NegativePreference, Pronouns),
        *((["data=targeted", f"data.bias={bias}"], Attribute, Nothing) for bias in ("race", "religion", "profession")),
        (["data=general"], NegativePreference, Pronouns),
        (["data=all"], NegativePreference, Pronouns),
        (["data=[all,counterweight]"], NegativePreference, Pronouns),
        (["data=counterweight"], Attribute, Nothing),
        (["data=shuffled", "data.bias=gender"], Attribute, Nothing),
        (["data=targeted", "data.bias=gender", "data.counterparts=false"], Attribute, Nothing),
        (["data=[targeted,shuffled]", "data.bias=gender"], Attribute, Pronouns),
    ],
)
def test_what_our_data_gets(data: list[str], objective: type, balance: type, tokens: Tokens) -> None:
    """Our corpora have both words; controls and `data.counterparts=false` do not."""
    cfg = composed("run", *data)
    parts = {key: make(cfg[key]) for key in ("objective", "balance")}
    chosen = choices(parts, make(cfg.data).load(seed=1).triplets, tokens)
    assert [type(getattr(parts[key], chosen[key])) for key in parts] == [objective, balance]


def test_the_reversed_control_keeps_its_loss() -> None:
    """Neither `auto` nor a sweep over sources may put another in its place."""
    cfg = composed("run", "data=stereotyped", "data.bias=gender", "data.counterparts=false")
    assert cfg.objective["_target_"].endswith(".Unlikelihood")
    assert cfg.balance["_target_"].endswith(".Nothing")


def test_a_mixture_without_counterparts_keeps_everything_else() -> None:
    source = {"gender": TripletFile("gender", str(CORPORA / "gender.jsonl"))}
    whole, bare = (Mixture("gender", source, counterparts=kept).load(1).triplets for kept in (True, False))
    assert all(t.stereotype and t.unrelated for t in whole)
    assert bare == [t._replace(stereotype=None, unrelated=None) for t in whole]


def test_a_config_is_settled_by_what_the_data_chose() -> None:
    config = {"seed": 1, "objective": {"compared": {"beta": 1}, "alone": {"margin": 4}}, "balance": {"_target_": "x"}}
    assert settled(config, {"chosen": {"objective": "alone"}}) == {**config, "objective": {"margin": 4}}
    assert settled(config, {}) == config
