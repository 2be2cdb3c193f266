"""What there is in a store, as `plan` wants to know it."""

from collections.abc import Mapping, Set
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq

from resources.errors import UserError
from resources.keys import key_of_segment
from resources.results import ResultsStore, asked_fingerprints
from resources.retention.policy import Inventory, Kind, Leftover, Place, Plan, StoredEvaluation
from resources.writer import RECORD, SAMPLES

LEASE = "lease.json"
TEXT_COLUMNS = ("prompt", "choices", "references", "incorrect_references", "output", "outputs")
"""The columns of samples that hold texts."""


def take_stock(
    store: ResultsStore, aliased: Mapping[str, str] | None = None, now: datetime | None = None
) -> Inventory:
    """Everything in the store; of a record that can't be read nothing, nor of what it may refer to.

    `aliased` are the model keys that a registry's aliases point to, with the reason to keep each.
    """
    now = now or datetime.now(UTC)
    evaluations, leftovers = [], []
    referred: dict[str, set[str]] = {}
    unsure: set[str] = set()
    for folder, files in _folders(store, "evaluations", 3).items():
        dataset, model, evaluation = folder.split("/")[1:]
        try:
            record = store.get_json(f"{folder}/{RECORD}") if RECORD in files else None
        except UserError:
            unsure.add(dataset)
            continue
        if record is None:
            unsure.add(dataset)  # an evaluation that is being made may have begun with former items
            if any(not name.startswith(LEASE) for name in files):
                leftovers.append(
                    Leftover(Kind.PROGRESS, folder, _bytes(files), changed_at(files), is_held(files, now))
                )
            continue
        referred.setdefault(dataset, set()).add(str(record.get("benchmark_fingerprint")))
        place = (key_of_segment(dataset), key_of_segment(model), evaluation)
        evaluations.append(_evaluation(place, folder, files, record, now))
    leftovers += _items(store, referred, unsure)
    return Inventory(tuple(evaluations), tuple(leftovers), kept_versions(store, aliased), referenced(store))


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
    """The plan with what removing texts frees: the samples files themselves say how large a column is."""
    freed = {}
    for action in planned.actions:
        if action.kind is Kind.TEXTS:
            freed[action.folder] = _text_bytes(store, f"{action.folder}/{SAMPLES}")
    return planned.with_bytes(freed)


def _text_bytes(store: ResultsStore, path: str) -> int:
    try:
        with store.filesystem.open(f"{store.root}/{path}", "rb") as file:
            metadata = pq.ParquetFile(file).metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            columns = [group.column(number) for group in groups for number in range(group.num_columns)]
            return sum(
                column.total_compressed_size
                for column in columns
                if column.path_in_schema.split(".")[0] in TEXT_COLUMNS
            )
    except (OSError, ValueError):  # gone or damaged: applying it says so
        return 0


def _evaluation(
    place: Place,
    folder: str,
    files: Mapping[str, Mapping[str, Any]],
    record: Mapping[str, Any],
    now: datetime,
) -> StoredEvaluation:
    return StoredEvaluation(
        place,
        folder,
        _moment(record.get("finished_at")) or changed_at(files),
        _bytes(files),
        int(files.get(SAMPLES, {}).get("size") or 0),
        bool(record.get("retention")),
        is_held(files, now),
        float(record.get("cost") or 0.0),
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
    store.filesystem.invalidate_cache()
    try:
        listed = store.filesystem.find(f"{store.root}/{top}", detail=True)
    except FileNotFoundError:
        return {}
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path, entry in listed.items():
        parts = path[len(store.root) + 1 :].split("/")
        if len(parts) > depth + 1:
            found.setdefault("/".join(parts[: depth + 1]), {})["/".join(parts[depth + 1 :])] = entry
    return found


def files_of(store: ResultsStore, folder: str) -> dict[str, Mapping[str, Any]]:
    """All files in a folder by their path in it, with what the listing says of them."""
    store.filesystem.invalidate_cache()
    try:
        listed = store.filesystem.find(f"{store.root}/{folder}", detail=True)
    except FileNotFoundError:
        return {}
    return {path[len(store.root) + len(folder) + 2 :]: entry for path, entry in listed.items()}


def is_held(files: Mapping[str, Mapping[str, Any]], now: datetime) -> bool:
    """Whether a process is at work in a folder: it writes beside its lease every few seconds.

    A lease that nobody has touched for a day was left by a process that is gone; whoever wants to write there
    still has to take it over.
    """
    lease = {name: entry for name, entry in files.items() if name.startswith(LEASE)}
    return bool(lease) and now - changed_at(lease) < timedelta(days=1)


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
