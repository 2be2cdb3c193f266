"""What the API server asks of an object (schema, names, labels, fields that stay) and its defaults."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import kubernetes_validate
from kubernetes.utils.quantity import parse_quantity

from tests.kubernetes.store import ApiError, Kind, Object, refusal

VERSION = "1.36"
LABEL_LENGTH = 63

_DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_SUBDOMAIN = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_NAMED_BY_LABEL = {"namespaces", "services"}
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    f"'{_DNS_SUBDOMAIN}')"
)
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    f"'{_DNS_LABEL}')"
)
_KEY_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    f"'{_QUALIFIED}')"
)
_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used "
    f"for validation is '({_QUALIFIED})?')"
)
_TOO_LONG = f"must be no more than {LABEL_LENGTH} bytes"
_IMMUTABLE = {
    "jobs": ("selector", "template", "completions", "completionMode", "podFailurePolicy", "managedBy"),
    "persistentvolumeclaims": ("accessModes", "storageClassName"),
    "deployments": ("selector",),
    "statefulsets": ("selector", "serviceName", "volumeClaimTemplates"),
}
_MUTABLE_IN_PODS = {
    "activeDeadlineSeconds",
    "tolerations",
    "schedulingGates",
    "terminationGracePeriodSeconds",
}


def quantity(value: object) -> Decimal:
    """A resource quantity (`500m`, `8Gi`, 2) as a number."""
    return Decimal(parse_quantity(value))


def decode(kind: Kind, obj: Object) -> None:
    """Check an object against the schema of its kind; ApiError with 400 or 422 that names the field."""
    try:
        kubernetes_validate.validate(obj, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = _path(error.absolute_path)
        if error.validator == "additionalProperties":
            unknown = re.findall(r"'([^']*)'", error.message)[0]
            field = f"{path}.{unknown}" if path else unknown
            raise _undecodable(kind, f'strict decoding error: unknown field "{field}"') from None
        if error.validator == "required":
            missing = re.findall(r"'([^']*)'", error.message)[0]
            raise invalid(kind, obj, f"{path}.{missing}", "Required value") from None
        raise _undecodable(kind, f"json: cannot unmarshal {path}: {error.message}") from None
    for path, amount in _quantities(obj):
        try:
            quantity(amount)
        except ValueError:
            rule = (
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            )
            raise _undecodable(kind, f"{path}: {rule}") from None


def _undecodable(kind: Kind, text: str) -> ApiError:
    text = f'{kind.name} in version "v1" cannot be handled as a {kind.name}: {text}'
    return ApiError(400, "BadRequest", text)


def _path(parts: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _quantities(obj: Object) -> Iterator[tuple[str, object]]:
    spec = pod_spec(obj)
    for path, container in containers(spec) if spec else ():
        for side, amounts in (container.get("resources") or {}).items():
            for resource, amount in amounts.items() if isinstance(amounts, dict) else ():
                yield f"{path}.resources.{side}.{resource}", amount


def invalid(kind: Kind, obj: Object, field: str, problem: str) -> ApiError:
    """422 about one field of an object."""
    name = obj["metadata"].get("name", "")
    details = {"name": name, "group": kind.group, "kind": kind.name}
    cause = {"reason": _cause(problem), "message": problem, "field": field}
    text = f'{kind.full_name} "{name}" is invalid: {field}: {problem}'
    return ApiError(422, "Invalid", text, **details, causes=[cause])


def _cause(problem: str) -> str:
    cause = problem.split(":")[0].removesuffix(" value").title().replace(" ", "")
    return "FieldValue" + cause.replace("Unsupported", "NotSupported")


def pod_spec(obj: Object) -> Object | None:
    """The spec of a pod, or of the pods that an object makes; None where it makes none."""
    spec: Object = obj.get("spec") or {}
    if obj["kind"] == "Pod":
        return spec
    if obj["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    found: Object | None = (spec.get("template") or {}).get("spec")
    return found


def containers(spec: Object) -> list[tuple[str, Object]]:
    """All containers of a pod spec with their paths, the init containers first."""
    return [
        (f"spec.{group}[{index}]", container)
        for group in ("initContainers", "containers")
        for index, container in enumerate(spec.get(group) or [])
    ]


def set_defaults(kind: Kind, obj: Object) -> None:
    """Fill in what the API server fills in."""
    if (spec := pod_spec(obj)) is not None:
        spec.setdefault("restartPolicy", "Always")
        spec.setdefault("terminationGracePeriodSeconds", 30)
        spec.setdefault("schedulerName", "default-scheduler")
        for _, container in containers(spec):
            resources = container.setdefault("resources", {})
            if limits := resources.get("limits"):
                resources["requests"] = dict(limits) | (resources.get("requests") or {})
    if kind.plural == "jobs":
        _set_job_defaults(obj)
        obj["status"] = {}
    elif kind.plural == "pods":
        obj["status"] = {"phase": "Pending"}
    elif kind.plural == "secrets":
        for key, value in obj.pop("stringData", {}).items():
            obj.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()
    elif kind.plural == "namespaces":
        obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
        obj["status"] = {"phase": "Active"}


def _set_job_defaults(job: Object) -> None:
    spec = job["spec"]
    defaults = {"completions": 1, "parallelism": 1, "backoffLimit": 6, "suspend": False}
    replacement = "Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed"
    for field, value in (defaults | {"podReplacementPolicy": replacement}).items():
        if spec.get(field) is None:
            spec[field] = value


def label_job(job: Object) -> None:
    """Give a new Job, which has its uid by now, the selector of its pods and their labels."""
    own, name = job["metadata"]["uid"], job["metadata"]["name"]
    labels = {f"{prefix}controller-uid": own for prefix in ("", "batch.kubernetes.io/")}
    labels |= {f"{prefix}job-name": name for prefix in ("", "batch.kubernetes.io/")}
    template = job["spec"]["template"].setdefault("metadata", {})
    template["labels"] = (template.get("labels") or {}) | labels
    job["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": own}}


def check(kind: Kind, obj: Object) -> None:
    """Check names, labels and what ties fields together; ApiError with 422 that names the field."""
    for field, problem in _problems(kind, obj):
        raise invalid(kind, obj, field, problem)


def _problems(kind: Kind, obj: Object) -> Iterator[tuple[str, str]]:
    name = obj["metadata"]["name"]
    by_label = kind.plural in _NAMED_BY_LABEL
    if "rbac" not in kind.group and not re.fullmatch(_DNS_LABEL if by_label else _DNS_SUBDOMAIN, name):
        yield "metadata.name", f'Invalid value: "{name}": {_LABEL_RULE if by_label else _SUBDOMAIN_RULE}'
    if len(name) > (LABEL_LENGTH if by_label else 253):
        yield "metadata.name", f'Invalid value: "{name}": must be no more than 253 bytes'
    yield from _metadata_problems("metadata", obj["metadata"])
    spec = pod_spec(obj)
    if spec is not None:
        prefix = "" if kind.plural == "pods" else "spec.template."
        claims = (obj.get("spec") or {}).get("volumeClaimTemplates") or []
        for field, problem in _pod_problems(spec, {claim["metadata"]["name"] for claim in claims}):
            yield prefix + field, problem
    if kind.plural == "jobs":
        yield from _metadata_problems("spec.template", obj["spec"]["template"].get("metadata") or {})
        if len(name) > LABEL_LENGTH:  # the name becomes a label of the pods
            yield "spec.template.labels", f'Invalid value: "{name}": {_TOO_LONG}'
        if (policy := obj["spec"]["template"]["spec"]["restartPolicy"]) not in ("OnFailure", "Never"):
            allowed = 'supported values: "OnFailure", "Never"'
            yield "spec.template.spec.restartPolicy", f'Unsupported value: "{policy}": {allowed}'


def _metadata_problems(field: str, metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for group in ("labels", "annotations"):
        for key, value in (metadata.get(group) or {}).items():
            prefix, _, part = key.rpartition("/")
            if not re.fullmatch(_QUALIFIED, part):
                yield f"{field}.{group}", f'Invalid value: "{key}": {_KEY_RULE}'
            if len(part) > LABEL_LENGTH:
                yield f"{field}.{group}", f'Invalid value: "{key}": name part {_TOO_LONG}'
            if "/" in key and not re.fullmatch(_DNS_SUBDOMAIN, prefix):
                yield f"{field}.{group}", f'Invalid value: "{key}": prefix part {_SUBDOMAIN_RULE}'
            if group == "labels" and not re.fullmatch(f"({_QUALIFIED})?", value):
                yield f"{field}.labels", f'Invalid value: "{value}": {_VALUE_RULE}'
            if group == "labels" and len(value) > LABEL_LENGTH:
                yield f"{field}.labels", f'Invalid value: "{value}": {_TOO_LONG}'


def _pod_problems(spec: Object, claims: set[str]) -> Iterator[tuple[str, str]]:
    volumes = {volume["name"] for volume in spec.get("volumes") or []} | claims
    names: set[str] = set()
    if not spec.get("containers"):
        yield "spec.containers", "Required value"
    for path, container in containers(spec):
        name = container["name"]
        if not re.fullmatch(_DNS_LABEL, name):
            yield f"{path}.name", f'Invalid value: "{name}": {_LABEL_RULE}'
        if name in names:
            yield f"{path}.name", f'Duplicate value: "{name}"'
        names.add(name)
        if not container.get("image"):
            yield f"{path}.image", "Required value"
        for index, mount in enumerate(container.get("volumeMounts") or []):
            if mount["name"] not in volumes:
                yield f"{path}.volumeMounts[{index}].name", f'Not found: "{mount["name"]}"'
        yield from _resource_problems(f"{path}.resources", container.get("resources") or {})


def _resource_problems(path: str, resources: Object) -> Iterator[tuple[str, str]]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for resource, amount in requests.items():
        extended = "/" in resource
        if resource in limits and quantity(amount) > quantity(limits[resource]):
            problem = f'Invalid value: "{amount}": must be less than or equal to {resource} limit'
            yield f"{path}.requests", f"{problem} of {limits[resource]}"
        if extended and resource not in limits:
            yield f"{path}.limits", "Required value: Limit must be set for non overcommitable resources"
        elif extended and quantity(amount) != quantity(limits[resource]):
            problem = f'Invalid value: "{amount}": must be equal to {resource} limit of {limits[resource]}'
            yield f"{path}.requests", problem


def check_change(kind: Kind, old: Object, new: Object) -> None:
    """Refuse with 422 a change of a field that may not change, with 409 one based on an old version."""
    version = new["metadata"].get("resourceVersion")
    if version and version != old["metadata"]["resourceVersion"]:
        text = "the object has been modified; please apply your changes to the latest version and try again"
        conflict = refusal(kind, old["metadata"]["name"], 409, "Conflict", "")
        message = f'Operation cannot be fulfilled on {kind.resource} "{old["metadata"]["name"]}": {text}'
        conflict.body["message"] = message
        raise conflict
    before, after = old.get("spec") or {}, new.get("spec") or {}
    for field in _IMMUTABLE.get(kind.plural, ()):
        if before.get(field) != after.get(field):
            value = json.dumps(after.get(field))
            raise invalid(kind, new, f"spec.{field}", f"Invalid value: {value}: field is immutable")
    if kind.plural == "pods" and _fixed(before) != _fixed(after):
        allowed = (
            "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
            "`spec.tolerations` (only additions to existing tolerations)"
        )
        text = f"Forbidden: pod updates may not change fields other than {allowed}"
        raise invalid(kind, new, "spec", text)


def _fixed(spec: Object) -> Object:
    fixed = {field: value for field, value in spec.items() if field not in _MUTABLE_IN_PODS}
    for group in ("initContainers", "containers"):
        fixed[group] = [container | {"image": ""} for container in fixed.get(group) or []]
    return fixed
