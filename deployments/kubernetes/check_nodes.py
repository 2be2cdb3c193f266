"""Whether a cluster has what the overlay counts on: nodes for each class, storage classes."""

from collections.abc import Iterator, Mapping, Sequence

from check_api import Object

from resources.pods.catalogue import CPU, AcceleratorClass, Catalogue, CpuClass
from resources.pods.diagnosis import quantity

_DEFAULT = "storageclass.kubernetes.io/is-default-class"


def lacks(catalogue: Catalogue, nodes: Sequence[Object]) -> Iterator[tuple[str, str, str]]:
    """For each class: its name, what there is, and what is wrong ("" where it has a node or may get one)."""
    classes: Mapping[str, CpuClass | AcceleratorClass] = {CPU: catalogue.cpu, **catalogue.accelerators}
    for name, offer in classes.items():
        resource = offer.resource if isinstance(offer, AcceleratorClass) else None
        selected = [
            node
            for node in nodes
            if offer.node_selector.items() <= node["metadata"].get("labels", {}).items()
        ]
        offering = [node for node in selected if resource is None or _amount(node, resource) >= 1]
        found = [node for node in offering if _lets_in(node, offer.tolerations)]
        if found:
            yield name, f"{len(found)} node{'s' if len(found) > 1 else ''}", ""
        elif offer.autoscaled:
            yield name, "no node now; autoscaled: true", ""
        elif offering:
            yield name, "", "its nodes have taints that it doesn't tolerate: add tolerations"
        elif selected:
            yield name, "", f"its nodes don't offer {resource}: is the device plugin installed?"
        else:
            labels = ", ".join(f"{key}={value}" for key, value in offer.node_selector.items())
            yield name, "", f"no node has the label {labels}: correct node_selector" if labels else "no node"


def _amount(node: Object, resource: str) -> float:
    return quantity(str(node["status"].get("allocatable", {}).get(resource, "0")))


def _lets_in(node: Object, tolerations: Sequence[Mapping[str, object]]) -> bool:
    return all(
        any(_tolerates(toleration, taint) for toleration in tolerations)
        for taint in node["spec"].get("taints") or []
        if taint["effect"] != "PreferNoSchedule"
    )


def _tolerates(toleration: Mapping[str, object], taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return (toleration.get("key"), toleration.get("value") or "") == (taint["key"], taint.get("value") or "")


def is_there(name: str | None, classes: Sequence[Object]) -> bool:
    """Whether a storage class exists; None asks for a default, "" for volumes that people make by hand."""
    if name is None:
        return any((found["metadata"].get("annotations") or {}).get(_DEFAULT) == "true" for found in classes)
    return not name or name in {found["metadata"]["name"] for found in classes}
