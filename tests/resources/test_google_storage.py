"""The store, its catalogue and the report at gs://, through gcsfs and HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_assets.report.building import build_report
from resources.catalog import Catalog
from resources.errors import UserError
from resources.results import ResultsStore
from tests.eval_assets.evaluating.test_evaluator import run, stopping
from tests.eval_assets.fake_engine import FakeEngine
from tests.google_storage import BUCKET, google_storage
from tests.resources.catalog.relations import relations
from tests.resources.catalog.test_catalogue import commit, query


@pytest.fixture
def store() -> Iterator[ResultsStore]:
    with google_storage() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield ResultsStore(f"gs://{BUCKET}/team/store")


def test_an_interrupted_evaluation_goes_on_and_is_committed_once(store: ResultsStore, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(store, stopping(FakeEngine(batch=7), 5, KeyboardInterrupt()))
    cell, outcome = run(store, FakeEngine(batch=7))
    _, expected = run(ResultsStore(str(tmp_path / "undisturbed")), FakeEngine(batch=7))
    assert outcome.record["samples_resumed"] > 0
    assert outcome.record["content_digest"] == expected.record["content_digest"]
    assert store.committed(cell) == outcome.record
    assert len(store.samples(outcome.record)) == outcome.record["samples"]


def test_a_record_is_put_where_there_is_none_only(store: ResultsStore) -> None:
    store.put_new("evaluations/a/evaluation.json", b"mine")
    store.put_new("evaluations/a/evaluation.json", b"mine")  # the answer to the first was lost
    with pytest.raises(UserError, match="written by another process"):
        store.put_new("evaluations/a/evaluation.json", b"theirs")


# gcsfs sends some megabytes in one piece, which the HTTP library below it says might block its event loop.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_the_catalogue_follows_step_by_step_and_the_report_is_made_there(store: ResultsStore) -> None:
    catalog = Catalog(store)
    for number in range(3):
        commit(store, f"m@{number}", [1.0, 0.0])
        assert catalog.refresh().added == 1
    commit(store, "m@2", [0.0, 0.0], finished="2026-01-02T00:00:00+00:00", benchmark="c")
    assert catalog.refresh().added == 1
    store.filesystem.rm(f"{store.root}/evaluations/squad/m@1", recursive=True)
    assert catalog.refresh().removed == 1
    stepwise = relations(catalog)
    store.filesystem.rm_file(f"{store.root}/catalog.duckdb")
    assert catalog.refresh().added == 3
    assert relations(catalog) == stepwise
    assert query(catalog, "SELECT count(*) FROM samples") == [(6,)]
    build_report(store)
    index = f"{store.root}/reports/index.html"
    assert b"m@2" in store.filesystem.cat_file(index)
    assert store.filesystem.info(index)["contentType"] == "text/html"
