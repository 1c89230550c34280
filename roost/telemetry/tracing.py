"""OpenTelemetry traces of invocations, sent by OTLP over HTTP. Needs the `otel` extra.

An invocation becomes three spans: the whole, and in it `wait` (until an instance took it) and `run`. They are made from
its record when it is over, so the request itself never touches a tracer. A `traceparent` that came with the request
is the parent, and its sampling decision is kept. Spans wait in a bounded queue for a thread of the exporter's; a
collector that is slow, broken or gone costs spans, never requests.
"""

from __future__ import annotations

import asyncio
import contextlib

from roost.model.errors import RoostError
from roost.model.usage import InvocationRecord, Outcome
from roost.telemetry.metering import gb_seconds_of_invocation

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

#: Spans waiting for the collector at most; the oldest are dropped.
QUEUE = 8192
#: One try to send a batch, and how long `close` waits for the last ones.
TIMEOUT_S = 5.0
CLOSE_S = 3.0


class TracingUnavailable(RoostError):
    """Traces are configured and can't be made."""

    code = "InvalidConfig"


class Tracing:
    """Sends a trace of each invocation to a collector. A sink of the Observer."""

    def __init__(self, endpoint: str, *, service_version: str = "", send_every_s: float = 5.0) -> None:
        """`endpoint` is the collector's base URL, as in OTEL_EXPORTER_OTLP_ENDPOINT; headers come from the
        environment (OTEL_EXPORTER_OTLP_HEADERS). Raises TracingUnavailable."""
        if not AVAILABLE:
            raise TracingUnavailable(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but sending traces needs the 'otel' extra: "
                "pip install 'roost[otel]'."
            )
        if not endpoint.startswith(("http://", "https://")):
            raise TracingUnavailable(
                f"The trace collector's address must begin with http:// or https://: {endpoint!r}."
            )
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=TIMEOUT_S)
        processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=QUEUE,
            max_export_batch_size=min(512, QUEUE),
            schedule_delay_millis=send_every_s * 1000,
        )
        resource = Resource.create({"service.name": "roost", "service.version": service_version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("roost")
        self._propagator = TraceContextTextMapPropagator()
        self._closed = False

    def invocation(self, record: InvocationRecord) -> None:
        started = _nanoseconds(record.started)
        running = started + _nanoseconds(record.wait_s)
        ended = running + _nanoseconds(record.duration_s)
        parent = self._propagator.extract({"traceparent": record.trace_parent}, context=Context())
        span = self._tracer.start_span(
            f"invoke {record.function}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=started,
            attributes=_attributes(record),
        )
        if record.outcome not in (Outcome.OK, Outcome.CANCELLED):
            span.set_status(StatusCode.ERROR, record.outcome.value)
        inside = set_span_in_context(span, parent)
        self._tracer.start_span("wait", context=inside, start_time=started).end(running)
        if record.instance_id:
            self._tracer.start_span("run", context=inside, start_time=running).end(ended)
        span.end(ended)

    async def close(self) -> None:
        """Send what waits, for CLOSE_S at most, and end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        sending = asyncio.create_task(asyncio.to_thread(self._provider.force_flush))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sending), CLOSE_S)
        # Wakes the exporter's thread from its waits between tries; the provider then ends without sending more.
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        await asyncio.to_thread(self._provider.shutdown)
        await sending


def _attributes(record: InvocationRecord) -> dict[str, str | int | float | bool]:
    attributes: dict[str, str | int | float | bool] = {
        "faas.name": record.function,
        "faas.version": record.version,
        "faas.invocation_id": record.request_id,
        "faas.coldstart": record.cold,
        "http.response.status_code": record.status,
        "roost.account": record.account,
        "roost.outcome": record.outcome.value,
        "roost.gb_seconds": gb_seconds_of_invocation(record),
    }
    if record.instance_id:
        attributes["faas.instance"] = record.instance_id
    if record.session_id:
        attributes["session.id"] = record.session_id
    return attributes


def _nanoseconds(seconds: float) -> int:
    return max(0, int(seconds * 1_000_000_000))
