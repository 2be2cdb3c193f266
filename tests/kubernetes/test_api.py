"""The stand-in's API through the official client: what it refuses, finds and watches, and its faults."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import urllib3
from kubernetes.client.rest import ApiException

from tests.kubernetes import Cluster, User
from tests.kubernetes.clients import NAMESPACE, Clients, connect, job, pod


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without nodes: pods stay as they are written."""
    with Cluster(tmp_path, nodes=[], namespaces=[NAMESPACE]) as cluster:
        yield cluster


def refused(call: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
    """The code and the message with which the API refuses a call."""
    with pytest.raises(ApiException) as caught:
        call(*arguments, **options)
    body = json.loads(caught.value.body)
    assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", caught.value.status)
    return caught.value.status, body["message"]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            {"backofLimit": 1},
            400,
            'cannot be handled as a Job: strict decoding error: unknown field "spec.backofLimit"',
        ),
        (
            {"template": {"spec": {"containers": [{"image": "a"}]}}},
            422,
            "spec.template.spec.containers[0].name: Required",
        ),
        ({"template": {"spec": {"containers": []}}}, 422, "spec.template.spec.containers: Required value"),
        ({"backoffLimit": "one"}, 400, "spec.backoffLimit"),
        ({"template": {"spec": {"restartPolicy": "Always"}}}, 422, 'Unsupported value: "Always"'),
        (
            {"template": {"metadata": {"labels": {"a": "x|y"}}}},
            422,
            'Invalid value: "x|y": a valid label must',
        ),
        ({"template": {"metadata": {"labels": {"a": "x" * 64}}}}, 422, "must be no more than 63 bytes"),
        (
            {"template": {"metadata": {"annotations": {"a b": "c"}}}},
            422,
            'Invalid value: "a b": name part must',
        ),
    ],
)
def test_a_job_that_a_real_server_refuses_is_refused_and_the_field_is_named(
    clients: Clients, changes: dict[str, Any], code: int, message: str
) -> None:
    answer = refused(clients.batch.create_namespaced_job, NAMESPACE, job("a", changes=changes))
    assert answer[0] == code
    assert message in answer[1]


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"resources": {"limits": {"memory": "2 GB"}}}, "quantities must match the regular expression"),
        (
            {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
            "less than or equal to cpu limit",
        ),
        ({"resources": {"requests": {"nvidia.com/gpu": 1}}}, "Limit must be set for non overcommitable"),
        (
            {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
            'volumeMounts[0].name: Not found: "data"',
        ),
        ({"name": "Main"}, 'Invalid value: "Main": a lowercase RFC 1123 label'),
        ({"image": ""}, "spec.template.spec.containers[0].image: Required value"),
    ],
)
def test_a_container_that_could_not_run_is_refused(
    clients: Clients, container: dict[str, Any], message: str
) -> None:
    assert message in refused(clients.batch.create_namespaced_job, NAMESPACE, job("a", **container))[1]


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "x" * 64])
def test_a_job_name_that_is_no_dns_name_or_no_label_is_refused(clients: Clients, name: str) -> None:
    assert refused(clients.batch.create_namespaced_job, NAMESPACE, job(name))[0] == 422


def test_names_are_looked_up_and_taken_once(clients: Clients) -> None:
    clients.batch.create_namespaced_job(NAMESPACE, job("a", changes={"suspend": True}))
    assert refused(clients.batch.create_namespaced_job, NAMESPACE, job("a")) == (
        409,
        'jobs.batch "a" already exists',
    )
    assert refused(clients.batch.read_namespaced_job, "b", NAMESPACE) == (404, 'jobs.batch "b" not found')
    elsewhere = job("a") | {"metadata": {"name": "a"}}
    assert refused(clients.batch.create_namespaced_job, "nowhere", elsewhere) == (
        404,
        'namespaces "nowhere" not found',
    )
    generated = clients.core.create_namespaced_config_map(NAMESPACE, {"metadata": {"generateName": "some-"}})
    assert len(generated.metadata.name) == len("some-") + 5
    assert generated.metadata.uid


def test_a_jobs_template_stays_and_an_old_version_is_not_written(clients: Clients) -> None:
    first = clients.batch.create_namespaced_job(NAMESPACE, job("a", changes={"suspend": True}))
    image = {"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "other"}]}}}}
    code, message = refused(clients.batch.patch_namespaced_job, "a", NAMESPACE, image)
    assert code == 422
    assert "spec.template: Invalid value" in message
    assert "field is immutable" in message
    patched = clients.batch.patch_namespaced_job("a", NAMESPACE, {"spec": {"parallelism": 2}})
    assert patched.spec.parallelism == 2
    first.spec.parallelism = 3
    code, message = refused(clients.batch.replace_namespaced_job, "a", NAMESPACE, first)
    assert code == 409
    assert "the object has been modified; please apply your changes" in message


def test_a_dry_run_validates_and_stores_nothing(cluster: Cluster, clients: Clients) -> None:
    clients.batch.create_namespaced_job(NAMESPACE, job("a"), dry_run="All")
    assert refused(clients.batch.create_namespaced_job, NAMESPACE, job("A"), dry_run="All")[0] == 422
    assert cluster.list("jobs") == []


def test_apply_creates_and_then_merges(clients: Clients) -> None:
    apply = {"field_manager": "tests", "_content_type": "application/apply-patch+yaml"}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}}
    clients.core.patch_namespaced_config_map("settings", NAMESPACE, manifest, **apply)
    clients.core.patch_namespaced_config_map("settings", NAMESPACE, manifest | {"data": {"b": "2"}}, **apply)
    assert clients.core.read_namespaced_config_map("settings", NAMESPACE).data == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("size=tiny", ["a"]),
        ("size!=tiny", ["b", "c"]),
        ("size in (tiny, large),model", ["a", "b"]),
        ("size notin (tiny)", ["b", "c"]),
        ("!size", ["c"]),
        ("model==x", ["a", "b"]),
    ],
)
def test_label_selectors_choose_as_the_real_ones(clients: Clients, selector: str, names: list[str]) -> None:
    for name, labels in {
        "a": {"size": "tiny", "model": "x"},
        "b": {"size": "large", "model": "x"},
        "c": {},
    }.items():
        clients.core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": name, "labels": labels}})
    found = clients.core.list_namespaced_config_map(NAMESPACE, label_selector=selector).items
    assert [entry.metadata.name for entry in found] == names


def test_field_selectors_choose_and_unknown_fields_are_refused(clients: Clients) -> None:
    for name in ("a", "b"):
        clients.core.create_namespaced_pod(NAMESPACE, pod(name))
    by_name = clients.core.list_namespaced_pod(NAMESPACE, field_selector="metadata.name=a").items
    assert [entry.metadata.name for entry in by_name] == ["a"]
    pending = "status.phase=Pending,spec.nodeName="
    assert len(clients.core.list_pod_for_all_namespaces(field_selector=pending).items) == 2
    assert refused(clients.core.list_namespaced_pod, NAMESPACE, field_selector="spec.containers=a")[0] == 400


def test_a_watch_tells_what_is_added_changed_and_deleted(clients: Clients) -> None:
    def change() -> None:
        clients.core.create_namespaced_config_map(
            NAMESPACE, {"metadata": {"name": "a", "labels": {"x": "1"}}}
        )
        clients.core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"b": "c"}})
        clients.core.delete_namespaced_config_map("a", NAMESPACE)

    version = clients.core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    thread = threading.Thread(target=change)
    thread.start()
    watch, seen = kubernetes.watch.Watch(), []
    for event in watch.stream(
        clients.core.list_namespaced_config_map, NAMESPACE, label_selector="x=1", resource_version=version
    ):
        seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            watch.stop()
    thread.join()
    assert seen == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_a_watch_from_a_forgotten_version_gets_410(cluster: Cluster, clients: Clients) -> None:
    cluster.forget_history()
    watch = kubernetes.watch.Watch().stream(
        clients.core.list_namespaced_pod, NAMESPACE, resource_version="1", timeout_seconds=5
    )
    with pytest.raises(ApiException) as caught:
        next(watch)
    assert caught.value.status == 410


def test_a_token_may_do_what_it_is_allowed_to_and_nothing_else(tmp_path: Path) -> None:
    account = f"system:serviceaccount:{NAMESPACE}:daemon"
    tokens = {"daemon": User(account, frozenset({("create", "jobs"), ("get", "jobs/status")}))}
    with Cluster(tmp_path, nodes=[], namespaces=[NAMESPACE], tokens=tokens) as cluster:
        clients = connect(cluster, "daemon")
        clients.batch.create_namespaced_job(NAMESPACE, job("a"))
        clients.batch.read_namespaced_job_status("a", NAMESPACE)
        assert refused(clients.batch.delete_namespaced_job, "a", NAMESPACE) == (
            403,
            f'jobs.batch "a" is forbidden: User "{account}" cannot delete resource "jobs" in API group '
            f'"batch" in the namespace "{NAMESPACE}"',
        )
        assert (
            'cannot list resource "pods" in API group ""'
            in refused(clients.core.list_namespaced_pod, NAMESPACE)[1]
        )
        assert refused(connect(cluster, "stranger").core.list_namespaced_pod, NAMESPACE)[0] == 401
        assert {request.user for request in cluster.requests} == {account, "system:anonymous"}


def test_roles_in_the_cluster_decide_for_a_token_without_a_list(tmp_path: Path) -> None:
    tokens = {"web": User(f"system:serviceaccount:{NAMESPACE}:web")}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "delete"]}
    role = {"kind": "Role", "metadata": {"name": "web", "namespace": NAMESPACE}, "rules": [rule]}
    binding = {
        "kind": "RoleBinding",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "web"},
        "subjects": [{"kind": "ServiceAccount", "name": "web", "namespace": NAMESPACE}],
    }
    with Cluster(tmp_path, nodes=[], namespaces=[NAMESPACE], tokens=tokens) as cluster:
        clients = connect(cluster, "web")
        assert refused(clients.core.list_namespaced_pod, NAMESPACE)[0] == 403
        cluster.apply(rbac | role)
        cluster.apply(rbac | binding)
        assert clients.core.list_namespaced_pod(NAMESPACE).items == []
        assert refused(clients.core.list_namespaced_pod, "default")[0] == 403
        assert refused(clients.core.read_namespaced_pod_log, "a", NAMESPACE)[0] == 403
        for verb, allowed in (("delete", True), ("create", False)):
            attributes = {"verb": verb, "resource": "pods", "namespace": NAMESPACE}
            review = clients.authorization.create_self_subject_access_review(
                {"spec": {"resourceAttributes": attributes}}
            )
            assert review.status.allowed is allowed


def test_a_service_account_gets_a_token_that_may_what_the_account_may(tmp_path: Path) -> None:
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": NAMESPACE}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    base = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": {"name": "reader", "namespace": NAMESPACE},
    }
    with Cluster(tmp_path, namespaces=[NAMESPACE], tokens={"weak": User("weak", frozenset())}) as cluster:
        cluster.apply({**base, "kind": "Role", "rules": rules})
        cluster.apply({**base, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]})
        request = {"spec": {"audiences": [], "expirationSeconds": 600}}
        ask = connect(cluster).core.create_namespaced_service_account_token
        clients = connect(cluster, ask("default", NAMESPACE, request).status.token)
        assert clients.core.list_namespaced_pod(NAMESPACE).items == []
        assert refused(clients.core.list_namespaced_secret, NAMESPACE)[0] == 403
        weak = connect(cluster, "weak").core.create_namespaced_service_account_token
        assert refused(weak, "default", NAMESPACE, request)[0] == 403


def test_applying_what_is_not_there_takes_the_permission_to_create(tmp_path: Path) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": NAMESPACE}}
    allowed = frozenset({("patch", "configmaps")})
    with Cluster(tmp_path, namespaces=[NAMESPACE], tokens={"weak": User("weak", allowed)}) as cluster:
        apply = connect(cluster, "weak").core.patch_namespaced_config_map
        options = {"field_manager": "test", "_content_type": "application/apply-patch+yaml"}
        assert refused(apply, "a", NAMESPACE, body, **options)[0] == 403
        cluster.apply(body)
        assert apply("a", NAMESPACE, body, **options).metadata.name == "a"


def test_the_volumes_of_a_stateful_set_may_come_from_its_claims(clients: Clients) -> None:
    claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
    container = {"name": "a", "image": "a", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "serviceName": "a", "template": template}
    apps = kubernetes.client.AppsV1Api(clients.core.api_client)
    body = {"metadata": {"name": "a"}, "spec": {**spec, "volumeClaimTemplates": [claim]}}
    apps.create_namespaced_stateful_set(NAMESPACE, body)
    status, message = refused(
        apps.create_namespaced_stateful_set, NAMESPACE, {"metadata": {"name": "b"}, "spec": spec}
    )
    assert status == 422
    assert 'volumeMounts[0].name: Not found: "data"' in message


def test_a_job_beyond_the_quota_is_refused(cluster: Cluster, clients: Clients) -> None:
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "jobs", "namespace": NAMESPACE},
            "spec": {"hard": {"count/jobs.batch": "1"}},
        }
    )
    clients.batch.create_namespaced_job(NAMESPACE, job("a"))
    assert refused(clients.batch.create_namespaced_job, NAMESPACE, job("b")) == (
        403,
        'jobs.batch "b" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, '
        "used: count/jobs.batch=1, limited: count/jobs.batch=1",
    )


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
def test_a_fault_answers_with_a_status_for_as_often_as_asked(
    cluster: Cluster, clients: Clients, code: int
) -> None:
    cluster.fault(("POST", "/jobs"), code, times=1)
    with pytest.raises(ApiException) as caught:
        clients.batch.create_namespaced_job(NAMESPACE, job("a"))
    assert caught.value.status == code
    assert ("Retry-After" in caught.value.headers) is (code == 429)
    assert cluster.list("jobs") == []
    clients.batch.create_namespaced_job(NAMESPACE, job("a"))
    assert [request.status for request in cluster.requests] == [code, 201]


@pytest.mark.parametrize(("answer", "stored"), [("hang", 0), ("cut", 0), ("lost", 1)])
def test_a_fault_gives_no_answer_and_only_a_lost_one_was_carried_out(
    cluster: Cluster, clients: Clients, answer: str, stored: int
) -> None:
    cluster.fault(("POST", "/jobs"), answer, seconds=60)
    with pytest.raises(urllib3.exceptions.HTTPError):
        clients.batch.create_namespaced_job(NAMESPACE, job("a"), _request_timeout=0.5)
    assert len(cluster.list("jobs")) == stored
    assert clients.core.list_namespaced_pod(NAMESPACE) is not None
    cluster.clear_faults()
    cluster.until(lambda: [request.status for request in cluster.requests].count(None) == 1)


def test_a_server_that_stops_answering_comes_back_and_processes_run_on(tmp_path: Path) -> None:
    with Cluster(tmp_path, namespaces=[NAMESPACE]) as cluster:
        clients = connect(cluster)
        clients.batch.create_namespaced_job(NAMESPACE, job("a", "sleep 0.5; echo done"))
        running = cluster.until(lambda: cluster.list("pods", labels="job-name=a"))[0]
        cluster.until(lambda: cluster.processes(running))
        cluster.stop_answering(1.5)
        with pytest.raises(urllib3.exceptions.MaxRetryError, match="Connection refused"):
            clients.core.list_namespaced_pod(NAMESPACE)
        cluster.until(lambda: not cluster.processes(running))
        cluster.until(lambda: _answers(cluster))
        assert clients.core.read_namespaced_pod_log(running["metadata"]["name"], NAMESPACE)
        cluster.until(lambda: cluster.get("jobs", NAMESPACE, "a")["status"].get("succeeded"))


def _answers(cluster: Cluster) -> bool:
    try:
        with urllib.request.urlopen(f"{cluster.url}/readyz", timeout=5):
            return True
    except OSError:
        return False
