"""`debias generate` as a whole: on the misbehaving server, killed, extended, out of money; and with a real model."""

from __future__ import annotations

import json
import random
import re
import time
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from chat_server import ChatServer, Fault, ledger_lines, serving
from command import Shown, gets, run, start, succeed
from datasets import load_dataset

from debias.cli.terminal import console
from debias.data.doctor import examine
from debias.generation.exchange import Bound
from debias.generation.ledger import read_ledger
from debias.generation.local import LlamaServer
from debias.locks import Lock

SECRET = "sk-sentinel-0123456789"
PRICES = ["llm.price_prompt=2", "llm.price_completion=10"]
TERMS = [f"{a} {b}" for a in ("old", "tall", "shy", "young") for b in ("baker", "sailor", "widow", "uncle", "nurse")]


def writer(body: dict[str, Any]) -> str:
    """Six triplets in words made up from the request, so that every call brings others; one of them is unusable."""
    draw = random.Random(json.dumps(body, sort_keys=True))

    def word() -> str:
        return "".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3))

    rows = []
    for target in draw.sample(TERMS, 6):
        attribute = word()
        start, *rest = (word() for _ in range(6))
        rows.append({
            "sentence": f"{start.capitalize()} {rest[0]} the {target} {rest[1]} {rest[2]} {attribute} {rest[3]}.",
            "target": target, "attribute": attribute,
        })  # fmt: skip
    rows[-1]["attribute"] = "absent"
    return json.dumps({"triplets": rows})


def words(server: ChatServer, *more: str) -> list[str]:
    """The command line of a set that the server writes."""
    return [
        "generate", "llm=compatible", f"llm.base_url={server.base_url}", "llm.model=mock",
        "llm.structured=json_schema", "llm.max_tokens=300", f"strategy.terms=[{','.join(TERMS)}]",
        "generate.per_call=6", "generate.benchmarks=false", "name=set", *PRICES, *more,
    ]  # fmt: skip


def generate(server: ChatServer, cwd: Path, *more: str, status: int = 0) -> Shown:
    answer = run(cwd, *words(server, *more))
    assert answer.status == status, answer.err
    return answer


def folder_of(cwd: Path) -> Path:
    (ledger,) = cwd.rglob("ledger.jsonl")
    return ledger.parent


def triplets(cwd: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder_of(cwd) / "set.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_terminal_sees_a_live_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts up to the end: accepted, rejected, calls, dollars and the time left; elsewhere it is a log line."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with serving(reply=writer) as server:
        shown = run(tmp_path, *words(server, "generate.n=20"), terminal=True)
    assert shown.status == 0, shown.err
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.err)
    pattern = r"(\d+) rejected, (\d+) calls, ([\d.]+) dollars [━╸╺ ]+(\d+)/20 \d+ s left"
    rejected, calls, dollars, accepted = re.findall(pattern, plain)[-1]
    assert int(accepted) == 20
    assert int(rejected) > 0
    assert 4 <= int(calls) <= server.counts.calls  # 5 of 6 triplets are good; what was in flight is paid as well
    assert 0 < float(dollars) <= server.counts.dollars(2, 10) + 1e-4


def test_a_set_is_generated_repeated_and_extended(tmp_path: Path) -> None:
    with serving(reply=writer) as server:
        shown = generate(server, tmp_path, "generate.n=20").out
        folder = folder_of(tmp_path)
        rows = triplets(tmp_path)
        assert len(rows) == 20
        assert {row["bias"] for row in rows} == {"gender"}
        assert all(row["model"] == "mock-1" and row["request_id"] and row["prompt_sha256"] for row in rows)
        assert examine(folder / "set.jsonl").passes
        assert "20 of 20 records can be trained on: passes." in (folder / "quality.html").read_text(encoding="utf-8")
        rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
        reasons = Counter(row["reason"] for row in rejected)
        assert reasons["attribute not in the sentence"] == sum(row["attribute"] == "absent" for row in rejected) > 0
        cost = json.loads((folder / "cost.json").read_text())
        assert cost["dollars"] == pytest.approx(server.counts.dollars(2, 10))
        assert "20 of 20" in shown
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlicense: other\n")
        assert "path: set.jsonl" in card
        cache = str(tmp_path / "cache")
        assert load_dataset("json", data_files=str(folder / "set.jsonl"), cache_dir=cache)["train"].num_rows == 20
        as_carded = load_dataset(str(folder), cache_dir=cache)["train"]["sentence"]
        assert list(as_carded) == [row["sentence"] for row in rows]

        calls = server.counts.calls
        generate(server, tmp_path, "generate.n=20")
        assert server.counts.calls == calls  # a repeat pays nothing
        assert triplets(tmp_path) == rows
        generate(server, tmp_path, "generate.n=30")  # and more costs what is missing
        assert server.counts.calls > calls
        assert triplets(tmp_path)[:20] == rows
        assert len(triplets(tmp_path)) == 30
        assert max(Counter(server.counts.keys).values()) == 1  # no call was ever made twice


def test_no_sentence_of_another_set_is_repeated(tmp_path: Path) -> None:
    """The same requests bring the same answers, to begin with."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with serving(reply=writer) as server:
        generate(server, tmp_path / "a", "generate.n=8")
        first = folder_of(tmp_path / "a") / "set.jsonl"
        generate(server, tmp_path / "b", "generate.n=8", f"generate.against=[{first}]")
    assert not {row["sentence"] for row in triplets(tmp_path / "a")} & {r["sentence"] for r in triplets(tmp_path / "b")}
    assert "repeats a sentence of generate.against" in (folder_of(tmp_path / "b") / "rejected.jsonl").read_text()


def test_faults_do_not_end_it_and_nothing_that_came_is_lost(tmp_path: Path) -> None:
    """Every complete triplet of every answer with status 200 is in the ledger, and the bill is the server's.

    But for the two bodies without a usage report, which count at their upper bound, and what was sent of one more.
    """
    whole = json.loads(writer({"a": 1}))["triplets"]
    twice = json.dumps({"triplets": whole[:3]})
    faults = [
        Fault(429, {"Retry-After": "0"}), Fault(500), None, Fault(body=b""), Fault(cut=60),
        Fault(text=json.dumps(whole)[:-40]), Fault(text="", message={"refusal": "I will not."}), None,
        Fault(text="```json\n" + json.dumps(whole[:2]) + "\n```\nThere you are."), Fault(text='{"wrong": ["shape"]}'),
        Fault(text=twice), Fault(text=twice),
    ]  # fmt: skip
    with serving(faults, reply=writer) as server:
        generate(server, tmp_path, "generate.n=24", "llm.concurrency=2")
        bodies = "".join(line["body"] for line in ledger_lines(folder_of(tmp_path) / "ledger.jsonl") if "body" in line)
        for text in server.counts.texts:
            assert json.dumps(text, ensure_ascii=False)[1:-1] in bodies
        assert len({row["sentence"] for row in triplets(tmp_path)}) == 24
        assert "repeats a sentence of the set" in (folder_of(tmp_path) / "rejected.jsonl").read_text()
        assert server.faults == []
        lines = ledger_lines(folder_of(tmp_path) / "ledger.jsonl")
        cost = json.loads((folder_of(tmp_path) / "cost.json").read_text())
        bound = Bound(*next(line["bound"] for line in lines if line["kind"] == "sent"))
        assert cost["stages"]["generate"]["bounded"] == 2
        assert server.counts.dollars(2, 10) < cost["dollars"] < server.counts.dollars(2, 10) + 3 * bound.worst


LEDGER = "debias.generation.ledger:Ledger"
KILLED = {
    "recorded, not sent": partial(gets, SIGKILL, f"{LEDGER}.sent", call=2, after=True),
    "paid, not recorded": partial(gets, SIGKILL, f"{LEDGER}.answered", call=3),
    "recorded": partial(gets, SIGKILL, f"{LEDGER}.answered", call=4, after=True),
    "half a set": partial(gets, SIGKILL, "pathlib:Path.replace", about="set.jsonl"),
    "all but done": partial(gets, SIGKILL, "debias.jobs.generated_folder:DataFolder.end"),
}
SIXTY = ["generate.n=60", "generate.cap_target=0.2", "llm.concurrency=2"]


def test_killed_at_every_stage_it_pays_once_and_ends_with_the_same_set(tmp_path: Path) -> None:
    """kill -9 at one stage after the other: calls in flight may be made again, answers in the ledger never are."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with serving(reply=writer) as server:
        generate(server, tmp_path / "a", *SIXTY)
    with serving(reply=writer) as server:
        for stage, first in KILLED.items():
            held, already = answered(tmp_path / "b"), len(server.counts.keys)
            process = start(tmp_path / "b", *words(server, *SIXTY), first=first)
            process.join()
            assert process.exitcode == -SIGKILL, stage
            server.wait_until_idle()
            assert not held & set(server.counts.keys[already:]), stage
        pays_for_no_answer_of_the_ledger(server, tmp_path / "b", lost=2 * 3)  # two at a time, while calls were made
    same_sets(tmp_path / "a", tmp_path / "b")


def answered(cwd: Path) -> set[str]:
    """Keys of the answers in the ledger."""
    return {key for ledger in cwd.rglob("ledger.jsonl") for key in read_ledger(ledger).answers}


def pays_for_no_answer_of_the_ledger(server: ChatServer, cwd: Path, lost: int) -> None:
    """The same command ends well; all in all at most so many calls were made twice."""
    held, already = answered(cwd), len(server.counts.keys)
    assert held
    assert held <= set(server.counts.keys)
    generate(server, cwd, *SIXTY)
    assert not held & set(server.counts.keys[already:])
    assert sum(count - 1 for count in Counter(server.counts.keys).values()) <= lost


def same_sets(first: Path, second: Path) -> None:
    keys = ("sentence", "target", "attribute", "bias")
    assert [[row[k] for k in keys] for row in triplets(first)] == [[row[k] for k in keys] for row in triplets(second)]


def killed_five_times(words: list[str], cwd: Path, server: ChatServer, longest: float) -> int:
    """kill -9 up to `longest` seconds after a call arrived; returns how many were really killed."""
    moments, killed = random.Random(3), 0
    for _ in range(5):
        before = server.counts.calls
        process = start(cwd, *words)
        server.wait_until(lambda: server.counts.calls > before)  # noqa: B023
        process.join(moments.uniform(0, longest))
        killed += process.is_alive()
        process.kill()
        process.join()
    return killed


@pytest.mark.slow
def test_killed_five_times_at_random_it_pays_once_and_ends_with_the_same_set(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with serving(reply=writer) as server:
        generate(server, tmp_path / "a", *SIXTY)
    with serving(reply=writer, before=lambda *_: time.sleep(0.4)) as server:
        killed = killed_five_times(words(server, *SIXTY), tmp_path / "b", server, 0.8)
        assert killed >= 3
        pays_for_no_answer_of_the_ledger(server, tmp_path / "b", lost=2 * killed)
    same_sets(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.assets
def test_killed_five_times_with_a_real_model(tmp_path: Path) -> None:
    """As above, with SmolLM2 behind llama.cpp's server as the writer; between the two stands a server that counts."""
    pytest.importorskip("xllamacpp")
    with LlamaServer("smollm2", threads=1, context=4096, parallel=1) as address:

        def written(body: dict[str, Any]) -> str:
            request = urllib.request.Request(
                f"{address}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=600) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])

        with serving(reply=written) as server:
            command = [
                # SmolLM2 writes what it likes: no number of useless calls in a row may end the set.
                *words(server, "strategy=targeted_brief", "generate.n=12", "generate.patience=1000"),
                "llm.concurrency=1", "llm.timeout=600", "llm.max_tokens=1024",
            ]  # fmt: skip
            assert killed_five_times(command, tmp_path, server, 8.0) == 5
            held, already = answered(tmp_path), len(server.counts.keys)
            succeed(tmp_path, *command)
            assert not held & set(server.counts.keys[already:])
            assert sum(count - 1 for count in Counter(server.counts.keys).values()) <= 5
            kept = read_ledger(folder_of(tmp_path) / "ledger.jsonl")
            assert set(server.counts.keys) == set(kept.answers) | set(kept.broken)
    succeed(tmp_path, "doctor", str(folder_of(tmp_path) / "set.jsonl"))
    assert len(triplets(tmp_path)) == 12


def test_money_patience_and_their_status(tmp_path: Path) -> None:
    with serving(reply=writer) as server:
        shown = generate(server, tmp_path, "generate.n=500", "llm.max_cost_usd=0.05", "llm.concurrency=2", status=3)
        assert server.counts.dollars(2, 10) <= 0.05
        assert "llm.max_cost_usd was reached" in shown.out
        assert "next: raise llm.max_cost_usd" in shown.out
        assert 0 < len(triplets(tmp_path)) < 500
    with serving(reply=lambda _: json.dumps({"triplets": []})) as server:
        (tmp_path / "p").mkdir()
        shown = generate(server, tmp_path / "p", "generate.patience=3", "llm.concurrency=1", status=3)
        assert "3 calls in a row brought nothing that was accepted" in shown.out
        assert "next: raise generate.patience" in shown.out
        assert server.counts.calls == 3


def test_the_embedded_model_is_tried_out_and_that_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(reply=lambda _: json.dumps({"triplets": []})) as server:
        monkeypatch.setattr(LlamaServer, "__enter__", lambda _: server.base_url)
        monkeypatch.setattr(LlamaServer, "__exit__", lambda *_: None)
        asked = ["llm=local", "bias=gender", "generate.n=4", "generate.patience=2", "generate.benchmarks=false"]
        shown = succeed(tmp_path, "generate", *asked)
    assert "2 calls in a row brought nothing that was accepted" in shown.out
    assert "next: llm=local is there to try out prompts, checks and files at no cost" in shown.out


def test_an_extension_is_estimated_at_the_yield_so_far(tmp_path: Path) -> None:
    """One triplet of six gets in, far from what is expected: what more would cost is told from the ledger's answers."""

    def poor(body: dict[str, Any]) -> str:
        rows = json.loads(writer(body))["triplets"]
        return json.dumps({"triplets": [rows[0], *[{**row, "attribute": "absent"} for row in rows[1:]]]})

    def expected(shown: str) -> int:
        return int(next(line for line in shown.splitlines() if line.startswith("calls")).split()[1])

    with serving(reply=poor) as server:
        generate(server, tmp_path, "generate.n=8", "llm.concurrency=1")
        calls = server.counts.calls
        assert calls >= 8
        shown = generate(server, tmp_path, "generate.n=16", "generate.dry_run=true").out
        assert f"The ledger holds {calls} answers, which cost nothing more; 8 of 16 triplets" in " ".join(shown.split())
        assert 4 <= expected(shown) <= 8  # for eight more; the config's yield still weighs as much as four calls
        assert expected(generate(server, tmp_path, "generate.n=8", "generate.dry_run=true").out) == 0
        assert server.counts.calls == calls


def test_what_failed_for_good_stays_so_when_the_ledger_is_replayed(tmp_path: Path) -> None:
    """Later requests name words of earlier answers: an answer that comes after all would change what was paid for."""
    with serving([Fault(500)] * 3, reply=writer) as server:
        generate(server, tmp_path, "generate.n=3", "generate.cap_target=1", "llm.max_retries=0")
        (key,) = [k for k, count in Counter(server.counts.keys).items() if count == 3]
        kinds = [line["kind"] for line in ledger_lines(folder_of(tmp_path) / "ledger.jsonl")]
        assert kinds.count("given_up") == 1
        rows, calls = triplets(tmp_path), server.counts.calls
        generate(server, tmp_path, "generate.n=3", "generate.cap_target=1")
        assert (triplets(tmp_path), server.counts.calls) == (rows, calls)
        generate(server, tmp_path, "generate.n=12", "generate.cap_target=1")
        assert triplets(tmp_path)[:3] == rows
        assert server.counts.keys.count(key) == 3
        shown = generate(server, tmp_path, "generate.n=3", "generate.cap_target=1")
        assert "held 12 triplets and holds 3 now; the ledger keeps the others" in " ".join(shown.err.split())
        assert "0 calls paid now" in shown.out


def test_dry_run_costs_nothing(tmp_path: Path) -> None:
    with serving() as server:
        shown = generate(server, tmp_path, "generate.dry_run=true", "generate.n=500").out
        assert server.counts.calls == 0
    assert "calls" in shown
    assert "dollars" in shown
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_preview_is_one_call_that_the_set_begins_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows the prompt, triplets of both kinds and the price in 80 columns, and leaves nothing but the ledger."""
    monkeypatch.setattr(console, "width", 80)
    with serving(reply=writer) as server:
        more = ["generate.n=20", "generate.min_words=6"]
        shown = generate(server, tmp_path, "preview=2", *more).out
        assert server.counts.calls == 1
        assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name[0] != "."] == ["ledger.jsonl"]
        (body,) = server.counts.bodies
        together = " ".join(shown.split())
        for message in body["messages"]:
            assert " ".join(message["content"].split()) in together
        items = json.loads(server.counts.texts[0])["triplets"]
        assert "Accepted: 5, of which 2 are shown" in shown
        assert [item["sentence"] in together for item in items[:5]] == [True, True, False, False, False]
        assert "Rejected: 1, of which 1 are shown" in shown
        assert "attribute not in the sentence" in shown
        assert re.search(r"cost +\d+\.\d+ dollars +\d+\.\d+ dollars", shown)
        assert max(map(len, shown.splitlines())) <= 80
        assert generate(server, tmp_path, "preview=2", *more).out == shown
        assert server.counts.calls == 1  # again, for nothing
        generate(server, tmp_path, *more)
        assert max(Counter(server.counts.keys).values()) == 1  # the set did not pay for it again
        assert [row["sentence"] for row in triplets(tmp_path)[:5]] == [item["sentence"] for item in items[:5]]
        cost = json.loads((folder_of(tmp_path) / "cost.json").read_text())
        assert cost["dollars"] == pytest.approx(server.counts.dollars(2, 10))


def test_a_preview_that_brings_nothing_says_so(tmp_path: Path) -> None:
    with serving([Fault(text="I cannot do that.")]) as server:
        assert "The call brought no triplet (no triplet in it)" in generate(server, tmp_path, "preview=5").out
        assert "preview=0 must be a whole number of 1 or more" in generate(server, tmp_path, "preview=0", status=1).err


def test_the_key_reaches_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the server sends it back, in an error or in an answer."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    faults = [Fault(500, error=f"your key is {SECRET}"), Fault(text=f"Bearer {SECRET}")]
    with serving(faults, reply=writer) as server:
        more = ["generate.n=5", "llm.api_key_env=OPENAI_API_KEY", "llm.concurrency=1"]
        shown = generate(server, tmp_path, *more)
        assert any(SECRET in header["authorization"] for header in server.counts.headers)  # it was used
        assert server.faults == []
    with serving([Fault(401, error=f"wrong key {SECRET}")]) as server:
        (tmp_path / "refused").mkdir()
        refused = generate(server, tmp_path / "refused", *more, status=1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in shown.out + shown.err + refused.out + refused.err


def test_another_config_is_refused_and_the_ledger_survives_overwriting(tmp_path: Path) -> None:
    with serving(reply=writer) as server:
        generate(server, tmp_path, "generate.n=5")
        folder = folder_of(tmp_path)
        paid = (folder / "ledger.jsonl").read_bytes()
        where = f"hydra.run.dir={folder}"
        answer = generate(server, tmp_path, "generate.n=5", "seed=2", where, status=1)
        assert "holds a set made by another config" in answer.err
        generate(server, tmp_path, "generate.n=5", "seed=2", where, "overwrite=true")
        assert (folder / "ledger.jsonl").read_bytes().startswith(paid)


def test_a_server_on_this_machine_is_reached_whatever_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://nowhere:1080")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with serving(reply=writer) as server:
        generate(server, tmp_path, "generate.n=5")


def in_other_hands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lock a folder until somebody waits; returns what was waited for, as in a sweep whose jobs start together."""
    other, waited = Lock(folder / ".lock"), []
    other.acquire()

    def wait(lock: Lock, work: str) -> None:
        other.release()
        waited.append(work)
        lock.acquire()

    monkeypatch.setattr(Lock, "wait", wait)
    return waited


def test_run_trains_on_what_it_generates(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It pays once, says so in cost.json, and no file holds the key or the password of the address."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(reply=writer) as server:
        server.base_url = server.base_url.replace("://", "://user:hunter2@")
        of_set = [w for w in words(server)[1:] if not w.startswith("name=")]
        of_run = [w for w in small if not w.startswith("data.n")]
        command = ["run", "data=generated", "generate.n=16", *of_set, *of_run]
        command.append("llm.api_key_env=OPENAI_API_KEY")
        succeed(tmp_path, *command)
        (cost,) = (json.loads(path.read_text()) for path in (tmp_path / "outputs" / "run").rglob("cost.json"))
        assert cost["dollars"] == cost["stages"]["generate"]["dollars"] == pytest.approx(server.counts.dollars(2, 10))
        calls = server.counts.calls
        assert calls > 0
        waited = in_other_hands(folder_of(tmp_path), monkeypatch)
        again = succeed(tmp_path, *command, "seed=2")
        assert server.counts.calls == calls  # another seed of the run pays nothing
    assert f"work in {folder_of(tmp_path).relative_to(tmp_path)}" in waited
    assert "16 sentences from generated" in again.err
    assert len(list(tmp_path.rglob("adapter_model.safetensors"))) == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files for word in (SECRET, "hunter2") if word.encode() in path.read_bytes()]
    assert not [path for path in tmp_path.rglob("*") if "hunter2" in path.name]


@pytest.mark.parametrize("n", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_real_model_behind_a_real_server(tmp_path: Path, n: int) -> None:
    """SmolLM2 in llama.cpp's server, started and stopped by the run; its prose is poor, so the filters have work."""
    succeed(
        tmp_path, "generate", "llm=local", "strategy=targeted_brief", "strategy.terms=[nurse,engineer]",
        "generate.per_call=6", "generate.benchmarks=false", f"generate.n={n}", "generate.patience=60", "name=set",
    )  # fmt: skip
    assert len(triplets(tmp_path)) == n
    succeed(tmp_path, "doctor", str(folder_of(tmp_path) / "set.jsonl"), "leakage=false")
