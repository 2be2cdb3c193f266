"""Accuracy by log-likelihood, and TruthfulQA's two scores."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

Score = Callable[..., float]
LOGLIKELIHOODS = st.lists(st.floats(-1e4, 0), min_size=2, max_size=8)


@given(LOGLIKELIHOODS, st.data())
def test_accuracies_are_numpys_argmax_over_the_three_lengths(
    score: Score, loglikelihoods: list[float], data: st.DataObject
) -> None:
    choices = data.draw(
        st.lists(
            st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable()),
            min_size=len(loglikelihoods),
            max_size=len(loglikelihoods),
        )
    )
    target = data.draw(st.integers(0, len(choices) - 1))
    lengths = {
        "acc": np.ones(len(choices)),
        "acc_norm": np.array([len(choice) for choice in choices]),
        "acc_bytes": np.array([len(choice.encode("utf-8")) for choice in choices]),
    }
    for metric, length in lengths.items():
        expected = float(np.argmax(np.array(loglikelihoods) / length) == target)
        assert score(metric, loglikelihoods=loglikelihoods, choices=choices, target=target) == expected


def test_each_length_can_choose_another_answer(score: Score) -> None:
    """ "ß" is one character and two bytes, so that the three accuracies disagree on these choices."""
    fields = {"loglikelihoods": [-4.0, -6.0, -7.0], "choices": ["ab", "abcd", "ßßßß"]}
    assert [score("acc", target=i, **fields) for i in range(3)] == [1, 0, 0]
    assert [score("acc_norm", target=i, **fields) for i in range(3)] == [0, 1, 0]
    assert [score("acc_bytes", target=i, **fields) for i in range(3)] == [0, 0, 1]


def test_the_first_of_equal_choices_is_taken(score: Score) -> None:
    assert score("acc", loglikelihoods=[-2.0, -1.0, -1.0], target=1) == 1
    assert score("acc", loglikelihoods=[-2.0, -1.0, -1.0], target=2) == 0


def test_an_empty_choice_does_not_divide_by_zero(score: Score) -> None:
    assert score("acc_norm", loglikelihoods=[-3.0, -4.0], choices=["", "four"], target=1) == 1
    assert score("acc_bytes", loglikelihoods=[-0.5, -4.0], choices=["", "four"], target=0) == 1


@pytest.mark.parametrize("metric", ["acc", "greedy_acc"])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_target_text_is_right_where_greedy_decoding_gives_it(
    score: Score, metric: str, greedy: bool
) -> None:
    assert score(metric, loglikelihoods=[-0.1], is_greedy=[greedy], references=[" word"]) == greedy


def test_greedy_flags_of_choices_do_not_decide_accuracy(score: Score) -> None:
    assert score("acc", loglikelihoods=[-2.0, -1.0], is_greedy=[True, False], target=1) == 1


@given(LOGLIKELIHOODS, st.data())
def test_mc2_is_the_true_share_of_the_probability(
    score: Score, loglikelihoods: list[float], data: st.DataObject
) -> None:
    n = len(loglikelihoods)
    labels = data.draw(st.lists(st.sampled_from([0, 1]), min_size=n, max_size=n))
    weights = np.exp(np.array(loglikelihoods, dtype=np.longdouble) - max(loglikelihoods))
    expected = float(weights[np.array(labels) == 1].sum() / weights.sum())
    value = score("mc2", loglikelihoods=loglikelihoods, labels=labels)
    assert value == pytest.approx(expected, abs=1e-12)
    assert 0 <= value <= 1


def test_mc2_survives_answers_whose_probability_underflows(score: Score) -> None:
    """exp(-2000) is 0 in floating point: the plain quotient would be 0/0."""
    value = score("mc2", loglikelihoods=[-2000.0, -2000.0, -2001.0], labels=[1, 0, 0])
    assert value == pytest.approx(1 / (2 + np.exp(-1)))


def test_mc1_compares_the_best_answer_with_the_false_ones_only(score: Score) -> None:
    labels = [1, 1, 0, 0]
    assert score("mc1", loglikelihoods=[-2.0, -1.0, -3.0, -4.0], labels=labels, target=0) == 1
    assert score("mc1", loglikelihoods=[-2.0, -1.0, -1.5, -4.0], labels=labels, target=0) == 0
    assert score("mc1", loglikelihoods=[-2.0, -1.0, -1.5, -4.0], labels=labels, target=1) == 1


@given(LOGLIKELIHOODS)
def test_mc1_is_accuracy_where_the_best_answer_comes_first_and_is_the_only_true_one(
    score: Score, loglikelihoods: list[float]
) -> None:
    labels = [1] + [0] * (len(loglikelihoods) - 1)
    mc1 = score("mc1", loglikelihoods=loglikelihoods, labels=labels, target=0)
    assert mc1 == score("acc", loglikelihoods=loglikelihoods, target=0)
