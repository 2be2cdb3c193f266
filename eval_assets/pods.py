"""What a run says of itself so that its pod fits, and the preview of a pod."""

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase

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

    Raises UserError for a model that EVAL_MODELS does not track, an unknown benchmark, and a model that no
    class of the catalogue has room for.
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


def print_estimate(patterns: Sequence[str], benchmarks: Sequence[str]) -> None:
    """Print what evaluating registered models would take: pod, time and cost, and what is left of the budget.

    Raises UserError for patterns that match nothing, benchmarks that were never prepared, and models that no
    class of the catalogue has room for.
    """
    from rich.table import Table

    from eval_assets.runs import Runs
    from eval_assets.terminal import console
    from resources.launcher import catalogue_of
    from resources.pods.costing import estimate_all, spent_this_month
    from resources.pods.planning import Purpose, plan_pod
    from resources.registries import ModelVersion

    runs = Runs()
    catalogue, records = catalogue_of(runs.settings), runs.store.model_versions()
    chosen = [key for key in records if any(fnmatchcase(key, pattern) for pattern in patterns)]
    if not chosen:
        raise UserError(f"no registered model version matches {', '.join(patterns)}; run 'make register'")
    table = Table("Model", "Benchmark", "Pod", "Minutes", "Cost", "By")
    total = 0.0
    for key in chosen:
        entry = runs.tracking.entry_of(key)
        datasets = tuple(benchmarks or entry.datasets(SUITE))
        dtype = "auto" if entry.dtype == "auto" else entry.dtype
        plan = plan_pod(Purpose((key,), datasets, dtype=dtype), catalogue, runs.store, runs.instance)
        pod = f"{plan.size.count} x {plan.size.accelerator}" if plan.size.count else plan.size.accelerator
        version = ModelVersion.from_dict(records[key])
        for one in estimate_all(datasets, version, plan.size, catalogue, runs.store, runs.settings.limit):
            cost = "" if one.cost is None else f"{one.cost:.3f}"
            table.add_row(key, one.dataset, pod, f"{one.seconds / 60:.1f}", cost, one.basis)
            total += one.cost or 0.0
    console.print(table)
    spent = spent_this_month(runs.store)
    budget = "" if runs.settings.budget is None else f" of the budget of {runs.settings.budget:.2f}"
    console.print(f"together {total:.2f}; spent this month {spent:.2f}{budget}")
