"""The metrics of an imported evaluation, in the names and units of this project."""

from typing import Any

import numpy as np

from eval_assets.exchange.files import number
from eval_assets.exchange.names import Target, is_name
from eval_assets.exchange.run import Run
from eval_assets.metrics import METRICS
from eval_assets.statistics import mean_estimate
from eval_assets.suite.spec import BenchmarkSpec
from resources.records import Estimate, MetricRow

_Z = 1.959963984540054
_LARGEST_COUNT = 10_000_000
"""Items; a larger n gets the normal interval, which is the same then."""
_NOT_METRICS = frozenset({"name", "alias", "sample_len", "sample_count", "samples"})


def item_count(run: Run, target: Target, which: str = "effective") -> int | None:
    """The number of items of an evaluation: of a group its tasks' together, otherwise what they share."""
    sizes = [run.size(part.task, which) for part in target.parts]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return run.size(target.total, which) if target.total is not None else None
    return sum(known) if target.parts[0].group is not None else max(known)


def metric_rows(run: Run, target: Target) -> list[MetricRow]:
    rows: list[MetricRow] = []
    if target.total is not None and run.entry(target.total):
        rows += _rows(run, target, target.total, None, item_count(run, target))
    parts = [row for part in target.parts for row in _rows(run, target, part.task, part, None)]
    if target.parts[0].group is None:
        return [*rows, *({row.metric: row for row in parts}.values())]
    if (
        not rows
    ):  # 0.3 had no groups: the mean, weighted by items (as the harness does today) if it says how many
        for metric in dict.fromkeys(row.metric for row in parts):
            same = [row.estimate for row in parts if row.metric == metric]
            weights = [estimate.n for estimate in same] if all(estimate.n for estimate in same) else None
            value = float(np.average([estimate.value for estimate in same], weights=weights))
            rows.append(
                MetricRow(metric, None, _estimate(metric, target.spec, value, None, sum(weights or ())))
            )
    return rows + sorted(parts, key=lambda row: (row.group or "", row.metric))


def _rows(run: Run, target: Target, name: str, part: Any, n: int | None) -> list[MetricRow]:
    entry = run.entry(name)
    rows = []
    for label, logged in entry.items():
        metric, _, filter_name = label.partition(",")
        if label in _NOT_METRICS or metric.endswith("_stderr") or isinstance(logged, (str, bool)):
            continue
        ours, factor = target.metric(f"{metric},{filter_name or 'none'}", part)
        if not is_name(ours):
            run.refused.append(f"{target.dataset}: left out: metric {label[:80]!r}: no name for a metric")
            continue
        value = number(logged)
        if value is None:
            run.refused.append(f"{target.dataset}: left out: {label[:80]} of {name} is no finite number")
            continue
        stderr = number(entry.get(f"{metric}_stderr,{filter_name}" if filter_name else f"{metric}_stderr"))
        count = n if n is not None else run.size(name, "effective") or 0
        scaled = None if stderr is None or stderr < 0 else stderr * factor
        estimate = _estimate(ours, target.spec, value * factor, scaled, count)
        rows.append(MetricRow(ours, part.group if part is not None else None, estimate))
    return rows


def _estimate(name: str, spec: BenchmarkSpec | None, value: float, stderr: float | None, n: int) -> Estimate:
    """The harness's value and error, with the 95 % interval that they imply: the harness has none.

    Of a share of right items it is Wilson's, otherwise the normal one, within what the metric can be.
    """
    known = next((one.metric for one in spec.metrics if one.name == name), name) if spec is not None else name
    metric = METRICS.get(known)
    low, high = metric.bounds if metric is not None else (-float("inf"), float("inf"))
    right = value * n
    if metric is not None and metric.proportion and 0 < n <= _LARGEST_COUNT and 0 <= value <= 1:
        count = round(right)
        if abs(right - count) < 1e-6:
            wilson = mean_estimate([1.0] * count + [0.0] * (n - count), proportion=True)
            return Estimate(value, stderr, wilson.ci_low, wilson.ci_high, n)
    if stderr is None:
        return Estimate(value, None, None, None, n)
    return Estimate(
        value,
        stderr,
        min(max(value - _Z * stderr, low), value),
        max(min(value + _Z * stderr, high), value),
        n,
    )
