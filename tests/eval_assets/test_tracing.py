"""A real evaluation's trace at a collector on loopback, and collectors that are down, slow or broken."""

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from resources import spans
from tests.committed import committed_in
from tests.eval_assets.conftest import Project
from tests.servers import free_port


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP as protobuf; answers with `status`."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.spans: list[Any] = []
        self.services: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        if self.path == "/v1/traces":
            request = ExportTraceServiceRequest.FromString(content)
            for of_resource in request.resource_spans:
                self.server.services |= {
                    attribute.value.string_value
                    for attribute in of_resource.resource.attributes
                    if attribute.key == "service.name"
                }
                for scope in of_resource.scope_spans:
                    self.server.spans += scope.spans
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    with Collector(status) as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {
        attribute.key.removeprefix("evaluation."): getattr(
            attribute.value, attribute.value.WhichOneof("value")
        )
        for attribute in span.attributes
    }


def test_a_trace_says_where_a_runs_time_went(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = project.registered("tiny@1")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        project.runs().evaluate_cells("tiny@1", ["capitals", "capitals_written"])
    assert collector.services == {"evaluation"}
    [run] = instance.get_runs(dg.RunsFilter(job_name="evaluate_models"))
    assert {span.trace_id.hex() for span in collector.spans} == {run.run_id.replace("-", "")}
    by_id = {span.span_id: span for span in collector.spans}
    children: dict[str, set[str]] = {}
    for span in collector.spans:
        parent = by_id[span.parent_span_id] if span.parent_span_id else None
        place = "" if parent is None else parent.name
        if parent is not None and parent.name == "cell":
            place = str(attributes(parent)["dataset"])
        children.setdefault(place, set()).add(span.name)
    assert children[""] == {"run"}
    assert children["run"] == {"fetch", "cell"}
    assert children["capitals"] == {"load", "prefill", "score", "commit"}
    assert children["capitals_written"] == {"load", "prefill", "decode", "score", "commit"}
    record = next(r for r in committed_in(runs.store) if r["dataset"] == "capitals_written")
    [cell] = [
        span for span in collector.spans
        if span.name == "cell" and attributes(span)["dataset"] == "capitals_written"
    ]  # fmt: skip
    assert attributes(cell) == {
        "run_id": run.run_id, "model": "tiny@1", "dataset": "capitals_written", "reused": False,
        "evaluation_id": record["evaluation_id"], "samples": record["samples"],
        "prompt_tokens": record["prompt_tokens"], "output_tokens": record["output_tokens"],
    }  # fmt: skip
    [decode] = [span for span in collector.spans if span.name == "decode"]
    assert attributes(decode)["tokens"] == record["output_tokens_computed"]
    assert attributes(decode)["seconds"] == pytest.approx(record["seconds"]["decode"], abs=2e-3)
    assert cell.start_time_unix_nano <= decode.start_time_unix_nano + 5_000_000
    assert decode.end_time_unix_nano <= cell.end_time_unix_nano


def test_a_failed_cell_has_a_span_that_failed(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.registered("tiny@1")
    (project.registry / "tiny" / "1" / "model.safetensors").write_bytes(b"damaged")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with pytest.raises(Exception, match="tiny@1"):
            project.runs().evaluate_cells("tiny@1", ["capitals"])
    [fetch] = [span for span in collector.spans if span.name == "fetch"]
    assert fetch.status.code == 2
    assert [event.name for event in fetch.events] == ["exception"]


@contextmanager
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("trouble", ["down", "silent", "broken"])
def test_a_collector_in_trouble_neither_fails_nor_holds_up_an_evaluation(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(spans, "FLUSH_SECONDS", 0.2)
    waited: list[float] = []
    join = threading.Thread.join

    def timed(thread: threading.Thread, timeout: float | None = None) -> None:
        start = time.monotonic()
        join(thread, timeout)
        if thread.name == "spans":
            waited.append(time.monotonic() - start)

    monkeypatch.setattr(threading.Thread, "join", timed)
    with silent() as silent_url, collecting(status=503) as broken:
        url = {"down": f"http://127.0.0.1:{free_port()}", "silent": silent_url, "broken": broken.url}[trouble]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        runs = project.registered("tiny@1")
        runs.evaluate_cells("tiny@1", ["capitals"])
    assert len(committed_in(runs.store)) == 1
    [at_the_end] = waited
    assert at_the_end < 2
