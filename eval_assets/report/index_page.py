"""The leaderboard as a page: which versions, on which benchmarks, and what is shown to be better."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from eval_assets.metrics import weighs_texts
from eval_assets.report import naming
from eval_assets.report.ranking import Scored, ranks, shades
from eval_assets.report.reading import Results
from eval_assets.report.rendering import render
from eval_assets.report.writing import Page, plain

MARKS = {"better": "▲", "equivalent": "=", "not worse": "≥", "worse": "▼", "undecided": "?"}
"""One sign for each verdict; its word is always beside it for those who don't see signs."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One cell of the table. `state`: scored, invalid or damaged (`why` has the reason of these), or none."""

    state: str
    page: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    available: int | None = None
    """Items that the benchmark has; None where that isn't known."""
    rank: int | None = None
    shade: int = 0
    imported: bool = False
    why: str = ""
    damaged: int = 0
    """Evaluations of the cell that can't be read; the one that is shown may not be the latest then."""
    baseline: int | None = None
    """The row of the version that the verdict is against, where it is in the table."""
    against: str = ""
    verdict: str = ""
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A benchmark: its primary metric, and which way is better."""

    dataset: str
    metric: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A version: on `unbeaten` of the `ranked` benchmarks no version is shown to be better.

    `since` is when it was put into production, as far as that is known.
    """

    model: str
    page: str
    production: bool
    since: datetime | None
    deleted: bool
    verdict: str
    unbeaten: int
    ranked: int
    cells: Sequence[Shown]


@dataclass(frozen=True, slots=True)
class Table:
    """The whole leaderboard."""

    columns: Sequence[Column]
    rows: Sequence[Row]


def leaderboard_table(results: Results) -> Table:
    """The leaderboard: versions in rows, by name, of each model the latest first.

    No order by merit: by the benchmarks where a version is unbeaten, those would be on top that were asked
    the fewest items, which show nothing.
    """
    columns, cells = [], {}
    for dataset in results.datasets:
        column, found = _column(results, dataset)
        columns.append(column)
        cells[dataset] = found
    rows = []
    for model in results.models:
        shown = [cells[dataset].get(model, Shown("none")) for dataset in results.datasets]
        verdict = results.verdicts.get(model)
        rows.append(
            Row(
                model,
                naming.model_page(model),
                model in results.production,
                results.production.get(model),
                model in results.deleted,
                "" if verdict is None else verdict.status,
                sum(cell.rank == 1 for cell in shown),
                sum(cell.rank is not None for cell in shown),
                shown,
            )
        )
    position = {row.model: at for at, row in enumerate(rows)}
    return Table(
        columns,
        [
            replace(row, cells=[replace(one, baseline=position.get(one.against)) for one in row.cells])
            for row in rows
        ],
    )


def _column(results: Results, dataset: str) -> tuple[Column, dict[str, Shown]]:
    evaluations = {model: one for (name, model), one in results.current.items() if name == dataset}
    scored = [
        Scored(one.model, one.value, one.ci_low, one.ci_high)
        for one in evaluations.values()
        if one.valid and one.value is not None
    ]
    newest = max(evaluations.values(), key=lambda one: str(one.finished_at), default=None)
    higher = newest is None or newest.higher_is_better
    comparisons = {model: results.verdict_on(one) for model, one in evaluations.items()}
    pairs = {
        (model, one.baseline): one.verdict
        for model, one in comparisons.items()
        if one is not None
        and one.baseline in evaluations
        and evaluations[one.baseline].evaluation_id == one.baseline_evaluation
    }
    rank, shade = ranks(scored, higher, pairs), shades(scored, higher)
    found = {}
    for model, one in evaluations.items():
        page = naming.cell_page(dataset, model)
        if not one.valid:
            why = (
                f"{one.samples_with_error or 0:,} samples with errors"
                if one.status != "valid"
                else "no value"
            )
            found[model] = Shown("invalid", page, n=one.samples, why=why)
            continue
        against = comparisons[model]
        shown: dict[str, Any] = {}
        if against is not None:
            # Perplexities are compared by their logarithm: that difference isn't one of the values shown.
            same_unit = not weighs_texts(one.primary_metric, results.declared.get(dataset, ()), one.task)
            sign = 1 if higher else -1
            low, high = sorted([(against.ci_low or 0) * sign, (against.ci_high or 0) * sign])
            known = same_unit and against.difference is not None and against.ci_low is not None
            shown = {
                "against": against.baseline,
                "verdict": against.verdict,
                "difference": against.difference * sign if known and against.difference is not None else None,
                "difference_low": low if known else None,
                "difference_high": high if known else None,
            }
        found[model] = Shown(
            "scored", page, one.value, one.ci_low, one.ci_high, one.samples, one.items_available, rank[model],
            shade[model], one.of_record("origin") is not None, **shown,
        )  # fmt: skip
    for (name, model), damages in results.damaged_cells.items():
        if name == dataset:
            lacking = Shown("damaged", naming.cell_page(dataset, model), why=damages[0].reason)
            found[model] = replace(found.get(model, lacking), damaged=len(damages))
    return Column(dataset, "" if newest is None else newest.primary_metric, higher), found


def index_page(results: Results, table: Table) -> Page:
    """The page that people open first."""
    latest = max((one.finished_at for one in results.evaluations if one.finished_at), default=None)
    samples = sum(one.samples for one in results.evaluations)

    def files() -> Iterator[tuple[str, bytes]]:
        yield (
            naming.INDEX,
            render(
                "index.html.j2",
                naming.INDEX,
                table=table,
                marks=MARKS,
                link=lambda target: naming.link(naming.INDEX, target),
                latest=latest,
                evaluations=len(results.evaluations),
                samples=samples,
                damaged=len(results.damaged),
                damaged_page=naming.link(naming.INDEX, naming.DAMAGED),
            ),
        )

    counts = [len(results.evaluations), samples, len(results.damaged)]
    return Page(naming.INDEX, [_facts(table), str(latest), *counts], files)


def _facts(table: Table) -> list[Any]:
    """All that the page shows of the table."""
    rows = [[*(plain(row) or [])[:-1], list(map(plain, row.cells))] for row in table.rows]
    return [list(map(plain, table.columns)), rows]
