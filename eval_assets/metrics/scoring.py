"""The table of all metrics, and the three things done with it: validate, score, estimate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from eval_assets.metrics import accuracy, answers, bertscore, calibration, perplexity, text_overlap
from eval_assets.metrics.metric import Metric, Scorer, ScoringSettings
from resources.errors import UserError
from resources.records import MetricRow, Sample

if TYPE_CHECKING:
    from eval_assets.suite.spec import MetricSpec, TaskType

_MODULES = (accuracy, answers, text_overlap, bertscore, perplexity, calibration)

METRICS: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for module in _MODULES for metric in module.METRICS}
)

_OPTIONS = ("extract", "ignore_case", "ignore_punctuation", "ignore_patterns", "stem")
_ROUNDING = 1e-6


def check_metrics(
    task: TaskType, metrics: Sequence[MetricSpec], where: str = "metrics", fields: Iterable[str] | None = None
) -> None:
    """Raise UserError for a metric that can't be computed, in one line that begins with `where`.

    That is: a name that does not exist or is given twice, one that does not fit the task type, an option
    that the metric does not take, and, where `fields` names what the benchmark declares, a field that the
    metric needs and the benchmark lacks. (That regular expressions compile is checked by MetricSpec.)
    """
    declared = None if fields is None else frozenset(fields)
    seen: set[str] = set()
    for spec in metrics:
        metric = METRICS.get(spec.metric)
        if metric is None:
            close = get_close_matches(spec.metric, METRICS, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(METRICS))}"
            raise UserError(f"{where}: unknown metric {_short(spec.metric)}; {advice}")
        if task not in metric.needs:
            fitting = " or ".join(sorted(metric.needs))
            raise UserError(f"{where}: metric {spec.metric!r} does not fit task {task!r}, only {fitting}")
        if spec.name in seen:
            raise UserError(
                f"{where}: two metrics are named {_short(spec.name)}; give one of them another 'name'"
            )
        seen.add(spec.name)
        for option in _OPTIONS:
            if getattr(spec, option) and option not in metric.options:
                takes = ", ".join(sorted(metric.options)) or "no options"
                raise UserError(f"{where}: metric {spec.metric!r} has no option {option!r}; it takes {takes}")
        lacking = sorted(metric.needs[task] - declared) if declared is not None else []
        if lacking:
            raise UserError(f"{where}: metric {spec.metric!r} needs the field {lacking[0]!r}; declare it")


def score_samples(
    samples: Sequence[Sample], metrics: Sequence[MetricSpec], settings: ScoringSettings
) -> None:
    """Fill in each sample's `scores`, keyed by the names of the metrics.

    A sample that has an error keeps it and gets no scores. So does one with a log-likelihood that is not
    finite, or without a field that a metric reads: it gets an `error` of one line that names it. Scoring
    again gives the same scores.
    """
    scorable: list[Sample] = []
    for sample in samples:
        sample.scores = {}
        if sample.error is None:
            sample.error = _unscorable(sample, metrics)
        if sample.error is None:
            scorable.append(sample)
    if not scorable:
        return
    together: dict[Scorer, list[MetricSpec]] = {}
    for spec in metrics:
        together.setdefault(METRICS[spec.metric].scorer, []).append(spec)
    for scorer, specs in together.items():
        for spec, scores in zip(specs, scorer(scorable, specs, settings), strict=True):
            low, high = METRICS[spec.metric].bounds
            for sample, score in zip(scorable, scores, strict=True):
                sample.scores[spec.name] = _without_rounding(float(score), low, high)


def estimate_metrics(samples: Sequence[Sample], metrics: Sequence[MetricSpec]) -> list[MetricRow]:
    """Each metric over all samples and over each group, the whole first, then the groups by name.

    The whole weighs every sample alike, which is the harness's mean of groups weighted by size. Where
    samples name a cluster, errors and intervals are clustered. An evaluation in which any sample has an
    error is not scored at all (its value would depend on which items failed): the list is then empty, as
    it is for no samples. The order of the samples does not matter.
    """
    if not samples or any(sample.error is not None for sample in samples):
        return []
    # A seeded bootstrap draws positions: an evaluation that was resumed must draw the same items.
    samples = sorted(samples, key=lambda sample: (sample.index, sample.sample_id))
    groups: dict[str | None, list[int]] = {None: list(range(len(samples)))}
    for index, sample in enumerate(samples):
        if sample.group is not None:
            groups.setdefault(sample.group, []).append(index)
    names = [None, *sorted(name for name in groups if name is not None)]
    rows: list[MetricRow] = []
    for spec in metrics:
        metric = METRICS[spec.metric]
        statistics = metric.statistics(samples, spec)
        for name in names:
            members = np.array(groups[name])
            clusters = [samples[index].cluster for index in groups[name]]
            rows.append(MetricRow(spec.name, name, metric.estimate(statistics[members], clusters)))
    return rows


def _unscorable(sample: Sample, metrics: Sequence[MetricSpec]) -> str | None:
    """Why a sample can't be scored."""
    for index, value in enumerate(sample.loglikelihoods):
        if not math.isfinite(value):
            of_choice = f" of choice {index}" if sample.choices else ""
            return f"the model's log-likelihood{of_choice} is {value}"
    for spec in metrics:
        missing = METRICS[spec.metric].missing(sample)
        if missing is not None:
            return f"metric {spec.name!r} needs {missing!r}, which this item lacks"
    return None


def _without_rounding(score: float, low: float, high: float) -> float:
    """Take off what rounding adds beyond the bounds: 100.00000000000004 for a perfect BLEU.

    What is further off stays as it is, for the check of the range to find.
    """
    if high < score <= high + _ROUNDING:
        return high
    return low if low - _ROUNDING <= score < low else score


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
