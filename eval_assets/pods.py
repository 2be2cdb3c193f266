"""What a run says of itself so that its pod fits, and the preview of a pod."""

import json

import dagster as dg
import yaml

from eval_assets.partitions import SUITE, row_tags
from eval_assets.tracking import TrackedModels
from resources.errors import UserError
from resources.keys import ModelKey
from resources.pods.tags import DTYPE_TAG, TEAM_TAG


def pod_tags(entry: TrackedModels) -> dict[str, str]:
    """What an entry of EVAL_MODELS says of its models' pods, as tags that the launcher reads."""
    limits = {"container_config": {"resources": {"limits": dict(entry.resources)}}}
    tags = {
        TEAM_TAG: entry.team or "",
        DTYPE_TAG: "" if entry.dtype == "auto" else entry.dtype,
        "dagster-k8s/config": json.dumps(limits) if entry.resources else "",
    }
    return {name: value for name, value in tags.items() if value}


def print_pod(model: str, dataset: str) -> None:
    """Print the Job for evaluating a model version, and why it is that large.

    Raises UserError for a model that nothing is known of, an unknown benchmark, and a model that no class of
    the catalogue has room for.
    """
    # The sensor imports this module, too, and needs neither.
    from eval_assets.runs import Runs
    from resources.launcher import catalogue_of
    from resources.pods.planning import of_people, plan_pod, purpose_of
    from resources.pods.preview import job_yaml

    runs = Runs()
    key = str(ModelKey.parse(model))
    entry = runs.tracking.entry_of(key)
    if dataset and dataset not in SUITE:
        raise UserError(f"no benchmark {dataset!r}; there are {', '.join(SUITE)}")
    tags = {**pod_tags(entry), **row_tags(key, [dataset] if dataset else entry.datasets(SUITE))}
    run = dg.DagsterRun(job_name="evaluate_models", run_id="", tags=tags)
    catalogue = catalogue_of(runs.settings)
    plan = plan_pod(purpose_of(run), catalogue, runs.store, runs.instance, of_people(run, runs.instance))
    for what, why in plan.size.why.items():
        print(f"# {what}: {why}")
    if plan.size.price is not None:
        spot = ", on nodes that can be taken away" if plan.size.spot else ""
        print(f"# price: {plan.size.price:.2f} an hour{spot}")
    launcher = runs.instance.get_ref().run_launcher_data
    configured = yaml.safe_load(launcher.config_yaml) if launcher is not None else {}
    print(job_yaml(plan, configured or {}), end="")
