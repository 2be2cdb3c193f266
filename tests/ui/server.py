"""`dagster dev` as `make ui` starts it, on a project of its own."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT
from tests.servers import STOPS, free_port, serving


@contextmanager
def dagster_dev(
    log: Path, stops: Sequence[signal.Signals] = STOPS, workspace: str = "workspace.yaml"
) -> Iterator[str]:
    """Webserver, daemon and code server with this process's environment; yields the UI's address.

    At the end all of them get the signals `stops`, one after the other until they are gone.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    dagster = Path(sys.executable).with_name("dagster")
    command: list[str | Path] = [dagster, "dev", "-w", workspace, "-h", "127.0.0.1", "-p", str(port)]
    with serving(command, f"{url}/server_info", log, folder=ROOT, stops=stops):
        yield url
