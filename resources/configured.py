"""The resources as Dagster sees them: configuration with defaults from the environment, opened on use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from resources.engines import Engine
from resources.engines.settings import EngineSettings, fingerprint_fields
from resources.registries import ModelVersion, Registry
from resources.registries.folder import FolderRegistry
from resources.results import ResultsStore


class StoreResource(dg.ConfigurableResource[ResultsStore]):
    """Where samples, metrics and records are committed."""

    root: str

    def create_resource(self, context: dg.InitResourceContext) -> ResultsStore:  # noqa: ARG002  (Dagster's signature)
        return ResultsStore(self.root)


class RegistryResource(dg.ConfigurableResource[Registry]):
    """Where model versions come from."""

    root: str

    def create_resource(self, context: dg.InitResourceContext) -> Registry:  # noqa: ARG002  (Dagster's signature)
        return FolderRegistry(self.root)


class EngineResource(dg.ConfigurableResource["EngineResource"]):
    """Runs models; keeps the last one loaded, so that the cells of a row share its weights."""

    device: str
    device_map: bool
    dtype: str
    threads: int
    batch_tokens: int | None
    memory_bytes: int | None
    seed: int

    _loaded: tuple[str, Engine] | None = PrivateAttr(default=None)
    _loads: int = PrivateAttr(default=0)

    @property
    def settings(self) -> EngineSettings:
        return EngineSettings(
            device=self.device,
            device_map=self.device_map,
            dtype=self.dtype,
            threads=self.threads,
            batch_tokens=self.batch_tokens,
            memory_bytes=self.memory_bytes,
            seed=self.seed,
        )

    @property
    def loads(self) -> int:
        """How often weights were loaded."""
        return self._loads

    def fingerprint_fields(self) -> Mapping[str, Any]:
        """The engine's settings that may change a score."""
        return fingerprint_fields(self.settings)

    def load(self, model: ModelVersion) -> Engine:
        """The engine of a model version; the one of another version is closed first."""
        # torch is imported here, in the process that runs models, and nowhere else.
        from resources.engines.transformers_engine import TransformersEngine

        if self._loaded is None or self._loaded[0] != model.digest:
            self.close()
            self._loaded = (model.digest, TransformersEngine.load(Path(model.path), self.settings))
            self._loads += 1
        return self._loaded[1]

    def close(self) -> None:
        """Free the weights."""
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002  (Dagster's)
        self.close()
