"""The verbs of the API on stored objects, with validation and admission, for HTTP and for the controllers."""

import copy
import secrets
from collections.abc import Callable
from typing import Any

from tests.kubernetes import admission, validation
from tests.kubernetes.selectors import selects
from tests.kubernetes.store import (
    KINDS,
    ApiError,
    Kind,
    Object,
    Store,
    kind_of,
    owners,
    refusal,
    set_condition,
    timestamp,
    uid,
)

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
FOREGROUND = "foregroundDeletion"


def merged(old: Any, patch: Any) -> Any:
    """What a JSON merge patch (RFC 7386) makes of a value."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for field, value in patch.items():
        if value is None:
            result.pop(field, None)
        else:
            result[field] = merged(result.get(field), value)
    return result


def without_nulls(value: Any) -> Any:
    """A body without its null fields, which mean the same as absent ones."""
    if isinstance(value, dict):
        return {field: without_nulls(entry) for field, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


class Api:
    """Creates, changes and deletes objects as an API server does; raises ApiError where it refuses."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def create(self, plural: str, namespace: str, body: Object, *, dry_run: bool = False) -> Object:
        """Validate, admit and store a new object."""
        kind = KINDS[plural]
        obj = self._accept(kind, namespace, without_nulls(body))
        metadata = obj["metadata"]
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                raise validation.invalid(
                    kind, obj, "metadata.name", "Required value: name or generateName is required"
                )
            metadata["name"] = metadata["generateName"] + "".join(secrets.choice(ALPHABET) for _ in range(5))
        for field in ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"):
            metadata.pop(field, None)
        obj.pop("status", None)
        validation.set_defaults(kind, obj)
        with self.store.lock:  # what a quota has left must still be there when the object is stored
            admission.check_namespace(self.store, kind, obj)
            admission.add(self.store, kind, obj)
            validation.check(kind, obj)
            admission.admit(self.store, kind, obj)
            if dry_run:
                return obj
            obj = self.store.add(obj)
            if plural == "jobs":
                obj = self.store.edit(obj, validation.label_job) or obj
            if plural == "namespaces":
                self._create_service_account(metadata["name"])
            return obj

    def _create_service_account(self, namespace: str) -> None:
        self.create("serviceaccounts", namespace, {"metadata": {"name": "default"}})

    def _accept(self, kind: Kind, namespace: str, obj: Object) -> Object:
        obj = {"apiVersion": kind.api_version, "kind": kind.name, **obj}
        if (obj["apiVersion"], obj["kind"]) != (kind.api_version, kind.name):
            given, expected = (
                f"{obj['apiVersion']}, Kind={obj['kind']}",
                f"{kind.api_version}, Kind={kind.name}",
            )
            text = f"{kind.name} in version {given} cannot be handled as a {kind.name} of {expected}"
            raise ApiError(400, "BadRequest", text)
        validation.decode(kind, obj)
        metadata = obj.setdefault("metadata", {})
        if kind.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                text = "the namespace of the provided object does not match the namespace sent on the request"
                raise ApiError(400, "BadRequest", text)
            self.store.get("namespaces", "", namespace)
        return obj

    def patch(self, old: Object, patch: Object, *, subresource: str = "", dry_run: bool = False) -> Object:
        """Merge a patch into what is stored."""
        with self.store.lock:
            current = self._current(old)
            return self.replace(current, merged(current, patch), subresource=subresource, dry_run=dry_run)

    def replace(self, old: Object, body: Object, *, subresource: str = "", dry_run: bool = False) -> Object:
        """Store `body` in place of what is stored: all but its status, or its status only."""
        kind = kind_of(old)
        new = self._accept(kind, old["metadata"].get("namespace", ""), without_nulls(body))
        with self.store.lock:
            old = self._current(old)
            kept = {field: old["metadata"][field] for field in ("uid", "creationTimestamp", "name")}
            if new["metadata"].get("name", kept["name"]) != kept["name"]:
                text = "the name of the object does not match the name on the URL"
                raise ApiError(400, "BadRequest", text)
            new["metadata"] |= kept
            if subresource == "status":
                new = old | {"status": new.get("status", {}), "metadata": new["metadata"]}
            elif "status" in old:
                new["status"] = old["status"]
            validation.check_change(kind, old, new)
            validation.check(kind, new)
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
            if dry_run:
                return new
            stored = self.store.edit(old, lambda obj: _put(obj, new)) or old
            self._finalize(stored)
            return stored

    def _current(self, obj: Object) -> Object:
        return self.store.get(
            kind_of(obj).plural, obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
        )

    def _finalize(self, obj: Object) -> None:
        metadata = obj["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers") and obj["kind"] != "Pod":
            self.store.remove(obj)

    def delete(self, obj: Object, options: Object) -> Object:
        """Delete an object with DeleteOptions; returns the answer's body."""
        kind, metadata = kind_of(obj), obj["metadata"]
        wanted = (options.get("preconditions") or {}).get("uid", metadata["uid"])
        if wanted != metadata["uid"]:
            text = (
                f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {metadata['uid']}"
            )
            raise refusal(kind, metadata["name"], 409, "Conflict", text)
        # Without a word about its pods the API orphans those of a Job; kubectl asks for Background.
        policy = options.get("propagationPolicy") or ("Orphan" if kind.plural == "jobs" else "Background")
        if options.get("dryRun"):
            return obj
        if kind.plural == "pods":
            asked = options.get("gracePeriodSeconds")
            return self._delete_pod(obj, None if asked is None else int(asked))
        dependents = [entry for entry in self.store.owned() if uid(obj) in owners(entry)]
        if policy == "Orphan":
            for dependent in dependents:
                self.store.edit(dependent, lambda entry: entry["metadata"].pop("ownerReferences"))
        if kind.plural == "namespaces":  # it goes when it is empty, as one with a finalizer does
            return self.store.edit(obj, _terminate) or obj
        foreground = policy == "Foreground" and dependents
        if foreground or metadata.get("finalizers"):
            return self.store.edit(obj, _mark_deleted(FOREGROUND if foreground else "")) or obj
        self.store.remove(obj)
        details = {"name": metadata["name"], "kind": kind.plural, "group": kind.group, "uid": metadata["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _delete_pod(self, pod: Object, grace: int | None) -> Object:
        spec = pod["spec"]
        started = spec.get("nodeName") and pod["status"]["phase"] not in admission.FINISHED
        grace = spec["terminationGracePeriodSeconds"] if grace is None else grace
        if not started or grace == 0:
            self.store.remove(pod)
            return pod

        def mark(pod: Object) -> None:
            given = pod["metadata"].get("deletionGracePeriodSeconds")
            if given is None or grace < given:
                pod["metadata"] |= {
                    "deletionTimestamp": timestamp(grace),
                    "deletionGracePeriodSeconds": grace,
                }

        return self.store.edit(pod, mark) or pod

    def evict(self, pod: Object, options: Object) -> Object:
        """Evict a pod; ApiError 429 where a PodDisruptionBudget with a number as minAvailable forbids it."""
        namespace, labels = pod["metadata"]["namespace"], pod["metadata"].get("labels") or {}
        for budget in self.store.select("poddisruptionbudgets", namespace):
            selector = budget["spec"].get("selector") or {}
            if selects(selector, labels) and pod["status"]["phase"] == "Running":
                healthy = [
                    other
                    for other in self.store.select("pods", namespace)
                    if selects(selector, other["metadata"].get("labels") or {})
                    and other["status"]["phase"] == "Running"
                    and "deletionTimestamp" not in other["metadata"]
                ]
                if len(healthy) <= int(budget["spec"].get("minAvailable", 0)):
                    text = "Cannot evict pod as it would violate the pod's disruption budget."
                    raise ApiError(429, "TooManyRequests", text)
        self.disrupt(pod, "EvictionByEvictionAPI", "Eviction API: evicting")
        return self.delete(pod, options)

    def disrupt(self, pod: Object, reason: str, message: str) -> None:
        """Note on a pod that it is ended for the cluster's sake and not for its own."""
        self.store.edit(pod, lambda entry: set_condition(entry, "DisruptionTarget", "True", reason, message))

    def event(self, about: Object, kind: str, reason: str, message: str, source: str) -> None:
        """Record an event; one that says the same again is counted up."""
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        with self.store.lock:
            for event in self.store.select("events", namespace):
                same = (event["involvedObject"].get("uid"), event["reason"], event["message"])
                if same == (metadata["uid"], reason, message):
                    self.store.edit(event, _count_up)
                    return
            self.store.add(
                {
                    "apiVersion": "v1",
                    "kind": "Event",
                    "metadata": {
                        "name": f"{metadata['name']}.{secrets.token_hex(8)}",
                        "namespace": namespace,
                    },
                    "involvedObject": {
                        "kind": about["kind"],
                        "apiVersion": about["apiVersion"],
                        "namespace": namespace,
                        **{field: metadata[field] for field in ("name", "uid", "resourceVersion")},
                    },
                    "type": kind,
                    "reason": reason,
                    "message": message,
                    "source": {"component": source},
                    "reportingComponent": source,
                    "count": 1,
                    "firstTimestamp": timestamp(),
                    "lastTimestamp": timestamp(),
                }
            )


def _put(obj: Object, new: Object) -> None:
    obj.clear()
    obj |= copy.deepcopy(new)


def _count_up(event: Object) -> None:
    event |= {"count": event["count"] + 1, "lastTimestamp": timestamp()}


def _terminate(namespace: Object) -> None:
    namespace["metadata"].setdefault("deletionTimestamp", timestamp())
    namespace["status"]["phase"] = "Terminating"


def _mark_deleted(finalizer: str) -> Callable[[Object], None]:
    def mark(obj: Object) -> None:
        obj["metadata"].setdefault("deletionTimestamp", timestamp())
        finalizers = obj["metadata"].setdefault("finalizers", [])
        if finalizer and finalizer not in finalizers:
            finalizers.append(finalizer)

    return mark
