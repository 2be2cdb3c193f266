"""Perplexities by word, byte and target, and bits per byte."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from eval_assets.metrics import ScoringSettings, estimate_metrics, score_samples
from eval_assets.suite.spec import MetricSpec
from resources.records import Estimate, Sample

MakeSample = Callable[..., Sample]
NAMES = ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity")
SPECS = [MetricSpec(metric=name) for name in NAMES]
TEXTS = (" A page of six words  ", "Ünïcödé — 東京", "one", "two\nlines here, and\tmore of it")
NATS = (31.5, 48.25, 2.0, 77.0)


def documents(make_sample: MakeSample) -> list[Sample]:
    samples = [
        make_sample(loglikelihoods=[-nats], references=["shown otherwise", text], index=index)
        for index, (text, nats) in enumerate(zip(TEXTS, NATS, strict=True))
    ]
    score_samples(samples, SPECS, ScoringSettings())
    return samples


def estimates(samples: list[Sample]) -> dict[str, Estimate]:
    return {row.metric: row.estimate for row in estimate_metrics(samples, SPECS)}


def test_the_whole_is_what_the_harness_computes(make_sample: MakeSample) -> None:
    """Sums over sums: long documents weigh more, and the last reference is the one that is counted."""
    words = sum(len(re.split(r"\s+", text)) for text in TEXTS)
    size = sum(len(text.encode("utf-8")) for text in TEXTS)
    found = estimates(documents(make_sample))
    assert words == 7 + 3 + 1 + 7
    assert found["word_perplexity"].value == pytest.approx(math.exp(sum(NATS) / words))
    assert found["byte_perplexity"].value == pytest.approx(math.exp(sum(NATS) / size))
    assert found["bits_per_byte"].value == pytest.approx(sum(NATS) / size / math.log(2))
    assert found["perplexity"].value == pytest.approx(math.exp(sum(NATS) / len(NATS)))


def test_a_samples_score_is_the_metric_of_that_sample_alone(make_sample: MakeSample) -> None:
    for sample in documents(make_sample):
        for name, estimate in estimates([sample]).items():
            assert sample.scores[name] == pytest.approx(estimate.value)
            assert estimate.stderr is None


def test_a_text_without_another_form_is_counted_itself(make_sample: MakeSample) -> None:
    sample = make_sample(loglikelihoods=[-8.0 * math.log(2)], references=["8 bytes!"])
    score_samples([sample], SPECS, ScoringSettings())
    assert sample.scores["bits_per_byte"] == pytest.approx(1.0)
    assert sample.scores["byte_perplexity"] == pytest.approx(2.0)
    assert sample.scores["word_perplexity"] == pytest.approx(16.0)


def test_errors_and_intervals_are_those_of_a_bootstrap_over_documents(make_sample: MakeSample) -> None:
    generator = np.random.default_rng(8)
    words = generator.integers(20, 400, 300)
    nats = words * generator.normal(3.0, 0.5, 300)
    samples = [
        make_sample(loglikelihoods=[-n], references=["w " * (w - 1) + "w"])
        for n, w in zip(nats.tolist(), words.tolist(), strict=True)
    ]
    score_samples(samples, SPECS, ScoringSettings())
    estimate = estimates(samples)["word_perplexity"]
    sampled = stats.bootstrap(
        (nats, words),
        lambda a, b, axis: np.exp(a.sum(axis) / b.sum(axis)),
        paired=True,
        n_resamples=2000,
        rng=np.random.default_rng(1),
    )
    assert estimate.stderr == pytest.approx(sampled.standard_error, rel=0.06)
    interval = sampled.confidence_interval
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((interval.low, interval.high), rel=0.01)
    byte, bits = estimates(samples)["byte_perplexity"], estimates(samples)["bits_per_byte"]
    assert bits.value == pytest.approx(math.log2(byte.value))
    assert (bits.ci_low, bits.ci_high) == pytest.approx(
        (math.log2(byte.ci_low or math.nan), math.log2(byte.ci_high or math.nan))
    )
    assert bits.stderr == pytest.approx((byte.stderr or math.nan) / byte.value / math.log(2))


def test_documents_of_one_cluster_widen_the_interval(make_sample: MakeSample) -> None:
    samples = documents(make_sample) * 10
    plain = estimates(samples)["word_perplexity"].stderr or 0
    for index, sample in enumerate(documents(make_sample)):
        for copy in samples[index::4]:
            copy.cluster = str(sample.index)
    assert (estimates(samples)["word_perplexity"].stderr or 0) > 2 * plain


def test_an_absurdly_unlikely_target_has_a_finite_perplexity(make_sample: MakeSample) -> None:
    """exp(5000) overflows, and an infinite score would make every comparison NaN."""
    samples = [make_sample(loglikelihoods=[-5000.0], references=["x"]) for _ in range(3)]
    score_samples(samples, SPECS, ScoringSettings())
    assert all(math.isfinite(value) for sample in samples for value in sample.scores.values())
    found = estimates(samples)["perplexity"]
    assert math.isfinite(found.value)
    assert found.stderr == 0


def test_an_empty_text_has_a_perplexity_of_1(make_sample: MakeSample) -> None:
    sample = make_sample(loglikelihoods=[0.0], references=[""])
    score_samples([sample], SPECS, ScoringSettings())
    assert sample.scores == {"word_perplexity": 1, "byte_perplexity": 1, "bits_per_byte": 0, "perplexity": 1}
