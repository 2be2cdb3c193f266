"""Simulate evaluations of equal, worse and better versions, and write how often the verdicts are wrong.

    python -m tests.simulation [--trials 10000] [--store RESULTS] [--write docs/statistics.md]

With `--store` the agreement between versions is first measured in a results store, and agreement.json is
written anew: its pairs, then the others that stay. Without `--write` the tables are printed only.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from scipy import stats

from tests.simulation.pairs import AGREEMENT, Agreement, as_rows, committed, of_store
from tests.simulation.trials import Rates, rates

SIZES = (64, 200, 1000)
TRUTHS = (0, -1, -2, 2)
"""True differences, in tolerances."""

SEED = 20261124
TOLERANCES = (0.01, 0.02, 0.03, 0.05)
_Z = stats.norm.ppf(0.975) + stats.norm.ppf(0.9)

Result = dict[int, Rates]
"""By true difference, in tolerances."""


def fitting_tolerance(agreement: Agreement, items: int) -> float:
    """The tolerance that so many items decide with 90 % power where the versions are equal.

    ``(z(97.5 %) + z(90 %)) * sqrt(variance / n)``, the variance being that of a version at the edge of the
    tolerance, against which the claim is tested.
    """
    tolerance = 0.05
    for _ in range(100):
        tolerance = float(_Z) * math.sqrt(agreement.variance(-tolerance) / items)
    return tolerance


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--store", default="")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    if options.store:
        measured = list(of_store(options.store))
        if not measured:
            print(f"error: no two versions in {options.store} differ on a benchmark", file=sys.stderr)
            return 2
        kept = [agreement for agreement in committed() if "@" not in agreement.name]
        AGREEMENT.write_text(json.dumps(as_rows(measured + kept), indent=1) + "\n", encoding="utf-8")
    started = time.monotonic()
    cells = [(agreement, items) for agreement in committed() for items in SIZES]
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(_simulate, cells, [options.trials] * len(cells)))
    minutes = (time.monotonic() - started) / 60
    page = tables(cells, found, options.trials)
    print(items_needed(), page, sep="\n")
    print(f"simulated in {minutes:.1f} minutes", file=sys.stderr)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        for mark, part in (("needed", items_needed()), ("simulated", page)):
            before, _, rest = text.partition(f"<!-- {mark}: begin -->\n")
            _, _, after = rest.partition(f"<!-- {mark}: end -->")
            text = f"{before}<!-- {mark}: begin -->\n{part}<!-- {mark}: end -->{after}"
        options.write.write_text(text, encoding="utf-8")
    return 0


def items_needed() -> str:
    """The table of the items that a tolerance needs, in Markdown."""
    rows = [("items for a pass with 90 % power", *(f"tolerance {one}" for one in TOLERANCES))]
    for agreement in committed():
        needed = [_Z**2 * agreement.variance(-one) / one**2 for one in TOLERANCES]
        # As many as leave the tolerance possible to exclude when no item differs.
        least = [4 / one for one in TOLERANCES]
        rows.append((agreement.name, *(f"{math.ceil(max(n)):,}" for n in zip(needed, least, strict=True))))
    unpaired = [_Z**2 * 2 * 0.45 * 0.55 / one**2 for one in TOLERANCES]
    rows.append(("unpaired, accuracy 0.45", *(f"{math.ceil(n):,}" for n in unpaired)))
    return _markdown(rows)


def tables(cells: Sequence[tuple[Agreement, int]], found: Sequence[Result], trials: int) -> str:
    """The tables of the page, in Markdown."""
    wrong = [
        ("versions", "items", "tolerance", "wrong 'worse', full", "staged", "wrong pass, full", "staged")
    ]
    power = [
        (
            "versions",
            "items",
            "equal: passes, full",
            "staged",
            "items used",
            "twice the tolerance worse: 'worse', full",
            "staged",
            "items used",
            "twice better: items used",
        )
    ]
    coverage = [
        ("versions", "items", "equal, full", "at the edge, full", "equal, all looks", "edge, all looks")
    ]
    for (agreement, items), result in zip(cells, found, strict=True):
        name, n = agreement.name, f"{items:,}"
        equal, edge = result[0], result[-1]
        wrong.append(
            (
                name,
                n,
                f"{fitting_tolerance(agreement, items):.3f}",
                _rate(equal.worse, trials),
                _rate(equal.staged_worse, trials),
                _rate(edge.passed, trials),
                _rate(edge.staged_passed, trials),
            )
        )
        power.append(
            (
                name,
                n,
                f"{equal.passed / trials:.1%}",
                f"{equal.staged_passed / trials:.1%}",
                f"{equal.used:.0%}",
                *(
                    ("not possible", "", "")
                    if -2 not in result
                    else (
                        f"{result[-2].worse / trials:.1%}",
                        f"{result[-2].staged_worse / trials:.1%}",
                        f"{result[-2].used:.0%}",
                    )
                ),
                f"{result[2].used:.0%}" if 2 in result else "not possible",
            )
        )
        coverage.append(
            (
                name,
                n,
                _rate(equal.covered, trials),
                _rate(edge.covered, trials),
                _rate(trials - equal.staged_missed, trials),
                _rate(trials - edge.staged_missed, trials),
            )
        )
    worst_worse = max(result[0].staged_worse for result in found), max(result[0].worse for result in found)
    worst_pass = max(result[-1].staged_passed for result in found), max(result[-1].passed for result in found)
    large = [r for (_, items), r in zip(cells, found, strict=True) if items >= 200 and -2 in r and 2 in r]
    used = [(r[-2].used + r[2].used) / 2 for r in large]
    runs = sum(len(result) for result in found) * trials
    summary = (
        f"{trials:,} simulated pairs of versions for each row and each true difference, {runs:,} in all. "
        f"The highest rates of all rows: wrong 'worse' {_rate(max(worst_worse), trials)}, "
        f"wrong pass {_rate(max(worst_pass), trials)}. Items used where the true difference is twice the "
        f"tolerance, either way, from 200 items on: {sum(used) / len(used):.0%} on average over the rows "
        f"({min(used):.0%} to {max(used):.0%}); where the candidate is the worse one "
        f"{sum(r[-2].used for r in large) / len(large):.0%}."
    )
    return (
        f"{summary}\n\n**Errors**, which the levels are made to keep at 2.5 %\n\n"
        f"{_markdown(wrong)}\n**Power and items used**\n\n{_markdown(power)}\n"
        "**Coverage** of the 95 % interval, and of the intervals of all looks together\n\n"
        f"{_markdown(coverage)}"
    )


def _simulate(cell: tuple[Agreement, int], trials: int) -> Result:
    agreement, items = cell
    tolerance = fitting_tolerance(agreement, items)
    result = {}
    for truth in TRUTHS:
        if agreement.possible(truth * tolerance):
            result[truth] = rates(agreement, items, tolerance, truth * tolerance, trials, SEED)
    return result


def _rate(count: int, trials: int) -> str:
    """A rate with its own 95 % interval (Clopper and Pearson)."""
    interval = stats.binomtest(count, trials).proportion_ci(0.95)
    return f"{count / trials:.2%} ({interval.low:.2%} to {interval.high:.2%})"


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
