"""Several registries as one: each model has one home, and a registry that is down hides no other."""

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import Listing, Registry, RegistryUnavailableError, VersionNotThereError
from resources.registries.folder import FolderRegistry
from resources.registries.sources import RegistrySource, RoutedRegistry, open_registries


@pytest.fixture
def two(tmp_path: Path, tiny_model: Path) -> Registry:
    """Models `a` and `shared` in the first, `b` and `shared` in the second folder."""
    for folder, names in (("first", ("a", "shared")), ("second", ("b", "shared"))):
        for name in names:
            shutil.copytree(tiny_model, tmp_path / folder / name / "1")
    sources = [
        ("a", RegistrySource(folder=str(tmp_path / "first"))),
        ("s*", RegistrySource(folder=str(tmp_path / "second"))),
        ("b", RegistrySource(folder=str(tmp_path / "second"))),
    ]
    return open_registries(sources, tmp_path / "cache", str(tmp_path / "notes"))


def test_a_model_belongs_to_the_first_registry_whose_pattern_matches(two: Registry, tmp_path: Path) -> None:
    """A name that is in two registries would be evaluated with the files of whichever answers first."""
    assert {str(key) for key in two.versions().keys} == {"a@1", "b@1", "shared@1"}
    assert two.fetch(ModelKey("shared", "1")) == tmp_path / "second" / "shared" / "1"
    two.move_alias("shared", "champion", "1", None)
    assert two.aliases("shared") == {"champion": "1"}
    assert not (tmp_path / "first" / "shared" / "aliases.json").exists()
    with pytest.raises(UserError, match="model c: no entry of EVAL_MODELS has a pattern"):
        two.revision(ModelKey("c", "1"))


def test_a_cursor_is_kept_for_each_entry(two: Registry) -> None:
    """Every look would otherwise list everything again."""
    cursor = two.versions().cursor
    assert two.versions(cursor).keys == ()


def test_a_registry_that_is_down_hides_no_other_and_is_asked_again_from_where_it_was(
    two: Registry, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = two.versions().cursor
    whole = FolderRegistry.versions

    def second_is_down(self: FolderRegistry, since: str = "") -> Listing:
        if self.root.endswith("second"):
            raise RegistryUnavailableError("the second does not answer")
        return whole(self, since)

    shutil.copytree(tiny_model, tmp_path / "first" / "a" / "2")
    shutil.copytree(tiny_model, tmp_path / "second" / "b" / "2")
    with monkeypatch.context() as patched:
        patched.setattr(FolderRegistry, "versions", second_is_down)
        listing = two.versions(cursor)
    assert "a@2" in {str(key) for key in listing.keys}
    assert {skipped.reason for skipped in listing.skipped} == {"the second does not answer"}
    assert {str(key) for key in two.versions(listing.cursor).keys} >= {"b@2"}


def test_of_several_the_one_that_a_model_belongs_to_says_whether_its_version_is_gone(
    two: Registry, tmp_path: Path
) -> None:
    """One that is not mounted would lose all its versions, because the others answer."""
    shutil.rmtree(tmp_path / "first" / "a" / "1")
    with pytest.raises(VersionNotThereError, match="model a@1: not in"):
        two.revision(ModelKey("a", "1"))
    (tmp_path / "second").rename(tmp_path / "not mounted")
    for key in (ModelKey("b", "1"), ModelKey("c", "1")):  # no entry is there for the second
        with pytest.raises(UserError) as error:
            two.revision(key)
        assert not isinstance(error.value, VersionNotThereError)


def test_the_only_registry_being_down_is_told_as_it_is(tmp_path: Path) -> None:
    registry = RoutedRegistry([("*", FolderRegistry(str(tmp_path / "nowhere")))])
    with pytest.raises(UserError, match="does not exist"):
        registry.versions()


@pytest.mark.parametrize("source", [{}, {"folder": "x", "mlflow": "http://y"}, {"hub": {}}, {"s3": "x"}])
def test_a_source_is_exactly_one_registry(source: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RegistrySource.model_validate(source)
