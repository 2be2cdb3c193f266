"""Asset `benchmark`: a benchmark's items, normalized and fingerprinted."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import dagster as dg

from eval_assets.grid.attempts import announce, begin, confess
from eval_assets.grid.prepared import CODE_VERSION, source_signature
from eval_assets.grid.reconciling import Task, Work
from eval_assets.materializations import record_materialization
from eval_assets.partitions import SUITE, datasets
from eval_assets.suite import items_fingerprint, items_to_table, normalize
from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec
from resources.datasets import read_rows
from resources.errors import UserError
from resources.results import ResultsStore
from resources.settings import Settings


@dg.asset(
    partitions_def=datasets,
    output_required=False,
    code_version=CODE_VERSION,
    group_name="inputs",
    kinds={"yaml", "parquet"},
    owners=["team:evaluation"],
    tags={"stage": "inputs"},
)
def benchmark(
    context: dg.AssetExecutionContext,
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
) -> Iterator[dg.Output[None]]:
    """The items of a benchmark, as every model is shown them, with the fingerprint of their content."""
    yield from ()
    begin(context)
    mirror = settings.data_mirror
    signatures = {key: source_signature(SUITE[key], mirror) for key in context.partition_keys}
    tasks = {key: Task(Work.PREPARE, "", key, signature[:16]) for key, signature in signatures.items()}
    announce(context, list(tasks.values()))
    broken: dict[Task, Exception] = {}
    for key, task in tasks.items():
        try:
            prepare(context, SUITE[key], signatures[key], store, mirror)
        except UserError as error:
            context.log.error(str(error))
            broken[task] = error
    if broken:
        confess(context, broken)
        raise dg.Failure("; ".join(str(error) for error in broken.values()), allow_retries=False)


def prepare(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    spec: BenchmarkSpec,
    signature: str,
    store: ResultsStore,
    mirror: Path,
) -> None:
    """Read a benchmark's rows, store its items and record the materialization.

    Raises UserError for what is wrong with its declaration or its rows.
    """
    normalized = normalize(spec, partial(read_rows, mirror=mirror))
    fingerprint = items_fingerprint(spec, normalized.items)
    for warning in normalized.warnings:
        context.log.warning(warning)
    groups = sorted({item.group for item in normalized.items if item.group is not None})
    store.save_benchmark(
        spec.key,
        fingerprint,
        items_to_table(normalized.items),
        {
            "spec": spec.model_dump(mode="json", exclude_defaults=True),
            "source_signature": signature,
            "items": len(normalized.items),
            "characters": _characters(normalized.items),
            "groups": len(groups),
            "warnings": list(normalized.warnings),
        },
    )
    record_materialization(
        context,
        "benchmark",
        spec.key,
        data_version=fingerprint,
        code_version=CODE_VERSION,
        inputs={},
        metadata={
            "title": spec.title,
            "items": len(normalized.items),
            "groups": len(groups),
            "task": spec.task,
            "metrics": ", ".join(metric.name for metric in spec.metrics),
            "primary_metric": spec.primary_metric,
            "licence": spec.licence or "not stated",
            "warnings": dg.MetadataValue.md("\n".join(f"- {w}" for w in normalized.warnings) or "none"),
            "first_item": dg.MetadataValue.json(
                {"query": normalized.items[0].query, "choices": list(normalized.items[0].choices)}
            ),
        },
    )


def _characters(items: Sequence[Item]) -> int:
    """Characters that a model reads and writes; what items share counts once, as the engine reads it."""
    shared = {item.description for item in items}
    shared |= {f"{example.query} {example.answer}" for item in items for example in item.examples}
    own = sum(len(i.query) + sum(map(len, i.choices)) + sum(map(len, i.references[:1])) for i in items)
    return own + sum(map(len, shared))
