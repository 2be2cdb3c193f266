"""The report of a results store: what goes into it, and building it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb

from eval_assets.report import charts, naming
from eval_assets.report.cell_page import cell_page
from eval_assets.report.comparison_page import comparison_page, pair_page
from eval_assets.report.damaged_page import damaged_cell_page, damaged_list
from eval_assets.report.index_page import index_page, leaderboard_table
from eval_assets.report.model_page import model_page
from eval_assets.report.pairs import asked_for, by_candidate, pairs_of
from eval_assets.report.reading import Comparison, Evaluation, Results, read_results
from eval_assets.report.rendering import Assets, code_digest
from eval_assets.report.writing import Page, publish
from eval_assets.suite import MetricSpec, prepared_spec
from resources.catalog import Catalog
from resources.errors import TransientError, UserError
from resources.keys import key_of_segment
from resources.results import ResultsStore

FOLDER = "reports"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the samples the site holds; the rest is in the results store.

    `items`: samples on all cells' pages together, those of the latest evaluations first, as many on the pages
    of recorded comparisons, and as many on those of other pairs, which have no page beyond that.
    `items_per_page`: of one cell or comparison. `characters`: of one prompt or output.
    """

    items: int = 100_000
    items_per_page: int = 20_000
    characters: int = 20_000


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was built: its index's path or URL, what became of its pages, and how long it took."""

    index: str
    pages_written: int
    pages_kept: int
    pages_removed: int
    seconds: float


def build_report(
    store: ResultsStore,
    *,
    ui: str = "",
    limits: Limits | None = None,
    compare: Sequence[tuple[str, str]] = (),
    on_page: Callable[[int, int], None] = lambda *_: None,
) -> Report:
    """Bring the site in the store's folder ``reports`` up to date with the catalogue, as that is.

    Only what changed since the last build is written. `compare` are pairs (model, baseline) that are to have
    pages of their own from now on. `ui` is where people open Dagster, for links to runs.
    `on_page` is told how many of how many pages are done. Raises UserError without a catalogue, and where
    something can't be read or written; what was there before is then still whole.
    """
    started = time.monotonic()
    with Catalog(store).connect() as connection:
        results = read_results(connection, in_production(store), declared_metrics(store))
        asked = asked_for(store, FOLDER, results, compare)
        pages = site(results, connection, limits or Limits(), ui.rstrip("/"), asked)
        done = publish(store, FOLDER, Assets(), pages, code_digest(), on_page)
    scheme = "" if store.is_local else f"{store.scheme}://"
    return Report(
        f"{scheme}{store.root}/{FOLDER}/{naming.INDEX}",
        done.written,
        done.kept,
        done.removed,
        time.monotonic() - started,
    )


def leaderboard_picture(store: ResultsStore) -> bytes:
    """The leaderboard's heat map as a PNG. Raises UserError without a catalogue."""
    with Catalog(store).connect() as connection:
        results = read_results(connection, in_production(store), declared_metrics(store))
        table = leaderboard_table(results)
    return charts.heat_map(table)


def in_production(store: ResultsStore) -> dict[str, datetime | None]:
    """The versions to which an alias points, and since when, as far as this store has recorded it.

    The registry isn't asked: a report needs nothing but the store. So an alias that somebody moved by hand
    is not where it is; the pages say that this is what was recorded.
    """
    latest: dict[tuple[str, str], tuple[str, datetime | None]] = {}
    for path, move in store.json_files("promotions/*/*.json"):
        name = key_of_segment(path.split("/")[1])
        at = datetime.fromisoformat(move["at"]).astimezone(UTC) if move["at"] else None
        latest[name, move["alias"]] = f"{name}@{move['to']}", at
    return dict(latest.values())


def declared_metrics(store: ResultsStore) -> dict[str, Sequence[MetricSpec]]:
    """The metrics of each benchmark that was prepared; a record that can't be read is listed as damaged."""
    found: dict[str, Sequence[MetricSpec]] = {}
    for path in store.listing("benchmarks/*/current.json"):
        try:
            spec = prepared_spec(store.get_json(path))
        except TransientError:
            raise
        except UserError:
            continue
        if spec is not None:
            found[key_of_segment(path.split("/")[1])] = spec.metrics
    return found


def site(
    results: Results,
    connection: duckdb.DuckDBPyConnection,
    limits: Limits,
    ui: str,
    asked: Sequence[tuple[str, str]] = (),
) -> list[Page]:
    """Every page of the site."""

    @contextmanager
    def cursor() -> Iterator[duckdb.DuckDBPyConnection]:
        with connection.cursor() as one:
            yield one

    table = leaderboard_table(results)
    pages = [index_page(results, table)]
    room = _Room(limits)
    pairs = [(pair, items) for pair in pairs_of(results, asked) if (items := room.take(pair.samples))]
    of_cell = by_candidate([pair for pair, _ in pairs])
    pages += [model_page(results, table, row, cursor, ui, of_cell) for row in table.rows]
    pages += [pair_page(results, pair, cursor, items, limits.characters) for pair, items in pairs]
    room = _Room(limits)
    by_age = sorted(results.comparisons.values(), key=lambda one: _judged_at(results, one), reverse=True)
    for comparison in by_age:
        items = room.take(comparison.n)
        pages.append(comparison_page(results, comparison, cursor, items, limits.characters))
    room = _Room(limits)
    for cell in sorted(results.current.values(), key=_newest_first, reverse=True):
        beside = of_cell.get((cell.dataset, cell.model), ())
        pages.append(cell_page(results, cell, cursor, room.take(cell.samples), limits.characters, ui, beside))
    pages += [
        damaged_cell_page(results, dataset, model)
        for dataset, model in results.damaged_cells
        if (dataset, model) not in results.current
    ]
    return [*pages, damaged_list(results)] if results.damaged else pages


def _newest_first(cell: Evaluation) -> tuple[str, str, str]:
    return str(cell.finished_at), cell.dataset, cell.model


def _judged_at(results: Results, comparison: Comparison) -> tuple[str, str, str]:
    """When the candidate was evaluated; what is gone comes last."""
    _, candidate = results.sides(comparison)
    return "" if candidate is None else str(candidate.finished_at), comparison.dataset, comparison.model


class _Room:
    """What is left of the samples that the site may hold."""

    def __init__(self, limits: Limits) -> None:
        self._left, self._each = limits.items, limits.items_per_page

    def take(self, samples: int) -> int:
        """How many of a page's samples there is room for: as many as one page may have, or none."""
        wanted = min(samples, self._each)
        if wanted > self._left:
            return 0
        self._left -= wanted
        return wanted
