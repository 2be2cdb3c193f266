"""Asset `evaluation`: the grid of model versions and benchmarks, one cell a partition."""

import string
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from eval_assets.benchmarks import stored_benchmark
from eval_assets.evaluator import Outcome, cell_for, evaluate
from eval_assets.events import record_materialization
from eval_assets.gates import check_cell, check_specs, record_checks
from eval_assets.metrics import ScoringSettings
from eval_assets.model_versions import recorded
from eval_assets.partitions import cell_key, cells_of_run, grid
from eval_assets.progress import Progress
from eval_assets.tasks import SCORING_VERSION
from resources import interrupts
from resources.configured import EngineResource
from resources.errors import UserError
from resources.records import METRIC_SCHEMA, SAMPLE_SCHEMA, Sample
from resources.registries import Registry
from resources.results import ResultsStore
from resources.settings import Settings

LOG_SECONDS = 10.0
FORCE_TAG = "eval/force"
"""On a run: evaluate its cells again although they are committed."""
INTERRUPTED_TAG = "eval/interrupted"
"""On a run that was told to end before it was done: by which signal."""

_listeners: list[Callable[[Progress], None]] = []


@contextmanager
def progress_to(listener: Callable[[Progress], None]) -> Iterator[None]:
    """Send the progress of evaluations in this process to a listener, too."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def scoring_settings(settings: Settings) -> ScoringSettings:
    """What the metrics need to know of their surroundings."""
    return ScoringSettings(
        bertscore_model=settings.bertscore_model, bertscore_layers=settings.bertscore_layers
    )


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
    name="evaluation",
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
    engines: EngineResource,
) -> Iterator[dg.Output[None]]:
    """Evaluate the run's cells, model by model; a cell that fails takes no other with it."""
    yield from ()
    try:
        with interrupts.watching():
            _evaluate_cells(context, registry, store, engines)
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        # Dagster calls such a run failed, so that it is retried; this tells it from one that went wrong.
        signal = interrupts.received()
        context.instance.add_run_tags(
            context.run.run_id, {INTERRUPTED_TAG: signal.name if signal else "cancelled"}
        )
        raise


def _evaluate_cells(
    context: dg.AssetExecutionContext, registry: Registry, store: ResultsStore, engines: EngineResource
) -> None:
    force = context.run.tags.get(FORCE_TAG) == "true"
    failed: dict[str, str] = {}
    for run_cell in cells_of_run(context):
        dataset, model_key = run_cell.dataset, run_cell.model
        partition = cell_key(dataset, model_key)
        try:
            cell = _Cell(context, dataset, model_key, registry, store, engines)
            if run_cell.meant:
                cell.evaluate(force=force)
            elif cell.is_committed():
                # Dagster takes the whole range for planned: a good cell between two that are meant would
                # otherwise show as skipped or failed.
                cell.evaluate(force=False)
        except UserError as error:
            if run_cell.meant:
                failed[partition] = str(error)
        except Exception as error:
            # Whatever one cell ran into, the next one of the row gets its turn; the run fails below.
            context.log.exception(f"{model_key} on {dataset} failed")
            failed[partition] = f"{type(error).__name__}: {error}"
    if failed:
        lines = "; ".join(f"{cell}: {reason}" for cell, reason in failed.items())
        raise dg.Failure(f"{len(failed)} of the run's cells failed: {lines}", allow_retries=False)


class _Cell:
    """One cell in a run, with the model, items and fingerprint that it has today."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        dataset: str,
        model_key: str,
        registry: Registry,
        store: ResultsStore,
        engines: EngineResource,
    ) -> None:
        """Raises UserError where the version is not registered or the benchmark is not prepared."""
        self._context, self._store, self._engines = context, store, engines
        self._settings = Settings.from_environment()
        self._scoring = scoring_settings(self._settings)
        self._model = recorded(model_key, registry, store)
        self._benchmark = stored_benchmark(dataset, store, self._settings.limit)
        self._cell = cell_for(self._model, self._benchmark, engines.fingerprint_fields(), self._scoring)

    def is_committed(self) -> bool:
        return self._store.committed(self._cell) is not None

    def evaluate(self, *, force: bool) -> None:
        """Evaluate or reuse, then record the materialization and the checks."""
        context, cell, benchmark = self._context, self._cell, self._benchmark
        outcome = evaluate(
            cell,
            self._model,
            benchmark,
            lambda: self._engines.load(self._model),
            self._store,
            scoring=self._scoring,
            force=force,
            run_id=context.run.run_id,
            revision=self._settings.git_revision,
            on_progress=_Reporter(context),
            on_warning=context.log.warning,
        )
        samples = self._store.samples(outcome.record)
        partition = cell_key(cell.dataset, cell.model)
        record_materialization(
            context,
            "evaluation",
            partition,
            data_version=cell.fingerprint,
            code_version=SCORING_VERSION,
            inputs={"model_version": cell.model, "benchmark": cell.dataset},
            metadata=_metadata(outcome, samples, benchmark.available),
        )
        record_checks(context, partition, check_cell(benchmark, outcome.record, samples))
        context.log.info(_summary(outcome))


class _Reporter:
    """Passes progress on: to listeners at once, to the run's log every `LOG_SECONDS`."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
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


def _metadata(outcome: Outcome, samples: Sequence[Sample], available: int) -> Mapping[str, Any]:
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
    rows = ["| item | prompt | answer | expected | scores |", "|---|---|---|---|---|"]
    for sample in samples[:count]:
        scores = ", ".join(f"{name} {value:.3g}" for name, value in list(sample.scores.items())[:4])
        cells = (str(sample.index), *_question_and_answer(sample), sample.error or scores)
        rows.append("| " + " | ".join(_inert(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _question_and_answer(sample: Sample) -> tuple[str, str, str]:
    """What the model was shown, what it answered and what was expected, each cut to a table's width."""
    if sample.choices:
        answer = ""
        if sample.loglikelihoods:
            best = max(range(len(sample.choices)), key=lambda i: sample.loglikelihoods[i])
            answer = sample.choices[best]
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


_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_INERT = str.maketrans({mark: _ENTITIES.get(mark, "\\" + mark) for mark in string.punctuation})


def _inert(text: str) -> str:
    """Text as one cell of a Markdown table that renders none of it: no link, image, emphasis or HTML."""
    return " ".join(text.split()).translate(_INERT) or " "
