"""What a container runs: its command, its environment and its folder, resolved as a kubelet does."""

import base64
import re
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path

from tests.kubernetes.store import Object, Store
from tests.kubernetes.validation import quantity


class Missing(Exception):  # noqa: N818  (a state of the pod, not an error of ours)
    """A Secret or ConfigMap, or a key of one, that a container needs is not there."""


def environment(store: Store, pod: Object, container: Object, base: Mapping[str, str]) -> dict[str, str]:
    """`base` and what the container's envFrom and env say; raises Missing."""
    namespace, result = pod["metadata"]["namespace"], dict(base)
    for source in container.get("envFrom") or []:
        for field in ("configMapRef", "secretRef"):
            if reference := source.get(field):
                found = _values(store, namespace, field.removesuffix("Ref"), reference) or {}
                result |= {source.get("prefix", "") + key: value for key, value in found.items()}
    for entry in container.get("env") or []:
        value = entry.get("value", "")
        if origin := entry.get("valueFrom"):
            value = _value(store, pod, container, origin)
        if value is not None:
            result[entry["name"]] = expand(value, result)
    return result


def _value(store: Store, pod: Object, container: Object, origin: Object) -> str | None:
    if path := (origin.get("fieldRef") or {}).get("fieldPath"):
        return _field(pod, path)
    if reference := origin.get("resourceFieldRef"):
        side, _, resource = reference["resource"].partition(".")
        amount = (container.get("resources", {}).get(side) or {}).get(resource, 0)
        return str(ceil(quantity(amount) / quantity(reference.get("divisor") or 1)))
    kind = "configMap" if "configMapKeyRef" in origin else "secret"
    reference = origin[f"{kind}KeyRef"]
    namespace, key = pod["metadata"]["namespace"], reference["key"]
    found = _values(store, namespace, kind, reference)
    if found is not None and key not in found and not reference.get("optional"):
        title = "Secret" if kind == "secret" else "ConfigMap"
        raise Missing(f"couldn't find key {key} in {title} {namespace}/{reference['name']}")
    return (found or {}).get(key)


def _values(store: Store, namespace: str, kind: str, reference: Object) -> dict[str, str] | None:
    obj = store.find(f"{kind.lower()}s", namespace, reference["name"])
    if obj is None:
        if reference.get("optional"):
            return None
        raise Missing(f'{kind.lower()} "{reference["name"]}" not found')
    values: dict[str, str] = obj.get("data") or {}
    if kind == "secret":
        return {key: base64.b64decode(value).decode() for key, value in values.items()}
    return values


def _field(pod: Object, path: str) -> str:
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    group, _, name = path.partition(".")
    return str(pod[group].get(name, ""))


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Put the variables of `$(NAME)` in; unknown ones stay, and `$$(NAME)` stands for `$(NAME)`."""
    return re.sub(
        r"\$(\$)?\(([^)]*)\)",
        lambda match: match[0][1:] if match[1] else variables.get(match[2], match[0]),
        text,
    )


def folder(container: Object, path_map: Mapping[str, Path], default: Path) -> Path:
    """Where the container's workingDir is on this machine: under the longest mapped path, else `default`."""
    wanted = Path(container.get("workingDir") or "/")
    for path in sorted(path_map, key=len, reverse=True):
        if wanted.is_relative_to(path):
            return path_map[path] / wanted.relative_to(path)
    return default


def missing_volumes(store: Store, pod: Object) -> Iterator[str]:
    """Why volumes of the pod can't be mounted."""
    for volume in pod["spec"].get("volumes") or []:
        for kind, field in (("secret", "secretName"), ("configMap", "name")):
            source = volume.get(kind) or {}
            name, plural = source.get(field, ""), f"{kind.lower()}s"
            if (
                name
                and not source.get("optional")
                and store.find(plural, pod["metadata"]["namespace"], name) is None
            ):
                failure = f'{kind.lower()} "{name}" not found'
                yield f'MountVolume.SetUp failed for volume "{volume["name"]}" : {failure}'
