"""A file that can't be read is named, counted and left out; the others are there as if nothing was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resources.catalog import Catalog, Refresh
from resources.keys import key_of_segment
from resources.results import ResultsStore
from tests.resources.catalog.relations import relations
from tests.resources.catalog.test_catalogue import commit, compared, query


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit of a page's data, which reads as another number where nobody looks at checksums."""
    changed = bytearray(content)
    changed[len(content) // 4] ^= 1
    return bytes(changed)


def record(**values: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **values}).encode()


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "cut samples": ("samples.parquet", cut, "it can't be read as Parquet: "),
    "empty samples": ("samples.parquet", lambda _: b"", "it can't be read as Parquet: "),
    "a flipped bit": ("samples.parquet", flipped, "it can't be read as Parquet: "),
    "cut metrics": ("metrics.parquet", cut, "it can't be read as Parquet: "),
    "cut record": ("evaluation.json", cut, "it is not JSON"),
    "binary record": ("evaluation.json", lambda _: b"\x00\xff", "it is not JSON"),
    "a list": ("evaluation.json", lambda _: b"[]", "it is not a JSON object"),
    "another count": ("evaluation.json", record(samples=5), "it has 2 rows, the record says 5"),
    "a wrong type": ("evaluation.json", record(cost="x'; DROP TABLE"), "a value in it has the wrong type: "),
    "a wrong object": ("evaluation.json", record(engine="cpu"), "its engine is not a JSON object"),
    "a wrong time": (
        "evaluation.json",
        record(finished_at="yesterday"),
        "its finished_at is no time: 'yesterday'",
    ),
    "a wrong name": ("evaluation.json", record(model="m@9"), "its model is 'm@9', its path says 'm@1'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_and_left_out_and_heals(store: ResultsStore, kind: str) -> None:
    """One bad block among ten thousand evaluations would otherwise leave everybody without a leaderboard."""
    for number in range(4):
        commit(store, f"m@{number}", [1.0, 0.0])
    catalog = Catalog(store)
    catalog.refresh()
    whole = relations(catalog)
    name, damage, reason = DAMAGE[kind]
    path = next(Path(store.root).glob(f"evaluations/squad/m@1/*/{name}"))
    content = path.read_bytes()
    path.write_bytes(damage(content))
    refresh = catalog.refresh()
    assert refresh == Refresh(added=0, removed=1, total=3, damaged=1)
    assert refresh.notes == [
        "1 of the store's files can't be read and are left out; restore or remove them "
        "(select * from damaged)"
    ]
    ((identity, dataset, model, told, why),) = query(catalog, "SELECT * FROM damaged")
    assert (identity, dataset, model) == (path.parent.name, "squad", "m@1")
    assert Path(store.root, told).parent == path.parent
    assert why.startswith(reason)
    assert "\n" not in why
    assert query(catalog, "SELECT count(*) FROM samples") == [(6,)]
    assert query(catalog, "SELECT model FROM leaderboard ORDER BY 1") == [("m@0",), ("m@2",), ("m@3",)]
    before = Path(catalog.path).stat()
    assert catalog.refresh() == Refresh(0, 0, 3, damaged=1)
    assert Path(catalog.path).stat().st_ino == before.st_ino, (
        "what is known to be damaged is not written again"
    )
    path.write_bytes(content)
    assert catalog.refresh() == Refresh(added=1, removed=0, total=4)
    assert relations(catalog) == whole


def test_a_file_that_is_missing_or_may_not_be_read_is_named(store: ResultsStore) -> None:
    commit(store, "m@1", [1.0])
    commit(store, "m@2", [1.0])
    next(Path(store.root).glob("evaluations/squad/m@1/*/samples.parquet")).unlink()
    path = next(Path(store.root).glob("evaluations/squad/m@2/*/metrics.parquet"))
    path.unlink()
    path.mkdir()
    catalog = Catalog(store)
    assert catalog.refresh() == Refresh(0, 0, 0, damaged=2)
    assert query(catalog, "SELECT model, reason FROM damaged ORDER BY 1") == [
        ("m@1", "it is not there"),
        ("m@2", "it can't be read: Is a directory"),
    ]


def test_a_damaged_verdict_comparison_or_version_is_named_too(store: ResultsStore) -> None:
    commit(store, "m@1", [1.0])
    compared(store, "worse")
    store.save_model_version("m@1", {"digest": "d"})
    store.save_verdict("m@1", {"verdict_id": "1", "model": "m@1", "missing": {}})
    for pattern in ("comparisons/*/*.json", "models/*.json", "verdicts/*/latest.json"):
        next(Path(store.root).glob(pattern)).write_text("{")
    catalog = Catalog(store)
    assert (catalog.refresh().damaged, catalog.refresh().total) == (3, 1)
    assert query(catalog, "SELECT evaluation_id, dataset, model, path FROM damaged ORDER BY path") == [
        (None, "quiz", "m@2", "comparisons/quiz/m@2.json"),
        (None, None, "m@1", "models/m@1.json"),
        (None, None, "m@1", "verdicts/m@1/latest.json"),
    ]


@pytest.mark.parametrize(
    "model",
    ["..%2F..%2Fetc@1", "m'; DROP TABLE samples; --@1", 'm"@1', "%3Cscript%3E@1", "m@1%00", "no version"],
)
def test_a_name_that_is_no_name_never_gets_into_the_catalogue(store: ResultsStore, model: str) -> None:
    """Pages and files are named after models: a folder that somebody put there must not choose where."""
    commit(store, "m@1", [1.0, 0.0])
    good = next(Path(store.root).glob("evaluations/squad/m@1"))
    good.rename(good.with_name(model))
    path = next(Path(store.root).glob("evaluations/squad/*/*/evaluation.json"))
    path.write_bytes(record(model=key_of_segment(model))(path.read_bytes()))
    commit(store, "m@2", [1.0, 0.0])
    catalog = Catalog(store)
    refresh = catalog.refresh()
    assert (refresh.total, refresh.damaged) == (1, 1)
    assert query(catalog, "SELECT DISTINCT model FROM samples") == [("m@2",)]
    ((reason,),) = query(catalog, "SELECT reason FROM damaged")
    assert reason.startswith("model key ")


def test_a_name_that_begins_with_a_dot_is_a_name(store: ResultsStore) -> None:
    commit(store, ".hidden@1", [1.0, 0.0])
    assert Catalog(store).refresh().total == 1


def test_a_store_whose_path_looks_like_sql_is_a_store(tmp_path: Path) -> None:
    store = ResultsStore(str(tmp_path / "it's; DROP TABLE evaluations; -- \"é"))
    commit(store, "m@1", [1.0, 0.0])
    catalog = Catalog(store)
    catalog.refresh()
    with catalog.connect() as reader:
        commit(store, "m@2", [1.0, 0.0])
        catalog.refresh()
        assert query(catalog, "SELECT count(*) FROM samples") == [(4,)]
        assert reader.execute("SELECT count(*) FROM samples").fetchall() == [(2,)]
