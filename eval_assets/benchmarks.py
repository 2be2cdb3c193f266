"""Asset `benchmark`: a benchmark's items, normalized and fingerprinted."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from eval_assets.attempts import announce, begin, confess
from eval_assets.evaluator import Benchmark
from eval_assets.events import record_materialization
from eval_assets.partitions import SUITE, datasets
from eval_assets.reconciling import Task, Work
from eval_assets.suite import (
    benchmark_files,
    items_fingerprint,
    items_from_table,
    items_to_table,
    normalize,
    select_items,
)
from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec, Chat
from resources.datasets import read_rows
from resources.errors import UserError
from resources.results import ResultsStore, chat_fingerprint
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
    begin(context)
    mirror = Settings.from_environment().data_mirror
    signatures = {key: source_signature(SUITE[key], mirror) for key in context.partition_keys}
    tasks = {key: Task(Work.PREPARE, "", key, signature[:16]) for key, signature in signatures.items()}
    announce(context, list(tasks.values()))
    broken: dict[Task, Exception] = {}
    for key, task in tasks.items():
        try:
            prepare(context, SUITE[key], signatures[key], store)
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
) -> None:
    """Read a benchmark's rows, store its items and record the materialization.

    Raises UserError for what is wrong with its declaration or its rows.
    """
    mirror = Settings.from_environment().data_mirror
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


@dataclass(frozen=True, slots=True)
class PreparedBenchmark:
    """A benchmark as it was last prepared, under a limit, and as a model is asked; its items are not read."""

    spec: BenchmarkSpec
    fingerprint: str
    count: int
    available: int

    def read(self, store: ResultsStore) -> Benchmark:
        """With its items."""
        stored = str(stored_record(self.spec.key, store)["fingerprint"])
        items = items_from_table(store.items(self.spec.key, stored))
        return Benchmark(self.spec, self.fingerprint, select_items(items, self.count), len(items))


def prepared_benchmark(
    key: str, store: ResultsStore, limit: int | None, chat: bool | None = None
) -> PreparedBenchmark:
    """The benchmark as it was last prepared, under the smaller of its own and the given limit.

    `chat` true has it asked through the model's chat template, false not; None leaves it to the benchmark.
    Raises UserError where it was never prepared.
    """
    record = stored_record(key, store)
    spec = BenchmarkSpec.model_validate(record["spec"])
    fingerprint = str(record["fingerprint"])
    can_chat = spec.task != "perplexity" or bool(
        spec.prompt
    )  # a text that is read from its start has no turns
    if chat is not None and chat != (spec.chat is not None) and can_chat:
        spec = spec.model_copy(update={"chat": Chat() if chat else None})
        fingerprint = chat_fingerprint(fingerprint, chat)
    available = int(record["items"])
    limits = [number for number in (limit, spec.limit, available) if number is not None]
    return PreparedBenchmark(spec, fingerprint, min(limits), available)


def stored_record(key: str, store: ResultsStore) -> dict[str, Any]:
    """The record of a prepared benchmark. Raises UserError where there is none."""
    record = store.benchmark(key)
    if record is None:
        raise UserError(
            f"benchmark {key} is not prepared yet: materialize the asset 'benchmark' for it "
            "(or run 'make evaluate', which does)"
        )
    return record
