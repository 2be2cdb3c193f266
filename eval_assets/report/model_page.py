"""A version: its scores and those of the versions before it, what they cost, and where they come from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from eval_assets.report import naming
from eval_assets.report.cell_page import Cursor, Groups, by_group
from eval_assets.report.charts import history
from eval_assets.report.index_page import MARKS, Column, Row, Shown, Table
from eval_assets.report.pairs import Pair, page_of
from eval_assets.report.reading import Comparison, Evaluation, Results, read_metrics_of
from eval_assets.report.rendering import render
from eval_assets.report.writing import Page, plain

VERSIONS = 24
"""How many versions of a model a history goes back."""


@dataclass(frozen=True, slots=True)
class Line:
    """A benchmark in the page's tables."""

    column: Column
    shown: Shown
    cell: Evaluation | None
    against: Comparison | None
    pairs: Sequence[Pair]


@dataclass(frozen=True, slots=True)
class Total:
    """What evaluations came to in all; a sum of nothing that is known is None."""

    evaluations: int
    samples: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    accelerator_seconds: float | None
    cost: float | None


def total(evaluations: Sequence[Evaluation]) -> Total:
    """The sums over evaluations."""

    def known(values: Sequence[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return sum(found) if found else None

    return Total(
        len(evaluations),
        sum(one.samples for one in evaluations),
        sum(one.prompt_tokens or 0 for one in evaluations),
        sum(one.output_tokens or 0 for one in evaluations),
        sum(seconds(one) for one in evaluations),
        known([one.accelerator_seconds for one in evaluations]),
        known([one.cost for one in evaluations]),
    )


def seconds(one: Evaluation) -> float:
    """How long an evaluation took, loading included."""
    return sum(
        phase or 0.0
        for phase in (one.seconds_load, one.seconds_prefill, one.seconds_decode, one.seconds_score)
    )


def versions_beside(results: Results, model: str) -> list[str]:
    """The versions of the same model, the oldest first: the latest ones, and always this one."""
    name = model.rpartition("@")[0]
    same = [one for one in results.models if one.rpartition("@")[0] == name]
    return [one for position, one in enumerate(same) if position < VERSIONS or one == model][::-1]


def model_page(
    results: Results,
    table: Table,
    row: Row,
    cursor: Cursor,
    ui: str,
    pairs: Mapping[tuple[str, str], Sequence[Pair]],
) -> Page:
    """The page of a version."""
    path, model = row.page, row.model
    lines = []
    for column, shown in zip(table.columns, row.cells, strict=True):
        cell = results.current.get((column.dataset, model))
        if shown.state != "none":
            against = results.verdict_on(cell) if cell is not None else None
            lines.append(Line(column, shown, cell, against, pairs.get((column.dataset, model), ())))
    beside = versions_beside(results, model)
    rows = {one.model: one for one in table.rows}
    evaluations = results.by_model[model]
    verdict = results.verdicts.get(model)
    damaged = results.damaged_of.get(model, ())
    inputs = [
        _facts(row),
        list(map(plain, damaged)),
        [[plain(line.column), plain(line.against), list(map(page_of, line.pairs))] for line in lines],
        [_facts_beside(rows[one]) for one in beside],
        [one.identity for one in evaluations],
        plain(verdict),
        ui,
    ]

    def files() -> Iterator[tuple[str, bytes]]:
        groups: list[tuple[str, Groups]] = []
        cells = [line.cell for line in lines if line.cell is not None]
        with cursor() as connection:
            metrics = read_metrics_of(connection, model, cells)
        for cell in cells:
            _, found = by_group(metrics[cell.dataset], cell.primary_metric)
            if len(found.rows) > 1:
                groups.append((cell.dataset, found))
        latest = evaluations[0] if evaluations else None
        yield (
            path,
            render(
                "model.html.j2",
                path,
                row=row,
                model=model,
                latest=latest,
                lines=lines,
                verdict=verdict,
                marks=MARKS,
                link=lambda target: naming.link(path, target),
                comparison_page=naming.comparison_page,
                page_of=page_of,
                cell_page=naming.cell_page,
                model_page=naming.model_page,
                beside=[rows[one] for one in reversed(beside)],
                columns=[
                    (position, column)
                    for position, column in enumerate(table.columns)
                    if any(rows[one].cells[position].state != "none" for one in beside)
                ],
                chart=_history(table, [rows[one] for one in beside], model),
                groups=groups,
                evaluations=evaluations,
                total=total(evaluations),
                seconds=seconds,
                packages=sorted(((latest.of_record("packages") if latest else None) or {}).items()),
                ui=ui,
                known=set(rows),
                damaged=damaged,
            ),
        )

    return Page(path, inputs, files)


_SHOWN = attrgetter(
    "state", "page", "value", "low", "high", "n", "rank", "why", "against", "verdict", "difference",
    "difference_low", "difference_high", "damaged",
)  # fmt: skip
_SHOWN_BESIDE = attrgetter("state", "page", "value", "low", "high", "n")


def _facts(row: Row) -> list[Any]:
    """What the page of a version shows of its row; how the leaderboard colours it is not among it."""
    whole = [row.model, row.production, str(row.since), row.deleted, row.verdict, row.unbeaten, row.ranked]
    return [*whole, *map(_SHOWN, row.cells)]


def _facts_beside(row: Row) -> list[Any]:
    """What the pages of other versions show of a row."""
    return [row.model, row.production, *map(_SHOWN_BESIDE, row.cells)]


def _history(table: Table, rows: Sequence[Row], model: str) -> str:
    """The chart of the versions' scores; none where there is only one version."""
    points = [
        {
            "dataset": column.dataset,
            "metric": column.metric,
            "version": row.model.rpartition("@")[2],
            "value": shown.value,
            "low": shown.low,
            "high": shown.high,
            "n": shown.n,
            "current": row.model == model,
        }
        for row in rows
        for column, shown in zip(table.columns, row.cells, strict=True)
        if shown.state == "scored"
    ]
    return history(points) if len(rows) > 1 and points else ""
