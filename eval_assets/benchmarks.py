"""Asset `benchmark`: a benchmark's items, normalized and fingerprinted."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg

from eval_assets.evaluator import Benchmark
from eval_assets.events import record_materialization
from eval_assets.partitions import SUITE, datasets
from eval_assets.suite import (
    benchmark_files,
    items_fingerprint,
    items_from_table,
    items_to_table,
    normalize,
    select_items,
)
from eval_assets.suite.spec import BenchmarkSpec
from resources.datasets import read_rows
from resources.errors import UserError
from resources.results import ResultsStore
from resources.settings import Settings

CODE_VERSION = "1"


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
    context: dg.AssetExecutionContext, store: dg.ResourceParam[ResultsStore]
) -> Iterator[dg.Output[None]]:
    """The items of a benchmark, as every model is shown them, with the fingerprint of their content."""
    yield from ()
    broken: list[str] = []
    for key in context.partition_keys:
        try:
            _prepare(context, SUITE[key], store)
        except UserError as error:
            context.log.error(str(error))
            broken.append(str(error))
    if broken:
        raise dg.Failure("; ".join(broken), allow_retries=False)


def _prepare(context: dg.AssetExecutionContext, spec: BenchmarkSpec, store: ResultsStore) -> None:
    mirror = Settings.from_environment().data_mirror
    signature = source_signature(spec, mirror)
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


def is_current(spec: BenchmarkSpec, store: ResultsStore) -> bool:
    """Whether the stored items are those that the YAML and its files give today, by cheap signs."""
    record = store.benchmark(spec.key)
    mirror = Settings.from_environment().data_mirror
    return record is not None and record["source_signature"] == source_signature(spec, mirror)


def source_signature(spec: BenchmarkSpec, mirror: Path) -> str:
    """SHA-256 over the declaration and the size and time of each local file that it reads, as make would."""
    files = []
    for path in benchmark_files(spec, mirror):
        status = path.stat() if path.exists() else None
        files.append([path.name, status.st_size, status.st_mtime_ns] if status else [path.name])
    identity = [CODE_VERSION, spec.model_dump(mode="json"), files]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def stored_benchmark(key: str, store: ResultsStore, limit: int | None) -> Benchmark:
    """The benchmark as it was last prepared, under the smaller of its own and the given limit."""
    record = store.benchmark(key)
    if record is None:
        raise UserError(
            f"benchmark {key} is not prepared yet: materialize the asset 'benchmark' for it "
            "(or run 'make evaluate', which does)"
        )
    spec = BenchmarkSpec.model_validate(record["spec"])
    items = items_from_table(store.items(key, record["fingerprint"]))
    limits = [number for number in (limit, spec.limit) if number is not None]
    return Benchmark(
        spec, record["fingerprint"], select_items(items, min(limits) if limits else None), len(items)
    )
