"""Standard errors and intervals against statsmodels, scipy and simulation."""

import math
import random
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from eval_assets.statistics import (
    bootstrap_estimate,
    mean_estimate,
    pass_at_k,
    ratio_estimate,
    sampling_share,
)
from resources.records import Estimate

SCORES = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=40)
BITS = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)


def clustered_scores(seed: int = 0, clusters: int = 30) -> tuple[NDArray[np.float64], list[str]]:
    """Scores of clusters of 1 to 6 items that share most of their luck."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 7, clusters)
    shared = np.repeat(generator.normal(size=clusters), sizes)
    names = [f"passage {index}" for index in np.repeat(np.arange(clusters), sizes)]
    return shared + generator.normal(scale=0.5, size=len(shared)), names


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    return estimate.ci_low, estimate.ci_high


def mean_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """A mean as a function of summed (value, 1)."""
    return np.asarray(sums[..., 0] / sums[..., 1])


class TestMean:
    def test_without_clusters_it_is_the_t_interval_of_scipy(self) -> None:
        values, _ = clustered_scores()
        estimate = mean_estimate(values)
        standard_error = float(stats.sem(values))
        assert estimate.value == pytest.approx(values.mean(), abs=1e-15)
        assert estimate.stderr == pytest.approx(standard_error, rel=1e-12)
        expected = stats.t.interval(0.95, len(values) - 1, values.mean(), standard_error)
        assert bounds(estimate) == pytest.approx(expected, rel=1e-12)
        assert estimate.n == len(values)

    def test_with_clusters_it_is_the_cluster_robust_regression_on_a_constant(self) -> None:
        values, clusters = clustered_scores()
        codes = np.unique(clusters, return_inverse=True)[1]
        fit = sm.OLS(values, np.ones(len(values))).fit(
            cov_type="cluster", cov_kwds={"groups": codes, "df_correction": True}, use_t=True
        )
        estimate = mean_estimate(values, clusters)
        assert estimate.stderr == pytest.approx(float(fit.bse[0]), rel=1e-10)
        assert bounds(estimate) == pytest.approx(fit.conf_int(0.05)[0], rel=1e-9)
        assert (estimate.stderr or 0) > 1.3 * (mean_estimate(values).stderr or math.inf)

    def test_it_is_equation_4_of_miller_but_for_the_finite_sample_factor(self) -> None:
        values, clusters = clustered_scores(clusters=8)
        residuals = values - values.mean()
        n = len(values)
        variance = (
            sum(residuals[i] * residuals[j] for i in range(n) for j in range(n) if clusters[i] == clusters[j])
            / n**2
        )
        estimate = mean_estimate(values, clusters)
        assert estimate.stderr == pytest.approx(math.sqrt(variance * 8 / 7), rel=1e-12)

    @given(SCORES)
    def test_clusters_of_one_item_are_no_clusters(self, values: list[float]) -> None:
        plain, singletons = mean_estimate(values), mean_estimate(values, range(len(values)))
        assert singletons.value == plain.value
        assert singletons.stderr == pytest.approx(plain.stderr, rel=1e-9, abs=1e-12)
        assert mean_estimate(values, [None] * len(values)) == plain

    @given(BITS)
    def test_clusters_of_one_item_are_no_clusters_for_a_proportion(self, values: list[float]) -> None:
        plain = mean_estimate(values, None, proportion=True)
        singletons = mean_estimate(values, range(len(values)), proportion=True)
        if len(values) > 1:
            assert bounds(singletons) == pytest.approx(bounds(plain), abs=1e-12)

    @given(
        st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=4, max_size=40),
        st.integers(0, 2**32 - 1),
    )
    def test_the_order_of_the_items_does_not_matter(self, values: list[float], seed: int) -> None:
        clusters = [index // 3 for index in range(len(values))]
        order = list(range(len(values)))
        random.Random(seed).shuffle(order)
        shuffled = mean_estimate([values[i] for i in order], [clusters[i] for i in order])
        straight = mean_estimate(values, clusters)
        assert shuffled.value == straight.value
        assert shuffled.stderr == pytest.approx(straight.stderr, rel=1e-9, abs=1e-12)

    @given(st.floats(-1e6, 1e6), st.integers(2, 50), st.integers(1, 5))
    def test_equal_scores_have_no_error_at_all(self, value: float, n: int, size: int) -> None:
        assert mean_estimate([value] * n) == Estimate(value, 0.0, value, value, n)
        if n > size:
            clusters = [index // size for index in range(n)]
            assert mean_estimate([value] * n, clusters) == Estimate(value, 0.0, value, value, n)

    def test_an_item_without_a_cluster_stands_for_itself(self) -> None:
        values = [0.1, 0.9, 0.4, 0.3]
        mixed = mean_estimate(values, ["a", "a", None, None])
        assert mixed == mean_estimate(values, ["a", "a", "b", "c"])
        assert mixed != mean_estimate(values, ["a", "a", "b", "b"])

    def test_one_item_and_one_cluster_have_no_error(self) -> None:
        """A standard error of 0 here would make one passage look like a certainty."""
        assert mean_estimate([0.3]) == Estimate(0.3, None, None, None, 1)
        assert mean_estimate([0.0, 1.0], ["a", "a"]) == Estimate(0.5, None, None, None, 2)
        assert mean_estimate([0.0, 1.0], ["a", "a"], proportion=True) == Estimate(0.5, None, None, None, 2)

    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 2.0), (-1.0, 1.0)])
    def test_scores_that_all_lie_at_a_bound_are_as_uncertain_as_a_proportion_of_none(
        self, low: float, high: float
    ) -> None:
        """An interval without width would call every other version better, however few the items are."""
        clusters = [number // 4 for number in range(64)]
        for shared, groups in ((None, 64), (clusters, 16)):
            upper = proportion_confint(0, groups, method="wilson")[1]
            worst = mean_estimate([low] * 64, shared, bounds=(low, high))
            assert bounds(worst) == pytest.approx((low, low + (high - low) * upper), abs=1e-12)
            best = mean_estimate([high] * 64, shared, bounds=(low, high))
            assert bounds(best) == pytest.approx((high - (high - low) * upper, high), abs=1e-12)
            assert (worst.value, worst.stderr) == (low, 0.0)

    def test_the_interval_stays_within_the_bounds(self) -> None:
        estimate = mean_estimate([0.0, 0.0, 0.1], bounds=(0.0, 1.0))
        assert bounds(estimate)[0] == 0.0
        assert bounds(mean_estimate([0.9, 1.0, 1.0], bounds=(0.0, 1.0)))[1] == 1.0

    @pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf], [[0.1], [0.2]]])
    def test_values_that_have_no_mean_are_refused(self, values: list[float]) -> None:
        with pytest.raises(ValueError, match=r"values are|is not finite|values is needed"):
            mean_estimate(values)

    def test_a_proportion_of_other_numbers_and_clusters_of_other_items_are_refused(self) -> None:
        with pytest.raises(ValueError, match="0 or 1"):
            mean_estimate([0.0, 0.5], proportion=True)
        with pytest.raises(ValueError, match="1 clusters for 2 items"):
            mean_estimate([0.0, 0.5], ["a"])


class TestProportion:
    @given(BITS)
    def test_the_interval_is_wilsons(self, values: list[float]) -> None:
        estimate = mean_estimate(values, proportion=True)
        expected = proportion_confint(sum(values), len(values), method="wilson")
        assert bounds(estimate) == pytest.approx(expected, abs=1e-12)
        low, high = bounds(estimate)
        assert 0 <= low <= estimate.value <= high <= 1

    def test_clusters_that_agree_fully_count_as_single_items(self) -> None:
        """Forty copies of each of 30 answers know no more than 30 answers."""
        answers = [1.0] * 18 + [0.0] * 12
        values, clusters = np.repeat(answers, 40), np.repeat(np.arange(30), 40)
        low, high = bounds(mean_estimate(values, clusters.tolist(), proportion=True))
        # 30 answers, a few less since the design effect is estimated from 29 degrees of freedom.
        effective = 1200 / (1199 / 29) * (stats.t.ppf(0.975, 1199) / stats.t.ppf(0.975, 29)) ** 2
        assert 25 < effective < 30
        expected = proportion_confint(effective * 0.6, effective, method="wilson")
        assert (low, high) == pytest.approx(expected, abs=1e-12)
        plain = proportion_confint(18, 30, method="wilson")
        assert low < plain[0]
        assert high > plain[1]

    def test_clusters_without_any_miss_count_once_each(self) -> None:
        low, high = bounds(mean_estimate([1.0] * 100, [i // 10 for i in range(100)], proportion=True))
        assert (low, high) == pytest.approx(proportion_confint(10, 10, method="wilson"), abs=1e-12)

    def test_clusters_that_cancel_out_do_not_narrow_the_interval(self) -> None:
        values, clusters = [0.0, 1.0] * 25, [index // 2 for index in range(50)]
        low, high = bounds(mean_estimate(values, clusters, proportion=True))
        plain_low, plain_high = bounds(mean_estimate(values, proportion=True))
        assert low <= plain_low
        assert high >= plain_high

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
    def test_the_clustered_interval_covers_the_truth_where_the_plain_one_does_not(self, rate: float) -> None:
        """Passages of five questions, half of them answered as the passage's first one."""
        generator = np.random.default_rng(7)
        trials, passages = 1500, 40
        covered = {"clustered": 0, "plain": 0}
        clusters = np.repeat(np.arange(passages), 5).tolist()
        for _ in range(trials):
            first = np.repeat(generator.random(passages) < rate, 5)
            own = generator.random(5 * passages) < rate
            values = np.where(generator.random(5 * passages) < 0.7, first, own).astype(float)
            for name, given_clusters in (("clustered", clusters), ("plain", None)):
                low, high = bounds(mean_estimate(values, given_clusters, proportion=True))
                covered[name] += low <= rate <= high
        assert 0.925 < covered["clustered"] / trials < 0.985
        assert covered["plain"] / trials < 0.85


class TestSeveralOutputs:
    """Items that are asked several times: shares between 0 and 1, pass@k, where the variance comes from."""

    @staticmethod
    def answers(
        items: int, outputs: int, seed: int = 0, a: float = 0.5, b: float = 1.0
    ) -> NDArray[np.float64]:
        """Right and wrong answers, shape (items, outputs), to items that are right with beta(a, b) chance."""
        generator = np.random.default_rng(seed)
        chances = generator.beta(a, b, (items, 1))
        return (generator.random((items, outputs)) < chances).astype(float)

    @given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
    def test_pass_at_k_is_the_share_of_all_choices_of_k_outputs_that_hold_a_right_one(
        self, counts: tuple[int, int, int]
    ) -> None:
        outputs, correct, k = counts
        answers = [True] * correct + [False] * (outputs - correct)
        choices = [any(choice) for choice in combinations(answers, k)]
        assert pass_at_k(outputs, correct, k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)

    @pytest.mark.parametrize(("outputs", "correct", "k"), [(200, 1, 100), (5000, 3, 1000), (10000, 9000, 10)])
    def test_pass_at_k_of_many_outputs_is_exact_although_the_binomials_are_astronomic(
        self, outputs: int, correct: int, k: int
    ) -> None:
        exact = 1 - Fraction(math.comb(outputs - correct, k), math.comb(outputs, k))
        assert pass_at_k(outputs, correct, k) == pytest.approx(float(exact), abs=1e-12)

    def test_pass_at_k_is_unbiased_where_the_plug_in_estimate_is_not(self) -> None:
        """1 - (1 - c/n)^k, which is often written instead, is too low: 0.66 for a true 0.76 here."""
        chance, outputs, k = 0.25, 5, 5
        weights = [stats.binom.pmf(c, outputs, chance) for c in range(outputs + 1)]
        truth = 1 - (1 - chance) ** k
        ours = sum(w * pass_at_k(outputs, c, k) for c, w in enumerate(weights))
        plug_in = sum(w * (1 - (1 - c / outputs) ** k) for c, w in enumerate(weights))
        assert ours == pytest.approx(truth, abs=1e-12)
        assert plug_in < truth - 0.05

    @pytest.mark.parametrize(("outputs", "correct", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
    def test_pass_at_k_of_impossible_counts_is_refused(self, outputs: int, correct: int, k: int) -> None:
        with pytest.raises(ValueError, match="is not defined"):
            pass_at_k(outputs, correct, k)

    def test_the_error_is_that_of_all_answers_clustered_by_item(self) -> None:
        """Taking ten answers to one item for ten items would make every error bar too short."""
        answers = self.answers(60, 10)
        fit = sm.OLS(answers.ravel(), np.ones(answers.size)).fit(
            cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(60), 10)}, use_t=True
        )
        estimate = mean_estimate(answers.mean(axis=1), None, proportion=True, outputs=10)
        assert estimate.value == pytest.approx(answers.mean())
        assert estimate.stderr == pytest.approx(float(fit.bse[0]), rel=1e-9)
        assert estimate.n == 60
        naive = mean_estimate(answers.ravel(), None, proportion=True)
        assert (estimate.stderr or 0) > 1.5 * (naive.stderr or math.inf)

    def test_items_that_share_a_passage_are_clustered_by_it(self) -> None:
        answers, passages = self.answers(60, 10), np.repeat(np.arange(20), 3)
        fit = sm.OLS(answers.ravel(), np.ones(answers.size)).fit(
            cov_type="cluster", cov_kwds={"groups": np.repeat(passages, 10)}, use_t=True
        )
        estimate = mean_estimate(answers.mean(axis=1), passages.tolist(), proportion=True, outputs=10)
        assert estimate.stderr == pytest.approx(float(fit.bse[0]), rel=1e-9)

    def test_the_interval_is_that_of_all_answers_clustered_by_item(self) -> None:
        answers = self.answers(60, 10)
        clustered = mean_estimate(answers.ravel(), np.repeat(np.arange(60), 10).tolist(), proportion=True)
        estimate = mean_estimate(answers.mean(axis=1), None, proportion=True, outputs=10)
        assert bounds(estimate) == pytest.approx(bounds(clustered), rel=1e-9)

    @given(st.lists(st.integers(0, 7), min_size=2, max_size=30), st.integers(1, 7))
    def test_the_interval_of_pass_at_k_holds_the_value_and_stays_between_0_and_1(
        self, correct: list[int], k: int
    ) -> None:
        values = [pass_at_k(7, count, k) for count in correct]
        estimate = mean_estimate(values, None, proportion=True, outputs=7)
        low, high = bounds(estimate)
        assert 0 <= low <= estimate.value <= high <= 1
        assert low < high

    def test_items_without_any_right_answer_are_no_certainty(self) -> None:
        """pass@10 of a weak model is often 0 for every item; an interval of [0, 0] would stop every doubt."""
        low, high = bounds(mean_estimate([0.0] * 50, None, proportion=True, outputs=10))
        assert (low, high) == pytest.approx(proportion_confint(0, 50, method="wilson"), abs=1e-12)

    def test_values_outside_of_0_to_1_and_one_item_have_no_such_interval(self) -> None:
        with pytest.raises(ValueError, match="from 0 to 1"):
            mean_estimate([0.5, 1.5], None, proportion=True, outputs=2)
        assert mean_estimate([0.5], None, proportion=True, outputs=2) == Estimate(0.5, None, None, None, 1)

    @pytest.mark.parametrize(("k", "a", "b"), [(1, 0.1, 2.0), (1, 0.5, 1.0), (5, 0.1, 2.0), (10, 5.0, 0.5)])
    def test_the_interval_covers_the_truth_and_the_error_is_the_spread(
        self, k: int, a: float, b: float
    ) -> None:
        """Simulated: new items and new outputs each time."""
        items, outputs, trials = 60, 10, 1000
        chances = np.random.default_rng(1).beta(a, b, 1_000_000)
        truth = float((1 - (1 - chances) ** k).mean())
        covered, values, squares = 0, [], []
        for trial in range(trials):
            correct = self.answers(items, outputs, trial, a, b).sum(axis=1)
            estimate = mean_estimate(
                [pass_at_k(outputs, int(c), k) for c in correct], None, proportion=True, outputs=outputs
            )
            low, high = bounds(estimate)
            covered += low <= truth <= high
            values.append(estimate.value)
            squares.append((estimate.stderr or 0.0) ** 2)
        assert covered / trials > 0.9
        assert np.mean(values) == pytest.approx(truth, abs=0.005)
        assert math.sqrt(np.mean(squares)) == pytest.approx(float(np.std(values)), rel=0.12)

    def test_the_sampling_share_is_what_infinitely_many_outputs_would_take_off(self) -> None:
        """E[p (1 - p)] / K against Var(p): Miller's two parts, known exactly for beta-distributed items."""
        a, b, outputs = 0.5, 1.0, 4
        within = a * b / ((a + b) * (a + b + 1)) / outputs
        between = a * b / ((a + b) ** 2 * (a + b + 1))
        shares = [sampling_share(self.answers(400, outputs, seed)) or 0.0 for seed in range(200)]
        assert np.mean(shares) == pytest.approx(within / (within + between), rel=0.02)

    def test_the_sampling_share_is_one_over_the_f_of_an_analysis_of_variance(self) -> None:
        answers = self.answers(50, 6)
        assert sampling_share(answers) == pytest.approx(1 / stats.f_oneway(*answers).statistic)

    def test_the_sampling_share_is_none_where_it_is_not_defined_and_never_above_1(self) -> None:
        assert sampling_share([[0.0, 1.0]]) is None
        assert sampling_share([[0.0], [1.0]]) is None
        assert sampling_share([[0.0, 1.0], [1.0, 0.0]]) is None
        assert sampling_share([[0.0, 0.0], [1.0, 1.0]]) == 0.0
        assert sampling_share([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]) == 1.0


class TestRatio:
    def test_with_equal_denominators_it_is_the_mean(self) -> None:
        values, clusters = clustered_scores()
        ratio, mean = (
            ratio_estimate(values, np.full(len(values), 4.0), clusters),
            mean_estimate(values, clusters),
        )
        assert ratio.value == pytest.approx(mean.value / 4)
        assert ratio.stderr == pytest.approx((mean.stderr or math.nan) / 4)
        assert bounds(ratio) == pytest.approx([bound / 4 for bound in bounds(mean)])

    def test_its_error_is_that_of_a_bootstrap(self) -> None:
        generator = np.random.default_rng(3)
        words = generator.integers(50, 900, 400).astype(float)
        nats = words * generator.normal(3, 0.4, 400)
        ratio = ratio_estimate(nats, words)
        assert ratio.value == pytest.approx(nats.sum() / words.sum())
        sampled = stats.bootstrap(
            (nats, words),
            lambda a, b, axis: a.sum(axis) / b.sum(axis),
            paired=True,
            n_resamples=2000,
            rng=np.random.default_rng(1),
        )
        assert ratio.stderr == pytest.approx(sampled.standard_error, rel=0.05)
        interval = sampled.confidence_interval
        assert bounds(ratio) == pytest.approx((interval.low, interval.high), rel=0.01)

    def test_without_anything_to_divide_by_it_is_refused(self) -> None:
        with pytest.raises(ValueError, match="positive sum"):
            ratio_estimate([1.0], [0.0])
        with pytest.raises(ValueError, match="as many denominators"):
            ratio_estimate([1.0, 2.0], [1.0])

    def test_one_document_has_no_error(self) -> None:
        assert ratio_estimate([6.0], [2.0]) == Estimate(3.0, None, None, None, 1)


class TestBootstrap:
    def test_it_agrees_with_scipys_bca_bootstrap(self) -> None:
        generator = np.random.default_rng(5)
        values = generator.exponential(size=60)
        ours = bootstrap_estimate(np.column_stack([values, np.ones(60)]), mean_of_sums, resamples=100_000)
        theirs = stats.bootstrap(
            (values,), np.mean, n_resamples=100_000, method="BCa", rng=np.random.default_rng(2)
        )
        assert ours.value == pytest.approx(values.mean())
        assert ours.stderr == pytest.approx(theirs.standard_error, rel=0.02)
        interval = theirs.confidence_interval
        assert bounds(ours) == pytest.approx((interval.low, interval.high), rel=0.01)

    def test_it_corrects_the_bias_of_a_variance_as_scipy_does(self) -> None:
        values = np.random.default_rng(6).exponential(size=25)
        ours = bootstrap_estimate(
            np.column_stack([values**2, values, np.ones(25)]),
            lambda sums: np.asarray(sums[..., 0] / sums[..., 2] - (sums[..., 1] / sums[..., 2]) ** 2),
            resamples=100_000,
        )
        theirs = stats.bootstrap(
            (values,), np.var, n_resamples=100_000, method="BCa", rng=np.random.default_rng(2)
        )
        interval = theirs.confidence_interval
        assert ours.value == pytest.approx(values.var())
        assert bounds(ours) == pytest.approx((interval.low, interval.high), rel=0.02)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_the_interval_holds_a_value_that_nearly_every_resample_exceeds(self, sign: int) -> None:
        """A calibration error near 0 is such a value; an interval beside it would look like a mistake."""
        values = np.random.default_rng(9).normal(size=50)
        values += 0.004 - values.mean()
        rows = np.column_stack([values, np.ones(50)])
        estimate = bootstrap_estimate(rows, lambda sums: sign * np.abs(mean_of_sums(sums)))
        low, high = bounds(estimate)
        assert low <= estimate.value <= high
        assert low < high

    def test_it_resamples_whole_clusters(self) -> None:
        values, clusters = clustered_scores(clusters=60)
        rows = np.column_stack([values, np.ones(len(values))])
        estimate = bootstrap_estimate(rows, mean_of_sums, clusters, resamples=4000)
        expected = mean_estimate(values, clusters)
        assert estimate.value == pytest.approx(expected.value)
        assert estimate.stderr == pytest.approx(expected.stderr, rel=0.06)
        assert estimate.n == len(values)

    def test_the_same_input_gives_the_same_interval(self) -> None:
        rows = np.column_stack([clustered_scores()[0], np.ones(len(clustered_scores()[0]))])
        assert bootstrap_estimate(rows, mean_of_sums) == bootstrap_estimate(rows, mean_of_sums)
        assert bootstrap_estimate(rows, mean_of_sums) != bootstrap_estimate(rows, mean_of_sums, seed=1)

    @given(SCORES, st.integers(1, 4))
    def test_the_interval_holds_the_value_and_stays_in_the_bounds(
        self, values: list[float], size: int
    ) -> None:
        assume(len(values) > size)
        rows = np.column_stack([values, np.ones(len(values))])
        clusters = [index // size for index in range(len(values))]
        estimate = bootstrap_estimate(rows, mean_of_sums, clusters, (-100.0, 100.0), resamples=50)
        low, high = bounds(estimate)
        assert -100 <= low <= estimate.value + 1e-9
        assert estimate.value - 1e-9 <= high <= 100

    def test_equal_items_have_no_error(self) -> None:
        assert bootstrap_estimate([[0.5, 1.0]] * 20, mean_of_sums) == Estimate(0.5, 0.0, 0.5, 0.5, 20)

    def test_one_item_and_one_cluster_have_no_error_and_no_item_is_refused(self) -> None:
        assert bootstrap_estimate([[2.0, 4.0]], mean_of_sums) == Estimate(0.5, None, None, None, 1)
        clustered = bootstrap_estimate([[2.0, 4.0]] * 2, mean_of_sums, ["a", "a"])
        assert clustered == Estimate(0.5, None, None, None, 2)
        with pytest.raises(ValueError, match="at least one item"):
            bootstrap_estimate(np.empty((0, 2)), mean_of_sums)
