"""A real MLflow server on loopback, and a proxy in front of it that fails as told."""

import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.servers import free_port, serving


@dataclass(frozen=True, slots=True)
class MlflowServer:
    """A server that runs: its URL and its SQLite file."""

    url: str
    database: Path


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Start ``mlflow server`` with SQLite and artifacts in `folder`.

    Raises AssertionError with the server's log where it doesn't start.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    database = folder / "mlflow.db"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{database}"),
        *("--artifacts-destination", f"{folder}/artifacts"),
    ]
    with serving(
        command, f"{url}/health", folder / "server.log", folder=folder, environment=environment,
        stops=(signal.SIGTERM, signal.SIGKILL),
    ):  # fmt: skip
        yield MlflowServer(url, database)


class Proxy:
    """Passes requests on to a server, but answers those whose path has a text in it as told.

    `faults` maps a part of the path to an answer: a status (with Retry-After where it is 429), a status and a
    body, "cut" (half of the real body, then the connection is closed), "once" (503, and after that no fault),
    or "hang" (no answer while the proxy lives). `after` maps a part of a POST's path to what is done once the
    real answer is there and before it is passed on. `seen` collects ``METHOD path`` of each request,
    `authorizations` their headers.
    """

    def __init__(self, target: str) -> None:
        self.faults: dict[str, int | str | tuple[int, bytes]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.seen: list[str] = []
        self.authorizations: list[str] = []
        self._ended = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                proxy.seen.append(f"{self.command} {self.path}")
                proxy.authorizations.append(self.headers.get("Authorization", ""))
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                part = next((part for part in list(proxy.faults) if part in self.path), "")
                fault = proxy.faults.get(part)
                if fault == "hang":
                    proxy._ended.wait()
                    self.close_connection = True
                elif fault == "once":
                    del proxy.faults[part]
                    self._answer(503, b"")
                elif isinstance(fault, tuple):
                    self._answer(*fault)
                elif isinstance(fault, int):
                    retry = {"Retry-After": "3600"} if fault == 429 else {}
                    self._answer(fault, b'{"message": "no"}', retry)
                else:
                    headers = {
                        k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")
                    }
                    request = urllib.request.Request(
                        f"{target}{self.path}", body or None, headers, method=self.command
                    )
                    try:
                        with urllib.request.urlopen(request, timeout=60) as answer:
                            content = answer.read()
                        for name, done in proxy.after.items():
                            if name in self.path and self.command == "POST":
                                done()
                        self._answer(answer.status, content, cut=fault == "cut")
                    except urllib.error.HTTPError as error:
                        with error:
                            self._answer(error.code, error.read())

            def _answer(
                self,
                status: int,
                content: bytes,
                extra: Mapping[str, str] | None = None,
                *,
                cut: bool = False,
            ) -> None:
                self.send_response(status)
                for name, value in (extra or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = cut

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _any  # noqa: N815  (http.server's names)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the tests read `seen`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop it; what hangs ends."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
