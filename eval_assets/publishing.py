"""Asset `report`: the static site of the results, which people open."""

import base64

import dagster as dg

from eval_assets import markdown
from eval_assets.grid.attempts import begin, confessing
from eval_assets.leaderboard import COLUMNS, leaderboard, leaderboard_rows
from eval_assets.materializations import report_link
from eval_assets.report.naming import INDEX
from resources.catalog import Catalog
from resources.results import ResultsStore
from resources.settings import Settings

ROWS = 60
"""Rows of the leaderboard that the asset's metadata has; the report has all of them."""


class ReportConfig(dg.Config):
    """How much of the samples the site holds (`eval_assets.report.building.Limits`)."""

    items: int = 100_000
    items_per_page: int = 20_000
    characters: int = 20_000


@dg.asset(
    deps=[leaderboard],
    group_name="results",
    kinds={"html"},
    owners=["team:evaluation"],
    tags={"stage": "results"},
    code_version="1",
)
def report(
    context: dg.AssetExecutionContext,
    config: ReportConfig,
    store: dg.ResourceParam[ResultsStore],
    settings: dg.ResourceParam[Settings],
) -> dg.MaterializeResult[None]:
    """A static site of the leaderboard, versions, comparisons and samples (reports/index.html in the store).

    Pages whose data is as it was are kept as they are.
    """
    # Only here: the charts' package takes a second to import, which no other process should pay for.
    from eval_assets.report.building import Limits, build_report, leaderboard_picture

    begin(context)
    limits = Limits(config.items, config.items_per_page, config.characters)
    with confessing(context):
        built = build_report(store, ui=settings.ui, limits=limits)
        rows = leaderboard_rows(Catalog(store))
        picture = base64.b64encode(leaderboard_picture(store)).decode()
    context.log.info(
        f"{built.index}: {built.pages_written} pages written, {built.pages_kept} kept, "
        f"{built.pages_removed} removed in {built.seconds:.1f} s"
    )
    table = markdown.table(COLUMNS, [row.cells() for row in rows[:ROWS]])
    if len(rows) > ROWS:
        table += f"\n\n{len(rows) - ROWS:,} more rows are in the report."
    return dg.MaterializeResult(
        metadata={
            # Without an address a path to copy: no browser follows a link to a file from a server's page.
            "report": dg.MetadataValue.path(built.index),
            "picture": dg.MetadataValue.md(f"![The leaderboard](data:image/png;base64,{picture})"),
            "leaderboard": dg.MetadataValue.md(table),
            "pages_written": built.pages_written,
            "pages_kept": built.pages_kept,
            "pages_removed": built.pages_removed,
            "seconds": round(built.seconds, 2),
            **report_link(settings, INDEX),
        }
    )
