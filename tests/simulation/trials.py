"""Simulated evaluations, judged at every look with the tests of `statistics.paired`, many at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from eval_assets.statistics import Floats
from eval_assets.statistics.paired import (
    MOST_FLIPPED,
    effective_units,
    exact_p,
    reaches,
    score_statistics,
    scores_of,
)
from eval_assets.statistics.sequential import Looks
from tests.simulation.pairs import Agreement

SPAN = 1.0
_CELLS_AT_ONCE = 400_000


@dataclass(frozen=True, slots=True)
class Rates:
    """Of so many `trials` with one truth: how many had which verdict, in a full run and in a staged one.

    `covered` is how many full runs' 95 % intervals held the truth, `staged_missed` how many trials had a look
    whose interval missed it (all looks are counted, also those after a stop), `used` the mean share of items
    that a staged run took.
    """

    trials: int
    passed: int
    worse: int
    covered: int
    staged_passed: int
    staged_worse: int
    staged_missed: int
    used: float

    def __add__(self, other: "Rates") -> "Rates":
        trials = self.trials + other.trials
        used = (self.used * self.trials + other.used * other.trials) / trials
        return Rates(
            trials=trials,
            passed=self.passed + other.passed,
            worse=self.worse + other.worse,
            covered=self.covered + other.covered,
            staged_passed=self.staged_passed + other.staged_passed,
            staged_worse=self.staged_worse + other.staged_worse,
            staged_missed=self.staged_missed + other.staged_missed,
            used=used,
        )


def rates(
    agreement: Agreement,
    items: int,
    tolerance: float,
    truth: float,
    trials: int,
    seed: int,
    looks: Looks | None = None,
) -> Rates:
    """Simulate so many evaluations in which the true difference is `truth`."""
    generator = np.random.default_rng([seed, items, round(abs(truth) * 1e6), int(truth < 0)])
    found: Rates | None = None
    done = 0
    while done < trials:
        some = min(trials - done, max(1, _CELLS_AT_ONCE // items))
        differences, clusters = agreement.draw(generator, some, items, truth)
        part = _judge(differences, clusters, agreement.binary, tolerance, truth, looks or Looks())
        found = part if found is None else found + part
        done += some
    assert found is not None
    return found


def _judge(
    differences: Floats,
    clusters: NDArray[np.int64] | None,
    binary: bool,
    tolerance: float,
    truth: float,
    looks: Looks,
) -> Rates:
    trials, items = differences.shape
    running = np.ones(trials, dtype=bool)
    missed = np.zeros(trials, dtype=bool)
    passed = worse = 0
    used = 0.0
    for share, size, level in zip(looks.shares, looks.sizes(items), looks.levels(), strict=True):
        sample = Sampled.of(differences[:, :size], None if clusters is None else clusters[:size], binary)
        not_worse = sample.p(-tolerance, -1.0, level) <= level
        is_worse = ~not_worse & (sample.p(0.0, 1.0, level) <= level)
        outside = (sample.p(truth, 1.0, level) <= level) | (sample.p(truth, -1.0, level) <= level)
        missed |= outside
        passed += int((running & not_worse).sum())
        worse += int((running & is_worse).sum())
        ends = running & (not_worse | is_worse) if share < 1 else running
        used += float(ends.sum()) * size / items
        running &= ~ends
    error = looks.error
    # The last sample is the full run.
    full_passed = sample.p(-tolerance, -1.0, error) <= error
    full_worse = ~full_passed & (sample.p(0.0, 1.0, error) <= error)
    below, above = sample.p(truth, 1.0, error) <= error, sample.p(truth, -1.0, error) <= error
    return Rates(
        trials=trials,
        passed=int(full_passed.sum()),
        worse=int(full_worse.sum()),
        covered=int((~(below | above)).sum()),
        staged_passed=passed,
        staged_worse=worse,
        staged_missed=int(missed.sum()),
        used=used / trials,
    )


@dataclass(frozen=True, slots=True)
class Sampled:
    """Many samples of the same size: `PairedTest` with a first dimension of trials."""

    sums: Floats
    sizes: Floats
    binary: bool

    @classmethod
    def of(cls, differences: Floats, clusters: NDArray[np.int64] | None, binary: bool) -> "Sampled":
        """Differences of shape (trials, items), summed by cluster where there are any."""
        if clusters is None:
            return cls(differences, np.ones_like(differences), binary)
        trials = len(differences)
        groups = int(clusters.max()) + 1
        cells = (np.arange(trials)[:, None] * groups + clusters).ravel()
        sums = np.bincount(cells, weights=differences.ravel(), minlength=trials * groups).astype(float)
        sizes = np.tile(np.bincount(clusters, minlength=groups).astype(float), (trials, 1))
        return cls(sums.reshape(trials, groups), sizes, False)

    def p(self, theta: float, side: float, level: float) -> Floats:
        """`PairedTest.p_below` (side 1) or `p_above` (side -1), exact only where `level` needs it."""
        if self.binary:
            return self._binary_p(theta, side)
        degrees = effective_units(self.sizes) - 1
        if len(self.sums[0]) < 2:
            return np.ones(len(self.sums))
        scores = scores_of(self.sums, self.sizes, SPAN, reaches(self.sums, self.sizes, SPAN), theta)
        p = np.asarray(special.stdtr(degrees, side * scores))
        if theta == 0:
            differing = np.count_nonzero(self.sums, axis=1)
            for row in np.flatnonzero((p <= level) & (differing <= MOST_FLIPPED)):
                p[row] = max(p[row], exact_p(side * self.sums[row], False))
        return p

    def _binary_p(self, theta: float, side: float) -> Floats:
        wins, losses = (self.sums > 0).sum(axis=1), (self.sums < 0).sum(axis=1)
        counts = np.stack([losses, self.sums.shape[1] - wins - losses, wins], axis=1).astype(float)
        residuals = np.broadcast_to(np.array([-1.0, 0.0, 1.0]) - theta, counts.shape)
        ones = np.ones(len(counts))
        scores = score_statistics(residuals, counts, -(SPAN + theta) * ones, (SPAN - theta) * ones)
        if theta == 0:
            lower = wins if side > 0 else losses
            return np.asarray(special.bdtr(lower, wins + losses, 0.5))
        return np.asarray(special.stdtr(self.sums.shape[1] - 1, side * scores))
