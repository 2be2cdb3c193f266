"""A file that can't be read is named, counted and left out; the others are there as if nothing was."""

import errno
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from resources.catalog import Catalog, Refresh
from resources.keys import key_of_segment
from resources.results import ResultsStore
from tests.performance.made_store import add_evaluation, make_store
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


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all files that refreshes of this test read."""
    found: list[str] = []
    read_all = ResultsStore.read_all

    def counted(self: ResultsStore, paths: Sequence[str]) -> Mapping[str, bytes | OSError]:
        found.extend(paths)
        return read_all(self, paths)

    monkeypatch.setattr(ResultsStore, "read_all", counted)
    return found


def test_many_damaged_files_among_thousands_are_named_and_read_once(tmp_path: Path, reads: list[str]) -> None:
    """A disk that went bad would make each look at the leaderboard as slow as reading all of it."""
    count = make_store(tmp_path / "store", 2000, 2)
    store = ResultsStore(str(tmp_path / "store"))
    broken = sorted(Path(store.root).glob("evaluations/*/*/*"))[::20]
    for place, folder in enumerate(broken):
        name, damage, _ = DAMAGE[("cut samples", "empty samples", "cut metrics", "cut record")[place % 4]]
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    catalog = Catalog(store)
    assert catalog.refresh() == Refresh(
        count - len(broken), 0, count - len(broken), damaged=len(broken),
        told=f"the catalogue was made from {count - len(broken):,} evaluations: there was none",
    )  # fmt: skip
    assert len(broken) > 90
    named = query(catalog, "SELECT path, evaluation_id, dataset FROM damaged")
    assert {str(Path(store.root, path).parent) for path, _, _ in named} == {str(folder) for folder in broken}
    reads.clear()
    assert catalog.refresh() == Refresh(0, 0, count - len(broken), damaged=len(broken))
    add_evaluation(Path(store.root), 2, 1)
    assert catalog.refresh() == Refresh(1, 0, count - len(broken) + 1, damaged=len(broken))
    assert {path.split("/")[2] for path in reads if path.startswith("evaluations/")} == {"newcomer@1"}
    assert len(query(catalog, "FROM damaged")) == len(broken)
    reads.clear()
    (broken[0] / "samples.parquet").write_bytes(b"as damaged, but another file")
    shutil.rmtree(broken[1])
    assert catalog.refresh() == Refresh(0, 0, count - len(broken) + 1, damaged=len(broken) - 1)
    assert {path.rsplit("/", 1)[0] for path in reads} == {str(broken[0].relative_to(store.root))}


def test_what_could_not_be_read_is_tried_again(
    store: ResultsStore, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that failed once would cost an evaluation its place for ever: its files look the same."""
    commit(store, "m@1", [1.0, 0.0])
    catalog = Catalog(store)
    with monkeypatch.context() as patch:
        fails = OSError(errno.EIO, "Input/output error")
        patch.setattr(ResultsStore, "read_all", lambda _, paths: dict.fromkeys(paths, fails))
        assert catalog.refresh() == Refresh(0, 0, 0, damaged=1)
        assert query(catalog, "SELECT reason FROM damaged") == [("it can't be read: Input/output error",)]
        assert catalog.refresh() == Refresh(0, 0, 0, damaged=1)
    refresh = catalog.refresh()
    assert (refresh.added, refresh.damaged) == (1, 0)
    assert query(catalog, "FROM damaged") == []


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
