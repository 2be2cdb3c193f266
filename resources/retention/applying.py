"""A plan carried out: written down first, then done piece by piece, gone on with after a kill.

Every piece can be done twice. What it does to an evaluation is seen all at once or not at all: samples
without texts take the place of the others by one rename, then the record says so; of one that is deleted the
record goes first, and with it the evaluation. One process at a time does this in a store.
"""

import getpass
import hashlib
import json
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from resources.errors import BusyError
from resources.lease import Lease
from resources.records import SAMPLE_SCHEMA
from resources.results import ResultsStore
from resources.retention.policy import Action, Kind, Plan
from resources.retention.stock import LEASE, changed_at, files_of, kept_versions, referenced, take_stock
from resources.storage import parquet
from resources.writer import METRICS, RECORD, SAMPLES, content_digest

AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done: the audit records (the last is this plan's), the bytes freed, what was left alone."""

    audits: tuple[str, ...]
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
    on_progress: Callable[[Action], None] = lambda _: None,
) -> Applied:
    """Do what is planned, after what an earlier process was killed in the middle of.

    Each piece is looked at again before it is done: what has become an alias's version, or the ground of a
    verdict, or is held by a process since it was planned is left alone. `aliased` is that of `take_stock`.

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
        begun = {
            path: audit
            for path, audit in store.json_files(f"{AUDIT}/*-*.json")
            if audit.get("what") == "retention" and not audit["finished_at"]
        }
        audits = list(begun)
        there = {(c["kind"], c["folder"]) for audit in begun.values() for c in audit["changes"]}
        actions = tuple(a for a in planned.actions if (str(a.kind), a.folder) not in there)
        if actions:
            audit = _audit(replace(planned, actions=actions), who, why, clock())
            digest = hashlib.sha256(json.dumps(audit, sort_keys=True).encode()).hexdigest()
            audits.append(f"{AUDIT}/{datetime.fromisoformat(audit['at']):%Y%m%dT%H%M%S%f}-{digest[:8]}.json")
            store.put_json(audits[-1], audit)
        run = _Run(store, lease, aliased or {}, clock, on_progress)
        run.sweep(AUDIT)
        for path in audits:
            run.carry_out(path)
        return Applied(tuple(audits), run.freed, tuple(run.skipped))
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
        aliased: Mapping[str, str],
        clock: Callable[[], datetime],
        on_progress: Callable[[Action], None],
    ) -> None:
        self._store, self._lease, self._clock, self._on_progress = store, lease, clock, on_progress
        self._kept = kept_versions(store, aliased)
        self._referenced = referenced(store)
        self._needed_items: set[str] | None = None
        self._leftovers_days: int | None = None
        self.freed = 0
        self.skipped: list[str] = []

    def carry_out(self, path: str) -> None:
        """Do an audit record's changes and write down how each one came out."""
        audit = self._store.get_json(path)
        if audit is None:
            return
        self._leftovers_days = audit["policy"]["leftovers_days"]
        for change in audit["changes"]:
            names = ("kind", "folder", "why", "bytes", "bytes_before", "place")
            action = Action(**{name: change[name] for name in names})
            kind, place = Kind(action.kind), tuple(action.place) if action.place else None
            self._on_progress(action)
            with self._store.writing(action.folder):
                self._lease.check()
            try:
                change["bytes"] = self._do(kind, action, place, path, audit["at"])
                change["outcome"] = "done"
                self.freed += change["bytes"]
            except _SkippedError as reason:
                change["outcome"] = f"left alone: {reason}"
                change["bytes"] = 0
                self.skipped.append(f"{action.folder}: {reason}")
        self._store.put_json(path, {**audit, "finished_at": self._clock().isoformat()})

    def _do(self, kind: Kind, action: Action, place: Any, audit: str, at: str) -> int:
        """Returns the bytes freed. Raises _SkippedError."""
        if kind is Kind.ITEMS:
            return self._delete_items(action)
        if kind is Kind.PROGRESS:
            return self._delete_progress(action)
        if place[1] in self._kept:
            raise _SkippedError(f"kept meanwhile: {self._kept[place[1]]}")
        if kind is Kind.TEXTS:
            # Nobody writes in a committed evaluation; a lease there is of one that commits, or of a dead one.
            files = files_of(self._store, action.folder)
            held = any(name.startswith(LEASE) for name in files)
            with self._held(action.folder) if held else nullcontext():
                return self._remove_texts(action, audit, at)
        if place in self._referenced:
            raise _SkippedError("a verdict or comparison rests on it meanwhile")
        return self._delete_evaluation(action)

    def _remove_texts(self, action: Action, audit: str, at: str) -> int:
        store, folder = self._store, action.folder
        record = store.get_json(f"{folder}/{RECORD}")
        if record is None:
            raise _SkippedError("it is not there any more")
        retention = record.get("retention")
        if retention is None:
            try:
                table = without_texts(store.get_table(f"{folder}/{SAMPLES}"), record["task"])
            except (OSError, pa.ArrowException) as error:
                raise _SkippedError(f"its samples can't be read: {_one_line(error)}") from None
            content = parquet(table)
            store.put(f"{folder}/{SAMPLES}", content)
            metrics = store.get_table(f"{folder}/{METRICS}")
            retention = {
                "at": at,
                "audit": audit.rsplit("/", 1)[1],
                "why": action.why,
                "removed": removed_columns(record["task"]),
                "bytes": max(action.bytes_before - len(content), 0),
                "content_digest": content_digest(_with_all_columns(table), metrics),
            }
            # Last, and always anew: by the record the catalogue notices that the evaluation changed.
            store.put_json(f"{folder}/{RECORD}", {**record, "retention": retention})
        self.sweep(folder)
        return int(retention["bytes"])

    def _delete_evaluation(self, action: Action) -> int:
        if self._store.exists(action.folder):
            with self._held(action.folder):
                self._remove(action.folder, first=RECORD)
            self._remove_folder(action.folder)
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
            stock = take_stock(self._store)
            self._needed_items = {
                one.folder for one in stock.leftovers if one.kind is Kind.ITEMS and one.needed
            }
        if action.folder in self._needed_items:
            raise _SkippedError("an evaluation refers to them meanwhile")
        self._remove(action.folder)
        self._remove_folder(action.folder)
        return action.bytes

    def _is_old(self, files: Mapping[str, Mapping[str, Any]]) -> bool:
        days = (self._clock() - changed_at(files)) / timedelta(days=1)
        return self._leftovers_days is not None and days > 0 and days >= self._leftovers_days

    def _held(self, folder: str) -> AbstractContextManager[None]:
        return _Held(self._store, folder)

    def _remove(self, folder: str, first: str = "") -> None:
        """Remove all files of a folder, `first` before the others; one that is gone is no mistake."""
        names = [name for name in files_of(self._store, folder) if not name.startswith(LEASE)]
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


class _Held:
    """An evaluation's folder held as its writer holds it, so that no process begins to write in it."""

    def __init__(self, store: ResultsStore, folder: str) -> None:
        self._store, self._folder = store, folder

    def __enter__(self) -> None:
        store = self._store
        with store.writing(self._folder):
            try:
                self._lease = Lease.acquire(
                    store.filesystem,
                    f"{store.root}/{self._folder}/{LEASE}",
                    what=self._folder,
                    owner="retention",
                )
            except BusyError:
                raise _SkippedError("a process is at work on it") from None
            except FileNotFoundError:
                raise _SkippedError("it is not there any more") from None

    def __exit__(self, *_: object) -> None:
        self._lease.release()


def removed_columns(task: str) -> list[str]:
    """The columns that lose their content. A perplexity is made of its text's words and bytes: that stays."""
    columns = ["prompt", "choices", "incorrect_references", "output", "outputs.text"]
    return columns if task == "perplexity" else [*columns, "references"]


def without_texts(table: pa.Table, task: str) -> pa.Table:
    """Samples without what a model was shown and wrote; the same rows, columns and types.

    A prompt and an output are null. There are as many choices, each of them empty, as many outputs with an
    empty text, and no references (but of a perplexity, whose statistics need their length).
    """
    removed = removed_columns(task)
    for name in ("prompt", "output"):
        table = _replaced(table, name, lambda _: None)
    table = _replaced(table, "choices", lambda texts: texts and [""] * len(texts))
    for name in ("references", "incorrect_references"):
        if name in removed:
            table = _replaced(table, name, lambda texts: None if texts is None else [])
    return _replaced(table, "outputs", lambda outputs: outputs and [{**o, "text": ""} for o in outputs])


def _replaced(table: pa.Table, name: str, change: Callable[[Any], Any]) -> pa.Table:
    if name not in table.column_names:  # written before there were several outputs
        return table
    position = table.column_names.index(name)
    field = table.schema.field(position)
    values = [change(value) for value in table.column(position).to_pylist()]
    return table.set_column(position, field, pa.array(values, field.type))


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
