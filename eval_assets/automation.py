"""What should run: the pure plan, and the jobs that people and schedules start."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import dagster as dg
from pydantic import Field

from eval_assets.model_versions import register
from resources.errors import UserError
from resources.registries import Registry
from resources.results import Cell, ResultsStore


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One run: a model version on those of its datasets that have no evaluation of today's fingerprint."""

    model: str
    datasets: tuple[str, ...]


def plan(
    wanted: Iterable[Cell], finished: Collection[str], in_flight: Mapping[str, Collection[str]]
) -> list[RowRequest]:
    """The runs to request so that every wanted cell gets an evaluation; pure, and the same if asked again.

    `wanted` are cells with the fingerprints that they would have today, `finished` the fingerprints of
    committed evaluations, `in_flight` maps model keys to the datasets that runs are evaluating now.
    """
    rows: dict[str, list[str]] = {}
    for cell in wanted:
        if cell.fingerprint in finished or cell.dataset in in_flight.get(cell.model, ()):
            continue
        row = rows.setdefault(cell.model, [])
        if cell.dataset not in row:
            row.append(cell.dataset)
    return [RowRequest(model, tuple(row)) for model, row in rows.items()]


class RegisterConfig(dg.Config):
    """Which versions to register; none named: every version of the registry."""

    models: list[str] = Field(default_factory=list)


@dg.op(tags={"kind": "registry"})
def register_versions(
    context: dg.OpExecutionContext,
    config: RegisterConfig,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
) -> None:
    """Verify, measure and record model versions, and add their partitions."""
    keys = config.models or [str(key) for key in registry.versions()]
    if not config.models:
        for place, reason in registry.skipped():
            context.log.warning(f"{place} was skipped: {reason}")
    failed: list[str] = []
    for key in keys:
        try:
            register(context, key, registry, store)
        except dg.Failure as failure:
            failed.append(failure.description or key)
            continue
        context.instance.add_dynamic_partitions("model", [key])
    if failed:
        raise dg.Failure("; ".join(failed), allow_retries=False)
    if not keys:
        raise dg.Failure(str(UserError(no_versions_message(registry))), allow_retries=False)


def no_versions_message(registry: Registry) -> str:
    """What to tell a user whose registry is empty."""
    return (
        f"no model versions in {registry.root}: put a Hugging Face folder at "
        "<name>/<version>/ below it, then register again"
    )


@dg.job(description="Look at the registry: verify, measure and record each model version; add its partition.")
def register_models() -> None:
    register_versions()


prepare_benchmarks = dg.define_asset_job(
    "prepare_benchmarks",
    selection=["benchmark"],
    description="Normalize and fingerprint benchmarks.",
)
evaluate_models = dg.define_asset_job(
    "evaluate_models",
    selection=["evaluation"],
    description="Evaluate cells of the grid; a run over a model's row loads its weights once.",
)
refresh_leaderboard = dg.define_asset_job(
    "refresh_leaderboard",
    selection=["leaderboard"],
    description="Bring the DuckDB catalogue and the leaderboard up to date.",
)

JOBS = (register_models, prepare_benchmarks, evaluate_models, refresh_leaderboard)
