"""The store and its catalogue over S3, also on a day when S3 throttles, cuts connections and lists late."""

import logging
import os
import tempfile
from pathlib import Path

import duckdb
import pytest

import resources.catalog.catalogue
from resources.catalog import Catalog, Refresh
from resources.errors import UserError
from resources.results import ResultsStore
from resources.s3 import PatientS3
from tests.resources.catalog.relations import relations
from tests.resources.catalog.test_catalogue import commit, query
from tests.s3_proxy import Weather


@pytest.fixture
def store(bucket: str, weather: Weather) -> ResultsStore:
    """An empty store in a bucket behind the proxy."""
    return ResultsStore(f"{bucket}/results")


def test_step_by_step_equals_at_once_over_s3(store: ResultsStore) -> None:
    catalog = Catalog(store)
    for number in range(3):
        commit(store, f"m@{number}", [1.0, 0.0])
        assert catalog.refresh().added == 1
    store.filesystem.rm(f"{store.root}/evaluations/squad/m@1", recursive=True)
    assert catalog.refresh() == Refresh(added=0, removed=1, total=2)
    stepwise = relations(catalog)
    store.filesystem.rm_file(f"{store.root}/catalog.duckdb")
    assert catalog.refresh().added == 2
    assert relations(catalog) == stepwise


def test_throttling_and_cut_connections_delay_a_commit_and_a_refresh_and_change_nothing(
    store: ResultsStore, weather: Weather
) -> None:
    """Requests of every kind are told to slow down, then cut off, then carried out without an answer."""
    commit(store, "m@1", [1.0, 0.0])
    weather.throttled, weather.cut = 1, 2
    commit(store, "m@2", [1.0, 0.0, 1.0])
    catalog = Catalog(store)
    assert catalog.refresh().total == 2
    assert query(catalog, "SELECT count(*), count(DISTINCT model) FROM samples") == [(5, 2)]
    assert len(weather.kinds) >= 6
    assert max(weather.kinds.values()) > 8


def test_what_another_process_puts_after_a_listing_is_there_at_once(store: ResultsStore) -> None:
    """A committed evaluation that is not seen is computed again."""
    store.put_json("models/first.json", {})
    assert list(store.listing("models/*.json")) == ["models/first.json"]
    another = PatientS3(**store.filesystem.storage_options, skip_instance_cache=True)
    another.pipe_file(f"{store.root}/models/second.json", b"{}")
    assert store.get_json("models/second.json") == {}
    another.pipe_file(f"{store.root}/models/third.json", b"{}")
    assert store.exists("models/third.json")


def test_what_a_listing_lacks_is_there_after_the_next_look(store: ResultsStore, weather: Weather) -> None:
    """Some stores list a new object seconds after it was written."""
    commit(store, "m@1", [1.0, 0.0])
    catalog = Catalog(store)
    catalog.refresh()
    commit(store, "m@2", [1.0, 0.0])
    weather.hidden = "m@2"
    assert catalog.refresh() == Refresh(0, 0, 1)
    weather.hidden = "samples.parquet"  # of evaluations whose record is listed already
    late = catalog.refresh()
    assert (late.total, late.damaged) == (2, 0)
    weather.hidden = None
    assert catalog.refresh().total == 2
    assert query(catalog, "SELECT count(*) FROM samples") == [(4,)]
    assert query(catalog, "FROM damaged") == []


def test_a_viewer_of_a_bucket_has_what_is_new_in_a_catalogue_of_their_own(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit(store, "m@1", [1.0, 0.0])

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(store.filesystem, "put_file", forbidden)
        refresh = Catalog(store).refresh()
        assert refresh.total == 1
        assert "can't be written: what is new in it is in a catalogue of your own" in refresh.told
        assert query(Catalog(store), "SELECT count(*) FROM samples") == [(2,)]
    assert not store.exists("catalog.duckdb")
    assert Catalog(store).refresh().total == 1
    assert store.exists("catalog.duckdb")


def catalogues(weather: Weather) -> tuple[bool, bool]:
    """Whether the catalogue was fetched and put since the last look."""
    fetched, put = weather.bytes.pop("GET .duckdb", 0), weather.bytes.pop("PUT .duckdb", 0)
    return bool(fetched), bool(put)


def test_a_catalogue_is_transferred_only_where_it_is_another_one(
    store: ResultsStore, weather: Weather, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At ten million samples each command would move half a gigabyte twice to show a leaderboard."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "one"))
    (tmp_path / "one").mkdir()
    commit(store, "m@1", [1.0, 0.0])
    catalog, asked = Catalog(store), "SELECT count(*) FROM samples"
    catalog.refresh()
    assert catalogues(weather) == (False, True)
    assert query(catalog, asked) == [(2,)]
    catalog.refresh()
    assert query(catalog, asked) == [(2,)]
    assert catalogues(weather) == (False, False)
    commit(store, "m@2", [1.0, 0.0])
    assert catalog.refresh().added == 1
    assert query(catalog, asked) == [(4,)]
    assert catalogues(weather) == (False, True)
    with monkeypatch.context() as another_machine:
        (tmp_path / "other").mkdir()
        another_machine.setattr(tempfile, "tempdir", str(tmp_path / "other"))
        assert query(catalog, asked) == [(4,)]
        assert catalogues(weather) == (True, False)
        commit(store, "m@3", [1.0, 0.0])
        assert catalog.refresh().added == 1
        assert query(catalog, asked) == [(6,)]
        assert catalogues(weather) == (False, True)
    with catalog.connect() as reader:
        assert reader.execute(asked).fetchall() == [(6,)]
        assert catalogues(weather) == (True, False)
        for number in range(4, 7):
            commit(store, f"m@{number}", [1.0, 0.0])
            assert catalog.refresh().total == number
            assert query(catalog, asked) == [(2 * number,)]
        assert reader.execute(asked).fetchall() == [(6,)]
    [kept] = (tmp_path / "one").glob("catalogues-*/*")
    assert len(list(kept.iterdir())) == 2, "what is no longer of use fills the disk"


def test_a_catalogue_that_another_put_at_the_same_moment_is_not_taken_for_ones_own(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    commit(store, "m@1", [1.0, 0.0])
    put_file, others = store.filesystem.put_file, tmp_path / "others"
    with duckdb.connect(str(others)) as connection:
        connection.execute("CREATE TABLE others AS SELECT 42 AS answer")

    def overtaken(source: str, path: str, **options: object) -> None:
        put_file(source, path, **options)
        put_file(str(others), path)

    with monkeypatch.context() as patch:
        patch.setattr(store.filesystem, "put_file", overtaken)
        Catalog(store).refresh()
    assert query(Catalog(store), "FROM others") == [(42,)]


def test_a_large_file_is_put_in_parts_and_comes_back_whole(store: ResultsStore, tmp_path: Path) -> None:
    content = os.urandom(2**20) * 40
    (tmp_path / "large").write_bytes(content)
    assert store.put_file("large", tmp_path / "large") == store.listing("large")["large"].sign
    assert store.filesystem.info(f"{store.root}/large")["ETag"].strip('"').endswith("-3")
    assert store.filesystem.cat_file(f"{store.root}/large") == content


def test_of_two_refreshers_over_s3_the_later_one_goes_on_from_the_other_s_catalogue(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, "m@1", [1.0, 0.0])
    slow, quick = Catalog(store), Catalog(store)
    made = Catalog._made
    interrupted: list[Refresh] = []

    def meanwhile(self: Catalog, *arguments: object) -> Refresh:
        refresh = made(self, *arguments)  # type: ignore[arg-type]
        if self is slow and not interrupted:
            commit(store, "m@2", [1.0, 0.0])
            interrupted.append(quick.refresh())
        return refresh

    monkeypatch.setattr(resources.catalog.catalogue.Catalog, "_made", meanwhile)
    assert slow.refresh().total == 2
    assert [refresh.total for refresh in interrupted] == [2]
    assert query(slow, "SELECT count(*) FROM samples") == [(4,)]


def test_a_record_is_committed_once(store: ResultsStore) -> None:
    """Two writers that both believe they hold the cell: the store decides, no record is replaced."""
    store.put_new("evaluation.json", b"mine")
    store.put_new("evaluation.json", b"mine")  # the answer to the first was lost
    with pytest.raises(UserError, match=r"evaluation\.json was written by another process meanwhile"):
        store.put_new("evaluation.json", b"another")
    assert store.filesystem.cat_file(f"{store.root}/evaluation.json") == b"mine"


def test_credentials_get_into_no_log_no_query_and_no_catalogue(
    store: ResultsStore, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Files are fetched by the client that has the credentials; DuckDB reads local copies and needs none."""
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    with caplog.at_level(logging.DEBUG):
        commit(store, "m@1", [1.0, 0.0])
        catalog = Catalog(store)
        catalog.refresh()
        with catalog.connect() as connection:
            assert connection.execute("SELECT count(*) FROM samples").fetchall() == [(2,)]
            assert connection.execute("SELECT count(*) FROM duckdb_secrets()").fetchall() == [(0,)]
            settings = connection.execute("SELECT name, value FROM duckdb_settings()").fetchall()
    store.filesystem.get_file(f"{store.root}/catalog.duckdb", str(tmp_path / "copy"))
    assert len(caplog.text) > 1000
    told = [
        caplog.text,
        *capfd.readouterr(),
        repr(settings),
        (tmp_path / "copy").read_bytes().decode("latin1"),
    ]
    assert [secret in text for text in told] == [False] * len(told)
