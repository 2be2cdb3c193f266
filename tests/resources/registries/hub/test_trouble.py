"""Tokens, closed doors, and Hubs that are busy, down or none: each one line, in time."""

import json
import time
import traceback
from pathlib import Path

import huggingface_hub
import pytest

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import RegistryUnavailableError, Skipped
from resources.registries import hub as looking
from resources.registries.hub import HubRegistry
from resources.registries.hub_client import TokenRefusedError
from tests.resources.registries.hub.conftest import TOKEN
from tests.resources.registries.hub.server import (
    SIGNATURE,
    WEIGHTS,
    Hub,
    Repo,
    commit_key,
    keys,
    open_registry,
)


class TestAccess:
    """Tokens, gated and private repositories."""

    def test_a_gated_repository_says_what_to_do_without_a_token(
        self, hub: Hub, repo: Repo, registry: HubRegistry
    ) -> None:
        repo.gated = True
        listing = registry.versions()
        assert listing.keys == ()
        reason = f"model org/tiny: gated; accept its licence at {hub.url}/org/tiny, then set HF_TOKEN"
        assert listing.skipped[0].reason.startswith(reason)
        with pytest.raises(UserError, match="gated; accept its licence at"):
            registry.fetch(commit_key(repo, repo.head))

    def test_a_gated_repository_is_listed_once_the_licence_is_accepted(
        self, repo: Repo, registry: HubRegistry, token: str
    ) -> None:
        """A skip that is remembered would hide it for ever."""
        repo.gated = True
        listing = registry.versions()
        assert "the account of HF_TOKEN has no access" in listing.skipped[0].reason
        repo.readers.add(token)
        (key,) = registry.versions(listing.cursor).keys
        assert (registry.fetch(key) / "model.safetensors").is_file()

    def test_a_private_repository_needs_a_token_that_may_read_it(
        self, repo: Repo, registry: HubRegistry, token: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repo.private = True
        assert "HF_TOKEN has no access to it" in registry.versions().skipped[0].reason
        repo.readers.add(token)
        (key,) = registry.versions().keys
        monkeypatch.delenv("HF_TOKEN")  # read at each request
        assert "HF_TOKEN is not set" in registry.versions().skipped[0].reason
        with pytest.raises(UserError, match="HF_TOKEN is missing or has no access"):
            registry.revision(key)

    def test_an_expired_token_is_one_line(
        self, repo: Repo, registry: HubRegistry, token: str, hub: Hub
    ) -> None:
        """As a skip of each repository it would be a hundred lines, and look as if all were gone."""
        (key,) = registry.versions().keys
        hub.tokens.clear()
        for ask in (registry.versions, lambda: registry.revision(key), lambda: registry.fetch(key)):
            with pytest.raises(TokenRefusedError, match=r"refuses HF_TOKEN \(expired or revoked\?\)"):
                ask()

    def test_the_token_goes_to_the_hub_alone(
        self, hub: Hub, repo: Repo, registry: HubRegistry, token: str
    ) -> None:
        """Whoever runs the CDN, or a host that a redirect names, could read every private model."""
        hub.cuts(WEIGHTS, after=10_000)
        registry.fetch(registry.versions().keys[0])
        assert {request.token for request in hub.requests if request.host == "hub"} == {token}
        fetched = [request for request in hub.requests if request.host == "cdn"]
        assert [request.token for request in fetched] == [None, None]

    @pytest.mark.parametrize("status", [401, 403, 404, 418, 429, 500])
    def test_no_error_or_log_shows_the_token_or_a_signed_address(
        self,
        hub: Hub,
        repo: Repo,
        registry: HubRegistry,
        token: str,
        status: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The server's own text holds the token here, as a careless proxy's would."""
        caplog.set_level("DEBUG", logger="resources")
        (key,) = registry.versions().keys
        shown = [repr(registry), str(vars(registry))]
        for place in ("hub/api", "hub/org/tiny/resolve", WEIGHTS):
            hub.fails(place, status, times=50, headers={"Retry-After": "60"})
            with pytest.raises(UserError) as error:
                registry.fetch(key)
            shown += ["".join(traceback.format_exception(error.value)), repr(error.value)]
            assert "\n" not in str(error.value)
            shown += [skip.reason for skip in _skipped(registry)]
            hub.heal()
        for text in (*shown, caplog.text):
            assert token not in text
            assert SIGNATURE not in text

    def test_a_token_that_can_be_none_is_not_sent(
        self, hub: Hub, repo: Repo, registry: HubRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The HTTP library would refuse it with an error that shows it."""
        monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\nX-Other: 1")
        with pytest.raises(UserError, match="HF_TOKEN holds a space") as error:
            registry.revision(ModelKey("org/tiny", "v1"))
        assert TOKEN not in "".join(traceback.format_exception(error.value))
        assert hub.requests == []


def _skipped(registry: HubRegistry) -> tuple[Skipped, ...]:
    try:
        return registry.versions().skipped
    except UserError:
        return ()


class TestTrouble:
    """Hubs that are slow, busy, down, or none."""

    def test_a_hub_that_is_down_is_one_error_in_time(self, tmp_path: Path) -> None:
        """The sensor's tick has 30 seconds for everything."""
        repos = [f"org/m{number}" for number in range(40)]
        registry = HubRegistry(repos, ["org"], tmp_path, str(tmp_path), "http://127.0.0.1:9")
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailableError, match="can't connect"):
            registry.versions()
        assert time.monotonic() - begun < 10
        with pytest.raises(RegistryUnavailableError, match="can't connect"):
            registry.revision(ModelKey("org/m0", "v1"))

    def test_a_hub_that_takes_requests_and_answers_none_is_one_error_in_time(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(looking, "_LOOK_SECONDS", 1.0)
        hub.hangs("hub/")
        registry = open_registry(hub, tmp_path, tuple(f"org/m{number}" for number in range(40)), ("org",))
        begun = time.monotonic()
        with pytest.raises(
            RegistryUnavailableError, match=r"no answer in time|did not answer all within 1 s"
        ):
            registry.versions()
        assert time.monotonic() - begun < 4

    def test_a_short_wait_that_is_asked_for_is_waited(
        self, hub: Hub, repo: Repo, registry: HubRegistry
    ) -> None:
        hub.fails("/refs", 429, headers={"Retry-After": "1"})
        hub.fails("/revision/", 429, headers={"RateLimit": '"api";r=0;t=1'})
        begun = time.monotonic()
        assert len(registry.versions().keys) == 1
        assert time.monotonic() - begun > 2

    def test_a_long_wait_that_is_asked_for_is_told_at_once(
        self, hub: Hub, repo: Repo, registry: HubRegistry
    ) -> None:
        """huggingface_hub itself would sleep for the hour, and the daemon with it."""
        hub.fails("/refs", 429, times=9, headers={"Retry-After": "3600"})
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailableError, match="answered 429, and asks to wait 3,600 s"):
            registry.versions()
        assert time.monotonic() - begun < 1
        assert len(hub.requests) == 1

    def test_a_bad_moment_is_passed_over(self, hub: Hub, repo: Repo, registry: HubRegistry) -> None:
        hub.fails("/refs", 503, times=2)
        assert len(registry.versions().keys) == 1

    def test_one_repository_that_fails_stops_no_other_and_is_not_forgotten(
        self, hub: Hub, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        for name in ("org/bad", "org/good"):
            hub.repo(name, files)
        registry = open_registry(hub, tmp_path, ("org/bad", "org/good"))
        hub.fails("/org/bad/refs", 500, times=9, headers={"Retry-After": "60"})
        listing = registry.versions()
        assert [key.name for key in listing.keys] == ["org/good"]
        assert [skip.place for skip in listing.skipped] == ["org/bad"]
        hub.heal()
        assert [key.name for key in registry.versions(listing.cursor).keys] == ["org/bad"]

    def test_a_tag_that_can_not_be_read_now_is_new_at_the_next_look(
        self, hub: Hub, repo: Repo, registry: HubRegistry
    ) -> None:
        """A repository of 500 tags takes more than one look; each must come nearer to the end."""
        commits = [repo.head, *(repo.commit({"config.json": b"{%d}" % n}) for n in range(3))]
        repo.tags = {f"v{number}": commit for number, commit in enumerate(commits)}
        hub.fails(f"/revision/{commits[1]}", 500, times=9, headers={"Retry-After": "60"})
        listing = registry.versions()
        assert listing.keys == keys("org/tiny@v0", "org/tiny@v2", "org/tiny@v3")
        assert len(listing.skipped) == 1
        hub.heal()
        assert registry.versions(listing.cursor).keys == keys("org/tiny@v1")

    def test_something_else_than_a_hub_is_told(self, hub: Hub, repo: Repo, registry: HubRegistry) -> None:
        """A company's proxy answers 200 with its login page."""
        hub.fails("/refs", 200)
        with pytest.raises(RegistryUnavailableError, match="answered something else than a Hub does"):
            registry.versions()

    def test_the_offline_switch_is_named(
        self, hub: Hub, repo: Repo, registry: HubRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            registry.revision(ModelKey("org/tiny", "v1"))

    @pytest.mark.parametrize(
        "endpoint",
        ["hub.example.org", "https://user:secret@hub.example.org", "ftp://x", "https://", "http://[x"],
    )
    def test_an_endpoint_that_can_be_none_is_told_and_not_shown(self, tmp_path: Path, endpoint: str) -> None:
        with pytest.raises(UserError, match="endpoint is no URL like") as error:
            HubRegistry(["org/tiny"], [], tmp_path, str(tmp_path), endpoint)
        assert "secret" not in "".join(traceback.format_exception(error.value))

    @pytest.mark.parametrize(
        ("repos", "organizations"), [(["a/b/c"], []), (["org/ti ny"], []), ([], ["org/*/x"]), ([], ["*"])]
    )
    def test_names_that_can_be_none_are_told(
        self, tmp_path: Path, repos: list[str], organizations: list[str]
    ) -> None:
        with pytest.raises(UserError, match=r"EVAL_MODELS: .*write it like 'org"):
            HubRegistry(repos, organizations, tmp_path, str(tmp_path))

    def test_the_cursor_stays_small(self, hub: Hub, repo: Repo, registry: HubRegistry) -> None:
        """It is kept with every tick of the sensor."""
        cursor = registry.versions().cursor
        for number in range(5):
            repo.tags = {"v1": repo.commit({"config.json": b"{%d}" % number})}
            cursor = registry.versions(cursor).cursor
        assert len(cursor) < 150
        assert list(json.loads(cursor)["repos"]) == ["org/tiny"]
