"""Traces reach a real OTLP receiver over HTTP; one that is broken or gone hurts nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from roost.model.usage import InvocationRecord, Outcome
from roost.telemetry import tracing as tracing_module
from roost.telemetry.tracing import Tracing, TracingUnavailable

INVOCATION = InvocationRecord(
    request_id="r-1", account="default", function="chat", version="3", qualifier="prod", instance_id="i-1",
    session_id="s-1", outcome=Outcome.OK, status=200, started=1000.0, wait_s=0.5, duration_s=2.0, memory_mb=512,
    cold=True, trace_parent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)  # fmt: skip


class Receiver(ThreadingHTTPServer):
    """A tiny OTLP collector: keeps the spans it is sent, answers with `status`."""

    daemon_threads = True
    status = 200

    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def spans(self) -> dict[str, Span]:
        return {
            span.name: span
            for _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(receiver: Receiver) -> str:
    return f"http://127.0.0.1:{receiver.server_port}"


async def test_an_invocation_becomes_a_span_with_its_wait_and_run(receiver: Receiver) -> None:
    tracing = Tracing(url(receiver) + "/", service_version="1.2")
    tracing.invocation(INVOCATION)
    await tracing.close()
    await tracing.close()
    assert [path for path, _ in receiver.requests] == ["/v1/traces"]
    spans = receiver.spans()
    whole, wait, run = spans["invoke chat"], spans["wait"], spans["run"]
    assert whole.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert {wait.parent_span_id, run.parent_span_id} == {whole.span_id}
    seconds = {name: (span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9) for name, span in spans.items()}
    assert seconds == {"invoke chat": (1000.0, 1002.5), "wait": (1000.0, 1000.5), "run": (1000.5, 1002.5)}
    attributes = {item.key: item.value for item in whole.attributes}
    assert attributes["faas.invocation_id"].string_value == "r-1"
    assert attributes["faas.coldstart"].bool_value
    assert attributes["session.id"].string_value == "s-1"
    assert attributes["roost.gb_seconds"].double_value == 1.0
    [resource] = receiver.requests[0][1].resource_spans
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "roost"


async def test_failures_are_marked_and_what_never_ran_has_no_run(receiver: Receiver) -> None:
    tracing = Tracing(url(receiver))
    tracing.invocation(replace(INVOCATION, outcome=Outcome.THROTTLED, instance_id="", duration_s=0.0))
    await tracing.close()
    spans = receiver.spans()
    assert set(spans) == {"invoke chat", "wait"}
    assert spans["invoke chat"].status.code == Status.STATUS_CODE_ERROR


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "\r\nx: y"])
async def test_without_a_valid_parent_a_trace_of_its_own_begins(receiver: Receiver, parent: str) -> None:
    tracing = Tracing(url(receiver))
    tracing.invocation(replace(INVOCATION, trace_parent=parent))
    await tracing.close()
    assert receiver.spans()["invoke chat"].parent_span_id == b""


async def test_a_request_that_its_caller_does_not_sample_is_not_sent(receiver: Receiver) -> None:
    tracing = Tracing(url(receiver))
    tracing.invocation(replace(INVOCATION, trace_parent=INVOCATION.trace_parent[:-1] + "0"))
    await tracing.close()
    assert receiver.requests == []


async def test_a_collector_that_refuses_or_is_gone_costs_only_its_spans(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "CLOSE_S", 0.05)
    receiver.status = 503
    refusing = Tracing(url(receiver), send_every_s=0.01)
    gone = Tracing("http://127.0.0.1:9", send_every_s=0.01)
    for tracing in (refusing, gone):
        for _ in range(3):
            tracing.invocation(INVOCATION)
    await refusing.close()
    await gone.close()
    assert receiver.requests


def test_configured_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_module, "AVAILABLE", False)
    with pytest.raises(TracingUnavailable, match=r"pip install 'roost\[otel\]'"):
        Tracing("http://127.0.0.1:4318")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(TracingUnavailable, match="http://"):
        Tracing("collector:4318")
