"""One cell, from items to a committed evaluation; knows neither Dagster nor torch.

Everything that makes an evaluation what it is enters here as data: the items, the model's digest, the
engine. What is finished is appended to the store as it goes, so that an interrupted evaluation goes on
where it stopped, whoever goes on with it.
"""

import hashlib
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from eval_assets.metrics import METRICS, ScoringSettings, estimate_metrics, score_samples
from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.tasks import SCORING_VERSION, task_for
from resources.engines import (
    Engine,
    GenerationRequest,
    LoglikelihoodRequest,
    Request,
    Result,
    RollingRequest,
)
from resources.records import Estimate, MetricRow, Sample
from resources.registries import ModelVersion
from resources.registries.files import digest_of, model_files, read_facts
from resources.results import AlreadyCommittedError, Cell, EvaluationWriter, ResultsStore

FLUSH_SAMPLES = 200
FLUSH_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark ready to be asked: `items` are those that the limit leaves, in index order."""

    spec: BenchmarkSpec
    fingerprint: str
    items: Sequence[Item]
    available: int
    """Items that the benchmark has; more than `items` under a limit."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a cell is. `work` is in characters shown to the model, a stand-in for time."""

    cell: Cell
    done: int
    total: int
    work_done: int
    work_total: int
    prompt_tokens: int
    """Tokens read, those of scored continuations included; a context shared by choices counts once."""
    output_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A cell's committed evaluation. `reused`: it had been committed before."""

    record: Mapping[str, Any]
    reused: bool


def cell_for(
    model: ModelVersion,
    benchmark: Benchmark,
    engine_fields: Mapping[str, Any],
    scoring: ScoringSettings,
) -> Cell:
    """The cell with today's fingerprint: SHA-256 over all that may change a score beyond rounding."""
    identity = {
        "model": model.digest,
        "benchmark": benchmark.fingerprint,
        "items": None if len(benchmark.items) == benchmark.available else len(benchmark.items),
        "engine": dict(engine_fields),
        "encoder": _encoder_identity(benchmark.spec, scoring),
        "scoring": SCORING_VERSION,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Cell(benchmark.spec.key, model.key, digest)


def _encoder_identity(spec: BenchmarkSpec, scoring: ScoringSettings) -> list[Any] | None:
    """What BERTScore's numbers depend on besides the texts: the encoder's files and the layer."""
    if not any(metric.metric.startswith("bertscore") for metric in spec.metrics):
        return None
    folder = Path(scoring.bertscore_model or "")
    if not folder.is_dir():
        return [scoring.bertscore_model, scoring.bertscore_layers]
    facts = read_facts(model_files(folder, "the BERTScore encoder"), {}, "the BERTScore encoder")
    return [digest_of(facts), scoring.bertscore_layers]


def work_of(item: Item) -> int:
    """Characters that the model reads and writes for an item; what progress is measured in."""
    shown = (
        len(item.description)
        + len(item.query)
        + sum(len(example.query) + len(example.answer) for example in item.examples)
    )
    if item.choices:
        return shown * len(item.choices) + sum(map(len, item.choices))
    return shown + sum(len(text) for text in item.references[:1]) + 1


def evaluate(
    cell: Cell,
    model: ModelVersion,
    benchmark: Benchmark,
    load_engine: Callable[[], Engine],
    store: ResultsStore,
    *,
    scoring: ScoringSettings,
    force: bool = False,
    run_id: str = "",
    revision: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Evaluate a cell, or reuse its committed evaluation of the same fingerprint unless `force`.

    `load_engine` is called only if something is left to compute. Raises UserError for what a user can
    put right; whatever is raised, finished samples stay in the store.
    """
    committed = None if force else store.committed(cell)
    if committed is not None:
        return Outcome(committed, reused=True)
    try:
        with store.writer(cell, force=force, owner=run_id) as writer:
            record = _Evaluation(cell, model, benchmark, writer, scoring, run_id, revision, on_progress).run(
                load_engine
            )
    except AlreadyCommittedError:
        return Outcome(cast(dict[str, Any], store.committed(cell)), reused=True)
    return Outcome(record, reused=False)


class _Evaluation:
    def __init__(
        self,
        cell: Cell,
        model: ModelVersion,
        benchmark: Benchmark,
        writer: EvaluationWriter,
        scoring: ScoringSettings,
        run_id: str,
        revision: str | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.cell = cell
        self.model = model
        self.benchmark = benchmark
        self.writer = writer
        self.scoring = scoring
        self.run_id = run_id
        self.revision = revision
        self.on_progress = on_progress
        self.seconds = {"load": 0.0, "model": 0.0, "score": 0.0}
        self.started = datetime.now(UTC)
        self.items = {item.sample_id: item for item in benchmark.items}
        self.samples = {s.sample_id: s for s in writer.finished() if s.sample_id in self.items}
        self.resumed = len(self.samples)
        self.unsaved: list[Sample] = []
        self.flushed_at = time.monotonic()
        self.prompt_tokens = self.output_tokens = 0
        self.work_total = sum(work_of(item) for item in benchmark.items)
        self.work_done = sum(work_of(self.items[sample_id]) for sample_id in self.samples)

    def run(self, load_engine: Callable[[], Engine]) -> dict[str, Any]:
        todo = [item for item in self.benchmark.items if item.sample_id not in self.samples]
        with self.timed("load"):
            engine = load_engine()
        self.report()
        try:
            for sample in self.answered(engine, todo):
                self.finish(sample)
        except BaseException:
            # Also for an interrupt: what the model has answered is kept. A second error here would
            # only hide the first.
            with suppress(Exception):
                self.flush()
            raise
        self.flush()
        metrics = self.estimates()
        record = self.record(engine, metrics)
        return self.writer.commit(list(self.samples.values()), metrics, record)

    def answered(self, engine: Engine, items: Sequence[Item]) -> Iterator[Sample]:
        """Samples with the model's answers, each as soon as its last request is answered."""
        task = task_for(self.benchmark.spec)
        template = engine.apply_chat_template if self.benchmark.spec.chat else None
        requests: list[Request] = []
        owners: list[tuple[int, int]] = []
        asked: list[Sequence[Request]] = []
        for number, item in enumerate(items):
            asked.append(task.requests(item, template))
            owners += [(number, position) for position in range(len(asked[-1]))]
            requests += asked[-1]
        answers: list[dict[int, Result]] = [{} for _ in items]
        answering = _ask(engine, requests)
        while True:
            with self.timed("model"):
                answer = next(answering, None)
            if answer is None:
                return
            index, result = answer
            number, position = owners[index]
            answers[number][position] = result
            if len(answers[number]) == len(asked[number]):
                in_order = [answers[number][p] for p in range(len(asked[number]))]
                answers[number] = {}
                yield task.sample(items[number], asked[number], in_order)

    def finish(self, sample: Sample) -> None:
        self.samples[sample.sample_id] = sample
        self.unsaved.append(sample)
        self.prompt_tokens += sample.prompt_tokens + sum(sample.choice_tokens)
        self.output_tokens += sample.output_tokens
        self.work_done += work_of(self.items[sample.sample_id])
        if len(self.unsaved) >= FLUSH_SAMPLES or time.monotonic() - self.flushed_at >= FLUSH_SECONDS:
            self.flush()
        self.report()

    def flush(self) -> None:
        unsaved, self.unsaved = self.unsaved, []
        with self.timed("score"):
            score_samples(unsaved, self.benchmark.spec.metrics, self.scoring)
            self.writer.append(unsaved)
        self.flushed_at = time.monotonic()

    def estimates(self) -> list[MetricRow]:
        with self.timed("score"):
            return estimate_metrics(list(self.samples.values()), self.benchmark.spec.metrics)

    def report(self) -> None:
        self.on_progress(
            Progress(
                self.cell,
                len(self.samples),
                len(self.items),
                self.work_done,
                self.work_total,
                self.prompt_tokens,
                self.output_tokens,
                self.seconds["model"],
            )
        )

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def record(self, engine: Engine, metrics: Sequence[MetricRow]) -> dict[str, Any]:
        spec = self.benchmark.spec
        samples = self.samples.values()
        whole = {row.metric: row.estimate for row in metrics if row.group is None}
        errors = sum(sample.error is not None for sample in samples)
        return {
            "model_name": self.model.name,
            "model_version": self.model.version,
            "model_digest": self.model.digest,
            "model_parameters": self.model.parameters,
            "benchmark_version": str(spec.version),
            "benchmark_fingerprint": self.benchmark.fingerprint,
            "task": spec.task,
            "run_id": self.run_id,
            "started_at": self.started.isoformat(),
            "finished_at": datetime.now(UTC).isoformat(),
            "status": "invalid" if errors else "valid",
            "items_available": self.benchmark.available,
            "samples": len(samples),
            "samples_resumed": self.resumed,
            "samples_with_error": errors,
            "samples_truncated": sum(sample.truncated_tokens > 0 for sample in samples),
            "prompt_tokens": sum(s.prompt_tokens + sum(s.choice_tokens) for s in samples),
            "output_tokens": sum(sample.output_tokens for sample in samples),
            "primary_metric": spec.primary_metric,
            "higher_is_better": metric_of(spec, spec.primary_metric).higher_is_better,
            "score": score_of(whole.get(spec.primary_metric)),
            "metrics": _jsonable({name: estimate.value for name, estimate in whole.items()}),
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            "peak_memory_bytes": _peak_memory_bytes(),
            "engine": dict(engine.description),
            "scoring_version": SCORING_VERSION,
            "packages": package_versions(),
            "python": platform.python_version(),
            "git_revision": self.revision,
        }


def metric_of(spec: BenchmarkSpec, name: str) -> Any:
    """The metric behind a benchmark's metric name (which may be an alias with options)."""
    return METRICS[next(metric.metric for metric in spec.metrics if metric.name == name)]


def score_of(estimate: Estimate | None) -> dict[str, float | None] | None:
    """An estimate for the record; None without a finite value, no interval where a bound has none."""
    if estimate is None or not math.isfinite(estimate.value):
        return None
    values = _jsonable(asdict(estimate))
    if values["ci_low"] is None or values["ci_high"] is None:
        values |= {"ci_low": None, "ci_high": None}
    return values


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB


def _jsonable(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON has no NaN or infinity: such a value (a perplexity can overflow) is None and fails its check."""
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
    }


def _ask(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
    """Give all requests of a cell to the operation that their class stands for."""
    match requests[0] if requests else None:
        case None:
            return iter(())
        case LoglikelihoodRequest():
            return engine.loglikelihoods(cast(Sequence[LoglikelihoodRequest], requests))
        case GenerationRequest():
            return engine.generations(cast(Sequence[GenerationRequest], requests))
        case RollingRequest():
            return engine.rolling_loglikelihoods(cast(Sequence[RollingRequest], requests))


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that scores depend on."""
    versions = {}
    for package in ("torch", "transformers", "tokenizers", "rouge-score", "bert-score", "sacrebleu", "scipy"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
