"""Serves readings to Prometheus; collected in the background, so that no scrape waits for a database."""

import gzip
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from resources.errors import UserError
from resources.telemetry.families import Readings

log = logging.getLogger("evaluation.metrics")

Source: TypeAlias = Callable[[], Readings]
REQUEST_SECONDS = 10.0
"""After which a client that neither asks nor reads is hung up on."""


@dataclass(frozen=True, slots=True)
class _Page:
    plain: bytes
    zipped: bytes


class Exporter:
    """Collects from each source every `interval` seconds, in a thread of its own: one that hangs is alone.

    A source that raises keeps its last readings; that it did is a reading of the exporter's own.
    """

    def __init__(self, sources: Mapping[str, Source], interval: float) -> None:
        self._sources = sources
        self._interval = interval
        self._readings: dict[str, Readings] = {}
        self._own = Readings()
        self._errors = dict.fromkeys(sources, 0)
        self._lock = threading.Lock()
        self._page: _Page | None = None
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to collect."""
        for name in self._sources:
            thread = threading.Thread(target=self._keep_collecting, args=(name,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout: float = 2.0) -> None:
        """Collect no more; waits so long for what is being read."""
        self._over.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def collect(self, name: str) -> None:
        """Read one source now and make the page anew; never raises."""
        start = time.monotonic()
        try:
            readings: Readings | None = self._sources[name]()
        except Exception as error:  # whatever it is, the next look may work
            readings = None
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            log.warning("%s can't be read: %s", name, " ".join(text.split()))
        with self._lock:
            if readings is None:
                self._errors[name] += 1
            else:
                self._readings[name] = readings
                taken = time.monotonic() - start
                self._own.add("llm_evaluation_exporter_collect_seconds", taken, name)
                self._own.add("llm_evaluation_exporter_collected_timestamp_seconds", time.time(), name)
            for source, count in self._errors.items():
                self._own.add("llm_evaluation_exporter_errors_total", count, source)
            together = Readings()
            for part in (*self._readings.values(), self._own):
                together.update(part)
            text_page = together.text()
            self._page = _Page(text_page, gzip.compress(text_page, compresslevel=1))

    def page(self) -> _Page | None:
        """What a scrape gets; None before anything was collected."""
        return self._page

    @property
    def is_ready(self) -> bool:
        """Whether every source was tried once."""
        with self._lock:
            return all(name in self._readings or self._errors[name] for name in self._sources)

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def _keep_collecting(self, name: str) -> None:
        while not self._over.is_set():
            self.collect(name)
            self._over.wait(self._interval)

    def serve(self, host: str, port: int, started: Callable[[int], None] = lambda _: None) -> None:
        """Serve ``/metrics``, ``/ready`` and ``/healthy`` until SIGTERM or SIGINT; `started` gets the port.

        To be called in the main thread. Raises UserError where the address can't be listened on.
        """
        try:
            server = Server((host, port), self)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"metrics: can't listen on {host}:{port}: {reason}; choose another port"
            ) from None
        with server:
            for number in (signal.SIGTERM, signal.SIGINT):
                # From a thread: shutdown() waits for the loop that this handler interrupts.
                signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
            self.start()
            started(server.server_address[1])
            server.serve_forever(poll_interval=0.2)
        self.stop()


class Server(ThreadingHTTPServer):
    """HTTP of an exporter."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], exporter: Exporter) -> None:
        self.exporter = exporter
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        """Answer a scrape or a probe."""
        exporter = self.server.exporter
        match self.path.partition("?")[0]:
            case "/metrics":
                page = exporter.page()
                if page is None:
                    self._answer(503, b"nothing is collected yet\n")
                elif "gzip" in self.headers.get("Accept-Encoding", ""):
                    self._answer(200, page.zipped, CONTENT_TYPE_PLAIN_0_0_4, "gzip")
                else:
                    self._answer(200, page.plain, CONTENT_TYPE_PLAIN_0_0_4)
            case "/ready":
                self._answer(200 if exporter.is_ready else 503, b"")
            case "/healthy":
                self._answer(200 if exporter.is_alive else 503, b"")
            case "/":
                self._answer(200, b"metrics of continuous evaluation: /metrics\n")
            case _:
                self._answer(404, b"there is /metrics, /ready and /healthy\n")

    def _answer(self, status: int, content: bytes, kind: str = "text/plain", encoding: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """A line for each scrape helps nobody."""
