"""Jobs for the launchpad: evaluate what a person names, compare two versions."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import filter as matching

import dagster as dg
from pydantic import Field

from eval_assets.benchmarks import prepare
from eval_assets.evaluations import evaluate_cells
from eval_assets.grid.attempts import PRIORITY_TAG, begin, confessing
from eval_assets.grid.comparing import as_markdown, compare_current
from eval_assets.grid.observing import Observer
from eval_assets.grid.prepared import is_current, source_signature
from eval_assets.model_versions import register
from eval_assets.partitions import SUITE, RunCell
from resources.catalog import Catalog
from resources.configured import EngineResource
from resources.errors import UserError
from resources.pods.tags import ON_DEMAND_JOB, ON_DEMAND_OP
from resources.registries import Registry
from resources.results import ResultsStore
from resources.settings import Settings


class EvaluateConfig(dg.Config):
    """What to evaluate. Patterns: ``*`` stands for any text."""

    models: list[str] = Field(description="model versions, name@version, or patterns")
    benchmarks: list[str] = Field(default=["*"], description="benchmark keys or patterns")
    limit: int | None = Field(default=None, description="items of each benchmark; by default EVAL_LIMIT")
    force: bool = Field(default=False, description="evaluate again what is committed already")


@dg.op(name=ON_DEMAND_OP, tags={"kind": "pytorch"})
def evaluate_named(
    context: dg.OpExecutionContext,
    config: EvaluateConfig,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
    engines: EngineResource,
) -> None:
    """Register, prepare and evaluate what the configuration names and is missing, all in this run."""
    begin(context)
    if config.limit is not None:
        settings = replace(settings, limit=config.limit)
    with confessing(context):
        models = _chosen(config.models, [str(key) for key in registry.versions().keys], "model version")
        datasets = _chosen(config.benchmarks, list(SUITE), "benchmark")
        for key in models:
            if store.model_version(key) is None or not context.instance.has_dynamic_partition("model", key):
                register(context, key, registry, store)
                context.instance.add_dynamic_partitions("model", [key])
        for dataset in datasets:
            if not is_current(SUITE[dataset], store, settings.data_mirror):
                signature = source_signature(SUITE[dataset], settings.data_mirror)
                prepare(context, SUITE[dataset], signature, store, settings.data_mirror)
    places = [RunCell(dataset, model, meant=True) for model in models for dataset in datasets]
    evaluate_cells(context, places, registry, store, engines, settings, force=config.force)


def _chosen(patterns: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = matching(known, pattern)
        if not found:
            raise UserError(f"no {what} matches {pattern!r}; there are {', '.join(known[:20]) or 'none'}")
        chosen.update(dict.fromkeys(found))
    return list(chosen)


@dg.job(
    name=ON_DEMAND_JOB,
    description="Evaluate what you name in the configuration: models, benchmarks, items, again or not.",
    tags={PRIORITY_TAG: "10"},
)
def evaluate_on_demand() -> None:
    evaluate_named()


class CompareConfig(dg.Config):
    """Which two versions to compare, and on which benchmarks."""

    candidate: str = Field(description="the version that is judged, name@version")
    baseline: str = Field(description="the version that it is compared with")
    benchmarks: list[str] = Field(default=["*"], description="benchmark keys or patterns")
    tolerance: float | None = Field(
        default=None,
        ge=0,
        description="how much worse is good enough, in points of the metric; by default that of EVAL_MODELS",
    )


@dg.op(tags={"kind": "statistics"})
def compare_two(
    context: dg.OpExecutionContext,
    config: CompareConfig,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
) -> None:
    """Compare two versions sample by sample on the benchmarks that both were evaluated on."""
    begin(context)
    catalog = Catalog(store)
    with confessing(context):
        cells = Observer.of(context.instance, registry, store, settings).cells
        for note in catalog.refresh().notes:
            context.log.warning(note)
        compared, missing = compare_current(
            cells, catalog, config.candidate, config.baseline, config.benchmarks, config.tolerance
        )
    context.add_output_metadata(
        {
            "comparison": dg.MetadataValue.md(as_markdown([one.as_row() for one in compared], missing)),
            "candidate": config.candidate,
            "baseline": config.baseline,
        }
    )


@dg.job(
    description="Compare any two versions, sample by sample; the table is the metadata of the op's output.",
    tags={PRIORITY_TAG: "10"},
)
def compare_versions() -> None:
    compare_two()


ON_DEMAND = (evaluate_on_demand, compare_versions)
