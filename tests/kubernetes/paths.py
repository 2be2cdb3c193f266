"""The paths of the API: of objects and their subresources, and the discovery that clients read first."""

import re
from dataclasses import dataclass

from tests.kubernetes.store import KINDS, ApiError, Kind, Object

_OBJECTS = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[a-z]+))?/?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_OBJECT_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


@dataclass(frozen=True)
class Target:
    """What a request asks for; fields that the path doesn't have are empty."""

    verb: str
    kind: Kind
    namespace: str
    name: str
    subresource: str


def target(method: str, path: str, watch: bool) -> Target:
    """What a request asks for, in the verbs of RBAC; ApiError 404 for a path that the API doesn't have."""
    match = _OBJECTS.fullmatch(path)
    kind = KINDS.get(match["plural"]) if match else None
    if match is None or kind is None or kind.group != (match["group"] or ""):
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    verb, name = _VERBS.get(method, ""), match["name"] or ""
    if method == "GET":
        verb = "get" if name else "watch" if watch else "list"
    elif method == "DELETE" and not name:
        verb = "deletecollection"
    return Target(verb, kind, match["namespace"] or "", name, match["subresource"] or "")


def discovery(path: str) -> Object | str | None:
    """What the API says about itself at `path`; None where that is no path of discovery."""
    groups = sorted({kind.group for kind in KINDS.values() if kind.group})
    if path in ("/healthz", "/livez", "/readyz"):
        return "ok"
    if path == "/version":
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {"name": group, "versions": [version], "preferredVersion": version}
                for group in groups
                for version in [{"groupVersion": f"{group}/v1", "version": "v1"}]
            ],
        }
    match = re.fullmatch(r"/api/v1|/apis/([^/]+)/v1", path)
    if match is None or match[1] not in (None, *groups):
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{match[1]}/v1" if match[1] else "v1",
        "resources": [
            {
                "name": kind.plural,
                "singularName": kind.name.lower(),
                "kind": kind.name,
                "namespaced": kind.namespaced,
                "verbs": _OBJECT_VERBS,
            }
            for kind in KINDS.values()
            if kind.group == (match[1] or "")
        ],
    }
