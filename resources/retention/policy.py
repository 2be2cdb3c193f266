"""The rules, and one pure function from what there is to what happens to it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resources.declared import load_declared

Days: TypeAlias = Annotated[int, Field(ge=0, le=36_500)]
Place: TypeAlias = tuple[str, str, str]
"""Dataset, model and evaluation id."""


class RetentionPolicy(BaseModel):
    """What to keep. Times are days since an evaluation came into the store, or since a file was last changed.

    The last `versions` of each model are kept in full, and so is every version that an alias points to or
    that the last move of an alias was about. Of the others, evaluations lose their texts (prompts, choices,
    outputs) after `texts_days` and are deleted after `delete_days`; None is never. What the latest verdicts
    and comparisons rest on is never deleted. Progress of evaluations that were given up and items of
    benchmarks that no evaluation refers to go after `leftovers_days`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: Annotated[int, Field(ge=1)] = 3
    texts_days: Days | None = 30
    delete_days: Days | None = None
    leftovers_days: Days | None = 30

    @model_validator(mode="after")
    def _in_order(self) -> "RetentionPolicy":
        if None not in (self.texts_days, self.delete_days) and self.delete_days < self.texts_days:  # type: ignore[operator]  # neither is None
            raise ValueError(
                f"'delete_days' ({self.delete_days}) comes before 'texts_days' ({self.texts_days})"
            )
        return self


def load_policy(path: Path) -> RetentionPolicy:
    """The policy in a YAML file. Raises UserError naming file, field and rule."""
    return load_declared(path, RetentionPolicy, "retention policy")


class Kind(StrEnum):
    """What can happen."""

    TEXTS = "texts"
    """An evaluation's texts are removed; its scores, log-likelihoods and counts stay."""
    DELETE = "delete"
    """An evaluation is deleted."""
    PROGRESS = "progress"
    """What an evaluation had finished that nobody went on with is deleted."""
    ITEMS = "items"
    """Items of a benchmark as it was once, which no evaluation refers to, are deleted."""


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """A committed evaluation. `held`: a process is at its folder now. `bytes` are those of all its files.

    `entered_at` is when it came into the store: when it had finished, or was imported. `begun`: a process was
    killed while it removed the texts.
    """

    place: Place
    folder: str
    finished_at: datetime
    bytes: int
    samples_bytes: int
    without_texts: bool
    held: bool
    entered_at: datetime
    cost: float = 0.0
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is no evaluation: unfinished progress, a benchmark's former items, or (of kind DELETE)
    what is left of an evaluation, by a process that was killed while it deleted it."""

    kind: Kind
    folder: str
    bytes: int
    changed_at: datetime
    held: bool = False
    needed: bool = False
    """Somebody refers to it, or may soon."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that `plan` knows.

    `kept_versions` are the model keys that aliases point to or that alias moves name, with the reason;
    `referenced` the evaluations that verdicts and comparisons rest on; `deleted` has of models with deleted
    evaluations when the first of these had finished.
    """

    evaluations: Sequence[StoredEvaluation] = ()
    leftovers: Sequence[Leftover] = ()
    kept_versions: Mapping[str, str] = field(default_factory=dict)
    referenced: frozenset[Place] = frozenset()
    deleted: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that happens: to what, why, and the bytes that it frees.

    `bytes_before` are those of the file or folder as it was when this was planned. An evaluation has its
    `place`, and `entered_at` (in ISO 8601), by which it is told from another one in that place.
    """

    kind: Kind
    folder: str
    why: str
    bytes: int
    bytes_before: int
    place: Place | None = None
    entered_at: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens, in order, and how many evaluations stay as they are for which reason."""

    policy: RetentionPolicy
    actions: tuple[Action, ...]
    kept: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """What it frees in all."""
        return sum(action.bytes for action in self.actions)


def plan(inventory: Inventory, policy: RetentionPolicy, now: datetime) -> Plan:
    """What the policy does with what there is; pure.

    Times that lie in the future (a clock was wrong) are as if they were now: nothing happens yet.
    """
    recent = _recent_versions(inventory, policy.versions)
    actions: list[Action] = []
    kept: Counter[str] = Counter()
    for one in sorted(inventory.evaluations, key=lambda one: one.place):
        model = one.place[1]
        days = (now - one.entered_at) / timedelta(days=1)
        came = "finished" if one.entered_at == one.finished_at else "imported"
        kind, why = None, ""
        if one.held:
            kept["a process is at work on it"] += 1
        elif model in inventory.kept_versions:
            kept[inventory.kept_versions[model]] += 1
        elif one.begun:  # whatever the policy is now: some of it may be gone
            kind, why = Kind.TEXTS, "removing its texts was interrupted"
        elif model in recent:
            kept[f"among the last {policy.versions} versions of its model"] += 1
        elif (
            _due(policy.delete_days, days) and one.place not in inventory.referenced and not _billed(one, now)
        ):
            kind, why = Kind.DELETE, f"{came} {days:.0f} days ago, deleted after {policy.delete_days}"
        elif _due(policy.texts_days, days) and not one.without_texts:
            kind, why = Kind.TEXTS, f"{came} {days:.0f} days ago, without texts after {policy.texts_days}"
        elif one.without_texts:
            kept["its texts are removed already"] += 1
        else:
            kept["not old enough"] += 1
        if kind is not None:
            freed, before = (one.bytes, one.bytes) if kind is Kind.DELETE else (0, one.samples_bytes)
            entered = one.entered_at.isoformat()
            actions.append(Action(kind, one.folder, why, freed, before, one.place, entered))
    for leftover in sorted(inventory.leftovers, key=lambda leftover: leftover.folder):
        days = (now - leftover.changed_at) / timedelta(days=1)
        due = leftover.kind is Kind.DELETE or _due(policy.leftovers_days, days)
        if due and not leftover.held and not leftover.needed:
            why = f"{_WHY[leftover.kind]}, last changed {days:.0f} days ago"
            actions.append(Action(leftover.kind, leftover.folder, why, leftover.bytes, leftover.bytes))
    return Plan(policy, tuple(actions), dict(kept))


_WHY = {
    Kind.PROGRESS: "nobody went on with it",
    Kind.ITEMS: "no evaluation refers to them",
    Kind.DELETE: "its deletion was interrupted",
}


def _due(limit: int | None, days: float) -> bool:
    return limit is not None and days > 0 and days >= limit


def _billed(one: StoredEvaluation, now: datetime) -> bool:
    """Whether it is a part of what this month has cost, which a budget counts from the evaluations."""
    return one.cost > 0 and (one.finished_at.year, one.finished_at.month) == (now.year, now.month)


def _recent_versions(inventory: Inventory, count: int) -> set[str]:
    """The keys of each model's versions that came last.

    A version came when the first of its evaluations had finished, also if that one is deleted: one that is
    evaluated again stays where it is.
    """
    first: dict[str, datetime] = {}
    for one in inventory.evaluations:
        model = one.place[1]
        first[model] = min(first.get(model, one.finished_at), one.finished_at)
    for model in first.keys() & inventory.deleted.keys():
        first[model] = min(first[model], inventory.deleted[model])
    by_name: dict[str, list[str]] = {}
    for model in sorted(first, key=lambda model: (first[model], model), reverse=True):
        by_name.setdefault(model.rpartition("@")[0], []).append(model)
    return {model for models in by_name.values() for model in models[:count]}
