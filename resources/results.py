"""The results store: atomic commits of Parquet and JSON below one folder or object-store URL.

A file that others can see appears by atomic rename (local) or by a single put (object stores). An
evaluation exists if and only if its ``evaluation.json`` does, and that is written last; so a reader never
sees half of one and a killed writer leaves only progress parts, which the next writer of the same
fingerprint takes over.
"""

import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from resources.errors import UserError
from resources.keys import key_of_segment, path_segment
from resources.lease import Lease
from resources.records import METRIC_SCHEMA, SAMPLE_SCHEMA, MetricRow, Sample

RECORD = "evaluation.json"
_EVALUATION_ID = re.compile(r"(?P<fingerprint>[0-9a-f]{16})-(?P<attempt>\d+)")


@dataclass(frozen=True, slots=True)
class Cell:
    """One model version on one benchmark, with the fingerprint that its evaluation has today."""

    dataset: str
    model: str
    fingerprint: str


class AlreadyCommittedError(Exception):
    """The cell has a committed evaluation of this fingerprint; reuse it."""


@dataclass(frozen=True, slots=True)
class CurrentInputs:
    """What evaluations are made from now: model key -> digest, dataset key -> fingerprint."""

    digests: Mapping[str, str]
    fingerprints: Mapping[str, str]


class ResultsStore:
    """The store under `root`, a folder or an fsspec URL.

    Raises UserError where the store can't be read or written (read-only, disk full), naming the path.
    """

    def __init__(self, root: str) -> None:
        self.filesystem: fsspec.AbstractFileSystem
        self.filesystem, self.root = url_to_fs(root)
        protocols = self.filesystem.protocol
        self.scheme: str = protocols if isinstance(protocols, str) else protocols[0]
        self.is_local = self.scheme == "file"

    # -- model versions and benchmarks ---------------------------------------------------------

    def save_model_version(self, key: str, record: Mapping[str, Any]) -> None:
        """Record a fetched, verified and measured model version; the latest record of a key counts."""
        self._put_json(f"models/{path_segment(key)}.json", record)

    def model_version(self, key: str) -> dict[str, Any] | None:
        """The latest record of a model version, or None."""
        return self._get_json(f"models/{path_segment(key)}.json")

    def save_benchmark(
        self, dataset: str, fingerprint: str, items: pa.Table, record: Mapping[str, Any]
    ) -> None:
        """Store a benchmark's items under their fingerprint and make them the current ones."""
        folder = f"benchmarks/{path_segment(dataset)}"
        self._put_table(f"{folder}/{fingerprint}/items.parquet", items)
        self._put_json(f"{folder}/current.json", {**record, "fingerprint": fingerprint})

    def benchmark(self, dataset: str) -> dict[str, Any] | None:
        """The record of a benchmark's current items (with its ``fingerprint``), or None."""
        return self._get_json(f"benchmarks/{path_segment(dataset)}/current.json")

    def items(self, dataset: str, fingerprint: str) -> pa.Table:
        """The items of a benchmark as `save_benchmark` stored them."""
        return self._get_table(f"benchmarks/{path_segment(dataset)}/{fingerprint}/items.parquet")

    def current_inputs(self) -> "CurrentInputs":
        """The latest recorded digest of each model version and fingerprint of each benchmark."""
        return CurrentInputs(
            {
                key_of_segment(path.rsplit("/", 1)[1].removesuffix(".json")): record["digest"]
                for path, record in self._records_at("models/*.json")
            },
            {
                key_of_segment(path.rsplit("/", 2)[1]): record["fingerprint"]
                for path, record in self._records_at("benchmarks/*/current.json")
            },
        )

    # -- evaluations ------------------------------------------------------------------------------

    def committed(self, cell: Cell) -> dict[str, Any] | None:
        """The record of the cell's latest committed evaluation of the same fingerprint, or None."""
        for attempt in reversed(self._attempts(cell)):
            record = self._get_json(f"{self._folder(cell, attempt)}/{RECORD}")
            if record is not None:
                return record
        return None

    @contextmanager
    def writer(self, cell: Cell, *, force: bool = False, owner: str = "") -> "Iterator[EvaluationWriter]":
        """Hold the cell for one writer, on its unfinished evaluation if there is one.

        An evaluation that was begun but not committed is gone on with. With `force` a committed one is
        followed by a new attempt. Raises UserError while another process holds the cell, and
        AlreadyCommittedError where there is nothing to do.
        """
        attempts = self._attempts(cell)
        latest = attempts[-1] if attempts else 0
        if latest and self._exists(f"{self._folder(cell, latest)}/{RECORD}"):
            if not force:
                raise AlreadyCommittedError(str(cell))
            latest += 1
        folder = self._folder(cell, max(latest, 1))
        with self._writing(folder):
            self.filesystem.makedirs(f"{self.root}/{folder}/progress", exist_ok=True)
            lease = Lease.acquire(
                self.filesystem,
                f"{self.root}/{folder}/lease.json",
                what=f"{cell.model} on {cell.dataset}",
                owner=owner,
            )
        try:
            if self._exists(f"{folder}/{RECORD}"):  # committed while we waited for the lease
                raise AlreadyCommittedError(str(cell))
            yield EvaluationWriter(self, cell, folder)
        finally:
            lease.release()

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """``(folder, record)`` of every committed evaluation, in the order of their folders."""
        for path, record in self._records_at(f"evaluations/*/*/*/{RECORD}"):
            yield path.rsplit("/", 1)[0], record

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """All samples of a committed evaluation, in the order of their items."""
        cell = Cell(record["dataset"], record["model"], record["fingerprint"])
        attempt = int(record["evaluation_id"].rsplit("-", 1)[1])
        table = self._get_table(f"{self._folder(cell, attempt)}/samples.parquet")
        return [Sample.from_row(row) for row in table.to_pylist()]

    def _records_at(self, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
        self.filesystem.invalidate_cache()
        for path in sorted(self.filesystem.glob(f"{self.root}/{pattern}")):
            record = self._get_json(path[len(self.root) + 1 :])
            if record is not None:
                yield path, record

    def _folder(self, cell: Cell, attempt: int) -> str:
        return (
            f"evaluations/{path_segment(cell.dataset)}/{path_segment(cell.model)}/"
            f"{evaluation_id(cell, attempt)}"
        )

    def _attempts(self, cell: Cell) -> list[int]:
        parent = self._folder(cell, 1).rsplit("/", 1)[0]
        try:
            names = self.filesystem.ls(f"{self.root}/{parent}", detail=False, refresh=True)
        except FileNotFoundError:
            return []
        attempts = []
        for name in names:
            match = _EVALUATION_ID.fullmatch(name.rstrip("/").rsplit("/", 1)[1])
            if match and match["fingerprint"] == cell.fingerprint[:16]:
                attempts.append(int(match["attempt"]))
        return sorted(attempts)

    # -- files --------------------------------------------------------------------------------------

    def _exists(self, path: str) -> bool:
        return bool(self.filesystem.exists(f"{self.root}/{path}"))

    @contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"results store: can't write {self.root}/{path}: {error.strerror or error}; "
                "free some space or check the permissions of EVAL_STORE, then run it again: "
                "finished samples are kept"
            ) from error

    def _put(self, path: str, content: bytes) -> None:
        full = f"{self.root}/{path}"
        with self._writing(path):
            if not self.is_local:
                self.filesystem.pipe_file(full, content)
                return
            target = Path(full)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    def put_file(self, path: str, source: Path) -> None:
        """Put a local file at `path` below the root, atomically."""
        self._put(path, source.read_bytes())

    def _put_json(self, path: str, value: Mapping[str, Any]) -> None:
        self._put(path, json.dumps(value, indent=1, allow_nan=False, default=str).encode())

    def _get_json(self, path: str) -> dict[str, Any] | None:
        try:
            value = json.loads(self.filesystem.cat_file(f"{self.root}/{path}"))
        except FileNotFoundError:
            return None
        if not isinstance(value, dict):
            raise UserError(f"results store: {self.root}/{path} is not a JSON object; restore or remove it")
        return value

    def _put_table(self, path: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self._put(path, buffer.getvalue())

    def _get_table(self, path: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.filesystem.cat_file(f"{self.root}/{path}")))


class EvaluationWriter:
    """The one writer of an evaluation: progress parts first, the commit last (from `ResultsStore.writer`)."""

    def __init__(self, store: ResultsStore, cell: Cell, folder: str) -> None:
        self._store = store
        self._cell = cell
        self._folder = folder
        self._parts = len(self._part_names())

    @property
    def evaluation_id(self) -> str:
        return self._folder.rsplit("/", 1)[1]

    @property
    def path(self) -> str:
        """The evaluation's folder."""
        return f"{self._store.root}/{self._folder}"

    def finished(self) -> list[Sample]:
        """The samples that an earlier writer finished, each once; damaged parts are removed and left out."""
        samples: dict[str, Sample] = {}
        for name in self._part_names():
            content = self._store.filesystem.cat_file(name)
            if hashlib.sha256(content).hexdigest()[:16] != name.removesuffix(".parquet").rsplit("-", 1)[1]:
                self._store.filesystem.rm_file(name)
                continue
            for row in pq.read_table(io.BytesIO(content)).to_pylist():
                sample = Sample.from_row(row)
                samples[sample.sample_id] = sample
        return list(samples.values())

    def append(self, samples: Sequence[Sample]) -> None:
        """Add finished samples as one progress part, whose name holds the checksum of its content."""
        if not samples:
            return
        buffer = io.BytesIO()
        pq.write_table(_sample_table(samples), buffer, compression="zstd")
        checksum = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
        self._parts += 1
        self._store._put(
            f"{self._folder}/progress/part-{self._parts:06d}-{checksum}.parquet", buffer.getvalue()
        )

    def commit(
        self, samples: Sequence[Sample], metrics: Iterable[MetricRow], record: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write everything, the record last, and return the record; the progress parts are then removed."""
        identity = {
            "evaluation_id": self.evaluation_id,
            "dataset": self._cell.dataset,
            "model": self._cell.model,
        }
        whole = {**identity, "fingerprint": self._cell.fingerprint, **record}
        ordered = sorted(samples, key=lambda sample: sample.index)
        metric_rows = [
            {
                "metric": row.metric,
                "group": row.group,
                "value": row.estimate.value,
                "stderr": row.estimate.stderr,
                "ci_low": row.estimate.ci_low,
                "ci_high": row.estimate.ci_high,
                "n": row.estimate.n,
            }
            for row in metrics
        ]
        self._store._put_table(
            f"{self._folder}/samples.parquet", _with_identity(_sample_table(ordered), identity)
        )
        self._store._put_table(
            f"{self._folder}/metrics.parquet",
            _with_identity(pa.Table.from_pylist(metric_rows, schema=METRIC_SCHEMA), identity),
        )
        self._store._put_json(f"{self._folder}/{RECORD}", whole)
        self._store.filesystem.rm(f"{self._store.root}/{self._folder}/progress", recursive=True)
        return whole

    def _part_names(self) -> list[str]:
        folder = f"{self._store.root}/{self._folder}/progress"
        return sorted(self._store.filesystem.glob(f"{folder}/part-*.parquet"))


def evaluation_id(cell: Cell, attempt: int) -> str:
    """The id of a cell's n-th evaluation of one fingerprint, the same in whatever process resumes it."""
    return f"{cell.fingerprint[:16]}-{attempt}"


def _sample_table(samples: Sequence[Sample]) -> pa.Table:
    return pa.Table.from_pylist([sample.as_row() for sample in samples], schema=SAMPLE_SCHEMA)


def _with_identity(table: pa.Table, identity: Mapping[str, str]) -> pa.Table:
    for position, (name, value) in enumerate(identity.items()):
        column = pa.DictionaryArray.from_arrays(
            pa.array([0] * table.num_rows, pa.int32()), pa.array([value])
        ).cast(pa.string())
        table = table.add_column(position, pa.field(name, pa.string(), nullable=False), column)
    return table
