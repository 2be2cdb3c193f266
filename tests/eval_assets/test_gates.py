"""The checks of a cell, each made to fail."""

import math
from dataclasses import replace

import pytest

from eval_assets.evaluating.evaluator import Benchmark, score_of
from eval_assets.gates import check_cell, reproduced
from eval_assets.partitions import SUITE
from eval_assets.suite import MetricSpec, normalize
from resources.datasets import read_rows
from resources.records import Estimate, EvaluationRecord, Output, Sample
from tests.resources.test_results import evaluation_record

ITEMS = normalize(SUITE["capitals"], read_rows).items
BENCHMARK = Benchmark(SUITE["capitals"], "f", ITEMS, len(ITEMS))
SAMPLES = [
    Sample(
        item.sample_id, item.index, item.group, None, item.query, target=0, choices=item.choices, output="x"
    )
    for item in ITEMS
]


def record(value: float | None = 0.5, **metrics: float | None) -> EvaluationRecord:
    score = None if value is None else {"value": value, "ci_low": 0.0, "ci_high": 1.0, "stderr": 0.1, "n": 12}
    return evaluation_record(score=score, metrics={"acc": value, **metrics})


def failed(samples: list[Sample], values: EvaluationRecord) -> list[str]:
    return [outcome.name for outcome in check_cell(BENCHMARK, values, samples) if not outcome.passed]


def test_a_good_cell_passes_every_check() -> None:
    assert failed(SAMPLES, record()) == []


@pytest.mark.parametrize(
    ("samples", "values", "expected"),
    [
        (SAMPLES[1:], record(), ["complete"]),
        ([*SAMPLES, SAMPLES[0]], record(), ["complete"]),
        ([*SAMPLES[1:], replace(SAMPLES[0], sample_id="stranger")], record(), ["complete"]),
        ([*SAMPLES[1:], replace(SAMPLES[0], error="NaN")], record(), ["finite"]),
        ([*SAMPLES[1:], replace(SAMPLES[0], truncated_tokens=3)], record(), ["truncated_inputs"]),
        ([*SAMPLES[1:], replace(SAMPLES[0], output=" \n")], record(), ["empty_outputs"]),
        (SAMPLES, record(1.5), ["score_in_range"]),
        (SAMPLES, record(acc_norm=-0.1), ["score_in_range"]),
        (SAMPLES, record(acc_norm=None), ["score_in_range"]),
        (SAMPLES, record(None), ["score_in_range"]),
        (SAMPLES, record(0.25), ["above_chance"]),
    ],
)
def test_each_fault_fails_its_own_check(
    samples: list[Sample], values: EvaluationRecord, expected: list[str]
) -> None:
    assert failed(samples, values) == expected


def test_an_accuracy_under_another_name_is_held_against_chance() -> None:
    """What a benchmark calls its accuracy says nothing of what it is: guessing would pass unnoticed."""
    metrics = (MetricSpec(metric="acc", name="right"),)
    spec = BENCHMARK.spec.model_copy(update={"metrics": metrics, "primary_metric": "right"})
    values = evaluation_record(score=record(0.25)["score"], metrics={"right": 0.25})
    outcomes = check_cell(replace(BENCHMARK, spec=spec), values, SAMPLES)
    assert [outcome.name for outcome in outcomes if not outcome.passed] == ["above_chance"]


def test_every_output_of_an_item_counts_as_empty_or_not() -> None:
    """One item of twelve whose outputs are mostly empty: the first output alone would hide it."""
    outputs = [Output("x", "stop", 1), *[Output(" ", "eos", 1)] * 9]
    filled = [replace(sample, outputs=[outputs[0]] * 10) for sample in SAMPLES]
    assert failed(filled, record()) == []
    assert failed([*filled[1:], replace(SAMPLES[0], outputs=outputs)], record()) == ["empty_outputs"]


def test_only_what_makes_numbers_wrong_is_an_error() -> None:
    warnings = {outcome.name for outcome in check_cell(BENCHMARK, record(), SAMPLES) if outcome.warning_only}
    assert warnings == {"truncated_inputs", "empty_outputs", "above_chance"}


@pytest.mark.parametrize(
    ("now", "before", "same"),
    [
        (9.0, 9.0001, True),
        (9.0, 9.1, False),
        (None, None, True),
        (9.0, None, False),
        (None, 9.0, False),
    ],
)
def test_an_evaluation_after_one_in_stages_is_reproduced_but_for_rounding(
    now: float | None, before: float | None, same: bool
) -> None:
    """A perplexity that overflowed has no value: one that is there now is another result, and no crash."""
    found = evaluation_record(metrics={"perplexity": now})
    staged = evaluation_record(metrics={"perplexity": before}, samples_taken_over=3)
    assert reproduced(found, staged).passed is same


def test_a_score_without_a_finite_value_is_none_and_an_open_interval_is_left_out() -> None:
    """JSON has no infinity: a perplexity that overflows must not take its evaluation down."""
    assert score_of(None) is None
    assert score_of(Estimate(math.inf, None, None, None, 3)) is None
    score = score_of(Estimate(9.0, 1.0, 7.0, math.inf, 3))
    assert score == {
        "value": 9.0, "stderr": 1.0, "ci_low": None, "ci_high": None, "n": 3, "sampling_share": None,
    }  # fmt: skip
