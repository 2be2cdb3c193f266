"""From the store's files to rows: what there is, how it looks, and what is in it or wrong with it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resources.catalog.schema import (
    DOCUMENT_SCHEMAS,
    ENGINE_FIELDS,
    EVALUATION_FIELDS,
    EVALUATION_SCHEMA,
    PHASES,
    SCORE_FIELDS,
)
from resources.errors import UserError
from resources.keys import ModelKey, check_dataset_key, key_of_segment
from resources.records import METRIC_SCHEMA, SAMPLE_SCHEMA
from resources.storage import Listed, Storage
from resources.writer import METRICS, RECORD, SAMPLES

EVALUATIONS = "evaluations"
_FILES = (RECORD, SAMPLES, METRICS)
_PATTERNS = {
    "comparisons": "comparisons/*/*.json",
    "verdicts": "verdicts/*/latest.json",
    "models": "models/*.json",
    "benchmarks": "benchmarks/*/current.json",
}
_BATCH_BYTES = 6 * 2**20
_BATCH_FILES = 512
"""A batch is read at once: compressed files of so many bytes are about ten times as large in memory."""


@dataclass(frozen=True, slots=True)
class Source:
    """A committed evaluation (its folder) or another JSON file; another `sign` means another content."""

    kind: str
    path: str
    sign: str
    size: int

    def names(self) -> tuple[str | None, str | None, str | None]:
        """Evaluation id, dataset and model, as far as the path has them."""
        *_, parent, last = parts = self.path.split("/")
        if self.kind == EVALUATIONS:
            return last, key_of_segment(parts[1]), key_of_segment(parts[2])
        last = key_of_segment(last.removesuffix(".json"))
        return {
            "comparisons": (None, key_of_segment(parent), last),
            "verdicts": (None, None, key_of_segment(parent)),
            "models": (None, None, last),
            "benchmarks": (None, key_of_segment(parent), None),
        }[self.kind]


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a source: a row for its table, and of an evaluation its metrics and samples."""

    source: Source
    row: Mapping[str, Any]
    metrics: pa.Table | None = None
    samples: pa.Table | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """A source that can't be taken in, which file of it, and why.

    `lasting`: it stays so as long as the source looks the same; what could not be read may be readable now.
    """

    source: Source
    path: str
    reason: str
    lasting: bool = True


def source_of(path: str) -> str:
    """The source that a file is of."""
    return path.rsplit("/", 1)[0] if path.startswith(f"{EVALUATIONS}/") else path


def look(store: Storage) -> dict[str, Source]:
    """Everything that the catalogue is made from, by path; nothing is read."""
    found: dict[str, Source] = {}
    evaluations: dict[str, dict[str, Listed]] = {}
    for path, listed in store.listing(f"{EVALUATIONS}/*/*/*/*").items():
        folder, name = path.rsplit("/", 1)
        if name in _FILES:
            evaluations.setdefault(folder, {})[name] = listed
    for folder, files in evaluations.items():
        if RECORD in files:
            sign = " ".join(files[name].sign if name in files else "none" for name in _FILES)
            found[folder] = Source(EVALUATIONS, folder, sign, sum(listed.size for listed in files.values()))
    for kind, pattern in _PATTERNS.items():
        for path, listed in store.listing(pattern).items():
            found[path] = Source(kind, path, *listed)
    return found


def read(store: Storage, sources: Sequence[Source]) -> Iterator[list[Content | Damage]]:
    """What is in them, a batch at a time, in their order.

    Raises TransientError where an object store doesn't answer.
    """

    def taken_in(batch: Sequence[Source]) -> list[Content | Damage]:
        content = store.read_all([path for source in batch for path in _paths(source)])
        return _checked([_taken_in(source, content) for source in batch])

    with ThreadPoolExecutor(1) as reader:  # reads the next batch while the last one is taken in
        ahead: Future[list[Content | Damage]] | None = None
        for batch in _batches(sources):
            previous, ahead = ahead, reader.submit(taken_in, batch)
            if previous is not None:
                yield previous.result()
        if ahead is not None:
            yield ahead.result()


def _batches(sources: Sequence[Source]) -> Iterator[list[Source]]:
    batch: list[Source] = []
    size = 0
    for source in sources:
        batch.append(source)
        size += source.size
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _paths(source: Source) -> list[str]:
    return [f"{source.path}/{name}" for name in _FILES] if source.kind == EVALUATIONS else [source.path]


class _DamageError(Exception):
    """What is wrong with a file; `lasting` as in `Damage`."""

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


def _taken_in(source: Source, content: Mapping[str, bytes | OSError]) -> Content | Damage:
    paths = _paths(source)
    path = paths[0]
    try:
        record = _json(content[path])
        row = _ROWS[source.kind](source, record)
        if source.kind != EVALUATIONS:
            return Content(source, row)
        path = paths[1]
        samples = _parquet(content[path], SAMPLE_SCHEMA)
        if samples.num_rows not in (0, record.get("samples")):
            raise _DamageError(f"it has {samples.num_rows} rows, the record says {record.get('samples')}")
        path = paths[2]
        return Content(source, row, _parquet(content[path], METRIC_SCHEMA), samples)
    except _DamageError as error:
        return Damage(source, path, " ".join(str(error).split())[:300], error.lasting)


def _json(content: bytes | OSError) -> dict[str, Any]:
    try:
        value = json.loads(_bytes(content))
    except ValueError:
        raise _DamageError("it is not JSON") from None
    if not isinstance(value, dict):
        raise _DamageError("it is not a JSON object")
    return value


def _parquet(content: bytes | OSError, schema: pa.Schema) -> pa.Table:
    """The columns of the schema; files of earlier versions have fewer, those of later ones more."""
    buffer = pa.BufferReader(_bytes(content))
    try:
        table = pq.ParquetFile(buffer, page_checksum_verification=True).read(use_threads=False)
        columns = [_column(table, field) for field in schema]
        return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _DamageError(f"it can't be read as Parquet: {error}") from None


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    place = table.schema.get_field_index(field.name)
    if place < 0:
        return pa.nulls(table.num_rows, field.type)
    column = table.column(place)
    return column if column.type == field.type else column.cast(field.type)


def _bytes(content: bytes | OSError) -> bytes:
    if isinstance(content, FileNotFoundError):
        raise _DamageError("it is not there", lasting=False)
    if isinstance(content, OSError):
        raise _DamageError(f"it can't be read: {content.strerror or content}", lasting=False)
    return content


def table_of(kind: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of a kind of source as its table; other names in them are left out."""
    return pa.Table.from_pylist(rows, schema=_SCHEMAS[kind])


def _checked(items: list[Content | Damage]) -> list[Content | Damage]:
    """Sources with values of a wrong type are damaged; all are looked at together first, which is quicker."""
    contents = [item for item in items if isinstance(item, Content)]
    kinds = {content.source.kind for content in contents}
    if all(_wrong(kind, [c.row for c in contents if c.source.kind == kind]) is None for kind in kinds):
        return items
    checked: list[Content | Damage] = []
    for item in items:
        wrong = _wrong(item.source.kind, [item.row]) if isinstance(item, Content) else None
        checked.append(item if wrong is None else Damage(item.source, _paths(item.source)[0], wrong))
    return checked


def _wrong(kind: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    try:
        table_of(kind, rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        return " ".join(f"a value in it has the wrong type: {error}".split())[:300]
    return None


def _check_names(source: Source, record: Mapping[str, Any]) -> None:
    """What a file says of itself must be where it lies, and names that are paths or worse are no names."""
    for name, expected in zip(("evaluation_id", "dataset", "model"), source.names(), strict=True):
        if expected is not None and record.get(name) != expected:
            raise _DamageError(f"its {name} is {record.get(name)!r}, its path says {expected!r}")
    _, dataset, model = source.names()
    try:
        if model is not None:
            ModelKey.parse(model)
        if dataset is not None:
            check_dataset_key(dataset)
    except UserError as error:
        raise _DamageError(str(error)) from None


def _evaluation_row(source: Source, record: Mapping[str, Any]) -> dict[str, Any]:
    _check_names(source, record)
    row = {name: record.get(name) for name in EVALUATION_FIELDS}
    engine, seconds, score = (_object(record, name) for name in ("engine", "seconds", "score"))
    row |= {name: engine.get(name) for name in ENGINE_FIELDS}
    row |= {f"seconds_{phase}": seconds.get(phase) for phase in PHASES}
    row |= {name: score.get(name) for name in SCORE_FIELDS}
    for name in ("started_at", "finished_at"):
        row[name] = _time(record, name)
    return {**row, "record": json.dumps(record), "path": source.path}


def _comparison_row(source: Source, cell: Mapping[str, Any]) -> dict[str, Any]:
    _check_names(source, cell)
    one, verdict = _object(cell, "comparison"), _object(cell, "verdict")
    return {
        **verdict,
        **one,
        **cell,
        "verdict": verdict.get("name"),
        "stderr_unpaired": one.get("unpaired_stderr"),
        "path": source.path,
    }


def _verdict_row(source: Source, verdict: Mapping[str, Any]) -> dict[str, Any]:
    _check_names(source, verdict)
    return {
        **verdict,
        "family": list(_object(verdict, "family").get("family", [])),
        "missing": sorted(_object(verdict, "missing")),
        "judged_at": _time(verdict, "judged_at"),
        "path": source.path,
    }


def _model_row(source: Source, record: Mapping[str, Any]) -> dict[str, Any]:
    _, _, model = source.names()
    _check_names(source, {"model": model})
    deleted = bool(record.get("deleted"))
    return {"model": model, "digest": record.get("digest"), "deleted": deleted, "path": source.path}


def _benchmark_row(source: Source, record: Mapping[str, Any]) -> dict[str, Any]:
    _, dataset, _ = source.names()
    _check_names(source, {"dataset": dataset})
    return {"dataset": dataset, "fingerprint": record.get("fingerprint"), "path": source.path}


_ROWS: dict[str, Callable[[Source, Mapping[str, Any]], dict[str, Any]]] = {
    EVALUATIONS: _evaluation_row,
    "comparisons": _comparison_row,
    "verdicts": _verdict_row,
    "models": _model_row,
    "benchmarks": _benchmark_row,
}
_SCHEMAS = {EVALUATIONS: EVALUATION_SCHEMA, **DOCUMENT_SCHEMAS}


def _object(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name) or {}
    if not isinstance(value, dict):
        raise _DamageError(f"its {name} is not a JSON object")
    return value


def _time(record: Mapping[str, Any], name: str) -> datetime | None:
    value = record.get(name)
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _DamageError(f"its {name} is no time: {value!r}") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
