"""Whether a model's probabilities of the choices can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_assets.metrics.metric import Aggregation, Metric, argmax, each, needing, softmax
from eval_assets.statistics import Clusters, Floats, bootstrap_estimate
from resources.records import Estimate, Sample

if TYPE_CHECKING:
    from eval_assets.suite.spec import MetricSpec

_BINS = 15
_SHARE = (0.0, 1.0)


def _overconfidence(sample: Sample) -> tuple[float, float]:
    """The probability of the choice that the model takes, and that less 1 where it is right."""
    probabilities = softmax(sample.loglikelihoods)
    prediction = argmax(probabilities)
    confidence = probabilities[prediction]
    return confidence, confidence - (prediction == sample.target)


def _brier(sample: Sample, _: MetricSpec) -> float:
    """The sum over the choices of (probability - 1 if right else 0) squared: Brier's own form, 0..2."""
    probabilities = softmax(sample.loglikelihoods)
    return math.fsum((p - (index == sample.target)) ** 2 for index, p in enumerate(probabilities))


def _bin_statistics(samples: Sequence[Sample], _: MetricSpec) -> Floats:
    """Shape (samples, bins + 1): the overconfidence in the column of the sample's bin, and a 1 to count."""
    rows = np.zeros((len(samples), _BINS + 1))
    rows[:, -1] = 1
    for row, sample in zip(rows, samples, strict=True):
        confidence, gap = _overconfidence(sample)
        # Bins are open below and closed above, as in Guo et al.; 1.0 belongs to the last.
        row[min(max(math.ceil(confidence * _BINS) - 1, 0), _BINS - 1)] = gap
    return rows


def _calibration_error(sums: NDArray[Any]) -> Floats:
    error: Floats = np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1]
    return error


def _estimate(statistics: Floats, clusters: Clusters) -> Estimate:
    return bootstrap_estimate(statistics, _calibration_error, clusters, _SHARE)


METRICS = (
    Metric(
        name="ece",
        description="expected calibration error of the likeliest choice, 15 bins of equal width "
        "(Naeini et al. 2015; Guo et al. 2017); a sample's own score is abs(confidence - right)",
        higher_is_better=False,
        bounds=_SHARE,
        needs=needing("target", task="multiple_choice"),
        reads=("target", "loglikelihoods"),
        scorer=each(lambda sample, _: abs(_overconfidence(sample)[1])),
        aggregation=Aggregation(_bin_statistics, _estimate),
    ),
    Metric(
        name="brier",
        description="Brier score over all choices, as the harness's brier_score: 0 best, 2 worst",
        higher_is_better=False,
        bounds=(0.0, 2.0),
        needs=needing("target", task="multiple_choice"),
        reads=("target", "loglikelihoods"),
        scorer=each(_brier),
    ),
)
