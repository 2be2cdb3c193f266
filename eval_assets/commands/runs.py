"""Dagster runs started from a terminal: the same jobs and instance as the UI's, executed in this process."""

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from eval_assets.definitions import definitions
from eval_assets.evaluating.progress import work_of
from eval_assets.grid import attempts
from eval_assets.grid.observing import Observer, data_versions
from eval_assets.grid.prepared import PreparedBenchmark, is_current
from eval_assets.grid.reconciling import Policy, Request, Version, Work, World, reconcile
from eval_assets.grid.tracking import open_tracked, tracked
from eval_assets.materializations import latest_materialization
from eval_assets.model_versions import measured
from eval_assets.partitions import SUITE, cell_key, row_tags
from resources import interrupts
from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import ModelVersion, Registry
from resources.results import Cell, ResultsStore
from resources.settings import Settings

_INTERRUPTED = DagsterExecutionInterruptedError.__name__
_ALL_AT_ONCE = Policy(requests_at_once=10**9)


class RunFailedError(UserError):
    """A run failed; the text says why. What it has finished is kept, and the next one goes on from there."""

    exit_status = 4


class Runs:
    """Runs jobs on the persistent instance of ``DAGSTER_HOME``, or on a given one that remembers nothing.

    On a given `instance` what the store has counts as done, and no version is judged. `registry` takes the
    place of those that the settings name.
    """

    def __init__(self, instance: dg.DagsterInstance | None = None, registry: Registry | None = None) -> None:
        home = os.environ.get("DAGSTER_HOME", "")
        if instance is None and not (home and Path(home).is_dir()):
            raise UserError(
                f"DAGSTER_HOME {f'is no folder: {home}' if home else 'is not set'}: 'make instance', then "
                "export DAGSTER_HOME=$PWD/.dagster, which is the instance of the make targets"
            )
        self._remembers = instance is None
        self.instance = dg.DagsterInstance.get() if instance is None else instance
        self.settings = Settings.from_environment()
        self.store = ResultsStore(self.settings.store)
        self.tracking = tracked(self.settings)
        self.registry = registry or open_tracked(self.settings, self.tracking)
        self.look = Observer(self.instance, self.registry, self.store, self.tracking, self.settings)
        self._definitions = definitions(self.settings, settle_seconds=0.0, registry=registry)
        attempts.end_orphans(self.instance)

    def models(self, patterns: Sequence[str]) -> list[str]:
        """Keys of the registry's versions that match a pattern (``name@version``, ``*`` for any text)."""
        keys = [str(key) for key in self.registry.versions().keys]
        chosen: list[str] = []
        for pattern in patterns or ["*"]:
            matching = [key for key in keys if fnmatchcase(key, pattern)]
            if not matching:
                if "*" in pattern or "?" in pattern:
                    known = ", ".join(keys[:10]) or "none"
                    raise UserError(
                        f"no model version in {self.registry.root} matches {pattern!r}; it has: {known}"
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
                and is_current(SUITE[key], self.store, self.settings.data_mirror)
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

    def cells(self, models: Sequence[str], datasets: Sequence[str]) -> "dict[Cell, PreparedBenchmark]":
        """The cells that should have an evaluation, with today's fingerprints."""
        cells = {}
        for key in models:
            record = self.store.model_version(key)
            if record is None:
                raise UserError(f"model version {key} is not registered: run 'make register'")
            version = ModelVersion.from_dict(record)
            for dataset in datasets:
                benchmark = self.look.cells.benchmark(version.name, dataset)
                cells[self.look.cells.cell(version, benchmark)] = benchmark
        return cells

    def finished(self, cells: Mapping[Cell, PreparedBenchmark]) -> set[str]:
        """Fingerprints of the cells whose evaluation is committed and is what this instance shows.

        One that is committed only (by another instance, or before something was changed and put back) still
        needs a run, which reuses it.
        """
        baselines = self.look.baselines([cell.model for cell in cells])
        shown = data_versions(self.instance, "evaluation")
        done = set()
        for cell, benchmark in cells.items():
            if not self._remembers:
                done |= {cell.fingerprint} if self.store.committed(cell) is not None else set()
                continue
            record = self.store.model_version(cell.model) or {}
            version = ModelVersion.from_dict(record)
            now = shown.get(str(cell_key(cell.dataset, cell.model)))
            accepted = self.look.cells.accepted(version, benchmark, baselines.get(version.name))
            if any(one.fingerprint == now and self.store.committed(one) is not None for _, one in accepted):
                done.add(cell.fingerprint)
        return done

    def missing(self, cells: Mapping[Cell, PreparedBenchmark], *, force: bool = False) -> list[Request]:
        """The runs that the cells still need."""
        rows: dict[str, list[str]] = {}
        for cell in cells:
            rows.setdefault(cell.model, []).append(cell.dataset)
        finished = set() if force else self.finished(cells)
        world = World(
            now=0.0,
            versions=tuple(Version(model, "", True, tuple(row), model) for model, row in rows.items()),
            signatures={},
            prepared={cell.dataset for cell in cells},
            fingerprints={(cell.model, cell.dataset): cell.fingerprint[:16] for cell in cells},
            finished={
                (c.model, c.dataset, c.fingerprint[:16]) for c in cells if c.fingerprint in finished},
            in_flight=attempts.in_flight(self.instance),
        )  # fmt: skip
        return list(reconcile(world, _ALL_AT_ONCE).requests)

    def evaluate(self, request: Request, *, force: bool = False) -> None:
        """Run one row; raises RunFailedError naming the cells that failed."""
        self.evaluate_cells(request.model, request.datasets, force=force)

    def judge(self, models: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Judge the versions that are ready for it, in the order of their registration; yields each verdict.

        Raises RunFailedError where one can't be judged.
        """
        done: set[str] = set()
        while self._remembers:
            # A person who asks wants it tried now, whatever failed before.
            decision = reconcile(self.look.world(models, failures={}), _ALL_AT_ONCE)
            ready = [
                request.model
                for request in decision.requests
                if request.work is Work.JUDGE and request.model in models and request.model not in done
            ]
            if not ready:
                return
            for model in ready:
                done.add(model)
                self.judge_again(model)
                yield self.store.verdicts()[model]

    def judge_again(self, model: str) -> None:
        """Judge a version, judged or not; raises RunFailedError."""
        self._run("judge_models", partition_key=model)

    def evaluate_cells(self, model: str, datasets: Sequence[str], *, force: bool = False) -> None:
        """Run these cells of a model's row, evaluated or not; raises RunFailedError."""
        tags = row_tags(model, datasets)
        self._run("evaluate_models", tags={**tags, **({attempts.FORCE_TAG: "true"} if force else {})})

    def refresh_leaderboard(self) -> None:
        """Bring the catalogue up to date."""
        self._run("refresh_leaderboard")

    def work_left(self, cells: Mapping[Cell, PreparedBenchmark]) -> int:
        """Characters that the models will be shown for these cells, a stand-in for time."""
        shown: dict[PreparedBenchmark, int] = {}
        for benchmark in set(cells.values()):
            shown[benchmark] = sum(work_of(item) for item in benchmark.read(self.store).items)
        return sum(shown[benchmark] for benchmark in cells.values())

    def _needs_registration(self, key: str) -> bool:
        record = self.store.model_version(key)
        if not self._remembers:
            self.instance.add_dynamic_partitions("model", [key])
        if record is None or not self.instance.has_dynamic_partition("model", key):
            return True
        digest = measured(key, self.registry, self.store).digest
        return digest != record["digest"] or not self._shows("model_version", key, digest)

    def _shows(self, asset: str, partition: str, data_version: str) -> bool:
        if not self._remembers:
            return True
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
            tags=dict(tags or {}),
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
