"""A proxy in front of an S3 server that does what real ones do on a bad day."""

import http.client
import http.server
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_PASSED_ON = ("content-type", "etag", "last-modified", "content-range", "accept-ranges")


class Weather:
    """What the proxy does to requests: those that `troubled` counts down meet trouble first."""

    def __init__(self) -> None:
        self.throttled = 0
        """So many requests of each kind (method and what the key ends with) are told to slow down."""
        self.cut = 0
        """After them, so many have their connection cut, half of them after their request was carried out."""
        self.hidden: str | None = None
        """Listings lack keys that hold this text."""
        self.down = threading.Event()
        """Set: every connection is cut at once."""
        self.kinds: dict[str, int] = {}
        """How many requests of each kind there were."""
        self.bytes: dict[str, int] = {}
        """How many bytes those of each kind brought there and back, without their headers."""
        self._lock = threading.Lock()

    def trouble(self, kind: str) -> str:
        """What happens to a request: nothing, ``throttled``, ``cut`` (before) or ``lost`` (its answer)."""
        with self._lock:
            met = self.kinds[kind] = self.kinds.get(kind, 0) + 1
            if self.down.is_set():
                return "cut"
        if met <= self.throttled:
            return "throttled"
        if met <= self.throttled + self.cut:
            return "lost" if met % 2 else "cut"
        return ""

    def carried(self, kind: str, count: int) -> None:
        """Count what a request carried."""
        with self._lock:
            self.bytes[kind] = self.bytes.get(kind, 0) + count


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    weather: Weather
    behind: str


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _handle(self) -> None:
        weather = self.server.weather
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        kind = f"{self.command} {PurePosixPath(urlsplit(self.path).path).suffix}"
        trouble = weather.trouble(kind)
        if trouble == "throttled":
            self._answer(503, {"content-type": "application/xml"}, _SLOW_DOWN)
            return
        if trouble == "cut":
            self.close_connection = True
            return
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        weather.carried(kind, len(body) + len(content))
        if trouble == "lost":
            self.close_connection = True
            return
        if weather.hidden and b"<ListBucketResult" in content[:300]:
            content = _without(content, weather.hidden)
        kept = {name: value for name, value in answer.getheaders() if _is_kept(name)}
        self._answer(answer.status, kept, content, answer.getheader("content-length"))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815  (names of the base class)

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        is_head = self.command == "HEAD"
        self.send_header("content-length", (length or "0") if is_head else str(len(content)))
        self.end_headers()
        if not is_head:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _is_kept(name: str) -> bool:
    return name.lower() in _PASSED_ON or name.lower().startswith("x-amz")


def _without(listing: bytes, text: str) -> bytes:
    def kept(match: "re.Match[bytes]") -> bytes:
        return b"" if text in unquote(match[1].decode()) else match[0]

    return re.sub(rb"<Contents>\s*<Key>([^<]*)</Key>.*?</Contents>", kept, listing, flags=re.DOTALL)


@contextmanager
def bad_weather(server: str) -> Iterator[tuple[str, Weather]]:
    """A proxy on loopback in front of the S3 server at this URL; yields its own URL and its weather."""
    with _Server(("127.0.0.1", 0), _Handler) as proxy:
        proxy.weather = Weather()
        proxy.behind = urlsplit(server).netloc
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}", proxy.weather
        finally:
            proxy.shutdown()
            thread.join()
