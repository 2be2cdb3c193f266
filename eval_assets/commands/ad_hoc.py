"""A model that somebody has at hand, evaluated without a Dagster instance or a registry being set up.

The runs are the same as everywhere, on an instance of this process that is gone with it. What counts is in
the results store: the same fingerprints, so that whatever evaluates the same version there reuses them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import dagster as dg

from eval_assets.commands.runs import Runs
from eval_assets.grid.tracking import TrackedModels, Tracking, open_tracked, tracked
from resources.errors import TransientError, UserError
from resources.keys import ModelKey
from resources.registries import ModelVersion, Registry
from resources.registries.one_folder import OneFolderRegistry
from resources.registries.sources import HubSource, RegistrySource
from resources.registries.verify import measure
from resources.results import ResultsStore
from resources.settings import Settings, overridden

_COMMON = re.compile(
    r"\d+|v\d[\w.]*|(checkpoint|step|epoch|global_step)[-_]?\d*|best|last|final|model|output"
)
"""Names of folders that say nothing without their parent's."""


@contextmanager
def opened(model: str, *, key: str | None = None, limit: int | None = None) -> Iterator[tuple[Runs, str]]:
    """Runs for one model, on an instance of their own, and the model's key.

    `model` is a folder, a version of the configured registries (``name@version``), or a model of the Hub
    (``org/name``, or ``org/name@revision``). A folder within EVAL_REGISTRY has the key that it has there; any
    other one the name of the folder and, for a version, the beginning of its content's digest, so that
    training on makes another version; `key` names it otherwise. `limit` stands for EVAL_LIMIT.

    Raises UserError for a model that is nowhere.
    """
    with ExitStack() as stack:
        stack.enter_context(limited(limit))
        settings = Settings.from_environment()
        registry, version = _found(model, key, settings)
        name = ModelKey.parse(version).name
        if registry is not None and settings.models is not None and tracked(settings).entry(name) is None:
            stack.enter_context(overridden(models=""))
        instance = stack.enter_context(dg.DagsterInstance.ephemeral())
        yield Runs(instance, registry), version


def limited(limit: int | None) -> AbstractContextManager[None]:
    """`limit` stands for EVAL_LIMIT within, if it is given."""
    return overridden() if limit is None else overridden(limit=str(limit))


def _found(model: str, key: str | None, settings: Settings) -> tuple[Registry | None, str]:
    """The registry of the model (None: the configured ones) and its key there."""
    path = Path(model).expanduser()
    if path.is_dir():
        path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would leave a registry by its links)
        inside = _key_in_registry(path, settings)
        if inside is not None and key in (None, inside):
            return None, inside
        named = ModelKey.parse(key) if key is not None else _key_of(path, ResultsStore(settings.store))
        return OneFolderRegistry(path, named), str(named)
    if re.match(r"[/~.]", model):
        raise UserError(f"{model}: no such folder")
    if key is not None:
        raise UserError(f"{model}: only a folder can be given another key, not a version that has one")
    looked = ["it is no folder"]
    if "@" in model:
        wanted = ModelKey.parse(model)
        try:
            open_tracked(settings, tracked(settings)).revision(wanted)
            return None, model
        except TransientError:
            raise
        except UserError as error:
            looked.append(str(error))
    name, _, version = model.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"model {model!r}: {'; '.join(looked)}; name a folder, a registered name@version, or org/name of "
            "the Hub"
        )
    hub = TrackedModels(registry=RegistrySource(hub=HubSource(repos=(name,))))
    registry = open_tracked(settings, Tracking(models=(hub,)))
    if version:
        registry.revision(ModelKey.parse(model))
        return registry, model
    listing = registry.versions()
    if not listing.keys:
        reason = listing.skipped[0].reason if listing.skipped else "it has no version"
        raise UserError(f"model {model!r}: {'; '.join(looked)}; on the Hub: {reason}")
    return registry, str(listing.keys[-1])


def _key_in_registry(path: Path, settings: Settings) -> str | None:
    """The key of a folder that lies in the registry of EVAL_REGISTRY, if that is the one in use."""
    root = Path(settings.registry)
    if settings.models is not None or "://" in settings.registry or not path.is_relative_to(root):
        return None
    parts = path.relative_to(root).parts
    return f"{'/'.join(parts[:-1])}@{parts[-1]}" if len(parts) > 1 else None


def _key_of(path: Path, store: ResultsStore) -> ModelKey:
    """A key for a folder by its name and content. Its files are read once: the store remembers them."""
    name = _legal(path.name)
    if _COMMON.fullmatch(name):
        name = f"{_legal(path.parent.name)}/{name}"
    known = next((one for one in store.model_versions().values() if one.get("path") == str(path)), None)
    any_version = ModelKey.parse(f"{name.strip('/')}@x")
    version = measure(
        any_version,
        OneFolderRegistry(path, any_version).fetch(any_version),
        ModelVersion.from_dict(known).files if known else None,
    )
    return ModelKey(any_version.name, version.digest[:8])


def _legal(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
