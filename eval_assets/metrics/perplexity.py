"""How surprising a text is, by word, by byte, by target.

Words and bytes are counted as the harness counts them, over the text that `Sample.references` ends with:
WikiText is scored detokenized and counted as published. The value of a whole weighs documents by their
length; a sample's own score is the same quantity of that sample alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval_assets.metrics.metric import Aggregation, Metric, each, needing
from eval_assets.statistics import Clusters, Floats, ratio_estimate
from resources.records import Estimate, Sample

if TYPE_CHECKING:
    from eval_assets.suite.spec import MetricSpec

_LARGEST_EXPONENT = 300.0
"""A perplexity stops growing at e^300, so that differences and variances of perplexities stay finite."""


def _words(text: str) -> int:
    return len(re.split(r"\s+", text))


def _bytes(text: str) -> int:
    # An empty text has no byte to divide by; its log-likelihood is 0 whatever it is divided by.
    return max(len(text.encode()), 1)


def _targets(_: str) -> int:
    return 1


def _exp(exponent: float) -> float:
    return math.exp(min(exponent, _LARGEST_EXPONENT))


def _bits(nats: float) -> float:
    return nats / math.log(2)


def _nats(sample: Sample) -> float:
    return -math.fsum(sample.loglikelihoods)


def _metric(
    name: str, description: str, low: float, unit: Callable[[str], int], shown: Callable[[float], float]
) -> Metric:
    """A metric that shows ``nats / unit`` in another form; `shown` is exp or a factor."""

    def score(sample: Sample, _: MetricSpec) -> float:
        return shown(_nats(sample) / unit(sample.references[-1]))

    def statistics(samples: Sequence[Sample], _: MetricSpec) -> Floats:
        return np.array(
            [(_nats(sample), unit(sample.references[-1])) for sample in samples], dtype=np.float64
        )

    def estimate(statistics: Floats, clusters: Clusters) -> Estimate:
        nats = ratio_estimate(statistics[:, 0], statistics[:, 1], clusters)
        value = shown(nats.value)
        if nats.stderr is None or nats.ci_low is None or nats.ci_high is None:
            return Estimate(value, None, None, None, nats.n)
        # Delta method; the interval is made where the estimate is closest to normal, on the scale of nats.
        slope = value if shown is _exp else shown(1.0)
        return Estimate(
            value,
            nats.stderr * slope,
            max(shown(nats.ci_low), low),
            max(shown(nats.ci_high), low),
            nats.n,
        )

    return Metric(
        name=name,
        description=description,
        higher_is_better=False,
        bounds=(low, math.inf),
        needs=needing(task="perplexity"),
        reads=("loglikelihoods", "references"),
        scorer=each(score),
        aggregation=Aggregation(statistics, estimate),
    )


METRICS = (
    _metric("word_perplexity", "exp of the nats per word of the original text", 1.0, _words, _exp),
    _metric("byte_perplexity", "exp of the nats per UTF-8 byte of the original text", 1.0, _bytes, _exp),
    _metric("bits_per_byte", "bits per UTF-8 byte of the original text", 0.0, _bytes, _bits),
    _metric("perplexity", "exp of the mean nats of a target (LAMBADA's)", 1.0, _targets, _exp),
)
