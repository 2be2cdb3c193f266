"""The Hub registry keeps what every registry promises."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub
import pytest

from resources.keys import ModelKey
from resources.registries import Registry
from resources.registries.aliases import Labels
from tests.resources.registries.hub.server import Hub, Repo, open_registry
from tests.resources.registries.test_registry_contract import RegistryContract, Shelf


class HubShelf:
    """Tags of repositories of one organization, each on a commit of its own."""

    compare_and_set = True

    def __init__(self, hub: Hub, base: Path) -> None:
        self.hub = hub
        self.base = base
        self.registry: Registry = open_registry(hub, base, (), ("org",))

    def add(self, name: str, version: str, model: Path) -> ModelKey:
        key = ModelKey(f"org/{name}", version)
        if key.name not in self.hub.repos:
            self.hub.repos[key.name] = Repo(key.name)
        self.change(key, model)
        return key

    def change(self, key: ModelKey, model: Path) -> None:
        files = {path.name: path.read_bytes() for path in model.iterdir()}
        repo = self.hub.repos[key.name]
        repo.tags[key.version] = repo.commit({**files, "README.md": key.version.encode()})

    def delete(self, key: ModelKey) -> None:
        del self.hub.repos[key.name].tags[key.version]

    def notes(self, key: ModelKey) -> Mapping[str, str]:
        return Labels(str(self.base / "notes"), lambda _: True).notes(key)

    def refusing(self, key: ModelKey) -> Iterator[Registry]:
        for status in (403, 404):  # the latter without the Hub's own code, as a proxy answers
            self.hub.fails("/refs", status)
            yield self.registry
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("HF_TOKEN", "hf_expired")
            yield self.registry
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
            yield self.registry
        self.hub.repos[key.name].private = True  # and there is no token
        yield self.registry


class TestHub(RegistryContract):
    @pytest.fixture
    def shelf(self, hub: Hub, tmp_path: Path) -> Shelf:
        return HubShelf(hub, tmp_path)
