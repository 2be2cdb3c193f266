"""Looks against published boundaries, and decisions that stop early without being wrong more often."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from eval_assets.statistics.sequential import Looks, _Walk, decide
from eval_assets.statistics.verdicts import ERROR, Comparison, Scores, compare, family_verdict, verdict


def equally_spaced(looks: int) -> tuple[float, ...]:
    return tuple((index + 1) / looks for index in range(looks))


def crossing_probability(shares: Sequence[float], critical_values: Sequence[float]) -> float:
    """The chance that a Brownian motion B has ``B(t) / sqrt(t)`` above the critical value at some share t."""
    walk, total = _Walk(), 0.0
    for share, value in zip(shares, critical_values, strict=True):
        bound = value * math.sqrt(share)
        total += walk.above(share, bound)
        walk = walk.stopped(share, bound)
    return total


def counted(wins: int, losses: int, n: int) -> Comparison:
    ids = [str(index) for index in range(n)]
    baseline = [0.0] * wins + [1.0] * (n - wins)
    candidate = [1.0] * wins + [0.0] * losses + [1.0] * (n - wins - losses)
    return compare(Scores(ids, baseline), Scores(ids, candidate), higher_is_better=True, bounds=(0.0, 1.0))


class TestBoundaries:
    # Jennison and Turnbull (2000), tables 2.1 and 2.3, two-sided 5 %.
    @pytest.mark.parametrize(
        ("looks", "pocock", "obrien_fleming"),
        [(2, 2.178, 1.977), (3, 2.289, 2.004), (4, 2.361, 2.024), (5, 2.413, 2.040), (10, 2.555, 2.087)],
    )
    def test_published_constants_spend_the_whole_error(
        self, looks: int, pocock: float, obrien_fleming: float
    ) -> None:
        shares = equally_spaced(looks)
        assert crossing_probability(shares, [pocock] * looks) == pytest.approx(0.025, abs=5e-5)
        falling = [obrien_fleming / math.sqrt(share) for share in shares]
        assert crossing_probability(shares, falling) == pytest.approx(0.025, abs=5e-5)

    def test_levels_are_the_published_ones_of_lan_and_demets(self) -> None:
        """Their Pocock-type spending function for five equal looks, two-sided 5 % (Reboussin et al. 2000)."""
        values = -special.ndtri(Looks(equally_spaced(5)).levels())
        assert values == pytest.approx([2.4380, 2.4268, 2.4101, 2.3966, 2.3859], abs=1e-3)

    def test_one_look_is_no_correction(self) -> None:
        assert Looks((1.0,)).levels() == pytest.approx((ERROR,))

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.integers(5, 95), min_size=0, max_size=6, unique=True).map(sorted),
        st.sampled_from([0.005, 0.025, 0.05]),
    )
    def test_any_looks_spend_the_error_and_no_more(self, percents: list[int], error: float) -> None:
        looks = Looks((*(percent / 100 for percent in percents), 1.0), error)
        crossed = crossing_probability(looks.shares, -special.ndtri(looks.levels()))
        assert crossed == pytest.approx(error, rel=1e-4)

    def test_brownian_paths_cross_as_often_as_computed(self) -> None:
        generator = np.random.default_rng(4)
        looks = Looks()
        steps = np.sqrt(np.diff((0.0, *looks.shares)))
        paths = (generator.normal(size=(200_000, len(steps))) * steps).cumsum(axis=1)
        crossed = (paths / np.sqrt(looks.shares) > -special.ndtri(looks.levels())).any(axis=1)
        interval = stats.binomtest(int(crossed.sum()), len(crossed)).proportion_ci(0.999)
        assert interval.low < ERROR < interval.high

    @pytest.mark.parametrize("tuning", [0.01, 0.05, 0.2, 1.0])
    def test_it_needs_less_than_an_always_valid_sequence_at_every_look(self, tuning: float) -> None:
        """The reason for planned looks: Robbins's normal mixture holds at every item, and pays for it.

        ``sqrt((1 + r / t) log((t + r) / (r a^2)))`` standard errors at share t, two-sided error a.
        """
        looks = Looks()
        always = [
            math.sqrt((1 + tuning / t) * math.log((t + tuning) / (tuning * (2 * ERROR) ** 2)))
            for t in looks.shares
        ]
        assert min(always) > 2.9
        assert max(-special.ndtri(looks.levels())) < 2.6

    @pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.4, 1.0), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 1.2)])
    def test_shares_that_do_not_rise_to_1_are_refused(self, shares: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="shares that rise"):
            Looks(shares)

    def test_an_error_of_half_is_refused(self) -> None:
        with pytest.raises(ValueError, match="an error between"):
            Looks(error=0.5)

    def test_sizes_are_whole_items_and_end_with_all(self) -> None:
        assert Looks().sizes(64) == (10, 16, 23, 32, 45, 64)
        assert Looks((0.1, 0.7, 1.0)).sizes(10) == (1, 7, 10)


class TestOverallP:
    @pytest.mark.parametrize("look", range(6))
    def test_it_is_the_error_at_which_the_look_would_just_reject(self, look: int) -> None:
        for error in (0.001, 0.01, 0.04):
            level = Looks(error=error).levels()[look]
            assert Looks().overall_p(look, level) == pytest.approx(error, rel=0.01)

    @settings(deadline=None)
    @given(st.integers(0, 5), st.floats(0, 1))
    def test_it_is_on_the_same_side_of_the_error_as_p_is_of_the_level(self, look: int, p: float) -> None:
        looks = Looks()
        assert (looks.overall_p(look, p) <= looks.error) == (p <= looks.levels()[look])
        assert p <= looks.overall_p(look, p) or p < 1e-6


class TestDecisions:
    def test_it_goes_on_while_nothing_is_decided(self) -> None:
        decision = decide(counted(3, 4, 100), 0.05, look=0)
        assert not decision.stop
        assert decision.verdict.name == "undecided"
        assert decision.share == 0.15

    def test_it_stops_where_the_candidate_is_worse(self) -> None:
        decision = decide(counted(1, 14, 100), 0.05, look=0)
        assert decision.stop
        assert decision.verdict.name == "worse"

    def test_it_stops_where_the_candidate_passes(self) -> None:
        decision = decide(counted(2, 2, 500), 0.05, look=2)
        assert decision.stop
        assert decision.verdict.name == "equivalent"
        assert decision.verdict.passed

    def test_the_last_look_ends_it_whatever_it_says(self) -> None:
        decision = decide(counted(3, 4, 64), 0.05, look=5)
        assert decision.stop
        assert decision.verdict.name == "undecided"

    def test_an_early_look_asks_for_more_than_a_full_run(self) -> None:
        """Six losses and no win are 'worse' in a full run; said at every look it were wrong too often."""
        found = counted(0, 6, 200)
        assert verdict(found, 0.01).name == "worse"
        early = decide(found, 0.01, look=0)
        assert early.verdict.name == "undecided"
        assert early.verdict.p_worse > ERROR
        full = verdict(found, 0.01)
        assert (early.verdict.low or 0) < (full.low or 0)
        assert early.verdict.reason.startswith("undecided: difference -0.03 over 200 items, 98.85 % interval")

    def test_one_of_a_family_goes_on_until_it_fails_the_family(self) -> None:
        found = counted(1, 12, 100)
        assert decide(found, 0.05, look=2).stop
        decision = decide(found, 0.05, look=2, family=20)
        assert decision.verdict.name == "worse"
        assert not decision.stop

    def test_benchmarks_at_different_looks_are_one_family(self) -> None:
        first = decide(counted(1, 30, 100), 0.05, look=0).verdict
        second = decide(counted(10, 10, 1000), 0.05, look=5).verdict
        family = family_verdict({"first": first, "second": second})
        assert family.outcome == "failed"
        assert family.p_worse["first"] == pytest.approx(2 * first.p_worse)

    def test_a_look_that_there_is_not_is_refused(self) -> None:
        with pytest.raises(ValueError, match="looks 0 to 5, no look 6"):
            decide(counted(1, 1, 10), 0.05, look=6)
