"""The whole cluster as a test uses it: to start, look at, disturb and end."""

import copy
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import yaml

from tests.kubernetes.access import ADMIN, User
from tests.kubernetes.api import Api
from tests.kubernetes.jobs import JobController, Upkeep
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.nodes import NodeLifecycle, Scheduler
from tests.kubernetes.pods import GPU, Host, UseReport
from tests.kubernetes.selectors import label_selector
from tests.kubernetes.server import Fault, Request, Server
from tests.kubernetes.store import Object, Store, kind_of, set_condition

ADMIN_TOKEN = "admin"
STEP_SECONDS = 0.05

Found = TypeVar("Found")
# Names of their own, since `list` is a method of Cluster.
Objects = list[Object]
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Node:
    """A node; taints are written as for kubectl, `nvidia.com/gpu=present:NoSchedule`.

    `start_seconds` is how long a pod takes there until its first container starts.
    """

    name: str
    cpu: str = "8"
    memory: str = "32Gi"
    pods: int = 110
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[str] = ()
    extended: Mapping[str, int] = field(default_factory=dict)
    start_seconds: float = 0.0

    def manifest(self) -> Object:
        """The Node object."""
        capacity = {"cpu": self.cpu, "memory": self.memory, "pods": str(self.pods)}
        capacity |= {GPU: str(self.gpus)} if self.gpus else {}
        capacity |= {resource: str(amount) for resource, amount in self.extended.items()}
        node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", **self.labels},
            },
            "spec": {"taints": [_taint(text) for text in self.taints]},
            "status": {"capacity": capacity, "allocatable": capacity},
        }
        set_condition(node, "Ready", "True", "KubeletReady", "kubelet is posting ready status")
        return node


def _taint(text: str) -> Object:
    pair, _, effect = text.rpartition(":")
    key, _, value = pair.partition("=")
    return {"key": key, "effect": effect} | ({"value": value} if value else {})


class Cluster:
    """A cluster that runs from `with` to the end of its block; none of its processes outlives it.

    `base_environment` is what every container gets beside its own env (PATH, HOME), `path_map` says where
    paths of the image (a workingDir) are on this machine. `tokens` turns authorization on; the kubeconfig's
    own token may do everything. A silent node is found out after `node_grace` seconds. Waits of the control
    plane (tolerationSeconds, back-offs, ttlSecondsAfterFinished) take `time_scale` of their time; what a
    process lives by (grace periods, deadlines) is real time.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Iterable[Node] = (Node("node-1"),),
        *,
        namespaces: Iterable[str] = (),
        tokens: Mapping[str, User] | None = None,
        base_environment: Mapping[str, str] | None = None,
        path_map: Mapping[str, Path] | None = None,
        node_grace: float = 2.0,
        time_scale: float = 0.05,
    ) -> None:
        self._store = Store()
        self._api = Api(self._store)
        base = {"PATH": os.environ["PATH"]} if base_environment is None else base_environment
        self._host = Host(self._api, folder / "pods", base, path_map or {}, time_scale)
        self._kubelet = Kubelet(self._host)
        users = {ADMIN_TOKEN: User(ADMIN), **tokens} if tokens else {}
        self._server = Server(self._api, self._kubelet.logs, users)
        self._steps = (
            JobController(self._api, time_scale).step,
            Scheduler(self._api).step,
            self._kubelet.step,
            NodeLifecycle(self._api, self._kubelet.silence, node_grace, time_scale).step,
            Upkeep(self._api).step,
        )
        self._folder = folder
        self._thread = threading.Thread(target=self._control, name="control-plane")
        self._reopening: list[threading.Timer] = []
        for namespace in dict.fromkeys(("default", "kube-system", *namespaces)):
            self._api.create("namespaces", "", {"metadata": {"name": namespace}})
        for node in nodes:
            self.add_node(node)

    def __enter__(self) -> Self:
        """Start it; it answers when this returns."""
        with ExitStack() as stack:
            self._server.reserve()
            stack.callback(self._server.release)
            stack.callback(self._kubelet.close)
            self._server.open()
            stack.callback(self._server.close)
            self._thread.start()
            stack.callback(self._thread.join)
            stack.callback(self._stop_reopening)
            stack.callback(self._host.closing.set)
            self._ending = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything; raises what went wrong inside, unless the block failed itself."""
        self._ending.close()
        if (failures := self._host.failures + self._server.failures) and error is None:
            raise failures[0]

    def _stop_reopening(self) -> None:
        for timer in self._reopening:
            timer.cancel()
            timer.join()

    def _control(self) -> None:
        while not self._host.closing.wait(STEP_SECONDS):
            try:
                # The control plane speaks to the API server as everybody else does.
                for step in self._steps if self._server.answering else ():
                    step()
            except Exception as failure:
                self._host.failures.append(failure)
                return

    @property
    def url(self) -> str:
        """The address of the API server."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig file that may do everything."""
        return self.kubeconfig_of(ADMIN_TOKEN)

    def kubeconfig_of(self, token: str) -> Path:
        """A kubeconfig file with one of the cluster's tokens."""
        path = self._folder / f"kubeconfig-{token}.yaml"
        entry = {"cluster": "test", "user": "test"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": entry}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": token}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    @property
    def requests(self) -> list[Request]:
        """The requests so far, the oldest first."""
        return list(self._server.requests)

    @property
    def broken_images(self) -> set[str]:
        """Images that can't be pulled; add to it, and take away what can be pulled again."""
        return self._host.broken_images

    def apply(self, manifest: Object) -> Object:
        """Create an object from its manifest, or change the one that is there, as the admin."""
        kind, metadata = kind_of(manifest), manifest["metadata"]
        namespace = metadata.get("namespace", "default") if kind.namespaced else ""
        old = self.find(kind.plural, namespace, metadata["name"]) if "name" in metadata else None
        if old is None:
            return copy.deepcopy(self._api.create(kind.plural, namespace, manifest))
        return copy.deepcopy(self._api.patch(old, manifest))

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """An object; raises ApiError where there is none."""
        return copy.deepcopy(self._store.get(plural, namespace, name))

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """An object, or None."""
        return copy.deepcopy(self._store.find(plural, namespace, name))

    def list(self, plural: str, namespace: str = "", labels: str = "") -> Objects:
        """Objects, the oldest first; of all namespaces without one."""
        selector = label_selector(labels) if labels else None
        return copy.deepcopy(self._store.select(plural, namespace, selector))

    def events(self, about: Object) -> Pairs:
        """The events about an object as (reason, message), the oldest first."""
        return [
            (event["reason"], event["message"])
            for event in self._store.select("events")
            if event["involvedObject"]["uid"] == about["metadata"]["uid"]
        ]

    def logs(self, pod: Object, **query: str) -> str:
        """The log of a pod's container; `query` as for `pods/log`."""
        return b"".join(self._kubelet.logs(pod, query)).decode()

    def processes(self, pod: Object) -> set[int]:
        """The ids of the pod's living processes."""
        return {pid for process in self._kubelet.processes(pod) for pid in process.members()}

    def use_report(self) -> UseReport:
        """The most GPUs that running pods held at once, counted apart from the scheduler."""
        return self._host.gpus.report()

    def until(self, condition: Callable[[], Found | None], seconds: float = 30) -> Found:
        """Wait until `condition` answers something true, and return that; AssertionError after `seconds`."""
        ends = time.monotonic() + seconds
        while True:
            with self._store.lock:
                version = self._store.version
            if found := condition():
                return found
            if failures := self._host.failures + self._server.failures:
                raise failures[0]
            if time.monotonic() > ends:
                raise AssertionError(f"not so within {seconds} seconds; the pods are:\n{self._describe()}")
            with self._store.lock:
                if self._store.version == version:
                    self._store.lock.wait(STEP_SECONDS)

    def _describe(self) -> str:
        return yaml.safe_dump(
            [
                {"name": pod["metadata"]["name"], "status": pod["status"], "events": dict(self.events(pod))}
                for pod in self.list("pods")
            ]
        )

    def add_node(self, node: Node) -> None:
        """Add a node."""
        self._host.start_seconds[node.name] = node.start_seconds
        self._store.add(node.manifest())

    def lose_node(self, name: str, *, kill_processes: bool = True) -> None:
        """Let a node's kubelet fall silent; its processes are killed, or run on unseen."""
        self._kubelet.lose(name, kill=kill_processes)

    def return_node(self, name: str) -> None:
        """Let a silent node speak again."""
        self._kubelet.restore(name)

    def evict(self, pod: Object) -> None:
        """Evict a pod as a drain does: with SIGTERM, its grace and the condition DisruptionTarget."""
        self._api.evict(pod, {})

    def kill(self, pod: Object, number: int) -> None:
        """Send a signal to the first process of each container, as a crash or a bug would."""
        for process in self._kubelet.processes(pod):
            process.signal(number)

    def fault(
        self,
        match: tuple[str, str],
        answer: int | str,
        *,
        seconds: float | None = None,
        times: int | None = None,
    ) -> None:
        """Let requests fail that match (method or "*", part of the path and query): see Fault."""
        until = time.monotonic() + seconds if seconds is not None else float("inf")
        count = times if times is not None else float("inf")
        self._server.faults.append(Fault(*match, answer=answer, until=until, times=count))

    def clear_faults(self) -> None:
        """End all faults; requests that hang are cut."""
        for fault in self._server.faults:
            fault.until = 0.0

    def stop_answering(self, seconds: float) -> None:
        """Refuse connections for a while; processes run on, controllers wait."""
        self._server.close()
        timer = threading.Timer(seconds, self._server.open)
        self._reopening.append(timer)
        timer.start()

    def forget_history(self) -> None:
        """Forget the changes so far: a watch from an older version then gets 410."""
        self._store.forget()
