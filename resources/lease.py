"""One writer at a time, without a lock server: a file that says who, and one that its owner keeps changing.

A lease is a small JSON file, created exclusively and never changed; beside it its owner counts upwards in a
file of its own. Whoever finds a lease watches the *count*, never a timestamp, so that clocks that differ
between machines don't matter: a count that moves belongs to a living owner, one that stands still for
`PATIENCE_SECONDS` to a dead one, whose lease is taken over. On the owner's own machine a process that is gone
is noticed at once. While the store does not answer nobody can count: a look that had to wait for it says
nothing of the owner, and patience begins anew.

An owner that only slept that long (a stopped process, a machine without a network) is not told. It has to
look before it writes: `Lease.check`. Its count is named after its own token, so that waking up it can't make
the lease its own again by going on to count.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from resources.errors import BusyError, UserError

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
_LOOK_SECONDS = 0.25
_UNREADABLE = {"token": "", "host": "", "pid": 0, "owner": ""}


class Lease:
    """A held lease; `release` gives it back. Made by `Lease.acquire`."""

    def __init__(
        self, filesystem: fsspec.AbstractFileSystem, path: str, what: str, state: dict[str, Any]
    ) -> None:
        self._filesystem = filesystem
        self._path = path
        self._what = what
        self._state = state
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        filesystem: fsspec.AbstractFileSystem,
        path: str,
        *,
        what: str,
        owner: str = "",
        doing: str = "is being evaluated",
    ) -> "Lease":
        """Take the lease at `path`, also from a dead owner.

        Raises BusyError naming the owner while a living process holds it; that takes at most
        `PATIENCE_SECONDS` to find out.
        """
        state = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "owner": owner,
        }
        while True:
            if _create(filesystem, path, state):
                return cls(filesystem, path, what, state)
            holder = _read(filesystem, path)
            if holder is None:
                continue
            if holder["token"] == state["token"]:  # it was created, and the answer was lost
                return cls(filesystem, path, what, state)
            if not _is_dead(filesystem, path, holder):
                raise BusyError(
                    f"{what} {doing} by another process ({_named(holder)}); wait for it or end it first"
                )
            _remove(filesystem, path, holder)

    @property
    def name(self) -> str:
        """The name of the lease's file."""
        return self._path.rsplit("/", 1)[1]

    def check(self) -> None:
        """Raise UserError where another process has taken the lease over. Before every write."""
        holder = _read(self._filesystem, self._path)
        if holder is None or holder["token"] != self._state["token"]:
            by = f"taken over by another process ({_named(holder)})" if holder else "removed"
            raise UserError(
                f"{self._what}: the lease of this process (pid {self._state['pid']}) was {by} after it had "
                f"shown no life for {PATIENCE_SECONDS:.0f} s; it writes nothing more, and the finished "
                "samples are kept"
            )

    def release(self) -> None:
        """Give the lease back; whoever has taken it over meanwhile keeps it."""
        self._released.set()
        self._thread.join()
        # A store that refuses even this has refused the writer before; the next one finds us gone.
        with suppress(OSError, UserError):
            _remove(self._filesystem, self._path, self._state)

    def _beat(self) -> None:
        count = 0
        while not self._released.wait(BEAT_SECONDS):
            count += 1
            # A full disk or an unreachable store, whatever its client raises: the writer itself will meet it
            # and say so. Without this thread it would lose its lease once the store is back.
            with suppress(Exception):
                self._filesystem.pipe_file(_count_path(self._path, self._state), str(count).encode())


def _named(holder: dict[str, Any]) -> str:
    owner = f", {holder['owner']}" if holder["owner"] else ""
    return f"pid {holder['pid']} on {holder['host']}{owner}"


def _is_dead(filesystem: fsspec.AbstractFileSystem, path: str, holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname() and not process_exists(holder["pid"]):
        return True
    silent = 0.0
    seen = _count(filesystem, path, holder)
    while silent < PATIENCE_SECONDS:
        asked = time.monotonic()
        time.sleep(_LOOK_SECONDS)
        now = _read(filesystem, path)
        if now is None or now["token"] != holder["token"]:
            return now is None
        if _count(filesystem, path, holder) != seen:
            return False
        took = time.monotonic() - asked
        silent = silent + took if took < BEAT_SECONDS else 0.0
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


def _count_path(path: str, holder: dict[str, Any]) -> str:
    return f"{path}.{holder['token']}.count"


def _count(filesystem: fsspec.AbstractFileSystem, path: str, holder: dict[str, Any]) -> bytes:
    try:
        filesystem.invalidate_cache()
        return bytes(filesystem.cat_file(_count_path(path, holder)))
    except FileNotFoundError:
        return b""


def _create(filesystem: fsspec.AbstractFileSystem, path: str, state: dict[str, Any]) -> bool:
    """Create the file with its whole content, or return False where it exists."""
    try:
        if not _is_local(filesystem):
            filesystem.pipe_file(path, json.dumps(state).encode(), mode="create")
            return True
        temporary = Path(f"{path}.{state['token']}")
        try:
            temporary.write_text(json.dumps(state), encoding="utf-8")
            with suppress(FileNotFoundError):  # the owner has committed just now and tidied up
                Path(path).hardlink_to(temporary)  # unlike a rename, this fails where the file exists
                return True
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        return False
    return False


def _read(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        return {**_UNREADABLE, **json.loads(filesystem.cat_file(path))}
    except FileNotFoundError:
        return None
    except ValueError:
        # A machine that lost its power can leave an empty file: nobody's, so nobody counts in it.
        return _UNREADABLE


def _remove(filesystem: fsspec.AbstractFileSystem, path: str, holder: dict[str, Any]) -> None:
    """Remove the lease if it is still the holder's: of several processes that try, one does."""
    with suppress(FileNotFoundError):
        filesystem.rm_file(_count_path(path, holder))
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
    aside.unlink(missing_ok=True)
