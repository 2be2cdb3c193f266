"""Retention as a person runs it: the plan, and the plan carried out; docs/retention.md."""

from collections.abc import Callable
from datetime import UTC, datetime

from eval_assets.grid.tracking import tracking
from eval_assets.partitions import SUITE
from resources.errors import UserError
from resources.keys import key_of_segment
from resources.registries.sources import open_registries
from resources.results import ResultsStore
from resources.retention import Action, Applied, Plan, RetentionPolicy, apply, measured, plan, take_stock
from resources.settings import Settings


def retention_plan(
    store: ResultsStore, settings: Settings, policy: RetentionPolicy, *, ask_registry: bool = True
) -> Plan:
    """What the policy would do now, and the bytes that it would free; nothing is changed.

    Without `ask_registry` only the store itself says which versions are in production.
    Raises UserError where a registry can't say what its aliases point to.
    """
    now = datetime.now(UTC)
    aliased = versions_in_use(store, settings) if ask_registry else {}
    return measured(plan(take_stock(store, aliased, now), policy, now), store)


def retain(
    planned: Plan,
    store: ResultsStore,
    settings: Settings,
    *,
    why: str,
    who: str | None = None,
    ask_registry: bool = True,
    on_progress: Callable[[Action], None] = lambda _: None,
) -> Applied:
    """Carry out a plan, after one that was interrupted; `why` is written down with every change.

    The registries are asked again: what an alias points to since the plan was made stays.
    Raises UserError as `retention_plan` does, BusyError while another process is at it.
    """
    aliased = versions_in_use(store, settings) if ask_registry else {}
    return apply(planned, store, why=why, who=who, aliased=aliased, on_progress=on_progress)


def versions_in_use(store: ResultsStore, settings: Settings) -> dict[str, str]:
    """The model keys that an alias points to, or that are a fixed baseline, with the reason to keep each.

    A model that is in no registry (an imported one, say) has none. Raises UserError where a registry can't be
    asked: without knowing what is in production nothing is to be removed.
    """
    tracked = tracking(settings.models, settings.registry, SUITE)
    registry = open_registries(
        [(entry.names, entry.registry) for entry in tracked.models],
        settings.cache,
        f"{settings.store}/labels",
    )
    try:
        listing = registry.versions()
    except UserError as error:
        raise UserError(
            f"nothing is removed, since the registry can't say what is in production: {error}; put that "
            "right, or say that there is no registry"
        ) from error
    listed = {key.name for key in listing.keys}
    failed = {skipped.place for skipped in listing.skipped}
    in_use: dict[str, str] = {}
    for name in sorted(_evaluated(store)):
        entry = tracked.entry(name)
        if entry is None:
            continue
        if entry.baseline.version is not None:
            in_use[f"{name}@{entry.baseline.version}"] = "the fixed baseline"
        if name not in listed:
            if failed & {name, registry.root, *registry.root.split(", ")}:
                raise UserError(
                    f"nothing is removed, since the registry of model {name} can't say what is in "
                    "production; try again later, or say that there is no registry"
                )
            continue
        for alias, version in registry.aliases(name).items():
            in_use[f"{name}@{version}"] = f"the alias {alias}"
    return in_use


def _evaluated(store: ResultsStore) -> set[str]:
    """The names of all models that have evaluations."""
    store.filesystem.invalidate_cache()
    paths = store.filesystem.glob(f"{store.root}/evaluations/*/*")
    return {key_of_segment(path.rstrip("/").rsplit("/", 1)[1]).rpartition("@")[0] for path in paths}
