"""``pod`` and ``estimate``: what a cluster would be asked for, before it is."""

from collections.abc import Sequence
from typing import Any

import click

from eval_assets.commands.output import (
    BENCHMARK,
    MODEL,
    Output,
    benchmark_named,
    benchmarks_option,
    models_option,
    output,
)


@click.command()
@click.argument("model", type=MODEL)
@click.option("--dataset", type=BENCHMARK, default="", help="one benchmark; by default the model's whole row")
@output
def pod(out: Output, model: str, dataset: str) -> None:
    """Print the Kubernetes Job that evaluating a model version would get, and why it is that large."""
    import dagster as dg
    import yaml

    from eval_assets.commands.runs import Runs
    from eval_assets.partitions import SUITE, row_tags
    from resources.keys import ModelKey
    from resources.launcher import catalogue_of
    from resources.pods.planning import of_people, plan_pod, purpose_of
    from resources.pods.preview import job_yaml
    from resources.pods.tags import ROW_JOB

    runs = Runs()
    key = str(ModelKey.parse(model))
    entry = runs.tracking.entry_of(key)
    datasets = [benchmark_named(dataset)] if dataset else entry.datasets(SUITE)
    tags = {**entry.pod_tags(), **row_tags(key, datasets)}
    run = dg.DagsterRun(job_name=ROW_JOB, run_id="", tags=tags)
    catalogue = catalogue_of(runs.settings)
    plan = plan_pod(purpose_of(run), catalogue, runs.store, runs.instance, of_people(run, runs.instance))
    launcher = runs.instance.get_ref().run_launcher_data
    job = job_yaml(plan, (yaml.safe_load(launcher.config_yaml) if launcher is not None else {}) or {})
    out.document(
        {"why": plan.size.why, "price_per_hour": plan.size.price, "spot": plan.size.spot,
         "job": yaml.safe_load(job)}
    )  # fmt: skip
    if out.as_json:
        return
    for what, why in plan.size.why.items():
        click.echo(f"# {what}: {why}")
    if plan.size.price is not None:
        spot = ", on nodes that can be taken away" if plan.size.spot else ""
        click.echo(f"# price: {plan.size.price:.2f} an hour{spot}")
    click.echo(job, nl=False)


@click.command()
@models_option
@benchmarks_option
@output
def estimate(out: Output, models: Sequence[str], benchmarks: Sequence[str]) -> None:
    """What evaluating registered versions would take and cost on the cluster, before anything is launched."""
    from fnmatch import fnmatchcase

    from eval_assets.commands.runs import Runs
    from eval_assets.partitions import SUITE
    from resources.errors import UserError
    from resources.launcher import catalogue_of
    from resources.pods.costing import estimate_all, spent_this_month
    from resources.pods.planning import Purpose, plan_pod
    from resources.registries import ModelVersion

    runs = Runs()
    catalogue, records = catalogue_of(runs.settings), runs.store.model_versions()
    chosen = [key for key in records if any(fnmatchcase(key, pattern) for pattern in models)]
    if not chosen:
        raise UserError(f"no registered model version matches {', '.join(models)}; run 'make register'")
    cells: list[dict[str, Any]] = []
    for key in chosen:
        entry = runs.tracking.entry_of(key)
        datasets = tuple(benchmarks or entry.datasets(SUITE))
        plan = plan_pod(Purpose((key,), datasets, dtype=entry.dtype), catalogue, runs.store, runs.instance)
        size, version = plan.size, ModelVersion.from_dict(records[key])
        for one in estimate_all(datasets, version, size, catalogue, runs.store, runs.settings.limit):
            cells.append(
                {"model": key, "benchmark": one.dataset, "accelerator": size.accelerator,
                 "count": size.count, "seconds": one.seconds, "cost": one.cost, "basis": one.basis}
            )  # fmt: skip
    rows = [
        (
            str(cell["model"]),
            str(cell["benchmark"]),
            f"{cell['count']} x {cell['accelerator']}" if cell["count"] else str(cell["accelerator"]),
            f"{cell['seconds'] / 60:.1f}",
            "" if cell["cost"] is None else f"{cell['cost']:.3f}",
            str(cell["basis"]),
        )
        for cell in cells
    ]
    out.table(("model", "benchmark", "pod", "minutes", "cost", "by"), rows, right=("minutes", "cost"))
    total, spent = sum(cell["cost"] or 0.0 for cell in cells), spent_this_month(runs.store)
    budget = "" if runs.settings.budget is None else f" of the budget of {runs.settings.budget:.2f}"
    out.say(f"together {total:.2f}; spent this month {spent:.2f}{budget}")
    out.document({"cells": cells, "cost": total, "spent": spent, "budget": runs.settings.budget})
