"""Requests to a Hugging Face Hub: bounded in time, the token kept to itself, and each refusal in one line.

The session (proxies, certificates, ``HF_HUB_OFFLINE``, a client factory of the user's) is huggingface_hub's.
Its calls are not used: of those that list, some have no timeout at all and the others wait as long as a 429
tells them to; its download removes a file that was cut (a kill in the middle of 40 GB starts at zero) and
compares nothing but the size. (huggingface_hub 2.4, `_http.py` and `file_download.py`.)
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import __version__, constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from pydantic import TypeAdapter, ValidationError

from resources.errors import UserError
from resources.registries import RegistryUnavailableError

_TRIES = 4
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 10.0
_ANSWER_SECONDS = 10.0
_STALL_SECONDS = 30.0
"""So long may a download stand still; it costs nothing but a new request, which goes on where it stood."""

_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOKEN = re.compile(r"[\x21-\x7e]+")

Parameters = Mapping[str, str | Sequence[str]]
T = TypeVar("T")


class NoAnswerError(RegistryUnavailableError):
    """One request got no answer; `wait` is how many seconds the Hub asked to be left alone, if it did."""

    def __init__(self, text: str, wait: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(text)
        self.wait = wait
        self.unreachable = unreachable


class NotThereError(UserError):
    """The Hub shows no such repository; unless it has `told` that there is none, it may be private."""

    def __init__(self, text: str, *, told: bool) -> None:
        super().__init__(text)
        self.told = told


class TokenRefusedError(UserError):
    """The Hub doesn't know the token: nothing else can be asked with it."""


class Budget:
    """The seconds that several requests have together."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.unreachable = False
        """The Hub took no connection, although asked repeatedly: there is nothing to ask it any more."""
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, never negative."""
        return max(0.0, self._end - time.monotonic())


class HubClient:
    """A Hub at `endpoint` (default ``HF_ENDPOINT``, then the public one).

    The token is read from ``HF_TOKEN`` at each request, is sent to that host alone (a redirect to another one
    goes without it) and is in no error: of what the Hub answers, no text is passed on. Every method raises
    UserError for what a user can put right and RegistryUnavailableError (after up to four tries) for refused
    connections, time-outs, cut answers, 429 and 5xx. A Retry-After of more than ten seconds, or more than the
    budget has left, is not waited for.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        try:
            parts = urlsplit(self.endpoint)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        except ValueError:
            usable = False
        if not usable:
            # Not shown: it may hold a password.
            raise UserError(
                "the Hub's endpoint is no URL like https://hub.example.org without a user name; correct it "
                "in EVAL_MODELS or HF_ENDPOINT (a token belongs into HF_TOKEN)"
            )

    def read(
        self,
        shape: TypeAdapter[T],
        path: str,
        what: str,
        budget: Budget,
        parameters: Parameters | None = None,
    ) -> T:
        """What the Hub answers to GET ``<endpoint><path>``; errors start with `what`."""
        response = self._ask(self.endpoint + path, what, budget, parameters)
        return self._parsed(shape, response, what)

    def pages(
        self,
        shape: TypeAdapter[T],
        path: str,
        what: str,
        budget: Budget,
        parameters: Parameters | None = None,
    ) -> Iterator[T]:
        """The pages of a listing, one after another (``Link: <…>; rel="next"``)."""
        url = self.endpoint + path
        while True:
            response = self._ask(url, what, budget, parameters)
            yield self._parsed(shape, response, what)
            following = response.links.get("next", {}).get("url")
            if not following:
                return
            # Behind a mirror the link may name the public Hub, which must not get the mirror's token.
            parts = urlsplit(following)
            own = urlsplit(self.endpoint)
            if (parts.scheme, parts.netloc) != (own.scheme, own.netloc):
                following = f"{self.endpoint}{parts.path}?{parts.query}"
            url, parameters = following, None

    def ask(self, path: str, what: str, budget: Budget) -> None:
        """GET ``<endpoint><path>`` for its status alone."""
        self._ask(self.endpoint + path, what, budget, None)

    @contextmanager
    def open(self, repo: str, commit: str, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """A file's bytes from `start`, asked once: yields ``(where they really start, the bytes)``.

        A server that knows no ranges starts at 0. An answer that ends early raises NoAnswerError.
        """
        what = f"model {repo}: {path}"
        url = f"{self.endpoint}/{repo}/resolve/{commit}/{quote(path)}"
        # Compressed, neither the size nor a range would mean what it says.
        headers = {**self._headers(), "accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        timeout = httpx2.Timeout(_ANSWER_SECONDS, read=_STALL_SECONDS)
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=timeout, follow_redirects=True
            ) as response:
                self._check(response, what)
                ranged = response.headers.get("content-range", "").startswith(f"bytes {start}-")
                begins = start if response.status_code == 206 and ranged else 0
                yield begins, response.iter_bytes()
        except OfflineModeIsEnabled:
            self._offline()
        except (httpx2.RequestError, httpx2.StreamError) as error:
            raise NoAnswerError(f"{what}: {self.endpoint}: {_in_words(error)}; try again later") from None

    def _ask(self, url: str, what: str, budget: Budget, parameters: Parameters | None) -> httpx2.Response:
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._ask_once(url, what, budget, parameters)
            except NoAnswerError as error:
                wait = _FIRST_WAIT_SECONDS * 2 ** (attempt - 1) if error.wait is None else error.wait
                over = attempt == _TRIES or budget.unreachable
                if over or wait > min(budget.left(), _LONGEST_WAIT_SECONDS):
                    budget.unreachable = budget.unreachable or error.unreachable
                    raise
                time.sleep(wait)

    def _ask_once(
        self, url: str, what: str, budget: Budget, parameters: Parameters | None
    ) -> httpx2.Response:
        left = budget.left()
        if budget.unreachable:
            raise NoAnswerError(f"{what}: {self.endpoint}: can't connect; try again later", unreachable=True)
        if not left:
            raise NoAnswerError(f"{what}: {self.endpoint} did not answer all within {budget.seconds:.0f} s")
        try:
            response = get_session().get(
                url,
                params=None if parameters is None else dict(parameters),
                headers=self._headers(),
                timeout=min(_ANSWER_SECONDS, left),
                follow_redirects=True,
            )
        except OfflineModeIsEnabled:
            self._offline()
        # RuntimeError: another thread made huggingface_hub close the session; the next try gets a new one.
        except (httpx2.RequestError, RuntimeError) as error:
            raise NoAnswerError(
                f"{what}: {self.endpoint}: {_in_words(error)}; try again later",
                unreachable=isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout),
            ) from None
        self._check(response, what)
        return response

    def _headers(self) -> dict[str, str]:
        headers = {"user-agent": f"continuous-model-evaluation; hf_hub/{__version__}"}
        token = _token()
        return {**headers, "authorization": f"Bearer {token}"} if token else headers

    def _offline(self) -> NoReturn:
        raise UserError(f"HF_HUB_OFFLINE is set, so {self.endpoint} is not asked; unset it") from None

    def _parsed(self, shape: TypeAdapter[T], response: httpx2.Response, what: str) -> T:
        try:
            return shape.validate_json(response.content)
        except ValidationError:
            raise RegistryUnavailableError(
                f"{what}: {self.endpoint} answered something else than a Hub does; check the endpoint, and "
                "whether a proxy stands in between"
            ) from None

    def _check(self, response: httpx2.Response, what: str) -> None:
        status = response.status_code
        if status < 400:
            return
        if status in _LATER:
            wait = _wait_asked_for(response)
            told = f", and asks to wait {wait:,.0f} s" if wait is not None else ""
            raise NoAnswerError(f"{what}: {self.endpoint} answered {status}{told}; try again later", wait)
        if status == 416:
            raise NoAnswerError(f"{what}: {self.endpoint} has fewer bytes than it lists; try again later")
        raise self._refusal(response, what)

    def _refusal(self, response: httpx2.Response, what: str) -> UserError:
        code = response.headers.get("x-error-code", "")
        message = response.headers.get("x-error-message", "")
        has_token = bool(_token())
        if response.status_code == 401 and has_token and message.startswith("Invalid credentials"):
            return TokenRefusedError(
                f"{self.endpoint} refuses HF_TOKEN (expired or revoked?); set it to a valid token"
            )
        if code == "GatedRepo":
            page = f"{self.endpoint}/{what.removeprefix('model ').partition(':')[0]}"
            return UserError(
                f"{what}: gated, and the account of HF_TOKEN has no access; accept its licence at {page}"
                if has_token
                else f"{what}: gated; accept its licence at {page}, then set HF_TOKEN to that account's token"
            )
        if code == "EntryNotFound":
            return UserError(f"{what}: not in the repository (any more)")
        if code == "RevisionNotFound":
            return UserError(f"{what}: the commit is not in the repository (any more); was it force-pushed?")
        if message == "Access to this resource is disabled.":
            return UserError(f"{what}: the Hub has disabled it")
        if code == "RepoNotFound" or response.status_code in (401, 404):
            why = "HF_TOKEN has no access to it" if has_token else "HF_TOKEN is not set"
            return NotThereError(
                f"{what}: not on {self.endpoint}, or private and {why}; check the name and HF_TOKEN",
                # Who shows no token gets 401, whether there is such a repository or not.
                told=code == "RepoNotFound" and response.status_code == 404,
            )
        if response.status_code == 403:
            why = "HF_TOKEN may not read it" if has_token else "HF_TOKEN is not set"
            return UserError(f"{what}: {self.endpoint} denies access: {why}; give the token read access")
        return UserError(f"{what}: {self.endpoint} answered {response.status_code}; check the endpoint")


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and not _TOKEN.fullmatch(token):
        # Sent, it would come back in an error of the HTTP library.
        raise UserError("HF_TOKEN holds a space or a letter that no token has; set it again")
    return token


def _in_words(error: Exception) -> str:
    """What happened, without the library's text: it may name a signed URL."""
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx2.ConnectError):
        return "can't connect"
    if isinstance(error, httpx2.TooManyRedirects):
        return "redirects without end"
    return "the connection was cut"


def _wait_asked_for(response: httpx2.Response) -> float | None:
    """Seconds, from ``Retry-After: 5`` or the Hub's ``RateLimit: "api";r=0;t=5``."""
    seconds = response.headers.get("retry-after", "").strip()
    if seconds.isdecimal():
        return float(seconds)
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,6})", response.headers.get("ratelimit", ""))
    return float(limit[1]) if limit and response.status_code == 429 else None
