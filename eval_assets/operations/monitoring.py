"""The long-lived exporter for Prometheus: what the store, the registries and Dagster's instance say."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterHomeNotSetError

from eval_assets.grid import attempts
from eval_assets.grid.observing import Observer
from eval_assets.grid.reconciling import Policy, Task, Work
from eval_assets.grid.tracking import open_tracked, tracked
from resources.catalog import Catalog
from resources.errors import UserError
from resources.keys import key_of_segment
from resources.pods.tags import IN_FLIGHT, Kind
from resources.results import ResultsStore
from resources.settings import Settings
from resources.storage import listing_sign
from resources.telemetry import Champion, Exporter, Readings, read_results

INTERVAL_SECONDS = 60.0
DAY = timedelta(hours=24)
WINDOW = timedelta(days=7)
"""How far back a task's failures in a row are looked for."""
MOST_RUNS = 1000
"""Runs that one look reads, of those in flight and of those that are over."""
MOST_FAILING = 200
CHAMPIONS_SECONDS = 30.0
"""How long the first reading of results waits for the registries."""

log = logging.getLogger("evaluation.metrics")


def serve_metrics(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 9464,
    *,
    interval: float = INTERVAL_SECONDS,
    started: Callable[[int], None] = lambda _: None,
) -> None:
    """Serve the metrics on ``http://host:port/metrics`` until SIGTERM; to be called in the main thread.

    Brings the catalogue up to date before each look, where the store can be written. Without DAGSTER_HOME
    there are no metrics of runs. `port` 0 takes a free one; `started` is called with it.

    Raises UserError where the port is taken, and for a mistake in the settings.
    """
    if settings.log_format == "json":
        # Imported where it is used: structlog takes its time.
        from resources.json_logs import write_json_lines

        write_json_lines()
    store = ResultsStore(settings.store)
    tracking = tracked(settings)
    registry = open_tracked(settings, tracking)
    try:
        instance, has_home = dg.DagsterInstance.get(), True
    except DagsterHomeNotSetError:
        instance, has_home = dg.DagsterInstance.ephemeral(), False
        log.warning("DAGSTER_HOME is not set: there are no metrics of Dagster's runs")
    with instance:
        look = Observer(instance, registry, store, tracking, settings)
        champions = Champions(look)
        results = Results(store, champions, settings)
        sources = {"registry": champions.read, "results": results.read}
        if has_home:
            sources["dagster"] = lambda: read_instance(instance)
        Exporter(sources, interval).serve(host, port, started)


class Champions:
    """The versions in production, as their registries say; while one is away, as it last said."""

    def __init__(self, look: Observer) -> None:
        self._look = look
        self._asked = threading.Event()
        self._known: dict[str, Champion] = {}

    def read(self) -> Readings:
        """Ask the registries; there is no reading of that but whether it worked."""
        try:
            problems: dict[str, str] = {}
            found = self._look.production(list(self._look.store.model_versions()), problems)
            moves = moves_in(self._look.store)
            known = {
                name: Champion(version, moves.get((name, version)))
                for name, version in ((name, key.rpartition("@")[2]) for name, key in found.items())
            }
            # A model whose aliases can't be read keeps the champion that it had.
            self._known = known | {name: self._known[name] for name in problems if name in self._known}
        finally:
            self._asked.set()
        if problems:
            name, reason = next(iter(problems.items()))
            raise UserError(f"the aliases of {len(problems)} models can't be read; {name}: {reason}")
        return Readings()

    def known(self) -> Mapping[str, Champion]:
        """By model name."""
        self._asked.wait(CHAMPIONS_SECONDS)
        return self._known


def moves_in(store: ResultsStore) -> dict[tuple[str, str], float]:
    """When an alias was last moved to a version, by name and version (seconds since the epoch)."""
    return {
        (key_of_segment(path.split("/")[1]), move["to"]): datetime.fromisoformat(move["at"]).timestamp()
        for path, move in store.json_files("promotions/*/*.json")
    }


class Results:
    """What the catalogue says; one that has not changed is not read again."""

    def __init__(self, store: ResultsStore, champions: Champions, settings: Settings) -> None:
        self._store, self._champions, self._settings = store, champions, settings
        self._catalog = Catalog(store)
        self._before: tuple[object, Readings] | None = None
        self._can_refresh = True

    def read(self) -> Readings:
        """Raises UserError where there is no catalogue, or it can't be read."""
        self._refresh()
        now, champions = datetime.now(UTC), self._champions.known()
        written, sign = self._written()
        state = (sign, dict(champions), now.date())
        if self._before is None or self._before[0] != state:
            with self._catalog.connect() as connection:
                readings = read_results(connection, champions, cells=self._settings.metrics_cells, now=now)
            readings.add("llm_evaluation_catalogue_timestamp_seconds", written)
            readings.add("llm_evaluation_budget", self._settings.budget)
            self._before = (state, readings)
        return self._before[1]

    def _written(self) -> tuple[float | None, str]:
        """When the catalogue was written, where that is known, and what tells it from the one before."""
        try:
            if self._store.is_local:  # or where it is instead, of a store that can't be written
                status = Path(self._catalog.path).stat()
                return status.st_mtime, f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"
            self._store.filesystem.invalidate_cache()
            info = self._store.filesystem.info(self._catalog.path)
        except FileNotFoundError:
            return None, ""
        modified = info.get("LastModified")
        return modified.timestamp() if isinstance(modified, datetime) else None, listing_sign(info)

    def _refresh(self) -> None:
        try:
            self._catalog.refresh()
            self._can_refresh = True
        except UserError as error:  # a store that is read-only here: somebody else refreshes
            if self._can_refresh:
                log.warning("the catalogue is shown as it is: %s", error)
            self._can_refresh = False


def read_instance(instance: dg.DagsterInstance) -> Readings:
    """Readings of runs in flight, failures and the daemon: three bounded queries."""
    now = datetime.now(UTC)
    readings = Readings()
    in_flight = instance.get_run_records(dg.RunsFilter(statuses=IN_FLIGHT), limit=MOST_RUNS, ascending=True)
    _add_in_flight(readings, in_flight, now)
    over = instance.get_run_records(
        dg.RunsFilter(
            statuses=[
                dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED
            ],
            tags={attempts.WORK_TAG: [work.value for work in Work]},
            updated_after=now - WINDOW,
        ),
        limit=MOST_RUNS,
    )  # fmt: skip
    _add_failures(readings, over, now)
    for daemon, status in instance.get_daemon_statuses().items():
        if status.last_heartbeat is not None:
            at = status.last_heartbeat.timestamp
            readings.add("llm_evaluation_daemon_heartbeat_timestamp_seconds", at, daemon)
    return readings


_STATES = {
    dg.DagsterRunStatus.QUEUED: "queued",
    dg.DagsterRunStatus.NOT_STARTED: "queued",
    dg.DagsterRunStatus.STARTING: "starting",
    dg.DagsterRunStatus.STARTED: "running",
    dg.DagsterRunStatus.CANCELING: "canceling",
}
_KINDS_OF_WORK = (*(work.value for work in Work), "other")


def _add_in_flight(readings: Readings, records: Sequence[dg.RunRecord], now: datetime) -> None:
    """Series for every kind of work and state, also of none: a graph then falls to 0, not to a gap."""
    runs = Counter((_work(record.dagster_run), _STATES[record.dagster_run.status]) for record in records)
    tasks: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for record in records:
        tasks[_work(record.dagster_run)] += len(attempts.tasks_of(record.dagster_run))
        state = _STATES[record.dagster_run.status]
        waited = (now - record.create_timestamp).total_seconds()
        oldest[state] = max(oldest.get(state, 0.0), waited)
    for work in _KINDS_OF_WORK:
        for state in dict.fromkeys(_STATES.values()):
            readings.add("llm_evaluation_runs", runs[work, state], work, state)
        readings.add("llm_evaluation_in_flight", tasks[work], work)
    for state in ("queued", "starting"):
        readings.add("llm_evaluation_queue_age_seconds", oldest.get(state, 0.0), state)


def _work(run: dg.DagsterRun) -> str:
    work = run.tags.get(attempts.WORK_TAG)
    return work if work in _KINDS_OF_WORK else "other"


_REASONS = (
    *("busy", "transient", "permanent"),
    *(attempts.CANCELLED, attempts.INTERRUPTED, attempts.KILLED),
    *(kind.value for kind in Kind),
    "other",
)


def _add_failures(readings: Readings, newest_first: Iterable[dg.RunRecord], now: datetime) -> None:
    recent: Counter[tuple[str, str]] = Counter()
    in_a_row: Counter[Task] = Counter()
    hopeless: set[Task] = set()
    settled: set[tuple[Work, str, str]] = set()
    for record in newest_first:
        run = record.dagster_run
        try:
            tasks, endings = attempts.tasks_of(run), attempts.endings(run)
        except (ValueError, LookupError, TypeError, AttributeError, dg.DagsterError):
            continue  # a person can write anything into a run's tags
        ended = record.end_time or record.update_timestamp.timestamp()
        if now.timestamp() - ended <= DAY.total_seconds():
            recent.update((task.work.value, ending.kind) for task, ending in endings.items())
        for task in tasks:
            ending = endings.get(task)
            if ending is None or attempts.is_cleared(run, task):
                settled.add(task.place)
            elif task.place not in settled and ending.counts:
                place = Task(task.work, task.model, task.dataset)
                in_a_row[place] += 1
                if in_a_row[place] == 1 and ending.is_permanent:
                    hopeless.add(place)
    for work in Work:
        counts = Counter({reason: count for (kind, reason), count in recent.items() if kind == work.value})
        counts["other"] = sum(count for reason, count in counts.items() if reason not in _REASONS)
        for reason in _REASONS:
            readings.add("llm_evaluation_recent_failures", counts[reason], work.value, reason)
    for task, times in in_a_row.most_common(MOST_FAILING):
        name, _, version = task.model.rpartition("@")
        given_up = "yes" if task in hopeless or times >= Policy().tries else "no"
        labels = (task.work.value, name, version, task.dataset, given_up)
        readings.add("llm_evaluation_failures_in_a_row", times, *labels)
    readings.add("llm_evaluation_failing_left_out", max(len(in_a_row) - MOST_FAILING, 0))
