"""Which versions are shown to be better than others, and which only look so."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

STEPS = 9
"""Shades of the heat map, 0 the lightest."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A model version's score on a benchmark, and its 95 % interval."""

    model: str
    value: float
    low: float | None
    high: float | None


def ranks(
    scores: Sequence[Scored],
    higher_is_better: bool,
    verdicts: Mapping[tuple[str, str], str],
) -> dict[str, int | None]:
    """1 + the number of versions that are shown to be better, for each version; None without an interval.

    An interval of no width is none: equal scores say nothing of how far off they are.

    Of two that were compared item by item (`verdicts`: candidate, baseline -> verdict) that verdict alone
    counts: only 'better' and 'worse' say that one is better. Of others, one is shown to be better whose whole
    95 % interval is on the better side of the other's, as in Chatbot Arena's ranks (Chiang et al. 2024). So
    versions that nothing tells apart have the same rank.
    """
    sign = 1.0 if higher_is_better else -1.0
    bounds = {
        one.model: tuple(sorted((sign * one.low, sign * one.high)))
        for one in scores
        if one.low is not None and one.high is not None and one.low < one.high
    }
    lows = sorted(low for low, _ in bounds.values())
    above = {model: len(lows) - bisect_right(lows, high) for model, (_, high) in bounds.items()}
    for (candidate, baseline), verdict in verdicts.items():
        if candidate not in bounds or baseline not in bounds or candidate == baseline:
            continue
        above[baseline] += (verdict == "better") - (bounds[candidate][0] > bounds[baseline][1])
        above[candidate] += (verdict == "worse") - (bounds[baseline][0] > bounds[candidate][1])
    return {one.model: 1 + above[one.model] if one.model in above else None for one in scores}


def shades(scores: Sequence[Scored], higher_is_better: bool) -> dict[str, int]:
    """The shade of each version's cell in its benchmark's column: 0 for the worst to STEPS - 1 for the best.

    The scale spans all scores, but never less than twice the usual interval: what the items can't tell apart
    has nearly the same shade.
    """
    if not scores:
        return {}
    values = [one.value for one in scores]
    widths = [one.high - one.low for one in scores if one.low is not None and one.high is not None]
    span = max(max(values) - min(values), 2 * median(widths) if widths else 0.0)
    middle = (max(values) + min(values)) / 2
    if span <= 0:
        return {one.model: STEPS // 2 for one in scores}
    found = {}
    for one in scores:
        share = 0.5 + (one.value - middle) / span * (1 if higher_is_better else -1)
        found[one.model] = min(int(share * STEPS), STEPS - 1)
    return found
