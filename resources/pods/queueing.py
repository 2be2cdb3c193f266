"""Which waiting runs get a pod now: so many devices of a class, the urgent first, nobody starved. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resources.pods.catalogue import Catalogue

STARVING_SECONDS = 600.0
"""So long a run may be overtaken by others that need fewer devices; after that, devices are kept for it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run without a pod: what it needs, how urgent it is, and for how many seconds it has waited."""

    run_id: str
    accelerator: str
    count: int
    priority: int
    waited: float


def admit(
    waiting: Sequence[Waiting], busy: Mapping[str, int], catalogue: Catalogue
) -> tuple[list[str], dict[str, str]]:
    """The ids of the runs that get a pod now, and for the others what they wait for.

    `busy`: devices of each class that pods have. Classes without a stated capacity are the cluster's own
    business: there everything gets a pod at once. Of the rest the most urgent is served first, and of equals
    the one that has waited longest. Where that one does not fit, others behind it may use what is free (a
    small model does not wait until a large one's devices have come together), until it has waited for
    `STARVING_SECONDS`: then everything that comes free is kept for it.
    """
    free = {
        name: capacity - busy.get(name, 0)
        for name in {run.accelerator for run in waiting}
        if (capacity := catalogue.capacity(name)) is not None
    }
    admitted: list[str] = []
    reasons: dict[str, str] = {}
    ahead: dict[str, int] = {}
    kept: set[str] = set()
    for run in sorted(waiting, key=lambda run: (-run.priority, -run.waited, run.run_id)):
        name = run.accelerator
        if name not in free:
            admitted.append(run.run_id)
        elif name not in kept and run.count <= free[name]:
            admitted.append(run.run_id)
            free[name] -= run.count
        else:
            reasons[run.run_id] = (
                f"waits for {run.count} of class {name}: {max(free[name], 0)} of "
                f"{catalogue.capacity(name)} free, {ahead.get(name, 0)} runs ahead"
            )
            ahead[name] = ahead.get(name, 0) + 1
            if run.waited >= STARVING_SECONDS:
                kept.add(name)
    return admitted, reasons
