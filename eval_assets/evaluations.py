"""Asset `evaluation`: the grid of model versions and benchmarks, one cell a partition."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from eval_assets import markdown
from eval_assets.evaluating.evaluator import Benchmark, Outcome, evaluate
from eval_assets.evaluating.progress import Progress
from eval_assets.gates import (
    check_cell,
    check_specs,
    no_regression,
    record_checks,
    reproduced,
)
from eval_assets.grid import attempts
from eval_assets.grid.attempts import FORCE_TAG, Context, announce, begin, confess, one_line
from eval_assets.grid.comparing import CellComparison, compare_records
from eval_assets.grid.observing import Observer
from eval_assets.grid.prepared import PreparedBenchmark
from eval_assets.grid.reconciling import Task, Work
from eval_assets.materializations import record_materialization, report_link
from eval_assets.metrics.metric import likeliest
from eval_assets.model_versions import recorded
from eval_assets.operations.pushgateway import Pushing
from eval_assets.partitions import SUITE, RunCell, cell_key, cells_of_run, grid
from eval_assets.report.naming import cell_page
from eval_assets.statistics.sequential import decide
from eval_assets.tasks import SCORING_VERSION
from resources import interrupts, spans
from resources.configured import EngineResource
from resources.errors import UserError
from resources.pods.tags import EVALUATION
from resources.records import METRIC_SCHEMA, SAMPLE_SCHEMA, EvaluationRecord, Sample
from resources.registries import ModelVersion, Registry
from resources.results import ResultsStore
from resources.settings import Settings

LOG_SECONDS = 10.0

_listeners: list[Callable[[Progress], None]] = []


@contextmanager
def progress_to(listener: Callable[[Progress], None]) -> Iterator[None]:
    """Send the progress of evaluations in this process to a listener, too."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


_COLUMNS = {
    "evaluation_id": "The evaluation, also the name of its folder in the store.",
    "dataset": "The benchmark.",
    "model": "The model version, name@version.",
    "sample_id": "Hash of the item's content: the same item has it in every evaluation.",
    "index": "Position of the item in the benchmark.",
    "group": "The item's group, for example its MMLU subject.",
    "cluster": "Items that share a passage; standard errors are clustered by it.",
    "prompt": "What the model was shown.",
    "target": "Index of the right choice.",
    "choices": "The choices, as the model was shown them.",
    "labels": "1 for each true choice, 0 for each false one, where several may be true.",
    "references": "The right answers; of a perplexity benchmark the text itself.",
    "incorrect_references": "Wrong answers that a benchmark lists, for metrics that compare with them.",
    "loglikelihoods": "Of each choice, in nats, summed over its tokens.",
    "choice_tokens": "Length of each choice in tokens.",
    "is_greedy": "Whether each choice is what greedy decoding would write.",
    "output": "What the model wrote; the first of several outputs.",
    "finish_reason": "Why it stopped writing.",
    "prompt_tokens": "Tokens of the prompt.",
    "output_tokens": "Tokens written, in all outputs.",
    "truncated_tokens": "Tokens cut off because the input was longer than the context.",
    "outputs": "All outputs, where several were drawn: each with its finish reason, tokens and scores.",
    "scores": "The sample's value of each metric; of several outputs the mean.",
    "error": "Why the item could not be scored.",
}


def _column_schema() -> dg.TableSchema:
    columns = [("evaluation_id", "string"), ("dataset", "string"), ("model", "string")]
    columns += [(field.name, str(field.type)) for field in SAMPLE_SCHEMA]
    return dg.TableSchema(
        [dg.TableColumn(name, type=kind, description=_COLUMNS[name]) for name, kind in columns]
    )


@dg.multi_asset(
    name=EVALUATION,
    specs=[
        dg.AssetSpec(
            "evaluation",
            deps=[
                dg.AssetDep(
                    "model_version", partition_mapping=dg.MultiToSingleDimensionPartitionMapping("model")
                ),
                dg.AssetDep(
                    "benchmark", partition_mapping=dg.MultiToSingleDimensionPartitionMapping("dataset")
                ),
            ],
            description=(
                "One model version on one benchmark: every sample with its scores, and the metrics with "
                "their intervals, committed to the results store as Parquet."
            ),
            skippable=True,
            code_version=SCORING_VERSION,
            group_name="evaluations",
            kinds={"pytorch", "parquet"},
            owners=["team:evaluation"],
            tags={"stage": "evaluation"},
            metadata={
                "dagster/column_schema": _column_schema(),
                "metrics_columns": ", ".join(METRIC_SCHEMA.names),
            },
        )
    ],
    partitions_def=grid,
    check_specs=check_specs(),
    can_subset=True,
)
def evaluation(
    context: dg.AssetExecutionContext,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
    engines: EngineResource,
) -> Iterator[dg.Output[None]]:
    """Evaluate the run's cells, model by model; a cell that fails takes no other with it."""
    yield from ()
    begin(context)
    evaluate_cells(
        context,
        cells_of_run(context),
        registry,
        store,
        engines,
        settings,
        force=context.run.tags.get(FORCE_TAG) == "true",
    )


def evaluate_cells(
    context: Context,
    places: Sequence[RunCell],
    registry: Registry,
    store: ResultsStore,
    engines: EngineResource,
    settings: Settings,
    *,
    force: bool,
) -> None:
    """Evaluate cells, those of one model after each other; a cell that fails takes no other with it.

    Raises dg.Failure, naming the cells that failed, after all have had their turn. A run that is told to end
    is tagged with the signal.
    """
    run_id = context.run.run_id
    try:
        with (
            interrupts.watching(),
            spans.exporting(settings.traces, run_id, context.log.warning),
            spans.span("run", run_id=run_id),
        ):
            _evaluate_cells(context, places, registry, store, engines, settings, force=force)
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        # Dagster calls such a run failed, so that it is retried; this tells it from one that went wrong.
        signal = interrupts.received()
        said = {attempts.INTERRUPTED_TAG: signal.name if signal else "cancelled"}
        context.instance.add_run_tags(context.run.run_id, said)
        raise


def _evaluate_cells(
    context: Context,
    places: Sequence[RunCell],
    registry: Registry,
    store: ResultsStore,
    engines: EngineResource,
    settings: Settings,
    *,
    force: bool,
) -> None:
    failed: dict[Task, Exception] = {}
    cells: dict[RunCell, _Cell] = {}
    pushing = Pushing(settings, context.log.warning)
    for place in places:
        try:
            cells[place] = _Cell(context, place, registry, store, engines, settings, pushing)
        except Exception as error:  # whatever one cell runs into, the others of the row get their turn
            _note(context, failed, place, error)
    announce(context, [cell.task for place, cell in cells.items() if place.meant])
    for place, cell in cells.items():
        try:
            if place.meant:
                cell.evaluate(force=force)
            elif cell.is_committed():
                # Dagster takes the whole range for planned: a good cell between two that are meant would
                # otherwise show as skipped or failed.
                cell.evaluate(force=False)
        except Exception as error:  # as above
            _note(context, failed, place, error)
    if failed:
        confess(context, failed)
        lines = [f"{cell_key(task.dataset, task.model)}: {one_line(error)}" for task, error in failed.items()]
        raise dg.Failure(f"{len(lines)} of the run's cells failed: {'; '.join(lines)}", allow_retries=False)


def _note(context: Context, failed: dict[Task, Exception], place: RunCell, error: Exception) -> None:
    """Keep why a cell failed; the run says it at its end. What is no UserError is a bug, with a traceback.

    Raises the error where it is Dagster's database that was lost: Dagster tries the run again.
    """
    if attempts.lost_database(error):
        raise error
    known = isinstance(error, UserError)
    if not known:
        context.log.exception(f"{place.model} on {place.dataset} failed")
    if place.meant or not known:
        failed[Task(Work.EVALUATE, place.model, place.dataset)] = error


class _Cell:
    """One cell in a run, with the model, items and fingerprint that it has today."""

    def __init__(
        self,
        context: Context,
        place: RunCell,
        registry: Registry,
        store: ResultsStore,
        engines: EngineResource,
        settings: Settings,
        pushing: Pushing,
    ) -> None:
        """Raises UserError where the version is not registered or the benchmark is not prepared."""
        self._context, self._store, self._engines = context, store, engines
        self._settings, self._pushing = settings, pushing
        self._look = Observer.of(context.instance, registry, store, settings)
        self._cells = self._look.cells
        with spans.span("fetch", model=place.model, dataset=place.dataset):
            self._model = recorded(place.model, registry, store)
        self._benchmark = self._cells.benchmark(self._model.name, place.dataset)
        self._cell = self._cells.cell(self._model, self._benchmark)

    @property
    def task(self) -> Task:
        return Task(Work.EVALUATE, self._cell.model, self._cell.dataset, self._cell.fingerprint[:16])

    def is_committed(self) -> bool:
        return self._store.committed(self._cell) is not None

    def evaluate(self, *, force: bool) -> None:
        """Evaluate or reuse, look by look where that is asked for; record materialization and checks."""
        with spans.span("cell", model=self._cell.model, dataset=self._cell.dataset):
            self._evaluate(force=force)

    def _evaluate(self, *, force: bool) -> None:
        before = self._store.committed(self._cell) if force else None
        against = self._against()
        looks = self._looks(staged=against is not None and not force)
        earlier: Sequence[Sample] = [] if force else self._samples_before()
        for number, asked in enumerate(looks):
            stage = None if len(looks) == 1 else {"look": number, "looks": len(looks)}
            outcome, benchmark = self._evaluated(asked, earlier, stage, force=force)
            earlier = self._store.samples(outcome.record)
            compared = self._compared(outcome.record, against)
            if compared is not None and self._decided(compared, number):
                break
        self._record(outcome, benchmark, earlier, compared, before if not outcome.reused else None)

    def _evaluated(
        self,
        asked: PreparedBenchmark,
        earlier: Sequence[Sample],
        stage: Mapping[str, Any] | None,
        *,
        force: bool,
    ) -> tuple[Outcome, Benchmark]:
        benchmark = asked.read(self._store)
        outcome = evaluate(
            self._cells.cell(self._model, asked),
            self._model,
            benchmark,
            lambda: self._engines.load(self._model, self._cells.dtype(self._model.name)),
            self._store,
            scoring=self._cells.scoring,
            earlier=earlier,
            stage=stage,
            force=force,
            run_id=self._context.run.run_id,
            revision=self._settings.git_revision,
            pod=self._settings.pod,
            on_progress=_Reporter(self._context),
            on_warning=self._context.log.warning,
        )
        return outcome, benchmark

    def _record(
        self,
        outcome: Outcome,
        benchmark: Benchmark,
        samples: Sequence[Sample],
        compared: CellComparison | None,
        before: EvaluationRecord | None,
    ) -> None:
        context, cell = self._context, self._cell
        partition = cell_key(cell.dataset, cell.model)
        spans.add(
            evaluation_id=outcome.record["evaluation_id"],
            reused=outcome.reused,
            samples=outcome.record["samples"],
            prompt_tokens=outcome.record["prompt_tokens"],
            output_tokens=outcome.record["output_tokens"],
        )
        record_materialization(
            context,
            "evaluation",
            partition,
            data_version=outcome.record["fingerprint"],
            code_version=SCORING_VERSION,
            inputs={"model_version": [cell.model], "benchmark": [cell.dataset]},
            metadata=_metadata(outcome, samples, benchmark.available)
            | report_link(self._settings, cell_page(cell.dataset, cell.model)),
        )
        outcomes = check_cell(benchmark, outcome.record, samples)
        if compared is not None:
            outcomes.append(no_regression(compared))
            self._store.save_comparison(cell.dataset, cell.model, compared.as_row())
        if before is not None:
            outcomes.append(reproduced(outcome.record, before))
        record_checks(context, partition, outcomes)
        self._pushing.tell(outcome.record, self._look)
        context.log.info(_summary(outcome))

    def _looks(self, *, staged: bool) -> list[PreparedBenchmark]:
        """How much of the benchmark is asked at each look; all at once where it is evaluated already."""
        entry = self._cells.tracking.entry(self._model.name)
        if entry is None or not entry.staged or not staged or self.is_committed():
            return [self._benchmark]  # its one look has the number 0 and stops nothing
        return self._cells.looks(self._benchmark)

    def _samples_before(self) -> Sequence[Sample]:
        """What an earlier look has found, if the evaluation is one that was stopped there."""
        entry = self._cells.tracking.entry(self._model.name)
        if entry is None or not entry.staged or self.is_committed():
            return []
        for look in self._cells.looks(self._benchmark)[-2::-1]:
            record = self._store.committed(self._cells.cell(self._model, look))
            if record is not None and not record.get("retention"):
                return self._store.samples(record)
        return []

    def _against(self) -> EvaluationRecord | None:
        """The evaluation of the version in production on this benchmark, where there is one."""
        try:
            key = self._look.baselines([self._cell.model]).get(self._model.name)
            record = self._store.model_version(key) if key is not None and key != self._cell.model else None
            if record is None:
                return None
            return self._cells.evaluation(ModelVersion.from_dict(record), self._cell.dataset, None)
        except UserError as error:
            self._context.log.info(f"{self._cell.model} on {self._cell.dataset}: not compared: {error}")
            return None

    def _compared(self, record: EvaluationRecord, against: EvaluationRecord | None) -> CellComparison | None:
        if against is None:
            return None
        try:
            return compare_records(self._cells, record, against, self._benchmark.spec)
        except UserError as error:
            self._context.log.info(f"{self._cell.model} on {self._cell.dataset}: not compared: {error}")
            return None

    def _decided(self, compared: CellComparison, look: int) -> bool:
        entry = self._cells.tracking.entry_of(self._cell.model)
        family = len(entry.datasets(SUITE))
        tolerance = entry.tolerance_of(self._cell.dataset)
        return decide(compared.comparison, tolerance, look, family=family).stop


class _Reporter:
    """Passes progress on: to listeners at once, to the run's log every `LOG_SECONDS`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._logged_at = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        for listener in _listeners:
            listener(progress)
        now = time.monotonic()
        if now - self._logged_at < LOG_SECONDS:
            return
        self._logged_at = now
        self._context.log.info(progress.line())


def _summary(outcome: Outcome) -> str:
    record = outcome.record
    score = record["score"]
    value = "not scored" if score is None else f"{record['primary_metric']} {score['value']:.4f}"
    how = "reused" if outcome.reused else f"{sum(record['seconds'].values()):.1f} s"
    return f"{record['model']} on {record['dataset']}: {value}, n={record['samples']} ({how})"


def _metadata(outcome: Outcome, samples: Sequence[Sample], available: int) -> dict[str, Any]:
    """What the UI lists of a cell, in this order: the result, what it rests on, the cost, the identity."""
    record = outcome.record
    score = record["score"]
    seconds = sum(record["seconds"].values())
    metadata: dict[str, Any] = {}
    if score is not None:
        metadata["score"] = float(score["value"])
    metadata["primary_metric"] = record["primary_metric"]
    if score is not None:
        metadata["interval_95"] = (
            "none" if score["ci_low"] is None else f"{score['ci_low']:.4f} to {score['ci_high']:.4f}"
        )
        if score["stderr"] is not None:
            metadata["stderr"] = float(score["stderr"])
    metadata |= {
        "items": f"{record['samples']} of {available}",
        "samples_with_error": record["samples_with_error"],
        "samples_truncated": record["samples_truncated"],
    }
    # Plotted by the UI over partitions and time, each under its own name.
    metadata |= {
        f"metric/{name}": float(value) for name, value in record["metrics"].items() if value is not None
    }
    return metadata | {
        "example_samples": dg.MetadataValue.md(_examples(samples)),
        "computed_by": dg.MetadataValue.dagster_run(record["run_id"]),
        "reused": outcome.reused,
        "seconds": round(seconds, 1),
        "samples_per_second": round((record["samples"] - record["samples_resumed"]) / max(seconds, 1e-9), 2),
        "interruptions": record["interruptions"],
        "prompt_tokens": record["prompt_tokens"],
        "output_tokens": record["output_tokens"],
        "peak_memory_bytes": record["peak_memory_bytes"],
        "evaluation_id": record["evaluation_id"],
        "fingerprint": record["fingerprint"],
        "content_digest": record["content_digest"],
    }


def _examples(samples: Sequence[Sample], count: int = 5) -> str:
    rows = []
    for sample in samples[:count]:
        scores = ", ".join(f"{name} {value:.3g}" for name, value in list(sample.scores.items())[:4])
        rows.append((str(sample.index), *_question_and_answer(sample), sample.error or scores))
    return markdown.table(("item", "prompt", "answer", "expected", "scores"), rows)


def _question_and_answer(sample: Sample) -> tuple[str, str, str]:
    """What the model was shown, what it answered and what was expected, each cut to a table's width."""
    if sample.choices:
        best = likeliest(sample.choices, sample.loglikelihoods)
        answer = "" if best is None else sample.choices[best]
        expected = sample.choices[sample.target] if sample.target is not None else ""
    elif sample.prompt or sample.output is not None:
        answer = "" if sample.output is None else sample.output.strip() or "(empty)"
        expected = " / ".join(sample.references[:2])
    else:  # perplexity: the text is all there is
        return _start(" ".join(sample.references)), "", ""
    prompt = sample.prompt if len(sample.prompt) <= _SHOWN else "…" + sample.prompt[-_SHOWN:]
    return prompt, _start(answer), _start(expected)


_SHOWN = 120  # characters


def _start(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
