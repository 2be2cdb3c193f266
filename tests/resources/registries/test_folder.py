"""The folder registry finds the versions that are there, and says what it can't use."""

import shutil
from pathlib import Path

import fsspec
import pytest

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries.folder import FolderRegistry


def _put(root: Path, *versions: str) -> FolderRegistry:
    for version in versions:
        (root / version).mkdir(parents=True)
        (root / version / "config.json").write_text("{}")
    return FolderRegistry(str(root))


def test_versions_are_listed_in_order_and_names_may_have_slashes(tmp_path: Path) -> None:
    registry = _put(tmp_path, "b/10", "b/2", "org/a/main", "org/team/a/1.0")
    assert [str(k) for k in registry.versions()] == ["b@10", "b@2", "org/a@main", "org/team/a@1.0"]
    assert registry.skipped() == []


def test_a_folder_without_config_is_no_version(tmp_path: Path) -> None:
    """Otherwise the sensor queues an evaluation of a model that is still being copied."""
    registry = _put(tmp_path, "a/1")
    (tmp_path / "a" / "2").mkdir()
    (tmp_path / "a" / "2" / "model.safetensors").write_bytes(b"")
    assert list(registry.versions()) == [ModelKey("a", "1")]
    with pytest.raises(
        UserError, match=r"model a@2: .*/a/2 holds no config\.json; is it still being copied\?"
    ):
        registry.fetch(ModelKey("a", "2"))


def test_what_lies_inside_a_version_or_is_hidden_is_no_version(tmp_path: Path) -> None:
    """Otherwise every training checkpoint and every half-made folder becomes a partition."""
    registry = _put(tmp_path, "a/1", "a/1/checkpoint-5", ".making-a/1", "b/.making-1")
    assert list(registry.versions()) == [ModelKey("a", "1")]
    assert registry.skipped() == []
    for key in (ModelKey("a/1", "checkpoint-5"), ModelKey("b", ".making-1")):
        with pytest.raises(UserError, match=f"model {key}"):
            registry.fetch(key)


def test_illegal_names_are_skipped_and_told(tmp_path: Path) -> None:
    """A '|' in a partition key would break every cell of the grid; silence would leave the user guessing."""
    registry = _put(tmp_path, "a/1", "b|c/1", "d/1 2", "alone", "x" * 120 + "/" + "y" * 100)
    assert list(registry.versions()) == [ModelKey("a", "1")]
    reasons = dict(registry.skipped())
    assert sorted(reasons) == ["alone", "b|c/1", "d/1 2", "x" * 120 + "/" + "y" * 100]
    assert reasons["b|c/1"].startswith("model key 'b|c@1': expected name@version")
    assert reasons["alone"] == "directly below the root; expected <name>/<version>/"
    assert "at most 200" in reasons["x" * 120 + "/" + "y" * 100]


def test_fetch_returns_the_folder_itself(folder: Path, tmp_path: Path) -> None:
    """A copy of every model on every run would fill the disk."""
    registry = FolderRegistry(str(tmp_path / "models"))
    assert registry.fetch(ModelKey("org/tiny", "1")) == folder


def test_an_unknown_key_is_told_with_the_closest_known_ones(tmp_path: Path) -> None:
    registry = _put(tmp_path, "smollm2-135m/1", "smollm2-135m/2", "other/1")
    with pytest.raises(UserError) as error:
        registry.fetch(ModelKey("smollm2", "1"))
    assert str(error.value) == (
        f"model smollm2@1: not in '{tmp_path}' (closest: smollm2-135m@1, smollm2-135m@2)"
    )
    with pytest.raises(UserError, match=r"model zzz@9: not in .* \(3 versions are there\)"):
        registry.fetch(ModelKey("zzz", "9"))


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "nowhere"))
    expected = r"models folder '.*nowhere' does not exist; create it, or name another one"
    with pytest.raises(UserError, match=expected):
        list(registry.versions())
    with pytest.raises(UserError, match=expected):
        registry.fetch(ModelKey("a", "1"))


def test_a_link_that_leaves_the_version_is_refused(folder: Path, tmp_path: Path) -> None:
    """Otherwise whoever may add a model can have any file of the machine read and shipped along."""
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (folder / "extra.json").symlink_to(secret)
    registry = FolderRegistry(str(tmp_path / "models"))
    with pytest.raises(UserError) as error:
        registry.fetch(ModelKey("org/tiny", "1"))
    assert str(error.value) == (
        "model org/tiny@1: extra.json is a link that leaves the version's folder; copy the file into it"
    )
    (folder / "extra.json").unlink()
    (folder / "extra.json").symlink_to(folder / "gone")
    with pytest.raises(UserError, match=r"extra\.json is a link to nothing"):
        registry.fetch(ModelKey("org/tiny", "1"))
    (folder / "extra.json").unlink()
    (folder / "extra.json").symlink_to("config.json")
    assert registry.fetch(ModelKey("org/tiny", "1")) == folder


def test_a_version_may_be_a_link_and_a_circle_of_links_ends(folder: Path, tmp_path: Path) -> None:
    """Big models lie on other disks; and a link upwards must not hang the sensor."""
    elsewhere = tmp_path / "disk2" / "big"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    (folder.parent / "loop").symlink_to(tmp_path / "models")
    registry = FolderRegistry(str(tmp_path / "models"))
    assert list(registry.versions()) == [ModelKey("org/tiny", "1")]
    assert registry.fetch(ModelKey("org/tiny", "1")) == folder


def test_an_object_store_is_listed_and_copied_and_copied_again_when_it_changes(tmp_path: Path) -> None:
    """A stale copy would be evaluated under the name of the new weights."""
    store = fsspec.filesystem("memory")
    store.rm("/registry", recursive=True) if store.exists("/registry") else None
    for path in ("a/1/config.json", "a/1/sub/x.json", "org/b/2/config.json", "a/1/sub/config.json"):
        store.pipe(f"/registry/{path}", path.encode())
    store.pipe("/registry/a/.hidden/config.json", b"")
    registry = FolderRegistry("memory://registry", cache=tmp_path / "cache")
    assert [str(k) for k in registry.versions()] == ["a@1", "org/b@2"]

    folder = registry.fetch(ModelKey("a", "1"))
    assert folder == tmp_path / "cache" / "a@1"
    assert (folder / "sub" / "x.json").read_text() == "a/1/sub/x.json"
    before = folder.stat().st_ino
    assert registry.fetch(ModelKey("a", "1")).stat().st_ino == before

    store.pipe("/registry/a/1/config.json", b"new weights, same name")
    store.rm("/registry/a/1/sub/x.json")
    folder = registry.fetch(ModelKey("a", "1"))
    assert (folder / "config.json").read_text() == "new weights, same name"
    assert not (folder / "sub" / "x.json").exists()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["a@1"]


def test_an_object_store_needs_a_folder_for_copies() -> None:
    fsspec.filesystem("memory").pipe("/registry2/a/1/config.json", b"{}")
    with pytest.raises(UserError, match="is not on this machine; name a folder for copies"):
        FolderRegistry("memory://registry2").fetch(ModelKey("a", "1"))
