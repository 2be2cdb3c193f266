"""A store whose path `fsspec` takes for a pattern: it would find nothing there, or another team's files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_assets.report.building import build_report
from resources.catalog import Catalog
from resources.errors import UserError
from resources.results import ResultsStore
from resources.writer import COMMITTED
from tests.google_storage import BUCKET, google_storage
from tests.resources.catalog.test_catalogue import commit, query
from tests.resources.test_results import CELL, METRICS, findings, sample


@pytest.fixture(params=["folder", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ResultsStore]:
    """An empty store; beside it one whose path matches this one's as a pattern."""
    with pytest.MonkeyPatch.context() as patch:
        root = str(tmp_path)
        if request.param == "s3":
            root = request.getfixturevalue("bucket")
        if request.param == "gs":
            for name, value in request.getfixturevalue("google").items():
                patch.setenv(name, value)
            root = f"gs://{BUCKET}"
        commit(ResultsStore(f"{root}/teama-all/store"), "other@1", [1.0])
        yield ResultsStore(f"{root}/team[ab]-*?/store")


@pytest.fixture
def google() -> Iterator[dict[str, str]]:
    with google_storage() as environment:
        yield environment


def test_an_interrupted_evaluation_goes_on_and_leaves_nothing_beside_its_commit(store: ResultsStore) -> None:
    """Hours of work would be done again without a word, and what they had left would stay for ever."""
    with store.writer(CELL) as writer:
        writer.append([sample(0)])
        writer.append([sample(1)])
        first = store.matching(f"{writer.path[len(store.root) + 1 :]}/progress/*")[0]
        store.put(first, b"damaged")
    with store.writer(CELL) as writer:
        samples, damaged = writer.finished()
        assert [one.index for one in samples] == [1]
        assert damaged == [first.rsplit("/", 1)[1]]
        record = writer.commit([sample(0), sample(1)], METRICS, findings())
    assert store.committed(CELL) == record
    folder = writer.path[len(store.root) + 1 :]
    assert {path[len(folder) + 1 :] for path in store.matching(f"{folder}/*")} == COMMITTED
    assert store.matching(f"{folder}/progress/*") == []


def test_the_evaluations_of_a_model_are_found(store: ResultsStore) -> None:
    """What sizes of pods, estimates and the gate of a CI go by."""
    for model in ("m@1", "m@2", "more@1"):
        commit(store, model, [1.0, 0.0])
    assert [record["model"] for record in store.evaluations_of("m@1")] == ["m@1"]
    assert [record["model"] for record in store.evaluations_of("m@2", "squad")] == ["m@2"]
    assert list(store.evaluations_of("m@2", "arc")) == list(store.evaluations_of("n@1")) == []


# gcsfs sends some megabytes in one piece, which the HTTP library below it says might block its event loop.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_the_catalogue_and_the_report_are_made(store: ResultsStore) -> None:
    if store.is_local:
        with pytest.raises(UserError, match=r"DuckDB takes '\?' .* EVAL_STORE$"):
            Catalog(store).refresh()
        store = ResultsStore(store.root.replace("?", ""))
    for number in range(2):
        commit(store, f"m@{number}", [1.0, 0.0])
        refresh = Catalog(store).refresh()
        assert (refresh.added, refresh.damaged) == (1, 0)
    assert query(Catalog(store), "SELECT count(*) FROM samples") == [(4,)]
    build_report(store)
    assert b"m@1" in store.filesystem.cat_file(f"{store.root}/reports/index.html")
