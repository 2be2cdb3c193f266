"""The objects of the cluster with their versions and their history, and the errors of the API."""

import copy
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Object = dict[str, Any]
Selector = Callable[[Object], bool]

HISTORY = 5000


@dataclass(frozen=True)
class Kind:
    """A kind of object that the API serves; all of ours are version v1 of their group."""

    plural: str
    name: str
    group: str = ""
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As an object writes it, `batch/v1`."""
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def resource(self) -> str:
        """As messages and quotas write it, `jobs.batch`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def full_name(self) -> str:
        """As messages about an invalid object write it, `Job.batch`."""
        return f"{self.name}.{self.group}" if self.group else self.name


_RBAC = "rbac.authorization.k8s.io"
KINDS = {
    kind.plural: kind
    for kind in (
        Kind("configmaps", "ConfigMap"),
        Kind("events", "Event"),
        Kind("limitranges", "LimitRange"),
        Kind("namespaces", "Namespace", namespaced=False),
        Kind("nodes", "Node", namespaced=False),
        Kind("persistentvolumeclaims", "PersistentVolumeClaim"),
        Kind("pods", "Pod"),
        Kind("resourcequotas", "ResourceQuota"),
        Kind("secrets", "Secret"),
        Kind("serviceaccounts", "ServiceAccount"),
        Kind("services", "Service"),
        Kind("deployments", "Deployment", "apps"),
        Kind("statefulsets", "StatefulSet", "apps"),
        Kind("selfsubjectaccessreviews", "SelfSubjectAccessReview", "authorization.k8s.io", namespaced=False),
        Kind("selfsubjectrulesreviews", "SelfSubjectRulesReview", "authorization.k8s.io", namespaced=False),
        Kind("cronjobs", "CronJob", "batch"),
        Kind("jobs", "Job", "batch"),
        Kind("ingresses", "Ingress", "networking.k8s.io"),
        Kind("networkpolicies", "NetworkPolicy", "networking.k8s.io"),
        Kind("poddisruptionbudgets", "PodDisruptionBudget", "policy"),
        Kind("clusterrolebindings", "ClusterRoleBinding", _RBAC, namespaced=False),
        Kind("clusterroles", "ClusterRole", _RBAC, namespaced=False),
        Kind("rolebindings", "RoleBinding", _RBAC),
        Kind("roles", "Role", _RBAC),
        Kind("priorityclasses", "PriorityClass", "scheduling.k8s.io", namespaced=False),
        Kind("storageclasses", "StorageClass", "storage.k8s.io", namespaced=False),
    )
}
_KINDS_BY_NAME = {kind.name: kind for kind in KINDS.values()}


class ApiError(Exception):
    """An answer of the API other than success; `body` is the Status object that goes with it."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details,
            "code": code,
        }


def refusal(kind: Kind, name: str, code: int, reason: str, text: str) -> ApiError:
    """A refusal that concerns the object `name`, `<resource> "<name>" <text>`."""
    details = {"name": name, "group": kind.group, "kind": kind.plural}
    return ApiError(code, reason, f'{kind.resource} "{name}" {text}', **details)


def forbidden(kind: Kind, name: str, text: str) -> ApiError:
    """403, as admission refuses an object."""
    return refusal(kind, name, 403, "Forbidden", f"is forbidden: {text}")


def kind_of(obj: Object) -> Kind:
    """The kind of a stored object."""
    return _KINDS_BY_NAME[obj["kind"]]


AHEAD = 0.0
"""Seconds by which the cluster's clock is ahead of this machine's; a test may set it."""


def clock() -> datetime:
    """The cluster's time."""
    return datetime.now(UTC) + timedelta(seconds=AHEAD)


def timestamp(after: float = 0) -> str:
    """The time `after` seconds from now as the API writes it."""
    return (clock() + timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")


def uid(obj: Object) -> str:
    """The object's uid."""
    return str(obj["metadata"]["uid"])


def condition(obj: Object, kind: str) -> Object:
    """The object's condition of that type; empty where it has none."""
    conditions = obj.get("status", {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), {})


def set_condition(obj: Object, kind: str, status: str, reason: str = "", message: str = "") -> None:
    """Set a condition; its transition time changes with its status only."""
    conditions = obj.setdefault("status", {}).setdefault("conditions", [])
    old = condition(obj, kind)
    since = old.get("lastTransitionTime") if old.get("status") == status else None
    new = {"type": kind, "status": status, "lastTransitionTime": since or timestamp()}
    new |= {"reason": reason} if reason else {}
    new |= {"message": message} if message else {}
    conditions[:] = [entry for entry in conditions if entry["type"] != kind] + [new]


@dataclass(frozen=True)
class Change:
    """One entry of the history; `before` and `after` are None where the object was not there."""

    version: int
    before: Object | None
    after: Object | None
    plural: str
    last: Object  # what a DELETED event carries


class Store:
    """All objects, by kind, namespace and name.

    Stored objects are never changed in place: readers share them, and every write puts a new one.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.version = 1
        self._objects: dict[str, dict[tuple[str, str], Object]] = {plural: {} for plural in KINDS}
        self._history: deque[Change] = deque(maxlen=HISTORY)

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        return self._objects[plural].get((namespace, name))

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """The object; ApiError with 404 where there is none."""
        found = self.find(plural, namespace, name)
        if found is None:
            raise refusal(KINDS[plural], name, 404, "NotFound", "not found")
        return found

    def current(self, obj: Object) -> Object | None:
        """What is stored now of this very object; None where it is gone, its name used again or not."""
        metadata = obj["metadata"]
        found = self.find(kind_of(obj).plural, metadata.get("namespace", ""), metadata["name"])
        return found if found is not None and uid(found) == uid(obj) else None

    def select(self, plural: str, namespace: str = "", selector: Selector | None = None) -> list[Object]:
        """Objects of that kind in the order of creation; of all namespaces without one."""
        with self.lock:
            return [
                obj
                for (within, _), obj in self._objects[plural].items()
                if namespace in ("", within) and (selector is None or selector(obj))
            ]

    def owned(self) -> list[Object]:
        """The objects that have an owner."""
        with self.lock:
            return [obj for objects in self._objects.values() for obj in objects.values() if owners(obj)]

    def add(self, obj: Object) -> Object:
        """Store a new object with a uid and a creation time; ApiError with 409 where the name is taken."""
        with self.lock:
            kind, metadata = kind_of(obj), obj["metadata"]
            if self.find(kind.plural, metadata.get("namespace", ""), metadata["name"]):
                raise refusal(kind, metadata["name"], 409, "AlreadyExists", "already exists")
            obj = copy.deepcopy(obj)
            obj["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()}
            return self._write(None, obj)

    def edit(self, obj: Object, change: Callable[[Object], object]) -> Object | None:
        """Store what `change` makes of the newest version; None where the object is gone."""
        with self.lock:
            before = self.current(obj)
            if before is None:
                return None
            after = copy.deepcopy(before)
            change(after)
            return before if after == before else self._write(before, after)

    def remove(self, obj: Object) -> None:
        """Take the object away, if it is still there."""
        with self.lock:
            if (before := self.current(obj)) is not None:
                self._write(before, None)

    def changes(self, plural: str, since: int) -> list[Change]:
        """The history of a kind after version `since`; ApiError with 410 where it was forgotten."""
        with self.lock:
            oldest = self._history[0].version if self._history else self.version + 1
            if since < oldest - 1:
                raise ApiError(410, "Expired", f"too old resource version: {since} ({oldest})")
            return [entry for entry in self._history if entry.version > since and entry.plural == plural]

    def forget(self) -> None:
        """Forget the history, as compaction does."""
        with self.lock:
            self._history.clear()

    def _write(self, before: Object | None, after: Object | None) -> Object:
        self.version += 1
        last: Object = after if after is not None else copy.deepcopy(before or {})
        last["metadata"]["resourceVersion"] = str(self.version)
        plural = kind_of(last).plural
        key = last["metadata"].get("namespace", ""), last["metadata"]["name"]
        if after is None:
            del self._objects[plural][key]
        else:
            self._objects[plural][key] = last
        self._history.append(Change(self.version, before, after, plural, last))
        self.lock.notify_all()
        return last


class Stopwatch:
    """How long something has been so; it starts when a key is first asked for."""

    def __init__(self) -> None:
        self._since: dict[tuple[object, ...], float] = {}

    def elapsed(self, *key: object) -> float:
        """Seconds since this was first asked for that key."""
        return time.monotonic() - self._since.setdefault(key, time.monotonic())


def owners(obj: Object) -> set[str]:
    """The uids of the object's owners."""
    return {reference["uid"] for reference in obj["metadata"].get("ownerReferences") or []}
