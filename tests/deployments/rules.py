"""The rules that every object of a build keeps.

A rule reads a whole build and yields a line for each breach, naming the object. Where a rule is stricter than
Kubernetes (a read-only root filesystem), that is this project's choice.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from tests.deployments.manifests import Object, name_of, pod_templates

Rule: TypeAlias = Callable[[Sequence[Object]], Iterator[str]]

NAMESPACE = "evaluation"
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
MAY_REACH_EVERYTHING = "internet-443"
METADATA_SERVICE = ipaddress.ip_address("169.254.169.254")

# What a build only names; deployments/kubernetes/README.md says who makes it.
SECRETS: Mapping[str, set[str]] = {
    "dagster-postgresql-secret": {"postgresql-password"},
    "evaluation-secrets": {
        "HF_TOKEN",
        "MLFLOW_TRACKING_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "EVAL_WEBHOOK",
        "EVAL_SMTP",
    },
    "oauth2-proxy-secret": {"client-id", "client-secret", "cookie-secret"},
    "evaluation-tls": set(),
    "registry-credentials": set(),
}
OPTIONAL_SECRET = "evaluation-secrets"

VOLUME_KINDS = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"} | {
    "projected",
    "secret",
}
SECRET_NAME = re.compile(
    r"token|passw|secret|credential|webhook|smtp|api.?key|access.?key|private.?key", re.IGNORECASE
)
SECRET_VALUE = re.compile(
    r"://[^/\s:@]+:[^/\s@]+@|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def _get(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


# https://kubernetes.io/docs/concepts/security/pod-security-standards/, "Restricted", field by field, and
# readOnlyRootFilesystem. What the standard lets a pod say for its containers, each container says here.
_POD_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "hostNetwork": lambda value: not value,
    "hostPID": lambda value: not value,
    "hostIPC": lambda value: not value,
    "automountServiceAccountToken": lambda value: isinstance(value, bool),
    "securityContext.runAsNonRoot": lambda value: value is True,
    "securityContext.runAsUser": lambda value: isinstance(value, int) and value > 0,
    "securityContext.seccompProfile.type": lambda value: value == "RuntimeDefault",
    "securityContext.sysctls": lambda value: not value,
    "securityContext.seLinuxOptions": lambda value: not value,
    "securityContext.windowsOptions": lambda value: not value,
    "securityContext.appArmorProfile.type": lambda value: value in (None, "RuntimeDefault"),
}
_CONTAINER_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "securityContext.allowPrivilegeEscalation": lambda value: value is False,
    "securityContext.capabilities.drop": lambda value: value == ["ALL"],
    "securityContext.capabilities.add": lambda value: not value,
    "securityContext.privileged": lambda value: not value,
    "securityContext.procMount": lambda value: value in (None, "Default"),
    "securityContext.readOnlyRootFilesystem": lambda value: value is True,
    "securityContext.runAsNonRoot": lambda value: value is True,
    "securityContext.runAsUser": lambda value: isinstance(value, int) and value > 0,
    "securityContext.seccompProfile.type": lambda value: value == "RuntimeDefault",
    "securityContext.seLinuxOptions": lambda value: not value,
    "securityContext.windowsOptions": lambda value: not value,
    "securityContext.appArmorProfile.type": lambda value: value in (None, "RuntimeDefault"),
    "livenessProbe.httpGet.host": lambda value: not value,
    "readinessProbe.httpGet.host": lambda value: not value,
    "startupProbe.httpGet.host": lambda value: not value,
    "livenessProbe.tcpSocket.host": lambda value: not value,
    "readinessProbe.tcpSocket.host": lambda value: not value,
    "startupProbe.tcpSocket.host": lambda value: not value,
}


def restricted(objects: Sequence[Object]) -> Iterator[str]:
    """Pods keep to the profile `restricted`, and their root filesystem is read-only."""
    for pod in pod_templates(objects):
        for path, allowed in _POD_FIELDS.items():
            if not allowed(_get(pod.spec, path)):
                yield f"{pod.where}: {path} is {_get(pod.spec, path)!r}"
        for volume in pod.spec.get("volumes", []):
            for kind in set(volume) - {"name"} - VOLUME_KINDS:
                yield f"{pod.where}: volume {volume['name']} is a {kind}"
        for where, container in pod.containers:
            for path, allowed in _CONTAINER_FIELDS.items():
                if not allowed(_get(container, path)):
                    yield f"{where}: {path} is {_get(container, path)!r}"
            for port in container.get("ports", []):
                if port.get("hostPort"):
                    yield f"{where}: hostPort {port['hostPort']}"


def exact_images(objects: Sequence[Object]) -> Iterator[str]:
    """Images have a tag that is not `latest`, or a digest."""
    for pod in pod_templates(objects):
        for where, container in pod.containers:
            image = container["image"]
            tag = image.rsplit("/", 1)[-1].partition(":")[2]
            if "@sha256:" not in image and tag in ("", "latest"):
                yield f"{where}: image {image}"


def sized(objects: Sequence[Object]) -> Iterator[str]:
    """Containers say what they need and the most they may take, also of the node's disk."""
    for pod in pod_templates(objects):
        for where, container in pod.containers:
            resources = container.get("resources", {})
            for part, resource in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
                if resource not in resources.get(part, {}):
                    yield f"{where}: no resources.{part}.{resource}"
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.where}: emptyDir {volume['name']} has no sizeLimit"


def alive(objects: Sequence[Object]) -> Iterator[str]:
    """Containers that run for ever are probed: for being alive, and where they serve, for being ready."""
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet"):
            for container in item["spec"]["template"]["spec"]["containers"]:
                wanted = {"livenessProbe"} | ({"readinessProbe"} if "ports" in container else set())
                for probe in sorted(wanted - set(container)):
                    yield f"{name_of(item)}, container {container['name']}: no {probe}"


def narrow_roles(objects: Sequence[Object]) -> Iterator[str]:
    """Rules have no wildcard, reach no secret, hand on no rights, and hold in the namespace only."""
    for item in objects:
        if item["kind"].startswith("ClusterRole"):
            yield f"{name_of(item)}: holds in the whole cluster"
        for rule in item.get("rules", []) if item["kind"].endswith("Role") else []:
            for field in ("apiGroups", "resources", "verbs"):
                if not rule.get(field) or any("*" in entry for entry in rule[field]):
                    yield f"{name_of(item)}: {field} is {rule.get(field)}"
            for verb in {"bind", "escalate", "impersonate"} & set(rule["verbs"]):
                yield f"{name_of(item)}: {verb}"
            if "secrets" in rule["resources"]:
                yield f"{name_of(item)}: secrets"


def powerless(objects: Sequence[Object]) -> Iterator[str]:
    """The accounts of what reads models and results are bound to nothing, their pods have no token."""
    accounts = {"evaluation-run", "evaluation-code", "evaluation-exporter", "default"}
    for item in objects:
        for subject in item.get("subjects", []):
            if subject["name"] in accounts or subject["kind"] == "Group":
                yield f"{name_of(item)}: binds {subject['kind']} {subject['name']}"
        is_theirs = item["kind"] == "ServiceAccount" and item["metadata"]["name"] in accounts
        if is_theirs and item.get("automountServiceAccountToken") is not False:
            yield f"{name_of(item)}: has a token"
    for pod in pod_templates(objects):
        is_theirs = pod.spec.get("serviceAccountName", "default") in accounts
        if is_theirs and pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: has a token"


def closed_namespace(objects: Sequence[Object]) -> Iterator[str]:
    """A namespace enforces `restricted`, has a quota and defaults, and denies what traffic isn't named."""
    for item in objects:
        if item["kind"] not in CLUSTER_WIDE and item["metadata"].get("namespace") != NAMESPACE:
            yield f"{name_of(item)}: in namespace {item['metadata'].get('namespace')}"
        if item["kind"] == "Namespace":
            for mode in ("enforce", "audit", "warn"):
                level = item["metadata"].get("labels", {}).get(f"pod-security.kubernetes.io/{mode}")
                if level != "restricted":
                    yield f"{name_of(item)}: {mode} is {level}"
            for kind in ("ResourceQuota", "LimitRange"):
                if not any(other["kind"] == kind for other in objects):
                    yield f"{name_of(item)}: no {kind}"
            everything = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
            if not any(o["kind"] == "NetworkPolicy" and o["spec"] == everything for o in objects):
                yield f"{name_of(item)}: no policy denies what isn't named"


def named_traffic(objects: Sequence[Object]) -> Iterator[str]:
    """Policies name the other side and the port, and only the policy `internet-443` reaches everything."""
    for item in objects:
        if item["kind"] != "NetworkPolicy":
            continue
        for direction, side in (("egress", "to"), ("ingress", "from")):
            for rule in item["spec"].get(direction, []):
                ports = [port.get("port") for port in rule.get("ports", [])]
                if not ports or None in ports:
                    yield f"{name_of(item)}: {direction} without ports"
                if not rule.get(side):
                    yield f"{name_of(item)}: {direction} {side} anywhere"
                for peer in rule.get(side, []):
                    if problem := _too_wide(peer, ports, item["metadata"]["name"]):
                        yield f"{name_of(item)}: {direction} {side} {problem}"


def _too_wide(peer: Object, ports: Sequence[Any], policy: str) -> str | None:
    if "ipBlock" not in peer:
        return None if peer and all(peer.values()) else f"all pods: {peer}"
    block = ipaddress.ip_network(peer["ipBlock"]["cidr"])
    if block.is_private and block.prefixlen:
        return None
    spared = [ipaddress.ip_network(part) for part in peer["ipBlock"].get("except", [])]
    if not any(METADATA_SERVICE in part for part in spared):
        return f"{block} with the cloud's metadata"
    if ports != [443] or not policy.endswith(MAY_REACH_EVERYTHING):
        return f"{block} on {ports}"
    return None


def no_secrets(objects: Sequence[Object]) -> Iterator[str]:
    """No Secret is built, and nothing that looks like one stands in an environment or a text."""
    for item in objects:
        if item["kind"] == "Secret":
            yield f"{name_of(item)}: a Secret is made by hand or by an operator, not by the build"
        for text in _texts(item):
            if SECRET_VALUE.search(text):
                yield f"{name_of(item)}: a secret in {text[:40]!r}"
        if item["kind"] == "ConfigMap":
            for name, value in (item.get("data") or {}).items():
                if SECRET_NAME.search(name) and value:
                    yield f"{name_of(item)}: {name}"
    for pod in pod_templates(objects):
        for where, container in pod.containers:
            for variable in container.get("env", []):
                if SECRET_NAME.search(variable["name"]) and variable.get("value"):
                    yield f"{where}: {variable['name']} has its value in the manifest"
            for argument in [*container.get("command", []), *container.get("args", [])]:
                if re.match(r"--[a-z-]*(secret|password|token)=", argument):
                    yield f"{where}: {argument.partition('=')[0]} has its value in the manifest"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def whole(objects: Sequence[Object]) -> Iterator[str]:
    """Whatever is referred to is in the build, or is one of the documented Secrets that people make."""
    there: dict[str, set[str]] = {}
    for item in objects:
        there.setdefault(item["kind"], set()).add(item["metadata"]["name"])
    entries = {
        item["metadata"]["name"]: item.get("data") or {} for item in objects if item["kind"] == "ConfigMap"
    }
    for where, kind, name, key in _references(objects):
        if kind == "Secret":
            if name not in SECRETS or (key and key not in SECRETS[name]):
                yield f"{where}: Secret {name} {key} is documented nowhere"
        elif name not in there.get(kind, ()):
            yield f"{where}: there is no {kind} {name}"
        elif kind == "ConfigMap" and key and key not in entries[name]:
            yield f"{where}: ConfigMap {name} has no {key}"
    for pod in pod_templates(objects):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | set(pod.claims)
        mounted = {mount["name"] for _, c in pod.containers for mount in c.get("volumeMounts", [])}
        for name in sorted(volumes ^ mounted):
            yield f"{pod.where}: volume {name} is mounted or there, but not both"
        for source in pod.references:
            reference = source.get("secretRef") or source.get("secretKeyRef") or {}
            if reference.get("name") == OPTIONAL_SECRET and not reference.get("optional"):
                yield f"{pod.where}: {OPTIONAL_SECRET} is not optional"


def _references(objects: Sequence[Object]) -> Iterator[tuple[str, str, str, str]]:
    """Who refers to what: the place, kind, name, and the key or "" for all of it."""
    for item in objects:
        where, spec = name_of(item), item.get("spec", {})
        for secret in item.get("imagePullSecrets", []):
            yield where, "Secret", secret["name"], ""
        if item["kind"] == "RoleBinding":
            yield where, item["roleRef"]["kind"], item["roleRef"]["name"], ""
            for subject in item["subjects"]:
                yield where, subject["kind"], subject["name"], ""
        if item["kind"] == "Ingress":
            for entry in spec.get("tls", []):
                yield where, "Secret", entry["secretName"], ""
            for rule in spec["rules"]:
                for path in rule["http"]["paths"]:
                    yield where, "Service", path["backend"]["service"]["name"], ""
        if item["kind"] == "StatefulSet":
            yield where, "Service", spec["serviceName"], ""
    for pod in pod_templates(objects):
        for kind, field in (("ServiceAccount", "serviceAccountName"), ("PriorityClass", "priorityClassName")):
            if field in pod.spec:
                yield pod.where, kind, pod.spec[field], ""
        files: dict[str, str] = {}
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                files[volume["name"]] = volume["configMap"]["name"]
                yield pod.where, "ConfigMap", volume["configMap"]["name"], ""
            if "secret" in volume:
                yield pod.where, "Secret", volume["secret"]["secretName"], ""
            if "persistentVolumeClaim" in volume:
                yield pod.where, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], ""
        for _, container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] in files and "subPath" in mount:
                    yield pod.where, "ConfigMap", files[mount["name"]], mount["subPath"]
        for source in pod.references:
            for field, reference in source.items():
                if field in ("configMapRef", "configMapKeyRef"):
                    yield pod.where, "ConfigMap", reference["name"], reference.get("key", "")
                if field in ("secretRef", "secretKeyRef"):
                    yield pod.where, "Secret", reference["name"], reference.get("key", "")


def matching_selectors(objects: Sequence[Object]) -> Iterator[str]:
    """Selectors select: a Deployment its own pods, the rest at least one; Services find their port."""
    pods = list(pod_templates(objects))
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] in ("Deployment", "StatefulSet"):
            [own] = pod_templates([item])
            if not _selects(spec["selector"], own.labels):
                yield f"{name_of(item)}: does not select its own pods"
            for constraint in own.spec.get("topologySpreadConstraints", []):
                if not _selects(constraint["labelSelector"], own.labels):
                    yield f"{name_of(item)}: spreads other pods than its own"
        elif item["kind"] == "Service":
            chosen = [pod for pod in pods if _selects({"matchLabels": spec["selector"]}, pod.labels)]
            ports = {port["name"] for pod in chosen for _, c in pod.containers for port in c.get("ports", [])}
            for port in spec["ports"]:
                if port["targetPort"] not in ports:
                    yield f"{name_of(item)}: no pod has the port {port['targetPort']}"
        elif item["kind"] == "PodDisruptionBudget":
            if not any(_selects(spec["selector"], pod.labels) for pod in pods):
                yield f"{name_of(item)}: selects no pod"
        elif item["kind"] == "NetworkPolicy":
            peers = [peer for rule in spec.get("egress", []) for peer in rule.get("to", [])]
            near = [peer["podSelector"] for peer in peers if set(peer) == {"podSelector"}]
            for selector in [spec["podSelector"], *near]:
                if not any(_selects(selector, pod.labels) for pod in pods):
                    yield f"{name_of(item)}: {selector} selects no pod"


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        match expression["operator"]:
            case "In":
                fits = value in expression["values"]
            case "NotIn":
                fits = value not in expression["values"]
            case "Exists":
                fits = value is not None
            case "DoesNotExist":
                fits = value is None
            case other:
                raise ValueError(f"Kubernetes has no selector operator {other}")
        if not fits:
            return False
    return True


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        restricted, exact_images, sized, alive, narrow_roles, powerless, closed_namespace, named_traffic,
        no_secrets, whole, matching_selectors,
    )
}  # fmt: skip
