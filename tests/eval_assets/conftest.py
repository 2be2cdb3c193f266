"""A whole project in a temporary folder: instance, store, registry with tiny models."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from eval_assets.runs import Runs
from tests.conftest import BENCHMARKS, ROOT
from tests.tiny import make_model


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models tiny@1, tiny@2 and broken@1 (whose weights hold a NaN); copied by `project`."""
    root = tmp_path_factory.mktemp("tiny-models")
    make_model(root / "tiny" / "1", seed=1)
    make_model(root / "tiny" / "2", seed=2)
    make_model(root / "broken" / "1", seed=3, not_a_number=True)
    return root


class Project:
    """Paths and shortcuts of a project under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = folder / "models"
        self.benchmarks = BENCHMARKS

    def runs(self) -> Runs:
        """The project as a fresh process would open it."""
        return Runs()

    def registered(self, *keys: str) -> Runs:
        """With these versions registered and the three test benchmarks prepared."""
        runs = self.runs()
        runs.register(keys)
        prepared = runs.prepare(["capitals", "capitals_written", "sentences"])
        assert not any(prepared.values()), prepared
        return runs


@pytest.fixture
def project(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with its own instance and store; settings come from the environment as in production."""
    shutil.copytree(tiny_models, tmp_path / "models")
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "deployments" / "local" / "dagster.yaml", home)
    for name, value in {
        "DAGSTER_HOME": home,
        "EVAL_STORE": tmp_path / "store",
        "EVAL_REGISTRY": tmp_path / "models",
        "EVAL_DEVICE": "cpu",
        "EVAL_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, str(value))
    before = {path: path.read_bytes() for path in BENCHMARKS.iterdir()}
    yield Project(tmp_path)
    for path, content in before.items():
        path.write_bytes(content)


@pytest.fixture
def instance(project: Project) -> Iterator[dg.DagsterInstance]:
    """The project's Dagster instance."""
    with dg.DagsterInstance.get() as instance:
        yield instance
