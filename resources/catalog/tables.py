"""Takes sources into a catalogue's tables, and out of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from resources.catalog.intake import EVALUATIONS, Content, Damage, Source, source_of, table_of
from resources.catalog.schema import (
    ANSWER_COLUMNS,
    DOCUMENT_SCHEMAS,
    ITEM_COLUMNS,
    SCHEMA_VERSION,
)

_NEW_ITEMS = f"""
INSERT INTO stored.items
SELECT (SELECT coalesce(max(item), 0) FROM stored.items)
       + row_number() OVER (ORDER BY dataset, "index", content), content, {ITEM_COLUMNS}
FROM (SELECT DISTINCT ON (content) content, {ITEM_COLUMNS} FROM incoming
      WHERE content NOT IN (SELECT content FROM stored.items))
"""
_NEW_ANSWERS = f"""
INSERT INTO stored.answers
SELECT number, item, {ANSWER_COLUMNS}
FROM incoming JOIN (SELECT item, content FROM stored.items) USING (content) ORDER BY number, "index"
"""


@dataclass(frozen=True, slots=True)
class Known:
    """What a catalogue was made from: the sign of every source that need not be read again as long as it is
    the same, and of those that are damaged, by path, the file and why."""

    signs: Mapping[str, str]
    damaged: Mapping[str, tuple[str, str]]


def known(connection: duckdb.DuckDBPyConnection) -> Known:
    """What the catalogue was made from.

    Raises ValueError where it is of another version, duckdb.Error where it is none or damaged.
    """
    (version,) = connection.execute("SELECT version FROM catalog_version").fetchone() or (None,)
    if version != SCHEMA_VERSION:
        raise ValueError(f"it is of version {version}, this program's is {SCHEMA_VERSION}")
    signs = connection.execute("SELECT path, sign FROM stored.seen").fetchall()
    damaged = connection.execute("SELECT path, reason FROM damaged").fetchall()
    return Known(dict(signs), {source_of(path): (path, reason) for path, reason in damaged})


def take_out(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> None:
    """Remove everything that came from these sources."""
    if not paths:
        return
    connection.register("gone", pa.table({"path": pa.array(paths, pa.string())}))
    numbers = "SELECT number FROM stored.evaluations WHERE path IN (SELECT path FROM gone)"
    for table in ("answers", "metrics"):
        connection.execute(f"DELETE FROM stored.{table} WHERE number IN ({numbers})")
    for table in (EVALUATIONS, *DOCUMENT_SCHEMAS, "seen"):
        connection.execute(f"DELETE FROM stored.{table} WHERE path IN (SELECT path FROM gone)")
    connection.execute("DELETE FROM stored.items WHERE item NOT IN (SELECT item FROM stored.answers)")
    connection.unregister("gone")


def take_in(connection: duckdb.DuckDBPyConnection, batch: Iterable[Content]) -> None:
    """Add sources that are not in the catalogue."""
    contents = list(batch)
    for kind in DOCUMENT_SCHEMAS:
        if rows := [content.row for content in contents if content.source.kind == kind]:
            _insert(connection, f"stored.{kind}", [table_of(kind, rows)])
    evaluations = [content for content in contents if content.source.kind == EVALUATIONS]
    if evaluations:
        _take_in_evaluations(connection, evaluations)
    _insert_seen(connection, [content.source for content in contents])


def note_damage(
    connection: duckdb.DuckDBPyConnection, still: Sequence[Damage], new: Sequence[Damage]
) -> None:
    """Make these the damaged ones; a lasting one is not read again as long as it looks the same."""
    connection.execute("DELETE FROM damaged")
    ordered = sorted([*still, *new], key=lambda damage: damage.path)
    names = ("evaluation_id", "dataset", "model", "path", "reason")
    rows = [
        dict(zip(names, (*damage.source.names(), damage.path, damage.reason), strict=True))
        for damage in ordered
    ]
    schema = pa.schema([(name, pa.string()) for name in names])
    _insert(connection, "damaged", [pa.Table.from_pylist(rows, schema=schema)] if rows else [])
    _insert_seen(connection, [damage.source for damage in new if damage.lasting])


def _insert_seen(connection: duckdb.DuckDBPyConnection, sources: Sequence[Source]) -> None:
    seen = [{"path": source.path, "sign": source.sign} for source in sources]
    _insert(connection, "stored.seen", [pa.Table.from_pylist(seen)] if seen else [])


def _take_in_evaluations(connection: duckdb.DuckDBPyConnection, evaluations: Sequence[Content]) -> None:
    ((last,),) = connection.execute("SELECT coalesce(max(number), 0) FROM stored.evaluations").fetchall()
    numbered = list(enumerate(evaluations, last + 1))
    rows = table_of(EVALUATIONS, [content.row for content in evaluations])
    numbers = pa.array([number for number, _ in numbered], pa.int32())
    _insert(connection, "stored.evaluations", [rows.add_column(0, "number", numbers)])
    _insert(
        connection, "stored.metrics", [_numbered(n, c.metrics) for n, c in numbered if c.metrics is not None]
    )
    batch = pa.concat_tables(_of_evaluation(n, c) for n, c in numbered if c.samples is not None)
    # The hash of JSON, in which no two different rows look the same, tells items apart.
    hashed = _run(connection, f"SELECT unhex(md5(to_json(({ITEM_COLUMNS}))::VARCHAR)) FROM incoming", batch)
    batch = batch.append_column("content", pa.array([row[0] for row in hashed.fetchall()], pa.binary()))
    _run(connection, _NEW_ITEMS, batch)
    _run(connection, _NEW_ANSWERS, batch)


def _numbered(number: int, table: pa.Table) -> pa.Table:
    return table.add_column(0, "number", pa.array([number] * table.num_rows, pa.int32()))


def _of_evaluation(number: int, content: Content) -> pa.Table:
    assert content.samples is not None
    _, dataset, _ = content.source.names()
    names = pa.array([dataset] * content.samples.num_rows, pa.string())
    return _numbered(number, content.samples).append_column("dataset", names)


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[pa.Table]) -> None:
    if rows:
        together = pa.concat_tables(rows).combine_chunks()
        _run(connection, f"INSERT INTO {table} BY NAME SELECT * FROM incoming", together)


def _run(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    incoming: pa.Table,  # noqa: ARG001  (DuckDB finds it by its name)
) -> duckdb.DuckDBPyConnection:
    """Run a query that reads `incoming`; a registered table would stay until the transaction ends."""
    return connection.execute(query)
