"""The kubelets of all nodes: they take up the pods bound to them, fall silent, return, and give out logs."""

import time
from collections.abc import Iterable, Mapping

from tests.kubernetes.admission import FINISHED
from tests.kubernetes.pods import PAUSE_SECONDS, Host, PodWorker
from tests.kubernetes.processes import Process
from tests.kubernetes.store import ApiError, Object, timestamp, uid


class Kubelet:
    """Runs a PodWorker for each pod that was bound to a node that is not silent."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._workers: dict[str, PodWorker] = {}

    def step(self) -> None:
        """Take up new pods."""
        for pod in self.host.api.store.select("pods"):
            node = pod["spec"].get("nodeName")
            new = node and uid(pod) not in self._workers and pod["status"]["phase"] not in FINISHED
            if new and node not in self.host.silent:
                self._workers[uid(pod)] = PodWorker(self.host, pod)

    def close(self) -> None:
        """End every pod."""
        self.host.closing.set()
        for worker in self._workers.values():
            worker.join()

    def silence(self, node: str) -> float:
        """For how many seconds the node has been silent."""
        since = self.host.silent.get(node)
        return 0.0 if since is None else time.monotonic() - since

    def lose(self, node: str, *, kill: bool) -> None:
        """Let a node fall silent, its processes killed or running on."""
        self.host.silent[node] = time.monotonic()
        for worker in list(self._workers.values()):
            if kill and worker.node == node:
                worker.kill()

    def restore(self, node: str) -> None:
        """Let a node speak again."""
        self.host.silent.pop(node, None)

    def processes(self, pod: Object) -> list[Process]:
        """The processes of the pod's containers, those that ended too."""
        worker = self._workers.get(uid(pod))
        return list(worker.processes.values()) if worker else []

    def logs(self, pod: Object, query: Mapping[str, str]) -> Iterable[bytes]:
        """A container's log as `pods/log` gives it; raises ApiError where there is none."""
        name, worker = pod["metadata"]["name"], self._workers.get(uid(pod))
        names = [entry["name"] for entry in pod["spec"]["containers"]]
        inits = [entry["name"] for entry in pod["spec"].get("initContainers") or []]
        container = query.get("container") or names[0]
        if "container" not in query and len(names) > 1:
            choice = f"choose one of: [{' '.join(names)}]"
            raise _bad_request(f"a container name must be specified for pod {name}, {choice}")
        if container not in names + inits:
            raise _bad_request(f"container {container} is not valid for pod {name}")
        if query.get("previous") == "true":
            raise _bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
        if pod["spec"].get("nodeName") in self.host.silent:
            path = f"{pod['metadata']['namespace']}/{name}/{container}"
            url = f"https://127.0.0.1:10250/containerLogs/{path}"
            text = f'Get "{url}": dial tcp 127.0.0.1:10250: connect: connection refused'
            raise ApiError(500, "InternalError", text)
        if worker is None:
            raise _bad_request(f"pod {name} does not have a host assigned")
        if not worker.log_path(container).exists():
            reason = worker.states.get(container, {}).get("waiting", {}).get("reason", "ContainerCreating")
            reason = "trying and failing to pull image" if "Image" in reason else reason
            raise _bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
        return self._read(worker, container, query)

    def _read(self, worker: PodWorker, container: str, query: Mapping[str, str]) -> Iterable[bytes]:
        # Not when a line was written but when it is read: a process writes straight to the file.
        stamp = f"{timestamp()[:-1]}.000000000Z " if query.get("timestamps") == "true" else ""
        with worker.log_path(container).open("rb") as log:
            lines = [stamp.encode() + line for line in log.read().splitlines(keepends=True)]
            first = max(len(lines) - int(query["tailLines"]), 0) if "tailLines" in query else 0
            yield b"".join(lines[first:])
            while query.get("follow") == "true":
                ended = "terminated" in worker.states[container]
                yield log.read()
                if ended or self.host.closing.wait(PAUSE_SECONDS):
                    return


def _bad_request(text: str) -> ApiError:
    return ApiError(400, "BadRequest", text)
