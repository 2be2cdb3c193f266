"""A plan carried out: written down first, then done piece by piece.

What it does to an evaluation is seen all at once or not at all. The record says that texts go before they go,
and by its last change how it ended; of an evaluation that is deleted a file says so, then the record goes,
and with it the evaluation. So what a process that was killed had begun is seen in the store itself: the next
plan finishes it, whatever its policy is, and takes nothing else over. One process at a time does this.
"""

import getpass
import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from resources.errors import BusyError, UserError
from resources.lease import Lease
from resources.records import SAMPLE_SCHEMA, EvaluationRecord
from resources.results import ResultsStore
from resources.retention.inventory import (
    LEASE,
    OWNER,
    changed_at,
    entered_at,
    files_of,
    is_kept,
    kept_versions,
    referenced,
    take_inventory,
)
from resources.retention.policy import Action, Kind, Plan
from resources.retention.texts import removed_columns, without_texts
from resources.storage import parquet
from resources.writer import DELETED, METRICS, RECORD, SAMPLES, content_digest

AUDIT = "audit"
_WRITE_SECONDS = 1.0
"""How often outcomes are written down while it goes on."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done: the audit record, if there was anything to do, the bytes freed, what was left alone."""

    audit: str | None
    bytes: int
    skipped: tuple[str, ...]


def apply(
    planned: Plan,
    store: ResultsStore,
    *,
    why: str,
    aliased: Mapping[str, str] | None = None,
    who: str | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Applied:
    """Do what is planned.

    Each piece is looked at again before it is done: what has become an alias's version, or the ground of a
    verdict, was evaluated again or is held by a process since it was planned is left alone. `aliased` is that
    of `take_inventory`. An audit record that an earlier process didn't finish is closed: what of it is not
    done stays so, unless it is in this plan.

    Raises BusyError while another process does the same, UserError where the store can't be written.
    """
    who = who or f"{getpass.getuser()}@{socket.gethostname()}"
    with store.writing(AUDIT):
        store.filesystem.makedirs(f"{store.root}/{AUDIT}", exist_ok=True)
        lease = Lease.acquire(
            store.filesystem,
            f"{store.root}/{AUDIT}/{LEASE}",
            what=store.root,
            owner=who,
            doing="is being tidied",
        )
    try:
        run = _Run(store, lease, planned.policy.leftovers_days, aliased or {}, clock)
        run.close_interrupted()
        run.sweep(AUDIT)
        if not planned.actions:
            return Applied(None, 0, ())
        audit = _audit(planned, who, why, clock())
        digest = hashlib.sha256(json.dumps(audit, sort_keys=True).encode()).hexdigest()
        path = f"{AUDIT}/{datetime.fromisoformat(audit['at']):%Y%m%dT%H%M%S%f}-{digest[:8]}.json"
        store.put_json(path, audit)
        run.carry_out(planned, path, audit)
        return Applied(path, run.freed, tuple(run.skipped))
    finally:
        lease.release()


def _audit(planned: Plan, who: str, why: str, at: datetime) -> dict[str, Any]:
    return {
        "what": "retention",
        "who": who,
        "why": why,
        "at": at.isoformat(),
        "policy": planned.policy.model_dump(),
        "changes": [
            {**asdict(action), "kind": str(action.kind), "outcome": None} for action in planned.actions
        ],
        "finished_at": None,
    }


class _Run:
    """One process's work, under the store's lease."""

    def __init__(
        self,
        store: ResultsStore,
        lease: Lease,
        leftovers_days: int | None,
        aliased: Mapping[str, str],
        clock: Callable[[], datetime],
    ) -> None:
        self._store, self._lease, self._leftovers_days, self._clock = store, lease, leftovers_days, clock
        self._kept = kept_versions(store, aliased)
        self._referenced = referenced(store)
        self._needed_items: set[str] | None = None
        self.freed = 0
        self.skipped: list[str] = []

    def close_interrupted(self) -> None:
        """Write into the records of processes that were killed how far they came."""
        for path, audit in self._store.json_files(f"{AUDIT}/*-*.json"):
            if audit.get("what") != "retention" or audit["finished_at"]:
                continue
            changes = [
                change if change["outcome"] else self._closed(change, path) for change in audit["changes"]
            ]
            at = self._clock().isoformat()
            self._store.put_json(path, {**audit, "changes": changes, "finished_at": at, "interrupted": True})

    def carry_out(self, planned: Plan, path: str, audit: dict[str, Any]) -> None:
        """Do a plan's actions, and write down in its audit record how each one came out."""
        written = time.monotonic()
        for action, change in zip(planned.actions, audit["changes"], strict=True):
            with self._store.writing(action.folder):
                self._lease.check()
            try:
                change["bytes"] = self._do(action, path, audit["at"])
                change["outcome"] = "done"
                self.freed += change["bytes"]
            except _SkippedError as reason:
                change["outcome"], change["bytes"] = f"left alone: {reason}", 0
                self.skipped.append(f"{action.folder}: {reason}")
            if time.monotonic() - written >= _WRITE_SECONDS:
                self._store.put_json(path, audit)
                written = time.monotonic()
        self._store.put_json(path, {**audit, "finished_at": self._clock().isoformat()})

    def _closed(self, change: Mapping[str, Any], path: str) -> dict[str, Any]:
        """A change of an interrupted run with its outcome, as the store shows it."""
        folder = change["folder"]
        files = files_of(self._store, folder)
        done = not [name for name in files if not is_kept(name)]
        if any(name.startswith(LEASE) for name in files):
            with suppress(_SkippedError), self._held(folder):
                pass  # the dead process's lease is taken over and given back
        if done:
            self._remove_folder(f"{folder}/progress")
            self._remove_folder(folder)
        if change["kind"] == Kind.TEXTS:
            with suppress(_SkippedError):
                record = self._record(folder)
                retention = {} if record is None else record.get("retention") or {}
                done = "content_digest" in retention and retention["audit"] == path.rsplit("/", 1)[1]
        if done:
            return {**change, "outcome": "done"}
        return {**change, "outcome": "not done: it was interrupted", "bytes": 0}

    def _record(self, folder: str) -> EvaluationRecord | None:
        """An evaluation's record, None without one. Raises _SkippedError for one that can't be read."""
        try:
            return self._store.evaluation(folder)
        except UserError as error:
            raise _SkippedError(_one_line(error)) from None

    def _do(self, action: Action, audit: str, at: str) -> int:
        """Returns the bytes freed. Raises _SkippedError."""
        if action.kind is Kind.ITEMS:
            return self._delete_items(action)
        if action.kind is Kind.PROGRESS:
            return self._delete_progress(action)
        if action.place is None:
            return self._finish_deleting(action)
        record = self._record(action.folder)
        if record is None:
            raise _SkippedError("it is not there any more")
        entered = entered_at(record)
        if entered is not None and entered.isoformat() != action.entered_at:
            raise _SkippedError("it was evaluated again meanwhile")
        if action.place[1] in self._kept:
            raise _SkippedError(f"kept meanwhile: {self._kept[action.place[1]]}")
        about = {"at": at, "audit": audit.rsplit("/", 1)[1], "why": action.why}
        if action.kind is Kind.DELETE:
            if action.place in self._referenced:
                raise _SkippedError("a verdict or comparison rests on it meanwhile")
            return self._delete_evaluation(action, record, about)
        # Nobody writes in a committed evaluation; a lease there is of one that commits, or of a dead one.
        held = any(name.startswith(LEASE) for name in files_of(self._store, action.folder))
        with self._held(action.folder) if held else nullcontext():
            return self._remove_texts(action, record, about)

    def _remove_texts(self, action: Action, record: EvaluationRecord, about: Mapping[str, Any]) -> int:
        store, folder = self._store, action.folder
        retention = record.get("retention") or {}
        if "content_digest" not in retention:
            try:
                table = without_texts(store.get_table(f"{folder}/{SAMPLES}"), record["task"])
                digest = content_digest(_with_all_columns(table), store.get_table(f"{folder}/{METRICS}"))
            except (OSError, KeyError, pa.ArrowException) as error:
                raise _SkippedError(f"it can't be read: {_one_line(error)}") from None
            if not retention:
                removed = removed_columns(record["task"])
                retention = {**about, "removed": removed, "bytes_before": action.bytes_before}
                store.put_json(f"{folder}/{RECORD}", {**record, "retention": retention})
            content = parquet(table)
            store.put(f"{folder}/{SAMPLES}", content)
            freed = max(retention["bytes_before"] - len(content), 0)
            retention = {name: value for name, value in retention.items() if name != "bytes_before"}
            retention |= {"audit": about["audit"], "bytes": freed, "content_digest": digest}
            # Anew: by its record the catalogue notices that an evaluation changed.
            store.put_json(f"{folder}/{RECORD}", {**record, "retention": retention})
        self.sweep(folder)
        return int(retention["bytes"])

    def _delete_evaluation(self, action: Action, record: EvaluationRecord, about: Mapping[str, Any]) -> int:
        told = {name: record.get(name) for name in ("dataset", "model", "fingerprint", "finished_at")}
        with self._held(action.folder):
            self._store.put_json(f"{action.folder}/{DELETED}", {**about, **told})
            self._remove(action.folder, first=RECORD)
        self._remove_folder(f"{action.folder}/progress")
        return action.bytes

    def _finish_deleting(self, action: Action) -> int:
        with self._held(action.folder):
            if DELETED not in files_of(self._store, action.folder):
                raise _SkippedError("somebody evaluates it again")
            self._remove(action.folder)
        self._remove_folder(f"{action.folder}/progress")
        return action.bytes

    def _delete_progress(self, action: Action) -> int:
        folder = action.folder
        if files_of(self._store, folder):
            with self._held(folder):
                files = {n: e for n, e in files_of(self._store, folder).items() if not n.startswith(LEASE)}
                if RECORD in files:
                    raise _SkippedError("it was finished meanwhile")
                if files and not self._is_old(files):
                    raise _SkippedError("somebody went on with it meanwhile")
                self._remove(folder)
        self._remove_folder(f"{folder}/progress")
        self._remove_folder(folder)
        return action.bytes

    def _delete_items(self, action: Action) -> int:
        if self._needed_items is None:
            there = take_inventory(self._store)
            self._needed_items = {
                one.folder for one in there.leftovers if one.kind is Kind.ITEMS and one.needed
            }
        if action.folder in self._needed_items:
            raise _SkippedError("an evaluation refers to them meanwhile")
        self._remove(action.folder)
        self._remove_folder(action.folder)
        return action.bytes

    def _is_old(self, files: Mapping[str, Mapping[str, Any]]) -> bool:
        days = (self._clock() - changed_at(files)) / timedelta(days=1)
        return self._leftovers_days is not None and days > 0 and days >= self._leftovers_days

    @contextmanager
    def _held(self, folder: str) -> Iterator[None]:
        """An evaluation's folder held as its writer holds it, so that no process begins to write in it."""
        path = f"{self._store.root}/{folder}/{LEASE}"
        with self._store.writing(folder):
            try:
                lease = Lease.acquire(self._store.filesystem, path, what=folder, owner=OWNER)
            except BusyError:
                raise _SkippedError("a process is at work on it") from None
            except FileNotFoundError:
                raise _SkippedError("it is not there any more") from None
        try:
            yield
        finally:
            lease.release()

    def _remove(self, folder: str, first: str = "") -> None:
        """Remove a folder's files, `first` before the others; one that is gone is no mistake."""
        names = [name for name in files_of(self._store, folder) if not is_kept(name)]
        with self._store.writing(folder):
            for name in sorted(names, key=lambda name: (name != first, name)):
                with suppress(FileNotFoundError):
                    self._store.filesystem.rm_file(f"{self._store.root}/{folder}/{name}")

    def sweep(self, folder: str) -> None:
        """Remove what a process that was killed while it put a file in its place left beside it."""
        for name in files_of(self._store, folder):
            if name.startswith(".") and name.endswith(".tmp"):
                with suppress(FileNotFoundError):
                    self._store.filesystem.rm_file(f"{self._store.root}/{folder}/{name}")

    def _remove_folder(self, folder: str) -> None:
        """Remove a folder if it is empty; an object store has none."""
        with suppress(OSError):
            self._store.filesystem.rmdir(f"{self._store.root}/{folder}")


class _SkippedError(Exception):
    """Why something that was planned is not done."""


def _with_all_columns(table: pa.Table) -> pa.Table:
    """For the digest: with the columns that earlier versions didn't write."""
    for field in SAMPLE_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def last_audits(store: ResultsStore, count: int = 20) -> list[dict[str, Any]]:
    """The latest audit records, newest first."""
    found = [audit for _, audit in store.json_files(f"{AUDIT}/*-*.json")]
    return found[::-1][:count]


def audit_lines(audit: Mapping[str, Any]) -> list[str]:
    """An audit record as people read it: a line a change."""
    return [
        f"{audit['at']} {audit['who']} {change['kind']} {change['folder']} {change['bytes']:,} bytes: "
        f"{change['why']} ({audit['why']}): {change['outcome'] or 'not done yet'}"
        for change in audit["changes"]
    ]
