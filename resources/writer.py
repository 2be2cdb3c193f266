"""The one writer of an evaluation: progress parts first, the commit last.

What an evaluation's folder holds while it is being made: ``runs.json`` (which runs have worked on it and how
each but the last ended), ``progress/part-*.parquet`` and the lease. Once it is committed: its record, samples
and metrics, and nothing else.
"""

import hashlib
import io
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resources.lease import Lease
from resources.records import METRIC_SCHEMA, SAMPLE_SCHEMA, EvaluationRecord, Findings, MetricRow, Sample
from resources.storage import Storage, parquet

RECORD = "evaluation.json"
SAMPLES = "samples.parquet"
METRICS = "metrics.parquet"
COMMITTED = {RECORD, SAMPLES, METRICS}
"""The files of a committed evaluation."""
DELETED = "deleted.json"
"""What is left of an evaluation that retention has deleted, until somebody evaluates the cell again."""

_RUNS = "runs.json"
_DAMAGED = ".damaged"


@dataclass(frozen=True, slots=True)
class Cell:
    """One model version on one benchmark, with the fingerprint that its evaluation has today."""

    dataset: str
    model: str
    fingerprint: str


class EvaluationWriter:
    """Holds an evaluation's folder (from `ResultsStore.writer`).

    Every method that writes raises UserError where the store refuses it, or where another process has taken
    this one for dead and gone on in its place.
    """

    def __init__(self, storage: Storage, cell: Cell, folder: str, lease: Lease, owner: str) -> None:
        self._storage = storage
        self._cell = cell
        self._folder = folder
        self._lease = lease
        self._parts = len(self._paths("part-*.parquet"))
        self._runs: list[dict[str, Any]] = (storage.get_json(f"{folder}/{_RUNS}") or {"runs": []})["runs"]
        self._this: dict[str, Any] = {
            "run_id": owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": datetime.now(UTC).isoformat(),
            "ended": None,
        }

    @property
    def evaluation_id(self) -> str:
        return self._folder.rsplit("/", 1)[1]

    @property
    def path(self) -> str:
        """The evaluation's folder."""
        return f"{self._storage.root}/{self._folder}"

    @property
    def interruptions(self) -> int:
        """Earlier runs of this evaluation; none of them got as far as its commit."""
        return len(self._runs)

    def finished(self) -> tuple[list[Sample], list[str]]:
        """The samples that earlier runs finished, each once, and the names of all damaged parts.

        A damaged part (its name holds the checksum of its content) is put aside: its samples aren't finished.
        """
        samples: dict[str, Sample] = {}
        for path in self._paths("part-*.parquet"):
            content = self._storage.filesystem.cat_file(f"{self._storage.root}/{path}")
            if _checksum(content) != path.removesuffix(".parquet").rsplit("-", 1)[1]:
                self._storage.put(path + _DAMAGED, content)
                with self._storage.writing(path):
                    self._storage.filesystem.rm_file(f"{self._storage.root}/{path}")
                continue
            rows = pq.read_table(io.BytesIO(content)).to_pylist()
            samples.update((row["sample_id"], Sample.from_row(row)) for row in rows)
        damaged = [path.rsplit("/", 1)[1].removesuffix(_DAMAGED) for path in self._paths(f"*{_DAMAGED}")]
        return list(samples.values()), damaged

    def begin(self) -> None:
        """Note that this run works on the evaluation."""
        self._put_runs()

    def append(self, samples: Sequence[Sample]) -> None:
        """Add finished samples as one progress part, whose name holds the checksum of its content."""
        if not samples:
            return
        content = parquet(_sample_table(samples))
        self._parts += 1
        self._put(f"progress/part-{self._parts:06d}-{_checksum(content)}.parquet", content)

    def end(self, reason: str, samples: int) -> None:
        """Note that this run ends without a commit, why, and how many samples are kept."""
        if self._storage.exists(f"{self._folder}/{RECORD}"):
            return
        self._this["ended"] = {
            "at": datetime.now(UTC).isoformat(),
            "reason": reason,
            "samples": samples,
        }
        self._put_runs()

    def commit(
        self, samples: Sequence[Sample], metrics: Iterable[MetricRow], findings: Findings
    ) -> EvaluationRecord:
        """Write everything, the record last, and return the record; the progress is then removed."""
        sample_table = _sample_table(sorted(samples, key=lambda sample: sample.index))
        metric_table = _metric_table(metrics)
        record: EvaluationRecord = {
            "evaluation_id": self.evaluation_id,
            "dataset": self._cell.dataset,
            "model": self._cell.model,
            "fingerprint": self._cell.fingerprint,
            "content_digest": content_digest(sample_table, metric_table),
            **findings,
        }
        identity = {
            "evaluation_id": record["evaluation_id"],
            "dataset": record["dataset"],
            "model": record["model"],
        }
        self._put(SAMPLES, parquet(_with_identity(sample_table, identity)))
        self._put(METRICS, parquet(_with_identity(metric_table, identity)))
        content = json.dumps(record, indent=1, allow_nan=False, default=str).encode()
        with self._storage.writing(f"{self._folder}/{RECORD}"):
            self._lease.check()
        self._storage.put_new(f"{self._folder}/{RECORD}", content)
        self._storage.keep_only(self._folder, {*COMMITTED, self._lease.name})
        return record

    def _put_runs(self) -> None:
        self._put(_RUNS, json.dumps({"runs": [*self._runs, self._this]}, indent=1).encode())

    def _put(self, path: str, content: bytes) -> None:
        with self._storage.writing(f"{self._folder}/{path}"):
            self._lease.check()
        self._storage.put(f"{self._folder}/{path}", content)

    def _paths(self, pattern: str) -> list[str]:
        return self._storage.matching(f"{self._folder}/progress/{pattern}")


def content_digest(samples: pa.Table, metrics: pa.Table) -> str:
    """SHA-256 over what an evaluation found: its samples in the order of their items, then its metrics.

    One line of JSON a row, keys sorted, floats as the shortest text that reads back as the same number. The
    columns that name the evaluation are left out: one that was killed and gone on with, or repeated with
    force, has the digest of an undisturbed one.
    """
    digest = hashlib.sha256()
    for table, schema in ((samples, SAMPLE_SCHEMA), (metrics, METRIC_SCHEMA)):
        for row in table.select(schema.names).to_pylist():
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _sample_table(samples: Sequence[Sample]) -> pa.Table:
    return pa.Table.from_pylist([sample.as_row() for sample in samples], schema=SAMPLE_SCHEMA)


def _metric_table(metrics: Iterable[MetricRow]) -> pa.Table:
    return pa.Table.from_pylist([row.as_row() for row in metrics], schema=METRIC_SCHEMA)


def _with_identity(table: pa.Table, identity: Mapping[str, str]) -> pa.Table:
    for position, (name, value) in enumerate(identity.items()):
        column = pa.DictionaryArray.from_arrays(
            pa.array([0] * table.num_rows, pa.int32()), pa.array([value])
        ).cast(pa.string())
        table = table.add_column(position, pa.field(name, pa.string(), nullable=False), column)
    return table
