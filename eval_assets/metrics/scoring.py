"""The table of all metrics, and what is done with it: find, validate, score, estimate, compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from eval_assets.metrics import accuracy, answers, bertscore, calibration, perplexity, text_overlap
from eval_assets.metrics.metric import Metric, Scorer, ScoringSettings, answers_of
from eval_assets.statistics import UNBOUNDED, sampling_share
from resources.errors import UserError
from resources.records import MetricRow, Sample

if TYPE_CHECKING:  # verdicts need scipy
    from eval_assets.statistics.verdicts import Scores
    from eval_assets.suite.spec import MetricSpec, TaskType

_MODULES = (accuracy, answers, text_overlap, bertscore, perplexity, calibration)

METRICS: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for module in _MODULES for metric in module.METRICS}
)

_OPTIONS = ("extract", "ignore_case", "ignore_punctuation", "ignore_patterns", "stem", "of", "k")
_ROUNDING = 1e-6


def metric_named(name: str, declared: Sequence[MetricSpec]) -> tuple[Metric | None, MetricSpec]:
    """The metric that results call `name`, and how the benchmark with these `declared` metrics has it.

    A benchmark may give a metric a name of its own (``exact_match_strict``); a name that it doesn't declare
    is the metric's. There is no metric where neither knows the name: results that were imported have such.
    """
    from eval_assets.suite.spec import MetricSpec

    spec = next((one for one in declared if one.name == name), None) or MetricSpec(metric=name)
    return METRICS.get(spec.metric), spec


def check_metrics(
    task: TaskType,
    metrics: Sequence[MetricSpec],
    where: str = "metrics",
    fields: Iterable[str] | None = None,
    outputs: int = 1,
) -> None:
    """Raise UserError for a metric that can't be computed, in one line that begins with `where`.

    That is: a name that does not exist or is given twice, one that does not fit the task type, an option
    that the metric does not take, and, where `fields` names what the benchmark declares, a field that the
    metric needs and the benchmark lacks; a pass@k of something else than a metric of right and wrong, or of
    more outputs than there are. (That regular expressions compile is checked by MetricSpec.)
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
        if "of" in metric.options:
            _check_pass_at_k(spec, metrics, where, outputs)


def _check_pass_at_k(spec: MetricSpec, metrics: Sequence[MetricSpec], where: str, outputs: int) -> None:
    right_or_wrong = [
        other.name
        for other in metrics
        if (found := METRICS.get(other.metric)) is not None
        and found.proportion
        and found.higher_is_better
        and other.of is None
    ]
    for option in ("of", "k"):
        if getattr(spec, option) is None:
            raise UserError(
                f"{where}: metric {spec.metric!r} needs {option!r}, such as "
                "{metric: pass@k, k: 1, of: exact_match}"
            )
    if spec.of not in right_or_wrong:
        named = ", ".join(right_or_wrong) or "there is none yet"
        raise UserError(
            f"{where}: {_short(spec.name)}: 'of' must name a metric of this benchmark that calls an output "
            f"right or wrong ({named}), not {_short(str(spec.of))}"
        )
    if spec.k is not None and spec.k > outputs:
        raise UserError(
            f"{where}: {_short(spec.name)}: k is {spec.k}, but generation.outputs is {outputs}; "
            "ask for as many outputs or lower k"
        )


def score_samples(
    samples: Sequence[Sample], metrics: Sequence[MetricSpec], settings: ScoringSettings
) -> None:
    """Fill in each sample's `scores`, keyed by the names of the metrics.

    The score of a sample with several outputs is the mean of theirs, which are filled in too, or with `of`
    what the metric makes of those. A sample that has an error keeps it and gets no scores. So does one with a
    log-likelihood that is not finite, or without a field that a metric reads: it gets an `error` of one
    line that names it. Scoring again gives the same scores.
    """
    scorable: list[Sample] = []
    for sample in samples:
        sample.scores = {}
        for output in sample.outputs:
            output.scores = {}
        if sample.error is None:
            sample.error = _unscorable(sample, metrics)
        if sample.error is None:
            scorable.append(sample)
    if not scorable:
        return
    answers = [answers_of(sample) for sample in scorable]
    every_answer = [answer for of_sample in answers for answer in of_sample]
    _fill_in(every_answer, [spec for spec in metrics if spec.of is None], settings)
    for sample, of_sample in zip(scorable, answers, strict=True):
        if sample.outputs:
            for output, answer in zip(sample.outputs, of_sample, strict=True):
                output.scores = answer.scores
            sample.scores = {
                name: math.fsum(answer.scores[name] for answer in of_sample) / len(of_sample)
                for name in of_sample[0].scores
            }
    _fill_in(scorable, [spec for spec in metrics if spec.of is not None], settings)


def _fill_in(samples: Sequence[Sample], metrics: Sequence[MetricSpec], settings: ScoringSettings) -> None:
    together: dict[Scorer, list[MetricSpec]] = {}
    for spec in metrics:
        together.setdefault(METRICS[spec.metric].scorer, []).append(spec)
    for scorer, specs in together.items():
        for spec, scores in zip(specs, scorer(samples, specs, settings), strict=True):
            low, high = METRICS[spec.metric].bounds
            for sample, score in zip(samples, scores, strict=True):
                sample.scores[spec.name] = _without_rounding(float(score), low, high)


def estimate_metrics(samples: Sequence[Sample], metrics: Sequence[MetricSpec]) -> list[MetricRow]:
    """Each metric over all samples and over each group, the whole first, then the groups by name.

    The whole weighs every sample alike, which is the harness's mean of groups weighted by size. Where
    samples name a cluster, errors and intervals are clustered. With several outputs an item they are those of
    the items' means, which have the randomness of the outputs in them. An evaluation in which any sample has
    an error is not scored at all (its value would depend on which items failed): the list is then empty, as
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
    outputs = max(len(samples[0].outputs), 1)
    rows: list[MetricRow] = []
    for spec in metrics:
        metric = METRICS[spec.metric]
        statistics = metric.statistics(samples, spec)
        of_outputs = None
        if outputs > 1 and metric.aggregation is None and spec.of is None:
            of_outputs = np.array([[output.scores[spec.name] for output in s.outputs] for s in samples])
        for name in names:
            members = np.array(groups[name])
            clusters = [samples[index].cluster for index in groups[name]]
            estimate = metric.estimate(statistics[members], clusters, outputs)
            if of_outputs is not None:
                estimate = replace(estimate, sampling_share=sampling_share(of_outputs[members]))
            rows.append(MetricRow(spec.name, name, estimate))
    return rows


def comparable(
    samples: Sequence[Sample], name: str, declared: Sequence[MetricSpec], task: str | None
) -> tuple[Scores, tuple[float, float]]:
    """What two versions are compared by on the metric that results call `name`, and the range that it has.

    Of a metric that weighs texts by their length (perplexities, bits per byte) it is nats a word or byte,
    weighted by the words or bytes: a tolerance of 0.02 is then 2 % of a perplexity. Of one that is not known
    here it is its scores.
    """
    from eval_assets.statistics.verdicts import Scores

    metric, spec = metric_named(name, declared)
    ids = [sample.sample_id for sample in samples]
    clusters = [sample.cluster for sample in samples]
    if task == "perplexity" and metric is not None and metric.aggregation is not None:
        nats, lengths = metric.aggregation.statistics(samples, spec).T
        return Scores(ids, nats / lengths, clusters, lengths), UNBOUNDED
    scores = [sample.scores.get(name) for sample in samples]
    return Scores(ids, scores, clusters), UNBOUNDED if metric is None else metric.bounds


def weighs_texts(name: str, declared: Sequence[MetricSpec], task: str | None) -> bool:
    """Whether the metric weighs texts by their length, so that `comparable` gives nats and not its scores.

    One that is not known here is taken to do so in a benchmark of texts.
    """
    metric, _ = metric_named(name, declared)
    return task == "perplexity" and (metric is None or metric.aggregation is not None)


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
