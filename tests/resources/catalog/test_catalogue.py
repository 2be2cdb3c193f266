from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.catalog import Catalog, Refresh
from resources.errors import UserError
from resources.records import Estimate, MetricRow, Output, Sample
from resources.results import Cell, ResultsStore
from tests.resources.test_results import findings


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
    record = findings(
        model_name=name, model_version=version, model_digest=digest, benchmark_fingerprint=benchmark,
        higher_is_better=higher_is_better, samples=len(scores), items_available=available,
        started_at=finished, finished_at=finished, engine={"device": "cpu", "threads": 2},
        seconds={"load": 1.0}, score={"value": value, "stderr": 0.1, "ci_low": 0.0, "ci_high": 1.0},
    )  # fmt: skip
    with store.writer(cell) as writer:
        writer.commit(samples, [MetricRow("f1", None, Estimate(value, 0.1, 0, 1, len(scores)))], record)
        return writer.evaluation_id


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


def test_two_versions_with_the_same_files_are_both_in_the_catalogue(store: ResultsStore) -> None:
    """Their evaluations have the same fingerprint, so the same id: one would hide the other."""
    for model in ("m@1", "m@copy"):
        with store.writer(Cell("squad", model, "1" * 64)) as writer:
            samples = [Sample("id0", 0, None, None, "p", scores={"f1": 1.0})]
            record = findings(model_version=model[2:])
            writer.commit(samples, [MetricRow("f1", None, Estimate(1.0, None, None, None, 1))], record)
    catalog = Catalog(store)
    assert catalog.refresh().total == 2
    asked = (
        "SELECT model, n FROM leaderboard JOIN (SELECT model, count(*) FROM samples GROUP BY 1) USING (model)"
    )
    assert sorted(query(catalog, asked)) == [("m@1", 1), ("m@copy", 1)]
    next(Path(store.root).glob("evaluations/squad/m@copy/*/evaluation.json")).unlink()
    assert catalog.refresh().removed == 1
    assert query(catalog, asked) == [("m@1", 1)]


def test_an_evaluation_whose_files_were_replaced_is_read_again(store: ResultsStore) -> None:
    """What retention took out of a samples file would otherwise stay in the catalogue for ever."""
    commit(store, "m@1", [1.0, 0.0])
    commit(store, "m@2", [1.0, 0.0])
    catalog = Catalog(store)
    catalog.refresh()
    path = next(Path(store.root).glob("evaluations/squad/m@1/*/samples.parquet"))
    table = pq.read_table(path)
    prompts = pa.array([None, None], pa.string())
    pq.write_table(table.set_column(table.column_names.index("prompt"), "prompt", prompts), path)
    record = path.with_name("evaluation.json")
    store.put(str(record.relative_to(store.root)), record.read_bytes())
    assert catalog.refresh() == Refresh(added=0, removed=0, total=2, changed=1)
    asked = "SELECT model, count(*), count(prompt) FROM samples GROUP BY 1 ORDER BY 1"
    assert query(catalog, asked) == [("m@1", 2, 0), ("m@2", 2, 2)]
    assert catalog.refresh().changed == 0


def test_an_imported_evaluation_is_marked_and_never_hides_one_of_our_own(store: ResultsStore) -> None:
    """Numbers of another program, on items that it chose, would silently stand for a model's own."""
    ours = commit(store, "m@1", [1.0, 0.0], finished="2026-01-01T00:00:00+00:00")
    for model in ("m@1", "m@0"):
        with store.writer(Cell("squad", model, "2" * 64)) as writer:
            samples = [Sample(f"x{i}", i, None, None, "p", scores={"f1": 1.0}) for i in range(9)]
            estimate = Estimate(1.0, None, None, None, 9)
            record = findings(
                model_digest=None, samples=9, origin="lm_eval", finished_at="2026-05-01T00:00:00+00:00"
            )
            writer.commit(samples, [MetricRow("f1", None, estimate)], record)
            imported = writer.evaluation_id
    catalog = Catalog(store)
    catalog.refresh()
    asked = "SELECT model, evaluation_id, origin FROM leaderboard ORDER BY model"
    assert query(catalog, asked) == [("m@0", imported, "lm_eval"), ("m@1", ours, None)]
    assert query(catalog, "SELECT count(*), count(origin) FROM history") == [(3, 2)]


def test_every_output_of_an_item_and_the_sampling_share_can_be_asked_for(store: ResultsStore) -> None:
    outputs = (Output("four", "stop", 2, {"f1": 1.0}), Output("five", "length", 9, {"f1": 0.0}))
    samples = [Sample("id0", 0, None, None, "p", output="four", outputs=outputs, scores={"f1": 0.5})]
    with store.writer(Cell("squad", "m@1", "1" * 64)) as writer:
        estimate = Estimate(0.5, 0.1, 0.0, 1.0, 1, sampling_share=0.25)
        writer.commit(samples, [MetricRow("f1", None, estimate)], findings())
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


def compared(store: ResultsStore, verdict: str) -> None:
    store.save_comparison(
        "quiz",
        "m@2",
        {
            "dataset": "quiz", "model": "m@2", "baseline": "m@1", "metric": "acc",
            "candidate_evaluation": "c-1", "baseline_evaluation": "b-1", "items_available": 3,
            "comparison": {
                "difference": -0.5, "stderr": 0.1, "unpaired_stderr": 0.2, "ci_low": -0.7, "ci_high": -0.3,
                "detectable": 0.3, "n": 3, "wins": ["x"], "losses": ["y", "z"], "ties": 0, "method": "exact",
            },
            "verdict": {
                "name": verdict, "tolerance": 0.02, "p_worse": 0.01, "p_not_worse": 0.9, "reason": "so it is",
            },
        },
    )  # fmt: skip


def test_comparisons_and_verdicts_are_tables_and_follow_the_store(store: ResultsStore) -> None:
    """The leaderboard and every query would otherwise show the verdict before last."""
    commit(store, "m@1", [1.0, 0.0])
    catalog = Catalog(store)
    catalog.refresh()
    compared(store, "worse")
    catalog.refresh()
    asked = "SELECT verdict, difference, n, losses, stderr_unpaired FROM comparisons"
    assert query(catalog, asked) == [("worse", -0.5, 3, ["y", "z"], 0.2)]
    compared(store, "undecided")
    store.save_verdict(
        "m@2",
        {
            "verdict_id": "1", "model": "m@2", "baseline": "m@1", "status": "failed", "reason": "worse",
            "action": "blocked", "moved": False, "family": {"family": ["quiz"]}, "missing": {"squad": "none"},
            "judged_at": "2026-01-01T00:00:00+00:00", "run_id": "r",
        },
    )  # fmt: skip
    catalog.refresh()
    assert query(catalog, asked)[0][0] == "undecided"
    assert query(catalog, "SELECT model, status, family, missing FROM verdicts") == [
        ("m@2", "failed", ["quiz"], ["squad"])
    ]


def test_the_connection_can_only_read(store: ResultsStore) -> None:
    commit(store, "m@1", [1.0])
    Catalog(store).refresh()
    with (
        pytest.raises(duckdb.InvalidInputException, match="read-only"),
        Catalog(store).connect() as connection,
    ):
        connection.execute("DELETE FROM stored.answers")


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


def test_an_object_store_has_a_catalogue_too(bucket: str) -> None:
    store = ResultsStore(f"{bucket}/results")
    commit(store, "m@1", [1.0, 0.0])
    catalog = Catalog(store)
    assert catalog.refresh().added == 1
    commit(store, "m@2", [1.0, 0.0])
    assert catalog.refresh().added == 1
    assert query(catalog, "SELECT count(*) FROM samples") == [(4,)]


def test_of_attempts_at_one_fingerprint_the_last_one_counts_whatever_the_clocks_say(
    store: ResultsStore,
) -> None:
    """One machine whose clock runs a year ahead would decide the leaderboard for a year."""
    attempts = {}
    for year in (2030, 2026, 2028):
        with store.writer(Cell("squad", "m@1", "1" * 64), force=True) as writer:
            samples = [Sample("id0", 0, None, None, "p", scores={"f1": 1.0})]
            record = findings(finished_at=f"{year}-01-01T00:00:00+00:00")
            writer.commit(samples, [MetricRow("f1", None, Estimate(1.0, None, None, None, 1))], record)
            attempts[year] = writer.evaluation_id
    catalog = Catalog(store)
    catalog.refresh()
    asked = "SELECT evaluation_id FROM leaderboard"
    assert query(catalog, asked) == [(attempts[2028],)]
    committed = store.committed(Cell("squad", "m@1", "1" * 64))
    assert committed is not None
    assert committed["evaluation_id"] == attempts[2028], "the leaderboard shows what is reused"
    for _ in range(4, 11):  # the tenth is after the ninth
        with store.writer(Cell("squad", "m@1", "1" * 64), force=True) as writer:
            writer.commit(samples, [MetricRow("f1", None, Estimate(1.0, None, None, None, 1))], findings())
    catalog.refresh()
    assert query(catalog, asked) == [(f"{'1' * 16}-10",)]
    other = commit(store, "m@1", [1.0], finished="2027-01-01T00:00:00+00:00")  # another fingerprint
    catalog.refresh()
    assert query(catalog, asked) == [(other,)]
