"""Which models are evaluated, on what and against whom: the file that ``EVAL_MODELS`` names.

Without the file there is one entry: every model of the folder ``EVAL_REGISTRY``, on every benchmark, against
its alias ``champion``; verdicts are given and no alias is moved.
"""

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from eval_assets.partitions import SUITE
from eval_assets.suite.spec import BenchmarkSpec
from resources.declared import load_declared
from resources.engines.settings import DTYPES
from resources.errors import UserError
from resources.keys import ModelKey
from resources.pods.tags import DTYPE_TAG, TEAM_TAG
from resources.registries import Registry
from resources.registries.sources import RegistrySource, open_registries
from resources.settings import Settings

Text: TypeAlias = Annotated[str, Field(min_length=1)]
Points: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]

DEFAULT_TOLERANCE = 0.02


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Baseline(_Strict):
    """What versions are compared with: the version that an alias points to, or one that is named."""

    alias: Text | None = None
    version: Text | None = None

    @model_validator(mode="after")
    def _one(self) -> "Baseline":
        if (self.alias is None) == (self.version is None):
            raise ValueError("give exactly one of 'alias' and 'version'")
        return self


class TrackedModels(_Strict):
    """One entry of the file: models of one registry and what is done with their versions.

    `names` is a pattern over model names (``*`` for any text). `benchmarks` are keys, or ``tag:`` and a tag
    of benchmarks. `tolerance` is how much worse than the baseline a version may be, in points of a
    benchmark's primary metric, `tolerances` the exceptions by benchmark. `latest`: only so many of a
    model's latest versions, and those that an alias points to. `staged`: look at growing shares of the
    items and stop as soon as the verdict is decided. `promote`: move the baseline's alias to a version that
    passes. `chat`: true asks through the model's chat template, false does not; left out, each benchmark says
    itself. `resources` are the limits of a run's pod, as Kubernetes spells them; `team` is a label on it.
    """

    registry: RegistrySource
    names: Text = "*"
    benchmarks: Annotated[tuple[Text, ...], Field(min_length=1)] = ("*",)
    baseline: Baseline = Baseline(alias="champion")
    candidate: Text = "candidate"
    tolerance: Points = DEFAULT_TOLERANCE
    tolerances: Mapping[str, Points] = {}
    latest: Annotated[int, Field(ge=1)] | None = None
    staged: bool = False
    promote: bool = False
    chat: bool | None = None
    dtype: Text = "auto"
    resources: Mapping[Text, Text] = {}
    team: Text | None = None

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"expected one of {', '.join(DTYPES)}")
        return value

    @model_validator(mode="after")
    def _aliases_differ(self) -> "TrackedModels":
        if self.baseline.alias is not None and self.baseline.alias == self.candidate:
            raise ValueError(f"'candidate' and 'baseline' are the same alias, {self.candidate!r}")
        if self.promote and self.baseline.alias is None:
            raise ValueError("'promote' needs a baseline alias to move; the baseline is a fixed version")
        return self

    def tolerance_of(self, dataset: str) -> float:
        """How much worse a version may be on a benchmark, in points of its primary metric."""
        return self.tolerances.get(dataset, self.tolerance)

    def pod_tags(self) -> dict[str, str]:
        """What the entry says of its models' pods, as tags of a run that the launcher reads."""
        limits = {"container_config": {"resources": {"limits": dict(self.resources)}}}
        tags = {
            TEAM_TAG: self.team or "",
            DTYPE_TAG: "" if self.dtype == "auto" else self.dtype,
            "dagster-k8s/config": json.dumps(limits) if self.resources else "",
        }
        return {name: value for name, value in tags.items() if value}

    def datasets(self, suite: Mapping[str, BenchmarkSpec]) -> list[str]:
        """The keys of its benchmarks, in the suite's order."""
        chosen: set[str] = set()
        for wanted in self.benchmarks:
            chosen.update(_chosen(wanted, suite))
        return [key for key in suite if key in chosen]


class Tracking(_Strict):
    """The whole file."""

    models: Annotated[tuple[TrackedModels, ...], Field(min_length=1)]

    def entry(self, name: str) -> TrackedModels | None:
        """The first entry whose pattern a model's name matches."""
        return next((entry for entry in self.models if fnmatch.fnmatchcase(name, entry.names)), None)

    def entry_of(self, key: str) -> TrackedModels:
        """The entry of a model version. Raises UserError where none tracks it."""
        entry = self.entry(ModelKey.parse(key).name)
        if entry is None:
            raise UserError(
                f"model version {key}: no entry of EVAL_MODELS has a pattern that matches its name"
            )
        return entry


def _chosen(wanted: str, suite: Mapping[str, BenchmarkSpec]) -> list[str]:
    if wanted.startswith("tag:"):
        return [key for key, spec in suite.items() if wanted[4:] in spec.tags]
    return fnmatch.filter(suite, wanted)


def tracking(path: Path | None, folder: str, suite: Mapping[str, BenchmarkSpec]) -> Tracking:
    """What the file says, or, without one, every model of the folder registry `folder`.

    Raises UserError naming file, field and rule.
    """
    if path is None:
        return Tracking(models=(TrackedModels(registry=RegistrySource(folder=folder)),))
    tracked = _anchored(load_declared(path, Tracking, "EVAL_MODELS"), path.parent)
    for position, entry in enumerate(tracked.models):
        where = f"{path}: models[{position}]"
        for wanted in entry.benchmarks:
            if not _chosen(wanted, suite):
                raise UserError(
                    f"{where}.benchmarks: {wanted!r} names no benchmark; there are {', '.join(suite)}"
                )
        unknown = sorted(set(entry.tolerances) - set(entry.datasets(suite)))
        if unknown:
            raise UserError(f"{where}.tolerances: {unknown[0]!r} is none of the entry's benchmarks")
    return tracked


def tracked(settings: Settings) -> Tracking:
    """Which models the settings name. Raises UserError for a mistake in EVAL_MODELS."""
    return tracking(settings.models, settings.registry, SUITE)


def open_tracked(settings: Settings, models: Tracking) -> Registry:
    """The registries of tracked models as one."""
    sources = [(entry.names, entry.registry) for entry in models.models]
    return open_registries(sources, settings.cache, f"{settings.store}/labels")


def _anchored(tracked: Tracking, folder: Path) -> Tracking:
    """Folder registries with a relative path start at the file's own folder."""
    entries = []
    for entry in tracked.models:
        source = entry.registry
        if source.folder is not None and "://" not in source.folder:
            source = RegistrySource(folder=str((folder / source.folder).resolve()))
        entries.append(entry.model_copy(update={"registry": source}))
    return Tracking(models=tuple(entries))
