"""A Hugging Face Hub on loopback: the API as clients call it, a CDN of another origin, and faults on order.

Repositories are made of commits that tests write. Large files (safetensors) are answered with a redirect to
the CDN with a signed address, as the Hub does. What was asked, with which token, and how many bytes of a
file went out is in `Hub.requests`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from resources.keys import ModelKey
from resources.registries.hub import HubRegistry

SIGNATURE = "signed-by-the-hub"
WEIGHTS = "cdn/"
"""The pattern of large files, for faults."""


@dataclass
class Request:
    host: str
    path: str
    query: str
    token: str | None
    range: str | None
    sent: int = 0
    """Bytes of a file that went out."""


@dataclass
class Fault:
    """Something that goes wrong `times` times for requests whose host and path match."""

    pattern: str
    times: int
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None
    """Cut (or hold, with `held`) the file after so many bytes."""
    spoil: bool = False
    ignore_range: bool = False
    hang: bool = False
    held: threading.Event | None = None
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Repo:
    name: str
    gated: bool = False
    private: bool = False
    readers: set[str] = field(default_factory=set)
    """Tokens that may read it where it is gated or private."""
    labels: tuple[str, ...] = ("safetensors",)
    task: str = "text-generation"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    """The branch main, youngest last."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return self.history[-1]

    def commit(self, changes: Mapping[str, bytes], remove: tuple[str, ...] = ()) -> str:
        """Put a commit on main; returns its SHA."""
        before = self.commits[self.head] if self.history else {}
        files = {path: content for path, content in {**before, **changes}.items() if path not in remove}
        text = f"{self.name} {len(self.commits)} " + "".join(
            f"{p} {git_id(c)}" for p, c in sorted(files.items())
        )
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.history.append(sha)
        return sha

    def force_push(self, changes: Mapping[str, bytes]) -> str:
        """Replace the head by another commit."""
        gone = self.history.pop()
        sha = self.commit(changes)
        del self.commits[gone]
        return sha


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


class Hub:
    """The state of the server. `url` is the endpoint, `cdn` where large files come from."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.page = 100
        self.url = self.cdn = ""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def repo(self, name: str, files: Mapping[str, bytes]) -> Repo:
        """A new repository with one commit."""
        repo = self.repos[name] = Repo(name)
        repo.commit(files)
        return repo

    def fails(
        self, pattern: str, status: int, times: int = 1, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a status."""
        self._faults.append(Fault(pattern, times, status=status, headers=headers or {}))

    def cuts(self, pattern: str, after: int, times: int = 1) -> None:
        """Close the connection after so many bytes of a file."""
        self._faults.append(Fault(pattern, times, after=after))

    def spoils(self, pattern: str, times: int = 1) -> None:
        """Send other bytes than the file's."""
        self._faults.append(Fault(pattern, times, spoil=True))

    def knows_no_ranges(self, pattern: str, times: int = 1) -> None:
        """Send a file from its start, whatever range is asked for."""
        self._faults.append(Fault(pattern, times, ignore_range=True))

    def hangs(self, pattern: str) -> None:
        """Take requests and answer none, until `heal`."""
        self._faults.append(Fault(pattern, 1_000, hang=True))

    def holds(self, pattern: str, after: int) -> Fault:
        """Stop in the middle of a file until `released`; `held` is set when it stands there."""
        fault = Fault(pattern, 1, after=after, held=threading.Event())
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            for fault in self._faults:
                fault.released.set()
            self._faults.clear()

    def sent(self, path: str) -> int:
        """Bytes that went out of the content whose path or id ends so."""
        return sum(request.sent for request in self.requests if request.path.endswith(path))

    def asked(self, part: str) -> list[Request]:
        """The requests whose path contains this."""
        return [request for request in self.requests if part in request.path]

    def fault_of(self, place: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times and re.search(fault.pattern, place):
                    fault.times -= 1
                    return fault
        return None

    def content(self, oid: str) -> bytes | None:
        for repo in self.repos.values():
            for files in repo.commits.values():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == oid:
                        return content
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    host: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.path_asked = unquote(parts.path)
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        self.asked = Request(self.host, self.path_asked, parts.query, token, self.headers.get("range"))
        self.hub.requests.append(self.asked)
        self.fault = self.hub.fault_of(f"{self.host}{self.path_asked}")
        try:
            if self.fault is not None and self.fault.hang:
                self.fault.released.wait(60)
                self.close_connection = True
                return None
            if self.fault is not None and self.fault.status:
                return self._refuse(self.fault.status, **self.fault.headers)
            if self.host == "cdn":
                return self._cdn()
            if token is not None and token not in self.hub.tokens:
                message = {"X-Error-Message": "Invalid credentials in Authorization header"}
                return self._refuse(401, **message)
            if self.path_asked == "/api/models":
                return self._models(parse_qs(parts.query))
            for pattern, answer in (
                (r"/api/models/(?P<repo>.+)/refs", self._refs),
                (r"/api/models/(?P<repo>.+)/revision/(?P<revision>[^/]+)", self._info),
                (r"/api/models/(?P<repo>.+)/commits/main", self._commits),
                (r"/api/models/(?P<repo>.+)/auth-check", self._auth_check),
                (r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._resolve),
            ):
                match = re.fullmatch(pattern, self.path_asked)
                if match is not None:
                    return self._of_repo(match.groupdict(), answer)
            return self._refuse(404)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _of_repo(self, groups: dict[str, str], answer: object) -> None:
        repo = self.hub.repos.get(groups.pop("repo"))
        token = self.asked.token
        if repo is None or (repo.private and token not in repo.readers):
            return self._refuse(404 if token else 401, **{"X-Error-Code": "RepoNotFound"})
        revision = groups.pop("revision", None)
        if revision is not None and revision not in repo.commits:
            return self._refuse(404, **{"X-Error-Code": "RevisionNotFound"})
        if revision is not None:
            groups["commit"] = revision
        assert callable(answer)
        answer(repo, **groups)
        return None

    def _models(self, query: dict[str, list[str]]) -> None:
        found = [
            repo
            for name, repo in sorted(self.hub.repos.items())
            if name.startswith(f"{query['author'][0]}/")
            and repo.task == query["pipeline_tag"][0]
            and not (repo.private and self.asked.token not in repo.readers)
        ]
        start = int(query.get("cursor", ["0"])[0])
        page = [
            {"id": repo.name, "sha": repo.head, "tags": list(repo.labels)}
            for repo in found[start : start + self.hub.page]
        ]
        headers = {}
        if start + self.hub.page < len(found):
            rest = f"author={query['author'][0]}&pipeline_tag={query['pipeline_tag'][0]}"
            next_page = f"{self.hub.url}/api/models?{rest}&cursor={start + self.hub.page}"
            headers["Link"] = f'<{next_page}>; rel="next"'
        self._json(page, **headers)

    def _refs(self, repo: Repo) -> None:
        def ref(kind: str, name: str, commit: str) -> dict[str, str]:
            return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}

        branches = [ref("heads", "main", repo.head)] if repo.history else []
        tags = [ref("tags", name, commit) for name, commit in repo.tags.items()]
        self._json({"branches": branches, "converts": [], "tags": tags})

    def _info(self, repo: Repo, commit: str) -> None:
        siblings: list[dict[str, object]] = []
        for path, content in repo.commits[commit].items():
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entry = {"rfilename": path, "size": len(content), "blobId": git_id(content)}
            siblings.append({**entry, "lfs": lfs} if is_large(path) else entry)
        gated = "manual" if repo.gated else False
        self._json({"id": repo.name, "sha": commit, "gated": gated, "siblings": siblings})

    def _commits(self, repo: Repo) -> None:
        common = {"title": "a commit", "message": "", "authors": [], "date": "2026-11-24T14:02:00.000Z"}
        self._json([{"id": sha, **common} for sha in reversed(repo.history)])

    def _auth_check(self, repo: Repo) -> None:
        if self._may_read(repo):
            self._json({})

    def _may_read(self, repo: Repo) -> bool:
        if repo.gated and self.asked.token not in repo.readers:
            self._refuse(403 if self.asked.token else 401, **{"X-Error-Code": "GatedRepo"})
            return False
        return True

    def _resolve(self, repo: Repo, commit: str, path: str) -> None:
        if not self._may_read(repo):
            return
        content = repo.commits[commit].get(path)
        if content is None:
            self._refuse(404, **{"X-Error-Code": "EntryNotFound"})
        elif is_large(path):
            oid = hashlib.sha256(content).hexdigest()
            location = f"{self.hub.cdn}/{oid}?X-Signature={SIGNATURE}"
            linked = {
                "X-Linked-Etag": f'"{oid}"',
                "X-Linked-Size": str(len(content)),
                "X-Repo-Commit": commit,
            }
            self._answer(302, b"", Location=location, **linked)
        else:
            self._file(content, **{"ETag": f'"{git_id(content)}"', "X-Repo-Commit": commit})

    def _cdn(self) -> None:
        content = self.hub.content(self.path_asked.lstrip("/"))
        if content is None:
            self._refuse(404)
        else:
            self._file(content)

    def _file(self, content: bytes, **headers: str) -> None:
        fault = self.fault or Fault("", 0)
        match = re.fullmatch(r"bytes=(\d+)-", self.asked.range or "")
        start = int(match[1]) if match and not fault.ignore_range else 0
        body = content[start:]
        if fault.spoil:
            body = bytes(byte ^ 255 for byte in body)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = len(body) if fault.after is None else fault.after
        self._send(body[:stop])
        if fault.held is not None:
            fault.held.set()
            fault.released.wait(60)
            self._send(body[stop:])
        elif fault.after is not None:
            self.close_connection = True

    def _send(self, body: bytes) -> None:
        self.wfile.write(body)
        self.wfile.flush()
        self.asked.sent += len(body)

    def _json(self, value: object, **headers: str) -> None:
        self._answer(200, json.dumps(value).encode(), **headers)

    def _refuse(self, status: int, **headers: str) -> None:
        # A careless proxy's text, with what must never be passed on.
        self._answer(status, f"refused {self.headers.get('authorization')}".encode(), **headers)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub and its CDN on two free ports."""
    hub = Hub()
    servers = []
    for host in ("hub", "cdn"):
        handler = type(f"_{host}", (_Handler,), {"hub": hub, "host": host})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        servers.append((server, thread))
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server, _ in servers)
    try:
        yield hub
    finally:
        hub.heal()
        for server, thread in servers:
            server.shutdown()
            thread.join()
            server.server_close()


def open_registry(
    hub: Hub, base: Path, repos: tuple[str, ...] = ("org/tiny",), organizations: tuple[str, ...] = ()
) -> HubRegistry:
    """A registry of that Hub with its cache and notes below `base`."""
    return HubRegistry(repos, organizations, base / "cache", str(base / "notes"), endpoint=hub.url)


def keys(*texts: str) -> tuple[ModelKey, ...]:
    return tuple(map(ModelKey.parse, texts))


def commit_key(repo: Repo, commit: str) -> ModelKey:
    """The key of a commit."""
    return ModelKey(repo.name, commit[:12])
