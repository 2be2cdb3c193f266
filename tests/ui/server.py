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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT

START_SECONDS = 120.0


@contextmanager
def dagster_dev(log: Path) -> Iterator[str]:
    """Webserver, daemon and code server with this process's environment; yields the UI's address."""
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
            _end_group(process)


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


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    for stop, patience in ((signal.SIGINT, 20.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + patience
        try:
            os.killpg(process.pid, stop)
            while time.monotonic() < deadline:
                process.poll()  # reaps the parent, without which its group never is empty
                os.killpg(process.pid, 0)
                threading.Event().wait(0.1)
        except ProcessLookupError:
            return
