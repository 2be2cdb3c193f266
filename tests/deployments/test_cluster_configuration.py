"""What the cluster's pods are configured with is read by Dagster and by us as it is meant.

If one of these fails, a pod would stop at its start, or Helm and Kustomize would deploy different things.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config
from dagster._core.errors import DagsterInvalidConfigError
from dagster._core.instance.config import dagster_instance_config
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._serdes import class_from_code_pointer
from dagster_k8s.job import USER_DEFINED_K8S_CONFIG_KEY

from eval_assets.grid.tracking import tracking
from eval_assets.partitions import SUITE
from resources.pods.catalogue import load_catalogue
from resources.pods.planning import Plan, Purpose
from resources.pods.preview import job_yaml
from resources.pods.sizing import GIB, PodSize
from resources.settings import Settings
from tests.deployments.manifests import (
    DEPLOYMENTS,
    KUBERNETES,
    Object,
    build,
    data,
    jobs_of,
    named,
    pod_templates,
    run_jobs,
)
from tests.deployments.rules import RULES

INSTANCES = {
    "base": KUBERNETES / "base" / "dagster.yaml",
    "object-store": KUBERNETES / "components" / "object-store" / "dagster.yaml",
    "argo": DEPLOYMENTS / "argo" / "dagster.yaml",
    "plain": DEPLOYMENTS / "plain" / "dagster.yaml",
}
VALUES: Object = yaml.safe_load((DEPLOYMENTS / "helm" / "values.yaml").read_text())


def read(path: Path) -> Object:
    content: Object = yaml.safe_load(path.read_text())
    return content


def launcher_of(path: Path) -> Object:
    config: Object = read(path)["run_launcher"]["config"]
    return config


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pods of `base` have in their environment."""
    for name, value in data(build(KUBERNETES / "base"), "evaluation-env").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "password")


@pytest.mark.parametrize("instance", INSTANCES)
def test_dagster_takes_its_instance_file(instance: str, environment: None) -> None:
    """As a whole by the schema, each class's part by that class, and with the variables filled in."""
    path = INSTANCES[instance]
    config, _ = dagster_instance_config(str(path.parent), path.name)
    assert config["telemetry"] == {"enabled": False}
    for part in ("run_launcher", "run_coordinator", "compute_logs", "local_artifact_storage"):
        if part in config:
            pointer = config[part]
            found: Any = class_from_code_pointer(pointer["module"], pointer["class"])
            result = process_config(found.config_type(), pointer["config"])
            assert result.success, [error.message for error in result.errors or []]
    storage = config["storage"]
    assert set(storage) == {"sqlite" if instance == "plain" else "postgres"}


def test_a_misspelt_field_of_the_instance_is_refused(tmp_path: Path) -> None:
    text = INSTANCES["base"].read_text()
    (tmp_path / "dagster.yaml").write_text(text.replace("poll_interval_seconds", "poll_intervall_seconds"))
    with pytest.raises(DagsterInvalidConfigError, match="poll_intervall_seconds"):
        dagster_instance_config(str(tmp_path))
    launcher: Any = class_from_code_pointer("resources.launcher", "EvaluationRunLauncher")
    assert not process_config(
        launcher.config_type(), {**launcher_of(INSTANCES["base"]), "volume": []}
    ).success


def test_the_pod_of_a_run_loads_no_kubernetes_client() -> None:
    """Dagster asks the coordinator for limits in each of them."""
    pointer = read(INSTANCES["base"])["run_coordinator"]
    program = f"import sys, {pointer['module']}; print('kubernetes' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_the_launcher_ends_a_wait_before_dagster_does(environment: None) -> None:
    """Dagster's own timeout knows no reason, and takes a pod that waits for one that can't start."""
    monitoring = read(INSTANCES["base"])["run_monitoring"]
    assert monitoring["start_timeout_seconds"] > Settings.from_environment().queue_timeout
    pods = [job["spec"]["template"]["spec"] for job in run_jobs(build(KUBERNETES / "base"))]
    assert all(monitoring["cancel_timeout_seconds"] > pod["terminationGracePeriodSeconds"] for pod in pods)


def test_the_object_store_differs_in_volumes_only() -> None:
    """Its dagster.yaml is a copy, since Kustomize does not look into a ConfigMap's files."""
    copies = [read(INSTANCES[name]) for name in ("base", "object-store")]
    for copy in copies:
        for part in ("volumes", "volume_mounts"):
            del copy["run_launcher"]["config"][part]
    assert copies[0] == copies[1]


@pytest.mark.parametrize(
    "config",
    [
        {"pod_spec_config": {"service_account_name": "evaluation-daemon"}},
        {"pod_spec_config": {"automount_service_account_token": True}},
        {"pod_spec_config": {"containers": [{"name": "second"}]}},
        {"pod_spec_config": {"host_network": True}},
        {"pod_spec_config": {"security_context": {"run_as_user": 0}}},
        {"container_config": {"image": "elsewhere"}},
        {"container_config": {"command": ["sh"]}},
        {"container_config": {"env_from": [{"secret_ref": {"name": "oauth2-proxy-secret"}}]}},
        {"container_config": {"security_context": {"privileged": True}}},
    ],
)
def test_a_runs_tags_cannot_raise_its_rights(config: Object) -> None:
    """Whoever may launch runs chooses their size and nodes, not what they are or whose rights they have."""
    with pytest.raises(Exception, match="violated the allowed list"):
        job_yaml(planned(config), launcher_of(INSTANCES["base"]))


def test_a_runs_tags_can_change_its_size_but_not_its_environment() -> None:
    config = {
        "container_config": {
            "resources": {"requests": {"cpu": "1"}},
            "env": [{"name": "EVAL_BATCH_TOKENS", "value": "64"}, {"name": "LD_PRELOAD", "value": "/tmp/x"}],
        },
        "pod_spec_config": {"node_selector": {"pool": "small"}},
    }
    pod = yaml.safe_load(job_yaml(planned(config), launcher_of(INSTANCES["base"])))["spec"]["template"][
        "spec"
    ]
    assert pod["nodeSelector"] == {"pool": "small"}
    names = {variable["name"] for variable in pod["containers"][0]["env"]}
    assert "EVAL_BATCH_TOKENS" in names
    assert "LD_PRELOAD" not in names


def planned(config: Object) -> Plan:
    size = PodSize("cpu", 0, 1, GIB, GIB, spot=False, price=None, deadline_seconds=60)
    plan = Plan(Purpose(), size, config, {})
    assert json.loads(plan.tags("run")[USER_DEFINED_K8S_CONFIG_KEY]) == config
    return plan


@pytest.mark.parametrize(
    "path", sorted(KUBERNETES.rglob("accelerators.yaml")), ids=lambda path: path.parent.name
)
def test_the_catalogue_of_a_cluster_is_valid_and_its_priorities_exist(path: Path) -> None:
    catalogue = load_catalogue(path)
    assert catalogue.priority_classes is not None
    classes = {o["metadata"]["name"] for o in build(KUBERNETES / "base") if o["kind"] == "PriorityClass"}
    assert set(catalogue.priority_classes) <= classes


def test_more_urgent_runs_come_first_and_push_out_none() -> None:
    found = [o for o in build(KUBERNETES / "base") if o["kind"] == "PriorityClass"]
    assert {o["metadata"]["name"]: o["value"] for o in found} == {
        "evaluation-interactive": 1000,
        "evaluation-new-version": 500,
        "evaluation-nightly": 100,
    }
    assert {o["preemptionPolicy"] for o in found} == {"Never"}


@pytest.mark.parametrize("path", sorted(KUBERNETES.rglob("models.yaml")), ids=lambda path: path.parent.name)
def test_the_tracked_models_of_a_cluster_are_valid(path: Path) -> None:
    assert tracking(path, "", SUITE).models


@pytest.mark.parametrize("overlay", ["kind", "gpu", "airgapped"])
def test_the_settings_name_what_is_mounted(overlay: str) -> None:
    """A folder that is named and not mounted is one on a read-only disk."""
    objects = build(KUBERNETES / "overlays" / overlay)
    variables = data(objects, "evaluation-env")
    settings = Settings.from_environment(variables)
    assert settings.models is not None
    folders = {settings.store, settings.registry, str(settings.cache), str(settings.data_mirror), "/tmp"}
    for where in (named(objects, "Deployment/evaluation-code"), *run_jobs(objects)):
        [pod] = pod_templates([where])
        [(_, container)] = pod.containers
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert folders | {str(settings.models.parent)} <= mounts
    for name in ("daemon", "webserver"):  # they size pods, by what the store knows and the cluster offers
        [pod] = pod_templates([named(objects, f"Deployment/evaluation-{name}")])
        [(_, container)] = pod.containers
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert settings.accelerators is not None
        assert {settings.store, str(settings.accelerators.parent)} <= mounts


def test_the_workspace_names_the_service_of_the_code_location() -> None:
    objects = build(KUBERNETES / "base")
    [origin] = WorkspaceFileTarget([str(KUBERNETES / "base" / "workspace.yaml")]).create_origins()
    assert isinstance(origin, dg._core.remote_origin.GrpcServerCodeLocationOrigin)
    service = named(objects, f"Service/{origin.host}")
    assert [port["port"] for port in service["spec"]["ports"]] == [origin.port]


# ---- Helm: the chart is not at hand here, so its values are compared with what Kustomize deploys ----


def chart_pods() -> Iterator[Object]:
    """The pods that the chart makes of the values, as far as the values say."""
    [code] = VALUES["dagster-user-deployments"]["deployments"]
    account = VALUES["serviceAccount"]["name"]
    for name, values, of in (
        ("webserver", VALUES["dagsterWebserver"], account),
        ("daemon", VALUES["dagsterDaemon"], account),
        ("code", code, VALUES["dagster-user-deployments"]["serviceAccount"]["name"]),
    ):
        container = {
            "name": name,
            "image": "{repository}:{tag}".format(**values["image"]),
            "securityContext": values["securityContext"],
            "resources": values["resources"],
            "env": values.get("env", []),
            "envFrom": [
                *({"configMapRef": source} for source in values["envConfigMaps"]),
                *({"secretRef": source} for source in values.get("envSecrets", [])),
            ],
            "volumeMounts": values["volumeMounts"],
            "livenessProbe": values["livenessProbe"],
        }
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "evaluation", "labels": values["labels"]},
            "spec": {
                "serviceAccountName": of,
                # The chart mounts a token everywhere; the code location's account is bound to nothing.
                "automountServiceAccountToken": name != "code",
                "securityContext": values["podSecurityContext"],
                "containers": [container],
                "volumes": values["volumes"],
            },
        }


@pytest.mark.parametrize("rule", RULES)
def test_what_the_charts_values_say_keeps_the_rule(rule: str) -> None:
    objects = build(DEPLOYMENTS / "helm") + list(chart_pods()) + VALUES["extraManifests"]
    for item in VALUES["extraManifests"]:
        item["metadata"]["namespace"] = "evaluation"  # the release's
    launcher = VALUES["runLauncher"]["config"]["customRunLauncher"]["config"]
    accelerators = data(objects, "dagster-instance")["accelerators.yaml"]
    objects += jobs_of(launcher, accelerators, data(objects, "evaluation-env"))
    made_by_the_chart = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": launcher["instance_config_map"], "namespace": "evaluation"},
        "data": {},
    }
    assert list(RULES[rule]([*objects, made_by_the_chart])) == []


def test_the_chart_and_kustomize_configure_the_same_instance() -> None:
    base = read(INSTANCES["base"])
    custom = VALUES["runLauncher"]["config"]["customRunLauncher"]
    assert VALUES["runLauncher"]["type"] == "CustomRunLauncher"
    differs = {"instance_config_map": "evaluation-dagster-instance"}  # the chart makes its own
    expected = {**base["run_launcher"], "config": {**base["run_launcher"]["config"], **differs}}
    assert custom == expected

    daemon = VALUES["dagsterDaemon"]
    assert daemon["runCoordinator"]["type"] == "CustomRunCoordinator"
    assert daemon["runCoordinator"]["config"]["customRunCoordinator"] == base["run_coordinator"]
    monitoring, retries = daemon["runMonitoring"], daemon["runRetries"]
    assert {
        "enabled": monitoring["enabled"],
        "start_timeout_seconds": monitoring["startTimeoutSeconds"],
        "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
        "poll_interval_seconds": monitoring["pollIntervalSeconds"],
    } == base["run_monitoring"]
    assert {
        "enabled": retries["enabled"],
        "max_retries": retries["maxRetries"],
        "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
    } == base["run_retries"]
    logs = VALUES["computeLogManager"]["config"]["localComputeLogManager"]
    assert {"base_dir": logs["baseDir"]} == base["compute_logs"]["config"]
    for part, value in VALUES["additionalInstanceConfig"].items():
        assert base[part] == value
    postgres = base["storage"]["postgres"]["postgres_db"]
    assert VALUES["postgresql"]["postgresqlScheme"] == postgres["scheme"]


def test_runs_have_the_image_of_the_charts_pods() -> None:
    """Kustomize can't read the chart's values: another image can't be pulled, or computes something else."""
    images = {pod["spec"]["containers"][0]["image"] for pod in chart_pods()}
    assert images == {data(build(DEPLOYMENTS / "helm"), "evaluation-env")["EVALUATION_IMAGE"]}


def test_the_charts_pods_are_kustomizes() -> None:
    """The same labels (network policies go by them), mounts, resources and contexts."""
    objects = build(KUBERNETES / "base")
    for pod in pod_templates(list(chart_pods())):
        ours = named(objects, f"Deployment/evaluation-{pod.where.removeprefix('Pod/')}")
        [template] = pod_templates([ours])
        assert pod.labels.items() <= template.labels.items()
        [(_, chart)], [(_, kustomize)] = pod.containers, template.containers
        for field in ("image", "resources", "securityContext", "envFrom"):
            assert chart[field] == kustomize[field]
        assert pod.spec["securityContext"] == template.spec["securityContext"]
        # The chart mounts dagster.yaml and workspace.yaml itself, where it makes them.
        own = "/opt/dagster/dagster_home"
        folders = [{m["mountPath"] for m in c["volumeMounts"]} - {own} for c in (chart, kustomize)]
        assert {folder for folder in folders[0] if not folder.startswith(f"{own}/")} >= folders[1] - {own}


def test_the_chart_brings_no_account_role_database_or_secret_of_its_own() -> None:
    assert VALUES["rbacEnabled"] is False
    assert VALUES["dagster-user-deployments"]["rbacEnabled"] is False
    for accounts in (VALUES, VALUES["dagster-user-deployments"]):
        assert accounts["serviceAccount"]["create"] is False
    for part in ("postgresql", "rabbitmq", "redis", "flower", "ingress"):
        assert VALUES[part]["enabled"] is False
    assert VALUES["generatePostgresqlPasswordSecret"] is False
    assert VALUES["generateCeleryConfigSecret"] is False
    assert VALUES["telemetry"]["enabled"] is False


# ---- commands -------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["argo", "plain"])
def test_the_commands_of_the_examples_exist(folder: str) -> None:
    from eval_assets.__main__ import main

    commands = [
        container["command"]
        for pod in pod_templates(build(DEPLOYMENTS / folder))
        for _, container in pod.containers
    ]
    assert commands
    for command in commands:
        assert command[:3] == ["python", "-m", "eval_assets"]
        main.commands[command[3]].make_context(command[3], list(command[4:]))
