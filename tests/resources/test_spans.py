"""Spans of the work: nested, with the run's ids, and never in the way of the work itself."""

import subprocess
import sys
import time
from uuid import uuid4

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from resources import spans
from tests.conftest import ROOT

RUN = str(uuid4())


def warn(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where spans go, in place of a collector."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(spans, "_exporter", lambda: exporter)
    return exporter


def named(memory: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in memory.get_finished_spans()}


def test_spans_are_nested_as_the_work_is_and_have_its_ids(memory: InMemorySpanExporter) -> None:
    with spans.exporting("there", RUN, warn), spans.span("run", run_id=RUN):
        with spans.span("cell", model="m@1", dataset="squad"):
            spans.add(evaluation_id="e-1", output_tokens=7, cost=None)
            with spans.span("commit"):
                pass
        with spans.span("cell of another", model="m@2"):
            pass
    found = named(memory)
    commit, cell, run = found["commit"], found["cell"], found["run"]
    assert commit.parent is not None
    assert cell.context is not None
    assert commit.parent.span_id == cell.context.span_id
    assert dict(commit.attributes or {}) == {
        "evaluation.run_id": RUN, "evaluation.model": "m@1", "evaluation.dataset": "squad",
        "evaluation.evaluation_id": "e-1",
    }  # fmt: skip
    assert (cell.attributes or {})["evaluation.output_tokens"] == 7
    assert "evaluation.evaluation_id" not in (found["cell of another"].attributes or {})
    assert run.resource.attributes["service.name"] == "evaluation"


def test_a_trace_has_the_id_of_its_run(memory: InMemorySpanExporter) -> None:
    """Whoever has a run's page finds its trace without a search."""
    with spans.exporting("there", RUN, warn), spans.span("run", run_id=RUN):
        pass
    context = named(memory)["run"].context
    assert context is not None
    assert f"{context.trace_id:032x}" == RUN.replace("-", "")


def test_an_error_is_noted_and_goes_on(memory: InMemorySpanExporter) -> None:
    with (
        pytest.raises(ValueError, match="so it is"),
        spans.exporting("there", RUN, warn),
        spans.span("load"),
    ):
        raise ValueError("so it is")
    span = named(memory)["load"]
    assert not span.status.is_ok
    assert [event.name for event in span.events] == ["exception"]


def test_a_span_that_is_over_lies_where_it_was(memory: InMemorySpanExporter) -> None:
    began = time.perf_counter()
    before = time.time()
    with spans.exporting("there", RUN, warn), spans.span("run", run_id=RUN):
        spans.past("prefill", began, began + 2.5, passes=3)
    span = named(memory)["prefill"]
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time / 1e9 == pytest.approx(before, abs=0.5)
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(2.5, abs=1e-3)
    assert (span.attributes or {})["evaluation.passes"] == 3


def test_logs_get_the_ids_whether_traces_are_on_or_not() -> None:
    with spans.span("run", run_id=RUN), spans.span("cell", model="m@1", dataset="squad", n=5):
        assert spans.ids() == {"run_id": RUN, "model": "m@1", "dataset": "squad"}
        spans.add(evaluation_id="e-1")
        assert spans.ids()["evaluation_id"] == "e-1"
    assert spans.ids() == {}
    spans.add(evaluation_id="e-2")
    assert spans.ids() == {}, "an id that nobody takes back would be on every line from here on"


def test_a_run_id_that_is_no_uuid_gets_a_trace_all_the_same(memory: InMemorySpanExporter) -> None:
    with spans.exporting("there", "from a terminal", warn), spans.span("run"):
        pass
    assert named(memory)["run"].context


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that gives every pod the variable must not fail what has no extra."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    warnings: list[str] = []
    with spans.exporting("there", RUN, warnings.append), spans.span("run"):
        pass
    assert warnings == [
        "there are no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set, the extra 'tracing' is not installed"
    ]


def test_a_variable_that_the_sdk_cannot_read_costs_no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("OTEL_EXPORTER_OTLP_COMPRESSION:\nno such compression")

    monkeypatch.setattr(spans, "_exporter", refuse)
    warnings: list[str] = []
    with spans.exporting("there", RUN, warnings.append), spans.span("run"):
        pass
    assert warnings == [
        "there are no traces: ValueError: OTEL_EXPORTER_OTLP_COMPRESSION: no such compression"
    ]


def test_without_a_collector_nothing_of_opentelemetry_is_imported_and_a_span_costs_microseconds() -> None:
    code = """
import sys, time
from resources import spans
start = time.perf_counter()
with spans.exporting(None, "r", print):
    for _ in range(1000):
        with spans.span("x", model="m"):
            spans.past("y", 0.0, 1.0)
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
print((time.perf_counter() - start) / 1000)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-3
