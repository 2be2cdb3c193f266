"""A small real model, made once and copied for every test that damages it."""

import shutil
from pathlib import Path

import pytest

from tests.tiny import make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same size, with other weights."""
    return make_model(tmp_path_factory.mktemp("tiny") / "model", seed=1)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as version 1 of org/tiny in a registry of its own."""
    return Path(shutil.copytree(tiny_model, tmp_path / "models" / "org" / "tiny" / "1"))
