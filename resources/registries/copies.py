"""Copies of model versions in a folder of this machine or of a volume that pods share."""

import errno
import fcntl
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from resources.errors import UserError
from resources.keys import ModelKey, path_segment
from resources.registries import RegistryUnavailableError
from resources.registries.files import Seen, missing_part

LISTING = ".listing.json"
_WORK = ".copying"
_TRIES = 3
_PAUSE_SECONDS = 1.0
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def copy_version(
    cache: Path, key: ModelKey, files: Mapping[str, Seen], get: Callable[[str, Path], None]
) -> Path:
    """The folder ``cache/<key, percent-encoded>`` with exactly these files, none of them fetched twice.

    ``get(relative, target)`` fetches one file; a RegistryUnavailableError of it is tried again. Files are
    gathered beside the cache's folders, in a place that belongs to this listing (paths, sizes, identities),
    and each appears there whole: after a kill the next call fetches only the others. The finished folder
    takes its place by a rename. Of several processes on one volume one fetches and the others wait for it.

    Raises UserError for a path that leaves the folder, a version that isn't complete at its source, and a
    cache that can't be written; RegistryUnavailableError for a file that can't be had as long as listed.
    """
    for relative in files:
        parts = PurePosixPath(relative).parts
        if relative.startswith("/") or ".." in parts or "\\" in relative or "\0" in relative or not parts:
            raise UserError(f"model {key}: {relative!r} leaves the version's folder; remove it at its source")
    listing: dict[str, list[int | str]] = {
        relative: [seen.size, seen.identity] for relative, seen in sorted(files.items())
    }
    segment = path_segment(str(key))
    folder = cache / segment
    if _holds(folder, listing):
        return folder
    work = cache / _WORK / segment  # of its own, so that cleaning it up touches no other version's
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _alone(work / "lock"):
            if not _holds(folder, listing):
                name = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
                staging = work / name
                _gather(key, staging, files, get)
                (staging / LISTING).write_text(json.dumps(listing), encoding="utf-8")
                # Two renames, because a folder can't be exchanged in one: a process killed between them
                # leaves the gathered files, and the next call puts them in place.
                with suppress(FileNotFoundError):
                    folder.rename(work / uuid.uuid4().hex)
                staging.rename(folder)
            for left in work.iterdir():
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            raise UserError(
                f"model {key}: can't write to {cache}: {error.strerror}; "
                "free some space or check the permissions"
            ) from None
        raise
    return folder


def _holds(folder: Path, listing: Mapping[str, list[int | str]]) -> bool:
    try:
        if json.loads((folder / LISTING).read_bytes()) != listing:
            return False
        return all((folder / relative).stat().st_size == size for relative, (size, _) in listing.items())
    except (OSError, ValueError):
        return False


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    # The kernel gives the lock back when its holder ends, however it ends. The file stays: whoever removed it
    # could let a third process lock another file of the same name.
    with lock.open("a") as file:
        with suppress(OSError):  # a volume without locks: then two may fetch the same file, each for itself
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _gather(
    key: ModelKey, staging: Path, files: Mapping[str, Seen], get: Callable[[str, Path], None]
) -> None:
    for left in staging.rglob(".*.tmp"):  # of a process that was killed
        left.unlink(missing_ok=True)
    for relative, seen in files.items():
        target = staging / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _bring(key, relative, seen.size, target, get)

    def read(relative: str, start: int, length: int) -> bytes:
        with (staging / relative).open("rb") as file:
            file.seek(start)
            return file.read(length)

    missing = missing_part(files, str(staging), read)
    if missing:
        raise UserError(f"model {key}: still being copied: {missing}")


def _bring(key: ModelKey, relative: str, size: int, target: Path, get: Callable[[str, Path], None]) -> None:
    for left in range(_TRIES - 1, -1, -1):
        temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            get(relative, temporary)
            there = temporary.stat().st_size
            if there == size:
                temporary.rename(target)
                return
            raise RegistryUnavailableError(
                f"model {key}: {relative} came with {there:,} bytes, its listing says {size:,}; try again"
            )
        except RegistryUnavailableError:
            if not left:
                raise
            time.sleep(_PAUSE_SECONDS * (_TRIES - left))
        finally:
            temporary.unlink(missing_ok=True)
