"""What the Hub registry lists, and what that costs."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import VersionNotThereError, hub_repo
from resources.registries.hub import HubRegistry
from tests.resources.registries.hub.server import Hub, Repo, commit_key, keys, open_registry


class TestLooking:
    """What `versions` lists, and what it costs."""

    def test_the_first_look_gives_the_tags_and_the_head(self, repo: Repo, registry: HubRegistry) -> None:
        old = repo.head
        repo.commit({"config.json": repo.commits[old]["config.json"] + b"\n"})
        repo.tags["v1.0"] = old
        listing = registry.versions()
        assert listing.keys == (ModelKey("org/tiny", "v1.0"), commit_key(repo, repo.head))
        assert listing.skipped == ()
        assert registry.revision(listing.keys[0]) == old
        assert registry.revision(listing.keys[1]) == repo.head

    def test_after_a_cursor_only_new_commits_and_tags_are_listed(
        self, hub: Hub, repo: Repo, registry: HubRegistry
    ) -> None:
        """A version that is listed at each look is asked about, and queued, at each look."""
        repo.tags["v1"] = repo.head
        first = registry.versions()
        hub.requests.clear()
        again = registry.versions(first.cursor)
        assert (again.keys, again.cursor) == ((), first.cursor)
        assert len(hub.requests) == 1
        head = repo.commit({"config.json": b"{}"})
        second = registry.versions(again.cursor)
        assert second.keys == (commit_key(repo, head),)
        repo.tags["v2"] = head
        third = registry.versions(second.cursor)
        assert third.keys == keys("org/tiny@v2")
        assert registry.versions(third.cursor).keys == ()

    def test_a_head_that_a_tag_names_is_listed_under_the_tag_alone(
        self, repo: Repo, registry: HubRegistry
    ) -> None:
        """Twice the same files would be two rows of the grid."""
        repo.tags["v1"] = repo.head
        listing = registry.versions()
        assert listing.keys == keys("org/tiny@v1")
        del repo.tags["v1"]
        assert registry.versions(listing.cursor).keys == (commit_key(repo, repo.head),)

    def test_a_moved_tag_is_listed_again_and_has_another_revision(
        self, repo: Repo, registry: HubRegistry
    ) -> None:
        """Otherwise the verdict about the old weights stands for the new ones."""
        (key,) = keys("org/tiny@v1")
        repo.tags["v1"] = repo.head
        listing = registry.versions()
        before = registry.revision(key)
        repo.tags["v1"] = repo.commit({"config.json": b"{}"})
        assert key in registry.versions(listing.cursor).keys
        assert registry.revision(key) == repo.head != before

    def test_a_commit_that_changes_only_what_no_load_reads_is_no_version(
        self, repo: Repo, registry: HubRegistry
    ) -> None:
        """Model cards are edited more often than models; each edit would be a row of the grid."""
        cursor = registry.versions().cursor
        repo.commit({"README.md": b"# Tiny, explained", "eval.png": b"a picture"})
        listing = registry.versions(cursor)
        assert listing.keys == ()
        repo.commit({"chat_template.jinja": b"{{ messages }}"})
        assert registry.versions(listing.cursor).keys == (commit_key(repo, repo.head),)

    def test_a_commit_that_was_force_pushed_away_is_told(self, repo: Repo, registry: HubRegistry) -> None:
        (key,) = registry.versions().keys
        head = repo.force_push({"config.json": b"{}"})
        for ask in (registry.revision, registry.fetch):
            with pytest.raises(UserError, match=rf"model {key}: .*force-pushed\?.*org/tiny@{head[:12]}"):
                ask(key)

    def test_a_repository_that_is_removed_is_told_as_gone_to_whoever_shows_a_token(
        self, hub: Hub, repo: Repo, registry: HubRegistry, token: str
    ) -> None:
        """Its versions would be evaluated for ever, and `forget` would not forget them."""
        key = commit_key(repo, repo.head)
        del hub.repos["org/tiny"]
        with pytest.raises(VersionNotThereError, match="org/tiny"):
            registry.revision(key)

    def test_a_commit_behind_those_that_are_looked_at_is_not_told_as_gone(
        self, repo: Repo, registry: HubRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A version that is a year old would count as deleted because many came after it."""
        old = commit_key(repo, repo.head)
        repo.commit({"config.json": b"{}"})
        monkeypatch.setattr(hub_repo, "_HISTORY_PAGES", 0)
        with pytest.raises(UserError, match="an older one needs a tag") as error:
            registry.revision(old)
        assert not isinstance(error.value, VersionNotThereError)

    def test_an_old_commit_is_found_by_its_first_digits(self, repo: Repo, registry: HubRegistry) -> None:
        """The Hub itself resolves no abbreviation."""
        old = repo.head
        repo.commit({"config.json": b"{}"})
        repo.commit({"config.json": b"{ }"})
        for digits in (7, 12, 40):
            assert registry.revision(ModelKey("org/tiny", old[:digits])) == old

    def test_a_tag_named_like_a_commit_is_that_tag(self, repo: Repo, registry: HubRegistry) -> None:
        old, head = repo.head, repo.commit({"config.json": b"{}"})
        repo.tags[head[:12]] = old
        tag, commit = registry.versions().keys
        assert (tag.version, commit.version) == (head[:12], head[:13])
        assert (registry.revision(tag), registry.revision(commit)) == (old, head)

    def test_tags_that_are_no_legal_key_are_skipped_and_told(self, repo: Repo, registry: HubRegistry) -> None:
        repo.tags = {"release/1": repo.head, "v1": repo.head, "v1,2": repo.head}
        listing = registry.versions()
        assert listing.keys == keys("org/tiny@v1")
        assert [skip.place for skip in listing.skipped] == ["org/tiny, tag release/1", "org/tiny, tag v1,2"]

    @pytest.mark.parametrize(
        ("changes", "removed", "reason"),
        [
            ({}, ("model.safetensors",), "no safetensors, only pytorch_model.bin; upload its weights with"),
            ({}, ("config.json",), "no config.json"),
            ({"adapter_config.json": b"{}"}, (), "an adapter (adapter_config.json); merge it"),
        ],
    )
    def test_what_is_no_model_is_told_until_it_is_one(
        self,
        repo: Repo,
        files: dict[str, bytes],
        registry: HubRegistry,
        changes: Mapping[str, bytes],
        removed: tuple[str, ...],
        reason: str,
    ) -> None:
        repo.commit(changes, remove=removed)
        key = commit_key(repo, repo.head)
        listing = registry.versions()
        assert listing.keys == ()
        assert [skip.place for skip in listing.skipped] == [str(key)]
        assert listing.skipped[0].reason.startswith(reason)
        assert registry.versions(listing.cursor).skipped == listing.skipped
        with pytest.raises(UserError, match=f"model {key}: "):
            registry.fetch(key)
        repo.commit(files, remove=("adapter_config.json",))
        assert registry.versions(listing.cursor).keys == (commit_key(repo, repo.head),)

    def test_a_deleted_repository_is_told_and_comes_back_whole(
        self, hub: Hub, repo: Repo, registry: HubRegistry
    ) -> None:
        listing = registry.versions()
        hub.repos.clear()
        gone = registry.versions(listing.cursor)
        assert gone.keys == ()
        assert "model org/tiny: not on" in gone.skipped[0].reason
        for ask in (registry.revision, registry.fetch):
            with pytest.raises(UserError, match=f"model {listing.keys[0]}: not in"):
                ask(listing.keys[0])
        hub.repos["org/tiny"] = repo
        assert registry.versions(gone.cursor).keys == listing.keys

    def test_only_tracked_repositories_are_fetched(
        self, hub: Hub, files: dict[str, bytes], repo: Repo, registry: HubRegistry
    ) -> None:
        """A person can type any key into the UI."""
        hub.repo("other/tiny", files)
        with pytest.raises(UserError, match=r"model other/tiny@v1: not in .*closest: org/tiny"):
            registry.fetch(ModelKey("other/tiny", "v1"))

    def test_a_branch_that_is_not_there_is_told(self, hub: Hub, repo: Repo, tmp_path: Path) -> None:
        repo.tags["v1"] = repo.head
        registry = HubRegistry(["org/tiny"], [], tmp_path, str(tmp_path), hub.url, branch="release")
        listing = registry.versions()
        assert listing.keys == keys("org/tiny@v1")
        assert "no branch 'release'" in listing.skipped[0].reason


class TestOrganizations:
    def test_an_organization_is_listed_over_its_pages(
        self, hub: Hub, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        """A page that is not asked for is models that are never evaluated."""
        hub.page = 2
        for name in ("org/a", "org/b", "org/c", "elsewhere/d"):
            hub.repo(name, files)
        hub.repo("org/vision", files).task = "image-classification"
        hub.repo("org/gguf", files).labels = ("gguf",)
        listing = open_registry(hub, tmp_path, (), ("org",)).versions()
        assert [key.name for key in listing.keys] == ["org/a", "org/b", "org/c"]
        assert [skip.place for skip in listing.skipped] == ["org/gguf"]
        assert len([r for r in hub.asked("/api/models") if r.path == "/api/models"]) == 2

    def test_a_pattern_takes_some_of_its_models(
        self, hub: Hub, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        for name in ("org/llama-1", "org/llama-2", "org/other"):
            hub.repo(name, files)
        registry = open_registry(hub, tmp_path, (), ("org/llama-*",))
        assert [key.name for key in registry.versions().keys] == ["org/llama-1", "org/llama-2"]
        with pytest.raises(UserError, match="not in"):
            registry.revision(ModelKey("org/other", "v1"))

    def test_models_that_stand_still_are_asked_for_tags_in_turns(
        self, hub: Hub, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        """With a request for each model at each look, the Hub's rate limit would end the looking."""
        repos = [hub.repo(f"org/m{number:02}", files) for number in range(30)]
        registry = open_registry(hub, tmp_path, (), ("org",))
        cursor = registry.versions().cursor
        repos[29].tags["v1"] = repos[29].head
        repos[3].commit({"config.json": b"{}"})
        found: list[ModelKey] = []
        for _ in range(2):
            hub.requests.clear()
            listing = registry.versions(cursor)
            cursor = listing.cursor
            found += listing.keys
            assert len(hub.asked("/refs")) <= 21
        assert found == [commit_key(repos[3], repos[3].head), ModelKey("org/m29", "v1")]

    def test_a_listing_that_fails_forgets_no_model(
        self, hub: Hub, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        """Otherwise one bad minute of the Hub makes every model new again."""
        hub.repo("org/a", files)
        hub.repo("org/named", files)
        registry = open_registry(hub, tmp_path, ("org/named",), ("org",))
        listing = registry.versions()
        hub.fails("hub/api/models$", 503, times=9, headers={"Retry-After": "900"})
        broken = registry.versions(listing.cursor)
        assert broken.keys == ()
        assert "asks to wait 900 s" in broken.skipped[0].reason
        hub.heal()
        assert registry.versions(broken.cursor).keys == ()
