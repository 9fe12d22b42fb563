"""Counterfactual swaps: every pair below was written by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from debias.data.pronouns import feminine_of_his, masculine_of_her, tagged
from debias.data.swapping import LISTS, Swapper, read_forms
from debias.records import UserError

GENDER = Swapper("gender")

# Swapping once more leads back.
BOTH_WAYS = [
    ("He is an actor.", "She is an actress."),
    ("The Actor left.", "The Actress left."),
    ("THE ACTOR LEFT.", "THE ACTRESS LEFT."),
    ("Her mother sang.", "His father sang."),
    ("HER MOTHER SANG.", "HIS FATHER SANG."),
    ("Mr. Smith met Ms. Jones.", "Ms. Smith met Mr. Jones."),
    ("The king's sister wept.", "The queen's brother wept."),
    ("The kings' sisters wept.", "The queens' brothers wept."),
    ("She's her brother's heir.", "He's his sister's heiress."),
    ("An heir is a boy.", "An heiress is a girl."),
    ("An uncle and a waiter ate.", "An aunt and a waitress ate."),
    ("A king and an emperor fought.", "A queen and an empress fought."),
    ("His father-in-law paid.", "Her mother-in-law paid."),
    ("The brothers-in-law paid.", "The sisters-in-law paid."),
    ("Her ex-husband called.", "His ex-wife called."),
    ("He blamed himself.", "She blamed herself."),
    ("The policeman saw the businesswoman.", "The policewoman saw the businessman."),
    ("Lady Ashton spoke to the lady.", "Lord Ashton spoke to the gentleman."),
    ("Count Orlok counts; I count too.", "Countess Orlok counts; I count too."),
    ("Sir, the queen is here.", "Dame, the king is here."),
    ("Charlotte and Henry danced.", "Charles and Henrietta danced."),
    ("Henry James wrote to Edith.", "Henrietta James wrote to Edward."),
    ("King Edward met Edith Wharton.", "Queen Edith met Edward Wharton."),
    ('" He is a male nurse , " said Ann .', '" She is a female nurse , " said Ann .'),
    ("`` He left her , '' she said .", "`` She left him , '' he said ."),
    ("The fiancée of his nephew sang.", "The fiancé of her niece sang."),
    ("Girls met boys; GIRLS won.", "Boys met girls; BOYS won."),
    ("A monk, a wizard and a widower.", "A nun, a witch and a widow."),
    ("In his , the hero 's , view .", "In hers , the heroine 's , view ."),
    ("No man is an island.", "No woman is an island."),
]

# One way only, or nothing to swap at all.
ONE_WAY = [
    ("Mrs. Green slept.", "Mr. Green slept."),
    ("Miss Green will miss him.", "Mr Green will miss her."),
    ("She -- with her sons - won.", "He -- with his daughters - won."),
    ("The hostess smiled.", "The host smiled."),
    ("The host smiled.", None),
    ("The man-made lake is deep.", None),
    ("A 12 @-@ man crew sailed.", None),
    ("The man @-@ made lake is deep .", None),
    ("A hatchet-man came.", None),
    ("This human manages a mandate.", None),
    ("We live in Port Elizabeth.", None),
    ("We met in St. Martin last year.", None),
    ("They saw grace and a frank debate.", None),
    ("", None),
]

# her -> his or him; his -> her or hers.
PRONOUNS = [
    ("She lost her keys.", "his"),
    ("In her late thirties she moved.", "his"),
    ("She and her ex-colleague talk.", "his"),
    ("I like her singing voice.", "his"),
    ("Her first two novels failed.", "his"),
    ("With her own hands she built it.", "his"),
    ("They sold her home.", "his"),
    ("She did her best.", "his"),
    ('Critics admired her "quiet force".', "his"),
    ("There was a letter for her mother on the desk.", "his"),
    ("It was her last match, and she won it.", "his"),
    ("I saw her yesterday.", "him"),
    ("They gave her a medal.", "him"),
    ("He married her in 1921.", "him"),
    ("Nobody believed her.", "him"),
    ('"Ask her," he said.', "him"),
    ("The film made her famous.", "him"),
    ("It took her three years.", "him"),
    ("They elected her president.", "him"),
    ("Let her speak.", "him"),
    ("He left her and the children.", "him"),
    ("He showed her his workshop.", "him"),
    ("They kept an eye on her while she slept.", "him"),
    ("The crowd cheered her loudly.", "him"),
    ("He sold his old red bicycle.", "her"),
    ("His 1987 album sold well.", "her"),
    ("He and his wife moved.", "her"),
    ("They liked his quickly drawn maps.", "her"),
    ("He gave his all.", "her"),
    ("Of his many books, two survive.", "her"),
    ("The blue coat is his.", "hers"),
    ("A friend of his wrote the song.", "hers"),
    ("His was the only boat.", "hers"),
    ("The idea was his, not mine.", "hers"),
    ("The fault was his alone.", "hers"),
    ("Those shoes are his and these are mine.", "hers"),
    ("Her voice is deeper than his.", "hers"),
]

RELIGION = [
    ("A Christian man read the Bible in a church.", 1, "A Muslim man read the Quran in a mosque."),
    ("A Christian man read the Bible in a church.", 2, "A Jewish man read the Torah in a synagogue."),
    ("A Christian man read the Bible in a church.", 3, "A Hindu man read the Vedas in a mandir."),
    ("A Christian man read the Bible in a church.", 4, "A Buddhist man read the Tripitaka in a vihara."),
    ("He met a Christian.", 2, "He met a Jew."),
    ("He met a devout Jew.", 3, "He met a devout Christian."),
    ("She is Christian.", 2, "She is Jewish."),
    ("Two imams met an imam.", 1, "Two rabbis met a rabbi."),
    ("Jews and Muslims pray.", 1, "Hindus and Jews pray."),
    ("CHRISTIANS sing at Christmas.", 1, "MUSLIMS sing at Eid al-Fitr."),
    ("Islamic art is taught here.", 1, "Jewish art is taught here."),
    ("The Lent term began after we lent it.", 1, "The Ramadan term began after we lent it."),
]

RACE = [
    ("A white man and an Asian woman met.", 1, "A black man and a Latino woman met."),
    ("White people left the Middle East.", 1, "Black people left Europe."),
    ("The Middle East is large.", 1, "Europe is large."),
    ("Europe is large.", 4, "The Middle East is large."),
    ("The wall is white.", 1, None),
    ("An Italian singer left Italy.", 1, "A Ghanaian singer left Ghana."),
    ("A European plan won.", 1, "An African plan won."),
    ("A Ugandan came.", 2, "An Ecuadorian came."),
    ("An African-American school opened.", 1, "An Asian-American school opened."),
    ("Germans love Germany.", 2, "Indians love India."),
    ("He ate a china plate and turkey.", 1, None),
    ("His GERMAN friend", 4, "His IRANIAN friend"),
]


@pytest.mark.parametrize(("before", "after"), BOTH_WAYS)
def test_gender_both_ways(before: str, after: str) -> None:
    assert GENDER.swap(before) == after
    back = GENDER.swap(after)
    assert back == before.replace("In his ,", "In his ,")


@pytest.mark.parametrize(("before", "after"), ONE_WAY)
def test_gender_one_way_and_not_at_all(before: str, after: str | None) -> None:
    assert GENDER.swap(before) == after


@pytest.mark.parametrize(("sentence", "form"), PRONOUNS)
def test_her_and_his_by_part_of_speech(sentence: str, form: str) -> None:
    tokens = tagged(sentence)
    word, decide = ("her", masculine_of_her) if form in ("his", "him") else ("his", feminine_of_his)
    i = next(k for k, token in enumerate(tokens) if token.text.lower() == word)
    if sentence.startswith("Her voice"):  # its first word is not the one in question
        i = max(k for k, token in enumerate(tokens) if token.text == "his")
    assert decide(tokens, i) == form


@pytest.mark.parametrize(
    ("bias", "before", "shift", "after"),
    [("religion", *case) for case in RELIGION] + [("race", *case) for case in RACE],
)
def test_five_groups_move_on_together_and_come_back(bias: str, before: str, shift: int, after: str | None) -> None:
    swapper = Swapper(bias)
    assert swapper.swap(before, shift) == after
    if after is not None and not before.startswith("Islamic"):
        assert swapper.swap(after, -shift) == before


def test_the_shift_is_drawn_from_the_sentence() -> None:
    """The same sentence always gets the same counterfactual; over many sentences all four others occur."""
    swapper = Swapper("religion")
    results = [swapper.swap(f"House {i} is a church.") for i in range(60)]
    assert results == [swapper.swap(f"House {i} is a church.") for i in range(60)]
    assert {str(r).split()[-1] for r in results} == {"mosque.", "synagogue.", "mandir.", "vihara."}


@pytest.mark.parametrize("bias", ["gender", "race", "religion"])
def test_lists_are_unambiguous(bias: str) -> None:
    """No word is looked up in two lines, and a word has as many others as there are other groups, or one way to go."""
    forms = list(read_forms((LISTS / f"{bias}.txt").read_text(encoding="utf-8"), bias))
    assert max(Counter((f.word, f.is_noun) for f in forms).values()) == 1
    groups = Swapper(bias).groups
    assert {len(f.others) for f in forms} == {groups - 1}
    assert all(f.word not in f.others or bias != "gender" for f in forms)


def test_unknown_bias() -> None:
    with pytest.raises(
        UserError, match=r"no words to swap for data\.bias='age'; choose one of: gender, race, religion"
    ):
        Swapper("age")
