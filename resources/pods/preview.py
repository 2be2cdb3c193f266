"""The Job that a run would get, without a cluster."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import dagster as dg
import kubernetes.client
import yaml
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job

from resources.pods.planning import Plan
from resources.pods.tags import ROW_JOB

_LAUNCHER: Mapping[str, Any] = {
    **dict.fromkeys(("image_pull_policy", "service_account_name", "scheduler_name", "job_image")),
    **dict.fromkeys(("instance_config_map", "postgres_password_secret")),
    **dict.fromkeys(("only_allow_user_defined_k8s_config_fields", "only_allow_user_defined_env_vars")),
    **{name: [] for name in ("image_pull_secrets", "env_config_maps", "env_secrets", "env_vars")},
    **{name: [] for name in ("volume_mounts", "volumes")},
    **{name: {} for name in ("labels", "resources", "security_context", "run_k8s_config")},
    "job_namespace": "default",
    "dagster_home": "/opt/dagster/dagster_home",
}
"""What a Job is made from, as an attribute of a launcher, where nothing is configured."""


def job_yaml(plan: Plan, launcher: Mapping[str, Any]) -> str:
    """The Job as YAML. `launcher` is the configuration of `EvaluationRunLauncher` in ``dagster.yaml``."""
    known = {name: value for name, value in launcher.items() if name in _LAUNCHER and value is not None}
    image = known.get("job_image")
    if isinstance(image, dict):  # dagster.yaml names the variable that has it
        known["job_image"] = f"(from the environment: {image.get('env')})"
    stand_in: Any = SimpleNamespace(**{**_LAUNCHER, "job_image": "(your image)", **known})
    run_id = "00000000-0000-0000-0000-000000000000"
    run = dg.DagsterRun(job_name=ROW_JOB, run_id=run_id, tags=plan.tags(run_id))
    context = K8sContainerContext.create_for_run(run, stand_in, include_run_tags=True)
    job = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(None, stand_in),
        args=["dagster", "api", "execute_run", "(the run)"],
        job_name=f"dagster-run-{run_id}",
        pod_name=f"dagster-run-{run_id}",
        component="run_worker",
        user_defined_k8s_config=context.run_k8s_config,
        labels={"dagster/job": run.job_name, "dagster/run-id": run_id},
    )
    content = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    content["metadata"]["namespace"] = context.namespace
    return str(yaml.safe_dump(content, sort_keys=False, width=120))
