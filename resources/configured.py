"""The resources as Dagster sees them: configuration with defaults from the environment, opened on use."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from resources.engines import Engine
from resources.engines.settings import EngineSettings
from resources.registries import ModelVersion, Registry
from resources.registries.sources import RegistrySource, open_registries
from resources.results import ResultsStore


class StoreResource(dg.ConfigurableResource[ResultsStore]):
    """Where samples, metrics and records are committed."""

    root: str

    def create_resource(self, context: dg.InitResourceContext) -> ResultsStore:  # noqa: ARG002  (Dagster's signature)
        return ResultsStore(self.root)


class RegistryResource(dg.ConfigurableResource[Registry]):
    """Where model versions come from: the registries of the tracked models, as one.

    Each of `sources` has the pattern ``names`` and a ``registry``, a `RegistrySource` without unset fields.
    """

    sources: list[dict[str, Any]]
    cache: str
    notes: str
    settle_seconds: float = 0.0

    def create_resource(self, context: dg.InitResourceContext) -> Registry:  # noqa: ARG002  (Dagster's signature)
        sources = [
            (entry["names"], RegistrySource.model_validate(entry["registry"])) for entry in self.sources
        ]
        return open_registries(sources, Path(self.cache), self.notes, self.settle_seconds)


class EngineResource(dg.ConfigurableResource["EngineResource"]):
    """Runs models; keeps the last one loaded, so that the cells of a row share its weights."""

    device: str
    device_map: bool
    dtype: str
    threads: int
    batch_tokens: int | None
    memory_bytes: int | None
    seed: int

    _loaded: tuple[tuple[str, str], Engine] | None = PrivateAttr(default=None)
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

    def load(self, model: ModelVersion, dtype: str) -> Engine:
        """The engine of a model version; the one of another version is closed first."""
        # torch is imported here, in the process that runs models, and nowhere else.
        from resources.engines.transformers_engine import TransformersEngine

        wanted = (model.digest, dtype)
        if self._loaded is None or self._loaded[0] != wanted:
            self.close()
            settings = replace(self.settings, dtype=dtype)
            self._loaded = (wanted, TransformersEngine.load(Path(model.path), settings))
            self._loads += 1
        return self._loaded[1]

    def close(self) -> None:
        """Free the weights."""
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002  (Dagster's)
        self.close()
