"""One cell, from items to a committed evaluation; knows neither Dagster nor torch.

Everything that makes an evaluation what it is enters here as data: the items, the model's digest, the
engine. What is finished is appended to the store as it goes, so that an interrupted evaluation goes on
where it stopped, whoever goes on with it.
"""

import hashlib
import json
import math
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from eval_assets.evaluating.asking import answers
from eval_assets.evaluating.progress import Meter, Progress, work_of
from eval_assets.metrics import METRICS, Metric, ScoringSettings, estimate_metrics, score_samples
from eval_assets.suite.items import Item
from eval_assets.suite.spec import BenchmarkSpec
from eval_assets.tasks import SCORING_VERSION
from resources import interrupts, spans
from resources.engines import Engine, Step
from resources.records import Estimate, EvaluationRecord, Findings, MetricRow, Sample, Score
from resources.registries import FileFacts, ModelVersion
from resources.registries.files import digest_of, model_files, read_facts
from resources.results import AlreadyCommittedError, Cell, EvaluationWriter, ResultsStore

FLUSH_SAMPLES = 200
FLUSH_SECONDS = 30.0
REPORT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark ready to be asked: `items` are those that the limit leaves, in index order."""

    spec: BenchmarkSpec
    fingerprint: str
    items: Sequence[Item]
    available: int
    """Items that the benchmark has; more than `items` under a limit."""

    @property
    def count(self) -> int:
        """How many items are asked."""
        return len(self.items)


class Asked(Protocol):
    """What of a benchmark makes a cell what it is; a `Benchmark`, or one whose items were not read."""

    @property
    def spec(self) -> BenchmarkSpec: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def available(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """A cell's committed evaluation. `reused`: it had been committed before."""

    record: EvaluationRecord
    reused: bool


def cell_for(
    model: ModelVersion,
    benchmark: Asked,
    engine_fields: Mapping[str, Any],
    scoring: ScoringSettings,
) -> Cell:
    """The cell with today's fingerprint: SHA-256 over all that may change a score beyond rounding."""
    identity = {
        "model": model.digest,
        "benchmark": benchmark.fingerprint,
        "items": None if benchmark.count == benchmark.available else benchmark.count,
        "engine": dict(engine_fields),
        "encoder": _encoder_identity(benchmark.spec, scoring),
        "scoring": SCORING_VERSION,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Cell(benchmark.spec.key, model.key, digest)


_encoder_facts: dict[Path, Mapping[str, FileFacts]] = {}
"""What was read of encoders, so that their files are hashed once a process."""


def _encoder_identity(spec: BenchmarkSpec, scoring: ScoringSettings) -> list[Any] | None:
    """What BERTScore's numbers depend on besides the texts: the encoder's files and the layer."""
    if not any(metric.metric.startswith("bertscore") for metric in spec.metrics):
        return None
    folder = Path(scoring.bertscore_model or "")
    if not folder.is_dir():
        return [scoring.bertscore_model, scoring.bertscore_layers]
    facts = read_facts(
        model_files(folder, "the BERTScore encoder"), _encoder_facts.get(folder, {}), "the BERTScore encoder"
    )
    _encoder_facts[folder] = facts
    return [digest_of(facts), scoring.bertscore_layers]


def evaluate(
    cell: Cell,
    model: ModelVersion,
    benchmark: Benchmark,
    load_engine: Callable[[], Engine],
    store: ResultsStore,
    *,
    scoring: ScoringSettings,
    earlier: Sequence[Sample] = (),
    stage: Mapping[str, Any] | None = None,
    force: bool = False,
    run_id: str = "",
    revision: str | None = None,
    pod: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Evaluate a cell, or reuse its committed evaluation of the same fingerprint unless `force`.

    `load_engine` is called only if something is left to compute. `earlier` are samples that an evaluation of
    fewer items has of the same model and benchmark: they are taken over. `stage` and `pod` (what the
    launcher made this process's pod of) go into the record.
    Raises UserError for what a user can put right; whatever is raised, finished samples stay in the store.
    """
    committed = None if force else store.committed(cell)
    if committed is not None:
        store.tidy(committed)
        return Outcome(committed, reused=True)
    try:
        with store.writer(cell, force=force, owner=run_id) as writer:
            record = _Evaluation(
                cell,
                model,
                benchmark,
                writer,
                scoring,
                run_id,
                revision,
                pod or {},
                on_progress,
                on_warning,
                earlier,
                stage,
            ).run(load_engine)
    except AlreadyCommittedError:
        committed = store.committed(cell)
        if committed is None:  # deleted since
            raise
        return Outcome(committed, reused=True)
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
        pod: Mapping[str, Any],
        on_progress: Callable[[Progress], None],
        on_warning: Callable[[str], None],
        earlier: Sequence[Sample],
        stage: Mapping[str, Any] | None,
    ) -> None:
        self.cell = cell
        self.name = f"{cell.model} on {cell.dataset}"
        self.model = model
        self.benchmark = benchmark
        self.writer = writer
        self.scoring = scoring
        self.run_id = run_id
        self.revision = revision
        self.pod = pod
        spans.add(evaluation_id=writer.evaluation_id)
        self.on_progress = on_progress
        self.on_warning = on_warning
        self.meter = Meter()
        self.started = datetime.now(UTC)
        self.items = {item.sample_id: item for item in benchmark.items}
        finished, self.damaged = writer.finished()
        for name in self.damaged:
            on_warning(f"{self.name}: progress part {name} is damaged: its samples are computed again")
        self.samples = {sample.sample_id: sample for sample in finished}
        self.resumed = len(self.samples)
        taken = {s.sample_id: s for s in earlier if s.sample_id in self.items and s.error is None}
        self.samples = {**taken, **self.samples}
        self.taken = len(self.samples) - self.resumed
        self.stage = stage
        self.work_total = sum(work_of(item) for item in benchmark.items)
        self.work_resumed = sum(work_of(self.items[sample_id]) for sample_id in self.samples)
        self.work_done = self.work_resumed
        self.unsaved: list[Sample] = []
        self.saved = len(self.samples)
        self.began_at = self.flushed_at = self.reported_at = time.monotonic()
        self.flush_cost = 0.0
        self.ending = threading.Lock()

    def run(self, load_engine: Callable[[], Engine]) -> EvaluationRecord:
        with interrupts.last_words(lambda: self.end("told to end")):
            try:
                self.writer.begin()
                with spans.span("load"), self.meter.timed("load"):
                    engine = load_engine()
                try:
                    self.ask(engine)
                finally:
                    self.trace_phases()
                with spans.span("score", samples=len(self.samples)):
                    ordered = self.scored()
                    metrics = estimate_metrics(ordered, self.benchmark.spec.metrics)
                with spans.span("commit"):
                    return self.writer.commit(ordered, metrics, self.record(engine, ordered, metrics))
            except Exception as error:
                self.end(f"{type(error).__name__}: {error}".splitlines()[0])
                raise
            except BaseException as error:
                signal = interrupts.received()
                self.end(f"interrupted ({signal.name if signal else type(error).__name__})")
                raise

    def ask(self, engine: Engine) -> None:
        """Have the model answer what no earlier run has."""
        self.began_at = self.flushed_at = time.monotonic()
        self.meter.start_model_time()
        self.report()
        engine.on_step = self.stepped
        try:
            for sample in answers(engine, self.benchmark.spec, self.benchmark.items, set(self.samples)):
                self.meter.add_model_time()
                self.finish(sample)
                self.meter.start_model_time()
        finally:
            engine.on_step = _ignore
        self.meter.add_model_time()
        self.flush()
        self.report()

    def trace_phases(self) -> None:
        """Leave a span of each phase of the model; a span of every pass would be thousands."""
        tokens = {"prefill": self.meter.prompt_tokens, "decode": self.meter.output_tokens}
        for phase, stretch in self.meter.stretches.items():
            spans.past(
                phase,
                stretch.began,
                stretch.ended,
                seconds=round(self.meter.seconds[phase], 3),
                passes=stretch.passes,
                tokens=tokens.get(phase),
            )

    def stepped(self, step: Step) -> None:
        """Take in a pass of the model; a pass after which no sample ends may still be time to save some."""
        self.meter.add(step)
        if self.flush_is_due():
            self.flush()
        self.report_if_due()
        self.meter.start_model_time()

    def finish(self, sample: Sample) -> None:
        if not self.samples:
            # What can't be scored here (no encoder, say) says so at the first answer, not after hours.
            with self.meter.timed("score"):
                score_samples([sample], self.benchmark.spec.metrics, self.scoring)
        self.samples[sample.sample_id] = sample
        self.unsaved.append(sample)
        self.work_done += work_of(self.items[sample.sample_id])
        if self.flush_is_due():
            self.flush()
        self.report_if_due()

    def flush_is_due(self) -> bool:
        """As often as costs less than 1 %, but a long run is not cut into more parts than it needs."""
        now = time.monotonic()
        wait = min(FLUSH_SECONDS, max(100 * self.flush_cost, (now - self.began_at) / 1000))
        return bool(self.unsaved) and (len(self.unsaved) >= FLUSH_SAMPLES or now - self.flushed_at >= wait)

    def flush(self) -> None:
        start = time.monotonic()
        with self.meter.timed("score"):
            self.writer.append(self.unsaved)
        self.saved += len(self.unsaved)
        self.unsaved = []
        self.flushed_at = time.monotonic()
        self.flush_cost = self.flushed_at - start

    def end(self, reason: str) -> None:
        """Save what is finished and note why the run ends; a second error here would only hide the first."""
        if not self.ending.acquire(blocking=False):
            return  # the other thread is at it
        with suppress(Exception):
            self.flush()
        with suppress(Exception):
            self.writer.end(reason, self.saved)
            self.on_warning(
                f"{self.name}: {reason}; {self.saved} of {len(self.items)} samples are kept, "
                "and the next run goes on from there"
            )

    def scored(self) -> list[Sample]:
        """All samples in the order of their items, scored.

        All at once: an encoder's numbers depend on what is in a batch, which must not depend on where an
        earlier run stopped.
        """
        ordered = sorted(self.samples.values(), key=lambda sample: sample.index)
        with self.meter.timed("score"):
            score_samples(ordered, self.benchmark.spec.metrics, self.scoring)
        return ordered

    def report_if_due(self) -> None:
        if time.monotonic() - self.reported_at >= REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        self.reported_at = time.monotonic()
        meter = self.meter
        self.on_progress(
            Progress(
                self.cell,
                len(self.samples),
                len(self.items),
                self.resumed + self.taken,
                self.work_done,
                self.work_resumed,
                self.work_total,
                meter.prompt_tokens,
                meter.output_tokens,
                meter.sequences,
                meter.memory_bytes,
                meter.model_seconds,
            )
        )

    def record(self, engine: Engine, samples: Sequence[Sample], metrics: Sequence[MetricRow]) -> Findings:
        spec, meter = self.benchmark.spec, self.meter
        whole = {row.metric: row.estimate for row in metrics if row.group is None}
        errors = sum(sample.error is not None for sample in samples)
        finished = datetime.now(UTC)
        hours = (finished - self.started).total_seconds() / 3600
        count, price = self.pod.get("count"), self.pod.get("price")
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
            "finished_at": finished.isoformat(),
            "status": "invalid" if errors else "valid",
            "items_available": self.benchmark.available,
            "samples": len(samples),
            "samples_resumed": self.resumed,
            "samples_taken_over": self.taken,
            "stage": None if self.stage is None else dict(self.stage),
            "interruptions": self.writer.interruptions,
            "parts_discarded": len(self.damaged),
            "samples_with_error": errors,
            "samples_truncated": sum(sample.truncated_tokens > 0 for sample in samples),
            "prompt_tokens": sum(s.prompt_tokens + sum(s.choice_tokens) for s in samples),
            "output_tokens": sum(sample.output_tokens for sample in samples),
            "primary_metric": spec.primary_metric,
            # A description, which has no direction, can't be the primary metric.
            "higher_is_better": bool(metric_of(spec, spec.primary_metric).higher_is_better),
            "score": score_of(whole.get(spec.primary_metric)),
            "metrics": {name: _finite(estimate.value) for name, estimate in whole.items()},
            "seconds": {phase: round(seconds, 3) for phase, seconds in meter.seconds.items()},
            "prompt_tokens_computed": meter.prompt_tokens,
            "output_tokens_computed": meter.output_tokens,
            "batch_sequences": meter.most_sequences,
            "peak_memory_bytes": meter.peak_memory_bytes,
            "peak_device_bytes": meter.peak_device_bytes if engine.description["device"] != "cpu" else None,
            "accelerator_class": self.pod.get("class"),
            "accelerator_count": count,
            "accelerator_seconds": None if count is None else round(count * hours * 3600, 3),
            "spot": self.pod.get("spot"),
            "price_per_hour": price,
            "cost": None if price is None else round(price * hours, 6),
            "team": self.pod.get("team"),
            "engine": dict(engine.description),
            "scoring_version": SCORING_VERSION,
            "packages": package_versions(),
            "python": platform.python_version(),
            "git_revision": self.revision,
        }


def metric_of(spec: BenchmarkSpec, name: str) -> Metric:
    """The metric behind a benchmark's metric name (which may be an alias with options)."""
    return METRICS[next(metric.metric for metric in spec.metrics if metric.name == name)]


def score_of(estimate: Estimate | None) -> Score | None:
    """An estimate for the record; None without a finite value, no interval where a bound has none."""
    if estimate is None or not math.isfinite(estimate.value):
        return None
    low, high = _finite(estimate.ci_low), _finite(estimate.ci_high)
    closed = low is not None and high is not None
    return {
        "value": estimate.value,
        "stderr": _finite(estimate.stderr),
        "ci_low": low if closed else None,
        "ci_high": high if closed else None,
        "n": estimate.n,
        "sampling_share": _finite(estimate.sampling_share),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN or infinity: such a value (a perplexity can overflow) is None and fails its check."""
    return value if value is not None and math.isfinite(value) else None


def _ignore(_: Step) -> None: ...


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that scores depend on."""
    versions = {}
    for package in ("torch", "transformers", "tokenizers", "rouge-score", "bert-score", "sacrebleu", "scipy"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
