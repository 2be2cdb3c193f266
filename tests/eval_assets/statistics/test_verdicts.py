"""Comparisons of two versions, verdicts on them, and verdicts on a family of benchmarks."""

import json
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from eval_assets.statistics import ratio_estimate
from eval_assets.statistics.verdicts import (
    Comparison,
    Scores,
    Verdict,
    compare,
    family_verdict,
    holm,
    verdict,
)

UNIT = (0.0, 1.0)
PAIRS = st.lists(st.tuples(*[st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0])] * 2), min_size=2, max_size=60)


def scores(values: Sequence[float | None], clusters: Sequence[str | None] | None = None) -> Scores:
    return Scores([f"item {index:03}" for index in range(len(values))], values, clusters)


def counted(wins: int, losses: int, ties: int) -> Comparison:
    """0/1 scores with so many wins and losses of the candidate."""
    baseline = [0.0] * wins + [1.0] * losses + [1.0, 0.0] * (ties // 2) + [1.0] * (ties % 2)
    candidate = [1.0] * wins + [0.0] * losses + [1.0, 0.0] * (ties // 2) + [1.0] * (ties % 2)
    return compare(scores(baseline), scores(candidate), higher_is_better=True, bounds=UNIT)


class TestComparison:
    def test_it_says_all_that_a_person_wants_to_see(self) -> None:
        found = counted(6, 16, 139)
        assert found.n == 161
        assert found.difference == pytest.approx(-10 / 161)
        assert found.candidate - found.baseline == pytest.approx(-10 / 161)
        assert (len(found.wins), len(found.losses), found.ties) == (6, 16, 139)
        assert found.wins[0] == "item 000"
        assert found.method == "exact McNemar, Tango's score interval, t with 160 degrees of freedom"
        assert found.clusters is None
        assert json.loads(json.dumps(found.as_row()))["losses"] == list(found.losses)

    def test_standard_errors_are_the_paired_one_and_lm_evals(self) -> None:
        """People see what pairing buys only if both are there."""
        generator = np.random.default_rng(2)
        a = generator.random(200)
        b = np.clip(a + generator.normal(0, 0.05, 200), 0, 1)
        found = compare(scores(a.tolist()), scores(b.tolist()), higher_is_better=True, bounds=UNIT)
        test = stats.ttest_rel(b, a)
        assert found.stderr == pytest.approx(found.difference / test.statistic)
        assert found.unpaired_stderr == pytest.approx(math.hypot(stats.sem(a), stats.sem(b)))
        assert (found.unpaired_stderr or 0) > 5 * (found.stderr or math.inf)
        # 80 % power in a two-sided 5 % test: (1.96 + 0.84) standard errors.
        assert found.detectable == pytest.approx(2.8 * (found.stderr or 0), rel=0.05)

    def test_lower_can_be_better(self) -> None:
        found = compare(scores([0.5, 0.2, 0.4]), scores([0.4, 0.2, 0.1]), higher_is_better=False, bounds=UNIT)
        assert found.difference == pytest.approx(0.4 / 3)
        assert found.wins == ("item 002", "item 000")

    def test_a_model_that_never_differs_has_an_interval_and_a_detectable_difference(self) -> None:
        found = counted(0, 0, 64)
        assert found.stderr == 0.0
        assert found.ci_high == pytest.approx(0.059, abs=1e-3)
        assert found.ci_low == -(found.ci_high or 0)
        assert (found.detectable or 0) > 0.05

    def test_only_common_items_count_and_the_others_are_named(self) -> None:
        a = Scores(["x", "y", "z"], [1.0, 0.0, 1.0])
        b = Scores(["z", "w", "x"], [0.0, 1.0, 1.0])
        found = compare(a, b, higher_is_better=True, bounds=UNIT)
        assert found.n == 2
        assert found.only_in_baseline == ("y",)
        assert found.only_in_candidate == ("w",)
        assert found.losses == ("z",)

    def test_clusters_are_named_in_the_method_and_counted(self) -> None:
        names = [f"passage {index // 4}" for index in range(40)]
        found = compare(
            scores([0.5] * 40, names), scores([0.25, 0.75] * 20, names), higher_is_better=True, bounds=UNIT
        )
        assert found.clusters == 10
        assert found.method == "clustered score interval, t with 9 degrees of freedom"

    def test_a_ratio_is_the_difference_of_the_whole_corpus(self) -> None:
        """Bits per byte of a corpus isn't the mean of its documents' bits per byte."""
        generator = np.random.default_rng(8)
        sizes = generator.integers(50, 5000, 60).astype(float)
        first = generator.normal(0.9, 0.1, 60)
        second = first + generator.normal(0.01, 0.01, 60)
        ids = [str(index) for index in range(60)]
        found = compare(
            Scores(ids, first.tolist(), weights=sizes),
            Scores(ids, second.tolist(), weights=sizes),
            higher_is_better=False,
            bounds=(0.0, math.inf),
        )
        whole = [float((side * sizes).sum() / sizes.sum()) for side in (first, second)]
        assert (found.baseline, found.candidate) == pytest.approx(whole)
        assert found.difference == pytest.approx(whole[0] - whole[1])
        assert found.stderr == pytest.approx(ratio_estimate((second - first) * sizes, sizes).stderr)
        assert found.method.startswith("paired score interval of a ratio")
        assert verdict(found, 0.005).name == "worse"
        assert verdict(found, 0.02).name == "equivalent"

    def test_identical_unbounded_scores_are_no_certainty(self) -> None:
        values = np.linspace(2.0, 3.0, 100).tolist()
        found = compare(scores(values), scores(values), higher_is_better=False)
        assert found.ci_high == pytest.approx(1.0 * 4 / 104, rel=0.05)

    def test_one_item_has_no_interval_and_no_verdict(self) -> None:
        found = compare(scores([1.0]), scores([0.0]), higher_is_better=True, bounds=UNIT)
        assert (found.stderr, found.ci_low, found.detectable) == (None, None, None)
        judged = verdict(found, 0.1)
        assert judged.name == "undecided"
        assert (
            judged.reason
            == "undecided: 1 items cannot tell: needs two items, or clusters, whose scores can differ"
        )

    @settings(deadline=None)
    @given(PAIRS, st.integers(0, 1000))
    def test_the_order_of_the_items_does_not_matter(
        self, pairs: list[tuple[float, float]], seed: int
    ) -> None:
        order = list(range(len(pairs)))
        random.Random(seed).shuffle(order)
        ids = [str(index) for index in range(len(pairs))]
        straight, shuffled = (
            compare(
                Scores([ids[i] for i in ranks], [pairs[i][0] for i in ranks]),
                Scores(ids, [b for _, b in pairs]),
                higher_is_better=True,
                bounds=UNIT,
            )
            for ranks in (range(len(pairs)), order)
        )
        assert straight == shuffled

    @settings(deadline=None)
    @given(PAIRS)
    def test_swapping_the_versions_mirrors_the_comparison(self, pairs: list[tuple[float, float]]) -> None:
        a, b = scores([x for x, _ in pairs]), scores([y for _, y in pairs])
        there = compare(a, b, higher_is_better=True, bounds=UNIT)
        back = compare(b, a, higher_is_better=True, bounds=UNIT)
        assert there.difference == pytest.approx(-back.difference, abs=1e-12)
        assert there.ci_low == pytest.approx(-(back.ci_high or 0), abs=1e-9)
        assert there.wins == back.losses
        mirrored = {"better": {"worse", "equivalent", "undecided"}, "worse": {"better"}}
        if (name := verdict(there, 0.05).name) in mirrored:
            assert verdict(back, 0.05).name in mirrored[name]

    @settings(deadline=None)
    @given(PAIRS, st.floats(-3, 3))
    def test_a_constant_added_to_both_changes_nothing(
        self, pairs: list[tuple[float, float]], constant: float
    ) -> None:
        moved = (UNIT[0] + constant - 1e-9, UNIT[1] + constant + 1e-9)
        plain = compare(
            scores([x for x, _ in pairs]), scores([y for _, y in pairs]), higher_is_better=True, bounds=UNIT
        )
        other = compare(
            scores([x + constant for x, _ in pairs]),
            scores([y + constant for _, y in pairs]),
            higher_is_better=True,
            bounds=moved,
        )
        assert other.difference == pytest.approx(plain.difference, abs=1e-9)
        assert other.stderr == pytest.approx(plain.stderr, abs=1e-9)

    @pytest.mark.parametrize(
        ("baseline", "candidate", "message"),
        [
            (Scores(["a"], [1.0]), Scores(["b"], [1.0]), "no item is in both: 1 in the baseline, 1 in the"),
            (Scores(["a", "a"], [1.0, 0.0]), Scores(["a"], [1.0]), "the baseline has item 'a' twice"),
            (Scores(["a"], [1.0]), Scores(["a"], [math.nan]), "the candidate's score of item 'a' is nan"),
            (Scores(["a"], [None]), Scores(["a"], [1.0]), "the baseline's score of item 'a' is None"),
            (Scores(["a"], [1.0]), Scores(["a"], [1.5]), "is 1.5, not a number 0.0 to 1.0"),
            (Scores(["a", "b"], [1.0]), Scores(["a"], [1.0]), "the baseline has 2 ids, 1 scores"),
            (Scores(["a"], [1.0], ["p"]), Scores(["a"], [1.0], ["q"]), "another cluster or weight"),
            (
                Scores(["a"], [1.0], weights=[-1.0]),
                Scores(["a"], [1.0], weights=[-1.0]),
                "weight of item 'a' is -1.0",
            ),
            (Scores(["a"], [1.0], weights=[0.0]), Scores(["a"], [1.0], weights=[0.0]), "sum to 0"),
        ],
    )
    def test_what_cannot_be_compared_is_one_line(
        self, baseline: Scores, candidate: Scores, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message) as raised:
            compare(baseline, candidate, higher_is_better=True, bounds=UNIT)
        assert "\n" not in str(raised.value)


class TestVerdict:
    @pytest.mark.parametrize(
        ("comparison", "tolerance", "name"),
        [
            (counted(40, 10, 950), 0.02, "better"),
            (counted(0, 0, 1000), 0.01, "equivalent"),
            (counted(20, 20, 960), 0.02, "equivalent"),
            (counted(35, 22, 943), 0.02, "not worse"),
            (counted(10, 40, 950), 0.02, "worse"),
            # Surely worse, and surely by less than what is tolerated.
            (counted(10, 40, 950), 0.1, "equivalent"),
            (counted(2, 4, 58), 0.02, "undecided"),
            # All six signs the same: 1/64 < 2.5 %. Five: 1/32.
            (counted(0, 6, 194), 0.01, "worse"),
            (counted(0, 5, 195), 0.01, "undecided"),
        ],
    )
    def test_verdicts_follow_their_precedence(
        self, comparison: Comparison, tolerance: float, name: str
    ) -> None:
        assert verdict(comparison, tolerance).name == name

    def test_the_reason_is_one_line_with_the_numbers(self) -> None:
        judged = verdict(counted(10, 40, 950), 0.02)
        assert judged.reason == (
            "worse: difference -0.03 over 1000 items, 95 % interval -0.045 to -0.0168, "
            "below 0 and not inside the tolerance of 0.02"
        )
        assert not judged.passed
        assert json.loads(json.dumps(judged.as_row()))["name"] == "worse"

    @settings(deadline=None)
    @given(PAIRS, st.floats(0, 0.6))
    def test_it_is_what_the_interval_says(self, pairs: list[tuple[float, float]], tolerance: float) -> None:
        """A reader checks a verdict by looking at the interval; they must never disagree."""
        found = compare(
            scores([x for x, _ in pairs]), scores([y for _, y in pairs]), higher_is_better=True, bounds=UNIT
        )
        judged = verdict(found, tolerance)
        low, high = found.ci_low, found.ci_high
        assert low is not None
        assert high is not None
        assert (judged.low, judged.high) == (low, high)
        if min(abs(low + tolerance), abs(high - tolerance)) < 1e-9 or tolerance < 1e-9:
            return
        if low > 0:
            expected = "better"
        elif low > -tolerance:
            expected = "equivalent" if high < tolerance else "not worse"
        else:
            expected = "worse" if high < 0 else "undecided"
        assert judged.name == expected

    @settings(deadline=None)
    @given(PAIRS, st.floats(0.001, 0.4), st.floats(1.0, 2.0))
    def test_more_tolerance_never_turns_a_pass_into_a_failure(
        self, pairs: list[tuple[float, float]], tolerance: float, factor: float
    ) -> None:
        found = compare(
            scores([x for x, _ in pairs]), scores([y for _, y in pairs]), higher_is_better=True, bounds=UNIT
        )
        strict, lenient = verdict(found, tolerance), verdict(found, tolerance * factor)
        assert lenient.passed or not strict.passed
        assert strict.name == "worse" or lenient.name != "worse"

    @pytest.mark.parametrize(
        ("tolerance", "message"),
        [(-0.1, "not a number of 0 or more"), (math.nan, "not a number"), (1.0, "accepts any difference")],
    )
    def test_tolerances_without_a_meaning_are_refused(self, tolerance: float, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            verdict(counted(1, 1, 10), tolerance)

    def test_without_any_tolerance_only_better_passes(self) -> None:
        assert verdict(counted(0, 0, 5000), 0.0).name == "undecided"
        assert verdict(counted(40, 10, 950), 0.0).name == "better"


class TestFamily:
    def test_holm_is_that_of_statsmodels(self) -> None:
        generator = np.random.default_rng(12)
        for size in (1, 2, 3, 8, 30):
            p_values = generator.random(size) ** 4
            ours = holm({str(index): float(p) for index, p in enumerate(p_values)})
            theirs = multipletests(p_values, method="holm")[1]
            assert [ours[str(index)] for index in range(size)] == pytest.approx(theirs.tolist())

    @staticmethod
    def judged(**comparisons: Comparison) -> dict[str, Verdict]:
        return {name: verdict(found, 0.02) for name, found in comparisons.items()}

    def test_it_passes_where_every_benchmark_does(self) -> None:
        family = family_verdict(self.judged(b=counted(20, 20, 960), a=counted(40, 10, 950)))
        assert family.outcome == "passed"
        assert family.family == ("a", "b")
        assert family.reason == (
            "within the tolerance on all 2, each at one-sided 0.025: a better, b equivalent"
        )

    def test_it_fails_where_one_is_worse_even_after_holm(self) -> None:
        family = family_verdict(self.judged(good=counted(20, 20, 960), bad=counted(10, 40, 950)))
        assert family.outcome == "failed"
        assert family.adjusted == {"bad": "worse", "good": "equivalent"}
        assert family.reason.startswith("worse on 1 of 2 (p by Holm's method, one-sided 0.025): bad: worse:")
        assert json.loads(json.dumps(family.as_row()))["outcome"] == "failed"

    def test_worse_by_a_hair_on_one_of_many_does_not_fail_it(self) -> None:
        """With ten benchmarks and equal versions, one is 'worse' by itself in up to 22 % of all families."""
        close = counted(3, 12, 300)
        assert verdict(close, 0.02).name == "worse"
        many = self.judged(close=close, **{f"good{i}": counted(20, 20, 960) for i in range(9)})
        family = family_verdict(many)
        assert family.outcome == "undecided"
        assert family.raw["close"] == "worse"
        assert family.adjusted["close"] == "undecided"
        assert family_verdict({"close": many["close"]}).outcome == "failed"

    def test_better_by_a_hair_still_passes(self) -> None:
        close = counted(12, 3, 300)
        many = self.judged(close=close, **{f"good{i}": counted(20, 20, 960) for i in range(9)})
        family = family_verdict(many)
        assert family.outcome == "passed"
        assert (family.raw["close"], family.adjusted["close"]) == ("better", "not worse")

    def test_it_is_open_where_one_is(self) -> None:
        family = family_verdict(self.judged(good=counted(20, 20, 960), open=counted(2, 4, 58)))
        assert family.outcome == "undecided"
        assert family.reason.startswith("1 of 2 not decided at one-sided 0.025: open: undecided:")

    def test_no_verdicts_and_verdicts_of_different_errors_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"these have \[\]"):
            family_verdict({})
        one = counted(20, 20, 960)
        with pytest.raises(ValueError, match="one error"):
            family_verdict({"a": verdict(one, 0.02), "b": verdict(one, 0.02, error=0.05)})
