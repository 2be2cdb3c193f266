"""The score test of paired differences against published tables, scipy, statsmodels and closed forms."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from eval_assets.statistics import Floats
from eval_assets.statistics.paired import ENOUGH_DIFFERENCES, PairedTest

COUNTS = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 60)).filter(lambda c: sum(c) > 1)


def differences(wins: int, losses: int, ties: int) -> Floats:
    return np.repeat([1.0, -1.0, 0.0], [wins, losses, ties])


def tango_score(wins: int, losses: int, n: int, theta: float) -> float:
    """Tango (1998), equations 7 and 8, in closed form."""
    b = -wins - losses + (2 * n - wins + losses) * theta
    c = -losses * theta * (1 - theta)
    q = (math.sqrt(b * b - 8 * n * c) - b) / (4 * n)
    return (wins - losses - n * theta) / math.sqrt(n * (2 * q + theta * (1 - theta)))


class TestBinaryScores:
    def test_the_interval_is_the_published_one_of_tango(self) -> None:
        """Complete response before and after consolidation therapy (Cavo et al. 2012), 6 and 16 of 161; the
        value is that of Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8.
        """
        test = replace(PairedTest.of(differences(6, 16, 139), 1.0), degrees=math.inf)
        assert test.mean == pytest.approx(-0.0621, abs=5e-5)
        assert test._bound(0.025, -1.0) == pytest.approx(-0.1240, abs=5e-5)
        assert test._bound(0.025, 1.0) == pytest.approx(-0.0054, abs=5e-5)
        # Their exact conditional McNemar test.
        assert 2 * test.p_below(0.0) == pytest.approx(0.052479, abs=5e-7)

    def test_0_is_in_the_interval_unless_the_exact_test_rejects_it_too(self) -> None:
        """Tango's interval above ends at -0.0054, but the exact one-sided p is 0.026: not worse at 2.5 %."""
        interval = PairedTest.of(differences(6, 16, 139), 1.0).interval(0.025)
        assert interval is not None
        assert interval[0] == pytest.approx(-0.1240, abs=1e-3)
        assert interval[1] == 0.0

    @settings(deadline=None)
    @given(COUNTS, st.integers(-90, 90).filter(bool))
    def test_it_is_tangos_score_test(self, counts: tuple[int, int, int], percent: int) -> None:
        wins, losses, ties = counts
        n, theta = wins + losses + ties, percent / 100
        expected = tango_score(wins, losses, n, theta)
        test = replace(PairedTest.of(differences(*counts), 1.0), degrees=math.inf)
        assert test.p_below(theta) == pytest.approx(stats.norm.cdf(expected), rel=1e-6, abs=1e-12)
        assert test.p_above(theta) == pytest.approx(stats.norm.sf(expected), rel=1e-6, abs=1e-12)

    def test_it_is_tangos_score_test_where_newtons_first_step_lands_on_the_pole(self) -> None:
        """Five wins, three losses of 60 at -0.2: a step that is small for another reason than being done."""
        test = replace(PairedTest.of(differences(5, 3, 52), 1.0), degrees=math.inf)
        assert test.p_above(-0.2) == pytest.approx(stats.norm.sf(tango_score(5, 3, 60, -0.2)), rel=1e-9)

    @settings(deadline=None)
    @given(COUNTS)
    def test_against_no_difference_it_is_the_exact_mcnemar_test(self, counts: tuple[int, int, int]) -> None:
        wins, losses, ties = counts
        test = PairedTest.of(differences(*counts), 1.0)
        two_sided = mcnemar([[ties, losses], [wins, 0]], exact=True).pvalue
        assert min(1.0, 2 * min(test.p_below(0.0), test.p_above(0.0))) == pytest.approx(two_sided)
        if wins + losses:
            one_sided = stats.binomtest(wins, wins + losses, alternative="less").pvalue
            assert test.p_below(0.0) == pytest.approx(one_sided)

    @pytest.mark.parametrize("n", [2, 3, 5, 10, 30, 64, 1000])
    def test_items_that_never_differ_leave_a_little_more_than_is_exactly_possible(self, n: int) -> None:
        """A standard error of 0 here would call any re-saved model equivalent at any tolerance. With a loss
        in 1 - 0.025^(1/n) of all items, n items show none 2.5 % of the time; Wilson's interval is narrower
        than that for fewer than 50 items.
        """
        test = PairedTest.of(np.zeros(n), 1.0)
        interval = test.interval(0.025)
        assert interval is not None
        assert interval[0] == -interval[1]
        assert 1 - 0.025 ** (1 / n) <= interval[1] < min(1.0, 6 / n + 0.1 * (n < 10))
        wilson = proportion_confint(0, n, method="wilson")[1]
        assert replace(test, degrees=math.inf).interval(0.025) == pytest.approx((-wilson, wilson), abs=1e-9)

    @settings(deadline=None)
    @given(st.integers(1, 5))
    def test_five_losses_and_no_win_are_not_enough(self, losses: int) -> None:
        """1/32 > 0.025: with equal versions it happens too often by chance."""
        interval = PairedTest.of(differences(0, losses, 200), 1.0).interval(0.025)
        assert interval is not None
        assert interval[1] >= 0
        assert PairedTest.of(differences(0, 6, 200), 1.0).p_below(0.0) == 1 / 64


class TestGradedScores:
    def test_with_many_well_behaved_differences_it_is_close_to_the_t_test(self) -> None:
        generator = np.random.default_rng(3)
        values = np.clip(generator.normal(0.0, 0.2, 1000), -1, 1)
        interval = PairedTest.of(values, 1.0).interval(0.025)
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert interval == pytest.approx(
            (expected.low, expected.high), abs=0.03 * (expected.high - expected.low)
        )
        p = stats.ttest_1samp(values, 0, alternative="greater").pvalue
        assert PairedTest.of(values, 1.0).p_above(0.0) == pytest.approx(p, rel=0.05)

    def test_few_differences_are_no_proof_that_others_are_as_small(self) -> None:
        """ROUGE of a re-saved model: 3 texts of 64 change a little, and a fourth might change fully."""
        values = np.zeros(64)
        values[:3] = 0.02, -0.01, 0.015
        interval = PairedTest.of(values, 1.0).interval(0.025)
        assert interval is not None
        exact = 1 - 0.025 ** (1 / 64)
        assert interval[0] < -0.9 * exact
        assert interval[1] > 0.9 * exact
        t = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert t.high - t.low < 0.003

    def test_enough_differences_show_how_large_they_can_be(self) -> None:
        values = np.zeros(400)
        values[:ENOUGH_DIFFERENCES] = np.linspace(-0.05, 0.05, ENOUGH_DIFFERENCES)
        narrow = PairedTest.of(values, 1.0).interval(0.025)
        values[0] = 0.0
        wide = PairedTest.of(values, 1.0).interval(0.025)
        assert narrow is not None
        assert wide is not None
        assert narrow[1] < 0.002
        assert wide[1] > 0.008

    def test_few_differences_are_tested_exactly_by_all_their_signs(self) -> None:
        values = np.r_[-0.9, -0.8, -0.7, -0.6, -0.5, np.zeros(200)]
        assert PairedTest.of(values, 1.0).p_below(0.0) >= 1 / 32
        flipped = stats.permutation_test(
            (values[:5],), np.mean, permutation_type="samples", alternative="less", n_resamples=np.inf
        )
        assert flipped.pvalue == 1 / 32

    @settings(deadline=None)
    @given(st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.0, 0.2, 0.6]), min_size=2, max_size=50))
    def test_swapping_the_versions_mirrors_everything(self, values: list[float]) -> None:
        there, back = PairedTest.of(np.array(values), 1.0), PairedTest.of(-np.array(values), 1.0)
        one, other = there.interval(0.025), back.interval(0.025)
        assert one is not None
        assert other is not None
        assert one == pytest.approx((-other[1], -other[0]), abs=1e-9)
        for theta in (-0.3, 0.0, 0.1):
            assert there.p_below(theta) == pytest.approx(back.p_above(-theta), abs=1e-9)

    @settings(deadline=None)
    @given(st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.1, 0.7]), min_size=2, max_size=50))
    def test_p_values_rise_with_the_hypothesis_and_agree_with_the_interval(self, values: list[float]) -> None:
        test = PairedTest.of(np.array(values), 1.0)
        grid = np.linspace(-0.95, 0.95, 39)
        p = [test.p_above(theta) for theta in grid if abs(theta) > 1e-9]
        assert all(a <= b + 1e-9 for a, b in pairwise(p))
        interval = test.interval(0.025)
        assert interval is not None
        low, high = interval
        assert low <= test.mean <= high
        for theta in grid:
            if theta < low - 1e-6:
                assert test.p_above(float(theta)) <= 0.025
            if theta > high + 1e-6:
                assert test.p_below(float(theta)) <= 0.025


class TestClusters:
    def test_it_is_close_to_the_cluster_robust_regression(self) -> None:
        generator = np.random.default_rng(5)
        clusters = np.repeat(np.arange(120), 4)
        values = np.clip(np.repeat(generator.normal(0, 0.15, 120), 4) + generator.normal(0, 0.1, 480), -1, 1)
        fit = sm.OLS(values, np.ones(480)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
        interval = PairedTest.of(values, 1.0, clusters.tolist()).interval(0.025)
        low, high = fit.conf_int(0.05)[0]
        assert interval == pytest.approx((low, high), abs=0.04 * (high - low))
        plain = PairedTest.of(values, 1.0).interval(0.025)
        assert plain is not None
        assert high - low > 1.3 * (plain[1] - plain[0])

    def test_copies_of_an_item_know_no_more_than_the_item(self) -> None:
        values = np.array([0.3, 0.0, 0.0, -0.2, 0.0, 0.1] * 5)
        once = PairedTest.of(values, 1.0, list(range(30)))
        copied = PairedTest.of(np.repeat(values, 7), 1.0, np.repeat(np.arange(30), 7).tolist())
        assert copied.interval(0.025) == pytest.approx(once.interval(0.025), abs=1e-9)
        assert copied.p_below(0.05) == pytest.approx(once.p_below(0.05), abs=1e-9)

    def test_one_large_cluster_leaves_few_degrees_of_freedom(self) -> None:
        clusters = [0] * 50 + list(range(1, 51))
        assert PairedTest.of(np.zeros(100), 1.0, clusters).degrees == pytest.approx(100**2 / 2550 - 1)

    def test_one_cluster_and_one_item_say_nothing(self) -> None:
        for test in (PairedTest.of(np.array([0.4]), 1.0), PairedTest.of(np.ones(9), 1.0, ["a"] * 9)):
            assert test.interval(0.025) is None
            assert test.p_below(0.0) == test.p_above(-0.5) == 1.0
