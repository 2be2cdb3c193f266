"""The files of a model version: which count, what they hash to, whether all are there, and none a way out."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

from resources.errors import UserError
from resources.registries import FileFacts
from resources.registries.safetensors_header import stated_size

_UNREAD = re.compile(
    r"\..*|.*\.(lock|md)|(LICENSE|NOTICE).*|.*\.(bin|pt|pth|pkl|pickle|ckpt|h5|msgpack|ot|onnx|tflite)"
)
"""Names of files and folders that no load reads: hidden ones, locks, texts for people, and weights in the
formats that are refused or belong to other frameworks. They don't count for the digest: a new README is no
new model."""

_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
_CHECKSUMS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "VersionId")
"""Of a file in the listings of fsspec's object stores: the first time that is there, and all checksums."""

_YOUNG_NS = 2_000_000_000
"""Two changes within the resolution of a file system's clock (2 s at worst) can leave the same time "
"behind."""


def model_files(folder: Path, what: str) -> dict[str, Path]:
    """Relative POSIX path -> file, sorted, of everything below `folder` that a load can read.

    Raises UserError, starting with `what`, for a link that is broken or leaves the folder.
    """
    root = folder.resolve()
    found: dict[str, Path] = {}
    for path in _walk(folder):
        relative = path.relative_to(folder).as_posix()
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise UserError(
                f"{what}: {relative} is a link to nothing; copy the file into the folder"
            ) from None
        if not target.is_relative_to(root):
            raise UserError(
                f"{what}: {relative} is a link that leaves the version's folder; copy the file into it"
            )
        if target.is_file():
            found[relative] = path
        elif path.is_symlink():
            raise UserError(f"{what}: {relative} is a link to a folder; only links to files are followed")
    return dict(sorted(found.items()))


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _UNREAD.fullmatch(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


def read_facts(
    files: Mapping[str, Path], known: Mapping[str, FileFacts] | None, what: str
) -> dict[str, FileFacts]:
    """The facts of each file; only those that are new or whose size or time has changed are read.

    As in git's index, a file younger than the clock's resolution is never taken as known (`FileFacts`).
    Raises UserError for a file that changes while it is read.
    """
    return {relative: _facts(path, (known or {}).get(relative), what) for relative, path in files.items()}


def _facts(path: Path, known: FileFacts | None, what: str) -> FileFacts:
    before = path.stat()
    if known is not None and (known.size, known.mtime_ns) == (before.st_size, before.st_mtime_ns):
        return known
    now = time.time_ns()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(
            f"{what}: {path.name} changed while it was read; wait until it is copied, then try again"
        )
    young = now - before.st_mtime_ns < _YOUNG_NS
    return FileFacts(before.st_size, 0 if young else before.st_mtime_ns, digest)


def digest_of(facts: Mapping[str, FileFacts]) -> str:
    """SHA-256 over the sorted relative paths and content hashes.

    Each path is followed by a zero byte and each hash by a line end, so that no two lists run together.
    """
    digest = hashlib.sha256()
    for relative in sorted(facts):
        digest.update(f"{relative}\0{facts[relative].sha256}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a listing says of a file, without reading it."""

    size: int
    """Bytes."""
    identity: str
    """Changes when the content does: the time of the last change in ns, or an object store's checksum."""
    changed: float | None = None
    """When it was put there, in seconds since the epoch, where that is known."""


def seen_of(info: Mapping[str, Any]) -> Seen:
    """What an object store's listing says of a file: its checksum, or else its times, as identity."""
    names = [name for name in _CHECKSUMS if info.get(name)] or [name for name in _TIMES if info.get(name)]
    identity = json.dumps([str(info[name]) for name in names])
    changed = next((_seconds(info[name]) for name in _TIMES if info.get(name)), None)
    return Seen(int(info.get("size") or 0), identity, changed)


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def is_read(relative: str) -> bool:
    """Whether a load can read the file at this POSIX path below a version's folder."""
    return not any(_UNREAD.fullmatch(part) for part in relative.split("/"))


def revision_of(files: Mapping[str, Seen]) -> str:
    """SHA-256 over the sorted paths, sizes and identities of a version's files."""
    digest = hashlib.sha256()
    for relative in sorted(files):
        digest.update(f"{relative}\0{files[relative].size}\0{files[relative].identity}\n".encode())
    return digest.hexdigest()


def unread_headers(files: Mapping[str, Seen], place: str) -> list[str]:
    """The safetensors files whose header `missing_part` would read."""
    return [
        path
        for path, seen in files.items()
        if path.endswith(".safetensors") and (place, path, seen.size, seen.identity) not in _STATED
    ]


def missing_part(files: Mapping[str, Seen], place: str, read: Callable[[str, int, int], bytes]) -> str:
    """What is not there yet of a version that is being copied, or "".

    Every safetensors file must be as long as its own header says (a longer one is damaged, which is not for
    waiting to mend), and every shard that an index names must be there. ``read(path, start, length)`` gives
    bytes of a file; what was read is remembered by `place` (of the version), path, size and identity.
    """
    for path, seen in files.items():
        key = (place, path, seen.size, seen.identity)
        try:
            if path.endswith(".safetensors"):
                if seen.size < 8:
                    return f"{path} has {seen.size} bytes"
                stated = _remembered(_STATED, key, partial(stated_size, partial(read, path)))
                if seen.size < stated:
                    return f"{path} has {seen.size:,} of {stated:,} bytes"
            elif path.endswith(".safetensors.index.json"):
                content = partial(read, path, 0, seen.size)
                shards = _remembered(_SHARDS, key, partial(_shard_names, content))
                folder = path.rpartition("/")[0]
                missing = [
                    shard for shard in shards if (f"{folder}/{shard}" if folder else shard) not in files
                ]
                if missing:
                    return f"{len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}"
        except ValueError as error:
            return f"{path}: {error}"
    return ""


_Key: TypeAlias = tuple[str, str, int, str]
_Value = TypeVar("_Value")
_STATED: dict[_Key, int] = {}
_SHARDS: dict[_Key, tuple[str, ...]] = {}
_REMEMBERED = 200_000
"""Entries: those of 10,000 versions of 20 files each."""


def _remembered(memory: dict[_Key, _Value], key: _Key, read: Callable[[], _Value]) -> _Value:
    # Another thread may clear it at any time, so nothing is looked up twice.
    value = memory.get(key)
    if value is None:
        value = read()
        if len(memory) >= _REMEMBERED:
            memory.clear()
        memory[key] = value
    return value


def _shard_names(content: Callable[[], bytes]) -> tuple[str, ...]:
    """The shards that an index names, but those outside its folder: `measure` refuses them by name."""
    try:
        names = {str(shard) for shard in json.loads(content())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("it can't be read") from None
    return tuple(sorted(name for name in names if PurePosixPath(name).name == name and "\\" not in name))
