"""Containers as local processes: each with everything it starts, the memory of it all, and its end."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

OUT_OF_MEMORY = "OOMKilled"
_FRESH_SECONDS = 0.25
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Process(NamedTuple):
    parent: int
    session: int
    started: int
    memory: int


class _Table:
    """The processes of this machine, read for all containers at once and not more often than needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = 0.0
        self._processes: dict[int, _Process] = {}

    def read(self, *, fresh: bool = False) -> dict[int, _Process]:
        with self._lock:
            if fresh or time.monotonic() > self._read_at + _FRESH_SECONDS:
                self._processes = dict(_processes())
                self._read_at = time.monotonic()
            return self._processes


def _processes() -> list[tuple[int, _Process]]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                parent, session, started, pages = (int(fields[index]) for index in (1, 3, 19, 21))
                found.append((int(entry.name), _Process(parent, session, started, pages * _PAGE)))
    return found


_TABLE = _Table()


class Process:
    """The first process of a container and all that descend from it, also in sessions of their own.

    Raises OSError where the command can't be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        with log.open("wb") as output:
            self._first = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._known: set[tuple[int, int]] = set()
        self._sessions = {self._first.pid}
        self._watched_at = 0.0
        self._killed_for_memory = False

    @property
    def pid(self) -> int:
        """The first process's id."""
        return self._first.pid

    def members(self, *, fresh: bool = True) -> dict[int, int]:
        """The memory in bytes of each living process, by its id."""
        table, found = _TABLE.read(fresh=fresh), dict[int, int]()
        pending = {
            pid
            for pid, process in table.items()
            if process.session in self._sessions or (pid, process.started) in self._known
        }
        while pending:
            found |= {pid: table[pid].memory for pid in pending}
            pending = {pid for pid, process in table.items() if process.parent in found} - found.keys()
        self._known |= {(pid, table[pid].started) for pid in found}
        return found

    def watch(self, limit: int | None) -> None:
        """Kill it all when its memory exceeds `limit` bytes."""
        if time.monotonic() < self._watched_at + _FRESH_SECONDS:
            return
        self._watched_at = time.monotonic()
        memory = sum(self.members(fresh=False).values())
        if limit is not None and memory > limit and self._first.poll() is None:
            self._killed_for_memory = True
            self.kill()

    def signal(self, number: int) -> None:
        """Send a signal to the first process, as a container gets it."""
        if self._first.poll() is None:
            self._first.send_signal(number)

    def kill(self) -> None:
        """Kill it all."""
        while members := self.members():
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._first.poll()  # a process that is not waited for never goes
        self._first.wait()

    def ended(self) -> tuple[int, str] | None:
        """Exit code and reason as Kubernetes writes them; None while the first process runs."""
        code = self._first.poll()
        if code is None:
            return None
        self.kill()  # a container ends with its first process
        code = 128 - code if code < 0 else code
        return code, OUT_OF_MEMORY if self._killed_for_memory else "Error" if code else "Completed"
