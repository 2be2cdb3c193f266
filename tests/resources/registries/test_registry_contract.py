"""What every registry promises, whatever is behind it.

To add one: write a `Shelf` for it and a subclass of `RegistryContract` whose fixture `shelf` gives one.
"""

import shutil
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pytest

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import AliasMovedError, Registry, UnknownModelError, VersionNotThereError
from resources.registries.aliases import Labels
from resources.registries.folder import FolderRegistry
from resources.registries.mlflow import MlflowRegistry
from resources.registries.verify import measure
from tests.resources.registries.mlflow_server import MlflowServer, Proxy


class Shelf(Protocol):
    """An empty registry and ways to change what is in it; `add` may turn name and version into its own."""

    compare_and_set: bool
    """Of several that move an alias at once exactly one succeeds."""

    @property
    def registry(self) -> Registry: ...
    def add(self, name: str, version: str, model: Path) -> ModelKey: ...
    def change(self, key: ModelKey, model: Path) -> None: ...
    def delete(self, key: ModelKey) -> None: ...
    def notes(self, key: ModelKey) -> Mapping[str, str]: ...
    def refusing(self, key: ModelKey) -> Iterator[Registry]:
        """Registries that would have the version, each of which won't say so until the next is asked for."""
        ...


class RegistryContract:
    """The behaviours; subclasses give `shelf`."""

    def test_an_empty_registry_has_no_versions(self, shelf: Shelf) -> None:
        listing = shelf.registry.versions()
        assert (listing.keys, listing.skipped) == ((), ())
        assert shelf.registry.versions(listing.cursor).keys == ()

    def test_all_versions_are_listed_from_the_beginning(self, shelf: Shelf, tiny_model: Path) -> None:
        """Whatever is not listed is never evaluated, and nobody is told."""
        keys = {shelf.add("tiny", "1", tiny_model), shelf.add("tiny", "2", tiny_model)}
        keys.add(shelf.add("other", "1", tiny_model))
        listing = shelf.registry.versions()
        assert set(listing.keys) == keys
        assert len(listing.keys) == 3
        assert listing.skipped == ()

    def test_a_cursor_lists_what_came_after_it(self, shelf: Shelf, tiny_model: Path) -> None:
        """A version that falls between two ticks of the sensor would be lost for ever."""
        shelf.add("tiny", "1", tiny_model)
        cursor = shelf.registry.versions().cursor
        second = shelf.add("tiny", "2", tiny_model)
        listing = shelf.registry.versions(cursor)
        assert second in listing.keys
        third = shelf.add("other", "1", tiny_model)
        assert third in shelf.registry.versions(listing.cursor).keys

    @pytest.mark.parametrize("cursor", ["nonsense", "[]", "{}", "null", '{"a": [1, "x"]}', "[1, 2, 3]"])
    def test_a_cursor_that_means_nothing_lists_everything(
        self, shelf: Shelf, tiny_model: Path, cursor: str
    ) -> None:
        """An older release's cursor, or another registry's, must not hide a version."""
        key = shelf.add("tiny", "1", tiny_model)
        assert shelf.registry.versions(cursor).keys == (key,)

    def test_a_deleted_version_is_gone_and_told_in_one_line(self, shelf: Shelf, tiny_model: Path) -> None:
        gone, stays = shelf.add("tiny", "1", tiny_model), shelf.add("tiny", "2", tiny_model)
        shelf.delete(gone)
        assert shelf.registry.versions().keys == (stays,)
        for ask in (shelf.registry.revision, shelf.registry.fetch):
            with pytest.raises(VersionNotThereError, match=f"model {gone}: ") as error:
                ask(gone)
            assert str(stays) in str(error.value)
            assert "\n" not in str(error.value)

    def test_a_registry_that_refuses_has_not_said_that_a_version_is_gone(
        self, shelf: Shelf, tiny_model: Path
    ) -> None:
        """A token that expires would take every version out of the grid."""
        key = shelf.add("tiny", "1", tiny_model)
        shelf.add("tiny", "2", tiny_model)
        for registry in shelf.refusing(key):
            with pytest.raises(UserError) as error:
                registry.revision(key)
            assert not isinstance(error.value, VersionNotThereError), error.value
            assert "\n" not in str(error.value)

    def test_a_registry_that_refuses_has_not_said_that_a_model_is_unknown(
        self, shelf: Shelf, tiny_model: Path
    ) -> None:
        """Retention would remove the samples of what is in production."""
        key = shelf.add("tiny", "1", tiny_model)
        for registry in shelf.refusing(key):
            try:
                registry.aliases(key.name)
            except UnknownModelError as error:
                pytest.fail(str(error))
            except UserError:
                pass

    def test_what_is_fetched_can_be_measured_and_stays_where_it_is(
        self, shelf: Shelf, tiny_model: Path
    ) -> None:
        key = shelf.add("tiny", "1", tiny_model)
        folder = shelf.registry.fetch(key)
        facts = measure(key, folder)
        assert facts.digest == measure(key, tiny_model).digest
        inode = (folder / "config.json").stat().st_ino
        assert shelf.registry.fetch(key) == folder
        assert (folder / "config.json").stat().st_ino == inode

    def test_a_version_that_changes_under_its_name_has_another_revision_and_is_fetched_anew(
        self, shelf: Shelf, tiny_model: Path, other_tiny_model: Path
    ) -> None:
        """A champion whose weights were exchanged after its evaluation must not stand as evaluated."""
        key = shelf.add("tiny", "1", tiny_model)
        before = shelf.registry.revision(key)
        assert shelf.registry.revision(key) == before
        digest = measure(key, shelf.registry.fetch(key)).digest
        shelf.change(key, other_tiny_model)
        assert shelf.registry.revision(key) != before
        assert measure(key, shelf.registry.fetch(key)).digest != digest

    def test_two_that_fetch_at_once_both_get_all_of_it(self, shelf: Shelf, tiny_model: Path) -> None:
        key = shelf.add("tiny", "1", tiny_model)
        with ThreadPoolExecutor(4) as threads:
            folders = list(threads.map(lambda _: shelf.registry.fetch(key), range(4)))
        assert len(set(folders)) == 1
        assert measure(key, folders[0]).digest == measure(key, tiny_model).digest

    def test_an_alias_moves_from_where_it_is_expected(self, shelf: Shelf, tiny_model: Path) -> None:
        one, two = shelf.add("tiny", "1", tiny_model), shelf.add("tiny", "2", tiny_model)
        registry = shelf.registry
        assert registry.aliases(one.name) == {}
        registry.move_alias(one.name, "champion", one.version, None)
        registry.move_alias(one.name, "candidate", two.version, None)
        assert registry.aliases(one.name) == {"champion": one.version, "candidate": two.version}
        registry.move_alias(one.name, "champion", two.version, one.version)
        registry.move_alias(one.name, "champion", two.version, one.version)  # a repeated tick
        assert registry.aliases(one.name)["champion"] == two.version

    def test_an_alias_that_somebody_moved_stays_there(self, shelf: Shelf, tiny_model: Path) -> None:
        """The person who rolled back by hand an hour ago must win over the promotion that was under way."""
        one, two, three = (shelf.add("tiny", str(number), tiny_model) for number in (1, 2, 3))
        registry = shelf.registry
        registry.move_alias(one.name, "champion", one.version, None)
        for expected in (None, two.version):
            with pytest.raises(AliasMovedError) as error:
                registry.move_alias(one.name, "champion", three.version, expected)
            assert repr(one.version) in str(error.value)
            assert repr(three.version) in str(error.value)
        with pytest.raises(AliasMovedError, match="is not set, not at version"):
            registry.move_alias(one.name, "candidate", one.version, two.version)
        assert registry.aliases(one.name) == {"champion": one.version}

    def test_of_many_that_move_an_alias_at_once_one_succeeds(self, shelf: Shelf, tiny_model: Path) -> None:
        """Two daemons' ticks: the loser must know that its reasons are out of date."""
        keys = [shelf.add("tiny", str(number), tiny_model) for number in range(1, 6)]
        registry = shelf.registry
        registry.move_alias(keys[0].name, "champion", keys[0].version, None)

        def move(key: ModelKey) -> bool:
            try:
                registry.move_alias(key.name, "champion", key.version, keys[0].version)
            except AliasMovedError:
                return False
            return True

        with ThreadPoolExecutor(4) as threads:
            moved = list(threads.map(move, keys[1:]))
        assert sum(moved) == 1 or (not shelf.compare_and_set and sum(moved) >= 1)
        there = registry.aliases(keys[0].name)["champion"]
        assert there in [key.version for key, done in zip(keys[1:], moved, strict=True) if done]

    def test_an_alias_moves_to_no_version_that_is_not_there(self, shelf: Shelf, tiny_model: Path) -> None:
        key = shelf.add("tiny", "1", tiny_model)
        with pytest.raises(UserError) as error:
            shelf.registry.move_alias(key.name, "champion", "999", None)
        assert "999" in str(error.value)
        assert shelf.registry.aliases(key.name) == {}

    def test_an_unknown_model_has_no_aliases_and_the_closest_names_are_told(
        self, shelf: Shelf, tiny_model: Path
    ) -> None:
        key = shelf.add("tiny", "1", tiny_model)
        with pytest.raises(UserError, match=f"model {key.name}y: not in .*closest: {key.name}") as error:
            shelf.registry.aliases(f"{key.name}y")
        assert "\n" not in str(error.value)

    def test_notes_are_added_and_replaced_by_name(self, shelf: Shelf, tiny_model: Path) -> None:
        one, two = shelf.add("tiny", "1", tiny_model), shelf.add("tiny", "2", tiny_model)
        shelf.registry.annotate(one, {"verdict": "undecided", "link": "http://ui/1"})
        shelf.registry.annotate(one, {"verdict": "worse: 3.1 ± 0.4 points"})
        shelf.registry.annotate(two, {"verdict": "better"})
        assert shelf.notes(one) == {"verdict": "worse: 3.1 ± 0.4 points", "link": "http://ui/1"}
        assert shelf.notes(two) == {"verdict": "better"}
        with pytest.raises(UserError, match=f"model {one.name}@999: "):
            shelf.registry.annotate(ModelKey(one.name, "999"), {"verdict": "better"})

    def test_labels_change_neither_the_versions_nor_their_revisions(
        self, shelf: Shelf, tiny_model: Path
    ) -> None:
        """Otherwise each verdict makes its own version look changed, and it is evaluated for ever."""
        key = shelf.add("tiny", "1", tiny_model)
        listing, revision = shelf.registry.versions(), shelf.registry.revision(key)
        shelf.registry.move_alias(key.name, "champion", key.version, None)
        shelf.registry.annotate(key, {"verdict": "better"})
        again = shelf.registry.versions()
        assert (again.keys, again.skipped) == (listing.keys, ())
        assert shelf.registry.revision(key) == revision


class FolderShelf:
    """A folder registry on a disk."""

    compare_and_set = True

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.registry = FolderRegistry(str(root))

    def add(self, name: str, version: str, model: Path) -> ModelKey:
        shutil.copytree(model, self.root / "org" / name / version)
        return ModelKey(f"org/{name}", version)

    def change(self, key: ModelKey, model: Path) -> None:
        shutil.copytree(
            model, self.root / key.name / key.version, dirs_exist_ok=True, copy_function=shutil.copy
        )

    def delete(self, key: ModelKey) -> None:
        shutil.rmtree(self.root / key.name / key.version)

    def notes(self, key: ModelKey) -> Mapping[str, str]:
        return Labels(str(self.root), lambda _: True).notes(key)

    def refusing(self, key: ModelKey) -> Iterator[Registry]:
        yield FolderRegistry(str(self.root.with_name("nowhere")))
        mount_point = self.root.with_name("mount-point")
        mount_point.mkdir()
        yield FolderRegistry(str(mount_point))
        (self.root / key.name / key.version / "config.json").unlink()  # copied anew
        yield self.registry


class StoreShelf:
    """A folder registry in an object store."""

    compare_and_set = True

    def __init__(self, root: str, cache: Path) -> None:
        self.root = root
        self.store = fsspec.filesystem(root.partition("://")[0])
        self.store.makedirs(self.root, exist_ok=True)
        self.cache = cache
        self.registry = FolderRegistry(self.root, cache)

    def add(self, name: str, version: str, model: Path) -> ModelKey:
        key = ModelKey(name, version)
        self.change(key, model)
        return key

    def change(self, key: ModelKey, model: Path) -> None:
        for path in model.iterdir():
            self.store.pipe(f"{self.root}/{key.name}/{key.version}/{path.name}", path.read_bytes())

    def delete(self, key: ModelKey) -> None:
        self.store.rm(f"{self.root}/{key.name}/{key.version}", recursive=True)

    def notes(self, key: ModelKey) -> Mapping[str, str]:
        return Labels(self.root, lambda _: True).notes(key)

    def refusing(self, key: ModelKey) -> Iterator[Registry]:
        yield FolderRegistry(f"{self.root}-nowhere", self.cache)
        self.store.rm(f"{self.root}/{key.name}/{key.version}/config.json")  # copied anew
        yield self.registry


class MlflowShelf:
    """Models of one test on the MLflow server, by a prefix of their names."""

    compare_and_set = False

    def __init__(self, server: MlflowServer, cache: Path) -> None:
        url = self.url = server.url
        self.cache = cache
        self.database = server.database
        self.names: set[str] = set()
        self.prefix = uuid.uuid4().hex[:12]
        self.registry = MlflowRegistry(url, cache, names=f"{self.prefix}-*")
        self.registry.versions()  # sets the client's environment, imports it
        from mlflow import MlflowClient

        self.client: Any = MlflowClient(url, url)
        self.experiment = self.client.create_experiment(self.prefix)
        self.empty = self.client.create_run(self.experiment).info

    def name(self, name: str) -> str:
        """The registered model of that name, made where it isn't there."""
        full = f"{self.prefix}-{name}"
        if full not in self.names:
            self.client.create_registered_model(full)
            self.names.add(full)
        return full

    def add(self, name: str, version: str, model: Path) -> ModelKey:
        run = self.client.create_run(self.experiment).info
        self.client.log_artifacts(run.run_id, str(model), "model")
        return self.register(name, f"{run.artifact_uri}/model", run.run_id)

    def register(self, name: str, source: str = "", run_id: str | None = None) -> ModelKey:
        """A version whose files are at `source`; by default it has none."""
        if not source:
            source, run_id = f"{self.empty.artifact_uri}/nothing", self.empty.run_id
        made = self.client.create_model_version(self.name(name), source, run_id, await_creation_for=0)
        return ModelKey(made.name, str(made.version))

    def rewrite(self, key: ModelKey, **columns: str) -> None:
        """Change the version in the server's database, to what this server would not do by itself."""
        names = ", ".join(f"{name} = ?" for name in columns)
        with closing(sqlite3.connect(self.database, timeout=60)) as database, database:
            database.execute(
                f"update model_versions set {names} where name = ? and version = ?",
                (*columns.values(), key.name, int(key.version)),
            )

    def change(self, key: ModelKey, model: Path) -> None:
        """Put other files where the version's are, with an MLmodel as a model that is logged anew has."""
        run_id = self.client.get_model_version(key.name, key.version).run_id
        self.client.log_artifacts(run_id, str(model), "model")
        self.client.log_text(run_id, f"model_uuid: {uuid.uuid4()}\n", "model/MLmodel")

    def delete(self, key: ModelKey) -> None:
        self.client.delete_model_version(key.name, key.version)

    def notes(self, key: ModelKey) -> Mapping[str, str]:
        tags = self.client.get_model_version(key.name, key.version).tags
        return {name.removeprefix("eval."): text for name, text in tags.items() if name.startswith("eval.")}

    def refusing(self, key: ModelKey) -> Iterator[Registry]:
        proxy = Proxy(self.url)
        registry = MlflowRegistry(proxy.url, self.cache, names=f"{self.prefix}-*")
        gateway, page = b'{"message": "no route"}', b"<html>no such page</html>"
        answers = (401, 403, (404, gateway), (404, page), (200, b"<html>Please log in</html>"))
        try:
            for proxy.faults["/get?"] in answers:
                yield registry
        finally:
            proxy.close()
        self.rewrite(key, status="FAILED_REGISTRATION")
        yield self.registry


class TestFolder(RegistryContract):
    @pytest.fixture
    def shelf(self, tmp_path: Path) -> Shelf:
        return FolderShelf(tmp_path / "models")


class TestObjectStore(RegistryContract):
    @pytest.fixture
    def shelf(self, tmp_path: Path) -> Shelf:
        return StoreShelf(f"memory://{uuid.uuid4().hex}", tmp_path / "cache")


class TestBucket(RegistryContract):
    @pytest.fixture
    def shelf(self, bucket: str, tmp_path: Path) -> Shelf:
        return StoreShelf(bucket, tmp_path / "cache")


class TestMlflow(RegistryContract):
    @pytest.fixture
    def shelf(self, mlflow: MlflowServer, tmp_path: Path) -> Shelf:
        return MlflowShelf(mlflow, tmp_path / "cache")
