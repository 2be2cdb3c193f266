"""Small files that are read again and again: from memory where they are the same, in bounded memory."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from resources import storage
from resources.storage import Storage, _ReadBefore


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that storages read in this test, which begins with nothing in memory."""
    found: list[str] = []
    cat_file = Storage("/").filesystem.cat_file

    def counted(path: str, **options: object) -> bytes:
        found.append(path.rsplit("/", 1)[1])
        return bytes(cat_file(path, **options))

    monkeypatch.setattr(Storage("/").filesystem, "cat_file", counted)
    monkeypatch.setattr(storage, "_read_before", _ReadBefore())
    return found


def test_a_file_is_read_again_where_it_is_another_one(store: Storage, reads: list[str]) -> None:
    for name in "abc":
        store.put_json(f"models/{name}.json", {"name": name})
    for _ in range(3):
        assert [value["name"] for _, value in store.json_files("models/*.json")] == ["a", "b", "c"]
    assert reads == ["a.json", "b.json", "c.json"]
    store.put_json("models/b.json", {"name": "new"})
    assert [value["name"] for _, value in store.json_files("models/*.json")] == ["a", "new", "c"]
    assert reads[3:] == ["b.json"]


def test_what_is_read_again_and_again_takes_bounded_memory(
    store: Storage, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon and the exporter live for months, and comparisons name every item that was won or lost."""
    monkeypatch.setattr(storage, "_REMEMBERED_BYTES", 2_500)
    for number in range(9):
        store.put_json(f"models/{number}.json", {"wins": "x" * 1000})
    for _ in range(2):
        assert len(list(store.json_files("models/*.json"))) == 9
        assert len(list(store.json_files("models/8.json"))) == 1
    contents = storage._read_before._contents
    assert {path for _, path in contents} == {"models/7.json", "models/8.json"}
    assert storage._read_before._bytes == sum(len(content) for _, content in contents.values()) <= 2_500
    assert reads[9:].count("8.json") == 1, "what is asked for often is forgotten as well"
    store.put_json("models/8.json", {"wins": ""})
    assert list(store.json_files("models/8.json")) == [("models/8.json", {"wins": ""})]
    assert storage._read_before._bytes == sum(len(content) for _, content in contents.values())


def test_a_file_that_vanishes_while_its_folder_is_listed_hides_no_other(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh beside a writer that tidies up would take all later evaluations for removed."""
    for name in "abc":
        store.put_json(f"models/{name}.json", {"name": name})
    names = fnmatchcase

    def vanishing(name: str, pattern: str) -> bool:
        if name == "b.json":
            Path(store.root, "models", name).unlink()
        return names(name, pattern)

    monkeypatch.setattr(storage, "fnmatchcase", vanishing)
    assert list(store.listing("models/*.json")) == ["models/a.json", "models/c.json"]


def test_what_matches_is_found_without_listing_other_folders(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's pod is sized by its evaluations: in a store of years a walk over all takes seconds."""
    for path in ("a/m@1/x/1", "a/n@1/x/1", "b/m@1/x/1", "b/m@2/x/1", "file"):
        store.put(f"evaluations/{path}", b"")
    listed: list[str] = []
    ls = store.filesystem.ls

    def counted(path: str, **options: object) -> list[str]:
        listed.append(path[len(store.root) + 1 :])
        return list(ls(path, **options))

    monkeypatch.setattr(store.filesystem, "ls", counted)
    found = [f"evaluations/{path}" for path in ("a/m@1", "b/m@1", "b/m@2")]
    assert store.matching("evaluations/*/m@*") == found
    assert sorted(listed) == ["evaluations", "evaluations/a", "evaluations/b", "evaluations/file"]
    assert store.matching("nothing/*") == []
