"""One writer at a time, without a lock server: a file that its owner keeps touching.

A lease is a small JSON file, created exclusively, in which its owner counts upwards. Whoever finds one
watches the *count*, never a timestamp, so that clocks that differ between machines don't matter: a count
that moves belongs to a living owner, one that stands still for `PATIENCE_SECONDS` to a dead one. On the
owner's own machine a process that is gone is noticed at once.
"""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec

from resources.errors import UserError

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
_LOOK_SECONDS = 0.25


class Lease:
    """A held lease; `release` gives it back. Made by `Lease.acquire`."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str, state: dict[str, Any]) -> None:
        self._filesystem = filesystem
        self._path = path
        self._state = state
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls, filesystem: fsspec.AbstractFileSystem, path: str, *, what: str, owner: str = ""
    ) -> "Lease":
        """Take the lease at `path`, also from a dead owner.

        Raises UserError naming the owner while a living process holds it; that takes at most
        `PATIENCE_SECONDS` to find out.
        """
        state = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "owner": owner,
            "beat": 0,
        }
        while True:
            if _create(filesystem, path, state):
                return cls(filesystem, path, state)
            holder = _read(filesystem, path)
            if holder is None:
                continue
            if not _is_dead(filesystem, path, holder):
                raise UserError(
                    f"{what} is being evaluated by another process (pid {holder['pid']} on {holder['host']}"
                    f"{', ' + holder['owner'] if holder['owner'] else ''}); wait for it or end it first"
                )
            _remove(filesystem, path, holder)

    def release(self) -> None:
        """Give the lease back; whoever has taken it over meanwhile keeps it."""
        self._released.set()
        self._thread.join()
        _remove(self._filesystem, self._path, self._state)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            holder = _read(self._filesystem, self._path)
            if holder is None or holder["token"] != self._state["token"]:
                return
            self._state["beat"] += 1
            try:
                _replace(self._filesystem, self._path, self._state)
            except OSError:
                # A full disk or an unreachable store: the writer itself will meet it and say so.
                continue


def _is_dead(filesystem: fsspec.AbstractFileSystem, path: str, holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname() and not process_exists(holder["pid"]):
        return True
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        now = _read(filesystem, path)
        if now is None or now["token"] != holder["token"]:
            return now is None
        if now["beat"] != holder["beat"]:
            return False
    return True


def process_exists(pid: int) -> bool:
    """Whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "file" in filesystem.protocol


def _temporary(path: str, state: dict[str, Any]) -> Path:
    temporary = Path(f"{path}.{state['token']}")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    return temporary


def _create(filesystem: fsspec.AbstractFileSystem, path: str, state: dict[str, Any]) -> bool:
    """Create the file with its whole content, or return False where it exists."""
    try:
        if not _is_local(filesystem):
            filesystem.pipe_file(path, json.dumps(state).encode(), mode="create")
            return True
        temporary = _temporary(path, state)
        try:
            Path(path).hardlink_to(temporary)  # unlike a rename, this fails where the file exists
        finally:
            temporary.unlink()
    except FileExistsError:
        return False
    return True


def _replace(filesystem: fsspec.AbstractFileSystem, path: str, state: dict[str, Any]) -> None:
    if _is_local(filesystem):
        _temporary(path, state).replace(path)
    else:
        filesystem.pipe_file(path, json.dumps(state).encode())


def _read(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(filesystem.cat_file(path))
    except FileNotFoundError:
        return None
    return state


def _remove(filesystem: fsspec.AbstractFileSystem, path: str, holder: dict[str, Any]) -> None:
    """Remove the lease if it is still the holder's: of several processes that try, one does."""
    current = _read(filesystem, path)
    if current is None or current["token"] != holder["token"]:
        return
    if not _is_local(filesystem):
        filesystem.rm_file(path)
        return
    aside = Path(f"{path}.{uuid.uuid4().hex}.removed")
    try:
        Path(path).rename(aside)
    except FileNotFoundError:
        return
    moved = _read(filesystem, str(aside))
    if moved is not None and moved["token"] != holder["token"]:
        # Another process had taken it over between our look and our move: it gets its lease back.
        _create(filesystem, path, moved)
    aside.unlink()
