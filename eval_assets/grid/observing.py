"""What there is: registries, the store and Dagster's instance, read into a `reconciling.World`."""

import time
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from eval_assets.grid import attempts
from eval_assets.grid.cells import Cells
from eval_assets.grid.comparing import come_since
from eval_assets.grid.prepared import PreparedBenchmark, source_signature
from eval_assets.grid.reconciling import Failures, Task, Version, World, short
from eval_assets.grid.tracking import Tracking, tracked
from eval_assets.partitions import SUITE, cell_key
from resources.errors import TransientError, UserError
from resources.keys import ModelKey
from resources.registries import ModelVersion, Registry, VersionNotThereError
from resources.results import Cell, ResultsStore
from resources.settings import Settings

_FOR_REGISTRIES = 2 / 3
"""The share of a thorough look's time that registries are asked in; then the store is."""
_NIGHT = 86_400.0
_GOLDEN = (5**0.5 - 1) / 2


def data_versions(instance: dg.DagsterInstance, asset: str) -> Mapping[str, str]:
    """Partition -> data version of its latest materialization, in one query."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    return {
        partition: found[DATA_VERSION_TAG] for partition, found in tags.items() if DATA_VERSION_TAG in found
    }


@dataclass(frozen=True, slots=True)
class Observer:
    """Reads the state of the world. Everything it returns may be out of date a moment later."""

    instance: dg.DagsterInstance
    registry: Registry
    store: ResultsStore
    tracking: Tracking
    settings: Settings

    @classmethod
    def of(
        cls, instance: dg.DagsterInstance, registry: Registry, store: ResultsStore, settings: Settings
    ) -> "Observer":
        """An observer of what the settings name. Raises UserError for a mistake in EVAL_MODELS."""
        return cls(instance, registry, store, tracked(settings), settings)

    @property
    def cells(self) -> Cells:
        return Cells(self.settings, self.store, self.tracking)

    def world(
        self,
        keys: Sequence[str],
        datasets: Collection[str] | None = None,
        *,
        thorough: bool = False,
        seconds: float = 15.0,
        failures: Mapping[Task, Failures] | None = None,
        problems: MutableMapping[str, str] | None = None,
    ) -> World:
        """The world around these model versions and what they are compared with.

        Only `datasets` of their benchmarks count, if given. `thorough` asks the registry whether a registered
        version's files have changed and the store whether an evaluation is really there, or was deleted by
        retention; otherwise what was recorded is believed, as it is where `seconds` are too short
        (`World.not_looked_at`). A new version is left out then until next time. So are a model whose aliases
        can't be read and a version that its registry refuses to show; why is in `problems`, by name or key.
        """
        began = time.monotonic()
        records, verdicts = self.store.model_versions(), self.store.verdicts()
        shown = data_versions(self.instance, "model_version")
        problems = {} if problems is None else problems
        production = self.production(keys, problems)
        readable = [key for key in keys if ModelKey.parse(key).name not in problems]
        baselines = self.baselines(readable, production)
        chosen = [
            key
            for key in self._with_baselines(readable, baselines)
            if self.tracking.entry(ModelKey.parse(key).name) and not records.get(key, {}).get("deleted")
        ]
        revisions = {key: str(records.get(key, {}).get("revision", "")) for key in chosen}
        to_ask = [key for key in chosen if thorough or not revisions[key]]
        if thorough:
            to_ask = in_turn(to_ask, _NIGHT)
        asked = self._ask(to_ask, began + seconds * (_FOR_REGISTRIES if thorough else 1.0), problems)
        revisions.update(asked)
        versions: list[Version] = []
        for key, revision in revisions.items():
            name = ModelKey.parse(key).name
            entry = self.tracking.entry(name)
            record = records.get(key)
            if entry is None or not revision:
                continue
            registered = record is not None and record.get("revision") == revision
            wanted = [key for key in entry.datasets(SUITE) if datasets is None or key in datasets]
            versions.append(
                Version(
                    key,
                    short(revision),
                    registered and record is not None and shown.get(key) == record["digest"],
                    tuple(wanted),
                    # The oldest version, where none is in production, is compared with nothing.
                    None if name not in production and baselines.get(name) == key else baselines.get(name),
                    verdicts[key]["fingerprint"] if key in verdicts else None,
                )
            )
        late = _for_want_of_time(to_ask, asked, "versions were not looked at in their registries")
        until = began + seconds if thorough else None
        return self._with_cells(versions, records, verdicts, until, failures, late)

    def _ask(
        self, keys: Sequence[str], deadline: float, problems: MutableMapping[str, str]
    ) -> dict[str, str]:
        """What the registry says of the files of those that there is time for; "" for one to leave alone."""
        found: dict[str, str] = {}
        for key in keys:
            if time.monotonic() > deadline:
                break
            found[key] = ""
            try:
                found[key] = self.registry.revision(ModelKey.parse(key))
            except TransientError:
                raise
            except VersionNotThereError:
                pass
            except UserError as error:
                problems[key] = str(error)
        return found

    def production(
        self, keys: Sequence[str], problems: MutableMapping[str, str] | None = None
    ) -> dict[str, str]:
        """Model name -> key of its version in production: that of the baseline's alias, or a fixed one.

        Raises UserError for aliases that can't be read; with `problems` it is put there, by model name.
        """
        found = {}
        for name in dict.fromkeys(ModelKey.parse(key).name for key in keys):
            entry = self.tracking.entry(name)
            if entry is None:
                continue
            version = entry.baseline.version
            if entry.baseline.alias is not None:
                try:
                    version = self.registry.aliases(name).get(entry.baseline.alias)
                except UserError as error:
                    if problems is None or isinstance(error, TransientError):
                        raise
                    problems[name] = str(error)
            if version is not None:
                found[name] = f"{name}@{version}"
        return found

    def baselines(self, keys: Sequence[str], production: Mapping[str, str] | None = None) -> dict[str, str]:
        """Model name -> key of the version that others are compared with; raises as `production` does.

        That is the version in `production` (asked for if not given); while there is none, the oldest that is
        registered.
        """
        found = dict(self.production(keys) if production is None else production)
        lacking = {ModelKey.parse(key).name for key in keys} - found.keys()
        if lacking:
            records = self.store.model_versions()
            for key in self.instance.get_dynamic_partitions("model"):
                name = key.rpartition("@")[0]
                if name in lacking and key in records and not records[key].get("deleted"):
                    found.setdefault(name, key)
        return found

    def _with_baselines(self, keys: Sequence[str], baselines: Mapping[str, str]) -> list[str]:
        """The keys and their baselines; of a model with many versions only as many as its entry wants."""
        of_name: dict[str, list[str]] = {}
        for key in keys:
            of_name.setdefault(ModelKey.parse(key).name, []).append(key)
        chosen: list[str] = []
        for name, its_keys in of_name.items():
            entry = self.tracking.entry(name)
            latest = its_keys
            if entry is not None and entry.latest is not None and len(its_keys) > entry.latest:
                aliased = {f"{name}@{version}" for version in self.registry.aliases(name).values()}
                recent = set(its_keys[-entry.latest :])
                latest = [key for key in its_keys if key in recent or key in aliased]
            if name in baselines and baselines[name] not in latest:
                chosen.append(baselines[name])
            chosen += latest
        return chosen

    def _with_cells(
        self,
        versions: Sequence[Version],
        records: Mapping[str, Mapping[str, object]],
        verdicts: Mapping[str, Mapping[str, Any]],
        deadline: float | None,
        failures: Mapping[Task, Failures] | None,
        late: Sequence[str],
    ) -> World:
        """With the cells of these versions; up to the deadline, if there is one, the store is asked, too."""
        cells = self.cells
        needed = {dataset for version in versions for dataset in version.datasets}
        signatures = {key: source_signature(SUITE[key], self.settings.data_mirror) for key in needed}
        shown = data_versions(self.instance, "benchmark")
        prepared = set()
        for key in needed:
            record = self.store.benchmark(key)
            if record is not None and record["source_signature"] == signatures[key]:
                prepared |= {key} if shown.get(key) == record["fingerprint"] else set()
        evaluated = data_versions(self.instance, "evaluation")
        there = {} if deadline is None else self._evaluated(prepared, deadline)
        if deadline is not None:
            late = [*late, *_for_want_of_time(prepared, there, "benchmarks' results were not looked for")]
        asked: dict[tuple[object, str], PreparedBenchmark] = {}
        fingerprints: dict[tuple[str, str], str] = {}
        finished = set()
        for version in versions:
            if not version.registered:
                continue
            model = ModelVersion.from_dict(records[version.model])
            entry = self.tracking.entry(model.name)
            for dataset in prepared.intersection(version.datasets):
                place = (entry.chat if entry else None, dataset)
                if place not in asked:
                    asked[place] = cells.benchmark(model.name, dataset)
                fingerprint = cells.cell(model, asked[place]).fingerprint[:16]
                fingerprints[version.model, dataset] = fingerprint
                shown_one = evaluated.get(str(cell_key(dataset, version.model)))
                if any(
                    cell.fingerprint == shown_one and _is_in(there, cell)
                    for _, cell in cells.accepted(model, asked[place], version.baseline)
                ):
                    finished.add((version.model, dataset, fingerprint))
        return World(
            now=time.time(),
            versions=tuple(
                replace(version, reopened=self._is_reopened(version, verdicts[version.model], evaluated))
                if version.model in verdicts
                else version
                for version in versions
            ),
            signatures={key: signature[:16] for key, signature in signatures.items()},
            prepared=prepared,
            fingerprints=fingerprints,
            finished=finished,
            in_flight=attempts.in_flight(self.instance),
            failures=attempts.failures(self.instance) if failures is None else failures,
            not_looked_at=tuple(late),
        )

    def _is_reopened(
        self, version: Version, verdict: Mapping[str, Any], evaluated: Mapping[str, str]
    ) -> bool:
        if "moving" in verdict or version.baseline == version.model:
            return "moving" in verdict
        # The store is asked only where there is something to find: looks are many, and a store may be slow.
        compared = (version.model, verdict["baseline"] or version.model)
        shown = [
            one for one in version.datasets if all(str(cell_key(one, key)) in evaluated for key in compared)
        ]
        return come_since(self.cells, verdict, shown) is not None

    def _evaluated(self, datasets: Iterable[str], deadline: float) -> dict[str, set[tuple[str, str]]]:
        """`ResultsStore.evaluated` of each benchmark that there is time for."""
        found = {}
        for dataset in in_turn(sorted(datasets), _NIGHT):
            if time.monotonic() > deadline:
                break
            found[dataset] = self.store.evaluated(dataset)
        return found


def _is_in(there: Mapping[str, Collection[tuple[str, str]]], cell: Cell) -> bool:
    """Whether a cell's evaluation is among those of its benchmark, where these were looked for."""
    return cell.dataset not in there or (cell.model, cell.fingerprint[:16]) in there[cell.dataset]


def _for_want_of_time(wanted: Sized, done: Sized, what: str) -> list[str]:
    lacking = len(wanted) - len(done)
    if not lacking:
        return []
    told = f"{lacking:,} of {len(wanted):,} {what}, for want of time"
    return [f"{told}: what is recorded of them counts until a later look"]


def in_turn(all_of_them: Sequence[str], seconds: float) -> list[str]:
    """The same, begun elsewhere every so many seconds: what there is no time for now is among the first soon.

    Steps of the golden section spread the beginnings evenly, without a memory: where there is time for an
    n-th of them, each is among the first within 2n turns.
    """
    start = int(len(all_of_them) * (time.time() // seconds * _GOLDEN % 1))
    return [*all_of_them[start:], *all_of_them[:start]]
