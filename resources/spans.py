"""What this process is at, for traces and for logs: spans with names and ids, nested as the work is.

Spans cost next to nothing until `exporting` begins, which needs the extra `tracing` and the standard variable
OTEL_EXPORTER_OTLP_ENDPOINT; OpenTelemetry is imported there and nowhere else. A trace has the id of its run.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Value: TypeAlias = str | int | float | bool | None

FLUSH_SECONDS = 2.0
"""How long the end of a run waits for a collector; what it has not taken by then is lost."""

_tracer: "Tracer | None" = None
_OUTSIDE: "Mapping[str, Value]" = MappingProxyType({})
_ids: ContextVar[Mapping[str, Value]] = ContextVar("ids", default=_OUTSIDE)
_open: "ContextVar[Span | None]" = ContextVar("span", default=None)


IDS = ("run_id", "model", "dataset", "evaluation_id")
"""Attributes that a span hands on to those within it, and that logs name."""


def ids() -> Mapping[str, Value]:
    """Those of `IDS` that the spans around this have."""
    return _ids.get()


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[None]:
    """Work with a name, as long as the block takes; an exception is noted and goes on."""
    before = _ids.set(_with(attributes))
    opening = nullcontext() if _tracer is None else _opened(_tracer, name, attributes)
    try:
        with opening:
            yield
    finally:
        _ids.reset(before)


def add(**attributes: Value) -> None:
    """Give the innermost open span more attributes, for what is logged in it, too; nothing outside of any."""
    if _ids.get() is _OUTSIDE:
        return
    _ids.set(_with(attributes))
    innermost = _open.get()
    if innermost is not None:
        innermost.set_attributes(_named(attributes))


def past(name: str, began: float, ended: float, **attributes: Value) -> None:
    """A span that is over; `began` and `ended` are of `time.perf_counter`."""
    if _tracer is None:
        return
    offset = time.time_ns() - time.perf_counter_ns()
    start, end = (int(moment * 1e9) + offset for moment in (began, ended))
    _tracer.start_span(name, attributes=_named(attributes), start_time=start).end(end_time=end)


@contextmanager
def _opened(tracer: "Tracer", name: str, attributes: Mapping[str, Value]) -> Iterator[None]:
    with tracer.start_as_current_span(name, attributes=_named(attributes)) as opened:
        before = _open.set(opened)
        try:
            yield
        finally:
            _open.reset(before)


def _with(attributes: Mapping[str, Value]) -> Mapping[str, Value]:
    return {**_ids.get(), **{name: value for name, value in attributes.items() if name in IDS}}


def _named(attributes: Mapping[str, Value]) -> dict[str, str | int | float | bool]:
    """Attributes with the ids around, named as nobody else's are; those without a value are left out."""
    together = {**_ids.get(), **attributes}
    return {f"evaluation.{name}": value for name, value in together.items() if value is not None}


@contextmanager
def exporting(endpoint: str | None, run_id: str, on_warning: Callable[[str], object]) -> Iterator[None]:
    """Send the spans of a run to the collector at `endpoint`, if there is one; never raises.

    The collector gets them in the background, from a bounded queue; one that is down or slow costs the run
    `FLUSH_SECONDS` at its end.
    """
    global _tracer
    provider = None if endpoint is None else _provider(run_id, on_warning)
    if provider is None or _tracer is not None:
        yield
        return
    _tracer = provider.get_tracer("evaluation")
    try:
        yield
    finally:
        _tracer = None
        # In a thread: the SDK's own limits are longer than a run that is told to end has.
        flushing = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)


def _provider(run_id: str, on_warning: Callable[[str], object]) -> "TracerProvider | None":
    try:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class OfTheRun(RandomIdGenerator):
            def generate_trace_id(self) -> int:
                try:
                    return UUID(run_id).int or super().generate_trace_id()
                except ValueError:
                    return super().generate_trace_id()

        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
        resource = Resource({"service.name": "evaluation"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource, id_generator=OfTheRun(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_exporter(), schedule_delay_millis=1000))
    except ImportError:
        on_warning(
            "there are no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set, the extra 'tracing' is not installed"
        )
        return None
    except Exception as error:  # a variable of the SDK's that it can't read: no reason to lose an evaluation
        on_warning(f"there are no traces: {type(error).__name__}: {' '.join(str(error).split())}")
        return None
    return provider


def _exporter() -> "SpanExporter":
    """The exporter that the standard variables describe: endpoint, headers, timeout, certificates."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
