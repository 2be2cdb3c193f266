"""The folder registry: ``<root>/<name>/<version>/``, on a disk or in an object store."""

import difflib
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import (
    Listing,
    RegistryUnavailableError,
    Skipped,
    UnknownModelError,
    VersionNotThereError,
)
from resources.registries.aliases import Labels
from resources.registries.copies import copy_version
from resources.registries.files import (
    Seen,
    is_read,
    missing_part,
    model_files,
    revision_of,
    seen_of,
    unread_headers,
)
from resources.storage import filesystem_of

_HEAD_BYTES = 64 * 1024
"""What is read of a safetensors file at first: the headers of most are shorter."""
_HEADS_AT_ONCE = 256
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".gguf", ".h5", ".msgpack")


class FolderRegistry:
    """Model versions as folders below `root`, a path or a URL that fsspec knows.

    A version is a folder that holds a ``config.json``; its path below the root, cut at the last slash, is
    its name (which may have slashes of its own) and version. What lies inside a version is never a version,
    and folders whose name starts with a dot are somebody's work in progress. A local version is used where it
    is; one in an object store is copied to `cache`, and again when its listing there (names, sizes,
    checksums or times) has changed.

    A version that is still being copied is not listed but in `Listing.skipped`. That is decided anew at
    each look, from what is there: every safetensors file must be as long as its own header says and every
    shard that an index names must be there. With `settle_seconds`, for copying tools that write in place in
    any order, there must also be weights, and the youngest change of a file (the later of mtime and ctime;
    in an object store the listing's time, where it gives one; hidden files, in which such tools collect
    what they bring, included) must be at least that old. A time that is that far or further in the *future*
    says nothing, because then a clock was wrong: it counts as settled, and the other rules decide. `fetch`
    of a key that somebody names does not wait for settling.

    Aliases and notes are kept in ``<root>/<name>/aliases.json`` and ``notes.json`` (`aliases.Labels`).
    """

    def __init__(self, root: str, cache: Path | None = None, settle_seconds: float = 0.0) -> None:
        self.root = root
        self._cache = cache
        self._settle = settle_seconds
        self._fs: Any
        self._fs, base = filesystem_of(root)
        self._base = base.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self._labels = Labels(root, self._is_version)

    def versions(self, since: str = "") -> Listing:
        """Every version, 2 before 10; none when nothing has changed since the cursor was made.

        A scan is always complete, so the cursor is a digest of the keys and revisions that it found.
        Raises UserError where the root does not exist.
        """
        found: dict[ModelKey, str] = {}
        skipped: list[Skipped] = []
        with self._errors():
            scanned = self._scan(skipped)
            for start in range(0, len(scanned), _HEADS_AT_ONCE):
                some = scanned[start : start + _HEADS_AT_ONCE]
                heads = {} if self._local else self._heads(some)
                for folder, files in some:
                    try:
                        key = _key(folder)
                    except UserError as error:
                        skipped.append(Skipped(folder, str(error)))
                        continue
                    missing = self._unsettled(files) or self._missing(folder, files, heads)
                    if missing:
                        skipped.append(Skipped(folder, f"still being copied: {missing}"))
                    else:
                        found[key] = revision_of(_read_ones(files))
        lines = "".join(f"{key}\0{revision}\n" for key, revision in found.items())
        cursor = hashlib.sha256(lines.encode()).hexdigest()
        return Listing(() if cursor == since else tuple(found), cursor, tuple(skipped))

    def revision(self, key: ModelKey) -> str:
        """SHA-256 over the paths, sizes and times (or an object store's checksums) of the files that count.

        Raises VersionNotThereError for a key that isn't there, naming the closest ones that are.
        """
        with self._errors():
            return revision_of(_read_ones(self._files(self._known(key))))

    def fetch(self, key: ModelKey) -> Path:
        """The version's folder on this machine.

        Raises UserError for a key that isn't there, naming the closest ones that are, for a version that
        isn't complete, and for one with a link that leaves its folder.
        """
        with self._errors():
            folder = self._known(key)
            path = Path(self._base, folder)
            if self._local:
                model_files(path, f"model {key}")
            elif self._cache is None:
                raise UserError(
                    f"model {key}: {self.root!r} is not on this machine; name a folder for copies"
                )
            files = _read_ones(self._files(folder))
            missing = self._missing(folder, files, {})
            if missing:
                raise UserError(f"model {key}: still being copied: {missing}")
            if self._local or self._cache is None:
                return path
            return copy_version(self._cache, key, files, lambda relative, to: self._get(folder, relative, to))

    def aliases(self, name: str) -> Mapping[str, str]:
        """Alias -> version of a model. Raises UserError for a model that isn't there and for a wrong file."""
        ModelKey.parse(f"{name}@x")  # before it becomes a path
        with self._errors():
            if name.startswith(".") or "/." in name or not self._fs.isdir(f"{self._base}/{name}"):
                names = sorted({key.name for key in self.versions().keys})
                self._check_mounted()
                raise UnknownModelError(
                    f"model {name}: not in {self.root!r} ({_closest(name, names, 'models')})"
                )
        return self._labels.aliases(name)

    def move_alias(self, name: str, alias: str, version: str, expected: str | None) -> None:
        """As `Registry.move_alias`; of several that move it at once one does, the others are told."""
        self._labels.move_alias(name, alias, version, expected)

    def annotate(self, key: ModelKey, notes: Mapping[str, str]) -> None:
        """Add to ``notes.json``. Raises UserError for an unknown key."""
        with self._errors():
            self._known(key)
        self._labels.annotate(key, notes)

    def _known(self, key: ModelKey) -> str:
        """The version's folder below the root."""
        if self._is_version(key):
            return f"{key.name}/{key.version}"
        path = f"{self._base}/{key.name}/{key.version}"
        known = [str(k) for k in self.versions().keys]
        if self._fs.isdir(path) and not self._is_file(f"{path}/config.json"):
            raise UserError(f"model {key}: {path} holds no config.json; is it still being copied?")
        self._check_mounted()
        raise VersionNotThereError(
            f"model {key}: not in {self.root!r} ({_closest(str(key), known, 'versions')})"
        )

    def _check_mounted(self) -> None:
        """Raise UserError for a root with nothing in it: what should be mounted there may not be."""
        if not self._fs.ls(self._base, detail=False):
            raise UserError(f"models folder {self.root!r} is empty; mount what belongs there")

    def _is_version(self, key: ModelKey) -> bool:
        self._fs.invalidate_cache()
        parts = [*key.name.split("/"), key.version]
        folders = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        with self._errors():
            shallowest = next((f for f in folders if self._is_file(f"{self._base}/{f}/config.json")), None)
        return shallowest == folders[-1] and not any(part.startswith(".") for part in parts)

    def _is_file(self, path: str) -> bool:
        # Not fsspec's isfile: that takes a closed door, and a store that is away, for "there is none".
        try:
            if self._local:
                return stat.S_ISREG(Path(path).stat().st_mode)
            return bool(self._fs.info(path)["type"] == "file")
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _scan(self, skipped: list[Skipped]) -> list[tuple[str, Mapping[str, Seen]]]:
        """Each version's folder below the root and its files, hidden ones too where their times matter."""
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._base):
            raise UserError(f"models folder {self.root!r} does not exist; create it, or name another one")
        if self._local:
            found = [(folder, self._files(folder)) for folder in self._local_folders(skipped)]
        else:
            found = self._remote_folders()
        return sorted(found, key=lambda entry: _as_people_count(entry[0]))

    def _local_folders(self, skipped: list[Skipped]) -> Iterator[str]:
        # Link names are followed, so that a version may lie on another disk; each real folder once, or a link
        # upwards would never end.
        seen: set[tuple[int, int]] = set()
        stack = [""]
        while stack:
            folder = stack.pop()
            path = f"{self._base}/{folder}" if folder else self._base
            try:
                entries = list(os.scandir(path))
                if folder and any(entry.name == "config.json" and entry.is_file() for entry in entries):
                    yield folder
                    continue
                status = Path(path).stat()
                folders = [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]
            except (FileNotFoundError, NotADirectoryError):  # removed while we look
                continue
            except PermissionError:
                if not folder:
                    raise
                skipped.append(Skipped(folder, "it may not be read; check its permissions"))
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                stack += (f"{folder}/{name}" if folder else name for name in folders)

    def _files(self, folder: str) -> Mapping[str, Seen]:
        """The files of a version; hidden ones only where their times matter."""
        path = f"{self._base}/{folder}"
        if self._local:
            return dict(_local_files(path, "", hidden=self._settle > 0))
        self._fs.invalidate_cache()
        listed = self._fs.find(path, detail=True).items()
        return {place[len(path) + 1 :]: seen_of(info) for place, info in listed}

    def _remote_folders(self) -> list[tuple[str, Mapping[str, Seen]]]:
        # One listing of everything costs an object store less than one for each folder.
        files = {p[len(self._base) + 1 :]: info for p, info in self._fs.find(self._base, detail=True).items()}
        found: dict[str, dict[str, Seen]] = {}
        for path in sorted(files, key=lambda path: path.count("/")):
            folder, _, file = path.rpartition("/")
            hidden = path.startswith(".") or "/." in path
            if file == "config.json" and folder and not hidden and _inside(folder, found) is None:
                found[folder] = {}
        for path, info in files.items():
            inside = _inside(path, found)
            if inside is not None:
                found[inside][path[len(inside) + 1 :]] = seen_of(info)
        return list(found.items())

    def _unsettled(self, files: Mapping[str, Seen]) -> str:
        if not self._settle:
            return ""
        if not any(path.endswith(_WEIGHTS) for path in files):
            return "there are no weights yet"
        now = time.time()
        for seen in files.values():
            if seen.changed is not None and abs(now - seen.changed) < self._settle:
                age = max(0.0, now - seen.changed)
                return f"a file changed {age:.0f} s ago, it waits until that is {self._settle:g} s"
        return ""

    def _missing(self, folder: str, files: Mapping[str, Seen], heads: Mapping[str, bytes]) -> str:
        place = f"{self._base}/{folder}"

        def read(relative: str, start: int, length: int) -> bytes:
            path = f"{place}/{relative}"
            if self._local:
                with Path(path).open("rb") as file:
                    file.seek(start)
                    return file.read(length)
            if start + length <= len(heads.get(path, b"")):
                return heads[path][start : start + length]
            return bytes(self._fs.cat_file(path, start=start, end=start + length))

        return missing_part(_read_ones(files), self._remembered(folder), read)

    def _heads(self, versions: Sequence[tuple[str, Mapping[str, Seen]]]) -> dict[str, bytes]:
        """The first bytes of the safetensors files that were not read before, many at once."""
        paths = [
            f"{self._base}/{folder}/{relative}"
            for folder, files in versions
            for relative in unread_headers(_read_ones(files), self._remembered(folder))
        ]
        heads = self._fs.cat_ranges(paths, 0, _HEAD_BYTES, on_error="return") if paths else []
        return {path: head for path, head in zip(paths, heads, strict=True) if isinstance(head, bytes)}

    def _remembered(self, folder: str) -> str:
        return f"{self.root}\0{folder}"

    def _get(self, folder: str, relative: str, target: Path) -> None:
        with self._errors():
            self._fs.get_file(f"{self._base}/{folder}/{relative}", str(target))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except PermissionError as error:
            raise UserError(
                f"models folder {self.root!r}: {error.filename or 'it'} may not be read"
            ) from None
        except FileNotFoundError as error:
            raise UserError(
                f"models folder {self.root!r}: {error.filename or error} was removed while it was read"
            ) from None
        except Exception as error:  # a store's client raises what it likes: botocore's errors are no OSError
            if self._local and not isinstance(error, OSError):
                raise
            reason = (self._local and getattr(error, "strerror", None)) or type(error).__name__
            raise RegistryUnavailableError(
                f"models folder {self.root!r} can't be reached now: {reason}"
            ) from error


def _as_people_count(folder: str) -> list[tuple[int, str]]:
    """A sort key that takes digits for numbers: a folder's age is unknown, and version 10 comes after 2."""
    parts = re.findall(r"[0-9]+|[^0-9]+", folder)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _key(folder: str) -> ModelKey:
    name, _, version = folder.rpartition("/")
    if not name:
        raise UserError("directly below the root; expected <name>/<version>/")
    return ModelKey.parse(f"{name}@{version}")


def _inside(path: str, versions: Mapping[str, Any]) -> str | None:
    """The version's folder that a path lies in."""
    cut = path.find("/")
    while cut != -1:
        if path[:cut] in versions:
            return path[:cut]
        cut = path.find("/", cut + 1)
    return None


def _read_ones(files: Mapping[str, Seen]) -> dict[str, Seen]:
    return {path: seen for path, seen in files.items() if is_read(path)}


def _local_files(folder: str, prefix: str, *, hidden: bool) -> Iterator[tuple[str, Seen]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if not is_read(entry.name) and not (hidden and entry.name.startswith(".")):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _local_files(entry.path, f"{prefix}{entry.name}/", hidden=hidden)
                continue
            try:
                status = entry.stat()
            except OSError:  # a link to nothing, or removed meanwhile: `fetch` says so
                continue
            # A pipe or a device has no header to read; opening one might never end.
            if stat.S_ISREG(status.st_mode):
                changed = max(status.st_mtime, status.st_ctime)
                yield prefix + entry.name, Seen(status.st_size, str(status.st_mtime_ns), changed)


def _closest(wanted: str, known: Sequence[str], what: str) -> str:
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
    return f"closest: {', '.join(close)}" if close else f"{len(known)} {what} are there"
