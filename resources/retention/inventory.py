"""What there is in a store, as `plan` wants to know it."""

from collections.abc import Mapping, Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from resources.errors import UserError
from resources.keys import key_of_segment
from resources.records import EvaluationRecord
from resources.results import ResultsStore, asked_fingerprints
from resources.retention.policy import Inventory, Kind, Leftover, Place, Plan, StoredEvaluation
from resources.retention.texts import text_bytes
from resources.writer import DELETED, RECORD, SAMPLES

LEASE = "lease.json"
OWNER = "retention"
"""Who holds the lease of a folder that is being tidied."""


def take_inventory(
    store: ResultsStore, aliased: Mapping[str, str] | None = None, now: datetime | None = None
) -> Inventory:
    """Everything in the store; of a record that can't be read nothing, nor of what it may refer to.

    `aliased` are the model keys that a registry's aliases point to, with the reason to keep each.
    """
    now = now or datetime.now(UTC)
    evaluations, leftovers = [], []
    referred: dict[str, set[str]] = {}
    unsure: set[str] = set()
    deleted: dict[str, datetime] = {}
    for folder, files in _folders(store, "evaluations", 3).items():
        dataset, model, evaluation = folder.split("/")[1:]
        try:
            record = store.evaluation(folder) if RECORD in files else None
        except UserError:
            unsure.add(dataset)
            continue
        if record is None:
            kind = Kind.DELETE if DELETED in files else Kind.PROGRESS
            if kind is Kind.PROGRESS:
                unsure.add(dataset)  # an evaluation that is being made may have begun with former items
            elif (moment := _deleted_at(store, f"{folder}/{DELETED}")) is not None:
                key = key_of_segment(model)
                deleted[key] = min(deleted.get(key, moment), moment)
            left = {name: entry for name, entry in files.items() if not is_kept(name)}
            if left:
                held = is_held(store, folder, files, now)
                leftovers.append(Leftover(kind, folder, _bytes(left), changed_at(left), held))
            continue
        referred.setdefault(dataset, set()).add(str(record.get("benchmark_fingerprint")))
        place = (key_of_segment(dataset), key_of_segment(model), evaluation)
        evaluations.append(_evaluation(place, folder, files, record, is_held(store, folder, files, now)))
    leftovers += _items(store, referred, unsure)
    return Inventory(
        tuple(evaluations), tuple(leftovers), kept_versions(store, aliased), referenced(store), deleted
    )


def kept_versions(store: ResultsStore, aliased: Mapping[str, str] | None = None) -> dict[str, str]:
    """The model keys that are kept in full whatever their age, with the reason.

    Besides what aliases point to now those of the last move of each alias: the version before is what a
    rollback goes back to.
    """
    kept: dict[str, str] = {}
    moves: dict[tuple[str, str], Mapping[str, Any]] = {}
    for path, move in store.json_files("promotions/*/*.json"):  # in the order of their times
        moves[key_of_segment(path.split("/")[1]), str(move.get("alias"))] = move
    for (name, alias), last in moves.items():
        for version in (last.get("from"), last.get("to")):
            if version:
                kept[f"{name}@{version}"] = f"the last move of {alias}"
    return {**kept, **(aliased or {})}


def referenced(store: ResultsStore) -> frozenset[Place]:
    """The evaluations that the latest comparisons and verdicts rest on."""
    cells = list(store.comparisons())
    for verdict in store.verdicts().values():
        cells += verdict.get("cells") or []
    found = set()
    for cell in cells:
        for model, evaluation in (
            (cell.get("model"), cell.get("candidate_evaluation")),
            (cell.get("baseline"), cell.get("baseline_evaluation")),
        ):
            if model and evaluation:
                found.add((str(cell["dataset"]), str(model), str(evaluation)))
    return frozenset(found)


def measured(planned: Plan, store: ResultsStore) -> Plan:
    """The plan with the bytes that removing texts frees."""
    actions = []
    for action in planned.actions:
        if action.kind is Kind.TEXTS:
            record = store.get_json(f"{action.folder}/{RECORD}") or {}
            freed = text_bytes(store, f"{action.folder}/{SAMPLES}", str(record.get("task")))
            action = replace(action, bytes=freed)
        actions.append(action)
    return replace(planned, actions=tuple(actions))


def entered_at(record: EvaluationRecord) -> datetime | None:
    """When an evaluation came into the store: a run of years ago may have been imported today."""
    imported = record.get("imported")
    at = imported.get("at") if isinstance(imported, dict) else None
    return _moment(at) or _moment(record.get("finished_at"))


def is_kept(name: str) -> bool:
    """Whether a file stays where an evaluation is deleted: what tells of it, and whoever holds the folder."""
    return name == DELETED or name.startswith(LEASE)


def _deleted_at(store: ResultsStore, path: str) -> datetime | None:
    """When a deleted evaluation had finished."""
    try:
        return _moment((store.get_json(path) or {}).get("finished_at"))
    except UserError:
        return None


def _evaluation(
    place: Place, folder: str, files: Mapping[str, Mapping[str, Any]], record: EvaluationRecord, held: bool
) -> StoredEvaluation:
    retention = record.get("retention")
    finished = _moment(record.get("finished_at")) or changed_at(files)
    return StoredEvaluation(
        place,
        folder,
        finished,
        _bytes(files),
        int(files.get(SAMPLES, {}).get("size") or 0),
        bool(retention),
        held,
        entered_at(record) or finished,
        float(record.get("cost") or 0.0),
        isinstance(retention, dict) and "content_digest" not in retention,
    )


def _items(store: ResultsStore, referred: Mapping[str, set[str]], unsure: Set[str]) -> list[Leftover]:
    """The items of benchmarks, those of now among them; `referred` are fingerprints by dataset."""
    found = []
    for folder, files in _folders(store, "benchmarks", 2).items():
        _, dataset, fingerprint = folder.split("/")
        current = store.benchmark(key_of_segment(dataset)) or {}
        needed = (
            current.get("fingerprint") in (None, fingerprint)  # nothing says that they are former ones
            or dataset in unsure
            or bool(referred.get(dataset, set()) & asked_fingerprints(fingerprint))
        )
        found.append(Leftover(Kind.ITEMS, folder, _bytes(files), changed_at(files), needed=needed))
    return found


def _folders(store: ResultsStore, top: str, depth: int) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The folders `depth` levels below `top`, each with all its files by their path in it."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path, entry in files_of(store, top).items():
        parts = path.split("/")
        if len(parts) > depth:
            found.setdefault("/".join([top, *parts[:depth]]), {})["/".join(parts[depth:])] = entry
    return found


def files_of(store: ResultsStore, folder: str) -> dict[str, Mapping[str, Any]]:
    """All files in a folder by their path in it, with what the listing says of them."""
    store.filesystem.invalidate_cache()
    try:
        listed = store.filesystem.find(f"{store.root}/{folder}", detail=True)
    except FileNotFoundError:
        return {}
    return {path[len(store.root) + len(folder) + 2 :]: entry for path, entry in listed.items()}


def is_held(store: ResultsStore, folder: str, files: Mapping[str, Mapping[str, Any]], now: datetime) -> bool:
    """Whether a process is at work in a folder: it writes beside its lease every few seconds.

    A lease that nobody has touched for a day was left by a process that is gone; whoever wants to write there
    still has to take it over. Retention's own was left by one that was killed: only one is at it at a time.
    """
    lease = {name: entry for name, entry in files.items() if name.startswith(LEASE)}
    if not lease or now - changed_at(lease) >= timedelta(days=1):
        return False
    try:
        holder = store.get_json(f"{folder}/{LEASE}")
    except UserError:
        return True
    return holder is not None and holder.get("owner") != OWNER


def _bytes(files: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(int(entry.get("size") or 0) for entry in files.values())


def changed_at(files: Mapping[str, Mapping[str, Any]]) -> datetime:
    """When the youngest of the files was written."""
    times = [_moment(entry.get("mtime") or entry.get("LastModified")) for entry in files.values()]
    return max(time or datetime.now(UTC) for time in times)


def _moment(value: Any) -> datetime | None:
    """A time as records (ISO 8601) and listings (seconds, or a datetime) have it."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
        found = datetime.fromtimestamp(found, UTC) if isinstance(found, (int, float)) else found
    except (ValueError, OverflowError, OSError):
        return None
    if not isinstance(found, datetime):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
