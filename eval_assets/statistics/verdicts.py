"""Is one version better, as good, or worse than another: comparisons sample by sample, and verdicts on them.

`compare` pairs the scores of two versions on the same items; `verdict` judges the difference against a
tolerance; `family_verdict` judges a version on all the benchmarks that gate it. What the verdicts mean, what
their error rates are and how they were checked is in docs/statistics.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from eval_assets.statistics import UNBOUNDED, Clusters, Floats, mean_estimate, ratio_estimate
from eval_assets.statistics.paired import PairedTest

ERROR = 0.025
"""The one-sided error of each claim, so that the interval which decides is the two-sided 95 % one."""

_Z_ERROR, _Z_POWER = 1.959963984540054, 0.8416212335729143

VerdictName: TypeAlias = Literal["better", "equivalent", "not worse", "worse", "undecided"]
PASSING: frozenset[VerdictName] = frozenset({"better", "equivalent", "not worse"})


@dataclass(frozen=True, slots=True)
class Scores:
    """One version's scores on one benchmark, an entry an item.

    `clusters` are as in `statistics`. `weights` make the mean a weighted one, which is how a ratio is
    compared: with the bytes of each item as weights, the difference of bits per byte is that of the whole
    corpus. Perplexities are compared by their logarithm: give ``log(score)`` and the words (or bytes) as
    weights; a tolerance of 0.01 is then one percent of perplexity.
    """

    ids: Sequence[str]
    values: Sequence[float | None] | ArrayLike
    clusters: Clusters = None
    weights: ArrayLike | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against a baseline over their common items; a positive difference is the better candidate.

    `baseline` and `candidate` are the mean scores over the `n` common items, in the metric's own direction.
    `stderr` is that of the difference (paired; clustered where there are `clusters`, else None),
    `unpaired_stderr` what ``sqrt(se_a^2 + se_b^2)`` of two separate evaluations makes of it, as in lm-eval.
    `ci_low` and `ci_high` are the 95 % interval by `method`. `wins` and `losses` are ids, the largest
    difference first; the other `ties` items score the same. `detectable` is the smallest true difference
    that so many items such as these find with 80 % power in a two-sided 5 % test (2.8 times the standard
    error that the interval's width implies, so not 0 where no item differs).
    What is not defined (one item, one cluster) is None.
    """

    n: int
    clusters: int | None
    only_in_baseline: tuple[str, ...]
    only_in_candidate: tuple[str, ...]
    baseline: float
    candidate: float
    difference: float
    stderr: float | None
    unpaired_stderr: float | None
    ci_low: float | None
    ci_high: float | None
    detectable: float | None
    method: str
    wins: tuple[str, ...]
    losses: tuple[str, ...]
    ties: int
    test: PairedTest = field(repr=False, compare=False)

    def as_row(self) -> dict[str, Any]:
        """Everything but the test itself, as plain data for a record."""
        row = {name: getattr(self, name) for name in _COMPARISON_FIELDS}
        return row | {name: list(value) for name, value in row.items() if isinstance(value, tuple)}


_COMPARISON_FIELDS = tuple(name for name in Comparison.__dataclass_fields__ if name != "test")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison says against a tolerance, at one-sided `error`.

    `low` and `high` are the interval that decided. p values are one-sided and speak of claims: `p_worse` of
    "the candidate is worse" (against: it is at least as good), `p_better` likewise, `p_not_worse` of "it is
    worse by less than the tolerance", `p_equivalent` of "it differs by less than the tolerance" (TOST).
    In a staged evaluation they are adjusted for all looks. `reason` is one line.
    """

    name: VerdictName
    tolerance: float
    error: float
    difference: float
    low: float | None
    high: float | None
    p_worse: float
    p_better: float
    p_not_worse: float
    p_equivalent: float
    reason: str

    @property
    def passed(self) -> bool:
        """Whether the candidate is shown to be worse by less than the tolerance, or better."""
        return self.name in PASSING

    def as_row(self) -> dict[str, Any]:
        """As plain data for a record."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FamilyVerdict:
    """A version judged on all the benchmarks that gate it (the `family`, by name, sorted).

    `raw` has each benchmark's verdict by itself, `adjusted` the same where 'worse' and 'better' survive
    Holm's correction over the family, `p_worse` and `p_better` the p values after Holm.
    """

    outcome: Literal["passed", "failed", "undecided"]
    family: tuple[str, ...]
    raw: Mapping[str, VerdictName]
    adjusted: Mapping[str, VerdictName]
    p_worse: Mapping[str, float]
    p_better: Mapping[str, float]
    reason: str

    def as_row(self) -> dict[str, Any]:
        """As plain data for a record."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


def compare(
    baseline: Scores,
    candidate: Scores,
    *,
    higher_is_better: bool,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Comparison:
    """Compare two versions over the items that both have, whatever their order.

    `bounds` is the range that the metric's scores can have (`Metric.bounds`). Of a metric without bounds, two
    scores of one item are taken to differ by no more than the scores of these items do among themselves.

    Raises ValueError, one line, for no common item, an id twice, a score that is absent, not finite or out of
    bounds, lists of different lengths, an item whose cluster or weight differs, or a negative weight.
    """
    first, second = _by_id(baseline, "baseline", bounds), _by_id(candidate, "candidate", bounds)
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError(f"no item is in both: {len(first)} in the baseline, {len(second)} in the candidate")
    for key in common:
        if first[key][1:] != second[key][1:]:
            raise ValueError(f"item {key!r} has another cluster or weight in the candidate")
    a, b = (np.array([side[key][0] for key in common]) for side in (first, second))
    clusters = None if baseline.clusters is None else [first[key][1] for key in common]
    weights = None if baseline.weights is None else np.array([first[key][2] for key in common])
    if weights is not None and weights.sum() <= 0:
        raise ValueError("the weights of the common items sum to 0: nothing to take a mean over")
    differences = b - a if higher_is_better else a - b
    span = bounds[1] - bounds[0]
    if math.isinf(span):
        span = float(max(a.max(), b.max()) - min(a.min(), b.min()))
    if clusters is not None and all(cluster is None for cluster in clusters):
        clusters = None
    test = PairedTest.of(differences, span, clusters, weights)
    interval = test.interval(ERROR) or (None, None)
    width = None if interval[0] is None or interval[1] is None else interval[1] - interval[0]
    value, stderr = _mean(differences, clusters, weights)
    errors = [_mean(side, None, weights)[1] for side in (a, b)]
    order = sorted(range(len(common)), key=lambda i: (-abs(differences[i]), common[i]))
    wins = tuple(common[i] for i in order if differences[i] > 0)
    losses = tuple(common[i] for i in order if differences[i] < 0)
    return Comparison(
        n=len(common),
        clusters=None if clusters is None else len(test.sums),
        only_in_baseline=tuple(sorted(first.keys() - second.keys())),
        only_in_candidate=tuple(sorted(second.keys() - first.keys())),
        baseline=_mean(a, None, weights)[0],
        candidate=_mean(b, None, weights)[0],
        difference=value,
        stderr=stderr,
        unpaired_stderr=None if None in errors else math.hypot(*(error or 0.0 for error in errors)),
        ci_low=interval[0],
        ci_high=interval[1],
        detectable=None if width is None else width / 2 * (1 + _Z_POWER / _Z_ERROR),
        method=_method(test, clusters is not None, weights is not None),
        wins=wins,
        losses=losses,
        ties=len(common) - len(wins) - len(losses),
        test=test,
    )


def verdict(comparison: Comparison, tolerance: float, error: float = ERROR) -> Verdict:
    """Judge a difference against a tolerance, the largest loss that is accepted, in the metric's own unit.

    In this order, with the interval whose two bounds are each wrong at most `error` of the time:
    'better': all of it is above 0. 'equivalent': all of it is inside ±tolerance. 'not worse': all of it is
    above -tolerance. 'worse': all of it is below 0. Else 'undecided'. So a difference that is surely negative
    and surely tolerable is 'equivalent' and passes.

    Raises ValueError for a tolerance that is negative, not finite, or no less than the metric's whole range.
    """
    return judge(comparison, tolerance, error, error, lambda p: p)


def judge(
    comparison: Comparison,
    tolerance: float,
    level: float,
    error: float,
    overall: Callable[[float], float],
) -> Verdict:
    """`verdict` at one look of several: p values are held against `level`, the look's part of `error`.

    `overall` turns a p value of this look into that of all looks, which is what the verdict states.
    """
    test = comparison.test
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"a tolerance of {tolerance} is not a number of 0 or more")
    if test.defined and tolerance >= test.span:
        raise ValueError(f"a tolerance of {tolerance:g} accepts any difference: the range is {test.span:g}")
    worse, better, not_worse, equivalent = _claims(comparison, tolerance)
    name: VerdictName
    if better <= level:
        name = "better"
    elif equivalent <= level:
        name = "equivalent"
    elif not_worse <= level:
        name = "not worse"
    elif worse <= level:
        name = "worse"
    else:
        name = "undecided"
    low, high = test.interval(level) or (None, None)
    return Verdict(
        name=name,
        tolerance=tolerance,
        error=error,
        difference=comparison.difference,
        low=low,
        high=high,
        p_worse=overall(worse),
        p_better=overall(better),
        p_not_worse=overall(not_worse),
        p_equivalent=overall(equivalent),
        reason=_reason(name, comparison, tolerance, low, high, level),
    )


def _claims(comparison: Comparison, tolerance: float) -> tuple[float, float, float, float]:
    """The p values of 'worse', 'better', 'not worse' and 'equivalent', as in `Verdict`."""
    test = comparison.test
    above = test.p_above(-tolerance)
    return (
        test.p_below(0.0),
        test.p_above(0.0),
        above,
        # With no tolerance at all nothing is ever shown to be equivalent.
        max(above, test.p_below(tolerance)) if tolerance > 0 else 1.0,
    )


def family_verdict(verdicts: Mapping[str, Verdict]) -> FamilyVerdict:
    """Judge a version on a family of benchmarks, by name.

    'passed' needs every benchmark to pass by itself. A wrong pass needs a wrong claim on whichever benchmark
    is truly worse, so this intersection-union test keeps the error without a correction (Berger 1982).
    'failed' needs one benchmark that is 'worse' after Holm's (1979) correction over the whole family, which
    keeps the chance of failing a version that is nowhere worse. Else 'undecided'.

    Raises ValueError for no verdicts or for different errors.
    """
    errors = {one.error for one in verdicts.values()}
    if len(errors) != 1:
        raise ValueError(f"a family needs verdicts of one error, these have {sorted(errors)}")
    (error,) = errors
    family = tuple(sorted(verdicts))
    p_worse = holm({name: verdicts[name].p_worse for name in family})
    p_better = holm({name: verdicts[name].p_better for name in family})
    raw = {name: verdicts[name].name for name in family}
    adjusted: dict[str, VerdictName] = {}
    for name in family:
        adjusted[name] = raw[name]
        if raw[name] == "worse" and p_worse[name] > error:
            adjusted[name] = "undecided"
        elif raw[name] == "better" and p_better[name] > error:
            adjusted[name] = "equivalent" if verdicts[name].p_equivalent <= error else "not worse"
    worse = [name for name in family if adjusted[name] == "worse"]
    open_ones = [name for name in family if raw[name] not in PASSING]
    outcome: Literal["passed", "failed", "undecided"]
    if worse:
        outcome = "failed"
        # The first of the named claims is the one that the correction makes the surest.
        worse.sort(key=lambda name: (p_worse[name], name))
        found = "; ".join(f"{name}: {verdicts[name].reason}, p {p_worse[name]:.2g}" for name in worse)
        reason = f"worse on {len(worse)} of {len(family)} (p by Holm's method, one-sided {error:g}): {found}"
    elif open_ones:
        outcome = "undecided"
        found = "; ".join(f"{name}: {verdicts[name].reason}" for name in open_ones)
        reason = f"{len(open_ones)} of {len(family)} not decided at one-sided {error:g}: {found}"
    else:
        outcome = "passed"
        counts = ", ".join(f"{name} {adjusted[name]}" for name in family)
        reason = f"within the tolerance on all {len(family)}, each at one-sided {error:g}: {counts}"
    return FamilyVerdict(outcome, family, raw, adjusted, p_worse, p_better, reason)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values adjusted for their number by Holm's step-down method (1979); needs no independence."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def _by_id(
    scores: Scores, side: str, bounds: tuple[float, float]
) -> dict[str, tuple[float, Any, float | None]]:
    """Each item's score, cluster and weight."""
    values = (
        list(scores.values) if isinstance(scores.values, Sequence) else np.asarray(scores.values).tolist()
    )
    clusters = [None] * len(values) if scores.clusters is None else list(scores.clusters)
    weights = [None] * len(values) if scores.weights is None else np.asarray(scores.weights, float).tolist()
    if not len(scores.ids) == len(values) == len(clusters) == len(weights):
        raise ValueError(f"the {side} has {len(scores.ids)} ids, {len(values)} scores: one of each an item")
    items: dict[str, tuple[float, Any, float | None]] = {}
    for key, value, cluster, weight in zip(scores.ids, values, clusters, weights, strict=True):
        if key in items:
            raise ValueError(f"the {side} has item {key!r} twice")
        if value is None or not math.isfinite(value) or not bounds[0] <= value <= bounds[1]:
            raise ValueError(
                f"the {side}'s score of item {key!r} is {value}, not a number {bounds[0]} to {bounds[1]}"
            )
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the {side}'s weight of item {key!r} is {weight}, not a number of 0 or more")
        items[key] = (float(value), cluster, weight)
    return items


def _mean(values: Floats, clusters: Clusters, weights: Floats | None) -> tuple[float, float | None]:
    if weights is None:
        estimate = mean_estimate(values, clusters)
    else:
        estimate = ratio_estimate(values * weights, weights, clusters)
    return estimate.value, estimate.stderr


def _method(test: PairedTest, clustered: bool, weighted: bool) -> str:
    if not test.defined:
        return "needs two items, or clusters, whose scores can differ"
    name = "clustered score interval" if clustered else "paired score interval"
    if test.binary:
        name = "exact McNemar, Tango's score interval"
    if weighted:
        name = f"{name} of a ratio"
    return f"{name}, t with {test.degrees:.4g} degrees of freedom"


_MEANING: Mapping[VerdictName, str] = {
    "better": "above 0",
    "equivalent": "inside the tolerance of {tolerance:.3g} either way",
    "not worse": "above the tolerated loss of {tolerance:.3g}",
    "worse": "below 0 and not inside the tolerance of {tolerance:.3g}",
    "undecided": "holds both 0 and more than the tolerated loss of {tolerance:.3g}",
}


def _reason(
    name: VerdictName,
    comparison: Comparison,
    tolerance: float,
    low: float | None,
    high: float | None,
    level: float,
) -> str:
    if low is None or high is None:
        return f"{name}: {comparison.n} items cannot tell: {comparison.method}"
    interval = f"{100 * (1 - 2 * level):.4g} % interval {low:+.3g} to {high:+.3g}"
    meaning = _MEANING[name].format(tolerance=tolerance)
    return f"{name}: difference {comparison.difference:+.3g} over {comparison.n} items, {interval}, {meaning}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
