"""The results store: atomic commits of Parquet and JSON below one folder or object-store URL.

A file that others can see appears by atomic rename (local) or by a single put (object stores). An
evaluation exists if and only if its ``evaluation.json`` does, and that is written last; so a reader never
sees half of one and a killed writer leaves only progress parts, which the next writer of the same
fingerprint takes over (`resources.writer`).
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import pyarrow as pa

from resources.errors import UserError
from resources.keys import key_of_segment, path_segment
from resources.lease import Lease
from resources.records import EvaluationRecord, MetricRow, Sample
from resources.storage import Storage
from resources.writer import COMMITTED, DELETED, METRICS, RECORD, SAMPLES, Cell, EvaluationWriter

__all__ = [
    "RECORD",
    "AlreadyCommittedError",
    "Cell",
    "EvaluationWriter",
    "ResultsStore",
    "asked_fingerprints",
    "chat_fingerprint",
    "evaluation_id",
]

_EVALUATION_ID = re.compile(r"(?P<fingerprint>[0-9a-f]{16})-(?P<attempt>\d+)")


class AlreadyCommittedError(Exception):
    """The cell has a committed evaluation of this fingerprint; reuse it."""


class ResultsStore(Storage):
    """The store under `root`, a folder or an fsspec URL.

    Raises UserError where the store can't be read or written (read-only, disk full), naming the path.
    """

    # -- model versions and benchmarks ---------------------------------------------------------

    def save_model_version(self, key: str, record: Mapping[str, Any]) -> None:
        """Record a fetched, verified and measured model version; the latest record of a key counts."""
        self.put_json(f"models/{path_segment(key)}.json", record)

    def model_version(self, key: str) -> dict[str, Any] | None:
        """The latest record of a model version, or None."""
        return self.get_json(f"models/{path_segment(key)}.json")

    def model_versions(self) -> dict[str, dict[str, Any]]:
        """The latest record of every model version, by key."""
        return {
            key_of_segment(path.rsplit("/", 1)[1].removesuffix(".json")): record
            for path, record in self.json_files("models/*.json")
        }

    def save_benchmark(
        self, dataset: str, fingerprint: str, items: pa.Table, record: Mapping[str, Any]
    ) -> None:
        """Store a benchmark's items under their fingerprint and make them the current ones."""
        folder = f"benchmarks/{path_segment(dataset)}"
        self.put_table(f"{folder}/{fingerprint}/items.parquet", items)
        self.put_json(f"{folder}/current.json", {**record, "fingerprint": fingerprint})

    def benchmark(self, dataset: str) -> dict[str, Any] | None:
        """The record of a benchmark's current items (with its ``fingerprint``), or None."""
        return self.get_json(f"benchmarks/{path_segment(dataset)}/current.json")

    def items(self, dataset: str, fingerprint: str) -> pa.Table:
        """The items of a benchmark as `save_benchmark` stored them."""
        return self.get_table(f"benchmarks/{path_segment(dataset)}/{fingerprint}/items.parquet")

    # -- verdicts ---------------------------------------------------------------------------------

    def save_verdict(self, key: str, verdict: Mapping[str, Any]) -> None:
        """Record the verdict on a model version; the latest counts, earlier ones are kept beside it."""
        folder = f"verdicts/{path_segment(key)}"
        self.put_json(f"{folder}/{verdict['verdict_id']}.json", verdict)
        self.put_json(f"{folder}/latest.json", verdict)

    def verdicts(self) -> dict[str, dict[str, Any]]:
        """The latest verdict on every model version that was judged, by key."""
        return {
            key_of_segment(path.rsplit("/", 2)[1]): verdict
            for path, verdict in self.json_files("verdicts/*/latest.json")
        }

    def save_comparison(self, dataset: str, key: str, comparison: Mapping[str, Any]) -> None:
        """Record how a cell compares with its baseline's; the latest comparison of a cell counts."""
        self.put_json(f"comparisons/{path_segment(dataset)}/{path_segment(key)}.json", comparison)

    def comparisons(self) -> list[dict[str, Any]]:
        """The latest comparison of every cell that has one."""
        return [comparison for _, comparison in self.json_files("comparisons/*/*.json")]

    def save_promotion(self, name: str, promotion: Mapping[str, Any]) -> None:
        """Add a line to a model's history of alias moves; `promotion` has a sortable ``promotion_id``."""
        self.put_json(f"promotions/{path_segment(name)}/{promotion['promotion_id']}.json", promotion)

    def promotions(self, name: str) -> list[dict[str, Any]]:
        """Who or what moved a model's alias, when, from where to where and why; oldest first."""
        return [entry for _, entry in self.json_files(f"promotions/{path_segment(name)}/*.json")]

    def note_given_up(self, record: Mapping[str, Any]) -> bool:
        """Record that a task is given up (``work, model, dataset, fingerprint``); False if it was before."""
        parts = (
            record["work"],
            record["model"] or "-",
            record["dataset"] or "-",
            record["fingerprint"] or "-",
        )
        path = f"given_up/{'/'.join(path_segment(part) for part in parts)}.json"
        if self.exists(path):
            return False
        self.put_json(path, record)
        return True

    def forget_given_up(self, key: str, datasets: Collection[str] = ()) -> None:
        """Forget what was given up of a model version (on these datasets, if any) or of a benchmark.

        Should it be given up again, it is told.
        """
        for path, record in self.json_files("given_up/*/*/*/*.json"):
            of_key = key == (record["model"] or record["dataset"])
            if of_key and (not datasets or record["dataset"] in datasets):
                self.filesystem.rm_file(f"{self.root}/{path}")

    # -- evaluations ------------------------------------------------------------------------------

    def evaluation(self, folder: str) -> EvaluationRecord | None:
        """The record of the committed evaluation in a folder of the store, or None without one."""
        return cast(EvaluationRecord | None, self.get_json(f"{folder}/{RECORD}"))

    def committed(self, cell: Cell) -> EvaluationRecord | None:
        """The record of the cell's latest committed evaluation of the same fingerprint, or None."""
        for attempt in reversed(self._attempts(cell)):
            record = self.evaluation(self._folder(cell, attempt))
            if record is not None:
                return record
        return None

    def was_deleted(self, cell: Cell) -> bool:
        """Whether retention has deleted an evaluation of the cell, and nobody has begun another one since."""
        return any(
            self.exists(f"{self._folder(cell, attempt)}/{DELETED}") for attempt in self._attempts(cell)
        )

    def evaluated(self, dataset: str) -> set[tuple[str, str]]:
        """``(model, first digits of the fingerprint)`` of a benchmark's evaluations, from one listing.

        Those are the ones that `committed` or `was_deleted` would find, cell by cell.
        """
        found = set()
        for path in self.listing(f"evaluations/{path_segment(dataset)}/*/*/*"):
            _, _, model, attempt, file = path.split("/")
            match = _EVALUATION_ID.fullmatch(attempt)
            if match and file in (RECORD, DELETED):
                found.add((key_of_segment(model), match["fingerprint"]))
        return found

    @contextmanager
    def writer(self, cell: Cell, *, force: bool = False, owner: str = "") -> "Iterator[EvaluationWriter]":
        """Hold the cell for one writer, on its unfinished evaluation if there is one.

        An evaluation that was begun but not committed is gone on with. With `force` a committed one is
        followed by a new attempt. Raises UserError while another process holds the cell, and
        AlreadyCommittedError where there is nothing to do.
        """
        attempts = self._attempts(cell)
        latest = attempts[-1] if attempts else 0
        if latest and self.exists(f"{self._folder(cell, latest)}/{RECORD}"):
            if not force:
                raise AlreadyCommittedError(str(cell))
            latest += 1
        folder = self._folder(cell, max(latest, 1))
        with self.writing(folder):
            self.filesystem.makedirs(f"{self.root}/{folder}/progress", exist_ok=True)
            lease = Lease.acquire(
                self.filesystem,
                f"{self.root}/{folder}/lease.json",
                what=f"{cell.model} on {cell.dataset}",
                owner=owner,
            )
        try:
            if self.exists(f"{folder}/{RECORD}"):  # committed while we waited for the lease
                raise AlreadyCommittedError(str(cell))
            with suppress(FileNotFoundError):
                self.filesystem.rm_file(f"{self.root}/{folder}/{DELETED}")
            yield EvaluationWriter(self, cell, folder, lease, owner)
        finally:
            lease.release()

    def tidy(self, record: EvaluationRecord) -> None:
        """Remove what a process left that was killed between an evaluation's commit and its end."""
        self.keep_only(self._folder_of(record), COMMITTED)

    def evaluations_of(self, model: str, dataset: str = "*") -> Iterator[EvaluationRecord]:
        """The committed evaluations of a model version, in any order.

        Lists the folders of that model only: a walk over everything takes seconds in a large store.
        """
        for folder in self.matching(f"evaluations/{dataset}/{path_segment(model)}"):
            for _, record in self.json_files(f"{folder}/*/{RECORD}"):
                yield cast(EvaluationRecord, record)

    def samples(self, record: EvaluationRecord) -> list[Sample]:
        """All samples of a committed evaluation, in the order of their items."""
        try:
            table = self.get_table(f"{self._folder_of(record)}/{SAMPLES}")
        except FileNotFoundError:
            raise UserError(
                f"{record['model']} on {record['dataset']}: evaluation {record['evaluation_id']} is gone "
                "(deleted by retention?); evaluate it again"
            ) from None
        return [Sample.from_row(row) for row in table.to_pylist()]

    def metrics(self, record: EvaluationRecord) -> list[MetricRow]:
        """All metrics of a committed evaluation: those of the whole first, then those of its groups."""
        table = self.get_table(f"{self._folder_of(record)}/{METRICS}")
        return [MetricRow.from_row(row) for row in table.to_pylist()]

    def _folder(self, cell: Cell, attempt: int) -> str:
        return (
            f"evaluations/{path_segment(cell.dataset)}/{path_segment(cell.model)}/"
            f"{evaluation_id(cell, attempt)}"
        )

    def _folder_of(self, record: EvaluationRecord) -> str:
        cell = Cell(record["dataset"], record["model"], record["fingerprint"])
        return self._folder(cell, int(record["evaluation_id"].rsplit("-", 1)[1]))

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


def chat_fingerprint(fingerprint: str, chat: bool) -> str:
    """The fingerprint of a benchmark's items where a tracked model's entry says whether it is a chat."""
    return hashlib.sha256(f"{fingerprint} chat={chat}".encode()).hexdigest()


def asked_fingerprints(fingerprint: str) -> set[str]:
    """All fingerprints by which evaluations may name a benchmark's stored items."""
    return {fingerprint, chat_fingerprint(fingerprint, True), chat_fingerprint(fingerprint, False)}


def evaluation_id(cell: Cell, attempt: int) -> str:
    """The id of a cell's n-th evaluation of one fingerprint, the same in whatever process resumes it."""
    return f"{cell.fingerprint[:16]}-{attempt}"
