"""Retention as a person runs it: the plan, and the plan carried out; docs/retention.md."""

from datetime import UTC, datetime

from eval_assets.grid.tracking import open_tracked, tracked
from resources.errors import UserError
from resources.keys import key_of_segment
from resources.registries import UnknownModelError
from resources.results import ResultsStore
from resources.retention import Applied, Plan, RetentionPolicy, apply, measured, plan, take_inventory
from resources.settings import Settings


def retention_plan(
    store: ResultsStore, settings: Settings, policy: RetentionPolicy, *, ask_registry: bool = True
) -> Plan:
    """What the policy would do now, and the bytes that it would free; nothing is changed.

    Without `ask_registry` only the store itself and EVAL_MODELS say which versions are in production.
    Raises UserError where a registry can't say what its aliases point to.
    """
    now = datetime.now(UTC)
    in_use = versions_in_use(store, settings, ask_registry=ask_registry)
    return measured(plan(take_inventory(store, in_use, now), policy, now), store)


def retain(
    planned: Plan, store: ResultsStore, settings: Settings, *, why: str, ask_registry: bool = True
) -> Applied:
    """Carry out a plan; `why` is written down with every change.

    The registries are asked again: what an alias points to since the plan was made stays.
    Raises UserError as `retention_plan` does, BusyError while another process is at it.
    """
    in_use = versions_in_use(store, settings, ask_registry=ask_registry)
    return apply(planned, store, why=why, aliased=in_use)


def versions_in_use(store: ResultsStore, settings: Settings, *, ask_registry: bool = True) -> dict[str, str]:
    """The model keys that are a fixed baseline or that an alias points to, with the reason to keep each.

    A model that is in no registry (an imported one, say) has no alias. Raises UserError where a registry
    can't be asked: without knowing what is in production nothing is to be removed.
    """
    tracking = tracked(settings)
    entries = {name: tracking.entry(name) for name in sorted(_evaluated(store))}
    in_use = {
        f"{name}@{entry.baseline.version}": "the fixed baseline"
        for name, entry in entries.items()
        if entry is not None and entry.baseline.version is not None
    }
    if not ask_registry:
        return in_use
    registry = open_tracked(settings, tracking)
    try:
        skipped = registry.versions().skipped
        for name in (name for name, entry in entries.items() if entry is not None):
            try:
                aliases = registry.aliases(name)
            except UnknownModelError:
                for where in skipped:  # a folder that may not be read hides what is in it
                    if name.startswith(f"{where.place}/"):
                        raise UserError(f"{where.place}: {where.reason}") from None
                continue
            for alias, version in aliases.items():
                in_use[f"{name}@{version}"] = f"the alias {alias}"
    except UserError as error:
        raise UserError(
            f"nothing is removed, since the registry can't say what is in production: {error}; put that "
            "right, or say that there is no registry (--no-registry)"
        ) from error
    return in_use


def _evaluated(store: ResultsStore) -> set[str]:
    """The names of all models that have evaluations."""
    paths = store.matching("evaluations/*/*")
    return {key_of_segment(path.rsplit("/", 1)[1]).rpartition("@")[0] for path in paths}
