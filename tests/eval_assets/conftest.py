"""A whole project in a temporary folder: instance, store, registry with tiny models."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval_assets.automation import new_model_versions
from eval_assets.commands.runs import Runs
from eval_assets.definitions import definitions
from eval_assets.grid import attempts
from resources.keys import ModelKey
from resources.registries.folder import FolderRegistry
from resources.settings import Settings
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


SENTENCES = [f"The {animal} {verb} near the {place}." for animal in ("dog", "cat", "fox", "bird")
             for verb in ("sleeps", "runs", "eats") for place in ("house", "river", "tree")]  # fmt: skip
TRACKED = """
models:
  - registry: {{folder: {folder}}}
    names: tiny
    benchmarks: [capitals, sentences]
    tolerance: 0.5
    promote: {promote}
    staged: {staged}
"""


def changed_copy(source: Path, target: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A copy of a model with another output layer."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] = change(weights["lm_head.weight"])
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def make_worse(source: Path, target: Path) -> None:
    """A copy that shouts: every text is far less likely."""
    changed_copy(source, target, lambda weight: weight * 30)


class Clock:
    """In the place of a module's `time`: it stands still but for what a test adds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.day = 20_000

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.day * 86_400.0 + self.now


class SlowRegistry(FolderRegistry):
    """A folder registry, each of whose answers takes 5 s of a clock; or it fails as told."""

    SECONDS = 5.0

    def __init__(self, root: str, clock: Clock, failure: Exception | None = None) -> None:
        super().__init__(root)
        self.asked: list[str] = []
        self._clock, self._failure = clock, failure

    def revision(self, key: ModelKey) -> str:
        self.asked.append(str(key))
        self._clock.now += self.SECONDS
        if self._failure is not None:
            raise self._failure
        return "as it was"


SENSOR_RESOURCES = ("registry", "store", "settings")


class Automation:
    """The sensor and schedules of a project, ticked by hand; the runs that they request, executed here."""

    def __init__(self, project: Project, instance: dg.DagsterInstance) -> None:
        self.project, self.instance = project, instance
        self.cursor: str | None = None
        self.settings = Settings.from_environment()
        self.definitions = definitions(self.settings, settle_seconds=0.0)

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        repository = self.definitions.get_repository_def()
        resources = {
            name: repository.get_top_level_resources()[name] for name in ("registry", "store", "settings")
        }
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources=resources, repository_def=repository
        ) as context:
            result: Any = new_model_versions(context)
        if isinstance(result, dg.SensorResult):
            self.cursor = result.cursor
            for request in result.dynamic_partitions_requests or []:
                self.instance.add_dynamic_partitions("model", list(request.partition_keys))
            for event in result.asset_events:
                self.instance.report_runless_asset_event(event)
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        return result

    def scheduled(self, schedule: Any) -> list[Any]:
        repository = self.definitions.get_repository_def()
        resources = {
            name: repository.get_top_level_resources()[name] for name in ("registry", "store", "settings")
        }
        with dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=datetime(2026, 11, 22, 2, tzinfo=UTC),
            resources=resources,
            repository_def=repository,
        ) as context:
            return list(schedule(context))

    def execute(self, request: dg.RunRequest, job: str | None = None) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def(request.job_name or job or "").execute_in_process(
            instance=self.instance,
            run_config=request.run_config,
            partition_key=request.partition_key,
            tags=request.tags,
            raise_on_error=False,
        )

    def until_at_rest(self) -> list[tuple[str, str]]:
        """Tick and run until nothing is requested; returns (job, what) of every run, in order."""
        done: list[tuple[str, str]] = []
        for _ in range(20):
            result = self.tick()
            assert isinstance(result, dg.SensorResult), result
            if not result.run_requests:
                return done
            for request in result.run_requests:
                done.append(
                    (
                        request.job_name or "",
                        attempts.tasks_in(request.tags)[0].model or str(request.partition_key),
                    )
                )
                self.execute(request)
        raise AssertionError(f"it never comes to rest: {done}")

    def aliases(self) -> dict[str, str]:
        path = self.project.registry / "tiny" / "aliases.json"
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def automation(
    project: Project, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Automation:
    """Two versions of `tiny` that differ by rounding, tracked; promotion is on."""
    shutil.rmtree(project.registry / "tiny" / "2")
    shutil.rmtree(project.registry / "broken")
    changed_copy(
        project.registry / "tiny" / "1",
        project.registry / "tiny" / "2",
        lambda weight: weight.bfloat16().float(),
    )
    (project.benchmarks / "sentences.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in SENTENCES)
    )
    track(tmp_path, project, monkeypatch)
    return Automation(project, instance)


def track(
    tmp_path: Path,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    promote: str = "true",
    staged: str = "false",
) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(TRACKED.format(folder=project.registry, promote=promote, staged=staged))
    monkeypatch.setenv("EVAL_MODELS", str(path))
