"""Tables of the catalogue as files for other tools: Parquet, Arrow, CSV or a line of JSON a row.

Rows go from DuckDB to the file a batch at a time, so that a table larger than memory can be written; the file
appears whole or not at all.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from resources.appearing import appearing
from resources.catalog import Catalog
from resources.errors import UserError

FORMATS = ("parquet", "arrow", "csv", "jsonl")
_SUFFIXES = {
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".csv": "csv", ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}  # fmt: skip
_BATCH_ROWS = 2_048
_ROW_GROUP = 32 * 2**20
"""Bytes of memory that a row group of Parquet is made of."""
_NESTED = ("[", "MAP", "STRUCT", "UNION", "JSON")


@dataclass(frozen=True, slots=True)
class ExportedTable:
    """A file that was written."""

    path: Path
    format: str
    rows: int
    bytes: int


def export_table(
    catalog: Catalog,
    table: str,
    path: Path,
    *,
    file_format: str | None = None,
    models: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    metrics: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    current: bool = False,
    columns: Sequence[str] = (),
) -> ExportedTable:
    """Write a table or view of the catalogue to a file, of the format that its name ends with.

    `models`, `benchmarks` and `metrics` are patterns as for `matching`. `since` and `until` bound when
    an evaluation finished (until itself left out); `current` leaves those that the leaderboard shows.
    Parquet and Arrow keep the types; in CSV a list, map or struct is JSON text, in JSON a number that is not
    finite is null.

    Raises UserError for a table, column or format that isn't there, a filter that the table has no column
    for, and where the file can't be written.
    """
    chosen = file_format or _SUFFIXES.get(path.suffix.lower())
    if chosen not in FORMATS:
        raise UserError(f"{path}: no format for that name; end it with .parquet, .arrow, .csv or .jsonl")
    with catalog.connect() as connection:
        known = _columns(connection, table)
        missing = [name for name in columns if name not in known]
        if missing:
            raise UserError(f"table {table} has no column {missing[0]!r}; it has {', '.join(known)}")
        wanted = columns or list(known)
        patterns = {"model": models, "dataset": benchmarks, "metric": metrics}
        where, values = _conditions(table, known, patterns, since, until, current)
        selected = ", ".join(map(_quoted, wanted))
        query = f"SELECT {selected} FROM {_quoted(table)}{where}"
        try:
            with appearing(path) as file:
                rows = _WRITERS[chosen](connection, query, values, file)
        except OSError as error:
            raise UserError(
                f"{path} can't be written: {error.strerror or error}; name another file"
            ) from None
    return ExportedTable(path, chosen, rows, path.stat().st_size)


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """The columns of a table and their types."""
    rows = connection.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'main' ORDER BY table_name, ordinal_position"
    ).fetchall()
    found = {column: kind for name, column, kind in rows if name == table}
    if not found:
        names = ", ".join(dict.fromkeys(row[0] for row in rows))
        raise UserError(f"no table {table[:80]!r} in the catalogue; there are {names}")
    return found


def _conditions(
    table: str,
    known: Mapping[str, str],
    patterns: Mapping[str, Sequence[str]],
    since: datetime | None,
    until: datetime | None,
    current: bool,
) -> tuple[str, list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for column, wanted in patterns.items():
        if not wanted:
            continue
        if column not in known:
            raise UserError(f"table {table} has no column {column!r} to choose by")
        conditions.append(matching(column, wanted))
        values += wanted
    evaluations = []
    for sign, moment in ((">=", since), ("<", until)):
        if moment is not None:
            evaluations.append(f"finished_at {sign} ?")
            values.append(moment.astimezone())
    if (evaluations or current) and not {"dataset", "model", "evaluation_id"} <= known.keys():
        raise UserError(f"table {table} has no evaluations to choose by")
    if evaluations or current:
        source = "current_evaluations" if current else "evaluations"
        rest = f" WHERE {' AND '.join(evaluations)}" if evaluations else ""
        conditions.append(
            f"(dataset, model, evaluation_id) IN (SELECT (dataset, model, evaluation_id) FROM {source}{rest})"
        )
    return (f" WHERE {' AND '.join(conditions)}" if conditions else ""), values


def matching(column: str, patterns: Sequence[str]) -> str:
    """The SQL condition that a column matches one of the patterns, which are its parameters.

    They are those of model keys elsewhere: ``*`` any text, ``?`` one character, ``[abc]`` one of these.
    """
    return "(" + (" OR ".join(f"{_quoted(column)} GLOB ?" for _ in patterns) or "FALSE") + ")"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _batches(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any]
) -> pa.RecordBatchReader:
    return connection.sql(query, params=list(values)).to_arrow_reader(_BATCH_ROWS)


def _write_arrow(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any], file: IO[bytes]
) -> int:
    reader, rows = _batches(connection, query, values), 0
    with pa.ipc.new_file(file, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _write_parquet(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any], file: IO[bytes]
) -> int:
    reader, rows = _batches(connection, query, values), 0
    with pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in reader:
            waiting.append(batch)
            rows += batch.num_rows
            if sum(one.nbytes for one in waiting) >= _ROW_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    return rows


def _write_csv(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any], file: IO[bytes]
) -> int:
    rows = 0
    # An end of line of its own has the module quote a lone \r, which readers take for one; see _Text.
    writer = csv.writer(_Text(file), lineterminator="\r\n")
    described = connection.sql(query, params=list(values))
    names = described.columns
    nested = [any(mark in str(kind) for mark in _NESTED) for kind in described.types]
    selected = ", ".join(
        f"to_json({_quoted(name)})::VARCHAR" if is_nested else _quoted(name)
        for name, is_nested in zip(names, nested, strict=True)
    )
    writer.writerow(names)
    for batch in _batches(connection, f"SELECT {selected} FROM ({query})", values):
        columns = [_cells(column, one) for column, one in zip(batch.columns, nested, strict=True)]
        writer.writerows(zip(*columns, strict=True))
        rows += batch.num_rows
    return rows


def _cells(column: pa.Array, nested: bool) -> list[Any]:
    """A column's values as CSV has them: times in ISO 8601, truth in lower case, nothing for null."""
    values: list[Any] = column.to_pylist()
    if nested:
        return [None if value is None else _json(value) for value in values]
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return [None if value is None else value.isoformat() for value in values]
    if pa.types.is_boolean(column.type):
        return [None if value is None else str(value).lower() for value in values]
    return values


def _json(text: str) -> str:
    """What DuckDB writes as JSON, with null for NaN and infinities, which it writes as they are."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)


def _write_jsonl(
    connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any], file: IO[bytes]
) -> int:
    rows = 0
    for batch in _batches(connection, f"SELECT to_json(t)::VARCHAR AS line FROM ({query}) AS t", values):
        for line in batch.column(0).to_pylist():
            file.write(_json(line).encode("utf-8", "replace") + b"\n")
        rows += batch.num_rows
    return rows


class _Text:
    """What the csv module writes to, a row at a time; rows end with \\n."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.removesuffix("\r\n").encode("utf-8", "replace") + b"\n")


_WRITERS: Mapping[str, Callable[[duckdb.DuckDBPyConnection, str, Sequence[Any], IO[bytes]], int]] = {
    "parquet": _write_parquet,
    "arrow": _write_arrow,
    "csv": _write_csv,
    "jsonl": _write_jsonl,
}
