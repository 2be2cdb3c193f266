"""Tests and intervals for a mean of paired differences that stay honest where few items differ.

Student's t knows the unseen only by the seen: 64 items that all score the same have standard error 0, and
three that differ say nothing of a fourth. Here every hypothesis "the true difference is theta" is tested
against the distribution that fits the differences best *among those with mean theta*, and that may put
weight on the largest difference which an item can have, seen or not. This is the score test whose variance
is estimated under the hypothesis by nonparametric maximum likelihood (Owen, Empirical Likelihood, 2001, for
the weights). Of differences -1, 0, 1 it is exactly Tango's (1998) test of paired proportions, of scores that
are all equal it is Wilson's (1927): n items without any difference leave ``span * z^2 / (n + z^2)`` possible.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from eval_assets.statistics import Clusters, Floats, cluster_codes

ENOUGH_DIFFERENCES = 30
"""So many units that differ are taken to show how large a difference can be; with fewer it is the span."""

MOST_FLIPPED = 14
"""Up to so many units that differ, every pattern of signs is counted; beyond, the score test is close."""


@dataclass(frozen=True, slots=True, eq=False)
class PairedTest:
    """What the differences of one set of items say about their true mean.

    A unit is an item or, with clusters, a cluster: `sums` are the (weighted) differences summed by unit,
    `sizes` the weights. `span` is the largest difference that an item can have, `reach` the largest that is
    reckoned with. `degrees` of freedom are those of Student's t; with the normal distribution of Tango's test
    fewer than 50 items without any difference would leave less possible than there is. In a `binary` test
    every difference is -span, 0 or span, and every item a unit.
    """

    sums: Floats
    sizes: Floats
    span: float
    reach: float
    degrees: float
    binary: bool

    @classmethod
    def of(
        cls, differences: Floats, span: float, clusters: Clusters = None, weights: Floats | None = None
    ) -> "PairedTest":
        """The test for so many items' differences; `weights` default to 1."""
        sizes = np.ones(len(differences)) if weights is None else weights
        codes = cluster_codes(clusters, len(differences))
        sums = differences * sizes
        single = codes is None or codes.max() + 1 == len(differences)
        if codes is not None:
            sums, sizes = (np.bincount(codes, weights=values).astype(float) for values in (sums, sizes))
        # A unit of weight 0 (an empty text) says nothing.
        sums, sizes = sums[sizes > 0], sizes[sizes > 0]
        binary = single and weights is None and bool(np.isin(differences, (-span, 0.0, span)).all())
        degrees = float(effective_units(sizes[None])[0]) - 1
        return cls(sums, sizes, span, float(reaches(sums[None], sizes[None], span)[0]), degrees, binary)

    @property
    def mean(self) -> float:
        """The mean difference (a ratio of sums where units have sizes)."""
        # Equal differences would leave a rounding error of 1e-17 that looks like a finding.
        means = self.sums / self.sizes
        return float(means[0]) if (means == means[0]).all() else math.fsum(self.sums) / math.fsum(self.sizes)

    @property
    def defined(self) -> bool:
        """Whether there is any test at all: two units, and differences are possible."""
        return len(self.sums) >= 2 and self.degrees > 0 and self.span > 0

    def p_below(self, theta: float) -> float:
        """The p value of "the true difference is at least theta": small where the differences are lower."""
        return self._p(theta, 1.0)

    def p_above(self, theta: float) -> float:
        """The p value of "the true difference is at most theta": small where the differences are higher."""
        return self._p(theta, -1.0)

    def interval(self, error: float) -> tuple[float, float] | None:
        """All differences that neither one-sided test rejects at `error`; None where nothing is defined.

        0 counts as rejected only where the exact test rejects it too (see `p_below`).
        """
        if not self.defined:
            return None
        low, high = self._bound(error, -1.0), self._bound(error, 1.0)
        if low > 0 and self.p_above(0.0) > error:
            low = 0.0
        if high < 0 and self.p_below(0.0) > error:
            high = 0.0
        return low, high

    def _p(self, theta: float, side: float) -> float:
        if not self.defined:
            return 1.0
        if theta != 0:
            return self._score_p(theta, side)
        exact = self._exact_p(side)
        return exact if self.binary else max(exact, self._score_p(theta, side))

    def _score_p(self, theta: float, side: float) -> float:
        score = scores_of(self.sums[None], self.sizes[None], self.span, np.array([self.reach]), theta)
        return float(special.stdtr(self.degrees, side * score[0]))

    def _exact_p(self, side: float) -> float:
        """The share of all ways to call one version the other that look at least as bad (or good).

        Where two versions are equal, each item's (or cluster's) difference might as well have the other
        sign, so this is exact for any distribution of differences; of 0/1 scores it is the exact McNemar
        test. 0, which decides nothing, where there are too many differences to count them all.
        """
        return exact_p(side * self.sums, self.binary)

    def _bound(self, error: float, side: float) -> float:
        inside, outside = self.mean, side * self.span
        if self._score_p(math.nextafter(outside, 0), side) > error:
            return outside
        for _ in range(100):
            middle = (inside + outside) / 2
            if abs(outside - inside) <= 1e-10 * self.span or middle in (inside, outside):
                break
            if self._score_p(middle, side) > error:
                inside = middle
            else:
                outside = middle
        return inside


def exact_p(sums: Floats, binary: bool) -> float:
    """The exact p value of "at least as good" (see `PairedTest`), of the sums of all units, shape (k,)."""
    sums = sums[sums != 0]
    if binary:
        return float(special.bdtr(int((sums > 0).sum()), len(sums), 0.5))
    if len(sums) > MOST_FLIPPED:
        return 0.0
    flipped = _signs(len(sums)) @ sums
    return float((flipped <= sums.sum() + 1e-9 * np.abs(sums).sum()).mean())


def effective_units(sizes: Floats) -> Floats:
    """Kish's effective number of units, shape (m, k) -> (m,); unequal clusters know less than equal ones."""
    return np.asarray(sizes.sum(axis=1) ** 2 / np.maximum((sizes**2).sum(axis=1), 1e-300))


def reaches(sums: Floats, sizes: Floats, span: float) -> Floats:
    """The largest differences that are reckoned with, shape (m, k) -> (m,)."""
    seen = np.abs(sums / np.where(sizes > 0, sizes, 1.0)).max(axis=1, initial=0.0)
    enough = np.count_nonzero(sums, axis=1) >= ENOUGH_DIFFERENCES
    return np.where(enough, np.minimum(seen, span), span)


def scores_of(sums: Floats, sizes: Floats, span: float, reach: Floats, theta: float) -> Floats:
    """Score statistics of "the true difference is theta", (m, k) -> (m,); units of size 0 are absent."""
    # Away from what was seen the reach must grow, or no distribution would have such a mean.
    reach = np.minimum(span, np.maximum(reach, 2 * abs(theta)))
    size = (sizes**2).sum(axis=1) / sizes.sum(axis=1)
    residuals = sums - theta * sizes
    return score_statistics(
        residuals, (sizes > 0).astype(float), -(reach + theta) * size, (reach - theta) * size
    )


def score_statistics(residuals: Floats, counts: Floats, lowest: Floats, highest: Floats) -> Floats:
    """Score statistics of the hypothesis that residuals have mean 0; normal under it. Shape (m, k) -> (m,).

    Row by row, `counts` says how often each residual was seen, `lowest` < 0 < `highest` which unseen ones are
    possible. The weights ``1 / (n (1 + l r))`` maximize the likelihood under the hypothesis; l is the root of
    ``sum r / (1 + l r)`` unless the unseen extreme then had a negative density, where l is the last value
    before and the extreme takes the missing weight. In both cases the variance under the weights is
    ``mean / l``, which makes the statistic ``sign(mean) sqrt(n mean l)``.
    """
    values = np.where(counts > 0, residuals, 0.0)
    n = counts.sum(axis=1)
    means = (counts * values).sum(axis=1) / n
    signs = np.where(means < 0, -1.0, 1.0)
    values = values * signs[:, None]
    means = np.abs(means)
    # The mean must be brought down, so it is the extreme below that may get weight.
    extreme = np.maximum(np.where(signs > 0, -lowest, highest), -values.min(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        last = 1 / extreme
        at_last = _slope(values, counts, last)
        inside = (means > 0) & (at_last < 0)
        roots = np.where(inside, 0.0, last)
        if inside.any():
            roots[inside] = _root(values[inside], counts[inside], last[inside])
    return np.asarray(np.where(means > 0, signs * np.sqrt(n * means * roots), 0.0))


def _slope(values: Floats, counts: Floats, root: Floats) -> Floats:
    below = 1 + root[:, None] * values
    terms = np.where(below > 1e-15, counts * values / below, np.where(counts > 0, -np.inf, 0.0))
    return np.asarray(terms.sum(axis=1))


def _root(values: Floats, counts: Floats, last: Floats) -> Floats:
    """The root of `_slope` between 0, where it is positive, and `last`, where it is not: guarded Newton."""
    low, high = np.zeros_like(last), last.copy()
    first = (counts * values).sum(axis=1) / (counts * values**2).sum(axis=1)
    roots: Floats = np.where((first > low) & (first < high), first, (low + high) / 2)
    open_rows = np.ones(len(last), dtype=bool)
    before = np.full_like(last, np.inf)
    for _ in range(200):
        ratios = values / (1 + roots[:, None] * values)
        slope = (counts * ratios).sum(axis=1)
        # Near `last` there is a pole: a small step there is no sign of the root, a small slope is.
        open_rows &= np.abs(slope) > 1e-13 * (counts * np.abs(ratios)).sum(axis=1)
        if not open_rows.any():
            break
        low, high = np.where(slope > 0, roots, low), np.where(slope > 0, high, roots)
        following = roots + slope / (counts * ratios**2).sum(axis=1)
        newton = (following > low) & (following < high) & (np.abs(slope) < before / 2)
        following = np.where(newton, following, (low + high) / 2)
        # A row that has found its root must not depend on the rows that have not.
        roots, before = np.where(open_rows, following, roots), np.abs(slope)
    return roots


@cache
def _signs(n: int) -> NDArray[np.float64]:
    """All patterns of n signs, shape (2^n, n)."""
    patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return np.asarray(1.0 - 2.0 * patterns, dtype=np.float64)
