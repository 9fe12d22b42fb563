"""Counterparts: words that fit in an attribute's place, asked for a set or a file, paid once, and checked by doctor."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from chat_server import ChatServer, Fault, ledger_lines, serving
from command import gets, run, start
from test_generate import answered, folder_of, triplets, words, writer

from debias.data.counterparts import ending, misfit, misfits
from debias.data.triplets import Record, TripletFile, strict
from debias.generation.exchange import Bound
from debias.records import Triplet
from debias.training.pairs import paired

ROWS = [
    {"sentence": "The nurse fixed an engine and was bold.", "target": "nurse", "attribute": "bold", "bias": "gender"},
    {"sentence": "My aunt is a welder.", "target": "aunt", "attribute": "welder", "bias": "gender", "note": "kept"},
    {"sentence": "The boys were crying.", "target": "boys", "attribute": "crying", "bias": "gender"},
    {"sentence": "Nothing fits here.", "target": "nobody", "attribute": "here", "bias": "gender"},
]
WORDS = {"bold": ("timid", "wooden"), "welder": ("secretary", "teaspoon"), "crying": ("fighting", "evaporating")}


def triplet(sentence: str, target: str, attribute: str, **counterparts: str) -> Triplet:
    found = strict(Record(sentence, target, attribute, "gender", **counterparts))
    assert isinstance(found, Triplet)
    return found


@pytest.mark.parametrize(
    ("sentence", "attribute", "word", "why"),
    [
        ("The nurse was bold.", "bold", "timid", None),
        ("The nurse was bold.", "bold", "Bold", "is the attribute"),
        ("The nurse was bold.", "bold", "very timid", "another number of words than the attribute"),
        ("The nurse was bold.", "bold", "nurse", "repeats the target"),
        ("The nurse was bold.", "bold", "Timid", "another capitalisation than the attribute"),
        ("The nurse was bold.", "bold", "42", "not a word"),
        ("The nurse sings.", "sings", "cry", "another ending than the attribute"),
        ("The nurse sings.", "sings", "cries", None),
        ("The nurse was singing.", "singing", "kind", "another ending than the attribute"),
        ("The nurse was a boxer.", "boxer", "engineer", "does not follow the article 'a'"),
        ("The nurse was an engineer.", "engineer", "boxer", "does not follow the article 'an'"),
        ("The nurse was an engineer.", "engineer", "heiress", None),
        ("The nurse was a boxer.", "boxer", "unicorn", None),
        ("The nurse was a boxer.", "boxer", "do-gooder", None),
    ],
)  # fmt: skip
def test_a_word_fits_if_it_has_the_attributes_shape(sentence: str, attribute: str, word: str, why: str | None) -> None:
    assert misfit(triplet(sentence, "nurse", attribute), word) == why


def test_the_three_words_differ() -> None:
    same = triplet("The nurse was bold.", "nurse", "bold", stereotype="timid", unrelated="Timid")
    assert misfits(same) == [
        "unrelated another capitalisation than the attribute", "stereotype and unrelated are the same word",
    ]  # fmt: skip
    assert misfits(triplet("The nurse was bold.", "nurse", "bold", stereotype="timid", unrelated="wooden")) == []
    assert misfits(triplet("The nurse was bold.", "nurse", "bold", stereotype="bold")) == [
        "stereotype is the attribute"
    ]
    assert misfits(triplet("The nurse was bold.", "nurse", "bold")) == []


def test_endings() -> None:
    found = {word: ending(word) for word in ("singing", "king", "thing", "poems", "boss", "famous", "red", "baked")}
    assert found == {
        "singing": "ing", "king": "", "thing": "", "poems": "s", "boss": "", "famous": "", "red": "", "baked": "ed",
    }  # fmt: skip


# ---------------------------------------------------------------- asked of a server


def about(body: dict[str, Any]) -> dict[str, str] | None:
    """The triplet that a request asks counterparts for; None if it asks for something else."""
    text = body["messages"][-1]["content"]
    lines = [line for line in text.split("\n") if line.startswith('{"sentence"') and '"unrelated":' in text]
    return json.loads(lines[0]) if lines else None


def named(body: dict[str, Any]) -> str:
    """Fitting words for all, and triplets for the writer; `crying` gets words that fit at the second attempt."""
    asked = about(body)
    if asked is None:
        return writer(body)
    stereotype, unrelated = WORDS.get(asked["attribute"], (f"{asked['attribute']}ka", f"{asked['attribute']}ko"))
    if asked["attribute"] == "crying" and "attempt number" not in body["messages"][-1]["content"]:
        stereotype = "crying"
    return json.dumps({"stereotype": stereotype, "unrelated": unrelated})


def file_of(cwd: Path) -> Path:
    path = cwd / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def of_file(server: ChatServer, cwd: Path, *more: str) -> list[str]:
    return [word for word in words(server, "counterparts=mine.jsonl", *more) if not word.startswith("strategy.")]


def test_a_file_gets_counterparts_in_a_new_file(tmp_path: Path) -> None:
    """Other columns stay, records that cannot be used stay as they are, and doctor shows and accepts the result."""
    path = file_of(tmp_path)
    before = path.read_bytes()
    with serving(reply=named) as server:
        shown = run(tmp_path, *of_file(server, tmp_path))
        assert shown.status == 0, shown.err
        assert path.read_bytes() == before
        assert "counterparts: 3 of 3 triplets have them" in shown.out
        assert "1 (stereotype is the attribute)" in shown.out
        new = folder_of(tmp_path) / "mine.jsonl"
        rows = [json.loads(line) for line in new.read_text().splitlines()]
        assert [(row.get("stereotype"), row.get("unrelated")) for row in rows] == [*WORDS.values(), (None, None)]
        assert rows[1]["note"] == "kept"
        assert rows[3] == ROWS[3]
        assert {row.get("counterparts") for row in rows} == {"mock-1", None}
        assert server.counts.calls == 4  # one of them a second attempt
        cost = json.loads((folder_of(tmp_path) / "cost.json").read_text())
        assert cost["dollars"] == pytest.approx(server.counts.dollars(2, 10))
        blanks = [asked["sentence"] for body in server.counts.bodies if (asked := about(body))]
        assert "My aunt is a ____." in blanks
        again = run(tmp_path, *of_file(server, tmp_path))
        assert (again.status, server.counts.calls) == (0, 4)  # a repeat pays nothing
    told = run(tmp_path, "doctor", str(new), "leakage=false").out
    assert re.search(r"with stereotype +0\.75", told)
    pairs, dropped = paired(TripletFile("gender", str(new)).load().triplets, ["stereotype"])
    assert pairs[1][1].sentence == "My aunt is a secretary."
    assert not dropped


def test_words_that_the_file_has_are_kept_and_missing_ones_are_added(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    whole = {**ROWS[0], "stereotype": "meek", "unrelated": "square"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (whole, {**ROWS[1], "stereotype": "typist"})))
    with serving(reply=named) as server:
        assert run(tmp_path, *of_file(server, tmp_path)).status == 0
        assert server.counts.calls == 1
    rows = [json.loads(line) for line in (folder_of(tmp_path) / "mine.jsonl").read_text().splitlines()]
    assert rows[0] == whole
    assert (rows[1]["stereotype"], rows[1]["unrelated"]) == ("typist", "teaspoon")


def test_a_set_is_given_them_when_it_is_written_or_later(tmp_path: Path) -> None:
    """Without them, then with them: the same set in the same folder, and only the words are paid for."""
    with serving(reply=named) as server:
        assert run(tmp_path, *words(server, "generate.n=10")).status == 0
        rows, calls = triplets(tmp_path), server.counts.calls
        shown = run(tmp_path, *words(server, "generate.n=10", "counterparts=llm"))
        assert shown.status == 0, shown.err
        assert "counterparts: 10 of 10 triplets have them" in shown.out
        assert server.counts.calls == calls + 10
        more = triplets(tmp_path)
        assert [{k: row[k] for k in rows[0]} for row in more] == rows
        assert all(row["stereotype"] == f"{row['attribute']}ka" for row in more)
        cost = json.loads((folder_of(tmp_path) / "cost.json").read_text())
        assert cost["dollars"] == pytest.approx(server.counts.dollars(2, 10))
        assert cost["stages"]["generate"]["counterparts"]["triplets"] == 10
        assert "`stereotype`, `unrelated`, `counterparts`" in (folder_of(tmp_path) / "README.md").read_text()
        run(tmp_path, *words(server, "generate.n=15", "counterparts=llm"))
        assert [row["stereotype"] for row in triplets(tmp_path)[:10]] == [row["stereotype"] for row in more]
        assert max(Counter(server.counts.keys).values()) == 1


def test_words_that_never_fit_leave_a_triplet_without(tmp_path: Path) -> None:
    file_of(tmp_path)
    with serving(reply=lambda _: '{"stereotype": "two words", "unrelated": 4}') as server:
        shown = run(tmp_path, *of_file(server, tmp_path, "counterparts.attempts=2"))
        assert shown.status == 0, shown.err
        assert "counterparts: 0 of 3 triplets have them" in shown.out
        assert "6 (no words in the answer)" in shown.out
        assert server.counts.calls == 6
    rows = [json.loads(line) for line in (folder_of(tmp_path) / "mine.jsonl").read_text().splitlines()]
    assert rows == ROWS


LEDGER = "debias.generation.ledger:Ledger"


def test_killed_or_out_of_money_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """Of four calls one is made before a kill, one or two with little money, and the rest with more."""
    file_of(tmp_path)
    tight = ["llm.concurrency=1", "counterparts.llm.max_tokens=100"]
    with serving(reply=named) as server:

        def killed(first: partial[None]) -> None:
            held, already = answered(tmp_path), len(server.counts.keys)
            process = start(tmp_path, *of_file(server, tmp_path, *tight), first=first)
            process.join()
            assert process.exitcode == -SIGKILL
            assert not held & set(server.counts.keys[already:])

        killed(partial(gets, SIGKILL, f"{LEDGER}.answered", call=1, after=True))
        lines = ledger_lines(folder_of(tmp_path) / "ledger.jsonl")
        bound = Bound(*next(line["bound"] for line in lines if line["kind"] == "sent")).worst
        limit = bound + 1.5 * server.counts.dollars(2, 10)
        shown = run(tmp_path, *of_file(server, tmp_path, *tight, f"llm.max_cost_usd={limit}"))
        assert shown.status == 3, shown.err
        assert re.search(r"\d wait: the next call may cost", shown.out)
        assert server.counts.dollars(2, 10) <= limit
        assert 1 < server.counts.calls < 4
        killed(partial(gets, SIGKILL, "debias.jobs.generated_folder:DataFolder.end"))
        assert run(tmp_path, *of_file(server, tmp_path, *tight)).status == 0
        assert server.counts.calls == 4
        cost = json.loads((folder_of(tmp_path) / "cost.json").read_text())
        assert cost["dollars"] == pytest.approx(server.counts.dollars(2, 10))


def test_doctor_warns_of_counterparts_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {**ROWS[0], "stereotype": "bold", "unrelated": "wooden"},
        {**ROWS[1], "stereotype": "engineer", "unrelated": "teaspoon"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = run(tmp_path, "doctor", str(path), "leakage=false")
    together = " ".join(shown.out.split())
    assert "counterpart does not fit warning 2 1, 2" in together
    assert "stereotype is the attribute, at 1: The nurse" in together
    assert "stereotype does not follow the article 'a'" in together
    assert shown.status == 0  # the objective on attributes needs none


def test_a_server_without_luck_is_one_message(tmp_path: Path) -> None:
    file_of(tmp_path)
    with serving([Fault(401, error="wrong key")]) as server:
        shown = run(tmp_path, *of_file(server, tmp_path))
        assert shown.status == 1
        assert len([line for line in shown.err.splitlines() if line.startswith("error:")]) == 1
    with serving(reply=named) as server:
        wrong = run(tmp_path, *[w.replace("mine", "nowhere") for w in of_file(server, tmp_path)])
        assert "nowhere.jsonl: cannot read" in wrong.err
