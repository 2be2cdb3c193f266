"""Asset `leaderboard`: the DuckDB catalogue and the table that people look at first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from eval_assets import markdown
from eval_assets.grid.attempts import begin, confessing
from eval_assets.materializations import report_link
from eval_assets.report.naming import INDEX
from resources.catalog import Catalog
from resources.results import ResultsStore
from resources.settings import Settings

_DESCRIPTIONS = {
    "benchmark": "The benchmark's key.",
    "model": "The model version.",
    "metric": "The benchmark's primary metric.",
    "score": "Its value over the items asked.",
    "95% interval": "Where the value over all such items lies, with 95 % confidence.",
    "n": "Items asked, of those that the benchmark has.",
    "against": "Verdict, paired difference and its 95 % interval, against the version in production.",
}
COLUMNS = tuple(_DESCRIPTIONS)


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the grid as people read it."""

    benchmark: str
    model: str
    metric: str
    score: str
    interval: str
    n: str
    against: str

    def cells(self) -> tuple[str, ...]:
        """The values in the order of `COLUMNS`."""
        return (self.benchmark, self.model, self.metric, self.score, self.interval, self.n, self.against)


def leaderboard_cells(catalog: Catalog) -> list[dict[str, Any]]:
    """The current evaluation of each cell, compared with that of the version in production, as plain data.

    The comparison is paired, sample by sample, and its verdict is that of `verdicts`.
    """
    with catalog.connect() as connection:
        found = connection.execute(
            """
            SELECT l.dataset AS benchmark, l.model, d.model IS NOT NULL AS deleted, l.metric, l.value,
                   l.stderr, l.ci_low, l.ci_high, l.n, l.items_available, l.higher_is_better, l.status,
                   l.finished_at, l.evaluation_id, l.origin, c.baseline, c.verdict, c.difference,
                   c.ci_low AS difference_low, c.ci_high AS difference_high
            FROM leaderboard l
            LEFT JOIN comparisons c
              ON c.dataset = l.dataset AND c.model = l.model AND c.candidate_evaluation = l.evaluation_id
            LEFT JOIN deleted_models d ON d.model = l.model
            ORDER BY l.dataset, l.model
            """
        )
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def leaderboard_rows(catalog: Catalog) -> list[Row]:
    """`leaderboard_cells` as people read them."""
    return [row_of(cell) for cell in leaderboard_cells(catalog)]


def row_of(cell: Mapping[str, Any]) -> Row:
    """One of `leaderboard_cells` as people read it."""
    n, available = cell["n"], cell["items_available"]
    score, interval, verdict = "not valid", "", "samples with errors: see the cell's checks"
    if cell["status"] == "valid":
        low, high = cell["ci_low"], cell["ci_high"]
        score = _number(cell["value"])
        interval = "" if low is None else f"{_number(low)} to {_number(high)}"
        difference = [cell[name] for name in ("difference", "difference_low", "difference_high")]
        verdict = _verdict(cell["baseline"], cell["verdict"], difference)
    return Row(
        benchmark=cell["benchmark"],
        model=cell["model"]
        + (" (deleted)" if cell["deleted"] else "")
        + (f" (from {cell['origin']})" if cell["origin"] else ""),
        metric=cell["metric"],
        score=score,
        interval=interval,
        n=f"{n:,}" if n == available else f"{n:,} of {available:,}",
        against=verdict,
    )


def _verdict(baseline: str | None, name: str | None, difference: Sequence[float | None]) -> str:
    if baseline is None:
        return ""
    mean, low, high = difference
    if mean is None or low is None or high is None:
        return f"{name} ({baseline})"
    return f"{name} ({mean:+.3f}, {low:+.3f} to {high:+.3f}; {baseline})"


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    if abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.3g}"


@dg.asset(
    deps=[dg.AssetDep("evaluation", partition_mapping=dg.AllPartitionMapping())],
    group_name="results",
    kinds={"duckdb"},
    owners=["team:evaluation"],
    tags={"stage": "results"},
    code_version="1",
    metadata={
        "dagster/column_schema": dg.TableSchema(
            [dg.TableColumn(name, type="string", description=text) for name, text in _DESCRIPTIONS.items()]
        )
    },
)
def leaderboard(
    context: dg.AssetExecutionContext,
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
) -> dg.MaterializeResult[None]:
    """The catalogue of all committed evaluations (catalog.duckdb), and the leaderboard drawn from it."""
    begin(context)
    catalog = Catalog(store)
    with confessing(context):
        refresh = catalog.refresh()
        rows = leaderboard_rows(catalog)
    for note in refresh.notes:
        context.log.warning(note)
    context.log.info(f"{refresh.added} evaluations added, {refresh.removed} removed, {refresh.total} in all")
    return dg.MaterializeResult(
        metadata={
            "leaderboard": dg.MetadataValue.md(markdown.table(COLUMNS, [row.cells() for row in rows])),
            "evaluations": refresh.total,
            "added": refresh.added,
            "removed": refresh.removed,
            "damaged": refresh.damaged,
            "catalogue": dg.MetadataValue.path(f"{store.root}/catalog.duckdb"),
            **report_link(settings, INDEX),
        }
    )
