"""Admission: what the API server adds to a new object, and for whose sake it refuses a valid one with 403."""

from collections.abc import Callable, Iterator
from decimal import Decimal

from tests.kubernetes.store import KINDS, Kind, Object, Store, forbidden, timestamp
from tests.kubernetes.validation import containers, quantity

FINISHED = ("Succeeded", "Failed")
NODE_TROUBLE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

Amounts = dict[str, Decimal]


def amounts(pod: Object, side: str = "requests") -> Amounts:
    """What a pod asks of its node: the sum of its containers, or one init container's where that is more."""
    total: Amounts = {}
    for container in pod["spec"]["containers"]:
        for resource, amount in ((container.get("resources") or {}).get(side) or {}).items():
            total[resource] = total.get(resource, Decimal(0)) + quantity(amount)
    for container in pod["spec"].get("initContainers") or []:
        for resource, amount in ((container.get("resources") or {}).get(side) or {}).items():
            total[resource] = max(total.get(resource, Decimal(0)), quantity(amount))
    return total


def check_namespace(store: Store, kind: Kind, obj: Object) -> None:
    """Refuse, with 403, a new object in a namespace that is on its way out."""
    if not kind.namespaced:
        return
    namespace = store.get("namespaces", "", obj["metadata"]["namespace"])["metadata"]
    if "deletionTimestamp" in namespace:
        text = f"unable to create new content in namespace {namespace['name']} because it is being terminated"
        raise forbidden(kind, obj["metadata"]["name"], text)


def add(store: Store, kind: Kind, obj: Object) -> None:
    """Add to a new object what admission adds."""
    if kind.plural != "pods":
        return
    namespace, spec = obj["metadata"]["namespace"], obj["spec"]
    account = spec.setdefault("serviceAccountName", "default")
    if store.find("serviceaccounts", namespace, account) is None:
        text = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
        raise forbidden(kind, obj["metadata"]["name"], text)
    _add_priority(store, kind, obj)
    _add_limits(store, obj)
    tolerations = spec.setdefault("tolerations", [])
    for taint in NODE_TROUBLE:
        if not any(entry.get("key", taint) == taint for entry in tolerations):
            tolerations.append(
                {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            )


def _add_priority(store: Store, kind: Kind, pod: Object) -> None:
    name = pod["spec"].get("priorityClassName")
    classes = store.select("priorityclasses")
    found = next((entry for entry in classes if entry["metadata"]["name"] == name), None)
    if name and found is None:
        raise forbidden(kind, pod["metadata"]["name"], f"no PriorityClass with name {name} was found")
    found = found or next((entry for entry in classes if entry.get("globalDefault")), None)
    pod["spec"]["priority"] = found["value"] if found else 0


def _add_limits(store: Store, pod: Object) -> None:
    for entry in store.select("limitranges", pod["metadata"]["namespace"]):
        for limit in entry["spec"]["limits"]:
            if limit["type"] == "Container":
                limits = limit.get("default") or {}
                requests = limits | (limit.get("defaultRequest") or {})
                for _, container in containers(pod["spec"]):
                    resources = container["resources"]
                    resources["limits"] = limits | (resources.get("limits") or {})
                    resources["requests"] = requests | (resources.get("requests") or {})


def admit(store: Store, kind: Kind, obj: Object) -> None:
    """Refuse, with 403, a new object that Pod Security or a ResourceQuota of its namespace does not allow."""
    if not kind.namespaced:
        return
    namespace = store.get("namespaces", "", obj["metadata"]["namespace"])
    if kind.plural == "pods":
        _check_pod_security(namespace, kind, obj)
    for quota in store.select("resourcequotas", namespace["metadata"]["name"]):
        _check_quota(store, quota, kind, obj)


def quota_use(store: Store, quota: Object) -> dict[str, str]:
    """What the objects of a quota's namespace use of it, as `status.used`."""
    used = _used(store, quota)
    return {resource: _show(resource, used.get(resource, Decimal(0))) for resource in quota["spec"]["hard"]}


def _used(store: Store, quota: Object) -> Amounts:
    total: Amounts = {}
    for kind in KINDS.values():
        for obj in store.select(kind.plural, quota["metadata"]["namespace"]) if kind.namespaced else ():
            for resource, amount in _use(kind, obj).items():
                total[resource] = total.get(resource, Decimal(0)) + amount
    return total


def _use(kind: Kind, obj: Object) -> Amounts:
    use = {f"count/{kind.resource}": Decimal(1), kind.plural: Decimal(1)}
    if kind.plural != "pods":
        return use
    # Past its grace a pod that no kubelet confirms gone counts no more.
    if obj["status"]["phase"] in FINISHED or obj["metadata"].get("deletionTimestamp", "~") < timestamp():
        del use["pods"]
        return use
    requests, limits = amounts(obj), amounts(obj, "limits")
    use |= {f"requests.{resource}": amount for resource, amount in requests.items()}
    use |= {f"limits.{resource}": amount for resource, amount in limits.items()}
    return use | {resource: requests[resource] for resource in ("cpu", "memory") if resource in requests}


def _check_quota(store: Store, quota: Object, kind: Kind, obj: Object) -> None:
    hard = {resource: quantity(amount) for resource, amount in quota["spec"]["hard"].items()}
    asked = {resource: amount for resource, amount in _use(kind, obj).items() if resource in hard}
    name, quota_name = obj["metadata"]["name"], quota["metadata"]["name"]
    if kind.plural == "pods" and (missing := _unspecified(hard, obj)):
        raise forbidden(kind, name, f"failed quota: {quota_name}: must specify {missing}")
    used = _used(store, quota)
    over = sorted(
        resource for resource in asked if used.get(resource, Decimal(0)) + asked[resource] > hard[resource]
    )
    if over:
        parts = [f"exceeded quota: {quota_name}"]
        for title, values in (("requested", asked), ("used", used), ("limited", hard)):
            shown = (f"{resource}={_show(resource, values.get(resource, Decimal(0)))}" for resource in over)
            parts.append(f"{title}: {','.join(shown)}")
        raise forbidden(kind, name, ", ".join(parts))


def _unspecified(hard: Amounts, pod: Object) -> str:
    missing = []
    for resource in sorted(hard):
        side, _, asked = resource.partition(".") if "." in resource else ("requests", "", resource)
        if side in ("requests", "limits") and asked in ("cpu", "memory"):
            names = [
                container["name"]
                for _, container in containers(pod["spec"])
                if asked not in (container["resources"].get(side) or {})
            ]
            missing += [f"{resource} for: {','.join(names)}"] if names else []
    return "; ".join(missing)


def _show(resource: str, amount: Decimal) -> str:
    if "memory" in resource or "storage" in resource:
        for power, suffix in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
            if amount and amount % 1024**power == 0:
                return f"{int(amount / 1024**power)}{suffix}"
    return str(int(amount)) if amount == int(amount) else f"{int(amount * 1000)}m"


def _check_pod_security(namespace: Object, kind: Kind, pod: Object) -> None:
    labels = namespace["metadata"].get("labels") or {}
    level = labels.get("pod-security.kubernetes.io/enforce", "privileged")
    version = labels.get("pod-security.kubernetes.io/enforce-version", "latest")
    violations = list(_baseline(pod["spec"])) if level != "privileged" else []
    violations += list(_restricted(pod["spec"])) if level == "restricted" else []
    if violations:
        text = f'violates PodSecurity "{level}:{version}": {", ".join(violations)}'
        raise forbidden(kind, pod["metadata"]["name"], text)


def _security(container: Object) -> Object:
    return container.get("securityContext") or {}


def _named(spec: Object, bad: Callable[[Object], object], prefix: str = "") -> str:
    names = [f'"{container["name"]}"' for _, container in containers(spec) if bad(container)]
    return f"{prefix}container{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else ""


_BASELINE_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}


def _capabilities(container: Object, side: str) -> set[str]:
    return set((_security(container).get("capabilities") or {}).get(side) or [])


def _baseline(spec: Object) -> Iterator[str]:
    if hosts := [field for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]:
        yield f"host namespaces ({', '.join(f'{field}=true' for field in hosts)})"
    if paths := [f'"{volume["name"]}"' for volume in spec.get("volumes") or [] if "hostPath" in volume]:
        yield f"hostPath volumes (volume{'s' if len(paths) > 1 else ''} {', '.join(paths)})"
    if named := _named(spec, lambda entry: any(port.get("hostPort") for port in entry.get("ports") or [])):
        yield f"hostPort ({named} uses a hostPort)"
    if named := _named(spec, lambda entry: _security(entry).get("privileged")):
        yield f"privileged ({named} must not set securityContext.privileged=true)"
    if named := _named(spec, lambda entry: _capabilities(entry, "add") - _BASELINE_CAPABILITIES):
        yield f"non-default capabilities ({named} must not add them in securityContext.capabilities.add)"


_SECCOMP = ("RuntimeDefault", "Localhost")
_ALLOWED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim"),
    *("projected", "secret"),
}


def _restricted(spec: Object) -> Iterator[str]:
    pod = _security(spec)
    if named := _named(spec, lambda entry: _security(entry).get("allowPrivilegeEscalation") is not False):
        must = "securityContext.allowPrivilegeEscalation=false"
        yield f"allowPrivilegeEscalation != false ({named} must set {must})"
    if named := _named(spec, lambda entry: "ALL" not in _capabilities(entry, "drop")):
        yield f'unrestricted capabilities ({named} must set securityContext.capabilities.drop=["ALL"])'
    elif named := _named(spec, lambda entry: _capabilities(entry, "add") - {"NET_BIND_SERVICE"}):
        yield f"unrestricted capabilities ({named} must not add them in securityContext.capabilities.add)"
    for volume in spec.get("volumes") or []:
        if volume.keys() - {"name"} - _ALLOWED_VOLUMES:
            used = next(iter(volume.keys() - {"name"}))
            name = volume["name"]
            yield f'restricted volume types (volume "{name}" uses restricted volume type "{used}")'
    if named := _named(
        spec,
        lambda entry: _security(entry).get("runAsNonRoot", pod.get("runAsNonRoot")) is not True,
        "pod or ",
    ):
        yield f"runAsNonRoot != true ({named} must set securityContext.runAsNonRoot=true)"
    if named := _named(spec, lambda entry: (pod | _security(entry)).get("runAsUser") == 0):
        yield f"runAsUser=0 ({named} must not set runAsUser=0)"
    if named := _named(spec, lambda entry: _seccomp(entry, spec) not in _SECCOMP, "pod or "):
        allowed = 'securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
        yield f"seccompProfile ({named} must set {allowed})"


def _seccomp(container: Object, spec: Object) -> str:
    profile: Object = (
        _security(container).get("seccompProfile") or _security(spec).get("seccompProfile") or {}
    )
    return str(profile.get("type", ""))
