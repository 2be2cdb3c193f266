"""Fixtures shared by the whole suite: real models, the real encoder, a store, a Dagster instance."""

import gc
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

ROOT = Path(__file__).parent.parent
# Two threads and no network: the numbers are then the same on every machine, and a test that reaches for
# a hub fails at once. Threads that wait sleep, since another worker may need their core.
os.environ.update(
    OMP_NUM_THREADS="2",
    OMP_WAIT_POLICY="PASSIVE",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
sys.path.insert(0, str(ROOT))

# The test benchmarks, in a copy that tests may change; the suite is read when eval_assets is imported.
BENCHMARKS = Path(tempfile.mkdtemp(prefix="benchmarks-"))
shutil.copytree(ROOT / "tests" / "benchmarks", BENCHMARKS, dirs_exist_ok=True)
for variable in [name for name in os.environ if name.startswith("EVAL_")]:
    del os.environ[variable]
os.environ["EVAL_BENCHMARKS"] = str(BENCHMARKS)

from resources.engines.settings import EngineSettings  # noqa: E402  (the path must be set first)
from resources.engines.transformers_engine import TransformersEngine  # noqa: E402
from resources.results import ResultsStore  # noqa: E402
from resources.s3 import PatientS3  # noqa: E402  (the path must be set first)
from tests.resources.registries.mlflow_server import MlflowServer, mlflow_server  # noqa: E402
from tests.s3 import s3_server  # noqa: E402
from tests.s3_proxy import Weather, bad_weather  # noqa: E402  (the path must be set first)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this suite; pytest takes them from the root conftest only."""
    parser.addoption("--screenshots", metavar="FOLDER", help="keep the UI test's screenshots here")


LONGEST = (
    "tests/kubernetes/test_queue.py",
    "tests/kubernetes/test_faults.py",
    "tests/eval_assets/test_automation.py",
)
"""Files of some minutes; started last, they would leave the other worker without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order within a file stays."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish() -> None:
    """Modules stay: full garbage collections, which the engine makes where memory is short, skip them."""
    gc.collect()
    gc.freeze()


def _input(path: Path) -> Path:
    if not path.exists():
        pytest.fail(f"{path.relative_to(ROOT)} is missing: run 'make inputs' (make test does)")
    return path


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder registry with the three versions of SmolLM2-135M-Instruct."""
    return _input(ROOT / "models")


@pytest.fixture(scope="session")
def smollm(models: Path) -> Path:
    """SmolLM2-135M-Instruct as published, float32."""
    return _input(models / "smollm2-135m" / "1")


@pytest.fixture(scope="session")
def smollm_engine(smollm: Path) -> Iterator[TransformersEngine]:
    """The real model, loaded once a test run."""
    engine = TransformersEngine.load(smollm, EngineSettings(device="cpu", dtype="float32", threads=2))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def data() -> Path:
    """The mirror of the real benchmarks."""
    return _input(ROOT / "data")


@pytest.fixture(scope="session")
def bertscore_model(data: Path) -> Path:
    """all-MiniLM-L6-v2, the encoder that BERTScore reads."""
    return _input(data / "encoders" / "all-MiniLM-L6-v2")


@pytest.fixture(scope="session", autouse=True)
def _remove_benchmarks() -> Iterator[None]:
    yield
    shutil.rmtree(BENCHMARKS)


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server, one for the whole run: tests keep to model names of their own."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def _s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        os.environ.update(environment)
        yield
        for variable in environment:
            del os.environ[variable]


@pytest.fixture
def bucket(_s3: None) -> str:
    """The URL of an empty bucket on a real S3 server; the environment has what a client needs."""
    name = f"tests-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def weather(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    """S3 clients of this test go through a proxy that has weather, here and in processes that it starts."""
    with bad_weather(os.environ["AWS_ENDPOINT_URL"]) as (url, weather):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        # Clients are kept by their arguments, and the environment is none of them.
        PatientS3.clear_instance_cache()
        yield weather
    PatientS3.clear_instance_cache()


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    """An empty results store."""
    return ResultsStore(str(tmp_path / "store"))


_status = 0


def pytest_sessionfinish(exitstatus: int) -> None:
    """Keep the status for `pytest_unconfigure`."""
    global _status
    _status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End as `eval_assets.__main__.run` does: DuckDB's binding would hide the summary behind warnings."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)
