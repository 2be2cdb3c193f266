"""Results of hundreds of versions, made in memory from a seed."""

import random
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from eval_assets.report.reading import Comparison, Evaluation, Results

_START = datetime(2026, 1, 1, tzinfo=UTC)
_VERDICTS = ("better", "equivalent", "not worse", "worse", "undecided")
_ITEMS = 1000


def evaluation(**values: Any) -> Evaluation:
    """An evaluation of which only this is known."""
    return Evaluation(**{**{field.name: None for field in fields(Evaluation)}, **values})


def large_results(versions: int, benchmarks: int) -> Results:
    """Ten versions a model, each on every benchmark and compared with the version before it."""
    draw = random.Random(3)
    cells: dict[tuple[str, str], Evaluation] = {}
    comparisons: dict[tuple[str, str], Comparison] = {}
    for at in range(versions):
        name, number = f"family-{at // 10}", at % 10 + 1
        model = f"{name}@{number}"
        for column in range(benchmarks):
            dataset = f"benchmark_{column:02}"
            value = min(max(draw.gauss(0.55, 0.12), 0.02), 0.98)
            half = 1.96 * (value * (1 - value) / _ITEMS) ** 0.5
            cell = cells[dataset, model] = evaluation(
                evaluation_id=f"{at:08}{column:08}-1", dataset=dataset, model=model, model_name=name,
                model_version=str(number), status="valid", samples=_ITEMS, primary_metric="acc",
                higher_is_better=True, value=value, ci_low=value - half, ci_high=value + half,
                task="multiple_choice", finished_at=_START + timedelta(hours=at),
            )  # fmt: skip
            if number > 1:
                before = cells[dataset, f"{name}@{number - 1}"]
                difference = value - (before.value or 0.0)
                comparisons[dataset, model] = Comparison(
                    dataset, model, before.model, "acc", draw.choice(_VERDICTS), difference, 0.01, 0.02,
                    difference - 0.02, difference + 0.02, 0.02, 0.03, _ITEMS, (), (), _ITEMS, "a test",
                    "a reason", cell.evaluation_id, before.evaluation_id,
                )  # fmt: skip
    return Results(list(cells.values()), cells, comparisons, {}, frozenset(), [], {"family-0@3": _START}, {})
