"""The stand-in's nodes: which pods they get, lose by eviction, and keep when they are lost."""

import signal

import pytest
from kubernetes.client.rest import ApiException

from tests.kubernetes import ApiError, Cluster, Node, Object
from tests.kubernetes.clients import (
    DEAF,
    GPU_TOLERATION,
    NAMESPACE,
    POLITE,
    SHORT_TOLERATION,
    Clients,
    conditions,
    finished,
    gpus,
    is_gone,
    job,
    now,
    pod,
    pod_of,
    read,
    started,
)


def test_pods_go_to_nodes_that_they_select_tolerate_and_fit_on(cluster: Cluster) -> None:
    requirement = {"key": "pool", "operator": "In", "values": ["gpu"]}
    term = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
    cluster.apply(pod("anywhere"))
    cluster.apply(pod("by-affinity", spec={"affinity": affinity, "tolerations": [GPU_TOLERATION]}))
    cluster.apply(pod("by-gpu", spec={"tolerations": [GPU_TOLERATION]}, resources=gpus(4)))
    cluster.apply(pod("intolerant", spec={"nodeSelector": {"pool": "gpu"}}))
    cluster.apply(pod("too-large", spec={"tolerations": [GPU_TOLERATION]}, resources=gpus(8)))

    def place(name: str) -> str:
        return str(cluster.get("pods", NAMESPACE, name)["spec"].get("nodeName"))

    def obstacle(name: str) -> str:
        found = cluster.get("pods", NAMESPACE, name)["status"].get("conditions") or [{}]
        assert found[0].get("reason", "Unschedulable") == "Unschedulable"
        return str(found[0].get("message", ""))

    cluster.until(lambda: place("by-gpu") != "None")
    assert [place(name) for name in ("anywhere", "by-affinity", "by-gpu")] == ["cpu-1", "gpu-1", "gpu-1"]
    assert cluster.until(lambda: obstacle("intolerant")).startswith(
        "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, "
        "1 node(s) had untolerated taint {nvidia.com/gpu: present}. preemption: 0/2 nodes are available: "
    )
    text = cluster.until(lambda: obstacle("too-large"))
    assert text.startswith("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")
    assert ("FailedScheduling", text) in cluster.events(cluster.get("pods", NAMESPACE, "too-large"))


def test_gpus_are_never_given_out_twice(cluster: Cluster) -> None:
    spec = {"template": {"spec": {"tolerations": [GPU_TOLERATION]}}}
    for index, count in enumerate([1, 2, 3, 1, 4, 2]):
        cluster.apply(job(f"job-{index}", "sleep 0.2", changes=spec, resources=gpus(count)))
    for index in range(6):
        assert finished(cluster, f"job-{index}")["succeeded"] == 1
    report = cluster.use_report()
    assert report.by_node == {"gpu-1": report.total}
    assert 3 <= report.total <= 4


def test_a_waiting_pod_of_higher_priority_goes_first(cluster: Cluster) -> None:
    cluster.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "urgent"},
            "value": 1000,
        }
    )
    spec: Object = {"tolerations": [GPU_TOLERATION]}
    cluster.apply(pod("holder", POLITE, spec=spec, resources=gpus(4)))
    cluster.until(lambda: read(cluster, cluster.get("pods", NAMESPACE, "holder")))
    cluster.apply(pod("patient", DEAF, spec=spec, resources=gpus(4)))
    cluster.apply(pod("urgent", DEAF, spec=spec | {"priorityClassName": "urgent"}, resources=gpus(4)))
    cluster.kill(cluster.get("pods", NAMESPACE, "holder"), signal.SIGTERM)
    cluster.until(lambda: cluster.get("pods", NAMESPACE, "urgent")["status"]["phase"] == "Running")
    assert cluster.get("pods", NAMESPACE, "patient")["status"]["phase"] == "Pending"
    with pytest.raises(ApiError, match="no PriorityClass with name other was found"):
        cluster.apply(pod("unknown", spec={"priorityClassName": "other"}))


def test_an_evicted_pod_gets_sigterm_and_says_why_it_ended(cluster: Cluster, clients: Clients) -> None:
    cluster.apply(job("a", POLITE.replace("echo stopped", "sleep 1; echo stopped")))
    pod = started(cluster, "a")
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    clients.core.create_namespaced_pod_eviction(name, NAMESPACE, eviction)
    assert conditions(now(cluster, pod))["DisruptionTarget"] == "EvictionByEvictionAPI"
    assert conditions({"status": finished(cluster, "a")})["Failed"] == "BackoffLimitExceeded"
    assert read(cluster, pod) == "started\nstopped\n"


def test_an_evicted_pod_is_replaced_where_the_failure_policy_ignores_disruptions(cluster: Cluster) -> None:
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    cluster.apply(job("a", POLITE, changes={"podFailurePolicy": {"rules": [rule]}}))
    first = started(cluster, "a")
    cluster.evict(first)
    cluster.until(lambda: pod_of(cluster, "a")["metadata"]["uid"] != first["metadata"]["uid"])
    assert "failed" not in cluster.get("jobs", NAMESPACE, "a")["status"]


def test_a_pod_that_a_disruption_budget_protects_is_not_evicted(cluster: Cluster, clients: Clients) -> None:
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget"}
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"job-name": "a"}}}
    cluster.apply(budget | {"metadata": {"name": "a", "namespace": NAMESPACE}, "spec": spec})
    cluster.apply(job("a", POLITE))
    name = started(cluster, "a")["metadata"]["name"]
    with pytest.raises(ApiException, match="would violate the pod's disruption budget") as caught:
        clients.core.create_namespaced_pod_eviction(name, NAMESPACE, {"metadata": {"name": name}})
    assert caught.value.status == 429


def test_pods_of_a_lost_node_hang_in_terminating_until_they_are_forced_away(
    cluster: Cluster, clients: Clients
) -> None:
    """As seen in a real cluster: the Job stays in FailureTarget, its pod in Terminating, for good."""
    cluster.apply(job("a", DEAF, changes={"template": {"spec": {"tolerations": [SHORT_TOLERATION]}}}))
    lost = started(cluster, "a")
    cluster.lose_node("cpu-1")
    cluster.until(lambda: "FailureTarget" in conditions(cluster.get("jobs", NAMESPACE, "a")))
    taints = cluster.get("nodes", "", "cpu-1")["spec"]["taints"]
    assert {taint["key"] for taint in taints} == {"node.kubernetes.io/unreachable"}
    status = cluster.until(lambda: _if_failed(cluster.get("jobs", NAMESPACE, "a")["status"]))
    assert (status.get("active"), status["terminating"]) == (None, 1)
    assert "Failed" not in conditions({"status": status})
    stuck = cluster.get("pods", NAMESPACE, lost["metadata"]["name"])
    assert "deletionTimestamp" in stuck["metadata"]
    assert conditions(stuck)["DisruptionTarget"] == "DeletionByTaintManager"
    clients.core.delete_namespaced_pod(stuck["metadata"]["name"], NAMESPACE, grace_period_seconds=0)
    assert is_gone(cluster, stuck)
    assert conditions({"status": finished(cluster, "a")})["Failed"] == "BackoffLimitExceeded"


def _if_failed(status: Object) -> Object | None:
    return status if status.get("failed") and not status.get("active") else None


def test_processes_of_a_lost_node_may_run_on_and_end_when_it_returns(cluster: Cluster) -> None:
    spec = {"terminationGracePeriodSeconds": 1, "tolerations": [SHORT_TOLERATION]}
    cluster.apply(job("a", DEAF, changes={"template": {"spec": spec}}))
    lost = started(cluster, "a")
    cluster.lose_node("cpu-1", kill_processes=False)
    cluster.until(lambda: "deletionTimestamp" in now(cluster, lost)["metadata"])
    assert cluster.processes(lost)
    with pytest.raises(ApiError, match="connection refused"):
        cluster.logs(lost)
    cluster.return_node("cpu-1")
    cluster.until(lambda: is_gone(cluster, lost))
    assert not cluster.processes(lost)
    cluster.apply(job("b"))
    assert finished(cluster, "b")["succeeded"] == 1


def test_a_node_added_later_takes_the_pods_that_waited_for_it(cluster: Cluster) -> None:
    cluster.apply(pod("a", spec={"nodeSelector": {"pool": "new"}}))
    cluster.until(lambda: cluster.events(cluster.get("pods", NAMESPACE, "a")))
    cluster.add_node(Node("new-1", labels={"pool": "new"}))
    cluster.until(lambda: cluster.get("pods", NAMESPACE, "a")["status"]["phase"] == "Succeeded")
