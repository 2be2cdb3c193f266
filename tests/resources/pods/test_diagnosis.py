"""What a Job and its pods mean. The objects are as a control plane writes them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resources.pods.diagnosis import Finding, Seen, State, diagnose, explained, quantity
from resources.pods.tags import Kind

NOW = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def job(**conditions: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "j"},
        "status": {"conditions": [{"type": t, "status": "True", "reason": r} for t, r in conditions.items()]},
    }


def pod(
    phase: str = "Pending",
    *,
    conditions: list[dict[str, Any]] | None = None,
    container: Any = None,
    **metadata: Any,
) -> dict[str, Any]:
    status: dict[str, Any] = {"phase": phase, "conditions": conditions or []}
    if container is not None:
        status["containerStatuses"] = [{"name": "dagster", "image": "e:1", "state": container}]
    return {
        "metadata": {"name": "p", "creationTimestamp": ago(100), **metadata},
        "spec": {
            "nodeName": "gpu-1",
            "activeDeadlineSeconds": 600,
            "containers": [{"name": "dagster", "resources": {"limits": {"memory": "2Gi"}}}],
        },
        "status": status,
    }


def scheduled(message: str, seconds: float) -> list[dict[str, Any]]:
    return [
        {
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": ago(seconds),
        }
    ]  # fmt: skip


def bound(seconds: float) -> list[dict[str, Any]]:
    return [{"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(seconds)}]


def disruption(reason: str) -> dict[str, Any]:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason}


def found(
    pods: list[dict[str, Any]], warnings: list[dict[str, Any]] | None = None, **options: Any
) -> Finding:
    return diagnose(Seen(job(), pods, warnings or []), NOW, **options)


NO_GPU = "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) didn't match Pod's node affinity."
NO_NODE = (
    "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes."
)
NO_VOLUME = 'persistentvolumeclaim "model-cache" not found'
UNBOUND = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."


@pytest.mark.parametrize(
    ("message", "autoscaled", "state"),
    [
        (NO_GPU, False, State.WAITING), (NO_NODE, False, State.UNABLE), (NO_NODE, True, State.WAITING),
        (NO_VOLUME, False, State.UNABLE), (UNBOUND, True, State.UNABLE),
    ],
)  # fmt: skip
def test_waiting_for_capacity_and_being_unable_to_start_are_told_apart(
    message: str, autoscaled: bool, state: State
) -> None:
    """The first may take a day and is no failure; the second would wait for ever for nothing."""
    result = found([pod(conditions=scheduled(message, 31))], autoscaled=autoscaled)
    assert result.state is state
    assert result.reason == message


def test_what_may_pass_by_itself_gets_half_a_minute() -> None:
    assert found([pod(conditions=scheduled(NO_NODE, 10))]).state is State.WAITING
    pulling = {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}}
    assert found([pod(conditions=bound(10), container=pulling)]).state is State.WAITING
    result = found([pod(conditions=bound(40), container=pulling)])
    assert (result.state, result.reason) == (State.UNABLE, "ErrImagePull: manifest unknown")


@pytest.mark.parametrize("reason", ["InvalidImageName", "CreateContainerConfigError", "ImagePullBackOff"])
def test_a_container_that_cannot_be_made_is_unable(reason: str) -> None:
    result = found([pod(conditions=bound(40), container={"waiting": {"reason": reason, "message": "why"}})])
    assert (result.state, result.kind) == (State.UNABLE, Kind.UNABLE)


def refused(message: str, seconds: float = 40) -> list[dict[str, Any]]:
    return [{"type": "Warning", "reason": "FailedCreate", "message": message, "firstTimestamp": ago(seconds)}]


USED_UP = (
    'pods "x" is forbidden: exceeded quota: evaluation, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8"
)
TOO_MUCH = USED_UP.replace("gpu=1,", "gpu=16,")
SECURITY = (
    'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
)


@pytest.mark.parametrize(
    ("message", "state"), [(USED_UP, State.WAITING), (TOO_MUCH, State.UNABLE), (SECURITY, State.UNABLE)]
)
def test_a_refused_pod_waits_for_a_quota_that_is_used_up_only(message: str, state: State) -> None:
    """Only an event on the Job says so: without it the run would wait in silence."""
    result = found([], refused(message))
    assert result.state is state
    assert result.reason == f"its pod is refused: {message}"


def test_several_amounts_of_a_quota_are_compared_each() -> None:
    text = "exceeded quota: q, requested: limits.memory=2Gi,pods=1, used: limits.memory=9Gi,pods=3, limited: "
    assert found([], refused(f"{text}limits.memory=10Gi,pods=50")).state is State.WAITING
    assert found([], refused(f"{text}limits.memory=1Gi,pods=50")).state is State.UNABLE


def test_a_pod_killed_for_want_of_memory_says_at_which_limit() -> None:
    dead = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    result = found([pod("Failed", container=dead)])
    assert (result.state, result.kind, result.memory) == (State.FAILED, Kind.OUT_OF_MEMORY, 2 * 2**30)
    assert result.reason == "killed for want of memory at its limit of 2.00 GiB"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ({"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}, Kind.EVICTED),
        ({"reason": "Evicted", "message": "it exceeds its ephemeral storage"}, Kind.OUT_OF_STORAGE),
        ({"reason": "DeadlineExceeded"}, Kind.DEADLINE),
        ({"reason": "NodeLost"}, Kind.NODE_LOST),
        ({"conditions": [disruption("EvictionByEvictionAPI")]}, Kind.EVICTED),
        ({"conditions": [disruption("DeletionByTaintManager")]}, Kind.NODE_LOST),
        ({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 1}}}]}, Kind.CRASHED),
    ],
)  # fmt: skip
def test_a_pod_that_failed_is_evicted_lost_late_or_broken(status: dict[str, Any], kind: Kind) -> None:
    """The cluster's doing is tried again as it is; a crash is the run's own."""
    dead = pod("Failed")
    dead["status"] |= status
    result = found([dead])
    assert (result.state, result.kind) == (State.FAILED, kind)


def test_a_pod_whose_node_is_gone_is_not_waited_for() -> None:
    """Nobody confirms its end: it stays in Terminating, and its Job unfinished, for good."""
    taint = [disruption("DeletionByTaintManager")]
    left: dict[str, Any] = {"deletionTimestamp": ago(-40), "deletionGracePeriodSeconds": 60}
    assert found([pod("Running", conditions=taint, **left)]).kind is Kind.NODE_LOST  # told 20 s ago
    by_hand = pod("Running", **left)
    assert found([by_hand]).state is State.RUNNING  # it has its grace period
    by_hand["metadata"]["deletionTimestamp"] = ago(16)
    assert found([by_hand]).kind is Kind.NODE_LOST


def test_a_job_whose_pod_was_removed_is_over() -> None:
    result = diagnose(Seen(job(Failed="BackoffLimitExceeded")), NOW)
    assert (result.state, result.kind) == (State.FAILED, Kind.EVICTED)
    assert diagnose(Seen(job(Complete="CompletionsReached")), NOW).state is State.ENDED
    assert diagnose(Seen(), NOW).state is State.ABSENT


def test_a_job_that_its_queue_holds_back_waits() -> None:
    result = diagnose(Seen(job(Suspended="JobSuspended")), NOW)
    assert (result.state, result.reason) == (State.WAITING, "held back by its queue in the cluster")


def test_a_volume_that_cannot_be_mounted_is_named() -> None:
    event = {
        "type": "Warning",
        "reason": "FailedMount",
        "message": "no such volume",
        "firstTimestamp": ago(60),
    }
    result = found([pod(conditions=bound(60))], [event])
    assert (result.state, result.reason) == (State.UNABLE, "FailedMount: no such volume")


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("2", 2.0), ("2Gi", 2.0 * 2**30), ("1e3", 1000.0), ("1k", 1000.0), ("x", float("inf"))],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: str, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "Traceback (most recent call last):\n  ...\nModuleNotFoundError: No module named 'eval_assets'\n",
            "image e:1 has no package eval_assets: build it from the project's Dockerfile ('make image'), or "
            "correct the image's name",
        ),
        (
            "/usr/bin/python3: No module named dagster\n",
            "image e:1 has no package dagster: build it from the project's Dockerfile ('make image'), or "
            "correct the image's name",
        ),
        (
            'dagster_shared.serdes.errors.DeserializationError: Attempted to deserialize class "New"\n',
            "image e:1 has another version of Dagster than the daemon that launched the run: deploy "
            "webserver, daemon and runs from one image "
            '(dagster_shared.serdes.errors.DeserializationError: Attempted to deserialize class "New")',
        ),
    ],
)
def test_an_image_that_is_not_ours_is_named_and_not_tried_again(log: str, reason: str) -> None:
    crash = Finding(State.FAILED, "its process ended with status 1; its log says why", Kind.CRASHED)
    there = pod("Failed")
    there["spec"]["containers"][0]["image"] = "e:1"
    assert explained(crash, log, there) == Finding(State.UNABLE, reason, Kind.UNABLE)


def test_the_last_word_of_a_process_that_ended_early_is_its_reason() -> None:
    """The pod's log is gone with the pod."""
    crash = Finding(State.FAILED, "its process ended with status 1; its log says why", Kind.CRASHED)
    found = explained(crash, "starting\nOSError: no space left on device\n\n", pod("Failed"))
    assert found.reason == "its process ended with status 1: OSError: no space left on device"
    assert found.kind is Kind.CRASHED
    assert explained(crash, "", pod("Failed")) == crash


def test_an_image_without_the_command_is_not_tried_again() -> None:
    ended = {"terminated": {"exitCode": 128, "reason": "StartError", "message": 'exec: "dagster": not found'}}
    there = pod("Failed", container=ended)
    there["spec"]["containers"][0]["image"] = "e:1"
    found = diagnose(Seen(job(), [there]), NOW)
    assert (found.state, found.kind) == (State.FAILED, Kind.UNABLE)
    assert found.reason == 'image e:1 can\'t be started: exec: "dagster": not found'
