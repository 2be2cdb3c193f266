"""Selectors over objects: by label and by field, as text in a URL and as objects."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tests.kubernetes.store import KINDS, ApiError, Object, Selector


def meets(labels: Mapping[str, str], requirements: Iterable[Object]) -> bool:
    """Whether labels meet every requirement, `{key, operator, values}` as in matchExpressions."""
    for requirement in requirements:
        value, values = labels.get(requirement["key"]), requirement.get("values") or []
        match requirement["operator"]:
            case "In":
                met = value in values
            case "NotIn":
                met = value not in values
            case "Exists":
                met = value is not None
            case "DoesNotExist":
                met = value is None
            case "Gt":
                met = value is not None and int(value) > int(values[0])
            case _:
                met = value is not None and int(value) < int(values[0])
        if not met:
            return False
    return True


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector object (matchLabels, matchExpressions) selects the labels."""
    wanted = (selector.get("matchLabels") or {}).items()
    return wanted <= labels.items() and meets(labels, selector.get("matchExpressions") or [])


def label_selector(text: str) -> Selector:
    """Parse `a=b,c!=d,e in (f, g),h notin (i),j,!k`; ApiError with 400 where it can't be."""
    requirements = []
    for part in re.split(r",(?![^(]*\))", text):
        if match := re.fullmatch(r"\s*(!?)\s*([^\s!=(),]+)\s*", part):
            operator, values = "DoesNotExist" if match[1] else "Exists", ""
            key = match[2]
        elif match := re.fullmatch(r"\s*([^\s!=(),]+)\s*(==?|!=)\s*([^\s!=(),]*)\s*", part):
            key, operator, values = match[1], "NotIn" if match[2] == "!=" else "In", match[3]
        elif match := re.fullmatch(r"\s*([^\s!=(),]+)\s+(in|notin)\s*\(([^()]*)\)\s*", part):
            key, operator, values = match[1], "In" if match[2] == "in" else "NotIn", match[3]
        else:
            raise ApiError(400, "BadRequest", f"unable to parse requirement: {part!r}")
        split = [value.strip() for value in values.split(",")]
        requirements.append({"key": key, "operator": operator, "values": split})
    return lambda obj: meets(obj["metadata"].get("labels") or {}, requirements)


_FIELDS = {
    "pods": r"spec\.(nodeName|restartPolicy|serviceAccountName)|status\.(phase|podIP)",
    "events": r"involvedObject\.\w+|reason|type|source|reportingComponent",
    "jobs": r"status\.successful",
    "nodes": r"spec\.unschedulable",
    "secrets": r"type",
}


def field_selector(plural: str, text: str) -> Selector:
    """Parse `metadata.name=a,status.phase!=Running`; ApiError with 400 for a field that can't be used."""
    wanted = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([\w.]+)(==?|!=)(.*?)\s*", part)
        if match is None:
            raise ApiError(400, "BadRequest", f"invalid selector: {part!r}; can't understand {part!r}")
        if not re.fullmatch(rf"metadata\.name(space)?|{_FIELDS.get(plural, 'metadata.name')}", match[1]):
            text = f'field label not supported: "{match[1]}"'
            raise ApiError(400, "BadRequest", f"{KINDS[plural].name}: {text}")
        wanted.append((match[1].split("."), match[3], match[2] != "!="))
    return lambda obj: all((_field(obj, path) == value) is equal for path, value, equal in wanted)


def _field(obj: Any, path: Iterable[str]) -> str:
    for part in path:
        obj = (obj or {}).get(part)
    return "" if obj is None else str(obj)
