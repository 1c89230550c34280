"""What a running server tells of itself: metrics, usage by function and session, traces, console."""

from __future__ import annotations

import json
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.test_server_sessions import EXCLUSIVE
from tests.integration.test_telemetry_tracing import Receiver
from tests.support.server import Server, running

WORK = """
import time
def handler(event, context):
    until = time.process_time() + 0.05
    while time.process_time() < until: pass
    return b"done"
"""


def metric(server: Server, name: str, **labels: str) -> float:
    with server.client() as client:
        text = client.get("/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def usage(server: Server, **query: str) -> dict[str, float]:
    with server.client() as client:
        return dict(client.get("/roost/usage", params=query).json())


def test_usage_is_metered_by_function_and_session(server: Server) -> None:
    server.deploy("metered", {"index.py": WORK}, memorySize=256, roost={"freezeAfter": 0.2}, **EXCLUSIVE)
    for session, calls in (("one", 3), ("two", 1)):
        for _ in range(calls):
            assert server.invoke("metered", x_chat_id=session).content == b"done"
    server.until(lambda: all(i["state"] == "frozen" for i in server.instances() if i["function"] == "metered"))
    server.until(lambda: usage(server, function="metered")["invocations"] == 4)
    one, two = (usage(server, function="metered", session=s) for s in ("one", "two"))
    assert (one["invocations"], two["invocations"]) == (3, 1)
    assert one["busy_ms"] >= 150
    assert one["busy_ms"] > two["busy_ms"]
    assert one["cpu_ms"] >= 150
    assert one["gb_seconds"] > 0
    whole = usage(server, function="metered")
    assert whole["busy_ms"] >= one["busy_ms"] + two["busy_ms"] - 1


def test_metrics_count_what_happened(server: Server) -> None:
    server.deploy("counted", {"index.py": "def handler(event, context):\n    return event\n"})
    server.deploy("broken", {"index.py": "def handler(event, context):\n    1 / 0\n"})
    for _ in range(3):
        server.invoke("counted", b"x")
    server.invoke("broken", b"x")
    server.until(lambda: metric(server, "roost_invocations_total", function="counted", outcome="ok") == 3)
    server.until(lambda: metric(server, "roost_invocations_total", function="broken", outcome="function_error") == 1)
    assert metric(server, "roost_instances", function="counted") == 1
    with server.client() as client:
        client.delete("/2023-03-30/functions/counted")
    server.until(lambda: metric(server, "roost_invocations_total", function="counted") == 0)


def test_logs_follow_live_and_are_of_one_request(server: Server) -> None:
    server.deploy("talks", {"index.py": "def handler(event, context):\n    print('say', event.decode())\n"})
    server.invoke("talks", b"before")
    with (
        server.client() as client,
        client.stream("GET", "/roost/functions/talks/logs", params={"follow": "1", "lines": "50"}) as reply,
    ):
        texts: list[str] = []
        lines = reply.iter_lines()
        while "say before" not in texts:
            texts.append(json.loads(next(lines))["text"])
        sent = server.invoke("talks", b"after")
        while "say after" not in texts:
            record = json.loads(next(lines))
            texts.append(record["text"])
        assert record["requestId"] == sent.headers["x-fc-request-id"]
    with server.client() as client:
        params = {"requestId": sent.headers["x-fc-request-id"]}
        mine = client.get("/roost/functions/talks/logs", params=params).text
        assert "say after" in mine
        assert "say before" not in mine
        assert client.get("/roost/functions/nobody/logs").status_code == 404
        assert client.get("/roost/functions/talks/logs", params={"lines": "many"}).status_code == 400


def test_traces_reach_a_collector(tmp_path: Path) -> None:
    import threading

    receiver = Receiver()
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{receiver.server_address[1]}"
    try:
        with running(tmp_path / "data", env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as server:
            server.deploy("traced", {"index.py": "def handler(event, context):\n    return event\n"})
            parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            server.invoke("traced", b"x", traceparent=parent)
            server.until(lambda: bool(receiver.spans()))
        spans = receiver.spans()
        assert any(span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c" for span in spans.values())
    finally:
        receiver.shutdown()
        receiver.server_close()


def test_the_console_describes_the_server(server: Server) -> None:
    with server.client() as client:
        info = client.get("/roost/info").json()
        assert info["drivers"][0] == "namespaces"
        assert set(info["drivers"]) <= {"namespaces", "gvisor"}
        assert info["auth"] == "none"
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/roost/nothing").status_code == 404
