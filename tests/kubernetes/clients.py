"""What the tests of the cluster share: the official client, small Jobs and pods, and how these fare."""

from dataclasses import dataclass
from typing import Any

import kubernetes

from tests.kubernetes import ApiError, Cluster, Node, Object
from tests.kubernetes.api import merged

NAMESPACE = "evaluation"
GPU_TAINT = "nvidia.com/gpu=present:NoSchedule"
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
SHORT_TOLERATION = {
    "key": "node.kubernetes.io/unreachable",
    "operator": "Exists",
    "effect": "NoExecute",
    "tolerationSeconds": 10,
}
NODES = (
    Node("cpu-1", cpu="4", memory="8Gi", labels={"pool": "cpu"}),
    Node("gpu-1", gpus=4, labels={"pool": "gpu"}, taints=[GPU_TAINT]),
)
# Answers SIGTERM by writing a line, then ends.
POLITE = "trap 'echo stopped; exit 0' TERM; echo started; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; echo started; while :; do sleep 0.05; done"


@dataclass(frozen=True)
class Clients:
    """The APIs of the official client, on one connection pool."""

    core: Any
    batch: Any
    authorization: Any


def connect(cluster: Cluster, token: str = "admin") -> Clients:
    """Clients with one of the cluster's tokens."""
    client = kubernetes.config.new_client_from_config(str(cluster.kubeconfig_of(token)))
    return Clients(
        kubernetes.client.CoreV1Api(client),
        kubernetes.client.BatchV1Api(client),
        kubernetes.client.AuthorizationV1Api(client),
    )


def pod_spec(script: str = "true", **container: Any) -> Object:
    """The spec of a pod that runs a shell script once."""
    first = {"name": "main", "image": "image", "command": ["sh", "-c", script], **container}
    return {"restartPolicy": "Never", "containers": [first]}


def pod(name: str, /, script: str = "true", spec: Object | None = None, **container: Any) -> Object:
    """A pod; `spec` is merged into what `pod_spec` makes."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": merged(pod_spec(script, **container), spec or {}),
    }


def job(name: str, /, script: str = "true", changes: Object | None = None, **container: Any) -> Object:
    """A Job of one pod that is not tried again; `changes` are merged into its spec."""
    spec = {"backoffLimit": 0, "template": {"spec": pod_spec(script, **container)}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": merged(spec, changes or {}),
    }


def gpus(count: int) -> Object:
    """Container fields that ask for GPUs."""
    return {"limits": {"nvidia.com/gpu": count}}


def pod_of(cluster: Cluster, name: str) -> Object:
    """The newest pod of a Job, once there is one."""
    return cluster.until(lambda: cluster.list("pods", NAMESPACE, f"job-name={name}"))[-1]


def started(cluster: Cluster, name: str) -> Object:
    """The pod of a Job, once its script has written its first line."""
    cluster.until(lambda: "started" in read(cluster, pod_of(cluster, name)))
    return pod_of(cluster, name)


def read(cluster: Cluster, of: Object) -> str:
    """A pod's log; empty while there is none."""
    try:
        return cluster.logs(of)
    except ApiError:
        return ""


def now(cluster: Cluster, of: Object) -> Object:
    """A pod as it is now."""
    return cluster.get("pods", NAMESPACE, of["metadata"]["name"])


def is_gone(cluster: Cluster, of: Object) -> bool:
    """Whether a pod's object is away."""
    return cluster.find("pods", NAMESPACE, of["metadata"]["name"]) is None


def finished(cluster: Cluster, name: str) -> Object:
    """The status of a Job, once it is over."""
    return cluster.until(lambda: _if_over(cluster.get("jobs", NAMESPACE, name)["status"]))


def _if_over(status: Object) -> Object | None:
    return status if {"Complete", "Failed"} & conditions({"status": status}).keys() else None


def conditions(obj: Object) -> dict[str, str]:
    """The reasons of an object's true conditions."""
    entries = obj["status"].get("conditions") or []
    return {entry["type"]: entry.get("reason", "") for entry in entries if entry["status"] == "True"}


def waiting(cluster: Cluster, of: Object) -> str:
    """Why a pod's first container waits."""
    statuses = now(cluster, of)["status"].get("containerStatuses") or [{"state": {}}]
    return str(statuses[0]["state"].get("waiting", {}).get("reason", ""))


def end_of(of: Object) -> tuple[str, int]:
    """Reason and exit code of a pod's first container."""
    terminated = of["status"]["containerStatuses"][0]["state"]["terminated"]
    return terminated["reason"], terminated["exitCode"]


def namespaced(kind: str, name: str, **fields: Any) -> Object:
    """A core object of the namespace."""
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, **fields}
