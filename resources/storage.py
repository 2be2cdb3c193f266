"""Files below one folder or object-store URL, each put there whole: by rename (local) or by a single put.

The root may hold any characters. Much of `fsspec` (``glob``, ``cat`` of several, ``rm``, ``mv``) takes a path
with ``[``, ``*`` or ``?`` for a pattern; what is used here does not, or not where one of them is in the path.
"""

import hashlib
import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from resources.appearing import appearing
from resources.errors import TransientError, UserError

_CONTENT_TYPE = {"s3": "ContentType", "s3a": "ContentType", "gs": "content_type", "gcs": "content_type"}
"""How the file system of a scheme takes a file's content type; others guess it or have none."""

_REMEMBERED_BYTES = 64 * 2**20
"""The records of some twenty thousand evaluations."""
_PART_BYTES = 16 * 2**20
_SIGNS = ("size", "mtime", "ino", "ETag", "LastModified", "etag", "last_modified", "generation")
"""What listings of folders, S3, Google and Azure have that differs for another file in the same place."""


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's file system of a path or URL, and the path in it.

    Raises UserError for a URL that it doesn't know or whose package isn't installed.
    """
    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} can't be opened: {' '.join(str(error).split())}") from None
    if not str(path).strip("/") and "://" in url:
        raise UserError(
            f"{url} names no bucket or folder: write it as {url.split(chr(58))[0]}://bucket/folder"
        )
    return filesystem, str(path)


class Storage:
    """Reads and writes below `root`; paths are relative to it.

    Raises UserError where something can't be written (read-only, disk full), naming the path.
    """

    def __init__(self, root: str) -> None:
        self.filesystem: fsspec.AbstractFileSystem
        self.filesystem, self.root = filesystem_of(root)
        protocols = self.filesystem.protocol
        self.scheme: str = protocols if isinstance(protocols, str) else protocols[0]
        self.is_local = self.scheme == "file"
        self._in_parts: dict[str, int] = {}
        if self.scheme == "s3":
            from resources.s3 import PatientS3

            self.filesystem = PatientS3(**self.filesystem.storage_options)
            self._in_parts = {"chunksize": _PART_BYTES}

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder, also where a listing of before lacks it."""
        self.filesystem.invalidate_cache(f"{self.root}/{path}")
        return bool(self.filesystem.exists(f"{self.root}/{path}"))

    def put(self, path: str, content: bytes, content_type: str | None = None) -> None:
        """Put a file in its place, whole or not at all; `content_type` is how an object store serves it."""
        full = f"{self.root}/{path}"
        with self.writing(path):
            if not self.is_local:
                option = _CONTENT_TYPE.get(self.scheme)
                options = {option: content_type} if option and content_type else {}
                self.filesystem.pipe_file(full, content, **options)
                return
            with appearing(Path(full)) as file:
                file.write(content)

    def put_new(self, path: str, content: bytes) -> None:
        """Put a file where none may be yet; an object store decides between two who do so at once.

        Raises UserError where there is another one. The same content is no other one: it is this very put,
        whose answer was lost.
        """
        if self.is_local:  # then the lease of whoever writes decides
            self.put(path, content)
            return
        with self.writing(path):
            try:
                self.filesystem.pipe_file(f"{self.root}/{path}", content, mode="create")
            except FileExistsError:
                if self.filesystem.cat_file(f"{self.root}/{path}") != content:
                    raise UserError(
                        f"results store: {self.root}/{path} was written by another process meanwhile; "
                        "this one's is not needed"
                    ) from None

    def put_file(self, path: str, source: Path) -> str | None:
        """Put a local file in an object store, a large one in parts; it appears whole.

        Returns the sign that a listing now has of it; None where what is listed may be another file.
        """
        with self.writing(path):
            self.filesystem.put_file(str(source), f"{self.root}/{path}", **self._in_parts)
        listed = self.listing(path).get(path)
        if listed is None or not any(repr(tag) in listed.sign for tag in _etags(source)):
            return None
        return listed.sign

    def put_json(self, path: str, value: Mapping[str, Any]) -> None:
        """Put an object as JSON; it may hold no NaN."""
        self.put(path, json.dumps(value, indent=1, allow_nan=False, default=str).encode())

    def get_json(self, path: str) -> dict[str, Any] | None:
        """The object in a JSON file, or None without the file."""
        try:
            return self._object(path, self.filesystem.cat_file(f"{self.root}/{path}"))
        except FileNotFoundError:
            return None

    def _object(self, path: str, content: bytes) -> dict[str, Any]:
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UserError(f"results store: {self.root}/{path} is not a JSON object; restore or remove it")
        return value

    def json_files(self, pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """``(path below the root, object)`` of the JSON files that match, sorted.

        A file that is as this process last saw it (size, time, checksum of the listing) is not read again.
        """
        for path, (sign, _) in self.listing(pattern).items():
            content: bytes | None = _read_before.get(self.root, path, sign)
            if content is None:
                try:
                    content = self.filesystem.cat_file(f"{self.root}/{path}")
                except FileNotFoundError:
                    continue  # removed since it was listed
                _read_before.put(self.root, path, sign, content)
            yield path, self._object(path, content)

    def listing(self, pattern: str) -> "dict[str, Listed]":
        """The files that match, by path, sorted; ``*`` stands for any text within one name.

        One walk, which an `fsspec` glob takes five times as long for.
        """
        parts = pattern.split("/")
        if self.is_local:
            return dict(_local_listing(self.root, "", parts))
        fixed = list(takewhile(lambda part: "*" not in part, parts))
        self.filesystem.invalidate_cache()
        listed = self.filesystem.find("/".join([self.root, *fixed]), detail=True)
        found = {}
        for full in sorted(listed):
            path = full[len(self.root) + 1 :]
            names = path.split("/")
            if len(names) == len(parts) and all(map(fnmatchcase, names, parts)):
                found[path] = Listed(listing_sign(listed[full]), listed[full]["size"])
        return found

    def matching(self, pattern: str) -> list[str]:
        """The files and folders that match, sorted; a last name without ``*`` is not looked for.

        Only the folders on the way are listed, where `listing` walks through an object store.
        """
        folder, _, name = pattern.rpartition("/")
        found = []
        for parent in self.matching(folder) if "*" in folder else [folder]:
            if "*" not in name:
                found.append(f"{parent}/{name}")
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                for full in self.filesystem.ls(f"{self.root}/{parent}", detail=False, refresh=True):
                    path = full.rstrip("/")[len(self.root) + 1 :]
                    # What is listed of a file is the file itself.
                    if path.startswith(f"{parent}/") and fnmatchcase(path[len(parent) + 1 :], name):
                        found.append(path)
        return sorted(found)

    def read_all(self, paths: Sequence[str]) -> dict[str, bytes | OSError]:
        """The content of each file, or why it can't be read; many at a time from an object store.

        Raises TransientError where the object store doesn't answer.
        """
        if self.is_local:
            return {path: _content(f"{self.root}/{path}") for path in paths}
        found = self.filesystem.cat_ranges([f"{self.root}/{path}" for path in paths], None, None)
        read: dict[str, bytes | OSError] = {}
        for path, content in zip(paths, found, strict=True):
            if isinstance(content, UserError):
                raise content
            if isinstance(content, Exception) and not isinstance(
                content, FileNotFoundError | PermissionError
            ):
                raise TransientError(
                    f"results store: can't read {self.root}/{path}: {' '.join(str(content).split())}; "
                    "try again later"
                ) from content
            read[path] = content
        return read

    def put_table(self, path: str, table: pa.Table) -> None:
        """Put a table as Parquet."""
        self.put(path, parquet(table))

    def get_table(self, path: str) -> pa.Table:
        """The table in a Parquet file."""
        return pq.read_table(io.BytesIO(self.filesystem.cat_file(f"{self.root}/{path}")))

    def keep_only(self, folder: str, names: set[str]) -> None:
        """Remove everything in a folder but these; another process may be doing the same."""
        for path in self.matching(f"{folder}/*"):
            if path.rsplit("/", 1)[1] not in names:
                with suppress(FileNotFoundError):
                    self._remove(f"{self.root}/{path}")

    def _remove(self, full: str) -> None:
        """Remove a file, or a folder with all in it."""
        if self.is_local or not has_magic(full):
            self.filesystem.rm(full, recursive=True)
            return
        for file in self.filesystem.find(full):
            self.filesystem.rm_file(file)

    @contextmanager
    def writing(self, path: str) -> Iterator[None]:
        """Turn what the file system refuses into one line for the user."""
        try:
            yield
        except OSError as error:
            raise TransientError(
                f"results store: can't write {self.root}/{path}: {error.strerror or error}; "
                "free some space or check the permissions of EVAL_STORE, then run it again: "
                "finished samples are kept"
            ) from error


class _ReadBefore:
    """The contents of small files that are read again and again; those not asked for the longest go first."""

    def __init__(self) -> None:
        self._contents: OrderedDict[tuple[str, str], tuple[str, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, root: str, path: str, sign: str) -> bytes | None:
        with self._lock:
            known = self._contents.get((root, path))
            if known is None or known[0] != sign:
                return None
            self._contents.move_to_end((root, path))
            return known[1]

    def put(self, root: str, path: str, sign: str, content: bytes) -> None:
        with self._lock:
            _, before = self._contents.pop((root, path), ("", b""))
            self._contents[root, path] = (sign, content)
            self._bytes += len(content) - len(before)
            while self._bytes > _REMEMBERED_BYTES:
                _, (_, oldest) = self._contents.popitem(last=False)
                self._bytes -= len(oldest)


_read_before = _ReadBefore()


class Listed(NamedTuple):
    """What a listing says of a file: its `sign` differs once another file is put in its place; bytes."""

    sign: str
    size: int


def _local_listing(root: str, below: str, parts: Sequence[str]) -> Iterator[tuple[str, Listed]]:
    """What matches in one folder, and below it."""
    part, *rest = parts
    try:
        with os.scandir(f"{root}/{below}") as entries:
            found = sorted((entry.name, entry) for entry in entries if fnmatchcase(entry.name, part))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, entry in found:
        if rest:
            yield from _local_listing(root, f"{below}{name}/", rest)
            continue
        try:
            stat = entry.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed since it was listed
        sign = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"
        yield f"{below}{name}", Listed(sign, stat.st_size)


def _content(path: str) -> bytes | OSError:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return error


def _etags(path: Path) -> tuple[str, str]:
    """What S3 calls a file's content, by whether it was put at once or in parts."""
    whole, parts = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return f'"{whole.hexdigest()}"', f'"{of_parts}-{len(parts)}"'


def listing_sign(entry: Mapping[str, Any]) -> str:
    """What a listing says of a file that differs once another file is put in its place."""
    return repr([entry.get(name) for name in _SIGNS])


def parquet(table: pa.Table) -> bytes:
    """A table as the content of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
