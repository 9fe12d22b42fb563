"""One set of triplets in every format that people keep data in: the same records, or one line that names the fault."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from debias.data.doctor import examine
from debias.data.plaintext import Text
from debias.data.rows import rows, sha256
from debias.data.triplets import TripletFile
from debias.records import UserError

RECORDS = [
    {"sentence": f"The nurse in room {i} was very {word}, today.", "target": "nurse", "attribute": word}
    for i, word in enumerate(("strong", "brave", "d\u00fcster"))
]
LINES = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
TRIPLES = json.dumps([[*record.values()] for record in RECORDS], ensure_ascii=False)
COLUMNS = {name: [record[name] for record in RECORDS] for name in RECORDS[0]}


def cells(delimiter: str) -> str:
    lines = [[f'"{cell}"' if delimiter in cell else cell for cell in record.values()] for record in RECORDS]
    return "\r\n".join(delimiter.join(line) for line in [[*RECORDS[0]], *lines]) + "\r\n"


def parquet(path: Path) -> None:
    pq.write_table(pa.table(COLUMNS), path)


def arrow(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, pa.table(COLUMNS).schema) as writer:
        writer.write_table(pa.table(COLUMNS))


TEXTS: dict[str, str] = {
    "lines.jsonl": "\n".join(LINES),
    "lines.json": "\n".join(LINES),
    "lists.json": "\n".join(json.dumps([*record.values()], ensure_ascii=False) for record in RECORDS),
    "old_mac.jsonl": "\r".join(LINES),
    "windows.jsonl": "\r\n".join(LINES) + "\r\n",
    "array.jsonl": f"[{', '.join(LINES)}]",
    "array.json": json.dumps(RECORDS, indent=1),
    "published.json": TRIPLES,
    "dict.json": f'{{"version": "1.0", "triplets": {TRIPLES}}}',
    "dict_data.json": json.dumps({"data": RECORDS}, indent=1),
    "columns.json": json.dumps(COLUMNS),
    "commas.csv": cells(","),
    "semicolons.csv": cells(";"),
    "tabs.tsv": cells("\t"),
    "bom.csv": "\ufeff" + cells(","),
}


def same(path: Path) -> bool:
    triplets = TripletFile("gender", str(path)).load().triplets
    assert [t.sentence[t.start : t.stop] for t in triplets] == [record["attribute"] for record in RECORDS]
    found = examine(path)
    return (found.usable, found.passes) == (3, True) and [t.sentence for t in triplets] == COLUMNS["sentence"]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_texts(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(TEXTS[name].encode(encoding))
    assert same(tmp_path / name)


@pytest.mark.parametrize("name", ["lines.jsonl", "dict.json", "commas.csv"])
def test_compressed(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(TEXTS[name].encode()))
    assert same(tmp_path / f"{name}.gz")


@pytest.mark.parametrize(("name", "write"), [("t.parquet", parquet), ("t.arrow", arrow)])
def test_columns_in_binary(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    assert same(tmp_path / name)


def test_a_dataset_folder_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 not read")
    (tmp_path / "dataset_infos.json").write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text("A card", encoding="utf-8")
    assert same(tmp_path)
    assert [row.place for row in rows(tmp_path)] == [1, 2, 3]


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict(COLUMNS)
    one.save_to_disk(tmp_path / "one")
    assert same(tmp_path / "one")
    before = sha256(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(tmp_path / "splits")
    assert same(tmp_path / "splits")
    assert sha256(tmp_path / "one") == before != sha256(tmp_path / "splits")
    datasets.DatasetDict({"a": one, "b": one}).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match="has no split `train`; name one of its folders: a, b"):
        examine(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"text,label\nx,1\n",
            "no row has the columns sentence, target, attribute; found text, label; rename",
        ),
        ("a.csv", b"sentence,target,attribute\n", "this file holds no records"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b'"sentence,target\nx', "holds no records"),
        (
            "a.jsonl",
            b'{"prompt": "x", "chosen": "a", "rejected": "b"}',
            "the chosen text is the sentence; add its target",
        ),
        ("a.json", b'{"a": [{}], "b": [{}]}', "holds several lists (a, b)"),
        ("a.json", b'[["a", "b"', "a.json:1: not JSON"),
        ("a.json", b'{\n"data": [', "a.json:2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n\xe9', "a.jsonl:2: not UTF-8 text (byte 9); save the file as UTF-8"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16-le"), "UTF-16 without a byte order mark; save the file as UTF-8"),
        ("a.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "not a whole gzip file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (lambda: TripletFile("gender", str(path)).load(), lambda: examine(path)):
        with pytest.raises(UserError) as raised:
            read()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


def test_bad_rows_have_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sentence,target,attribute\nOne\n\nThe nurse is kind.,nurse,kind\nShe,,x\n", encoding="utf-8")
    found = examine(path)
    (broken,) = (f for f in found.findings if f.name == "not a record")
    assert broken.examples == ["2: cannot be read (1 cell, but the first row has 3)", "5: 'target' is missing"]
    with pytest.raises(UserError, match=r"a\.csv:2: cannot be read"):
        TripletFile("gender", str(path)).load()


def test_an_empty_optional_cell_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "sentence,target,attribute,stereotype\nShe is bold.,She,bold,\nShe is kind.,She,kind,mean\n", "utf-8"
    )
    assert [t.stereotype for t in TripletFile("gender", str(path)).load().triplets] == [None, "mean"]


def test_running_text_may_be_a_column(tmp_path: Path) -> None:
    """`data=cda data.path=FILE`: the column `text` of rows, or a text file in any of the encodings."""
    pq.write_table(pa.table({"text": ["One passage.", "Another."]}), tmp_path / "a.parquet")
    assert list(Text(str(tmp_path / "a.parquet"), "gender").passages()) == ["One passage.", "Another."]
    (tmp_path / "a.txt").write_bytes("A line.\n".encode("utf-16"))
    assert list(Text(str(tmp_path / "a.txt"), "gender").passages()) == ["A line.\n"]
    (tmp_path / "b.jsonl").write_text('{"body": "x"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"b\.jsonl:1: there is no text here; the passages must be in a column `text`"):
        list(Text(str(tmp_path / "b.jsonl"), "gender").passages())
