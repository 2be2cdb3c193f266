"""The MLflow registry: registered models and their versions on an MLflow server."""

import difflib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import (
    AliasMovedError,
    Listing,
    RegistryUnavailableError,
    Skipped,
    UnknownModelError,
    VersionNotThereError,
)
from resources.registries.aliases import moved_message
from resources.registries.copies import copy_version
from resources.registries.files import Seen, revision_of
from resources.registries.mlflow_artifacts import Artifacts, open_artifacts

_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT"
# MLflow's own are 120 s, 7 retries, and any wait that a server asks for: a sensor has 30 s in all, and asks
# again at its next tick anyway.
_CLIENT_SETTINGS = {
    _SECONDS: "6",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_DOWNLOAD_SECONDS = "300"
"""A server whose artifacts are in an object store reads a whole file before it sends the first byte."""
_LISTING_SECONDS = 20.0
_PAGE = 2_000
_OVERLAP_MS = 600_000
_WHOLE_SECONDS = 3_600
_TAG = "eval."
_TAG_CHARACTERS = 5_000
"""What older MLflow servers take of a tag's value; later ones take more, but nobody reads more in its UI."""


class MlflowRegistry:
    """Versions of the registered models whose names match `names` (as `fnmatch`), on `tracking_uri`.

    A key is ``<registered model>@<version number>``. Files are copied to `cache`. Who may see and change what
    is decided by ``MLFLOW_TRACKING_TOKEN``, or ``MLFLOW_TRACKING_USERNAME`` and ``_PASSWORD``, which MLflow's
    client reads from the environment. Its variables for timeouts and retries keep what a user has set;
    without that a request ends after about 20 s. Aliases are MLflow's own, notes are tags of the version
    (``eval.<name>``).
    """

    def __init__(self, tracking_uri: str, cache: Path, names: str = "*") -> None:
        self.root = _without_secrets(tracking_uri)
        self._uri = tracking_uri
        self._cache = cache
        self._names = names

    def versions(self, since: str = "") -> Listing:
        """Versions that are READY, by their time of creation; the others are in `Listing.skipped`.

        MLflow can't be asked for what came after something, so the newest changes are read back to the time
        of the cursor, less ten minutes for servers whose clocks differ. Once an hour, and when this machine's
        clock was turned back, everything is listed: that finds what was registered while a server's clock was
        further back, and what slipped from one page to the one before when something was deleted.
        """
        now = time.time()
        of = hashlib.sha256(f"{self.root}\0{self._names}".encode()).hexdigest()[:12]
        cursor = _Cursor.parse(since)
        if cursor is None or cursor.of != of or not cursor.whole <= now < cursor.whole + _WHOLE_SECONDS:
            cursor = _Cursor(of, 0, now)
        changed = self._search(cursor.changed - _OVERLAP_MS)
        keys: list[ModelKey] = []
        skipped: list[Skipped] = []
        waiting: list[int] = []
        for version in sorted(changed, key=lambda v: (v.creation_timestamp, v.name, int(v.version))):
            place = f"{version.name}@{version.version}"
            try:
                key = ModelKey.parse(place)
            except UserError as error:
                skipped.append(Skipped(place, str(error)))
                continue
            if version.status == "READY":
                keys.append(key)
            else:
                waiting.append(version.last_updated_timestamp)
                skipped.append(Skipped(place, f"its status in MLflow is {version.status}"))
        newest = max((v.last_updated_timestamp for v in changed), default=cursor.changed)
        # What isn't READY must be seen again, however long that takes.
        newest = min([max(newest, cursor.changed), *waiting])
        return Listing(tuple(keys), _Cursor(of, newest, cursor.whole).text(), tuple(skipped))

    def revision(self, key: ModelKey) -> str:
        """SHA-256 over what lies at the version's source: paths, sizes, and what else tells of a change.

        That is a checksum in an object store and the time in a local folder. A server that serves artifacts
        itself says neither: there it is the time of registration and the content of ``MLmodel``, so a file
        that somebody replaced by hand with one of the same size goes unnoticed.
        """
        return revision_of(self._artifacts(key).files)

    def fetch(self, key: ModelKey) -> Path:
        """A folder in the cache with the version's Hugging Face files (`Artifacts.hugging_face`).

        Raises UserError for an unknown key and for a version without such a folder.
        """
        artifacts = self._artifacts(key).hugging_face(f"model {key}")

        def get(relative: str, target: Path) -> None:
            with self._errors(f"download {relative} of model {key}"), _patience():
                artifacts.get(relative, target)

        return copy_version(self._cache, key, artifacts.files, get)

    def aliases(self, name: str) -> Mapping[str, str]:
        """Alias -> version of a registered model. Raises UserError for one that isn't there."""
        aliases = self._registered(name).aliases
        return {alias: str(version) for alias, version in aliases.items()}

    def move_alias(self, name: str, alias: str, version: str, expected: str | None) -> None:
        """As `Registry.move_alias`, as far as MLflow goes, which has no compare-and-set.

        The alias is read, set, and read back. Somebody who moves it between our read and our set (one
        request, milliseconds) loses their move; who moves it right after is noticed and wins.
        """
        key = ModelKey.parse(f"{name}@{version}")
        current = self.aliases(name).get(alias)
        self._version(key)
        if current == version:
            return
        if current != expected:
            raise AliasMovedError(moved_message(name, alias, current, expected, version))
        with self._errors(f"move alias {alias!r} of model {name}"):
            self._client.set_registered_model_alias(name, alias, version)
        current = self.aliases(name).get(alias)
        if current != version:
            raise AliasMovedError(moved_message(name, alias, current, version, version))

    def annotate(self, key: ModelKey, notes: Mapping[str, str]) -> None:
        """Set tags ``eval.<name>`` of the version; a text is cut to 5,000 characters.

        Raises UserError for an unknown key.
        """
        self._version(key)
        for name, text in notes.items():
            value = text if len(text) <= _TAG_CHARACTERS else text[: _TAG_CHARACTERS - 1] + "…"
            with self._errors(f"set tag {_TAG}{name} of model {key}"):
                self._client.set_model_version_tag(key.name, key.version, f"{_TAG}{name}", value)

    @cached_property
    def _client(self) -> Any:
        for variable, value in _CLIENT_SETTINGS.items():
            os.environ.setdefault(variable, value)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise UserError(
                f"MLflow at {self.root} needs MLflow's client ({error}): install the extra 'mlflow' "
                "(pip install -c constraints.txt -e '.[mlflow]')"
            ) from None
        with self._errors("be reached"):
            return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def _search(self, since_ms: int) -> list[Any]:
        """The versions that changed at that time or later; newest change first."""
        client = self._client
        deadline = time.monotonic() + _LISTING_SECONDS
        found: dict[tuple[str, str], Any] = {}
        token: str | None = None
        while True:
            with self._errors("list model versions"):
                page = client.search_model_versions(
                    filter_string=_filter(self._names),
                    max_results=_PAGE,
                    order_by=["last_updated_timestamp DESC"],
                    page_token=token,
                )
            new = [version for version in page if version.last_updated_timestamp >= since_ms]
            found.update(((version.name, str(version.version)), version) for version in new)
            token = page.token
            if not token or len(new) < len(page):
                return [v for v in found.values() if fnmatchcase(v.name, self._names)]
            if time.monotonic() > deadline:
                raise RegistryUnavailableError(
                    f"MLflow at {self.root} is too slow: {len(found):,} versions in "
                    f"{_LISTING_SECONDS:.0f} s, and there are more; name fewer models in the pattern"
                )

    def _version(self, key: ModelKey) -> Any:
        # MLflow takes "07" for 7, which would be a second key of the same version.
        number = key.version.isdecimal() and str(int(key.version)) == key.version
        version = None
        if number and fnmatchcase(key.name, self._names):
            with self._errors(f"read model {key}", missing_is_none=True):
                version = self._client.get_model_version(key.name, key.version)
        if version is None:
            known = [str(k) for k in self.versions().keys]
            close = difflib.get_close_matches(str(key), known, n=3, cutoff=0.4)
            there = f"closest: {', '.join(close)}" if close else f"{len(known)} versions are there"
            raise VersionNotThereError(f"model {key}: not in MLflow at {self.root} ({there})")
        if version.status != "READY":
            raise UserError(
                f"model {key}: its status in MLflow is {version.status}; register it anew or wait"
            )
        return version

    def _registered(self, name: str) -> Any:
        if fnmatchcase(name, self._names):
            with self._errors(f"read model {name}", missing_is_none=True):
                return self._client.get_registered_model(name)
        known = sorted({key.name for key in self.versions().keys})
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        there = f"closest: {', '.join(close)}" if close else f"{len(known)} models are there"
        raise UnknownModelError(f"model {name}: not in MLflow at {self.root} ({there})")

    def _artifacts(self, key: ModelKey) -> Artifacts:
        version = self._version(key)
        with self._errors(f"list the artifacts of model {key}"):
            uri = self._client.get_model_version_download_uri(key.name, key.version)
            found = open_artifacts(uri, self._uri, f"model {key}")
        # A model that was deleted and made anew counts its versions from 1 again.
        born = version.creation_timestamp
        files = {path: Seen(seen.size, f"{born} {seen.identity}") for path, seen in found.files.items()}
        return Artifacts(files, found.get)

    @contextmanager
    def _errors(self, doing: str, *, missing_is_none: bool = False) -> Iterator[None]:
        """Turn what MLflow's client raises into one line without secrets."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # the client's own, its HTTP library's, its server's; others go on up
            where = f"MLflow at {self.root}"
            if _is_foreign(error):
                raise UserError(
                    f"{where} can't {doing}: its answer is not MLflow's; check the URL and the token"
                ) from None
            if missing_is_none and _says_missing(error):
                return
            status = self._asked_status() if _hides_status(error) else _status(error)
            if status in (401, 403):
                raise UserError(
                    f"{where}: not allowed to {doing} (HTTP {status}): token missing or expired; set "
                    "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                ) from None
            if status is None:
                raise
            if status in (408, 429) or status >= 500:
                raise RegistryUnavailableError(
                    f"{where} can't {doing} now: {_reason(error, status)}; it is asked again later"
                ) from None
            line = " ".join(str(error).split())[:300].removeprefix("INTERNAL_ERROR: ")
            raise UserError(f"{where} can't {doing}: {_without_secrets(line)}") from None

    def _asked_status(self) -> int:
        """The HTTP status of a small request; 400 where it succeeds, because another one has just failed."""
        from mlflow.utils import credentials, rest_utils

        ask: Any = rest_utils.http_request
        credentials_of: Any = credentials.get_default_host_creds
        try:
            answer = ask(
                credentials_of(self._uri),
                "/api/2.0/mlflow/registered-models/search",
                "GET",
                max_retries=0,
                raise_on_status=False,
                params={"max_results": 1},
            )
        except Exception:  # it did not answer, however the client says so
            return 503
        return 400 if answer.status_code == 200 else int(answer.status_code)


@dataclass(frozen=True, slots=True)
class _Cursor:
    of: str
    """What was listed: a digest of the server and the pattern."""
    changed: int
    """When the newest version that was seen had changed, in ms by the server's clock."""
    whole: float
    """When everything was listed, in s by this machine's clock."""

    @classmethod
    def parse(cls, text: str) -> "_Cursor | None":
        try:
            of, changed, whole = json.loads(text)
            return cls(str(of), int(changed), float(whole))
        except (ValueError, TypeError):
            return None

    def text(self) -> str:
        return json.dumps([self.of, self.changed, self.whole])


def _filter(names: str) -> str | None:
    """The part of a pattern that MLflow's search understands; it may find more."""
    match = re.match(r"[^*?\[\]'\"\\%]*", names)
    start = match[0] if match else ""
    if start == names:
        return f"name = '{names}'"
    return f"name LIKE '{start}%'" if start else None


_downloads = 0
_downloads_lock = threading.Lock()


@contextmanager
def _patience() -> Iterator[None]:
    """A long timeout for MLflow's client while any thread of this process is in here.

    The client takes it from the environment only. A timeout that the user has set stays.
    """
    global _downloads
    with _downloads_lock:
        ours = os.environ.get(_SECONDS) in (_CLIENT_SETTINGS[_SECONDS], _DOWNLOAD_SECONDS)
        _downloads += 1
        if ours:
            os.environ[_SECONDS] = _DOWNLOAD_SECONDS
    try:
        yield
    finally:
        with _downloads_lock:
            _downloads -= 1
            if ours and not _downloads:
                os.environ[_SECONDS] = _CLIENT_SETTINGS[_SECONDS]


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _hides_status(error: BaseException) -> bool:
    """Whether an answer had JSON but no error code of MLflow's, as that of a gateway in front of it.

    The client's error then speaks of an internal error, whatever the status was.
    """
    from mlflow.exceptions import RestException

    return isinstance(error, RestException) and "error_code" not in error.json


def _says_missing(error: BaseException) -> bool:
    """Whether MLflow itself has answered that there is no such thing; a gateway's 404 says nothing of it."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"


def _is_foreign(error: BaseException) -> bool:
    """Whether an answer came with status 200 and isn't what MLflow answers: a login page, another server."""
    return type(error).__name__ == "ParseError" or "not in a valid JSON format" in str(error)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of MLflow's client stands for; 503 without an answer, None for a bug."""
    import requests
    from mlflow.exceptions import MlflowException

    for link in _chain(error):
        answer = getattr(link, "response", None)
        if isinstance(link, requests.RequestException) and answer is not None:
            return int(answer.status_code)
    for link in _chain(error):
        # Where a status has no error code of MLflow's, the text has it.
        told = re.search(
            r"error code (\d{3})|(\d{3}) (?:Client|Server) Error|too many (\d{3}) error", str(link)
        )
        if told:
            return int(next(group for group in told.groups() if group))
        if isinstance(link, MlflowException):
            return int(link.get_http_status_code())  # type: ignore[no-untyped-call]  # MLflow's
    offline = (requests.RequestException, ConnectionError, TimeoutError)
    return 503 if isinstance(error, offline) else None


def _reason(error: BaseException, status: int) -> str:
    text = " ".join(str(link) for link in _chain(error)).lower()
    told = re.search(r"too many (\d{3}) error responses", text)
    if told:
        return f"HTTP {told[1]}"
    for sign, reason in (
        ("refused", "connection refused"),
        ("timed out", "timed out"),
        ("timeout", "timed out"),
        ("resolve", "its host name is unknown"),
        ("certificate", "its certificate is not trusted"),
    ):
        if sign in text:
            return reason
    return f"HTTP {status}"


def _without_secrets(text: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)
