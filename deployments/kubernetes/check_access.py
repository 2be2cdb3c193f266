"""Who may do what: permissions by name, asked of the API server or read from Roles."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from check_api import Api, Object


@dataclass(frozen=True, slots=True)
class Permission:
    """A verb on a resource (``pods``, ``pods/log``) of a group, in a namespace; "" is the whole cluster."""

    verb: str
    resource: str
    group: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        plural, slash, part = self.resource.partition("/")
        name = f"{plural}{f'.{self.group}' if self.group else ''}{slash}{part}"
        return f"{self.verb} {name} in {self.namespace or 'the whole cluster'}"


LAUNCHER = (
    *(Permission(verb, "jobs", "batch") for verb in ("create", "get", "list", "delete")),
    *(Permission(verb, "pods") for verb in ("get", "list", "delete")),
    Permission("get", "pods/log"),
    Permission("list", "events"),
)
"""What the launcher in the daemon asks of the API: `resources.pods.cluster`, and Dagster for a failed run."""
CANCELLING = (Permission("delete", "jobs", "batch"),)
"""What the webserver asks of it, when a person ends a run."""
NEEDED = {"daemon": LAUNCHER, "webserver": CANCELLING}
"""By ``evaluation/role``."""


def permissions_of_check(api: Api, objects: Sequence[Object], namespace: str) -> list[Permission]:
    """What the check needs for trying out `objects` and for an evaluation in a namespace of its own."""
    needed = [Permission(verb, "namespaces") for verb in ("create", "get", "delete")]
    for item in objects:
        found = api.resources(item["apiVersion"]).get(item["kind"])
        if found is not None:
            group = item["apiVersion"].rpartition("/")[0]
            within = namespace if found["namespaced"] else ""
            needed += [Permission(verb, found["name"], group, within) for verb in ("create", "patch")]
    needed += [
        *(Permission(verb, "jobs", "batch", namespace) for verb in ("create", "list")),
        *(Permission(verb, "pods", "", namespace) for verb in ("create", "list")),
        Permission("get", "pods/log", "", namespace),
        Permission("list", "events", "", namespace),
    ]
    return list(dict.fromkeys(needed))


def missing(api: Api, needed: Iterable[Permission]) -> list[Permission]:
    """What of it whoever `api` speaks for may not do, by the API server's own word."""
    return [permission for permission in needed if not _may(api, permission)]


def _may(api: Api, permission: Permission) -> bool:
    resource, _, part = permission.resource.partition("/")
    asked = {
        "verb": permission.verb,
        "group": permission.group,
        "resource": resource,
        "subresource": part,
        "namespace": permission.namespace,
    }
    kind = "SelfSubjectAccessReview"
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": kind,
        "spec": {"resourceAttributes": {name: value for name, value in asked.items() if value}},
    }
    answer = api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


def missing_in(rules: Sequence[Object], needed: Iterable[Permission]) -> list[Permission]:
    """What of it rules of Roles don't allow."""
    return [
        permission
        for permission in needed
        if not any(
            {permission.verb, "*"} & set(rule["verbs"])
            and {permission.group, "*"} & set(rule.get("apiGroups") or [])
            and {permission.resource, "*"} & set(rule.get("resources") or [])
            and not rule.get("resourceNames")
            for rule in rules
        )
    ]
