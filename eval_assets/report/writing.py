"""Putting a site in its place: only what changed, each file whole, the index last.

A page's files are its data, under names that their content gives, and the page itself, written after them. So
a page that is replaced points to files that are all there, and the page that it replaces does too, until the
new index stands: only then is removed what no page needs any more.
"""

import hashlib
import json
import mimetypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from threading import Semaphore
from typing import Any

from eval_assets.report.naming import INDEX
from resources.errors import UserError
from resources.storage import Storage

MANIFEST = "manifest.json"
FOLDERS = ("assets", "cells", "comparisons", "damaged", "models")
"""What the report may remove files from; the folder's other contents are somebody else's."""
_WRITERS = 16
_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Page:
    """A page to be: equal `inputs` (as JSON) and equal code mean that it need not be made again.

    `files` makes the page: ``(path, content)`` of its data, then of the page itself at `path`.
    """

    path: str
    inputs: Any
    files: Callable[[], Iterator[tuple[str, bytes]]]


def plain(one: Any) -> list[Any] | None:
    """The values of a dataclass, for a page's `inputs` (`asdict` is too slow for a large site)."""
    if one is None:
        return None
    kind: type = type(one)
    return list(_getter(kind)(one))


@cache
def _getter(kind: type) -> Callable[[Any], tuple[Any, ...]]:
    return attrgetter(*(field.name for field in fields(kind)))


@dataclass(frozen=True, slots=True)
class Published:
    """How many pages were written, kept as they were, and removed."""

    written: int
    kept: int
    removed: int


def publish(
    storage: Storage,
    folder: str,
    assets: Mapping[str, bytes],
    pages: Sequence[Page],
    code: str,
    on_page: Callable[[int, int], None] = lambda *_: None,
) -> Published:
    """Make the site below `folder` of the storage these pages; `code` is the digest of what makes them.

    `on_page` is told how many of how many pages are done. Interrupted at any point it leaves the site that
    was there usable, and the next call does what is left. Raises UserError where something can't be written.
    """
    there = _listed(storage, folder)
    before = _manifest(storage, folder)
    digests = {page.path: _digest(code, page.inputs) for page in pages}
    kept = {
        path: entry
        for path, entry in before.items()
        if path in digests and entry["digest"] == digests[path] and there.issuperset([path, *entry["files"]])
    }
    todo = [page for page in pages if page.path not in kept]
    gone = sorted(set(before) - set(digests))
    if not todo and not gone and there.issuperset(assets):
        return Published(0, len(kept), 0)
    # A page that is being replaced is in no manifest: it is neither what it was nor surely what it shall be.
    _put_manifest(storage, folder, kept)
    entries = dict(kept)
    # New pages first: until the old ones are replaced and point to them, nobody comes by them.
    todo.sort(key=lambda page: (page.path == INDEX, page.path in there))
    new = sum(page.path not in there for page in todo)
    with _Writer(storage, folder) as writer:
        for path in assets:
            if path not in there:
                writer.put(path, assets[path])
        writer.wait()
        for position, page in enumerate(todo):
            *data, (path, content) = page.files()
            for name, chunk in data:
                if name not in there:
                    writer.put(name, chunk)
            if data or position == new or path == INDEX:
                writer.wait()
            writer.put(path, content)
            entries[page.path] = {"digest": digests[page.path], "files": [name for name, _ in data]}
            on_page(position + 1, len(todo))
    _put_manifest(storage, folder, entries)
    needed = {MANIFEST, *assets, *entries}.union(*(entry["files"] for entry in entries.values()))
    # Of what was there at the start only: another build may have put down more since.
    for path in sorted(there - needed):
        if path.startswith(tuple(f"{name}/" for name in FOLDERS)):
            with suppress(FileNotFoundError), storage.writing(path):
                storage.filesystem.rm_file(f"{storage.root}/{folder}/{path}")
    return Published(len(todo), len(kept), len(gone))


def _digest(code: str, inputs: Any) -> str:
    text = json.dumps([code, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _listed(storage: Storage, folder: str) -> set[str]:
    root = f"{storage.root}/{folder}"
    storage.filesystem.invalidate_cache()
    return {path[len(root) + 1 :] for path in storage.filesystem.find(root)}


def _manifest(storage: Storage, folder: str) -> dict[str, dict[str, Any]]:
    """The pages that the last build left; none where that can't be told, and then all are made again."""
    try:
        manifest = storage.get_json(f"{folder}/{MANIFEST}") or {}
        return {
            path: {"digest": str(entry["digest"]), "files": [str(name) for name in entry["files"]]}
            for path, entry in manifest["pages"].items()
        }
    except (UserError, KeyError, TypeError, AttributeError):
        return {}


def _put_manifest(storage: Storage, folder: str, entries: Mapping[str, Any]) -> None:
    storage.put(
        f"{folder}/{MANIFEST}",
        json.dumps({"pages": entries}, indent=0, sort_keys=True).encode(),
        _type_of(MANIFEST),
    )


def _type_of(path: str) -> str:
    """What a web server is to call the file; an object store serves what it was told."""
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind.endswith("json") else kind


class _Writer:
    """Several files at a time: each waits for the disk, or for an object store's answer, by itself."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._pool = ThreadPoolExecutor(_WRITERS)
        self._room = Semaphore(_AHEAD)
        self._pending: list[Any] = []

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self.wait()

    def put(self, path: str, content: bytes) -> None:
        """Write a file soon; an error of it is raised by a later `put` or by `wait`."""
        self._room.acquire()
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()
        self._pending.append(self._pool.submit(self._put, path, content))

    def wait(self) -> None:
        """Until all that was put is there."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def _put(self, path: str, content: bytes) -> None:
        try:
            self._storage.put(f"{self._folder}/{path}", content, _type_of(path))
        finally:
            self._room.release()
