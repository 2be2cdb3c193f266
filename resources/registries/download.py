"""One file from a remote place: resumed where it was cut, verified by its digest, never fetched twice."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from resources.errors import TransientError
from resources.registries import RegistryUnavailableError
from resources.registries.copies import LISTING

_FRUITLESS_TRIES = 3
_SPOILED_TRIES = 2
_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 10.0
"""What `copies.copy_version` leaves in a finished folder: path -> [size, identity]."""

Opener: TypeAlias = Callable[[int], AbstractContextManager[tuple[int, Iterator[bytes]]]]


def download(source: Opener, size: int, identity: str, part: Path, target: Path, what: str) -> None:
    """Bring a file of `size` bytes to `target`.

    ``source(start)`` gives the bytes from `start`, asked once, and raises RegistryUnavailableError where they
    end early (an attribute `wait` of it, in seconds, is waited for up to ten). `part` keeps what has come: a
    later call, after whatever has happened to this one, goes on behind it. It becomes `target` by a rename,
    when its digest is `identity`: ``sha256:…``, or ``git:…``, the SHA-1 of git's blob. Errors name `what`.

    Raises RegistryUnavailableError after three tries in a row that brought nothing; TransientError where the
    bytes are wrong twice.
    """
    fruitless = spoiled = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            have = 0
        try:
            if have < size or not part.exists():
                _append(source, have, part)
        except RegistryUnavailableError as error:
            now = part.stat().st_size if part.exists() else 0
            fruitless = 0 if now > have else fruitless + 1
            asked = getattr(error, "wait", None)
            wait = _WAIT_SECONDS * 2 ** max(0, fruitless - 1) if asked is None else asked
            if fruitless == _FRUITLESS_TRIES or wait > _LONGEST_WAIT_SECONDS:
                raise
            time.sleep(wait)
            continue
        if has_content(part, size, identity):
            part.rename(target)
            return
        # Wrong bytes can't be told from right ones, so nothing of them is kept.
        part.unlink()
        spoiled += 1
        if spoiled == _SPOILED_TRIES:
            raise TransientError(
                f"{what}: came {spoiled} times with other bytes than its digest says; check the network and "
                f"the disk of {part.parent}, then try again"
            )


def _append(source: Opener, have: int, part: Path) -> None:
    # Written at its own place and not at the end of the file: should another process write the same file on a
    # volume without locks, both write the same bytes.
    with source(have) as (start, chunks), part.open("r+b" if part.exists() else "x+b") as file:
        file.seek(start)
        file.truncate()
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())  # or a machine that loses its power leaves a whole name on half a file


def has_content(path: Path, size: int, identity: str) -> bool:
    """Whether the file has this size and digest (as `download` spells it). It is read whole."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size == size and _identity(file, size, identity) == identity


def _identity(file: BufferedReader, size: int, like: str) -> str:
    if like.startswith("sha256:"):
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if not like.startswith("git:"):
        raise ValueError(f"unknown digest {like!r}")

    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects, "Object Storage"
    blob = hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))
    return f"git:{blob.hexdigest()}"


def link_copy(cache: Path, prefix: str, path: str, size: int, identity: str, target: Path) -> bool:
    """Make `target` a hard link to the same content in a folder of `cache` whose name starts with `prefix`.

    Two versions of a model mostly share their tokenizer, and often their weights. False where no folder has
    it (unspoiled), or the volume has no hard links.
    """
    for folder in sorted(cache.glob(f"{prefix}*")):
        with suppress(OSError, ValueError, AttributeError):
            listing = json.loads((folder / LISTING).read_bytes())
            if listing.get(path) == [size, identity] and has_content(folder / path, size, identity):
                target.hardlink_to(folder / path)
                return True
    return False
