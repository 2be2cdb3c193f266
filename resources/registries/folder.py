"""The folder registry: ``<root>/<name>/<version>/``, on a disk or in an object store."""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from resources.errors import UserError
from resources.keys import ModelKey, path_segment
from resources.registries.files import model_files

_LISTING = ".listing.json"


class FolderRegistry:
    """Model versions as folders below `root`, a path or a URL that fsspec knows.

    A version is a folder that holds a ``config.json``; its path below the root, cut at the last slash, is
    its name (which may have slashes of its own) and version. What lies inside a version is never a version,
    and folders whose name starts with a dot are somebody's work in progress. A local version is used where it
    is; one in an object store is copied to `cache`, and again when its listing there (names, sizes, times,
    checksums) has changed.
    """

    def __init__(self, root: str, cache: Path | None = None) -> None:
        self.root = root
        self._cache = cache
        self._fs: Any
        self._fs, self._base = fsspec.url_to_fs(root)
        self._base = self._base.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def versions(self) -> Iterator[ModelKey]:
        """Every version in alphabetical order. Raises UserError where the root does not exist."""
        legal, _ = self._scan()
        yield from legal

    def skipped(self) -> list[tuple[str, str]]:
        """The folders that hold a ``config.json`` but are no version: path below the root, and the reason."""
        return self._scan()[1]

    def fetch(self, key: ModelKey) -> Path:
        """The version's folder on this machine.

        Raises UserError for a key that isn't there, naming the closest ones that are, and for a version with
        a link that leaves its folder.
        """
        path = f"{self._base}/{key.name}/{key.version}"
        if not self._is_version(key):
            raise UserError(self._unknown(key, path))
        folder = Path(path) if self._local else self._copy(key, path)
        model_files(folder, f"model {key}")
        return folder

    def _is_version(self, key: ModelKey) -> bool:
        parts = [*key.name.split("/"), key.version]
        folders = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        shallowest = next((f for f in folders if self._fs.isfile(f"{self._base}/{f}/config.json")), None)
        return shallowest == folders[-1] and not any(part.startswith(".") for part in parts)

    def _scan(self) -> tuple[list[ModelKey], list[tuple[str, str]]]:
        legal: list[ModelKey] = []
        skipped: list[tuple[str, str]] = []
        for folder in self._version_folders():
            name, _, version = folder.rpartition("/")
            if not name:
                skipped.append((folder, "directly below the root; expected <name>/<version>/"))
                continue
            try:
                legal.append(ModelKey.parse(f"{name}@{version}"))
            except UserError as error:
                skipped.append((folder, str(error)))
        return legal, skipped

    def _version_folders(self) -> list[str]:
        if not self._fs.isdir(self._base):
            raise UserError(f"models folder {self.root!r} does not exist; create it, or name another one")
        try:
            return sorted(self._local_folders(Path(self._base)) if self._local else self._remote_folders())
        except PermissionError as error:
            raise UserError(f"models folder {self.root!r}: {error.filename} may not be read") from None

    def _local_folders(self, root: Path) -> Iterator[str]:
        # Link names are followed, so that a version may lie on another disk; each real folder once, or a link
        # upwards would never end.
        seen: set[Path] = set()
        stack = [root]
        while stack:
            folder = stack.pop()
            real = folder.resolve()
            if folder != root and (folder / "config.json").is_file():
                yield folder.relative_to(root).as_posix()
                continue
            if real in seen:
                continue
            seen.add(real)
            stack += (e for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))

    def _remote_folders(self) -> Iterator[str]:
        # One listing of everything costs an object store less than one for each folder.
        found: set[str] = set()
        for path in sorted(self._fs.find(self._base), key=lambda path: path.count("/")):
            relative = PurePosixPath(path[len(self._base) + 1 :])
            folder = relative.parent.as_posix()
            hidden = any(part.startswith(".") for part in relative.parts)
            inside = any(parent.as_posix() in found for parent in relative.parent.parents)
            if relative.name == "config.json" and folder != "." and not hidden and not inside:
                found.add(folder)
        return iter(found)

    def _unknown(self, key: ModelKey, path: str) -> str:
        known = [str(k) for k in self.versions()]
        if self._fs.isdir(path):
            return f"model {key}: {path} holds no config.json; is it still being copied?"
        close = difflib.get_close_matches(str(key), known, n=3, cutoff=0.4)
        there = f"closest: {', '.join(close)}" if close else f"{len(known)} versions are there"
        return f"model {key}: not in {self.root!r} ({there})"

    def _copy(self, key: ModelKey, path: str) -> Path:
        if self._cache is None:
            raise UserError(f"model {key}: {self.root!r} is not on this machine; name a folder for copies")
        listing = {p[len(path) + 1 :]: self._fs.ukey(p) for p in self._fs.find(path)}
        folder = self._cache / path_segment(str(key))
        try:
            if json.loads((folder / _LISTING).read_text(encoding="utf-8")) == listing:
                return folder
        except (FileNotFoundError, ValueError):
            pass
        self._cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".copying-", dir=self._cache) as work:
            fresh = Path(work) / "fresh"
            for relative in listing:
                target = fresh / relative
                if not target.resolve().is_relative_to(fresh.resolve()):
                    raise UserError(f"model {key}: {relative!r} leaves the version's folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{path}/{relative}", str(target))
            (fresh / _LISTING).write_text(json.dumps(listing), encoding="utf-8")
            if folder.exists():
                folder.rename(Path(work) / "stale")
            fresh.rename(folder)
        return folder
