"""The real guest as a process, spoken to over its two unix sockets: event handlers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import Guest, read_all


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with Guest(tmp_path) as guest:
        yield guest


def test_an_event_goes_in_as_bytes_and_bytes_come_back(guest: Guest) -> None:
    guest.ready("def handler(event, context): return event[::-1]")
    status, _, body = guest.invoke(b"\x00\xffabc")
    assert (status, body) == (200, b"cba\xff\x00")


def test_printed_lines_and_log_records_stand_between_the_markers(guest: Guest) -> None:
    guest.ready("""
        def handler(event, context):
            print("printed")
            context.logger.warning("logged")
    """)
    assert guest.invoke(request="r-7")[2] == b""
    lines = guest.control.wait_for_text("FC Invoke End").splitlines()
    assert lines[0] == "FC Invoke Start RequestId: r-7"
    assert lines[1] == "printed"
    assert lines[2].endswith(" r-7 [WARNING] logged")
    assert lines[3] == "FC Invoke End RequestId: r-7"


def test_a_silent_request_leaves_no_line_and_a_traceback_stands_where_it_happened(guest: Guest) -> None:
    guest.ready("""
        import os, subprocess, sys
        def handler(event, context):
            if event == b"fail":
                print("about to fail")
                raise ValueError("failed")
            if event == b"program":
                subprocess.run(["echo", "said"], check=True)
            if event == b"close":
                print("still said", file=sys.stderr)
                os.close(1)
    """)
    for event in (b"", b"fail", b"", b"program", b"", b"close", b""):
        guest.invoke(event, request=f"r-{event.decode()}")
    lines = guest.control.wait_for_text("FC Invoke End RequestId: r-close").splitlines()
    assert [line for line in lines if not line.startswith(("Traceback", "  "))] == [
        "FC Invoke Start RequestId: r-fail", "about to fail", "ValueError: failed", "FC Invoke End RequestId: r-fail",
        "FC Invoke Start RequestId: r-program", "said", "FC Invoke End RequestId: r-program",
        "FC Invoke Start RequestId: r-close", "still said", "FC Invoke End RequestId: r-close",
    ]  # fmt: skip


def test_an_http_request_becomes_an_event_and_its_reply_is_mapped(guest: Guest) -> None:
    guest.ready("""
        import base64, json
        def handler(event, context):
            request = json.loads(event)
            assert request["version"] == "v1" and request["rawPath"] == "/a/b"
            return {
                "statusCode": 201,
                "headers": {"X-Seen": request["queryParameters"]["q"]},
                "isBase64Encoded": True,
                "body": base64.b64encode(request["body"].encode() * 2).decode(),
            }
    """)
    status, headers, body = guest.request("POST", "/a/b?q=1", b"xy")
    assert (status, headers["x-seen"], body) == (201, "1", b"xyxy")
    assert base64.b64encode(body)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("raise ValueError('no')", "ValueError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return object()", "BadReply"),
        ("return handler(event, context)", "RecursionError"),
        ("raise MemoryError", "MemoryError"),
    ],
)
def test_a_fault_ends_its_request_and_not_the_worker(guest: Guest, statement: str, kind: str) -> None:
    guest.ready(f"""
        def handler(event, context):
            if event == b"good":
                return "fine"
            {statement}
    """)
    status, headers, body = guest.invoke()
    fault = json.loads(body)
    assert (status, headers["x-fc-error-type"]) == (200, "UnhandledInvocationError")
    assert fault["errorType"] == kind
    assert not any("roost/guest" in frame for frame in fault["stackTrace"])
    assert guest.request("GET", "/")[0] == 502
    assert guest.invoke(b"good")[2] == b"fine"


def test_the_stack_of_a_fault_names_the_users_lines(guest: Guest) -> None:
    guest.ready("""
        def inner():
            return 1 / 0
        def handler(event, context):
            return inner()
    """)
    stack = json.loads(guest.invoke()[2])["stackTrace"]
    assert len(stack) == 2
    assert 'index.py", line 3, in inner' in stack[1]
    assert "return 1 / 0" in stack[1]
    assert "ZeroDivisionError" in guest.control.wait_for_text("ZeroDivisionError")


def test_a_generator_streams_each_item(guest: Guest) -> None:
    guest.ready("""
        def handler(event, context):
            yield {"statusCode": 202, "headers": {"content-type": "text/event-stream"}}
            yield "data: 1\\n\\n"
            yield b"data: 2\\n\\n"
    """)
    status, headers, body = guest.request("GET", "/")
    assert (status, headers["content-type"], headers["transfer-encoding"]) == (202, "text/event-stream", "chunked")
    assert body == b"data: 1\n\ndata: 2\n\n"


def test_a_fault_in_mid_stream_cuts_the_body_off(guest: Guest) -> None:
    guest.ready("""
        def handler(event, context):
            yield "begun"
            raise ValueError("in the middle")
    """)
    data = read_all(guest.raw())
    assert b"5\r\nbegun\r\n" in data
    assert not data.endswith(b"0\r\n\r\n")
    guest.control.wait_for_text("in the middle")


def test_one_connection_carries_many_requests(guest: Guest) -> None:
    guest.ready("def handler(event, context): return event")
    connection = guest.connect()
    for number in range(5):
        connection.request("POST", "/invoke", str(number), {"x-fc-control-path": "/invoke"})
        assert connection.getresponse().read() == str(number).encode()
    connection.close()


def test_an_idle_connection_does_not_keep_the_next_one_waiting(guest: Guest) -> None:
    guest.ready("def handler(event, context): return event")
    idle = guest.connect()
    idle.connect()
    assert guest.invoke(b"x")[2] == b"x"
    idle.close()


@pytest.mark.parametrize(
    ("source", "kind", "text"),
    [
        ("import no_such_module", "ImportModuleError", "no_such_module"),
        ("def handler(: pass", "ImportModuleError", "SyntaxError"),
        ("import sys; sys.exit(4)", "ImportModuleError", "SystemExit"),
        ("other = 1", "HandlerNotFound", "'handler' is missing"),
        ("handler = 3", "HandlerNotFound", "not callable"),
        ("import os; os._exit(9)", "ExitedAtStart", "exit code 9"),
    ],
)
def test_code_that_does_not_load_says_why(guest: Guest, source: str, kind: str, text: str) -> None:
    event = guest.start(source)
    assert event["event"] == "failed"
    assert event["error"]["errorType"] == kind
    assert text in event["error"]["errorMessage"]


def test_a_bad_start_message_names_the_field(guest: Guest) -> None:
    event = guest.start("def handler(event, context): pass", concurrency="many")
    assert event["error"]["errorType"] == "BadStart"
    assert "concurrency" in event["error"]["errorMessage"]
