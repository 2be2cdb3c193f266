"""Real servers for tests: each a process group of its own on loopback, ended with the test."""

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 120.0
PATIENCE_SECONDS = 15.0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str | Path],
    ready: str,
    log: Path,
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    stops: Sequence[signal.Signals] = STOPS,
) -> Iterator[None]:
    """Run a server until the block ends; enters it once the URL `ready` answers with 200.

    At the end its whole process group gets the signals `stops`, one after the other until it is gone: servers
    start children that outlive them. Raises AssertionError with the end of its log where it doesn't start.
    """
    with (
        log.open("w") as output,
        subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait_for(ready, process, log)
            yield
        finally:
            _end_group(process, stops)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start:\n{log.read_text()[-4000:]}") from None
            threading.Event().wait(0.1)


def _end_group(process: "subprocess.Popen[bytes]", stops: Sequence[signal.Signals]) -> None:
    for stop in stops:
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            os.killpg(process.pid, stop)
            while time.monotonic() < deadline:
                process.poll()  # reaps the parent, without which its group never is empty
                os.killpg(process.pid, 0)
                threading.Event().wait(0.1)
        except ProcessLookupError:
            return
