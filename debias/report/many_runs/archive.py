"""The format of an archive: many runs in one Parquet file, one row per run.

| column | content |
| --- | --- |
| run | name of the run folder, with its sweep's: `SWEEP/RUN` |
| state | `done`, `running`, `interrupted` or `failed`; a run that is not done has its name and state only |
| config, status, cost | config.yaml, status.json and cost.json as JSON |
| metrics | list of figures, with the fields of metrics.jsonl |
| curve | list of (step, loss) from train.csv |
| num_records | number of scored texts in `records`; 0 where the archive leaves them out |
| records | list of scored texts, with the columns of likelihoods.parquet; null where there are none |

The key `debias_archive` of the file's metadata holds the version of this format, and how many runs of the sweeps were
never started (`missing`) and how many folders held generated data (`generated`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from debias.files import whole_file
from debias.records import Figure, UserError
from debias.results import LIKELIHOODS

KEY = "debias_archive"
VERSION = 1
TEXTS = {"benchmark", "protocol", "example", "candidate", "bias", "target", "metric", "model", "test"}
COUNTS = {"n", "num_tokens"}


def _fields(names: Sequence[str]) -> Any:
    kinds = {**dict.fromkeys(TEXTS, pa.string()), **dict.fromkeys(COUNTS, pa.int64())}
    return pa.struct([(name, kinds.get(name, pa.float64())) for name in names])


RECORD = _fields(LIKELIHOODS)
SCHEMA = pa.schema(
    {
        "run": pa.string(),
        "state": pa.string(),
        "config": pa.string(),
        "status": pa.string(),
        "cost": pa.string(),
        "metrics": pa.list_(_fields(Figure._fields)),
        "curve": pa.list_(pa.struct([("step", pa.int64()), ("loss", pa.float64())])),
        "num_records": pa.int64(),
        "records": pa.list_(RECORD),
    }
)


class Row(NamedTuple):
    """One run of an archive; `records` reads the scores of its single texts, where they are in it."""

    run: str
    state: str
    config: dict[str, Any] | None = None
    status: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    figures: Sequence[Figure] = ()
    losses: Sequence[tuple[int, float]] = ()  # step and training loss
    records: Callable[[], pd.DataFrame] | None = None


class Archive(NamedTuple):
    """What an archive holds; `missing` and `generated` count what its folders held beside runs."""

    rows: list[Row]
    missing: int
    generated: int


def write(path: Path, archive: Archive) -> None:
    """Write an archive whole; equal content gives equal bytes."""
    about = {"version": VERSION, "missing": archive.missing, "generated": archive.generated}
    schema = SCHEMA.with_metadata({KEY: json.dumps(about)})
    tables: Iterable[pa.Table] = map(_table, archive.rows)
    if not any(row.records for row in archive.rows):
        tables = [pa.concat_tables(tables)]  # one row group is smaller; with records, each run can be read on its own
    with (
        whole_file(path) as half,
        parquet.ParquetWriter(
            half, schema, compression="zstd", compression_level=19, write_statistics=False, write_page_checksum=True
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table)


def _table(row: Row) -> pa.Table:
    records = _list_of(row.records()) if row.records else pa.nulls(1, SCHEMA.field("records").type)
    number = len(records.flatten())
    content = [row.run, row.state, *(_json(part) for part in (row.config, row.status, row.cost))]
    metrics = [figure._asdict() for figure in row.figures]
    curve = [{"step": step, "loss": loss} for step, loss in row.losses]
    columns = [[value] for value in (*content, metrics, curve, number)]
    kinds = [field.type for field in SCHEMA][:-1]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.Table.from_arrays([*arrays, records], schema=SCHEMA)


def _list_of(records: pd.DataFrame) -> pa.Array:
    table = pa.Table.from_pandas(records, pa.schema(list(RECORD)), preserve_index=False).combine_chunks()
    return pa.ListArray.from_arrays([0, len(records)], table.to_struct_array().combine_chunks())


def _json(content: dict[str, Any] | None) -> str | None:
    return None if content is None else json.dumps(content, ensure_ascii=False, default=str)  # a date in a config


def read(path: Path) -> Archive:
    """Read an archive, without its records. Raises UserError when the file is not an archive, or is damaged."""
    with _opened(path) as file:
        content = (file.schema_arrow.metadata or {}).get(KEY.encode())
        if content is None:
            raise UserError(f"{path} is not an archive of runs; make one with `debias archive PATH... --out FILE`")
        about = json.loads(content)
        if about["version"] > VERSION:
            raise UserError(f"{path} was written by a newer version of debias; update debias to read it")
        columns = [name for name in SCHEMA.names if name != "records"]
        rows = [_row(path, i, row) for i, row in enumerate(file.read(columns).to_pylist())]
        return Archive(rows, about["missing"], about["generated"])


def _row(path: Path, place: int, row: dict[str, Any]) -> Row:
    config, status, cost = (row[name] and json.loads(row[name]) for name in ("config", "status", "cost"))
    figures = [Figure(**figure) for figure in row["metrics"]]
    losses = [(point["step"], point["loss"]) for point in row["curve"]]
    records = partial(_records, path, place) if row["num_records"] else None
    return Row(row["run"], row["state"], config, status, cost, figures, losses, records)


def _records(path: Path, place: int) -> pd.DataFrame:
    """The records of one row: an archive with records has a row group for each run."""
    with _opened(path) as file:
        records = file.read_row_group(place, ["records"])["records"].combine_chunks().flatten()
        return pa.Table.from_struct_array(records).to_pandas()


@contextmanager
def _opened(path: Path) -> Iterator[parquet.ParquetFile]:
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged, or not an archive ({reason}); get or make it again") from error
