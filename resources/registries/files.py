"""The files of a model version: which count, what they hash to, and that none leaves the version's folder."""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from resources.errors import UserError
from resources.registries import FileFacts

_UNREAD = re.compile(
    r"\..*|.*\.(lock|md)|(LICENSE|NOTICE).*|.*\.(bin|pt|pth|pkl|pickle|ckpt|h5|msgpack|ot|onnx|tflite)"
)
"""Names of files and folders that no load reads: hidden ones, locks, texts for people, and weights in the
formats that are refused or belong to other frameworks. They don't count for the digest: a new README is no
new model."""

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
