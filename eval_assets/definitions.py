"""The one place that wires everything; workspace.yaml points here."""

import dagster as dg

from eval_assets.automation import JOBS
from eval_assets.benchmarks import benchmark
from eval_assets.evaluations import evaluation
from eval_assets.leaderboard import leaderboard
from eval_assets.model_versions import model_version
from resources.configured import EngineResource, RegistryResource, StoreResource
from resources.settings import Settings


def definitions(settings: Settings) -> dg.Definitions:
    """Everything that Dagster is to know, on the store, registry and engine that the settings name."""
    return dg.Definitions(
        assets=[model_version, benchmark, evaluation, leaderboard],
        jobs=JOBS,
        resources={
            "store": StoreResource(root=settings.store),
            "registry": RegistryResource(root=settings.registry),
            "engines": EngineResource(
                device=settings.device,
                device_map=settings.device_map,
                dtype=settings.dtype,
                threads=settings.threads,
                batch_tokens=settings.batch_tokens,
                memory_bytes=settings.memory_bytes,
                seed=settings.seed,
            ),
        },
        # One process a run: torch is imported once, and a pod's memory is one process's.
        executor=dg.in_process_executor,
    )


defs = definitions(Settings.from_environment())
