"""What a run's Job, its pods and the warnings about them mean. Pure: the API's objects in, words out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from resources.pods.tags import Kind

Object: TypeAlias = Mapping[str, Any]

PERSISTENT_SECONDS = 30.0
"""What keeps a pod from starting for so long does not pass by itself."""
SILENT_KUBELET_SECONDS = 15.0
"""After the time in which a pod should have ended: then nobody on its node ends it any more."""


class State(StrEnum):
    """How things stand with a run's pod."""

    ABSENT = "absent"
    WAITING = "waiting"
    UNABLE = "unable"
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cluster shows of one run. `warnings` are events about the Job and its pods."""

    job: Object | None = None
    pods: Sequence[Object] = ()
    warnings: Sequence[Object] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """The state, why in one line, and of one that failed the kind; `memory` is the limit it was killed at."""

    state: State
    reason: str = ""
    kind: Kind | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What keeps a pod from starting, since when, and whether more capacity would help."""

    reason: str
    since: datetime | None
    waits: bool = field(default=False)


_NO_PACKAGE = re.compile(r"No module named '?(?P<module>(?:eval_assets|resources|dagster\w*)[\w.]*)'?")
_OTHER_DAGSTER = re.compile(r"DeserializationError|Attempted to deserialize|No such (?:option|command)")
_START_ERRORS = {"StartError", "ContainerCannotRun"}
_NEVER_STARTS = {
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError", "CrashLoopBackOff",
}  # fmt: skip
_QUOTA = re.compile(r"requested: (?P<requested>[^,]+(?:,[^ ][^,]*)*), used: .*?, limited: (?P<limited>.+)$")


def diagnose(seen: Seen, now: datetime, *, autoscaled: bool = False) -> Finding:
    """How things stand. `autoscaled`: a node that fits may be added for a pod that fits on none now.

    Waiting for capacity and being unable to start are told apart; the second only when it has lasted for
    `PERSISTENT_SECONDS`, since a registry's or a volume's moment of weakness looks the same at first.
    """
    if seen.job is None and not seen.pods:
        return Finding(State.ABSENT)
    for pod in seen.pods:
        found = _pod_over(pod, now)
        if found is not None:
            return found
    job = _job_over(seen.job) if seen.job is not None else None
    if job is not None:
        return job
    if any(pod.get("status", {}).get("phase") == "Running" for pod in seen.pods):
        return Finding(State.RUNNING)
    troubles = list(_troubles(seen, autoscaled=autoscaled))
    for trouble in troubles:
        if not trouble.waits and _seconds(trouble.since, now) >= PERSISTENT_SECONDS:
            return Finding(State.UNABLE, trouble.reason, Kind.UNABLE)
    reason = troubles[0].reason if troubles else "its pod is being started"
    return Finding(State.WAITING, reason)


def _pod_over(pod: Object, now: datetime) -> Finding | None:
    status: Object = pod.get("status", {})
    disrupted = _condition(status, "DisruptionTarget")
    if _is_left_behind(pod, disrupted, now):
        return Finding(
            State.FAILED, f"its node {_node(pod)} is gone: nobody there ends its pod", Kind.NODE_LOST
        )
    if status.get("phase") == "Succeeded":
        return Finding(State.ENDED, "its pod has ended")
    if status.get("phase") != "Failed":
        return None
    for container in [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]:
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            limit = _memory_limit(pod, str(container.get("name")))
            return Finding(
                State.FAILED,
                f"killed for want of memory at its limit of {_gib(limit)}",
                Kind.OUT_OF_MEMORY,
                limit,
            )
        if ended.get("reason") in _START_ERRORS:
            text = f"{_image(pod)} can't be started: {_line(ended.get('message') or ended['reason'])}"
            return Finding(State.FAILED, text, Kind.UNABLE)
    if status.get("reason") == "DeadlineExceeded":
        seconds = pod["spec"].get("activeDeadlineSeconds")
        return Finding(State.FAILED, f"it ran longer than its deadline of {seconds} s", Kind.DEADLINE)
    if disrupted is not None and disrupted.get("reason") == "DeletionByTaintManager":
        return Finding(State.FAILED, f"its node {_node(pod)} was lost", Kind.NODE_LOST)
    if status.get("reason") == "Evicted" and "exceeds" in str(status.get("message")):
        return Finding(State.FAILED, _line(status["message"]), Kind.OUT_OF_STORAGE)
    if disrupted is not None or status.get("reason") in (
        "Evicted",
        "Preempting",
        "NodeShutdown",
        "Terminated",
    ):
        why = (disrupted or {}).get("message") or status.get("message") or status.get("reason") or ""
        return Finding(State.FAILED, f"evicted from {_node(pod)}: {_line(why)}", Kind.EVICTED)
    if status.get("reason") == "NodeLost":
        return Finding(State.FAILED, f"its node {_node(pod)} was lost", Kind.NODE_LOST)
    return Finding(State.FAILED, _crash(pod), Kind.CRASHED)


def _is_left_behind(pod: Object, disrupted: Object | None, now: datetime) -> bool:
    """Whether a pod that was told to end has nobody who ends it.

    One that is told by its node's taints (unreachable, not ready) would have ended within seconds if its node
    were alive: it writes what it has and goes. Any other has its grace period first.
    """
    ends = _time(pod["metadata"].get("deletionTimestamp"))
    if ends is None or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return False
    if disrupted is not None and disrupted.get("reason") == "DeletionByTaintManager":
        ends -= timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    return _seconds(ends, now) >= SILENT_KUBELET_SECONDS


def _job_over(job: Object) -> Finding | None:
    status: Object = job.get("status", {})
    if _condition(status, "Complete") is not None:
        return Finding(State.ENDED, "its pod has ended")
    failed = _condition(status, "Failed")
    if failed is None:
        return None
    if failed.get("reason") == "DeadlineExceeded":
        return Finding(State.FAILED, "it took longer than its Job's deadline", Kind.DEADLINE)
    # Its pod is gone, and with it the reason: deleted by hand, or with its node.
    why = _line(failed.get("message") or failed.get("reason") or "")
    return Finding(State.FAILED, f"its pod was removed: {why}", Kind.EVICTED)


def _troubles(seen: Seen, *, autoscaled: bool) -> Iterator[_Trouble]:
    """What is in the way of starting, the gravest first."""
    suspended = _condition((seen.job or {}).get("status", {}), "Suspended")
    if suspended is not None:
        yield _Trouble("held back by its queue in the cluster", None, waits=True)
    for pod in seen.pods:
        scheduled = _condition(pod.get("status", {}), "PodScheduled", wanted="")
        bound = _time((scheduled or {}).get("lastTransitionTime")) or _time(
            pod["metadata"]["creationTimestamp"]
        )
        for container in [
            *pod.get("status", {}).get("initContainerStatuses", []),
            *pod.get("status", {}).get("containerStatuses", []),
        ]:
            waiting = container.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in _NEVER_STARTS:
                text = f"{waiting['reason']}: {_line(waiting.get('message') or container.get('image', ''))}"
                yield _Trouble(text, bound)
        if scheduled is not None and scheduled.get("status") == "False":
            message = _line(scheduled.get("message") or scheduled.get("reason") or "")
            yield _Trouble(message, bound, waits=_capacity_helps(message, autoscaled=autoscaled))
    for event in seen.warnings:
        message = _line(event.get("message") or "")
        since = _time(event.get("firstTimestamp") or event.get("eventTime"))
        if event.get("reason") == "FailedCreate" and not seen.pods:
            yield _Trouble(f"its pod is refused: {message}", since, waits=_quota_passes(message))
        if event.get("reason") in ("FailedMount", "FailedAttachVolume") and seen.pods:
            yield _Trouble(f"{event['reason']}: {message}", since)


def _capacity_helps(message: str, *, autoscaled: bool) -> bool:
    """Whether the scheduler waits for nodes to become free, or has none of that kind at all."""
    if "persistentvolumeclaim" in message.lower():
        return False
    return "Insufficient" in message or "Too many pods" in message or autoscaled


def _quota_passes(message: str) -> bool:
    """Whether a quota is only used up now; what asks for more than all of it never passes."""
    found = _QUOTA.search(message)
    if "exceeded quota" not in message or found is None:
        return False
    requested, limited = (_amounts(found[part]) for part in ("requested", "limited"))
    return all(requested.get(name, 0) <= limit for name, limit in limited.items())


def _amounts(text: str) -> dict[str, float]:
    pairs = (part.strip().partition("=") for part in text.split(","))
    return {name: quantity(value) for name, _, value in pairs if value}


_SUFFIXES = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip


def quantity(text: str) -> float:
    """A Kubernetes quantity (``500m``, ``2Gi``) as a number; infinity for what is none."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([A-Za-z]*)", str(text))
    if found is None or found[2] not in _SUFFIXES:
        return float("inf")
    return float(found[1]) * _SUFFIXES[found[2]]


def _crash(pod: Object) -> str:
    for container in pod.get("status", {}).get("containerStatuses", []):
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("exitCode"):
            signal = f" (signal {ended['exitCode'] - 128})" if ended["exitCode"] > 128 else ""
            return f"its process ended with status {ended['exitCode']}{signal}; its log says why"
    return f"its pod failed: {_line(pod.get('status', {}).get('message') or 'no reason given')}"


def explained(crash: Finding, log: str, pod: Object) -> Finding:
    """What a process that ended before its run began says of why: in its log's last lines.

    An image of something else, or of another version than the daemon's, fails every run in the same way.
    """
    lines = [line for line in map(_line, log.splitlines()) if line]
    for line in reversed(lines):
        if found := _NO_PACKAGE.search(line):
            text = (
                f"{_image(pod)} has no package {found['module']}: "
                "build it from the project's Dockerfile ('make image'), or correct the image's name"
            )
            return Finding(State.UNABLE, text, Kind.UNABLE)
        if _OTHER_DAGSTER.search(line):
            text = (
                f"{_image(pod)} has another version of Dagster than the daemon that launched the run: "
                f"deploy webserver, daemon and runs from one image ({line})"
            )
            return Finding(State.UNABLE, text, Kind.UNABLE)
    if not lines:
        return crash
    return replace(crash, reason=f"{crash.reason.removesuffix('; its log says why')}: {lines[-1]}")


def _image(pod: Object) -> str:
    images = [str(container.get("image")) for container in pod.get("spec", {}).get("containers", [])]
    return f"image {', '.join(images)}"


def _memory_limit(pod: Object, name: str) -> int | None:
    spec = pod.get("spec", {})
    for container in [*spec.get("containers", []), *spec.get("initContainers", [])]:
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        if container.get("name") == name and limit is not None:
            return int(quantity(limit))
    return None


def _condition(status: Object, kind: str, wanted: str = "True") -> Object | None:
    """A condition by its type, if its status is as wanted ("" for any)."""
    for condition in status.get("conditions") or []:
        if condition.get("type") == kind and (not wanted or condition.get("status") == wanted):
            return dict(condition)
    return None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def _seconds(since: datetime | None, now: datetime) -> float:
    return (now - since).total_seconds() if since is not None else 0.0


def _node(pod: Object) -> str:
    return str(pod.get("spec", {}).get("nodeName") or "(none)")


def _gib(memory: int | None) -> str:
    return f"{memory / 2**30:.2f} GiB" if memory is not None else "(none)"


def _line(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:299] + "…"
