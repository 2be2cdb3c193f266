"""A Hub on loopback, a repository there, and a registry of it."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from resources.registries.hub import HubRegistry
from tests.resources.registries.hub.server import Hub, Repo, open_registry, running

TOKEN = "hf_SecretOfThisTest0123456789"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The suite is offline; this server is on loopback.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """A token that the Hub knows, set."""
    hub.tokens.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


@pytest.fixture
def files(tiny_model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_model.iterdir()}


@pytest.fixture
def repo(hub: Hub, files: dict[str, bytes]) -> Repo:
    """A repository as people have them, with what no load reads beside the model."""
    extra = {
        "README.md": b"# Tiny",
        "pytorch_model.bin": b"a pickle",
        "onnx/model.onnx": b"another format",
        "onnx/config.json": b"{}",
        "consolidated-00001-of-00001.safetensors": b"the weights a second time",
        ".gitattributes": b"*.safetensors filter=lfs",
    }
    return hub.repo("org/tiny", {**files, **extra})


@pytest.fixture
def registry(hub: Hub, tmp_path: Path) -> HubRegistry:
    return open_registry(hub, tmp_path)
