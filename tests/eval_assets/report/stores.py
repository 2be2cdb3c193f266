"""Results stores made of committed evaluations without any model, for what a report does with them."""

import hashlib
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from eval_assets.statistics import mean_estimate
from eval_assets.statistics.verdicts import Scores, compare, verdict
from resources.catalog import Catalog
from resources.records import EvaluationRecord, MetricRow, Output, Sample
from resources.results import Cell, ResultsStore
from tests.resources.test_results import findings

START = datetime(2026, 11, 1, 12, tzinfo=UTC)


def choice_sample(index: int, right: bool, **values: Any) -> Sample:
    """A question with four choices, of which the model takes the right one or not."""
    lls = [-4.0, -5.0, -6.0, -7.0] if right else [-5.0, -4.0, -6.0, -7.0]
    fields: dict[str, Any] = {
        "sample_id": f"item{index:06}",
        "index": index,
        "group": f"group {index % 3}",
        "cluster": None,
        "prompt": f"Question {index}: which is right?\nAnswer:",
        "target": 0,
        "choices": ["the right one", "a wrong one", "another wrong one", "nonsense"],
        "loglikelihoods": lls,
        "choice_tokens": [3, 3, 3, 1],
        "is_greedy": [False] * 4,
        "prompt_tokens": 12,
        "scores": {"acc": float(right)},
    }
    return Sample(**{**fields, **values})


def text_sample(index: int, output: str, score: float, **values: Any) -> Sample:
    """A question that is answered in words."""
    fields: dict[str, Any] = {
        "sample_id": f"text{index:06}",
        "index": index,
        "group": None,
        "cluster": None,
        "prompt": f"Write about {index}.",
        "references": ["a reference"],
        "output": output or None,
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "output_tokens": len(output.split()),
        "scores": {"f1": score},
    }
    return Sample(**{**fields, **values})


def commit(
    store: ResultsStore,
    dataset: str,
    model: str,
    samples: Sequence[Sample],
    *,
    fingerprint: str = "",
    day: int = 0,
    **record: Any,
) -> EvaluationRecord:
    """Commit an evaluation of these samples, with the metrics that they have; returns its record."""
    name, _, version = model.rpartition("@")
    names = sorted({metric for sample in samples for metric in sample.scores})
    groups = sorted({sample.group for sample in samples if sample.group is not None})
    metrics = []
    for metric in names:
        for group in [None, *groups]:
            values = [
                sample.scores[metric]
                for sample in samples
                if metric in sample.scores and (group is None or sample.group == group)
            ]
            if not values:
                continue
            proportion = all(value in (0.0, 1.0) for value in values)
            metrics.append(MetricRow(metric, group, mean_estimate(values, proportion=proportion)))
    primary = record.pop("primary_metric", names[0])
    score = next(row.estimate for row in metrics if row.metric == primary and row.group is None)
    finished = START + timedelta(days=day)
    errors = sum(sample.error is not None for sample in samples)
    whole: dict[str, Any] = {
        "model_name": name,
        "model_version": version,
        "model_digest": f"digest of {model}",
        "model_parameters": 1000,
        "benchmark_version": "1",
        "benchmark_fingerprint": f"items of {dataset}",
        "task": "generation" if samples[0].output is not None else "multiple_choice",
        "run_id": f"run-of-{day}",
        "started_at": (finished - timedelta(minutes=3)).isoformat(),
        "finished_at": finished.isoformat(),
        "status": "invalid" if errors else "valid",
        "items_available": len(samples),
        "samples": len(samples),
        "samples_with_error": errors,
        "samples_truncated": 0,
        "prompt_tokens": sum(sample.prompt_tokens for sample in samples),
        "output_tokens": sum(sample.output_tokens for sample in samples),
        "primary_metric": primary,
        "higher_is_better": True,
        "score": {
            "value": score.value, "stderr": score.stderr, "ci_low": score.ci_low, "ci_high": score.ci_high,
        },
        "metrics": {},
        "seconds": {"load": 1.0, "prefill": 30.0, "decode": 0.0, "score": 0.5},
        "engine": {"engine": "transformers", "device": "cpu", "dtype": "float32", "threads": 2, "seed": 1234},
        "scoring_version": "1",
        "packages": {"torch": "2.13.0"},
        "python": "3.11.9",
        "git_revision": "abc123",
        **record,
    }  # fmt: skip
    cell = Cell(dataset, model, fingerprint or hashlib.sha256(f"{dataset} {model}".encode()).hexdigest())
    with store.writer(cell) as writer:
        return writer.commit(samples, metrics, findings(**whole))


def compared(
    store: ResultsStore, baseline: EvaluationRecord, candidate: EvaluationRecord, tolerance: float = 0.02
) -> dict[str, Any]:
    """Record how two committed evaluations of a benchmark compare, as the asset `promotion` does."""
    metric = candidate["primary_metric"]
    sides = [
        Scores([one.sample_id for one in samples], [one.scores[metric] for one in samples])
        for samples in (store.samples(baseline), store.samples(candidate))
    ]
    comparison = compare(*sides, higher_is_better=True, bounds=(0.0, 1.0))
    row = {
        "dataset": candidate["dataset"],
        "model": candidate["model"],
        "baseline": baseline["model"],
        "metric": metric,
        "candidate_evaluation": candidate["evaluation_id"],
        "baseline_evaluation": baseline["evaluation_id"],
        "items_available": candidate["items_available"],
        "comparison": comparison.as_row(),
        "verdict": verdict(comparison, tolerance).as_row(),
    }
    store.save_comparison(candidate["dataset"], candidate["model"], row)
    return row


def judged(store: ResultsStore, model: str, baseline: str | None, status: str, action: str) -> None:
    """Record the verdict on a version."""
    store.save_verdict(
        model,
        {
            "verdict_id": "20261120T120000",
            "model": model,
            "baseline": baseline,
            "status": status,
            "reason": f"{status} for a reason",
            "action": action,
            "moved": False,
            "missing": {},
            "family": {"family": ["capitals"]},
            "judged_at": START.isoformat(),
            "run_id": "run-of-a-judge",
            "cells": [],
        },
    )


def usual_store(store: ResultsStore) -> ResultsStore:
    """Three versions on two benchmarks, one comparison of each kind of task, one invalid cell."""
    draw = random.Random(5)
    base = [draw.random() < 0.5 for _ in range(60)]
    first = commit(store, "capitals", "tiny@1", [choice_sample(i, right) for i, right in enumerate(base)])
    flipped = [right != (i % 10 == 0) for i, right in enumerate(base)]
    second = commit(
        store, "capitals", "tiny@2", [choice_sample(i, right) for i, right in enumerate(flipped)], day=1
    )
    compared(store, first, second)
    broken = [choice_sample(0, True), choice_sample(1, False, error="no logits", scores={})]
    commit(store, "capitals", "org/Other@1", broken, day=2)
    written = [text_sample(i, f"the answer number {i} is short", 0.25 * (i % 5)) for i in range(40)]
    other = [
        text_sample(i, f"the answer number {i} is very {'long' if i % 3 else 'short'}", 0.2 * (i % 6))
        for i in range(40)
    ]
    old = commit(store, "written", "tiny@1", written, day=1)
    new = commit(store, "written", "tiny@2", other, day=2)
    compared(store, old, new)
    commit(
        store,
        "written",
        "tiny@3",
        [
            text_sample(
                i, "one", 0.5, outputs=[Output(text, "stop", 1, {"f1": 0.5}) for text in ("one", "two")]
            )
            for i in range(10)
        ],
        day=3,
    )
    judged(store, "tiny@2", "tiny@1", "undecided", "not promoted: more items are needed")
    store.save_promotion(
        "tiny",
        {"promotion_id": "1", "at": "", "who": "", "alias": "champion", "from": None, "to": "1", "why": ""},
    )
    Catalog(store).refresh()
    return store
