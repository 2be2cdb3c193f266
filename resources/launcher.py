"""Dagster's Kubernetes run launcher, with pods sized to their model, and runs that survive the cluster.

``dagster.yaml`` names it. It needs two variables that the pods have, too: ``EVAL_STORE`` (what is known of
models) and ``EVAL_ACCELERATORS`` (what the cluster offers).
"""

import logging
from dataclasses import replace
from typing import Any

import dagster as dg
from dagster._core.launcher import LaunchRunContext
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster_k8s import K8sRunLauncher
from dagster_k8s.client import DagsterKubernetesClient
from dagster_k8s.job import get_job_name_from_run_id

from resources.errors import TransientError, UserError
from resources.pods.catalogue import Catalogue, load_catalogue
from resources.pods.cluster import TIMEOUT, Cluster
from resources.pods.costing import Estimate, check_budget, estimate_all
from resources.pods.planning import Plan, of_people, plan_pod, purpose_of
from resources.pods.tags import COST_TAG, IN_FLIGHT, Kind
from resources.pods.watch import Patience, PodWatch, fail_run
from resources.registries import ModelVersion
from resources.results import ResultsStore
from resources.settings import Settings

_log = logging.getLogger("dagster.evaluation.launcher")


class EvaluationRunLauncher(K8sRunLauncher):
    """Launches each run as a Job whose pod fits its model; takes `K8sRunLauncher`'s configuration.

    `launch_run` only decides how large the pod is and writes that on the run. The Job is made by the watch
    (`resources.pods.watch`), which also makes it later where the cluster is silent or full now, tells waiting
    from being unable to start, and removes what runs leave behind.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._api_client = _OneTry(self._api_client)
        self._settings = Settings.from_environment()
        self._watch: PodWatch | None = None

    def watch_pods(self) -> PodWatch:
        """The watch over the pods of this instance's runs; it starts when it is first asked for."""
        if self._watch is None:
            patience = Patience(self._settings.cluster_patience, self._settings.queue_timeout)
            self._watch = PodWatch(
                self._instance, self._cluster(), self._catalogue, self._plan, self._create_job, patience
            )
            self._watch.start()
        return self._watch

    def launch_run(self, context: LaunchRunContext) -> None:
        """Size the run's pod again, by what is known now, and have its Job made.

        A model that no class has room for fails the run at once.
        """
        run = context.dagster_run
        try:
            self._plan(run)
        except TransientError as error:  # the watch tries it again
            _log.warning("%s", error)
        except UserError as error:
            fail_run(self._instance, run, Kind.UNABLE, str(error))
            return
        self.watch_pods().wake()

    def terminate(self, run_id: str) -> bool:
        """Have a run's Job removed; its pod gets its grace period. Later, if the cluster is silent now."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        try:
            self._cluster().remove(_job_name(run_id))
        except UserError as error:
            self._instance.report_engine_event(f"{error}; its Job is removed as soon as that passes", run)
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:  # noqa: ARG002  (its signature)
        """Running: the watch fails what isn't. But a cluster may be silent for too long."""
        silence = self.watch_pods().silence
        if silence > self._settings.cluster_patience:
            return CheckRunHealthResult(
                WorkerStatus.UNKNOWN,
                f"the cluster has not answered for {silence:.0f} s (EVAL_CLUSTER_PATIENCE)",
            )
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def dispose(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        super().dispose()

    def _plan(self, run: dg.DagsterRun) -> None:
        self._instance.add_run_tags(
            run.run_id, plan_of_run(run, self._instance, self._settings).tags(run.run_id)
        )

    def _create_job(self, run: dg.DagsterRun) -> None:
        name = _job_name(run.run_id)
        if run.job_code_origin is None:
            raise UserError(f"run {run.run_id[:8]} does not say where its code is; launch it again")
        arguments = ExecuteRunArgs(
            job_origin=run.job_code_origin,
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=self._fail_pod_on_run_failure,
        ).get_command_args()
        self._cluster().create(lambda: self._launch_k8s_job_with_args(name, arguments, run), run.run_id, name)

    def _cluster(self) -> Cluster:
        client = self._api_client
        return Cluster(client.batch_api, client.core_api, self.job_namespace)

    def _catalogue(self) -> Catalogue:
        return catalogue_of(self._settings)


class _OneTry(DagsterKubernetesClient):
    """dagster-k8s's client, but what fails is tried again by the watch's next look and not by sleeping."""

    def __init__(self, client: Any) -> None:
        initialize: Any = super().__init__
        initialize(client.batch_api, client.core_api, client.logger, client.sleeper, client.timer)
        for api in (client.batch_api, client.core_api):
            # Below it, urllib3 would ask three times more, and wait for each answer in full.
            api.api_client.rest_client.pool_manager.connection_pool_kw["retries"] = False

    def create_namespaced_job_with_retries(
        self,
        body: Any,
        namespace: str,
        wait_time_between_attempts: float = 0.0,  # noqa: ARG002  (its signature)
    ) -> None:
        self.batch_api.create_namespaced_job(body=body, namespace=namespace, _request_timeout=TIMEOUT)


def catalogue_of(settings: Settings) -> Catalogue:
    """What the cluster offers; without ``EVAL_ACCELERATORS`` only CPUs.

    Raises TransientError for a mistake in the file: runs wait until it is put right.
    """
    try:
        return load_catalogue(settings.accelerators) if settings.accelerators is not None else Catalogue()
    except UserError as error:
        raise TransientError(str(error)) from None


def plan_of_run(run: dg.DagsterRun, instance: dg.DagsterInstance, settings: Settings) -> Plan:
    """The pod of a run.

    Raises UserError for a model too large, a wrong catalogue, a wrong tag; TransientError where the store
    does not answer.
    """
    try:
        store, catalogue = ResultsStore(settings.store), catalogue_of(settings)
        purpose = purpose_of(run, store.model_versions())
        plan = plan_pod(purpose, catalogue, store, instance, of_people(run, instance))
        expected = _expected(plan, catalogue, store, settings.limit)
        if settings.budget is not None:
            what = f"run {run.run_id[:8]} ({', '.join(purpose.models)})"
            check_budget(expected, settings.budget, store, what, _launched(instance, run))
        return replace(plan, cost=sum(entry.cost or 0.0 for entry in expected) if expected else None)
    except UserError:
        raise
    except Exception as error:  # an object store's client raises what it likes
        raise TransientError(f"the pod of run {run.run_id[:8]} can't be sized now: {error!r}") from error


def _launched(instance: dg.DagsterInstance, but: dg.DagsterRun) -> float:
    """What the other runs that are queued or at work were estimated at."""
    others = instance.get_runs(dg.RunsFilter(statuses=IN_FLIGHT))
    return sum(float(run.tags.get(COST_TAG, 0.0)) for run in others if run.run_id != but.run_id)


def _expected(plan: Plan, catalogue: Catalogue, store: ResultsStore, limit: int | None) -> list[Estimate]:
    """What the run's pod takes, as far as its models and benchmarks are known."""
    if plan.size.price is None:
        return []
    known = [dataset for dataset in plan.purpose.datasets if store.benchmark(dataset) is not None]
    records = [record for key in plan.purpose.models if (record := store.model_version(key)) is not None]
    return [
        entry
        for record in records
        for entry in estimate_all(known, ModelVersion.from_dict(record), plan.size, catalogue, store, limit)
    ]


def _job_name(run_id: str) -> str:
    name: Any = get_job_name_from_run_id
    return str(name(run_id))
