"""A benchmark's items as they were prepared, and whether its declaration or its files have changed since."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval_assets.evaluating.evaluator import Benchmark
from eval_assets.suite import (
    benchmark_files,
    items_fingerprint,
    items_from_table,
    normalize,
    select_items,
)
from eval_assets.suite.spec import BenchmarkSpec, Chat
from resources.datasets import read_rows
from resources.errors import UserError
from resources.results import ResultsStore, chat_fingerprint

CODE_VERSION = "1"


def is_current(spec: BenchmarkSpec, store: ResultsStore, mirror: Path) -> bool:
    """Whether the stored items are those that the YAML and its files give today, by cheap signs."""
    record = store.benchmark(spec.key)
    return record is not None and record["source_signature"] == source_signature(spec, mirror)


def has_same_items(spec: BenchmarkSpec, store: ResultsStore, mirror: Path) -> bool:
    """Whether the stored items are those that the YAML and its files give today, by their content if need be.

    A checkout or a copy of the files has other times. Raises UserError where the rows can't be read here.
    """
    if is_current(spec, store, mirror):
        return True
    record = store.benchmark(spec.key)
    if record is None:
        return False
    items = normalize(spec, partial(read_rows, mirror=mirror)).items
    return items_fingerprint(spec, items) == str(record["fingerprint"])


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
    can_chat = spec.task != "perplexity" or bool(spec.prompt)  # a text read from its start has no turns
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
