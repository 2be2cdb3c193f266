"""The one place that wires everything; workspace.yaml points here."""

import dagster as dg

from eval_assets.automation import JOBS, SCHEDULES, SENSORS, SETTLE_SECONDS
from eval_assets.benchmarks import benchmark
from eval_assets.evaluations import evaluation
from eval_assets.grid.tracking import tracked
from eval_assets.leaderboard import leaderboard
from eval_assets.model_versions import model_version
from eval_assets.on_demand import ON_DEMAND
from eval_assets.promotion import promotion
from eval_assets.publishing import report
from resources.configured import EngineResource, RegistryResource, StoreResource
from resources.registries import Registry
from resources.settings import Settings


def definitions(
    settings: Settings, settle_seconds: float = SETTLE_SECONDS, registry: Registry | None = None
) -> dg.Definitions:
    """Everything that Dagster is to know, on the store, registries and engine that the settings name.

    `settle_seconds`: a model folder that changed more recently is still being copied. `registry` takes the
    place of those that the settings name.
    """
    entries = tracked(settings).models
    if settings.log_format == "json":
        # Imported where it is used: structlog takes its time.
        from resources.json_logs import write_json_lines

        write_json_lines()
    return dg.Definitions(
        assets=[model_version, benchmark, evaluation, promotion, leaderboard, report],
        jobs=[*JOBS, *ON_DEMAND],
        schedules=SCHEDULES,
        sensors=SENSORS,
        resources={
            "settings": settings,
            "store": StoreResource(root=settings.store),
            "registry": registry
            or RegistryResource(
                sources=[
                    {
                        "names": entry.names,
                        "registry": entry.registry.model_dump(mode="json", exclude_none=True),
                    }
                    for entry in entries
                ],
                cache=str(settings.cache),
                notes=f"{settings.store}/labels",
                settle_seconds=settle_seconds,
            ),
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
