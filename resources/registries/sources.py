"""Registries as a configuration names them, and several of them as one."""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import Listing, Registry, Skipped
from resources.registries.folder import FolderRegistry

Text: TypeAlias = Annotated[str, Field(min_length=1)]


class HubSource(BaseModel):
    """Models of a Hub: single repositories, and organizations (``org``, ``org/pattern``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repos: tuple[Text, ...] = ()
    organizations: tuple[Text, ...] = ()
    branch: Text = "main"
    endpoint: Text | None = None

    @model_validator(mode="after")
    def _something(self) -> "HubSource":
        if not self.repos and not self.organizations:
            raise ValueError("name 'repos' or 'organizations'")
        return self


class RegistrySource(BaseModel):
    """Exactly one of the three: a folder or object-store URL, an MLflow tracking URI, a Hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Text | None = None
    mlflow: Text | None = None
    hub: HubSource | None = None

    @model_validator(mode="after")
    def _one(self) -> "RegistrySource":
        if sum(value is not None for value in (self.folder, self.mlflow, self.hub)) != 1:
            raise ValueError("give exactly one of 'folder', 'mlflow' and 'hub'")
        return self

    def open(self, names: str, cache: Path, notes: str, settle_seconds: float) -> Registry:
        """The registry. `notes` is a folder or URL for what it can't keep itself (a Hub's aliases)."""
        if self.folder is not None:
            return FolderRegistry(self.folder, cache, settle_seconds=settle_seconds)
        if self.mlflow is not None:
            from resources.registries.mlflow import MlflowRegistry

            return MlflowRegistry(self.mlflow, cache, names)
        if self.hub is None:
            raise ValueError("a registry source without a source")
        from resources.registries.hub import HubRegistry

        return HubRegistry(
            self.hub.repos, self.hub.organizations, cache, notes, self.hub.endpoint, self.hub.branch
        )


class RoutedRegistry:
    """Several registries as one: a model belongs to the first whose pattern its name matches."""

    def __init__(self, routes: Sequence[tuple[str, Registry]]) -> None:
        self._routes = routes
        self.root = ", ".join(dict.fromkeys(registry.root for _, registry in routes))

    def versions(self, since: str = "") -> Listing:
        """The new versions of all; one that fails is in `skipped` and is asked again from its old cursor.

        Raises what it raised where there is only one.
        """
        cursors: dict[str, str] = json.loads(since) if since else {}
        keys: dict[ModelKey, None] = {}
        skipped: list[Skipped] = []
        for names, registry in self._routes:
            place = f"{names} in {registry.root}"
            try:
                listing = registry.versions(cursors.get(place, ""))
            except UserError as error:
                if len(self._routes) == 1:
                    raise
                skipped.append(Skipped(registry.root, str(error)))
                continue
            cursors[place] = listing.cursor
            skipped += listing.skipped
            keys.update((key, None) for key in listing.keys if self._route(key.name) is registry)
        return Listing(tuple(keys), json.dumps(cursors), tuple(skipped))

    def revision(self, key: ModelKey) -> str:
        return self._of(key.name).revision(key)

    def fetch(self, key: ModelKey) -> Path:
        return self._of(key.name).fetch(key)

    def aliases(self, name: str) -> Mapping[str, str]:
        return self._of(name).aliases(name)

    def move_alias(self, name: str, alias: str, version: str, expected: str | None) -> None:
        self._of(name).move_alias(name, alias, version, expected)

    def annotate(self, key: ModelKey, notes: Mapping[str, str]) -> None:
        self._of(key.name).annotate(key, notes)

    def _route(self, name: str) -> Registry | None:
        return next((registry for pattern, registry in self._routes if fnmatchcase(name, pattern)), None)

    def _of(self, name: str) -> Registry:
        registry = self._route(name)
        if registry is None:
            raise UserError(f"model {name}: no entry of EVAL_MODELS has a pattern that matches its name")
        return registry


def open_registries(
    sources: Sequence[tuple[str, RegistrySource]], cache: Path, notes: str, settle_seconds: float = 0.0
) -> Registry:
    """The registries of ``(pattern of names, source)`` as one."""
    return RoutedRegistry(
        [(names, source.open(names, cache, notes, settle_seconds)) for names, source in sources]
    )
