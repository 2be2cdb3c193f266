"""The API over HTTP: paths and verbs, lists and watches, and the faults that a test asks for.

Built on the standard library's threading server: a request that blocks (a watch, a hanging answer) is then a
few lines of plain code, and refusing connections is closing a socket.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.kubernetes import access
from tests.kubernetes.access import User
from tests.kubernetes.api import Api, merged
from tests.kubernetes.paths import Target, discovery, target
from tests.kubernetes.selectors import field_selector, label_selector
from tests.kubernetes.store import ApiError, Change, Object, Selector, clock

APPLY = "application/apply-patch+yaml"
MERGES = ("application/merge-patch+json", "application/strategic-merge-patch+json")
_REASONS = {500: "InternalError", 504: "Timeout"}  # the others are called as in HTTP
_FLAGS = {"watch", "follow", "timestamps", "previous"}

Logs = Callable[[Object, Mapping[str, str]], Iterable[bytes]]


@dataclass(frozen=True)
class Request:
    """An entry of the log of requests; `status` is None where no answer was sent."""

    method: str
    path: str
    status: int | None
    user: str


@dataclass
class Fault:
    """What goes wrong with the requests of a method ("*": any) whose path and query contain `part`.

    `answer` is a status code, "hang" (no answer while the fault lasts), "cut" (the connection is closed
    without an answer) or "lost" (the same, but the request was carried out).
    """

    method: str
    part: str
    answer: int | str
    until: float
    times: float

    def lasts(self) -> bool:
        """Whether further requests meet it."""
        return self.times > 0 and time.monotonic() < self.until


class Server:
    """Serves an Api on one port of loopback, from `open` to `close`, and records the requests."""

    def __init__(self, api: Api, logs: Logs, tokens: dict[str, User]) -> None:
        self.api, self.logs, self.tokens = api, logs, tokens
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.failures: list[Exception] = []
        self.lock = threading.Lock()
        self.port = 0
        self._place: socket.socket | None = None
        self._listener: _Listener | None = None

    @property
    def answering(self) -> bool:
        """Whether connections are accepted."""
        return self._listener is not None

    def reserve(self) -> None:
        """Take a port of loopback."""
        # Bound but not listening: keeps the port ours while connections to it are refused.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = int(self._place.getsockname()[1])

    def open(self) -> None:
        """Accept connections."""
        self._listener = _Listener(self)
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), name="api-server").start()

    def close(self) -> None:
        """Refuse connections, and end those that are open."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.end()

    def release(self) -> None:
        """Give the port back."""
        if self._place is not None:
            self._place.close()

    def fault_of(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets, counted as met."""
        with self.lock:
            for fault in self.faults:
                if fault.lasts() and fault.method in ("*", method) and fault.part in path:
                    fault.times -= 1
                    return fault
        return None


class _Listener(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for the requests
    request_queue_size = 128

    def __init__(self, owner: Server) -> None:
        self.owner = owner
        self.ending = threading.Event()
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", owner.port), _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # the HTTP server's own would ask DNS for the address's name

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a word; other errors become answers of their own."""

    def end(self) -> None:
        self.ending.set()
        self.shutdown()
        self.socket.close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, *_: Any) -> None:
        """Nothing: the requests are recorded."""

    def handle_request(self) -> None:
        """Answer one request, or fail it as a fault asks."""
        owner = self.server.owner
        self.url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(self.url.query).items()}
        for flag in _FLAGS & self.query.keys():  # the Python client writes "True"
            self.query[flag] = self.query[flag].lower().replace("1", "true")
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.user = User("system:anonymous")
        self.recorded = self.muted = False
        fault = owner.fault_of(self.command, unquote(self.path))
        try:
            if fault is not None and fault.answer != "lost":
                self._fail(fault)
                return
            self.muted = fault is not None
            self.user = access.authenticate(owner.tokens, self.headers.get("Authorization", ""))
            self._route()
        except ApiError as error:
            self._send(error.code, error.body)
        except ConnectionError:
            self.close_connection = True
        except Exception as error:
            owner.failures.append(error)
            self._send(500, ApiError(500, "InternalError", f"Internal error occurred: {error!r}").body)
        finally:
            if not self.recorded:
                self._record(None)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request  # noqa: N815  (the base looks these up)

    def _record(self, status: int | None) -> None:
        self.recorded = True
        self.server.owner.requests.append(Request(self.command, self.path, status, self.user.name))

    def _fail(self, fault: Fault) -> None:
        if isinstance(fault.answer, int):
            reason = _REASONS.get(fault.answer, HTTPStatus(fault.answer).phrase.replace(" ", ""))
            self._send(fault.answer, ApiError(fault.answer, reason, f"{reason} (injected)").body)
            return
        while fault.answer == "hang" and time.monotonic() < fault.until:
            if self.server.ending.wait(0.05):
                break
        self.close_connection = True

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(clock().timestamp() if timestamp is None else timestamp)

    def _send(self, code: int, body: Object | str) -> None:
        if self.muted:
            self.close_connection = True
            return
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self._record(code)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, chunks: Iterable[bytes], kind: str) -> None:
        if self.muted:
            self.close_connection = True
            return
        self._record(200)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            if chunk:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def _route(self) -> None:
        if (found := discovery(self.url.path)) is not None:
            self._send(200, found)
            return
        api = self.server.owner.api
        asked = target(self.command, unquote(self.url.path), self.query.get("watch") == "true")
        access.authorize(api.store, self.user, asked)
        match asked.verb, asked.subresource:
            case "watch", _:
                self._stream(self._watch(asked), "application/json")
            case "get", "log":
                pod = api.store.get("pods", asked.namespace, asked.name)
                self._stream(self.server.owner.logs(pod, self.query), "text/plain")
            case "list" | "deletecollection", _:
                self._send(200, self._collection(asked))
            case "create", "" if not asked.name:
                self._send(201, self._create(asked))
            case _:
                self._send(*self._act(asked))

    def _body(self) -> Object:
        content_type = self.headers.get("Content-Type", "application/json")
        is_yaml = "yaml" in content_type
        if not is_yaml and "json" not in content_type:
            text = "the body of the request was in an unknown format - accepted media types include: "
            raise ApiError(415, "UnsupportedMediaType", f"{text}application/json, application/yaml")
        try:
            body = (yaml.safe_load if is_yaml else json.loads)(self.content or b"{}")
        except (yaml.YAMLError, ValueError) as error:
            raise ApiError(400, "BadRequest", f"the object provided is unrecognized: {error}") from None
        if not isinstance(body, dict):
            raise ApiError(415, "UnsupportedMediaType", "the body of the request was not an object")
        return body

    @property
    def _dry_run(self) -> bool:
        return self.query.get("dryRun") == "All"

    def _selector(self, plural: str) -> Selector:
        by_label = label_selector(text) if (text := self.query.get("labelSelector")) else None
        by_field = field_selector(plural, text) if (text := self.query.get("fieldSelector")) else None
        return lambda obj: (by_label is None or by_label(obj)) and (by_field is None or by_field(obj))

    def _collection(self, asked: Target) -> Object:
        api, kind = self.server.owner.api, asked.kind
        with api.store.lock:
            items = api.store.select(kind.plural, asked.namespace, self._selector(kind.plural))
            metadata = {"resourceVersion": str(api.store.version)}
        if asked.verb == "deletecollection":
            for obj in items:
                api.delete(obj, self.query | self._body())
        name = f"{kind.name}List"
        return {"kind": name, "apiVersion": kind.api_version, "metadata": metadata, "items": items}

    def _create(self, asked: Target) -> Object:
        api, body = self.server.owner.api, self._body()
        if asked.kind.plural.startswith("selfsubject"):
            return access.review(api.store, self.user, body)
        return api.create(asked.kind.plural, asked.namespace, body, dry_run=self._dry_run)

    def _act(self, asked: Target) -> tuple[int, Object]:
        api, plural, name, part = self.server.owner.api, asked.kind.plural, asked.name, asked.subresource
        content_type = self.headers.get("Content-Type", "").split(";")[0]
        if content_type == APPLY and api.store.find(plural, asked.namespace, name) is None:
            access.authorize(api.store, self.user, replace(asked, verb="create"))
            body = merged(self._body(), {"metadata": {"name": name}})
            return 201, api.create(plural, asked.namespace, body, dry_run=self._dry_run)
        obj = api.store.get(plural, asked.namespace, name)
        match asked.verb, part:
            case "get", "" | "status":
                return 200, obj
            case "create", "eviction":
                options = self._body().get("deleteOptions") or {}
                api.evict(obj, options)
                return 201, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            case "create", "token" if plural == "serviceaccounts":
                return 201, access.issue_token(self.server.owner.tokens, obj, self._body())
            case "delete", "":
                return 200, api.delete(obj, self.query | self._body())
            case "update", "" | "status":
                return 200, api.replace(obj, self._body(), subresource=part, dry_run=self._dry_run)
            case "patch", "" | "status" if content_type in (*MERGES, APPLY):
                return 200, api.patch(obj, self._body(), subresource=part, dry_run=self._dry_run)
            case "patch", "" | "status":
                text = f"the body of the request was in an unknown format: {content_type}"
                raise ApiError(415, "UnsupportedMediaType", text)
        raise ApiError(404, "NotFound", "the server could not find the requested resource")

    def _watch(self, asked: Target) -> Iterable[bytes]:
        store, plural, selector = (
            self.server.owner.api.store,
            asked.kind.plural,
            self._selector(asked.kind.plural),
        )
        ends = time.monotonic() + float(self.query.get("timeoutSeconds", 1800))
        since = int(self.query.get("resourceVersion") or 0)
        if not since:
            with store.lock:
                since, present = store.version, store.select(plural, asked.namespace, selector)
            yield from (_event("ADDED", obj) for obj in present)
        while time.monotonic() < ends and not self.server.ending.is_set():
            try:
                with store.lock:
                    changes = store.changes(plural, since)
                    since = store.version
            except ApiError as error:
                yield _event("ERROR", error.body)
                return
            for change in changes:
                if asked.namespace in ("", change.last["metadata"].get("namespace", "")):
                    yield _seen(change, selector)
            with store.lock:
                if store.version == since:
                    store.lock.wait(0.1)


def _seen(change: Change, selector: Selector) -> bytes:
    before = change.before is not None and selector(change.before)
    after = change.after is not None and selector(change.after)
    if not before and not after:
        return b""
    return _event("MODIFIED" if before and after else "ADDED" if after else "DELETED", change.last)


def _event(kind: str, obj: Object) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"
