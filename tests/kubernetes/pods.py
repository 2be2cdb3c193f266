"""One pod on its node: its containers are prepared, started, watched and ended, and its status tells so."""

import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kubernetes.admission import amounts
from tests.kubernetes.api import Api
from tests.kubernetes.containers import Missing, environment, expand, folder, missing_volumes
from tests.kubernetes.processes import Process
from tests.kubernetes.store import Object, set_condition, timestamp, uid
from tests.kubernetes.validation import quantity

GPU = "nvidia.com/gpu"
PAUSE_SECONDS = 0.05
IMAGE_RETRY_SECONDS = 10.0
LONGEST_RETRY_SECONDS = 300.0
CONFIG_RETRY_SECONDS = 5.0
MESSAGE_BYTES = 2048


@dataclass(frozen=True)
class UseReport:
    """The most GPUs that running pods held at once, in all and by node."""

    total: int
    by_node: dict[str, int]


class GpuUse:
    """Counts the GPUs of pods whose processes run, whatever the objects say."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now, self._most, self._most_in_all = Counter[str](), Counter[str](), 0

    def add(self, node: str, gpus: int) -> None:
        """Note so many GPUs more (or fewer) in use on a node."""
        with self._lock:
            self._now[node] += gpus
            self._most |= self._now  # the greater of each; nodes without any are left out
            self._most_in_all = max(self._most_in_all, self._now.total())

    def report(self) -> UseReport:
        """The most at once."""
        with self._lock:
            return UseReport(self._most_in_all, dict(self._most))


@dataclass
class Host:
    """What all pods share; a second of a back-off takes `scale` seconds."""

    api: Api
    folder: Path
    base: Mapping[str, str]
    path_map: Mapping[str, Path]
    scale: float
    start_seconds: dict[str, float] = field(default_factory=dict)
    broken_images: set[str] = field(default_factory=set)
    silent: dict[str, float] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)
    failures: list[Exception] = field(default_factory=list)
    gpus: GpuUse = field(default_factory=GpuUse)


class _Ended(Exception):  # noqa: N818  (how a pod's thread leaves its waits)
    """The pod is over: deleted, past its deadline, or the cluster closes."""


class PodWorker:
    """Runs a pod that was bound to a node, from its first container to its end."""

    def __init__(self, host: Host, pod: Object) -> None:
        self._host, self._pod, self._spec = host, pod, pod["spec"]
        self.node: str = pod["spec"]["nodeName"]
        self.processes: dict[str, Process] = {}
        self.states: dict[str, Object] = {}
        self._started = time.monotonic()
        self._gpus = 0
        self._thread = threading.Thread(target=self._run, name=f"pod {pod['metadata']['name']}")
        self._thread.start()

    def join(self) -> None:
        """Wait until the pod is over; none of its processes is left then."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._prepare()
            self._gpus = int(amounts(self._pod).get(GPU, 0))
            self._host.gpus.add(self.node, self._gpus)
            self._run_containers()
        except _Ended:
            pass
        except Exception as error:
            self._host.failures.append(error)
        finally:
            self._release()

    def _release(self) -> None:
        self.kill()
        self._host.gpus.add(self.node, -self._gpus)
        self._gpus = 0

    def kill(self) -> None:
        """Kill every process of the pod."""
        for process in list(self.processes.values()):
            process.kill()

    def log_path(self, container: str) -> Path:
        """Where a container's log is kept, also when the pod is gone."""
        metadata = self._pod["metadata"]
        name = f"{metadata['namespace']}_{metadata['name']}_{uid(self._pod)}"
        return self._host.folder / name / f"{container}.log"

    def _containers(self, group: str) -> list[Object]:
        return self._spec.get(group) or []

    def _prepare(self) -> None:
        self._work = self.log_path("").parent
        self._work.mkdir(parents=True)
        first = self._containers("initContainers")
        for container in first + self._containers("containers"):
            waiting = "PodInitializing" if first and container not in first else "ContainerCreating"
            self.states[container["name"]] = {"waiting": {"reason": waiting}}
        self._publish(startTime=timestamp(), hostIP="127.0.0.1", podIP="127.0.0.1")
        while problems := list(missing_volumes(self._host.api.store, self._pod)):
            for problem in problems:
                self._event("Warning", "FailedMount", problem)
            self._sleep(CONFIG_RETRY_SECONDS * self._host.scale)
        self._sleep(self._host.start_seconds.get(self.node, 0.0))

    def _run_containers(self) -> None:
        for container in self._containers("initContainers"):
            self._start(container)
            while self._runs(container):
                self._tick()
            if self._exit_code(container):
                self._finish()
                return
        for container in self._containers("containers"):
            self._start(container)
            self._publish(phase="Running")
        while self._count_running(self._containers("containers")):
            self._tick()
        self._finish()

    def _start(self, container: Object) -> None:
        name = container["name"]
        for attempt in itertools.count():
            if container["image"] in self._host.broken_images:
                self._wait_for_image(container, attempt)
                continue
            try:
                variables = environment(self._host.api.store, self._pod, container, self._host.base)
            except Missing as missing:
                self._wait_as(name, "CreateContainerConfigError", str(missing))
                self._event("Warning", "Failed", f"Error: {missing}")
                self._sleep(CONFIG_RETRY_SECONDS * self._host.scale)
                continue
            break
        command = [*(container.get("command") or []), *(container.get("args") or [])]
        command = [expand(part, variables) for part in command]
        place = folder(container, self._host.path_map, self._work)
        try:
            if not command:
                raise FileNotFoundError("no command specified")
            self.processes[name] = Process(command, variables, place, self.log_path(name))
        except OSError as error:
            self.states[name] = {"terminated": _terminated(128, "StartError", str(error), timestamp())}
            self._event("Warning", "Failed", f"Error: {error}")
        else:
            self.states[name] = {"running": {"startedAt": timestamp()}}
            self._event("Normal", "Started", f"Started container {name}")
        self._publish()

    def _wait_for_image(self, container: Object, attempt: int) -> None:
        image = container["image"]
        failure = f'failed to pull and unpack image "{image}": {image}: not found'
        self._wait_as(container["name"], "ErrImagePull", failure)
        self._event("Warning", "Failed", f'Failed to pull image "{image}": {failure}')
        self._event("Warning", "Failed", "Error: ErrImagePull")
        self._sleep(self._host.scale)
        text = f'Back-off pulling image "{image}"'
        self._wait_as(container["name"], "ImagePullBackOff", f"{text}: ErrImagePull: {failure}")
        self._event("Normal", "BackOff", text)
        self._event("Warning", "Failed", "Error: ImagePullBackOff")
        self._sleep(min(IMAGE_RETRY_SECONDS * 2**attempt, LONGEST_RETRY_SECONDS) * self._host.scale)

    def _wait_as(self, name: str, reason: str, message: str) -> None:
        self.states[name] = {"waiting": {"reason": reason, "message": message}}
        self._publish()

    def _runs(self, container: Object) -> bool:
        name = container["name"]
        if (running := self.states[name].get("running")) is None:
            return False
        limit = (container.get("resources", {}).get("limits") or {}).get("memory")
        process = self.processes[name]
        process.watch(None if limit is None else int(quantity(limit)))
        if (ended := process.ended()) is None:
            return True
        message = ""
        if ended[0] and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            message = self.log_path(name).read_bytes()[-MESSAGE_BYTES:].decode(errors="replace")
        self.states[name] = {"terminated": _terminated(*ended, message, running["startedAt"])}
        self._publish()
        return False

    def _count_running(self, group: list[Object]) -> int:
        return sum(self._runs(container) for container in group)

    def _exit_code(self, container: Object) -> int:
        return int(self.states[container["name"]].get("terminated", {}).get("exitCode", 137))

    def _finish(self, **status: str) -> None:
        self._release()  # before the scheduler can know of it
        everything = self._containers("initContainers") + self._containers("containers")
        failed = status or any(self._exit_code(container) for container in everything)
        self._publish(phase="Failed" if failed else "Succeeded", **status)

    def _sleep(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._tick()

    def _tick(self) -> None:
        self._pause()
        pod = self._host.api.store.current(self._pod)
        if pod is None:
            raise _Ended
        if "deletionTimestamp" in pod["metadata"]:
            self._stop(pod["metadata"]["deletionGracePeriodSeconds"])
            self._finish()
            self._host.api.store.remove(self._pod)
            raise _Ended
        deadline = pod["spec"].get("activeDeadlineSeconds")
        if deadline is not None and time.monotonic() - self._started >= deadline:
            self._stop(self._spec["terminationGracePeriodSeconds"])
            text = "Pod was active on the node longer than the specified deadline"
            self._finish(reason="DeadlineExceeded", message=text)
            raise _Ended

    def _pause(self) -> None:
        if self._host.closing.wait(PAUSE_SECONDS):
            raise _Ended
        self._await_node()

    def _await_node(self) -> None:
        while self.node in self._host.silent:
            if self._host.closing.wait(PAUSE_SECONDS):
                raise _Ended

    def _stop(self, grace: float) -> None:
        everything = self._containers("initContainers") + self._containers("containers")
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        ends = time.monotonic() + grace
        while self._count_running(everything) and time.monotonic() < ends:
            self._pause()
            pod = self._host.api.store.current(self._pod)
            if pod is None:
                raise _Ended
            ends = min(ends, time.monotonic() + pod["metadata"].get("deletionGracePeriodSeconds", grace))
        self.kill()
        for container in everything:
            self._runs(container)

    def _publish(self, **status: Any) -> None:
        self._await_node()
        inits, mains = self._containers("initContainers"), self._containers("containers")
        initialized = all(self._exit_code(container) == 0 for container in inits)
        ready = all("running" in self.states[container["name"]] for container in mains)

        def change(pod: Object) -> None:
            pod["status"] |= status
            for name, group in (("initContainerStatuses", inits), ("containerStatuses", mains)):
                if group:
                    pod["status"][name] = [self._status_of(container) for container in group]
            set_condition(pod, "Initialized", str(initialized))
            for name in ("ContainersReady", "Ready"):
                set_condition(pod, name, str(ready), "" if ready else "ContainersNotReady")

        self._host.api.store.edit(self._pod, change)

    def _status_of(self, container: Object) -> Object:
        state = self.states[container["name"]]
        process = self.processes.get(container["name"])
        return {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": "running" in state,
            "started": "running" in state,
            "restartCount": 0,
            "state": state,
            "lastState": {},
            **({"containerID": f"process://{process.pid}"} if process else {}),
        }

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._host.api.event(self._pod, kind, reason, message, "kubelet")


def _terminated(code: int, reason: str, message: str, started: str) -> Object:
    end = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": timestamp()}
    return end | ({"message": message} if message else {})
