"""Ranks and shades: nothing looks better than it is shown to be."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_assets.report.ranking import STEPS, Scored, ranks, shades


def scored(**values: tuple[float, float]) -> list[Scored]:
    """Versions by name, each with its interval; the value is in the middle."""
    return [Scored(name, (low + high) / 2, low, high) for name, (low, high) in values.items()]


INTERVALS = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0.001, 0.5)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    min_size=1,
    max_size=12,
)


def test_overlapping_intervals_share_a_rank_whatever_the_scores() -> None:
    assert ranks(scored(a=(0.3, 0.5), b=(0.4, 0.6), c=(0.45, 0.7)), True, {}) == {"a": 1, "b": 1, "c": 1}


def test_a_version_ranks_below_those_whose_whole_interval_is_better() -> None:
    versions = scored(a=(0.1, 0.2), b=(0.3, 0.5), c=(0.4, 0.6), d=(0.55, 0.8))
    assert ranks(versions, True, {}) == {"a": 4, "b": 2, "c": 1, "d": 1}
    assert ranks(versions, False, {}) == {"a": 1, "b": 2, "c": 2, "d": 3}


def test_a_verdict_on_the_same_items_counts_instead_of_two_intervals() -> None:
    """A paired test sees what two intervals can't, and may not bear out what they seem to show."""
    overlapping = scored(old=(0.4, 0.6), new=(0.45, 0.65))
    assert ranks(overlapping, True, {("new", "old"): "better"}) == {"old": 2, "new": 1}
    assert ranks(overlapping, True, {("new", "old"): "worse"}) == {"old": 1, "new": 2}
    for verdict in ("equivalent", "not worse", "undecided"):
        assert ranks(overlapping, True, {("new", "old"): verdict}) == {"old": 1, "new": 1}
        apart = scored(old=(0.1, 0.2), new=(0.3, 0.4))
        assert ranks(apart, True, {("new", "old"): verdict}) == {"old": 1, "new": 1}


def test_a_score_without_an_interval_has_no_rank_and_beats_nobody() -> None:
    versions = [*scored(a=(0.1, 0.2)), Scored("b", 0.9, None, None)]
    assert ranks(versions, True, {("b", "a"): "better"}) == {"a": 1, "b": None}


def test_an_interval_of_no_width_claims_nothing() -> None:
    """Twenty answers that score the same, or an old record of 0 right of 64, are no exact measurement."""
    versions = scored(a=(0.0, 0.0), b=(0.1, 0.2), c=(0.15, 0.3), d=(0.9, 0.9))
    for higher in (True, False):
        assert ranks(versions, higher, {("b", "a"): "better"}) == {"a": None, "b": 1, "c": 1, "d": None}


@given(INTERVALS, st.booleans())
def test_the_rank_is_one_plus_the_versions_that_are_shown_to_be_better(
    intervals: list[tuple[float, float]], higher: bool
) -> None:
    versions = scored(**{f"v{at}": interval for at, interval in enumerate(intervals)})
    found = ranks(versions, higher, {})
    for one in versions:
        better = sum(
            (other.low > one.high) if higher else (other.high < one.low)  # type: ignore[operator]  # all have one
            for other in versions
        )
        assert found[one.model] == 1 + better


@given(INTERVALS, st.booleans())
def test_shades_keep_the_order_of_the_scores(intervals: list[tuple[float, float]], higher: bool) -> None:
    versions = scored(**{f"v{at}": interval for at, interval in enumerate(intervals)})
    found = shades(versions, higher)
    assert set(found.values()) <= set(range(STEPS))
    ordered = sorted(versions, key=lambda one: one.value, reverse=not higher)
    steps = [found[one.model] for one in ordered]
    assert steps == sorted(steps)


def test_differences_within_the_intervals_have_nearly_the_same_shade() -> None:
    """A scale from the lowest to the highest would paint noise as a landscape."""
    noise = scored(a=(0.40, 0.60), b=(0.41, 0.61), c=(0.42, 0.62))
    assert max(shades(noise, True).values()) - min(shades(noise, True).values()) <= 1
    real = scored(a=(0.10, 0.12), b=(0.50, 0.52), c=(0.90, 0.92))
    assert shades(real, True) == {"a": 0, "b": STEPS // 2, "c": STEPS - 1}


def test_equal_scores_and_a_single_one_are_in_the_middle() -> None:
    assert shades([Scored("a", 0.5, None, None)], True) == {"a": STEPS // 2}
    assert shades([], True) == {}


@pytest.mark.parametrize("value", [math.pi, 1e12])
def test_scores_of_any_size_have_a_shade(value: float) -> None:
    assert shades(scored(a=(value, value), b=(2 * value, 2 * value)), False) == {"a": STEPS - 1, "b": 0}
