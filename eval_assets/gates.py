"""Asset checks on each cell: is this evaluation complete, finite, plausible?

The checks are computed where the samples are at hand, in the run of the cell, and recorded per cell. They
are declared here so that the UI lists them even before the first run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from eval_assets.evaluating.evaluator import Benchmark, metric_of
from eval_assets.grid.comparing import CellComparison
from eval_assets.metrics import answers_of
from eval_assets.partitions import grid
from resources.records import EvaluationRecord, Sample

TRUNCATED_SHARE = 0.01
EMPTY_SHARE = 0.05

_CHECKS = {
    "complete": "Every item is present exactly once.",
    "finite": "No sample has an error: log-likelihoods are finite numbers and outputs exist.",
    "truncated_inputs": f"At most {TRUNCATED_SHARE:.0%} of the inputs were cut to the context (warning).",
    "empty_outputs": f"At most {EMPTY_SHARE:.0%} of the generated outputs are empty (warning).",
    "score_in_range": "Each metric lies inside its possible range and its interval around it.",
    "above_chance": "The score of a multiple-choice benchmark is better than guessing (warning).",
    "no_regression": "The version is not worse than the one in production, sample by sample.",
    "reproduced": "Evaluated again with the same fingerprint, it finds the same, bit by bit.",
}


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """The result of one check on one cell."""

    name: str
    passed: bool
    warning_only: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


def check_specs() -> list[dg.AssetCheckSpec]:
    """The declarations of all checks on a cell."""
    return [
        dg.AssetCheckSpec(name, asset="evaluation", description=description, partitions_def=grid)
        for name, description in _CHECKS.items()
    ]


def check_cell(
    benchmark: Benchmark, record: EvaluationRecord, samples: Sequence[Sample]
) -> list[CheckOutcome]:
    """Judge a committed evaluation by its samples and record."""
    expected = {item.sample_id for item in benchmark.items}
    found = [sample.sample_id for sample in samples]
    missing, strange = expected - set(found), set(found) - expected
    repeated = len(found) - len(set(found))
    errors = [sample for sample in samples if sample.error is not None]
    truncated = sum(sample.truncated_tokens > 0 for sample in samples)
    answers = [answer for sample in samples for answer in answers_of(sample)]
    outputs = [answer.output for answer in answers if answer.output is not None]
    empty = sum(not output.strip() for output in outputs)
    return [
        CheckOutcome(
            "complete",
            not missing and not strange and not repeated,
            metadata={
                "items": len(expected),
                "missing": len(missing),
                "unknown": len(strange),
                "repeated": repeated,
            },
        ),
        CheckOutcome(
            "finite",
            not errors,
            metadata={
                "samples_with_error": len(errors),
                "first_error": f"item {errors[0].index}: {errors[0].error}" if errors else "none",
            },
        ),
        CheckOutcome(
            "truncated_inputs",
            truncated <= TRUNCATED_SHARE * len(samples),
            warning_only=True,
            metadata={"truncated": truncated, "share": truncated / max(len(samples), 1)},
        ),
        CheckOutcome(
            "empty_outputs",
            empty <= EMPTY_SHARE * len(outputs),
            warning_only=True,
            metadata={"empty": empty, "share": empty / max(len(outputs), 1)},
        ),
        _score_in_range(benchmark, record),
        _above_chance(benchmark, record, samples),
    ]


def _score_in_range(benchmark: Benchmark, record: EvaluationRecord) -> CheckOutcome:
    outside = {}
    for name, value in record["metrics"].items():
        low, high = metric_of(benchmark.spec, name).bounds
        if value is None or not math.isfinite(value) or not low <= value <= high:
            outside[name] = f"{value} is not in [{low}, {high}]"
    score = record["score"]
    passed = not outside and score is not None
    if score is not None and score["ci_low"] is not None and score["ci_high"] is not None:
        passed = passed and score["ci_low"] <= score["value"] <= score["ci_high"]
    return CheckOutcome(
        "score_in_range",
        passed,
        metadata={"outside": dg.MetadataValue.json(outside), "scored": score is not None},
    )


def _above_chance(benchmark: Benchmark, record: EvaluationRecord, samples: Sequence[Sample]) -> CheckOutcome:
    """Guessing gets one of k choices right, so its accuracy is the mean of 1 / k; only accuracies can be
    compared with it."""
    score = record["score"]
    metric = metric_of(benchmark.spec, benchmark.spec.primary_metric).name
    accuracy = metric.startswith("acc") or metric == "mc1"
    if benchmark.spec.task != "multiple_choice" or not accuracy or score is None:
        return CheckOutcome("above_chance", True, warning_only=True, metadata={"chance": "does not apply"})
    chance = sum(1 / len(sample.choices) for sample in samples) / len(samples)
    return CheckOutcome(
        "above_chance",
        score["value"] > chance,
        warning_only=True,
        metadata={"score": score["value"], "chance": chance},
    )


def record_checks(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    partition: str,
    outcomes: Sequence[CheckOutcome],
) -> None:
    """Log the outcomes for one cell, after its materialization."""
    target = _latest_materialization(context.instance, partition)
    if target is not None and target.run_id != context.run.run_id:
        target = None
    for outcome in outcomes:
        # An op's context takes checks, too, though its type does not say so.
        context.log_event(_event(partition, outcome, target))  # type: ignore[arg-type]


def no_regression(cell: CellComparison) -> CheckOutcome:
    """The verdict on a cell as a check: 'worse' fails it, an undecided one is a warning."""
    comparison, verdict = cell.comparison, cell.verdict
    numbers = {
        "difference": comparison.difference,
        "stderr": comparison.stderr,
        "stderr_unpaired": comparison.unpaired_stderr,
        "ci_low": comparison.ci_low,
        "ci_high": comparison.ci_high,
        "detectable_difference": comparison.detectable,
        "p_worse": verdict.p_worse,
        "p_not_worse": verdict.p_not_worse,
    }
    return CheckOutcome(
        "no_regression",
        verdict.passed,
        warning_only=verdict.name != "worse",
        metadata={
            "verdict": verdict.name,
            "reason": verdict.reason,
            "baseline": cell.baseline["model"],
            "tolerance": verdict.tolerance,
            "items": comparison.n,
            "better_worse_same": f"{len(comparison.wins)} / {len(comparison.losses)} / {comparison.ties}",
            "method": comparison.method,
            **{name: float(value) for name, value in numbers.items() if value is not None},
        },
    )


def reproduced(now: EvaluationRecord, before: EvaluationRecord) -> CheckOutcome:
    """Whether an evaluation found what an earlier one of the same fingerprint found."""
    same = now["content_digest"] == before["content_digest"]
    if before.get("samples_taken_over"):
        # What was evaluated in stages went through other batches, which move a score by rounding.
        same = now["metrics"].keys() == before["metrics"].keys() and all(
            _close(value, before["metrics"][name]) for name, value in now["metrics"].items()
        )
    return CheckOutcome(
        "reproduced",
        same,
        metadata={
            "content_digest": now["content_digest"],
            "earlier_evaluation": before["evaluation_id"],
            "earlier_content_digest": before["content_digest"],
            "earlier_packages": dg.MetadataValue.json(before["packages"]),
            "same_machine_settings": now["engine"] == before["engine"],
        },
    )


def _close(now: float | None, before: float | None) -> bool:
    """Whether two values of a metric are the same but for rounding; one that is not finite is None."""
    if now is None or before is None:
        return now is before
    return math.isclose(now, before, rel_tol=1e-4)


def record_check(context: dg.AssetExecutionContext, partition: str, outcome: CheckOutcome) -> None:
    """Log a check on a cell in another run than the cell's, on its latest materialization."""
    context.log_event(_event(partition, outcome, _latest_materialization(context.instance, partition)))


def _event(
    partition: str, outcome: CheckOutcome, target: AssetCheckEvaluationTargetMaterializationData | None
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("evaluation"),
        check_name=outcome.name,
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.WARN if outcome.warning_only else dg.AssetCheckSeverity.ERROR,
        metadata=dict(outcome.metadata),
        partition=partition,
        target_materialization_data=target,
    )


def _latest_materialization(
    instance: dg.DagsterInstance, partition: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    # Dagster calls the check of a partition missing unless it names the partition's latest materialization.
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey("evaluation"), asset_partitions=[partition]), limit=1
    ).records
    if not records:
        return None
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=records[0].storage_id, run_id=records[0].run_id, timestamp=records[0].timestamp
    )
