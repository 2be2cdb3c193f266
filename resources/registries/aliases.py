"""Aliases and notes of models, for registries that have no place of their own for them."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resources.appearing import appearing
from resources.errors import BusyError, UserError
from resources.keys import ModelKey
from resources.lease import Lease
from resources.registries import AliasMovedError, RegistryUnavailableError
from resources.storage import filesystem_of

_ALIASES = "aliases.json"
_NOTES = "notes.json"
_LEASE = ".labels.lease"
_ALIAS = re.compile(r"[A-Za-z0-9._-]{1,100}")
_WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.1


class Labels:
    """Aliases and notes: two small JSON files a model, in ``<root>/<name>/`` on a disk or in an object store.

    ``aliases.json`` is ``{"champion": "3"}``, ``notes.json`` is ``{"3": {"verdict": "better"}}``. People may
    edit both by hand. A writer reads, compares and replaces the file whole while it holds a lease
    (`resources.lease`), so of two that move an alias at once one is told. An editor takes no lease: what a
    person saves in the milliseconds between a writer's last look and its rename is lost.

    `root` is a path or a URL that fsspec knows, `exists` says whether the registry has a version. Methods
    raise UserError, one line naming the file, for a file that isn't as above and for one that may not be
    read or written; RegistryUnavailableError while somebody else keeps the lease or the store is away.
    """

    def __init__(self, root: str, exists: Callable[[ModelKey], bool]) -> None:
        self._fs: Any
        self._fs, base = filesystem_of(root)
        self._base = base.rstrip("/")
        self._local = "file" in self._fs.protocol
        self._exists = exists

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> version; empty without a file.

        Raises UserError for an alias of a version that isn't there, and for one that names another alias.
        """
        path = self._path(name, _ALIASES)
        found = self._aliases(path)
        for alias, version in found.items():
            if not self._has(name, version):
                raise UserError(f"{path}: {_what_is_wrong(alias, found)} (model {name})")
        return found

    def move_alias(self, name: str, alias: str, version: str, expected: str | None) -> None:
        """Point the alias to a version, if it is at `expected` (None: not set) or is there already.

        Raises AliasMovedError where it is somewhere else, and UserError for a version that isn't there.
        """
        if not _ALIAS.fullmatch(alias):
            raise UserError(f"alias {alias!r} of model {name}: use up to 100 letters, digits and ._-")
        if not self._has(name, version):
            raise UserError(
                f"alias {alias!r} of model {name}: there is no version {version!r}; name one that is there"
            )
        path = self._path(name, _ALIASES)
        with self._alone(name) as put:
            found = self._aliases(path)
            current = found.get(alias)
            if current == version:
                return
            if current != expected:
                raise AliasMovedError(moved_message(name, alias, current, expected, version))
            put(path, {**found, alias: version})

    def notes(self, key: ModelKey) -> dict[str, str]:
        """Name -> text of what was noted about a version."""
        return self._notes(self._path(key.name, _NOTES)).get(key.version, {})

    def annotate(self, key: ModelKey, notes: Mapping[str, str]) -> None:
        """Leave notes on a version, replacing those of the same names."""
        path = self._path(key.name, _NOTES)
        with self._alone(key.name) as put:
            found = self._notes(path)
            put(path, {**found, key.version: {**found.get(key.version, {}), **notes}})

    def _path(self, name: str, file: str) -> str:
        ModelKey.parse(f"{name}@x")  # the rule that a name leaves no folder
        return f"{self._base}/{name}/{file}"

    def _has(self, name: str, version: str) -> bool:
        try:
            key = ModelKey.parse(f"{name}@{version}")
        except UserError:
            return False
        return self._exists(key)

    def _aliases(self, path: str) -> dict[str, str]:
        found = self._read(path)
        for alias, version in found.items():
            if not _ALIAS.fullmatch(alias):
                raise UserError(f"{path}: alias {alias!r}: use up to 100 letters, digits and ._-")
            if not isinstance(version, str):
                raise UserError(
                    f"{path}: alias {alias!r} is {json.dumps(version)[:40]}; write its version in quotes"
                )
        return found

    def _notes(self, path: str) -> dict[str, dict[str, str]]:
        found = self._read(path)
        for version, notes in found.items():
            if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
                raise UserError(
                    f"{path}: the notes of version {version!r} are no object of texts; correct them"
                )
        return found

    def _read(self, path: str) -> dict[str, Any]:
        try:
            value = json.loads(self._content(path))
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text; correct or remove it") from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON ({error}); correct or remove it") from None
        if not isinstance(value, dict):
            raise UserError(f"{path} is not a JSON object; correct or remove it")
        return value

    def _content(self, path: str) -> bytes:
        with self._errors(path, "read"):
            self._fs.invalidate_cache()
            return bytes(self._fs.cat_file(path))

    @contextmanager
    def _alone(self, name: str) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
        """Hold the lease of a model's labels; yields what puts a file there."""
        folder = f"{self._base}/{name}"
        lease = self._acquire(folder)
        try:

            def put(path: str, value: Mapping[str, Any]) -> None:
                try:
                    lease.check()
                except UserError:  # its text speaks of evaluations
                    raise RegistryUnavailableError(
                        f"{path}: this process stood still while it was about to write; try again"
                    ) from None
                self._put(path, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")

            yield put
        finally:
            lease.release()

    def _acquire(self, folder: str) -> Lease:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                with self._errors(folder, "write to"):
                    self._fs.makedirs(folder, exist_ok=True)
                    return Lease.acquire(self._fs, f"{folder}/{_LEASE}", what=folder)
            except BusyError:
                if time.monotonic() > deadline:
                    raise RegistryUnavailableError(
                        f"{folder}: another process has been changing aliases or notes for "
                        f"{_WAIT_SECONDS:.0f} s; try again"
                    ) from None
                time.sleep(_LOOK_SECONDS)

    def _put(self, path: str, content: bytes) -> None:
        with self._errors(path, "write"):
            if not self._local:
                self._fs.pipe_file(path, content)
                return
            with appearing(Path(path)) as file:
                file.write(content)

    @contextmanager
    def _errors(self, path: str, doing: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # a store's client raises what it likes: botocore's errors are no OSError
            if isinstance(error, PermissionError) or (self._local and isinstance(error, OSError)):
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise UserError(f"can't {doing} {path}: {reason}; check the permissions") from None
            raise RegistryUnavailableError(f"can't {doing} {path} now: {type(error).__name__}") from None


def moved_message(name: str, alias: str, current: str | None, expected: str | None, version: str) -> str:
    """The text of an AliasMovedError."""

    def shown(place: str | None) -> str:
        return "not set" if place is None else f"at version {place!r}"

    return (
        f"alias {alias!r} of model {name} is {shown(current)}, not {shown(expected)}: somebody else moved "
        f"it, so it was not moved to version {version!r}"
    )


def _what_is_wrong(alias: str, aliases: Mapping[str, str]) -> str:
    version = aliases[alias]
    if version not in aliases:
        return f"alias {alias!r} is at version {version!r}, which isn't there; name one that is"
    chain = [alias]
    while version in aliases and version not in chain:
        chain.append(version)
        version = aliases[version]
    if version in chain:
        return f"aliases go in a circle ({' -> '.join([*chain, version])}); name a version"
    return f"alias {alias!r} names another alias, {aliases[alias]!r}; name its version, {version!r}, instead"
