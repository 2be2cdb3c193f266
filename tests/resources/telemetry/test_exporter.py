"""A scrape is answered at once, whatever a database or a registry does meanwhile."""

import gzip
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from resources.errors import UserError
from resources.telemetry import Exporter, Readings
from resources.telemetry.exporter import Server

WAIT = 20.0


def reading(value: float) -> Readings:
    readings = Readings()
    readings.add("llm_evaluation_budget", value)
    return readings


def get(port: int, path: str = "/metrics", **headers: str) -> tuple[int, bytes, Mapping[str, str]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


@contextmanager
def served(exporter: Exporter) -> Iterator[int]:
    """The exporter's server in a thread; `serve` itself is for a main thread (tests/eval_assets has it)."""
    with Server(("127.0.0.1", 0), exporter) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class Counting:
    """A source that says how often it was read; `then` is what it does besides."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.times, self.then, self.was_read = 0, then, threading.Event()

    def __call__(self) -> Readings:
        self.times += 1
        self.then()
        self.was_read.set()
        return reading(self.times)


def fail() -> None:
    raise ValueError("the database\nis away")


def test_scrapes_read_no_source() -> None:
    source = Counting()
    exporter = Exporter({"one": source}, interval=3600)
    with served(exporter) as port:
        assert get(port)[0] == 503
        exporter.collect("one")
        pages = {get(port)[1] for _ in range(5)}
    assert source.times == 1
    assert len(pages) == 1
    assert b"\nllm_evaluation_budget 1.0\n" in pages.pop()


def test_a_source_that_hangs_holds_up_neither_scrapes_nor_others() -> None:
    release = threading.Event()
    healthy, stuck = Counting(), Counting(lambda: wait_for(release))
    exporter = Exporter({"stuck": stuck, "healthy": healthy}, interval=0.01)
    exporter.start()
    try:
        assert healthy.was_read.wait(WAIT)
        until(lambda: healthy.times > 3)
        with served(exporter) as port:
            status, page, _ = get(port)
            assert status == 200
            assert b'collected_timestamp_seconds{source="healthy"}' in page
            assert b'collected_timestamp_seconds{source="stuck"}' not in page
            assert get(port, "/ready")[0] == 503
            assert get(port, "/healthy")[0] == 200
    finally:
        release.set()
        exporter.stop()


def wait_for(event: threading.Event) -> None:
    event.wait(WAIT)


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    pause = threading.Event()
    for _ in range(2000):
        if is_so():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to be")


def test_a_source_that_fails_keeps_what_it_said_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Scores that vanish while a database restarts would look like models that were deleted."""
    source = Counting()
    exporter = Exporter({"results": source}, interval=3600)
    exporter.collect("results")
    source.then = fail
    for _ in range(2):
        exporter.collect("results")
    page = exporter.page()
    assert page is not None
    assert b"\nllm_evaluation_budget 1.0\n" in page.plain
    assert b'\nllm_evaluation_exporter_errors_total{source="results"} 2.0\n' in page.plain
    assert "results can't be read: ValueError: the database is away" in caplog.text
    source.then = lambda: None
    exporter.collect("results")
    page = exporter.page()
    assert page is not None
    assert b"\nllm_evaluation_budget 4.0\n" in page.plain


def test_what_a_source_says_no_more_is_gone() -> None:
    """A model that was removed would otherwise be shown until the exporter restarts."""
    answers = [reading(1), Readings()]
    exporter = Exporter({"one": lambda: answers.pop(0)}, interval=3600)
    exporter.collect("one")
    exporter.collect("one")
    page = exporter.page()
    assert page is not None
    assert b"llm_evaluation_budget" not in page.plain


def test_who_takes_gzip_gets_it() -> None:
    exporter = Exporter({"one": Counting()}, interval=3600)
    exporter.collect("one")
    with served(exporter) as port:
        _, plain, _ = get(port)
        status, zipped, headers = get(port, **{"Accept-Encoding": "gzip"})
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert gzip.decompress(zipped) == plain
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_another_path_is_told_which_there_are() -> None:
    with served(Exporter({}, interval=3600)) as port:
        assert get(port, "/metrics/job/x")[0] == 404
        assert get(port, "/")[0] == 200


def test_a_client_that_says_nothing_holds_up_no_other() -> None:
    exporter = Exporter({"one": Counting()}, interval=3600)
    exporter.collect("one")
    with served(exporter) as port, socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"GET /met")
        assert get(port)[0] == 200


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"can't listen on 127.0.0.1:{port}: .*choose another port"):
            Exporter({}, interval=3600).serve("127.0.0.1", port)
