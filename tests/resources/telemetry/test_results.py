"""What the catalogue says, as readings: which versions, how many, and what they are worth."""

from collections.abc import Mapping
from datetime import UTC, datetime

import duckdb
import pytest

from resources.catalog import CATALOG, Catalog
from resources.records import Estimate, MetricRow, Sample
from resources.results import Cell, ResultsStore
from resources.telemetry import Champion, Readings, read_results
from tests.resources.catalog.test_catalogue import commit, compared
from tests.resources.telemetry.catalogues import METRICS, large_catalogue
from tests.resources.test_results import findings

NOW = datetime(2026, 1, 15, tzinfo=UTC)
NONE: Mapping[str, Champion] = {}


def readings_of(
    catalog: Catalog, champions: Mapping[str, Champion] = NONE, cells: int = 5000, now: datetime = NOW
) -> Readings:
    with catalog.connect() as connection:
        return read_results(connection, champions, cells=cells, now=now)


def values(readings: Readings, name: str) -> dict[tuple[str, ...], float]:
    return {labels: value for found, labels, value in readings if found == name}


@pytest.fixture
def three_versions(store: ResultsStore) -> Catalog:
    """m@1, m@2 and m@3 on squad, a day after each other."""
    for number, scores in ((1, [1.0, 0.0]), (2, [1.0, 1.0]), (3, [0.0, 0.0])):
        commit(store, f"m@{number}", scores, finished=f"2026-01-0{number}T00:00:00+00:00")
    catalog = Catalog(store)
    catalog.refresh()
    return catalog


def test_the_latest_version_and_the_champion_are_exported_and_no_other(three_versions: Catalog) -> None:
    readings = readings_of(three_versions, {"m": Champion("1", 1_700_000_000.0)})
    assert values(readings, "llm_evaluation_score") == {
        ("m", "1", "squad", "f1"): 0.5,
        ("m", "3", "squad", "f1"): 0.0,
    }
    assert set(values(readings, "llm_evaluation_version_info")) == {
        ("m", "1", "champion"),
        ("m", "3", "latest"),
    }
    assert values(readings, "llm_evaluation_champion_since_timestamp_seconds") == {
        ("m", "1"): 1_700_000_000.0
    }
    assert values(readings, "llm_evaluation_committed") == {("m",): 3}
    assert values(readings, "llm_evaluation_cells") == {(): 2}
    assert values(readings, "llm_evaluation_cells_left_out") == {(): 0}


def test_an_old_version_that_is_evaluated_again_does_not_become_the_latest(
    store: ResultsStore, three_versions: Catalog
) -> None:
    """The weekly recheck of production would otherwise show it as the newest model."""
    commit(store, "m@1", [1.0, 0.0, 1.0], finished="2026-01-09T00:00:00+00:00")
    three_versions.refresh()
    readings = readings_of(three_versions)
    assert set(values(readings, "llm_evaluation_version_info")) == {("m", "3", "latest")}


def test_two_versions_with_the_same_files_are_two_series(store: ResultsStore) -> None:
    """Their evaluations have one id: joined by it alone each is told twice, which Prometheus refuses."""
    for version in ("1", "copy"):
        with store.writer(Cell("squad", f"m@{version}", "1" * 64)) as writer:
            record = findings(model_version=version)
            samples = [Sample("id0", 0, None, None, "p", scores={"f1": 1.0})]
            writer.commit(samples, [MetricRow("f1", None, Estimate(1.0, None, None, None, 1))], record)
    catalog = Catalog(store)
    catalog.refresh()
    found = [
        labels
        for name, labels, _ in readings_of(catalog, {"m": Champion("1")})
        if name in ("llm_evaluation_score", "llm_evaluation_samples")
    ]
    assert len(found) == len(set(found)) == 4


def test_what_was_imported_is_not_watched(store: ResultsStore, three_versions: Catalog) -> None:
    """Somebody's old results would be the newest model, and overdue."""
    before = list(readings_of(three_versions))
    for model in ("m@old", "theirs@1", "m@3"):
        with store.writer(Cell("squad", model, "2" * 64)) as writer:
            name, _, version = model.partition("@")
            at = "2026-01-14T00:00:00+00:00"
            record = findings(
                model_name=name, model_version=version, origin="lm_eval", started_at=at, finished_at=at
            )
            samples = [Sample("id0", 0, None, None, "p", scores={"f1": 1.0})]
            writer.commit(samples, [MetricRow("f1", None, Estimate(1.0, None, None, None, 1))], record)
    assert three_versions.refresh().added == 3
    assert sorted(readings_of(three_versions), key=str) == sorted(before, key=str)


def test_a_champion_without_a_recorded_move_dates_from_its_first_evaluation(three_versions: Catalog) -> None:
    readings = readings_of(three_versions, {"m": Champion("2"), "unknown": Champion("1")})
    since = values(readings, "llm_evaluation_champion_since_timestamp_seconds")
    assert since == {("m", "2"): datetime(2026, 1, 2, tzinfo=UTC).timestamp()}


def test_the_month_counts_from_its_first_day(store: ResultsStore) -> None:
    for number, day in enumerate(("2025-12-31T23:59:59", "2026-01-01T00:00:00", "2026-01-31T12:00:00")):
        commit(store, f"m@{number}", [1.0], finished=f"{day}+00:00")
    catalog = Catalog(store)
    catalog.refresh()
    assert values(readings_of(catalog), "llm_evaluation_month_evaluations") == {("", ""): 2}
    february = readings_of(catalog, now=datetime(2026, 2, 1, tzinfo=UTC))
    assert values(february, "llm_evaluation_month_evaluations") == {}


def test_a_worse_cell_says_so_against_whom(store: ResultsStore, three_versions: Catalog) -> None:
    with duckdb.connect(f"{store.root}/{CATALOG}") as connection:
        connection.execute(
            "INSERT INTO stored.comparisons BY NAME SELECT 'squad' AS dataset, 'm@3' AS model, "
            "'m@1' AS baseline, 'f1' AS metric, 'worse' AS verdict, -0.5 AS difference, "
            "evaluation_id AS candidate_evaluation "
            "FROM evaluations WHERE model = 'm@3'"
        )
        connection.execute(
            "INSERT INTO stored.verdicts BY NAME SELECT 'm@3' AS model, 'failed' AS status UNION ALL "
            "SELECT 'm@2', 'passed'"
        )
    readings = readings_of(three_versions)
    assert values(readings, "llm_evaluation_difference") == {("m", "3", "squad", "f1", "1", "worse"): -0.5}
    assert values(readings, "llm_evaluation_verdict_info") == {("m", "3", "failed"): 1}
    assert values(readings, "llm_evaluation_verdicts") == {("m", "failed"): 1, ("m", "passed"): 1}


def test_a_comparison_of_an_evaluation_that_is_no_longer_current_is_not_told(
    store: ResultsStore, three_versions: Catalog
) -> None:
    """It would raise an alert about a result that was replaced."""
    compared(store, "worse")  # of m@2 on another benchmark, with an evaluation that is not there
    three_versions.refresh()
    assert values(readings_of(three_versions, {"m": Champion("2")}), "llm_evaluation_difference") == {}


def test_damage_is_counted_and_none_is_a_zero(store: ResultsStore, three_versions: Catalog) -> None:
    assert sum(values(readings_of(three_versions), "llm_evaluation_damaged").values()) == 0
    with duckdb.connect(f"{store.root}/{CATALOG}") as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS damaged "
            "(evaluation_id VARCHAR, dataset VARCHAR, model VARCHAR, path VARCHAR, reason VARCHAR)"
        )
        connection.execute("INSERT INTO damaged VALUES ('e-1', 'squad', 'm@1', 'p', 'r')")
    assert values(readings_of(three_versions), "llm_evaluation_damaged") == {("squad",): 1}


def test_a_catalogue_without_a_table_of_damage_is_read(store: ResultsStore, three_versions: Catalog) -> None:
    with duckdb.connect(f"{store.root}/{CATALOG}") as connection:
        connection.execute("DROP TABLE IF EXISTS damaged")
    assert values(readings_of(three_versions), "llm_evaluation_damaged") == {("",): 0}


def test_fifty_thousand_cells_make_as_many_series_as_are_allowed(store: ResultsStore) -> None:
    """Without a cap one store can take a Prometheus down; a cap that nobody sees hides a model."""
    catalog = large_catalogue(store, names=1250, versions=2, datasets=20)
    champions = {f"org/model-{number:04}": Champion("0") for number in range(1250)}
    readings = readings_of(catalog, champions, cells=5000)
    assert values(readings, "llm_evaluation_cells") == {(): 5000}
    # And the one cell that the catalogue was begun with.
    assert values(readings, "llm_evaluation_cells_left_out") == {(): 45_001}
    assert len(values(readings, "llm_evaluation_score")) == 5000 * len(METRICS)
    versions = {labels[1] for labels in values(readings, "llm_evaluation_score")}
    assert versions == {"0"}  # what is in production comes first
    assert len(readings) < 5000 * 25


def test_a_small_cap_bounds_what_is_said_of_versions_and_models(store: ResultsStore) -> None:
    catalog = large_catalogue(store, names=200, versions=3, datasets=2)
    readings = readings_of(catalog, cells=10)
    for name in ("version_info", "committed", "samples", "last_success_timestamp_seconds"):
        assert 0 < len(values(readings, f"llm_evaluation_{name}")) <= 10
