"""The stand-in's Jobs, pods and admission: Jobs run as processes and end as in a real cluster."""

import base64
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster_k8s.client import DagsterKubernetesClient

from tests.kubernetes import ApiError, Cluster, Object
from tests.kubernetes.clients import (
    DEAF,
    GPU_TOLERATION,
    NAMESPACE,
    POLITE,
    Clients,
    conditions,
    connect,
    end_of,
    finished,
    is_gone,
    job,
    namespaced,
    now,
    pod,
    pod_of,
    read,
    started,
    waiting,
)
from tests.kubernetes.store import KINDS


def test_a_job_runs_its_container_with_exactly_its_environment(tmp_path: Path) -> None:
    source = {"secretKeyRef": {"name": "keys", "key": "token"}}
    env = [
        {"name": "PLAIN", "value": "1"},
        {"name": "TOKEN", "valueFrom": source},
        {"name": "BOTH", "value": "$(PLAIN)-$(TOKEN)-$(GREETING)"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ]
    container: Object = {
        "env": env,
        "envFrom": [{"configMapRef": {"name": "settings"}}],
        "resources": {"limits": {"cpu": "1500m"}},
        "workingDir": "/app/part",
        "command": ["/usr/bin/env"],
    }
    (tmp_path / "source" / "part").mkdir(parents=True)
    with Cluster(
        tmp_path,
        namespaces=[NAMESPACE],
        base_environment={"PATH": "/usr/bin:/bin"},
        path_map={"/app": tmp_path / "source"},
    ) as cluster:
        cluster.apply(namespaced("Secret", "keys", data={"token": base64.b64encode(b"secret").decode()}))
        cluster.apply(namespaced("ConfigMap", "settings", data={"GREETING": "hello"}))
        connect(cluster).batch.create_namespaced_job(NAMESPACE, job("a", **container))
        assert finished(cluster, "a")["succeeded"] == 1
        lines = set(cluster.logs(pod_of(cluster, "a")).split())
        assert lines == {
            *("PATH=/usr/bin:/bin", "PLAIN=1", "TOKEN=secret", "BOTH=1-secret-hello", "GREETING=hello"),
            *("NODE=node-1", "CPUS=2"),
        }
        cluster.apply(job("b", "pwd", workingDir="/app/part"))
        finished(cluster, "b")
        assert cluster.logs(pod_of(cluster, "b")).strip() == str(tmp_path / "source" / "part")


def test_a_job_that_succeeds_is_complete_and_its_log_can_be_read(cluster: Cluster, clients: Clients) -> None:
    clients.batch.create_namespaced_job(NAMESPACE, job("a", "echo one; echo two >&2; echo three"))
    status = finished(cluster, "a")
    assert (status["succeeded"], status.get("active"), status.get("failed")) == (1, None, None)
    assert status["completionTime"]
    name = pod_of(cluster, "a")["metadata"]["name"]
    make_client: Any = DagsterKubernetesClient.production_client  # it has no types
    client = make_client(clients.batch, clients.core)
    assert client.retrieve_pod_logs(name, NAMESPACE) == "one\ntwo\nthree\n"
    assert client.retrieve_pod_logs(name, NAMESPACE, container_name="main", tail_lines=1) == "three\n"
    assert "Terminated with exit code 0: Completed" in client.get_pod_debug_info(name, NAMESPACE)
    client.wait_for_job_success("a", NAMESPACE, wait_timeout=5.0)
    assert ("Completed", "Job completed") in cluster.events(cluster.get("jobs", NAMESPACE, "a"))


def test_a_job_fails_when_its_retries_are_spent(cluster: Cluster) -> None:
    cluster.apply(job("a", "exit 3", changes={"backoffLimit": 1}))
    status = finished(cluster, "a")
    assert status["failed"] == 2
    reasons = conditions({"status": status})
    assert reasons == dict.fromkeys(("FailureTarget", "Failed"), "BackoffLimitExceeded")
    assert [end_of(pod) for pod in cluster.list("pods", NAMESPACE)] == [("Error", 3)] * 2


def test_a_container_over_its_memory_limit_is_killed(cluster: Cluster) -> None:
    hold = "import time; block = b'x' * (300 << 20); time.sleep(60)"
    script = f'{sys.executable} -c "{hold}" & wait'
    cluster.apply(job("a", script, resources={"limits": {"memory": "100Mi"}}))
    assert finished(cluster, "a")["failed"] == 1
    assert end_of(pod_of(cluster, "a")) == ("OOMKilled", 137)


def test_a_job_deleted_without_a_word_leaves_its_pods(cluster: Cluster, clients: Clients) -> None:
    cluster.apply(job("a", POLITE))
    pod = started(cluster, "a")
    clients.batch.delete_namespaced_job("a", NAMESPACE)
    assert "ownerReferences" not in now(cluster, pod)["metadata"]
    assert cluster.processes(pod)
    clients.core.delete_namespaced_pod(pod["metadata"]["name"], NAMESPACE)
    cluster.until(lambda: is_gone(cluster, pod))
    assert not cluster.processes(pod)
    assert read(cluster, pod) == "started\nstopped\n"


def test_a_namespace_goes_when_everything_in_it_has_ended(cluster: Cluster, clients: Clients) -> None:
    cluster.apply(job("a", DEAF, changes={"template": {"spec": {"terminationGracePeriodSeconds": 1}}}))
    pod = started(cluster, "a")
    clients.core.delete_namespace(NAMESPACE)
    assert cluster.get("namespaces", "", NAMESPACE)["status"]["phase"] == "Terminating"
    with pytest.raises(ApiError, match="because it is being terminated"):
        cluster.apply(job("b"))
    cluster.until(lambda: cluster.find("namespaces", "", NAMESPACE) is None)
    assert not cluster.processes(pod)
    cluster.until(lambda: not any(cluster.list(plural, NAMESPACE) for plural in KINDS))


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
def test_a_job_deleted_with_its_pods_ends_them_with_grace(
    cluster: Cluster, clients: Clients, policy: str
) -> None:
    cluster.apply(job("a", POLITE))
    pod = started(cluster, "a")
    clients.batch.delete_namespaced_job("a", NAMESPACE, propagation_policy=policy)
    cluster.until(lambda: is_gone(cluster, pod) and cluster.find("jobs", NAMESPACE, "a") is None)
    assert read(cluster, pod) == "started\nstopped\n"


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(cluster: Cluster, clients: Clients) -> None:
    cluster.apply(job("a", DEAF))
    pod = started(cluster, "a")
    answer = clients.core.delete_namespaced_pod(pod["metadata"]["name"], NAMESPACE, grace_period_seconds=2)
    assert answer.metadata.deletion_timestamp is not None
    assert answer.metadata.deletion_grace_period_seconds == 2
    assert cluster.processes(pod)
    cluster.until(lambda: is_gone(cluster, pod))
    assert not cluster.processes(pod)
    assert finished(cluster, "a")["failed"] == 1


def test_an_image_that_cannot_be_pulled_is_told_and_tried_again(cluster: Cluster) -> None:
    cluster.broken_images.add("image")
    cluster.apply(job("a"))
    pod = pod_of(cluster, "a")
    cluster.until(lambda: waiting(cluster, pod) == "ErrImagePull")
    cluster.until(lambda: waiting(cluster, pod) == "ImagePullBackOff")
    cluster.until(lambda: ("Failed", "Error: ImagePullBackOff") in cluster.events(pod))
    with pytest.raises(ApiError, match="is waiting to start: trying and failing to pull image"):
        cluster.logs(pod)
    cluster.broken_images.clear()
    assert finished(cluster, "a")["succeeded"] == 1


def test_a_missing_secret_holds_a_container_until_it_is_there(cluster: Cluster) -> None:
    cluster.apply(job("a", "echo $TOKEN", envFrom=[{"secretRef": {"name": "keys"}}]))
    pod = pod_of(cluster, "a")
    cluster.until(lambda: waiting(cluster, pod) == "CreateContainerConfigError")
    assert ("Failed", 'Error: secret "keys" not found') in cluster.events(pod)
    cluster.apply(namespaced("Secret", "keys", stringData={"TOKEN": "secret"}))
    assert finished(cluster, "a")["succeeded"] == 1
    assert cluster.logs(pod) == "secret\n"


def test_a_missing_volume_holds_a_pod(cluster: Cluster) -> None:
    mount = {"name": "settings", "configMap": {"name": "settings"}}
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    cluster.apply(pod("a", spec={"volumes": [mount]}))
    cluster.apply(pod("b", spec={"volumes": [claim]}))
    failure = 'MountVolume.SetUp failed for volume "settings" : configmap "settings" not found'
    cluster.until(lambda: ("FailedMount", failure) in cluster.events(cluster.get("pods", NAMESPACE, "a")))
    reason = cluster.until(lambda: cluster.events(cluster.get("pods", NAMESPACE, "b")))[0]
    assert reason[0] == "FailedScheduling"
    assert 'persistentvolumeclaim "data" not found' in reason[1]


def test_init_containers_run_first_and_one_that_fails_ends_the_pod(cluster: Cluster) -> None:
    def steps(*scripts: str) -> Object:
        commands = [["sh", "-c", script] for script in scripts]
        names = [f"step-{index}" for index in range(len(scripts))]
        pairs = zip(names, commands, strict=True)
        return {"initContainers": [{"name": n, "image": "image", "command": c} for n, c in pairs]}

    shared = "../order"  # beside the folders of the pods
    cluster.apply(pod("a", f"cat {shared}", spec=steps(f"echo 1 > {shared}", f"echo 2 >> {shared}")))
    cluster.apply(pod("b", spec=steps("exit 5")))
    cluster.until(lambda: cluster.get("pods", NAMESPACE, "a")["status"]["phase"] == "Succeeded")
    assert cluster.logs(cluster.get("pods", NAMESPACE, "a")) == "1\n2\n"
    cluster.until(lambda: cluster.get("pods", NAMESPACE, "b")["status"]["phase"] == "Failed")
    with pytest.raises(ApiError, match="is waiting to start: PodInitializing"):
        cluster.logs(cluster.get("pods", NAMESPACE, "b"))


def test_a_command_that_is_not_there_fails_the_pod(cluster: Cluster) -> None:
    cluster.apply(job("a", command=["no-such-program"]))
    assert finished(cluster, "a")["failed"] == 1
    assert end_of(pod_of(cluster, "a")) == ("StartError", 128)


def test_pods_beyond_the_quota_are_refused_and_made_when_there_is_room(cluster: Cluster) -> None:
    hard = {"requests.nvidia.com/gpu": "2", "limits.memory": "4Gi"}
    cluster.apply(namespaced("ResourceQuota", "compute", spec={"hard": hard}))
    limits = {"limits": {"nvidia.com/gpu": 2, "memory": "3Gi"}}
    spec = {"template": {"spec": {"tolerations": [GPU_TOLERATION]}}}
    cluster.apply(job("first", POLITE, changes=spec, resources=limits))
    started(cluster, "first")
    second = cluster.apply(job("second", changes=spec, resources=limits))
    reason, message = cluster.until(lambda: cluster.events(second))[0]
    assert reason == "FailedCreate"
    assert (
        "is forbidden: exceeded quota: compute, requested: limits.memory=3Gi,requests.nvidia.com/gpu=2, "
        "used: limits.memory=3Gi,requests.nvidia.com/gpu=2, "
        "limited: limits.memory=4Gi,requests.nvidia.com/gpu=2"
    ) in message
    used = cluster.get("resourcequotas", NAMESPACE, "compute")["status"]["used"]
    assert used == {"requests.nvidia.com/gpu": "2", "limits.memory": "3Gi"}
    unlimited = cluster.apply(job("third", changes=spec))
    message = cluster.until(lambda: cluster.events(unlimited))[0][1]
    assert "failed quota: compute: must specify limits.memory for: main" in message
    cluster.kill(pod_of(cluster, "first"), signal.SIGTERM)
    assert finished(cluster, "second")["succeeded"] == 1


def test_pod_security_refuses_the_pod_and_not_the_job(cluster: Cluster) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    )
    bad = cluster.apply(job("bad"))
    reason, message = cluster.until(lambda: cluster.events(bad))[0]
    assert reason == "FailedCreate"
    assert message.endswith(
        'violates PodSecurity "restricted:latest": '
        'allowPrivilegeEscalation != false (container "main" must set '
        "securityContext.allowPrivilegeEscalation=false), "
        'unrestricted capabilities (container "main" must set securityContext.capabilities.drop=["ALL"]), '
        'runAsNonRoot != true (pod or container "main" must set '
        'securityContext.runAsNonRoot=true), seccompProfile (pod or container "main" must set '
        'securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")'
    )
    strict = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    profile = {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}
    cluster.apply(job("good", changes={"template": {"spec": profile}}, securityContext=strict))
    assert finished(cluster, "good")["succeeded"] == 1


def test_a_limit_range_fills_in_what_a_pod_leaves_open(cluster: Cluster) -> None:
    limit = {"type": "Container", "default": {"memory": "1Gi"}, "defaultRequest": {"memory": "512Mi"}}
    cluster.apply(namespaced("LimitRange", "defaults", spec={"limits": [limit]}))
    cluster.apply(job("a"))
    resources = pod_of(cluster, "a")["spec"]["containers"][0]["resources"]
    assert resources == {"limits": {"memory": "1Gi"}, "requests": {"memory": "512Mi"}}


def test_a_suspended_job_has_no_pods_until_it_is_resumed(cluster: Cluster) -> None:
    cluster.apply(job("a", changes={"suspend": True}))
    cluster.until(lambda: "Suspended" in conditions(cluster.get("jobs", NAMESPACE, "a")))
    assert cluster.list("pods", NAMESPACE) == []
    cluster.apply(job("a", changes={"suspend": False}) | {"spec": {"suspend": False}})
    assert finished(cluster, "a")["succeeded"] == 1


def test_a_job_past_its_deadline_fails_and_its_pod_is_ended(cluster: Cluster) -> None:
    cluster.apply(job("a", POLITE, changes={"activeDeadlineSeconds": 1}))
    pod = pod_of(cluster, "a")
    assert conditions({"status": finished(cluster, "a")})["Failed"] == "DeadlineExceeded"
    assert is_gone(cluster, pod)
    cluster.until(lambda: not cluster.processes(pod))


def test_a_pod_past_its_deadline_fails(cluster: Cluster) -> None:
    cluster.apply(pod("a", POLITE, spec={"activeDeadlineSeconds": 1}))
    cluster.until(lambda: cluster.get("pods", NAMESPACE, "a")["status"]["phase"] == "Failed")
    assert cluster.get("pods", NAMESPACE, "a")["status"]["reason"] == "DeadlineExceeded"


def test_a_finished_job_is_removed_after_its_time_to_live(cluster: Cluster) -> None:
    cluster.apply(job("a", changes={"ttlSecondsAfterFinished": 10}))
    finished(cluster, "a")
    cluster.until(lambda: cluster.list("jobs", NAMESPACE) + cluster.list("pods", NAMESPACE) == [])


def test_a_process_that_crashes_fails_its_pod(cluster: Cluster) -> None:
    cluster.apply(job("a", DEAF))
    cluster.kill(started(cluster, "a"), signal.SIGSEGV)
    finished(cluster, "a")
    assert end_of(pod_of(cluster, "a")) == ("Error", 139)


def test_no_process_survives_the_cluster_even_when_the_test_fails(tmp_path: Path) -> None:
    script = f'setsid sh -c "{DEAF.replace("echo started;", "")}" & {DEAF}'
    with pytest.raises(ZeroDivisionError), Cluster(tmp_path, namespaces=[NAMESPACE]) as cluster:
        cluster.apply(job("a", script))
        pod = started(cluster, "a")
        cluster.until(lambda: len(cluster.processes(pod)) >= 3)
        processes = cluster.processes(pod)
        raise ZeroDivisionError
    assert not any(_lives(process) for process in processes)
    assert not cluster.processes(pod)


def _lives(process: int) -> bool:
    try:  # a zombie is over too: only whoever inherited it has not looked
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
