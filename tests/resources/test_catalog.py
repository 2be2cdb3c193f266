from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import statsmodels.api as sm

from resources.catalog import Catalog
from resources.errors import UserError
from resources.records import Estimate, MetricRow, Output, Sample
from resources.results import Cell, ResultsStore


def commit(
    store: ResultsStore,
    model: str,
    scores: list[float],
    *,
    digest: str = "d",
    benchmark: str = "b",
    clusters: list[str] | None = None,
    higher_is_better: bool = True,
    finished: str = "2026-01-01T00:00:00+00:00",
    available: int = 1000,
) -> str:
    """Commit an evaluation with these scores; returns its id."""
    import hashlib

    identity = f"{model}{digest}{benchmark}{len(scores)}"
    cell = Cell("squad", model, hashlib.sha256(identity.encode()).hexdigest())
    samples = [
        Sample(f"id{i}", i, "g", clusters[i] if clusters else None, f"prompt {i}", scores={"f1": score})
        for i, score in enumerate(scores)
    ]
    name, version = model.split("@")
    value = float(np.mean(scores))
    record = {
        "model_name": name, "model_version": version, "model_digest": digest,
        "benchmark_fingerprint": benchmark,
        "status": "valid", "primary_metric": "f1", "higher_is_better": higher_is_better,
        "samples": len(scores), "items_available": available, "started_at": finished, "finished_at": finished,
        "engine": {"device": "cpu", "threads": 2}, "seconds": {"load": 1.0},
        "score": {"value": value, "stderr": 0.1, "ci_low": 0.0, "ci_high": 1.0},
    }  # fmt: skip
    with store.writer(cell) as writer:
        writer.commit(samples, [MetricRow("f1", None, Estimate(value, 0.1, 0, 1, len(scores)))], record)
        return writer.evaluation_id


RECORD: dict[str, Any] = {
    "model_name": "m", "model_version": "1", "model_digest": "d", "benchmark_fingerprint": "b",
    "status": "valid", "primary_metric": "f1", "higher_is_better": True, "samples": 1, "items_available": 1,
    "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:00:00+00:00",
    "engine": {}, "seconds": {}, "score": None,
}  # fmt: skip


def query(catalog: Catalog, text: str) -> list[tuple[Any, ...]]:
    with catalog.connect() as connection:
        return connection.execute(text).fetchall()


def test_a_catalogue_refreshed_step_by_step_equals_one_made_at_once(store: ResultsStore) -> None:
    catalog = Catalog(store)
    for number in range(3):
        commit(store, f"m@{number}", [1.0, 0.0, float(number % 2)])
        assert catalog.refresh().added == 1
    tables = ("evaluations", "metrics", "samples", "leaderboard", "history", "comparisons", "sample_scores")
    stepwise = {name: sorted(map(str, query(catalog, f"SELECT * FROM {name}"))) for name in tables}
    Path(store.root, "catalog.duckdb").unlink()
    assert catalog.refresh().added == 3
    assert {name: sorted(map(str, query(catalog, f"SELECT * FROM {name}"))) for name in tables} == stepwise
    assert len(stepwise["samples"]) == 9


def test_an_evaluation_removed_from_the_store_leaves_the_catalogue(store: ResultsStore) -> None:
    catalog = Catalog(store)
    commit(store, "m@1", [1.0, 0.0])
    commit(store, "m@2", [1.0, 0.0])
    catalog.refresh()
    next(Path(store.root).glob("evaluations/squad/m@1/*/evaluation.json")).unlink()
    assert catalog.refresh().removed == 1
    assert query(catalog, "SELECT DISTINCT model FROM samples") == [("m@2",)]


def test_every_output_of_an_item_and_the_sampling_share_can_be_asked_for(store: ResultsStore) -> None:
    outputs = (Output("four", "stop", 2, {"f1": 1.0}), Output("five", "length", 9, {"f1": 0.0}))
    samples = [Sample("id0", 0, None, None, "p", output="four", outputs=outputs, scores={"f1": 0.5})]
    with store.writer(Cell("squad", "m@1", "1" * 64)) as writer:
        estimate = Estimate(0.5, 0.1, 0.0, 1.0, 1, sampling_share=0.25)
        writer.commit(samples, [MetricRow("f1", None, estimate)], RECORD)
    catalog = Catalog(store)
    catalog.refresh()
    found = query(catalog, "SELECT o.text, o.tokens, o.scores['f1'] FROM samples, unnest(outputs) AS u(o)")
    assert found == [("four", 2, 1.0), ("five", 9, 0.0)]
    assert query(catalog, "SELECT sampling_share FROM metrics") == [(0.25,)]


def test_evaluations_of_earlier_versions_are_read_beside_todays(store: ResultsStore) -> None:
    """An upgrade adds columns; what a team has committed before must stay on the leaderboard."""
    for number in range(3):
        commit(store, f"m@{number}", [1.0, 0.0])
    for table, column in (("samples", "outputs"), ("metrics", "sampling_share")):
        for path in sorted(Path(store.root).glob(f"evaluations/squad/m@*/*/{table}.parquet"))[:2]:
            pq.write_table(pq.read_table(path).drop_columns([column]), path)
    catalog = Catalog(store)
    assert catalog.refresh().total == 3
    assert query(catalog, "SELECT count(*), count(outputs) FROM samples") == [(6, 2)]
    assert query(catalog, "SELECT count(*) FROM metrics") == [(3,)]


def test_an_unfinished_evaluation_is_in_no_view(store: ResultsStore) -> None:
    """A half-written evaluation on the leaderboard would be a wrong number that somebody believes."""
    with store.writer(Cell("squad", "m@1", "ab" * 32)) as writer:
        writer.append([Sample("id", 0, None, None, "p", scores={"f1": 1.0})])
        Catalog(store).refresh()
        assert query(Catalog(store), "SELECT count(*) FROM samples") == [(0,)]


def test_a_reader_keeps_its_catalogue_while_another_refreshes(store: ResultsStore) -> None:
    catalog = Catalog(store)
    commit(store, "m@1", [1.0, 0.0])
    catalog.refresh()
    with catalog.connect() as reader:
        commit(store, "m@2", [1.0, 0.0])
        catalog.refresh()
        assert reader.execute("SELECT count(*) FROM evaluations").fetchall() == [(1,)]
    assert query(catalog, "SELECT count(*) FROM evaluations") == [(2,)]


@pytest.mark.parametrize("damage", [b"", b"not a database", b"\0" * 10_000])
def test_a_damaged_catalogue_is_made_again(store: ResultsStore, damage: bytes) -> None:
    commit(store, "m@1", [1.0, 0.0])
    Path(store.root, "catalog.duckdb").write_bytes(damage)
    Catalog(store).refresh()
    assert query(Catalog(store), "SELECT count(*) FROM evaluations") == [(1,)]


def test_without_a_catalogue_one_line_says_what_to_do(store: ResultsStore) -> None:
    with pytest.raises(UserError, match=r"no catalogue in .*'leaderboard'"), Catalog(store).connect():
        pass


def test_a_quick_try_never_hides_a_fuller_evaluation(store: ResultsStore) -> None:
    full = commit(store, "m@1", [1.0, 0.0, 1.0, 1.0], finished="2026-01-01T00:00:00+00:00")
    commit(store, "m@1", [1.0], finished="2026-01-02T00:00:00+00:00")
    catalog = Catalog(store)
    catalog.refresh()
    assert query(catalog, "SELECT evaluation_id, n FROM leaderboard") == [(full, 4)]
    changed = commit(store, "m@1", [0.0, 0.0], digest="other files", finished="2026-01-03T00:00:00+00:00")
    catalog.refresh()
    assert query(catalog, "SELECT evaluation_id, n FROM leaderboard") == [(changed, 2)]
    assert len(query(catalog, "SELECT * FROM history")) == 3


@pytest.mark.parametrize("clustered", [False, True])
def test_the_paired_comparison_equals_statsmodels(store: ResultsStore, clustered: bool) -> None:
    generator = np.random.default_rng(7)
    n = 120
    groups = generator.integers(0, 30, n) if clustered else np.arange(n)
    shared = generator.normal(0, 0.2, n)[groups]
    first = generator.uniform(0, 1, n)
    second = first + shared + generator.normal(-0.1, 0.1, n)
    clusters = [f"c{g}" for g in groups] if clustered else None
    commit(store, "m@1", first.tolist(), clusters=clusters)
    commit(store, "m@2", second.tolist(), clusters=clusters)
    catalog = Catalog(store)
    catalog.refresh()
    ((difference, stderr, low, high, count, change),) = query(
        catalog,
        "SELECT difference, stderr, ci_low, ci_high, n, change FROM comparisons "
        "WHERE model = 'm@2' AND baseline = 'm@1'",
    )
    model = sm.OLS(second - first, np.ones(n)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    size = len(set(groups.tolist()))
    expected = float(model.bse[0]) * np.sqrt(size / (size - 1))
    assert count == n
    assert difference == pytest.approx(float(np.mean(second - first)))
    assert stderr == pytest.approx(expected)
    assert (low, high) == (
        pytest.approx(difference - 1.959964 * expected, abs=1e-6),
        pytest.approx(difference + 1.959964 * expected, abs=1e-6),
    )
    assert change == ("worse" if high < 0 else "undecided")


@pytest.mark.parametrize(
    ("second", "higher_is_better", "change"),
    [
        ([0.0] * 20, True, "worse"),
        ([0.0] * 20, False, "better"),
        ([1.0, 0.9] * 10, True, "unchanged"),
        ([1.0, 0.9] * 9 + [0.9, 1.0], True, "unchanged"),
        ([1.0, 0.0] * 2 + [1.0, 0.9] * 7 + [0.0, 1.0], True, "undecided"),
    ],
)
def test_a_change_is_named_in_the_metrics_direction(
    store: ResultsStore, second: list[float], higher_is_better: bool, change: str
) -> None:
    commit(store, "m@1", [1.0, 0.9] * 10, higher_is_better=higher_is_better)
    commit(store, "m@2", second, higher_is_better=higher_is_better)
    Catalog(store).refresh()
    assert query(Catalog(store), "SELECT change FROM comparisons WHERE model = 'm@2'") == [(change,)]


def test_versions_on_different_benchmark_items_are_not_compared(store: ResultsStore) -> None:
    commit(store, "m@1", [1.0, 0.0], benchmark="old")
    commit(store, "m@2", [0.0, 0.0], benchmark="new")
    Catalog(store).refresh()
    assert query(Catalog(store), "SELECT * FROM comparisons") == []


def test_the_connection_can_only_read(store: ResultsStore) -> None:
    commit(store, "m@1", [1.0])
    Catalog(store).refresh()
    with (
        pytest.raises(duckdb.InvalidInputException, match="read-only"),
        Catalog(store).connect() as connection,
    ):
        connection.execute("DELETE FROM samples")


def test_an_unchanged_catalogue_is_not_written_again(store: ResultsStore) -> None:
    """Every query refreshes first: copying a large catalogue each time would make looking slow."""
    commit(store, "m@1", [1.0, 0.0])
    Catalog(store).refresh()
    before = Path(store.root, "catalog.duckdb").stat()
    assert Catalog(store).refresh().total == 1
    after = Path(store.root, "catalog.duckdb").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_leaderboard_shows_the_files_that_are_recorded_now(store: ResultsStore) -> None:
    old = commit(store, "m@1", [1.0, 0.0], digest="old", finished="2026-01-01T00:00:00+00:00")
    new = commit(store, "m@1", [1.0, 1.0], digest="new", finished="2026-01-02T00:00:00+00:00")
    catalog = Catalog(store)
    for digest, expected in (("new", new), ("old", old), ("never evaluated", new)):
        store.save_model_version("m@1", {"digest": digest})
        catalog.refresh()
        assert query(catalog, "SELECT evaluation_id FROM leaderboard") == [(expected,)]


def test_an_object_store_has_a_catalogue_too() -> None:
    store = ResultsStore("memory://catalogue/results")
    commit(store, "m@1", [1.0, 0.0])
    catalog = Catalog(store)
    assert catalog.refresh().added == 1
    commit(store, "m@2", [1.0, 0.0])
    assert catalog.refresh().added == 1
    assert query(catalog, "SELECT count(*) FROM samples") == [(4,)]
