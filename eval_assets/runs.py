"""Dagster runs started from a terminal: the same jobs and instance as the UI's, executed in this process."""

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from eval_assets.automation import RowRequest, plan
from eval_assets.benchmarks import is_current, stored_benchmark
from eval_assets.definitions import definitions
from eval_assets.evaluations import FORCE_TAG, scoring_settings
from eval_assets.evaluator import Benchmark, cell_for
from eval_assets.events import latest_materialization
from eval_assets.model_versions import measured
from eval_assets.partitions import DATASETS_TAG, SUITE, cell_key, grid, row_tags
from eval_assets.progress import work_of
from resources import interrupts
from resources.engines.settings import EngineSettings, fingerprint_fields
from resources.errors import UserError
from resources.keys import ModelKey
from resources.lease import process_exists
from resources.registries import ModelVersion
from resources.registries.folder import FolderRegistry
from resources.results import Cell, ResultsStore
from resources.settings import Settings

PROCESS_TAG = "eval/process"
_INTERRUPTED = DagsterExecutionInterruptedError.__name__
_ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class RunFailedError(UserError):
    """A run failed; the text says why."""


class Runs:
    """Runs jobs on the persistent instance of ``DAGSTER_HOME``."""

    def __init__(self) -> None:
        if not os.environ.get("DAGSTER_HOME"):
            raise UserError(
                "DAGSTER_HOME is not set: use the make targets, or export it: a folder with dagster.yaml"
            )
        self.instance = dg.DagsterInstance.get()
        self.settings = Settings.from_environment()
        self.store = ResultsStore(self.settings.store)
        self.registry = FolderRegistry(self.settings.registry)
        self._engine = EngineSettings(device=self.settings.device, dtype=self.settings.dtype)
        self._definitions = definitions(self.settings)
        self._process = f"{socket.gethostname()}:{os.getpid()}"
        self._end_orphans()

    def models(self, patterns: Sequence[str]) -> list[str]:
        """Keys of the registry's versions that match a pattern (``name@version``, ``*`` for any text)."""
        keys = [str(key) for key in self.registry.versions()]
        chosen: list[str] = []
        for pattern in patterns or ["*"]:
            matching = [key for key in keys if fnmatchcase(key, pattern)]
            if not matching:
                if "*" in pattern or "?" in pattern:
                    known = ", ".join(keys[:10]) or "none"
                    raise UserError(
                        f"no model version in {self.settings.registry} matches {pattern!r}; it has: {known}"
                    )
                self.registry.fetch(ModelKey.parse(pattern))
            chosen += [key for key in matching if key not in chosen]
        return chosen

    def register(self, keys: Sequence[str], *, only_changed: bool = False) -> list[str]:
        """Register versions, with `only_changed` those that are new or changed; returns their keys."""
        wanted = [key for key in keys if not only_changed or self._needs_registration(key)]
        if wanted:
            self._run("register_models", ops={"register_versions": {"config": {"models": wanted}}})
        return wanted

    def prepare(self, datasets: Sequence[str]) -> dict[str, str | None]:
        """Prepare those benchmarks whose YAML or files are not what the store has.

        Returns what was done: each key with None, or with the line that says why it failed.
        """
        outcomes: dict[str, str | None] = {}
        for key in datasets:
            record = self.store.benchmark(key)
            if (
                record is not None
                and is_current(SUITE[key], self.store)
                and self._shows("benchmark", key, record["fingerprint"])
            ):
                continue
            try:
                self._run("prepare_benchmarks", partition_key=key)
            except RunFailedError as error:
                outcomes[key] = str(error)
            else:
                outcomes[key] = None
        return outcomes

    def cells(self, models: Sequence[str], datasets: Sequence[str]) -> "dict[Cell, Benchmark]":
        """The cells that should have an evaluation, with today's fingerprints."""
        fields = fingerprint_fields(self._engine)
        scoring = scoring_settings(self.settings)
        benchmarks = {key: stored_benchmark(key, self.store, self.settings.limit) for key in datasets}
        cells = {}
        for key in models:
            record = self.store.model_version(key)
            if record is None:
                raise UserError(f"model version {key} is not registered: run 'make register'")
            version = ModelVersion.from_dict(record)
            for benchmark in benchmarks.values():
                cells[cell_for(version, benchmark, fields, scoring)] = benchmark
        return cells

    def finished(self, cells: Collection[Cell]) -> set[str]:
        """Fingerprints of the cells whose evaluation is committed and is what this instance shows.

        One that is committed only (by another instance, or before something was changed and put back) still
        needs a run, which reuses it.
        """
        return {
            cell.fingerprint
            for cell in cells
            if self.store.committed(cell) is not None
            and self._shows("evaluation", cell_key(cell.dataset, cell.model), cell.fingerprint)
        }

    def missing(self, cells: Collection[Cell], *, force: bool = False) -> list[RowRequest]:
        """The runs that the cells still need."""
        return plan(cells, set() if force else self.finished(cells), self._in_flight())

    def evaluate(self, request: RowRequest, *, force: bool = False) -> None:
        """Run one row; raises RunFailedError naming the cells that failed."""
        self.evaluate_cells(request.model, request.datasets, force=force)

    def evaluate_cells(self, model: str, datasets: Sequence[str], *, force: bool = False) -> None:
        """Run these cells of a model's row, evaluated or not; raises RunFailedError."""
        tags = row_tags(model, datasets)
        self._run("evaluate_models", tags={**tags, **({FORCE_TAG: "true"} if force else {})})

    def refresh_leaderboard(self) -> None:
        """Bring the catalogue up to date."""
        self._run("refresh_leaderboard")

    def _needs_registration(self, key: str) -> bool:
        record = self.store.model_version(key)
        if record is None or not self.instance.has_dynamic_partition("model", key):
            return True
        digest = measured(key, self.registry, self.store).digest
        return digest != record["digest"] or not self._shows("model_version", key, digest)

    def _shows(self, asset: str, partition: str, data_version: str) -> bool:
        latest = latest_materialization(self.instance, asset, partition)
        return latest is not None and latest[1] == data_version

    def _run(
        self,
        job: str,
        *,
        partition_key: str | None = None,
        tags: Mapping[str, str] | None = None,
        ops: Mapping[str, Any] | None = None,
    ) -> None:
        result = self._definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=partition_key,
            tags={**(tags or {}), PROCESS_TAG: self._process},
            # The run's log is in the instance; the terminal shows progress instead.
            run_config={
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                "ops": dict(ops or {}),
            },
            raise_on_error=False,
        )
        if _was_interrupted(result):
            self.instance.report_run_canceled(result.dagster_run, "interrupted at the terminal")
            raise KeyboardInterrupt
        # Before an asset's code and after it, Dagster takes a signal and may do nothing about it.
        if interrupts.asked_to_end():
            raise KeyboardInterrupt
        if not result.success:
            raise RunFailedError(f"run {result.run_id[:8]} of {job} failed: {_reason(result)}")

    def _in_flight(self) -> dict[str, set[str]]:
        active = self.instance.get_runs(dg.RunsFilter(job_name="evaluate_models", statuses=_ACTIVE))
        rows: dict[str, set[str]] = {}
        for run in active:
            for dataset, model in _cells_of_tags(run.tags):
                rows.setdefault(model, set()).add(dataset)
        return rows

    def _end_orphans(self) -> None:
        """Mark runs of a terminal that was killed as failed; the UI would show them as running for ever."""
        host = socket.gethostname()
        for run in self.instance.get_runs(dg.RunsFilter(statuses=_ACTIVE)):
            process = run.tags.get(PROCESS_TAG, "")
            owner, _, pid = process.rpartition(":")
            if owner == host and not process_exists(int(pid)):
                self.instance.report_run_failed(run, f"its process ({process}) was ended")


def work_left(cells: Mapping[Cell, Benchmark]) -> int:
    """Characters that the models will be shown for these cells, a stand-in for time."""
    return sum(work_of(item) for benchmark in cells.values() for item in benchmark.items)


def _cells_of_tags(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    start = tags.get("dagster/asset_partition_range_start") or tags.get("dagster/partition")
    end = tags.get("dagster/asset_partition_range_end") or start
    if start is None or end is None:
        return []
    first = grid.get_partition_key_from_str(start).keys_by_dimension
    last = grid.get_partition_key_from_str(end).keys_by_dimension
    order = list(SUITE)
    if first["dataset"] not in SUITE or last["dataset"] not in SUITE:
        return []
    between = order[order.index(first["dataset"]) : order.index(last["dataset"]) + 1]
    meant = tags.get(DATASETS_TAG)
    return [(key, first["model"]) for key in between if not meant or key in meant.split(",")]


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    return any(error is not None and error.cls_name == _INTERRUPTED for error in errors)


def _reason(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            error = data.error
            while error is not None and error.cause is not None:
                error = error.cause
            if error is not None:
                return error.message.strip().splitlines()[0]
    return "see its log in the UI"
