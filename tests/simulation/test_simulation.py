"""A fast slice of `make simulate`, with bounds that a wrong interval or a wrong level breaks."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eval_assets.statistics.paired import PairedTest
from eval_assets.statistics.sequential import Looks
from eval_assets.statistics.verdicts import ERROR, holm
from resources.records import Sample
from resources.results import Cell, ResultsStore
from tests.resources.test_results import findings
from tests.simulation.__main__ import fitting_tolerance
from tests.simulation.pairs import Agreement, committed, of_store
from tests.simulation.trials import Sampled, rates

TRIALS = 2000
NAMES = [agreement.name for agreement in committed()]
BY_NAME = {agreement.name: agreement for agreement in committed()}


def most(rate: float) -> int:
    """So many of the trials, and no more, are likely (999 in 1000) where the rate is this."""
    return int(stats.binom.ppf(0.999, TRIALS, rate))


@pytest.mark.parametrize("agreement", committed(), ids=NAMES)
@pytest.mark.parametrize("truth", [0.0, -0.05])
def test_what_is_simulated_is_what_is_shipped(agreement: Agreement, truth: float) -> None:
    """The simulation judges many trials at once; if it strayed from PairedTest it would prove nothing."""
    differences, clusters = agreement.draw(np.random.default_rng(6), 40, 60, truth)
    sampled = Sampled.of(differences, clusters, agreement.binary)
    for theta in (0.0, -0.03, -0.2, 0.1):
        for side in (1.0, -1.0):
            tests = [
                PairedTest.of(row, 1.0, clusters.tolist() if clusters is not None else None)
                for row in differences
            ]
            expected = [test.p_below(theta) if side > 0 else test.p_above(theta) for test in tests]
            assert sampled.p(theta, side, 1.0).tolist() == pytest.approx(expected, abs=1e-12)


def test_agreement_is_measured_beside_the_difference_itself(tmp_path: Path) -> None:
    """Versions that are not equal disagree also because one is better; equal ones would not."""
    store = ResultsStore(str(tmp_path))
    right = {
        "1": [1.0] * 60 + [0.0] * 40,
        "2": [1.0] * 60 + [0.0] * 40,
        "3": [1.0] * 40 + [0.0] * 50 + [1.0] * 10,
    }
    for number, (version, values) in enumerate(right.items()):
        with store.writer(Cell("capitals", f"m@{version}", f"{number:x}" * 64)) as writer:
            samples = [
                Sample(f"id{index}", index, None, None, "", scores={"acc": value})
                for index, value in enumerate(values)
            ]
            record = findings(
                model_version=version, task="multiple_choice", primary_metric="acc", score={"value": 0.5}
            )
            writer.commit(samples, [], record)
    # 20 losses and 10 wins: 10 of the losses are the difference. @2 is a copy of @1 and so tells nothing new.
    assert list(of_store(str(tmp_path))) == [Agreement("capitals, @1 and @3", 0.2, (1.0,))]


@pytest.mark.parametrize("agreement", committed(), ids=NAMES)
@pytest.mark.parametrize("items", [64, 200])
def test_equal_versions_are_seldom_called_worse(agreement: Agreement, items: int) -> None:
    """At most 2.5 %, in a full run as over all looks: what the verdict 'worse' promises."""
    found = rates(agreement, items, fitting_tolerance(agreement, items), 0.0, TRIALS, seed=11)
    assert found.worse <= most(0.025)
    assert found.staged_worse <= most(0.025)
    assert TRIALS - found.covered <= most(0.05)
    assert found.staged_missed <= most(0.05)


@pytest.mark.parametrize("agreement", committed(), ids=NAMES)
@pytest.mark.parametrize("items", [64, 200])
def test_a_version_at_the_edge_of_the_tolerance_seldom_passes(agreement: Agreement, items: int) -> None:
    """At most 2.5 % (here 3 %, for the score test is an approximation): what a pass promises."""
    tolerance = fitting_tolerance(agreement, items)
    found = rates(agreement, items, tolerance, -tolerance, TRIALS, seed=12)
    assert found.passed <= most(0.03)
    assert found.staged_passed <= most(0.03)


def test_losses_without_any_win_do_not_pass_either() -> None:
    """The least noise that a loss can come with: nothing differs but the items that are lost."""
    for items, tolerance in ((64, 0.1), (200, 0.04), (1000, 0.01)):
        found = rates(Agreement("losses only", 0.0, (1.0,)), items, tolerance, -tolerance, TRIALS, seed=13)
        assert found.passed <= most(0.03)
        assert found.staged_passed <= most(0.03)


def test_without_the_levels_looking_early_is_wrong_too_often() -> None:
    """The same looks, each at the full error: shows that the simulation sees what the levels prevent."""

    class Naive(Looks):
        def levels(self) -> tuple[float, ...]:
            return (self.error,) * len(self.shares)

    agreement = BY_NAME["0/1, 20 % differ"]
    tolerance = fitting_tolerance(agreement, 1000)
    found = rates(agreement, 1000, tolerance, 0.0, TRIALS, seed=14, looks=Naive())
    assert found.staged_worse > most(0.025)
    assert found.staged_missed > most(0.1)


def test_a_family_of_equal_benchmarks_seldom_fails() -> None:
    """Ten benchmarks by themselves call one in six good versions worse somewhere, Holm's one in forty."""
    generator = np.random.default_rng(18)
    p = np.empty((TRIALS, 10))
    for column in range(10):
        differences, _ = BY_NAME["0/1, 20 % differ"].draw(generator, TRIALS, 400, 0.0)
        p[:, column] = Sampled.of(differences, None, True).p(0.0, 1.0, 1.0)
    failed = sum(min(holm({str(i): float(one) for i, one in enumerate(row)}).values()) <= ERROR for row in p)
    assert failed <= most(ERROR)
    assert int((p.min(axis=1) <= ERROR).sum()) > TRIALS / 10


@pytest.mark.parametrize("items", [30, 100])
def test_the_interval_of_a_ratio_covers_the_truth(items: int) -> None:
    """Bits per byte: documents of very different lengths, differences that depend on the length."""
    generator = np.random.default_rng(19)
    covered = 0
    for _ in range(TRIALS // 2):
        sizes = np.exp(generator.normal(7, 0.7, items))
        noise = generator.standard_t(5, items) / np.sqrt(sizes)
        test = PairedTest.of(0.02 + noise + 2 / sizes, 1.0, weights=sizes)
        truth = 0.02 + 2 / math.exp(7 + 0.7**2 / 2)
        covered += min(test.p_below(truth), test.p_above(truth)) > ERROR
    assert covered / (TRIALS // 2) > 0.935


def test_a_difference_of_twice_the_tolerance_takes_few_items() -> None:
    agreement = BY_NAME["0/1, 8 % differ"]
    tolerance = fitting_tolerance(agreement, 1000)
    worse = rates(agreement, 1000, tolerance, -2 * tolerance, TRIALS, seed=15)
    better = rates(agreement, 1000, tolerance, 2 * tolerance, TRIALS, seed=16)
    assert worse.staged_worse >= 0.99 * TRIALS
    assert better.staged_passed >= 0.99 * TRIALS
    assert worse.used < 0.4
    assert better.used < 0.4


@pytest.mark.parametrize("agreement", committed(), ids=NAMES)
def test_the_items_needed_give_the_power_that_they_are_needed_for(agreement: Agreement) -> None:
    """The table that people plan with says 90 %."""
    found = rates(agreement, 200, fitting_tolerance(agreement, 200), 0.0, TRIALS, seed=17)
    assert found.passed >= 0.88 * TRIALS
