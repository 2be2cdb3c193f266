"""What a metric is: how one answered sample is scored and how many samples become one estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from eval_assets.statistics import Clusters, Floats, mean_estimate
from resources.records import Estimate, Sample

if TYPE_CHECKING:  # the package that holds the benchmarks imports this one to validate them
    from eval_assets.suite.spec import MetricSpec, TaskType


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """What scoring needs besides the answers.

    `bertscore_model` is a folder or a hub id, empty for none. `bertscore_layers` is the hidden layer that
    BERTScore compares; None is the one that bert-score recommends for a model it knows, otherwise the last.
    `device` is a torch device name or ``auto``.
    """

    bertscore_model: str = ""
    bertscore_layers: int | None = None
    device: str = "auto"


Scorer: TypeAlias = "Callable[[Sequence[Sample], Sequence[MetricSpec], ScoringSettings], list[list[float]]]"
"""Scores samples for several metrics that share their work; one list of scores for each of the metrics."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How samples become one value where the mean of their scores isn't it.

    `statistics` gives one row a sample; `estimate` turns the rows of any set of samples into a value. Of an
    item with several outputs the rows are summed: its outputs are as many members of the corpus.
    """

    statistics: Callable[[Sequence[Sample], MetricSpec], Floats]
    estimate: Callable[[Floats, Clusters], Estimate]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that a benchmark may name.

    `needs` has a key for each task type that the metric fits: the fields that an item must have for it.
    `reads` are the fields of a sample without which it can't be scored, where that depends on the sample
    as a function of it. `options` are the fields of a
    MetricSpec that it takes besides its name. `bounds` is the range of possible values; a score of a
    `proportion` is 0 or 1. `higher_is_better` is None for what is only a description.
    """

    name: str
    description: str
    higher_is_better: bool | None
    bounds: tuple[float, float]
    needs: Mapping[TaskType, frozenset[str]]
    scorer: Scorer
    reads: tuple[str, ...] | Callable[[Sample], tuple[str, ...]] = ()
    options: frozenset[str] = frozenset()
    proportion: bool = False
    aggregation: Aggregation | None = None

    @property
    def tasks(self) -> frozenset[TaskType]:
        """The task types that this metric fits."""
        return frozenset(self.needs)

    def missing(self, sample: Sample) -> str | None:
        """The first field that the sample lacks for this metric."""
        reads = self.reads(sample) if callable(self.reads) else self.reads
        return next((field for field in reads if not _present(getattr(sample, field))), None)

    def statistics(self, samples: Sequence[Sample], spec: MetricSpec) -> Floats:
        """What `estimate` needs of each sample, shape (samples, k), or (samples,) where that is the score."""
        if self.aggregation is not None:
            answers = [answer for sample in samples for answer in answers_of(sample)]
            rows = self.aggregation.statistics(answers, spec)
            summed: Floats = rows.reshape(len(samples), -1, rows.shape[1]).sum(axis=1)
            return summed
        return np.array([sample.scores[spec.name] for sample in samples], dtype=np.float64)

    def estimate(self, statistics: Floats, clusters: Clusters, outputs: int = 1) -> Estimate:
        """The metric over the samples that `statistics` belong to, which have so many outputs each."""
        if self.aggregation is not None:
            return self.aggregation.estimate(statistics, clusters)
        return mean_estimate(statistics, clusters, self.proportion, self.bounds, outputs)


def answers_of(sample: Sample) -> list[Sample]:
    """The sample itself, or, where it has several outputs, one for each as if it were the only one."""
    if not sample.outputs:
        return [sample]
    return [
        replace(
            sample,
            output=output.text,
            finish_reason=output.finish_reason,
            output_tokens=output.tokens,
            outputs=(),
            scores={},
        )
        for output in sample.outputs
    ]


def each(score: Callable[[Sample, MetricSpec], float]) -> Scorer:
    """The scorer of a metric that looks at one sample at a time."""

    def scorer(
        samples: Sequence[Sample], specs: Sequence[MetricSpec], _: ScoringSettings
    ) -> list[list[float]]:
        return [[score(sample, spec) for sample in samples] for spec in specs]

    return scorer


def needing(*fields: str, task: TaskType = "generation") -> Mapping[TaskType, frozenset[str]]:
    """The `needs` of a metric for one task type."""
    return {task: frozenset(fields)}


def softmax(loglikelihoods: Sequence[float]) -> list[float]:
    """Probabilities of the choices, given that one of them is taken."""
    highest = max(loglikelihoods)
    weights = [math.exp(value - highest) for value in loglikelihoods]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def likeliest(choices: Sequence[str], loglikelihoods: Sequence[float]) -> int | None:
    """Which choice a model finds the likeliest; None where they have no log-likelihoods."""
    return argmax(loglikelihoods) if len(loglikelihoods) == len(choices) > 0 else None


def argmax(values: Sequence[float]) -> int:
    """The index of the highest value, the first of several (as numpy's, on which the harness relies)."""
    return max(range(len(values)), key=values.__getitem__)


def _present(value: object) -> bool:
    # An empty output is an answer, and target 0 is a choice; an empty list is nothing to compare with.
    return len(value) > 0 if isinstance(value, (list, tuple)) else value is not None
