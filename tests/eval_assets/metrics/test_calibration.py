"""Brier score and expected calibration error against scikit-learn and a plain loop."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from eval_assets.metrics import ScoringSettings, estimate_metrics, score_samples
from eval_assets.suite.spec import MetricSpec
from resources.records import Estimate, Sample

MakeSample = Callable[..., Sample]
BRIER, ECE = MetricSpec(metric="brier"), MetricSpec(metric="ece")


def answered(
    make_sample: MakeSample, n: int, sharpness: float = 2.0
) -> tuple[list[Sample], NDArray[np.float64]]:
    """Samples of four choices, and their probabilities."""
    generator = np.random.default_rng(4)
    loglikelihoods = generator.normal(scale=sharpness, size=(n, 4)) - 30
    targets = generator.integers(0, 4, n)
    samples = [
        make_sample(loglikelihoods=row.tolist(), target=int(target), index=index)
        for index, (row, target) in enumerate(zip(loglikelihoods, targets, strict=True))
    ]
    score_samples(samples, [BRIER, ECE], ScoringSettings())
    return samples, softmax(loglikelihoods, axis=1)


def whole(samples: list[Sample], spec: MetricSpec) -> Estimate:
    return estimate_metrics(samples, [spec])[0].estimate


def plain_calibration_error(confidences: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Guo et al. 2017, equation 3, with 15 bins open below and closed above."""
    error = 0.0
    for m in range(1, 16):
        inside = (confidences > (m - 1) / 15) & (confidences <= m / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidences[inside].mean())
            error += inside.sum() / len(confidences) * gap
    return error


def test_brier_is_that_of_scikit_learn(make_sample: MakeSample) -> None:
    samples, probabilities = answered(make_sample, 200)
    targets = [sample.target for sample in samples]
    expected = brier_score_loss(targets, probabilities, labels=[0, 1, 2, 3], scale_by_half=False)
    assert whole(samples, BRIER).value == pytest.approx(expected, rel=1e-12)


def test_brier_reaches_from_0_to_2(make_sample: MakeSample) -> None:
    samples = [make_sample(loglikelihoods=[0.0, -1000.0], target=target) for target in (0, 1)]
    score_samples(samples, [BRIER], ScoringSettings())
    assert [sample.scores["brier"] for sample in samples] == [0.0, 2.0]


@pytest.mark.parametrize("sharpness", [0.1, 2.0, 20.0])
def test_ece_is_the_plain_loop_over_bins(make_sample: MakeSample, sharpness: float) -> None:
    samples, probabilities = answered(make_sample, 500, sharpness)
    right = probabilities.argmax(axis=1) == [sample.target for sample in samples]
    estimate = whole(samples, ECE)
    assert estimate.value == pytest.approx(
        plain_calibration_error(probabilities.max(axis=1), right), rel=1e-9
    )
    assert estimate.stderr is not None
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    assert 0 <= estimate.ci_low <= estimate.value <= estimate.ci_high <= 1
    assert 0 < estimate.stderr < 0.05


def test_a_sure_model_that_is_always_right_is_calibrated_and_one_that_is_always_wrong_is_not(
    make_sample: MakeSample,
) -> None:
    for target, error in ((0, 0.0), (1, 1.0)):
        samples = [make_sample(loglikelihoods=[0.0, -1000.0], target=target) for _ in range(10)]
        score_samples(samples, [ECE], ScoringSettings())
        assert whole(samples, ECE) == Estimate(error, 0.0, error, error, 10)
        assert {sample.scores["ece"] for sample in samples} == {error}


def test_over_and_underconfidence_cancel_within_a_bin_and_not_between_bins(make_sample: MakeSample) -> None:
    """Half right at a confidence of one half is calibrated, though no single answer is."""
    even = [make_sample(loglikelihoods=[-1.0, -1.0], target=index % 2) for index in range(10)]
    score_samples(even, [ECE], ScoringSettings())
    assert whole(even, ECE).value == pytest.approx(0)
    assert [sample.scores["ece"] for sample in even] == [0.5] * 10
    sure = [make_sample(loglikelihoods=[0.0, -1000.0], target=1)]
    unsure = [make_sample(loglikelihoods=[-1.0, -1.0], target=0)]
    score_samples(sure + unsure, [ECE], ScoringSettings())
    assert whole(sure + unsure, ECE).value == pytest.approx((1 + 0.5) / 2)


def test_bins_are_open_below_and_closed_above(make_sample: MakeSample) -> None:
    """A confidence of 1 shares the last bin with 0.95; one of 3/15 does not share that of 0.21."""

    def error(*answers: tuple[list[float], int]) -> float:
        samples = [
            make_sample(loglikelihoods=np.log(probabilities).tolist(), target=target, index=index)
            for index, (probabilities, target) in enumerate(answers)
        ]
        score_samples(samples, [ECE], ScoringSettings())
        return whole(samples, ECE).value

    assert error(([1 - 1e-17, 1e-17], 1), ([0.95, 0.05], 0)) == pytest.approx((1 - 0.05) / 2)
    fifth = [0.2] * 5
    assert error((fifth, 4), ([0.21, *[0.79 / 4] * 4], 0)) == pytest.approx((0.2 + 0.79) / 2)


@given(st.lists(st.floats(-1e4, 0), min_size=1, max_size=6), st.data())
def test_scores_stay_in_their_range(
    make_sample: MakeSample, loglikelihoods: list[float], data: st.DataObject
) -> None:
    target = data.draw(st.integers(0, len(loglikelihoods) - 1))
    sample = make_sample(loglikelihoods=loglikelihoods, target=target)
    score_samples([sample], [BRIER, ECE], ScoringSettings())
    assert 0 <= sample.scores["brier"] <= 2
    assert 0 <= sample.scores["ece"] <= 1
    assert 0 <= whole([sample], ECE).value <= 1
