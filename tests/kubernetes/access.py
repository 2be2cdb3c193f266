"""Who asks, and may they: tokens, RBAC rules and the reviews of one's own permissions."""

import secrets
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from tests.kubernetes.paths import Target
from tests.kubernetes.store import ApiError, Object, Store, timestamp

ADMIN = "system:admin"


@dataclass(frozen=True)
class User:
    """Whom a token stands for.

    `allowed` are pairs like `("create", "jobs")` or `("get", "pods/log")`, in every namespace; without them
    the Roles and ClusterRoles in the cluster that are bound to the user decide. A service account's name is
    `system:serviceaccount:<namespace>:<name>`.
    """

    name: str
    allowed: frozenset[tuple[str, str]] | None = None

    @property
    def groups(self) -> set[str]:
        """The groups that bindings may name instead of the user."""
        parts = self.name.split(":")
        if parts[:2] == ["system", "serviceaccount"]:
            return {"system:serviceaccounts", f"system:serviceaccounts:{parts[2]}", "system:authenticated"}
        return {"system:unauthenticated" if self.name == "system:anonymous" else "system:authenticated"}


def authenticate(tokens: Mapping[str, User], header: str) -> User:
    """The user of an Authorization header; ApiError 401 for an unknown token. Without `tokens`: the admin."""
    if not tokens:
        return User(ADMIN)
    if not header:
        return User("system:anonymous", frozenset())
    user = tokens.get(header.removeprefix("Bearer "))
    if user is None:
        raise ApiError(401, "Unauthorized", "Unauthorized")
    return user


def issue_token(tokens: MutableMapping[str, User], account: Object, body: Object) -> Object:
    """Answer a TokenRequest of a service account with a token of its own, which does not expire."""
    token, metadata = secrets.token_hex(16), account["metadata"]
    if tokens:  # else authorization is off, and a first token would turn it on
        tokens[token] = User(f"system:serviceaccount:{metadata['namespace']}:{metadata['name']}")
    return body | {"status": {"token": token, "expirationTimestamp": timestamp(600)}}


def authorize(store: Store, user: User, asked: Target) -> None:
    """Check that `user` may do what is asked; ApiError 403 where no rule allows it."""
    kind, name, namespace = asked.kind, asked.name, asked.namespace
    if kind.plural.startswith("selfsubject"):
        return
    resource = f"{kind.plural}/{asked.subresource}" if asked.subresource else kind.plural
    if not _allowed(store, user, asked.verb, kind.group, resource, namespace, name):
        about = f'{kind.resource} "{name}"' if name else kind.resource
        within = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        what = f'cannot {asked.verb} resource "{resource}" in API group "{kind.group}" {within}'
        details = {"name": name, "group": kind.group, "kind": kind.plural}
        raise ApiError(403, "Forbidden", f'{about} is forbidden: User "{user.name}" {what}', **details)


def _allowed(
    store: Store, user: User, verb: str, group: str, resource: str, namespace: str, name: str
) -> bool:
    return any(
        {verb, "*"} & set(rule["verbs"])
        and {group, "*"} & set(rule.get("apiGroups") or [""])
        and {resource, "*"} & set(rule.get("resources") or [])
        and (not rule.get("resourceNames") or name in rule["resourceNames"])
        for rule in rules(store, user, namespace)
    )


def rules(store: Store, user: User, namespace: str) -> Iterator[Object]:
    """The rules that hold for a user in a namespace; without one, those of the whole cluster."""
    if user.name == ADMIN:
        yield {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
    if user.allowed is not None:
        for verb, resource in sorted(user.allowed):
            yield {"verbs": [verb], "apiGroups": ["*"], "resources": [resource]}
        return
    bindings = store.select("clusterrolebindings")
    bindings += store.select("rolebindings", namespace) if namespace else []
    for binding in bindings:
        if any(_is(user, subject) for subject in binding.get("subjects") or []):
            reference = binding["roleRef"]
            plural = "roles" if reference["kind"] == "Role" else "clusterroles"
            role = store.find(plural, namespace if plural == "roles" else "", reference["name"])
            yield from (role or {}).get("rules") or []


def _is(user: User, subject: Object) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject.get('namespace')}:{subject['name']}"
    return subject["name"] in (user.groups if subject["kind"] == "Group" else {user.name})


def review(store: Store, user: User, body: Object) -> Object:
    """Answer a SelfSubjectAccessReview or a SelfSubjectRulesReview."""
    if body.get("kind") == "SelfSubjectRulesReview":
        found = list(rules(store, user, body["spec"].get("namespace", "")))
        return body | {"status": {"resourceRules": found, "nonResourceRules": [], "incomplete": False}}
    asked = body["spec"].get("resourceAttributes") or {}
    resource = "/".join(filter(None, (asked.get("resource", ""), asked.get("subresource", ""))))
    verb, group, namespace = asked.get("verb", ""), asked.get("group", ""), asked.get("namespace", "")
    allowed = _allowed(store, user, verb, group, resource, namespace, asked.get("name", ""))
    return body | {"status": {"allowed": allowed}}
