"""`dagster dev` as `make ui` starts it, on a project of its own."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT

START_SECONDS = 120.0
PATIENCE_SECONDS = 15.0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@contextmanager
def dagster_dev(log: Path, stops: Sequence[signal.Signals] = STOPS) -> Iterator[str]:
    """Webserver, daemon and code server with this process's environment; yields the UI's address.

    At the end the whole group gets the signals `stops`, one after the other until it is gone.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    dagster = Path(sys.executable).with_name("dagster")
    command = [dagster, "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", port]
    with (
        log.open("w") as output,
        subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            # The parent's children outlive it, so the whole group is ended below.
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait_for(url, process, log)
            yield url
        finally:
            _end_group(process, stops)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/server_info", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dagster dev did not start:\n{log.read_text()[-3000:]}") from None
            threading.Event().wait(0.2)


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
