"""A pod's size as Dagster and Kubernetes read it: the sections of the tag ``dagster-k8s/config``. Pure."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import dagster
from dagster_k8s.job import USER_DEFINED_K8S_CONFIG_KEY, get_user_defined_k8s_config

from resources.errors import UserError
from resources.pods.catalogue import CPU, Catalogue, Nodes
from resources.pods.sizing import PodSize

Config = dict[str, Any]

POD_VARIABLE = "EVAL_POD"
"""Tells a pod what it is, as JSON, for the record of its evaluations."""
NODE_LOSS_SECONDS = 30
"""How long a pod stays with a node that isn't heard of; Kubernetes's own default is 300 s."""
GRACE_SECONDS = 60
"""What a run that is told to end has for writing what it has finished."""
FINISHED_SECONDS = 600
"""How long the Job of a finished run stays, for whoever wants to see its log."""
_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_COMPONENT = "app.kubernetes.io/component"


def pod_config(
    size: PodSize, catalogue: Catalogue, *, labels: Mapping[str, str], priority: int = 0
) -> Config:
    """The computed configuration of a run's Job.

    `labels` are named without prefix and may have any text: what is no legal label value is shortened, and
    stands in full in an annotation. `priority` is the run's ``dagster/priority``.
    """
    offer = catalogue.cpu if size.accelerator == CPU else catalogue.accelerators[size.accelerator]
    nodes: list[Nodes] = [offer, *([offer.spot] if size.spot and offer.spot is not None else [])]
    memory, storage = _mebibytes(size.memory), _mebibytes(size.storage)
    limits = {"cpu": f"{size.cores:g}", "memory": memory, "ephemeral-storage": storage}
    record = {**identity(size), "team": labels.get("team") or None, "dagster": dagster.__version__}
    container: Config = {
        "resources": {"requests": dict(limits), "limits": limits},
        "env": [
            {"name": "EVAL_THREADS", "value": str(max(1, int(size.cores)))},
            {"name": POD_VARIABLE, "value": json.dumps(record, sort_keys=True)},
        ],
    }
    pod: Config = {
        "node_selector": {key: value for where in nodes for key, value in where.node_selector.items()},
        "tolerations": [
            *(
                {
                    "key": f"node.kubernetes.io/{condition}",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": NODE_LOSS_SECONDS,
                }
                for condition in ("not-ready", "unreachable")
            ),
            *(dict(toleration) for where in nodes for toleration in where.tolerations),
        ],
        "termination_grace_period_seconds": GRACE_SECONDS,
        "active_deadline_seconds": size.deadline_seconds,
    }
    if size.count:
        _ask_for_devices(size, catalogue, container, pod)
    if catalogue.priority_classes is not None:
        interactive, new_version, night = catalogue.priority_classes
        pod["priority_class_name"] = interactive if priority > 0 else night if priority < 0 else new_version
    metadata = {
        "labels": {f"evaluation/{name}": label_value(text) for name, text in labels.items() if text},
        "annotations": {f"evaluation/{name}": text for name, text in labels.items() if text},
    }
    if catalogue.spread is not None:
        pod["topology_spread_constraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": catalogue.spread,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {_COMPONENT: "run_worker"}},
            }
        ]
    job_labels = dict(metadata["labels"])
    job: Config = {"ttl_seconds_after_finished": FINISHED_SECONDS}
    if catalogue.kueue_queue is not None:
        job_labels["kueue.x-k8s.io/queue-name"] = catalogue.kueue_queue
        job["suspend"] = True
    return {
        "container_config": container,
        "pod_spec_config": pod,
        "pod_template_spec_metadata": metadata,
        "job_metadata": {**metadata, "labels": job_labels},
        "job_spec_config": job,
    }


def identity(size: PodSize) -> dict[str, Any]:
    """What a pod is, for the records of its evaluations and of its run."""
    return {
        "class": size.accelerator,
        "count": size.count,
        "cores": size.cores,
        "memory": size.memory,
        "spot": size.spot,
        "price": size.price,
    }


def _ask_for_devices(size: PodSize, catalogue: Catalogue, container: Config, pod: Config) -> None:
    offer = catalogue.accelerators[size.accelerator]
    if offer.resource is not None:
        # In the limits only: for such resources a request that differs is refused, so there is one to change.
        container["resources"]["limits"][offer.resource] = str(size.count)
    else:
        template = str(offer.claim_template).replace("{count}", str(size.count))
        pod["resource_claims"] = [{"name": "accelerator", "resourceClaimTemplateName": template}]
        container["resources"]["claims"] = [{"name": "accelerator"}]
    if size.count > 1:
        container["env"].append({"name": "EVAL_DEVICE_MAP", "value": "yes"})
    # The 64 MB that a container has for sharing memory between processes are too few for device libraries.
    container["volume_mounts"] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    pod["volumes"] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}]


def _mebibytes(count: int) -> str:
    return f"{-(-count // 2**20)}Mi"


def label_value(text: str) -> str:
    """A legal label value for any text, the same for the same text and another for another.

    What is legal stays as it is. The rest loses what isn't allowed, is cut, and ends in a hash of all of it.
    """
    if _VALUE.fullmatch(text):
        return text
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:50].rstrip("._-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{readable}-{digest}" if readable else digest


def merged(computed: Mapping[str, Any], person: Mapping[str, Any]) -> Config:
    """What a person says wins over what was computed, field by field.

    Lists of things that have a name (``env``, ``volumes``) are merged by it, other lists are joined. Where a
    person names an accelerator, the computed one is dropped; where only one of request and limit is named,
    the other follows. Both may be spelled as Python or as YAML has it.

    Raises UserError for a wrong field, and for what would give whoever may launch runs more than a size:
    Secrets, the node's files, another run's labels.
    """
    computed, person = _as_python(computed), _as_python(person)
    _refuse_more_than_size(person)
    if "env" in person.get("container_config", {}):  # of a run before, whose tag was edited
        own = [entry for entry in person["container_config"]["env"] if entry["name"] != POD_VARIABLE]
        person = {**person, "container_config": {**person["container_config"], "env": own}}
    result = _merge(computed, person)
    resources = person.get("container_config", {}).get("resources", {})
    if not resources:
        return result
    ours = result["container_config"]["resources"]
    named = {*resources.get("limits", {}), *resources.get("requests", {})}
    if any("/" in name for name in named):
        for part in ("limits", "requests"):
            kept = ours.get(part, {})
            ours[part] = {name: value for name, value in kept.items() if "/" not in name or name in named}
        if "claims" not in resources:
            ours.pop("claims", None)
            result.get("pod_spec_config", {}).pop("resource_claims", None)
    for one, other in (("limits", "requests"), ("requests", "limits")):
        for name, value in resources.get(one, {}).items():
            if name not in resources.get(other, {}) and name in ours.get(other, {}):
                ours[other][name] = value
    return result


_VOLUMES = {"name", "empty_dir", "persistent_volume_claim", "config_map", "ephemeral"}
_OUR_LABELS = ("dagster/", "evaluation/role", "app.kubernetes.io/", "job-name", "batch.kubernetes.io/")


def _refuse_more_than_size(person: Config) -> None:
    tag = f"tag {USER_DEFINED_K8S_CONFIG_KEY}"
    container = person.get("container_config", {})
    if "env_from" in container or any("value_from" in entry for entry in container.get("env", [])):
        raise UserError(
            f"{tag}: a run's tag may set variables, but not take them from Secrets; use dagster.yaml"
        )
    for volume in person.get("pod_spec_config", {}).get("volumes", []):
        other = sorted(set(volume) - _VOLUMES)
        if other:
            raise UserError(
                f"{tag}: a run's tag may mount no volume of the kind {other[0]}; use dagster.yaml"
            )
    for section in ("pod_template_spec_metadata", "job_metadata"):
        for label in person.get(section, {}).get("labels", {}):
            if label.startswith(_OUR_LABELS):
                raise UserError(f"{tag}: the label {label} is the launcher's own; choose another name")


def _as_python(config: Mapping[str, Any]) -> Config:
    try:
        known = get_user_defined_k8s_config({USER_DEFINED_K8S_CONFIG_KEY: json.dumps(config)}).to_dict()
        return {section: value for section, value in known.items() if section in config}
    except Exception as error:  # dagster-k8s raises whatever it meets
        raise UserError(f"tag {USER_DEFINED_K8S_CONFIG_KEY}: {' '.join(str(error).split())}") from None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Config:
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            result[key] = _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            result[key] = _joined(known, value)
        else:
            result[key] = value
    return result


def _joined(known: list[Any], more: list[Any]) -> list[Any]:
    names = {entry["name"] for entry in more if isinstance(entry, Mapping) and "name" in entry}
    kept = [entry for entry in known if entry not in more]
    return [e for e in kept if not (isinstance(e, Mapping) and e.get("name") in names)] + more
