"""Looking early without being wrong more often: group-sequential looks at a growing share of the items.

The items come in random order (by content hash, the same for every version); after each share the verdict
is tried at that look's level, and the levels are made so that all looks together are wrong at most `error` of
the time. That is the significance-level approach to group-sequential tests (Pocock 1977; Jennison and
Turnbull, Group Sequential Methods, 2000), with the error spent by Lan and DeMets's (1983) Pocock-type
function ``error * log(1 + (e - 1) share)``: it spends enough early to stop early. Clusters whose items come
at different looks make looks more alike than the levels reckon with, which errs on the safe side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from scipy import special

from eval_assets.statistics import Floats
from eval_assets.statistics.verdicts import ERROR, Comparison, Verdict, judge, verdict

_NODES = 160
_FARTHEST = 9.0
"""Paths below so many standard deviations have no weight that a float could show beside the others'."""


@dataclass(frozen=True, slots=True)
class Looks:
    """At which shares of the items a staged evaluation looks, and with which one-sided error over all looks.

    Raises ValueError unless the shares rise from above 0 to 1.
    """

    shares: tuple[float, ...] = (0.15, 0.25, 0.35, 0.5, 0.7, 1.0)
    error: float = ERROR

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.shares), self.shares, strict=False))
        if not self.shares or not rising or self.shares[-1] != 1.0:
            raise ValueError(f"looks need shares that rise from above 0 to 1, not {list(self.shares)}")
        if not 0 < self.error < 0.5:
            raise ValueError(f"looks need an error between 0 and 0.5, not {self.error}")

    def levels(self) -> tuple[float, ...]:
        """The one-sided level of each look."""
        return _levels(self.shares, self.error)

    def sizes(self, items: int) -> tuple[int, ...]:
        """How many of so many items each look has."""
        return tuple(min(items, math.ceil(round(share * items, 6))) for share in self.shares)

    def overall_p(self, look: int, p: float) -> float:
        """The smallest error over all looks with which look number `look` (from 0) would reject at level p.

        So a p value of one look can be held against the error over all looks, and p values of several
        benchmarks at different looks against each other (Holm). Interpolated between computed errors; on
        the same side of `error` as p is of the look's level. At least 1e-6.
        """
        errors, levels = _inverse(self.shares, self.error)
        overall = float(np.exp(np.interp(math.log(max(p, 1e-300)), levels[look], errors)))
        if p <= self.levels()[look]:
            return min(overall, self.error)
        return (
            max(overall, math.nextafter(self.error, 1.0))
            if math.log(max(p, 1e-300)) < levels[look][-1]
            else 1.0
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict at one look (number `look` from 0, at `share` of the items); `stop` is whether to end."""

    verdict: Verdict
    stop: bool
    look: int
    share: float


def decide(
    comparison: Comparison, tolerance: float, look: int, looks: Looks | None = None, family: int = 1
) -> Decision:
    """Judge a comparison of the items up to a look (number `look` from 0); `looks` are the default ones.

    It stops where the candidate passes, where it is worse (for one of a `family` of benchmarks: worse by so
    much that it fails the family whatever the others say), and at the last look. Stopped or not, the
    intervals of all looks hold the true difference together, 1 - 2 * error of the time (repeated confidence
    intervals, Jennison and Turnbull 1989). So a stopped cell may be run to its end: its last look then has
    the interval and the level that were planned for it, its verdict takes the place of the earlier one,
    and what earlier looks have spent is never spent again.

    Raises ValueError for a look that there is not, and as `verdict` does.
    """
    looks = looks or Looks()
    if not 0 <= look < len(looks.shares):
        raise ValueError(f"there are looks 0 to {len(looks.shares) - 1}, no look {look}")
    level = looks.levels()[look]
    found = judge(comparison, tolerance, level, looks.error, partial(looks.overall_p, look))
    fails = found.name == "worse" and found.p_worse * family <= looks.error
    last = look == len(looks.shares) - 1
    return Decision(found, found.passed or fails or last, look, looks.shares[look])


def verdict_at(comparison: Comparison, tolerance: float, stage: Mapping[str, Any] | None) -> Verdict:
    """The verdict on a comparison by the `stage` of the candidate's record: that of its look, if it has one.

    Raises ValueError as `verdict` and `decide` do.
    """
    if stage:
        return decide(comparison, tolerance, stage["look"]).verdict
    return verdict(comparison, tolerance)


class _Walk:
    """A Brownian motion that was stopped wherever it had crossed: the density of what still goes on.

    By recursive integration (Armitage, McPherson and Rowe 1969) with Gauss-Legendre nodes.
    """

    def __init__(self, time: float = 0.0, nodes: Floats | None = None, weights: Floats | None = None) -> None:
        self.time = time
        self.nodes = np.zeros(1) if nodes is None else nodes
        self.weights = np.ones(1) if weights is None else weights

    def above(self, time: float, bound: float) -> float:
        """The chance to be above the bound at that time, never having crossed before."""
        return float(self.weights @ special.ndtr((self.nodes - bound) / math.sqrt(time - self.time)))

    def stopped(self, time: float, bound: float) -> "_Walk":
        spread = math.sqrt(time - self.time)
        lowest = -_FARTHEST * math.sqrt(time)
        abscissae, widths = _legendre()
        half = (bound - lowest) / 2
        nodes = lowest + half * (abscissae + 1)
        steps = (nodes[None] - self.nodes[:, None]) / spread
        density = self.weights @ np.exp(-steps * steps / 2) / (spread * math.sqrt(2 * math.pi))
        return _Walk(time, nodes, density * widths * half)


@lru_cache
def _legendre() -> tuple[Floats, Floats]:
    abscissae, weights = np.polynomial.legendre.leggauss(_NODES)
    return np.asarray(abscissae), np.asarray(weights)


@lru_cache(maxsize=1000)
def _levels(shares: tuple[float, ...], error: float) -> tuple[float, ...]:
    walk, spent, levels = _Walk(), 0.0, []
    for share in shares:
        until_now = error * math.log1p((math.e - 1) * share)
        bound = _bound(walk, share, until_now - spent)
        levels.append(float(special.ndtr(-bound / math.sqrt(share))))
        walk, spent = walk.stopped(share, bound), until_now
    return tuple(levels)


def _bound(walk: _Walk, share: float, chance: float) -> float:
    """What the walk is above with that chance."""
    low, high = -_FARTHEST * math.sqrt(share), _FARTHEST * math.sqrt(share)
    for _ in range(60):
        middle = (low + high) / 2
        if walk.above(share, middle) > chance:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@lru_cache
def _inverse(shares: tuple[float, ...], error: float) -> tuple[Floats, Floats]:
    """Logarithms of a grid of errors, shape (k,), and of the levels that they give, shape (looks, k)."""
    errors = np.unique(np.append(np.geomspace(1e-6, 0.45, 60), error))
    levels = np.array([_levels(shares, float(one)) for one in errors])
    return np.log(errors), np.log(levels.T)
