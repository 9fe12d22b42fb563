"""Rows of a data file, whatever its format; the only place that decides which format a file has."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from debias.records import UserError
from debias.wording import counted

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITED = (".csv", ".tsv", ".tab")
JSON = (".json", ".jsonl", ".ndjson")
TABLES = (*DELIMITED, *JSON, ".parquet", ".arrow")
FORMATS = "JSON Lines, JSON, CSV, TSV, Parquet, Arrow, these compressed with gzip, or a Hugging Face dataset folder"

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


class Row(NamedTuple):
    """One row of a file: its line or number (from 1), its place in words, and its decoded content.

    The content is a ValueError where it cannot be decoded.
    """

    place: int
    where: str
    content: Any


def is_table(path: Path) -> bool:
    """Whether a file or folder holds rows rather than running text, going by its name."""
    return path.is_dir() or PurePath(path.name.lower().removesuffix(".gz")).suffix in TABLES


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file or dataset folder. Raises UserError if it cannot be read at all."""
    if not path.is_dir():
        yield from _rows_of_file(path)
        return
    count = 0
    for file in _files(path):
        for row in _rows_of_file(file):
            count += 1
            yield row._replace(place=count)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of the files that are read of a folder."""
    if not path.is_dir():
        return hashlib.sha256(_bytes(path)).hexdigest()
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path)} {hashlib.sha256(_bytes(file)).hexdigest()}\n".encode())
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or with a byte order mark in UTF-16 or UTF-32. Raises UserError."""
    return _decoded(_unpacked(path), path)


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """Column names and rows of a file with commas, semicolons or tabs; a row is a list of cells.

    Raises UserError if the file cannot be read.
    """
    text = read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    found: list[Row] = []
    place = 1
    try:
        for cells in reader:
            if cells:
                found.append(Row(place, f"{path}:{place}", cells))
            place = reader.line_num + 1  # a cell may hold line ends
    except csv.Error as error:
        raise UserError(f"{path}:{place}: cannot be read as a table ({error}); fix this row") from error
    if not found:
        raise UserError(f"{path}: the file is empty; choose another file")
    header = [name.strip() for name in found[0].content]
    return header, found[1:]


# ---------------------------------------------------------------- formats


def _rows_of_file(path: Path) -> Iterator[Row]:
    raw = _unpacked(path)
    if raw.startswith(b"PAR1"):
        yield from _numbered(path, _listed(_parquet(raw, path)))
    elif raw.startswith(b"ARROW1") or path.suffix == ".arrow":
        yield from _numbered(path, _listed(_arrow(raw, path)))
    elif PurePath(path.name.lower().removesuffix(".gz")).suffix in DELIMITED:
        yield from _delimited(path)
    else:
        yield from _json(path, _decoded(raw, path))


def _delimited(path: Path) -> Iterator[Row]:
    header, table = read_table(path)
    for row in table:
        if len(row.content) == len(header):
            # An empty cell says nothing.
            cells = zip(header, row.content, strict=True)
            yield row._replace(content={name: cell for name, cell in cells if cell.strip()})
        else:
            found = counted(len(row.content), "cell")
            yield row._replace(content=ValueError(f"{found}, but the first row has {len(header)}"))


def _json(path: Path, text: str) -> Iterator[Row]:
    if not text.strip():
        raise UserError(f"{path}: the file is empty; choose another file")
    lines_only = path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    lines = re.split(r"\r\n|[\r\n]", text)
    if text.lstrip()[0] == "[" or not lines_only:
        whole = _value(text)
        if not isinstance(whole, ValueError):
            yield from _numbered(path, _items(whole, path))
            return
        first = next(line for line in lines if line.strip())
        if not lines_only and isinstance(_value(first), ValueError):  # one broken document rather than JSON Lines
            line = f":{whole.lineno}" if isinstance(whole, json.JSONDecodeError) else ""
            reason = whole.msg if isinstance(whole, json.JSONDecodeError) else whole
            raise UserError(f"{path}{line}: not JSON ({reason}); fix it, or save the rows as JSON Lines") from whole
    for place, line in enumerate(lines, start=1):
        if line.strip():
            yield Row(place, f"{path}:{place}", _value(line))


def _items(whole: Any, path: Path) -> list[Any]:
    """The rows of a JSON document: its list, the list inside it, its columns, or the one row that it is."""
    if isinstance(whole, list):
        return whole if not whole or any(isinstance(item, (list, dict)) for item in whole) else [whole]
    if not isinstance(whole, dict):
        return [whole]
    lists = {name: value for name, value in whole.items() if isinstance(value, list) and value}
    inside = {name: value for name, value in lists.items() if isinstance(value[0], (list, dict))}
    if len(inside) > 1:
        raise UserError(f"{path} holds several lists ({', '.join(inside)}); save the one to read in a file of its own")
    if inside:
        return next(iter(inside.values()))
    if len(lists) > 1 and len({len(value) for value in lists.values()}) == 1:  # columns
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    return [whole]


def _value(text: str) -> Any:
    """What JSON text says, or a ValueError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return ValueError("too many brackets inside each other")
    except ValueError:
        return ValueError("a number of thousands of digits")


def _parquet(raw: bytes, path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(io.BytesIO(raw))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({error}); write it again") from error


def _arrow(raw: bytes, path: Path) -> pa.Table:
    import pyarrow as pa

    try:
        opened = pa.ipc.open_file if raw.startswith(b"ARROW1") else pa.ipc.open_stream
        return opened(pa.BufferReader(raw)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Arrow file ({error}); write it again") from error


def _listed(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches():
        for row in batch.to_pylist():
            # None and NaN say nothing, as an empty cell does.
            yield {name: value for name, value in row.items() if value is not None and value == value}


def _numbered(path: Path, items: Sequence[Any] | Iterator[Any]) -> Iterator[Row]:
    return (Row(place, f"{path}: item {place}", item) for place, item in enumerate(items, start=1))


# ---------------------------------------------------------------- files


def _files(folder: Path) -> list[Path]:
    """The files to read of a dataset folder: as `save_to_disk` writes it, or as the hub keeps it."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        if "train" not in splits and len(splits) != 1:
            raise UserError(f"{folder} has no split `train`; name one of its folders: {', '.join(splits) or 'none'}")
        folder = folder / ("train" if "train" in splits else splits[0])
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and is_table(path) and not path.name.startswith((".", "dataset_info", "state.json"))
    ]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    train = [path for path in found if "train" in str(path.relative_to(folder)).lower()]
    if not found:
        raise UserError(f"{folder}: there is no data file in this folder; it may hold {FORMATS}")
    return train or found


def _unpacked(path: Path) -> bytes:
    raw = _bytes(path)
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); write it again") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this file ({error.strerror}); check the path") from error


def _decoded(raw: bytes, path: Path) -> str:
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not {name} text (byte {error.start}); save the file as UTF-8") from error
    if "\0" in text[:2]:
        raise UserError(f"{path}: UTF-16 without a byte order mark; save the file as UTF-8")
    return text.removeprefix("\ufeff")
