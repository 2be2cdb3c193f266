"""The folder registry finds the versions that are there, and says what it can't use."""

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import RegistryUnavailableError
from resources.registries.folder import FolderRegistry


def _put(root: Path, *versions: str) -> FolderRegistry:
    for version in versions:
        (root / version).mkdir(parents=True)
        (root / version / "config.json").write_text("{}")
    return FolderRegistry(str(root))


def test_versions_are_listed_in_order_and_names_may_have_slashes(tmp_path: Path) -> None:
    """Version 2 listed after 10 would count as the newer one, and take its place in production."""
    registry = _put(tmp_path, "b/10", "b/2", "org/a/main", "org/team/a/1.0")
    assert [str(k) for k in registry.versions().keys] == ["b@2", "b@10", "org/a@main", "org/team/a@1.0"]
    assert registry.versions().skipped == ()


def test_a_folder_without_config_is_no_version(tmp_path: Path) -> None:
    """Otherwise the sensor queues an evaluation of a model that is still being copied."""
    registry = _put(tmp_path, "a/1")
    (tmp_path / "a" / "2").mkdir()
    (tmp_path / "a" / "2" / "model.safetensors").write_bytes(b"")
    assert list(registry.versions().keys) == [ModelKey("a", "1")]
    with pytest.raises(
        UserError, match=r"model a@2: .*/a/2 holds no config\.json; is it still being copied\?"
    ):
        registry.fetch(ModelKey("a", "2"))


def test_what_lies_inside_a_version_or_is_hidden_is_no_version(tmp_path: Path) -> None:
    """Otherwise every training checkpoint and every half-made folder becomes a partition."""
    registry = _put(tmp_path, "a/1", "a/1/checkpoint-5", ".making-a/1", "b/.making-1")
    assert list(registry.versions().keys) == [ModelKey("a", "1")]
    assert registry.versions().skipped == ()
    for key in (ModelKey("a/1", "checkpoint-5"), ModelKey("b", ".making-1")):
        with pytest.raises(UserError, match=f"model {key}"):
            registry.fetch(key)


def test_illegal_names_are_skipped_and_told(tmp_path: Path) -> None:
    """A '|' in a partition key would break every cell of the grid; silence would leave the user guessing."""
    registry = _put(tmp_path, "a/1", "b|c/1", "d/1 2", "alone", "x" * 120 + "/" + "y" * 100)
    assert list(registry.versions().keys) == [ModelKey("a", "1")]
    reasons = {entry.place: entry.reason for entry in registry.versions().skipped}
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
        registry.versions()
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
    assert list(registry.versions().keys) == [ModelKey("org/tiny", "1")]
    assert registry.fetch(ModelKey("org/tiny", "1")) == folder


def test_an_object_store_is_listed_and_copied_and_copied_again_when_it_changes(tmp_path: Path) -> None:
    """A stale copy would be evaluated under the name of the new weights."""
    store = fsspec.filesystem("memory")
    store.rm("/registry", recursive=True) if store.exists("/registry") else None
    for path in ("a/1/config.json", "a/1/sub/x.json", "org/b/2/config.json", "a/1/sub/config.json"):
        store.pipe(f"/registry/{path}", path.encode())
    store.pipe("/registry/a/.hidden/config.json", b"")
    registry = FolderRegistry("memory://registry", cache=tmp_path / "cache")
    assert [str(k) for k in registry.versions().keys] == ["a@1", "org/b@2"]

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
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [".copying", "a@1"]
    assert [p.name for p in (tmp_path / "cache" / ".copying").rglob("*")] == ["a@1", "lock"]


def test_an_object_store_needs_a_folder_for_copies() -> None:
    fsspec.filesystem("memory").pipe("/registry2/a/1/config.json", b"{}")
    with pytest.raises(UserError, match="is not on this machine; name a folder for copies"):
        FolderRegistry("memory://registry2").fetch(ModelKey("a", "1"))


WEIGHTS = "model.safetensors"


def _reasons(registry: FolderRegistry) -> dict[str, str]:
    return {entry.place: entry.reason for entry in registry.versions().skipped}


def _cut(path: Path, by: int = 1) -> None:
    os.truncate(path, path.stat().st_size - by)


def _zeros(path: Path) -> None:
    """As a downloader leaves a file whose space it has reserved."""
    path.write_bytes(bytes(path.stat().st_size))


def _index(folder: Path, *shards: str) -> None:
    names = {f"layer{number}": shard for number, shard in enumerate(shards)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: _cut(f / WEIGHTS), r"model\.safetensors has [\d,]+ of [\d,]+ bytes"),
        (lambda f: os.truncate(f / WEIGHTS, 100), r"model\.safetensors: 92 of [\d,]+ bytes of its header"),
        (lambda f: os.truncate(f / WEIGHTS, 7), r"model\.safetensors has 7 bytes"),
        (lambda f: _zeros(f / WEIGHTS), r"model\.safetensors: it doesn't begin with a header"),
        (
            lambda f: _index(f, WEIGHTS, "b.safetensors", "a.safetensors"),
            r"2 of 3 shards are missing, the first is a\.safetensors",
        ),
        (
            lambda f: (f / f"{WEIGHTS}.index.json").write_text('{"weight_ma'),
            r"model\.safetensors\.index\.json: it can't be read",
        ),
    ],
)
@pytest.mark.parametrize("place", ["disk", "store"])
def test_a_half_copied_version_is_not_listed_and_not_fetched_and_says_what_is_missing(
    folder: Path, tmp_path: Path, damage: Any, reason: str, place: str
) -> None:
    """Its evaluation would fail, or worse, be of the first shards of another version."""
    damage(folder)
    registry = FolderRegistry(str(tmp_path / "models"))
    if place == "store":
        root = f"memory://{tmp_path.name}-{time.time_ns()}"
        store = fsspec.filesystem("memory")
        for path in folder.iterdir():
            store.pipe(f"{root}/org/tiny/1/{path.name}", path.read_bytes())
        registry = FolderRegistry(root, tmp_path / "cache")
    assert registry.versions().keys == ()
    assert list(_reasons(registry)) == ["org/tiny/1"]
    line = f"still being copied: {reason}"
    with pytest.raises(UserError, match=f"model org/tiny@1: {line}"):
        registry.fetch(ModelKey("org/tiny", "1"))
    assert re.match(line, _reasons(registry)["org/tiny/1"])


def test_a_copy_that_is_finished_is_listed_at_the_next_look(folder: Path, tmp_path: Path) -> None:
    """The cursor of the look before must not hide it."""
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    registry = FolderRegistry(str(tmp_path / "models"))
    cursor = registry.versions().cursor
    (folder / WEIGHTS).write_bytes(whole)
    assert registry.versions(cursor).keys == (ModelKey("org/tiny", "1"),)


def test_weights_that_are_too_long_or_an_index_that_leads_out_are_damage_and_listed(
    folder: Path, tmp_path: Path
) -> None:
    """Waiting mends neither; the measurement says what is wrong."""
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")
    _index(folder, "../../secret.safetensors", WEIGHTS)
    assert FolderRegistry(str(tmp_path / "models")).versions().keys == (ModelKey("org/tiny", "1"),)


def _set_time(folder: Path, seconds: float) -> None:
    """Give every file that age; a ctime can't be set."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_with_a_time_to_settle_a_version_is_listed_once_it_has_rested(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied in place file by file, it looks complete before its tokenizer has arrived."""
    registry = FolderRegistry(str(tmp_path / "models"), settle_seconds=60)
    key = ModelKey("org/tiny", "1")
    _set_time(folder, 3600)  # cp -p keeps the times of the original: only the ctime tells
    reason = _reasons(registry)["org/tiny/1"]
    assert reason.startswith("still being copied: a file changed 0 s ago, it waits until that is 60 s")
    assert registry.fetch(key) == folder  # a person named it
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 61)
    assert registry.versions().keys == (key,)
    (folder / ".tokenizer.json.a1b2").write_text("")  # as rsync brings a file
    os.utime(folder / ".tokenizer.json.a1b2", (now + 50,) * 2)
    assert registry.versions().keys == ()


def test_with_a_time_to_settle_a_version_without_weights_waits_for_them(tmp_path: Path) -> None:
    registry = FolderRegistry(_put(tmp_path, "a/1").root, settle_seconds=1)
    assert _reasons(registry) == {"a/1": "still being copied: there are no weights yet"}


@pytest.mark.parametrize(
    ("ahead", "listed"), [(59.0, False), (1.0, False), (61.0, True), (86_400.0 * 365, True)]
)
def test_a_file_from_the_future_counts_as_young_only_within_the_time_to_settle(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, listed: bool
) -> None:
    """A server whose clock is a second ahead has just written it; one that was a year ahead must not hide the
    version for a year."""
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 10_000)  # the ctimes are old
    os.utime(folder / "config.json", (now + 10_000 + ahead,) * 2)
    registry = FolderRegistry(str(tmp_path / "models"), settle_seconds=60)
    assert bool(registry.versions().keys) == listed


def test_an_object_store_settles_by_the_time_of_its_listing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"memory://settling-{time.time_ns()}"
    for path in tiny_model.iterdir():
        fsspec.filesystem("memory").pipe(f"{root}/a/1/{path.name}", path.read_bytes())
    registry = FolderRegistry(root, tmp_path, settle_seconds=60)
    assert list(_reasons(registry)) == ["a/1"]
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 61)
    assert registry.versions().keys == (ModelKey("a", "1"),)


def test_the_same_listing_gives_no_keys_and_any_change_all_of_them(tmp_path: Path) -> None:
    """The sensor asks every 30 s; what it has seen it need not look at again."""
    registry = _put(tmp_path, "a/1", "b/1")
    listing = registry.versions()
    assert len(listing.keys) == 2
    assert registry.versions(listing.cursor).keys == ()
    assert FolderRegistry(str(tmp_path)).versions(listing.cursor).keys == ()  # another process
    (tmp_path / "a" / "1" / "README.md").write_text("a new card")
    assert registry.versions(listing.cursor).keys == ()
    (tmp_path / "a" / "1" / "config.json").write_text('{"changed": true}')
    assert registry.versions(listing.cursor).keys == listing.keys


def test_a_pipe_or_a_device_among_the_files_does_not_hang_the_scan(folder: Path, tmp_path: Path) -> None:
    """Whoever may write to the folder could stop every evaluation."""
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    (folder / "extra.safetensors").symlink_to("/dev/zero")
    registry = FolderRegistry(str(tmp_path / "models"))
    assert registry.versions().keys == (ModelKey("org/tiny", "1"),)


def test_a_broken_link_is_listed_and_told_on_fetching(folder: Path, tmp_path: Path) -> None:
    (folder / "gone.json").symlink_to("nowhere")
    registry = FolderRegistry(str(tmp_path / "models"))
    assert registry.versions().keys == (ModelKey("org/tiny", "1"),)
    with pytest.raises(UserError, match="link to nothing"):
        registry.fetch(ModelKey("org/tiny", "1"))


def test_labels_and_leftovers_beside_the_versions_make_no_version(folder: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "models"))
    registry.move_alias("org/tiny", "champion", "1", None)
    registry.annotate(ModelKey("org/tiny", "1"), {"verdict": "better"})
    beside = sorted(path.name for path in folder.parent.iterdir())
    assert beside == ["1", "aliases.json", "notes.json"]
    assert registry.versions().keys == (ModelKey("org/tiny", "1"),)
    assert registry.versions().skipped == ()


@pytest.mark.parametrize("name", ["../org", "org/../../x", ".hidden", "org/.x", "", "org/"])
def test_aliases_of_a_name_that_leads_elsewhere_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """A name comes from configuration and from the UI; it must never become a path out of the root."""
    with pytest.raises(UserError):
        FolderRegistry(str(tmp_path / "models")).aliases(name)
    with pytest.raises(UserError):
        FolderRegistry(str(tmp_path / "models")).move_alias(name, "champion", "1", None)
    assert not (tmp_path / "aliases.json").exists()


def test_ten_thousand_versions_are_scanned_in_seconds(tiny_model: Path, tmp_path: Path) -> None:
    """A tick of the sensor has 30 s for everything."""
    for name in range(100):
        for version in range(100):
            folder = tmp_path / f"model-{name}" / str(version)
            folder.mkdir(parents=True)
            for file in ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS):
                (folder / file).hardlink_to(tiny_model / file)
    registry = FolderRegistry(str(tmp_path))
    started = time.process_time()  # the machine's other work doesn't count
    listing = registry.versions()
    assert time.process_time() - started < 8
    assert len(listing.keys) == 10_000
    started = time.process_time()
    assert registry.versions(listing.cursor).keys == ()
    assert time.process_time() - started < 4


class _Failing(type(fsspec.filesystem("memory"))):  # type: ignore[misc]  # a class that is known at run time only
    """An object store whose client raises as s3fs and gcsfs do: whatever its HTTP library raises."""

    protocol = "failing"
    error: Exception = RuntimeError("https://key:secret@bucket: endpoint is away")

    def find(self, path: str, **options: Any) -> Mapping[str, Any]:
        raise self.error

    def isdir(self, path: str) -> bool:
        return True

    def info(self, path: str, **options: Any) -> Mapping[str, Any]:
        raise self.error


def test_an_object_store_that_is_away_is_unavailable_and_one_that_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sensor skips a tick for the first and must show the second; neither shows what the client knows."""
    fsspec.register_implementation("failing", _Failing, clobber=True)
    registry = FolderRegistry("failing://bucket/models", tmp_path)
    for ask in (registry.versions, lambda: registry.fetch(ModelKey("a", "1"))):
        with pytest.raises(RegistryUnavailableError) as error:
            ask()
        assert "secret" not in str(error.value)
    with monkeypatch.context() as patched, pytest.raises(RegistryUnavailableError):
        patched.setattr(_Failing, "find", lambda *_, **__: {})  # it was away for one request only
        registry.revision(ModelKey("a", "1"))
    monkeypatch.setattr(_Failing, "error", PermissionError(13, "Access Denied", "bucket/models"))
    with pytest.raises(UserError, match="bucket/models may not be read") as refused:
        registry.versions()
    assert not isinstance(refused.value, RegistryUnavailableError)


def test_a_folder_that_may_not_be_read_hides_its_versions_and_has_not_lost_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions that somebody changed would make every version below count as deleted."""
    registry = _put(tmp_path, "a/1", "secret/1")
    original = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if "/secret/" in str(path):
            raise error
        return original(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    error: OSError = PermissionError(13, "Permission denied", "secret/1")
    with pytest.raises(UserError, match="secret/1 may not be read"):
        registry.revision(ModelKey("secret", "1"))
    error = OSError(116, "Stale file handle")
    with pytest.raises(RegistryUnavailableError, match="can't be reached now: Stale file handle"):
        registry.revision(ModelKey("secret", "1"))


def test_a_folder_that_may_not_be_read_is_skipped_and_the_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One team's permissions must not stop every other team's evaluations."""
    registry = _put(tmp_path, "a/1", "secret/1")
    original = os.scandir

    def refuse(path: str) -> Any:  # root, who runs the tests in a container, may read everything
        if str(path).endswith("/secret"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr("os.scandir", refuse)
    assert registry.versions().keys == (ModelKey("a", "1"),)
    assert _reasons(registry) == {"secret": "it may not be read; check its permissions"}
