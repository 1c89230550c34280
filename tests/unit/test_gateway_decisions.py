"""The gateway's pure decisions: routes, sessions, heads, errors, and when a request may be sent again."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.gateway import sessions, tasks
from roost.gateway.connection import encode
from roost.gateway.faults import Style, render, timed_out, wrap
from roost.gateway.fields import line
from roost.gateway.head import BadMessage, ResponseHead, parse_request, parse_response
from roost.gateway.proxy import may_replay
from roost.gateway.routes import Control, Event, Http, Route, route
from roost.instances.lease import SessionRef
from roost.model.errors import Fault, InitializerFailed, InvalidArgument, NotFound, Throttled, Unavailable
from roost.model.function import Affinity, SessionPolicy


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", b"/healthz", Control()),
        ("GET", b"/metrics?x", Control()),
        ("GET", b"/roost/deep/path", Control()),
        ("GET", b"/2023-03-30/functions", Control()),
        ("GET", b"/%68ealthz", Control()),
        ("GET", b"/2023-03-30/functions/f/invocations", Control()),
        ("POST", b"/2023-03-30/functions/f/invocations/x", Control()),
        ("POST", b"/2023-03-30/functions/f/invocations", Event(name="f", qualifier="LATEST")),
        ("POST", b"/2023-03-30/functions/f/invocations?qualifier=3", Event(name="f", qualifier="3")),
        ("POST", b"/2023-03-30/functions/%66/invocations?a=b", Event(name="f", qualifier="LATEST")),
        ("GET", b"/f", Http(name="f", qualifier="LATEST", prefix="/f", target=b"/")),
        ("GET", b"/f/", Http(name="f", qualifier="LATEST", prefix="/f", target=b"/")),
        ("GET", b"/f?q=/x", Http(name="f", qualifier="LATEST", prefix="/f", target=b"/?q=/x")),
        ("PUT", b"/f:prod/a%2Fb?c", Http(name="f", qualifier="prod", prefix="/f:prod", target=b"/a%2Fb?c")),
        ("GET", b"/f/../metrics", Http(name="f", qualifier="LATEST", prefix="/f", target=b"/../metrics")),
        ("GET", b"/f%3Aprod/x", Http(name="f", qualifier="prod", prefix="/f%3Aprod", target=b"/x")),
    ],
)
def test_routes(method: str, target: bytes, expected: Route) -> None:
    assert route(method, target) == expected


@pytest.mark.parametrize("target", [b"/", b"//f", b"/?x", b"/9f", b"/a.b/c", b"/f%00", b"/%2e%2e/f", b"/" + b"f" * 65])
def test_paths_that_name_no_function(target: bytes) -> None:
    with pytest.raises(NotFound):
        route("GET", target)


@pytest.mark.parametrize("name", [b"9f", b"a.b", b"f" * 65])
def test_an_event_for_a_name_that_no_function_can_have(name: bytes) -> None:
    with pytest.raises(InvalidArgument, match="1 to 64 letters"):
        route("POST", b"/2023-03-30/functions/" + name + b"/invocations")


@pytest.mark.parametrize("target", [b"/f:", b"/f:a b", b"/f:a:b", b"/f:-a"])
def test_bad_qualifiers(target: bytes) -> None:
    with pytest.raises(InvalidArgument):
        route("GET", target)


@given(st.binary(max_size=60))
def test_any_target_has_a_route_or_a_clear_error(rest: bytes) -> None:
    try:
        found = route("POST", b"/" + rest)
    except (NotFound, InvalidArgument):
        return
    assert not isinstance(found, Http) or found.target.startswith(b"/")


@given(st.binary(max_size=200))
def test_any_head_is_parsed_or_refused(junk: bytes) -> None:
    try:
        parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + junk.replace(b"\r\n\r\n", b"") + b"\r\n\r\n")
    except BadMessage as error:
        assert 400 <= error.status <= 505


@pytest.mark.parametrize(
    ("target", "expected"),
    [(b"http://h/a?b", b"/a?b"), (b"http://h", b"/"), (b"https://h?x=/y", b"/?x=/y"), (b"/a//b", b"/a//b")],
)
def test_absolute_targets_become_paths(target: bytes, expected: bytes) -> None:
    assert parse_request(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target).target == expected


@pytest.mark.parametrize(
    ("head", "keep"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: a, Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_keep_alive(head: bytes, keep: bool) -> None:
    assert parse_request(head).keep_alive is keep


@pytest.mark.parametrize(
    ("lines", "upgrade"),
    [
        (b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n", b"websocket"),
        (b"Upgrade: websocket\r\n", b""),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n", b""),
    ],
)
def test_upgrades(lines: bytes, upgrade: bytes) -> None:
    assert parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n").upgrade == upgrade


# -- sending again


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"reused": False}, False),
        ({"answering": True}, False),
        ({"whole": False}, False),
        ({"error": None}, False),
        ({"error": ConnectionResetError()}, False),
        ({"error": ConnectionResetError(), "method": "GET"}, True),
        ({"error": None, "method": "GET"}, False),
    ],
)
def test_a_request_is_sent_again_only_if_it_can_not_have_run(changes: dict[str, object], expected: bool) -> None:
    usual: dict[str, object] = {
        "reused": True,
        "answering": False,
        "whole": True,
        "method": "POST",
        "error": BrokenPipeError(),
    }
    assert may_replay(**(usual | changes)) is expected  # type: ignore[arg-type]


# -- errors


def test_retry_after_is_a_whole_number_and_there_when_it_helps() -> None:
    for error, expected in ((Throttled("x", retry_after=0.2), b"1"), (Unavailable("x"), b"1"), (Throttled("x"), b"1")):
        assert b"retry-after: %b\r\n" % expected in render(error, style=Style.API, request_id="r").fields
    assert b"retry-after" not in render(NotFound("x"), style=Style.API, request_id="r").fields


def test_faults_by_style() -> None:
    error = InitializerFailed(Fault(type="E", message="m", stack=("a", "b")))
    fault = {"errorMessage": "m", "errorType": "E", "stackTrace": ["a", "b"]}
    event = render(error, style=Style.EVENT, request_id="r")
    assert (event.status, json.loads(event.body)) == (200, fault)
    http = render(error, style=Style.HTTP, request_id="r")
    known = {"Code": "FunctionNotStarted", "Message": "m", "RequestId": "r"}
    assert (http.status, json.loads(http.body)) == (502, known | fault)
    assert b"x-fc-error-type: FunctionNotStarted\r\n" in http.fields


def test_timeouts_name_their_seconds() -> None:
    assert timed_out(3.0).message == "Function timed out after 3 seconds"
    assert timed_out(0.5).message == "Function timed out after 0.5 seconds"


def test_foreign_errors_tell_nothing() -> None:
    assert "secret" not in wrap(RuntimeError("secret")).message


@given(st.text(max_size=50))
def test_a_value_is_never_more_than_its_line(value: str) -> None:
    assert line("name", value).count(b"\n") == 1
    assert (
        b"\r\n\r\n"
        not in encode(render(NotFound(value), style=Style.API, request_id="r"), keep_alive=True)[:-4].split(
            b"content-length", 1
        )[0]
    )


# -- sessions


def head_of(*lines: bytes, method: bytes = b"GET") -> object:
    return parse_request(
        b"%b / HTTP/1.1\r\nHost: h\r\n" % method + b"".join(each + b"\r\n" for each in lines) + b"\r\n"
    )


def plan(
    affinity: Affinity, *lines: bytes, target: bytes | None = b"/", method: bytes = b"GET"
) -> sessions.SessionPlan:
    policy = SessionPolicy(affinity=affinity, header="x-conversation")
    head: object = head_of(*lines, method=method)
    return sessions.plan(policy, head, target=target)  # type: ignore[arg-type]


def test_without_affinity_there_is_no_session() -> None:
    assert plan(Affinity.NONE, b"x-conversation: a").ref is None


def test_a_repeated_session_header_is_no_id() -> None:
    with pytest.raises(InvalidArgument):
        plan(Affinity.HEADER_FIELD, b"x-conversation: a", b"x-conversation: b")


@pytest.mark.parametrize("affinity", [Affinity.MCP_SSE, Affinity.MCP_STREAMABLE_HTTP])
def test_events_know_no_mcp(affinity: Affinity) -> None:
    assert plan(affinity, b"mcp-session-id: a", target=None).ref is None


def test_mcp_requests_before_and_after_the_id() -> None:
    first = plan(Affinity.MCP_STREAMABLE_HTTP, method=b"POST")
    assert (first.ref, first.mint) == (None, sessions.Mint.FIELD)
    later = plan(Affinity.MCP_STREAMABLE_HTTP, b"mcp-session-id: a", method=b"DELETE")
    assert (later.ref, later.ends) == (SessionRef(id="a", generated=True), True)
    assert plan(Affinity.MCP_SSE, target=b"/sse").mint is sessions.Mint.FIRST_EVENT
    assert plan(Affinity.MCP_SSE, target=b"/other").ref is None


def answer(*lines: bytes, status: bytes = b"200 OK") -> ResponseHead:
    return parse_response(b"HTTP/1.1 %b\r\n" % status + b"".join(each + b"\r\n" for each in lines) + b"\r\n")


def test_only_a_good_reply_mints_an_id() -> None:
    assert sessions.minted_id(answer(b"mcp-session-id: a")) == "a"
    assert sessions.minted_id(answer(b"mcp-session-id: a", status=b"400 Bad Request")) == ""


def test_only_a_plain_event_stream_is_read() -> None:
    assert sessions.is_event_stream(answer(b"content-type: text/event-stream; charset=utf-8"))
    assert not sessions.is_event_stream(answer(b"content-type: text/event-stream", b"content-encoding: gzip"))
    assert not sessions.is_event_stream(answer(b"content-type: application/json"))


STREAM = b"id: 1\r\nevent: endpoint\r\ndata: /m?sessionId=a1\r\n\r\nevent: message\r\ndata: /m?sessionId=b2\r\n\r\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_the_endpoint_event_in_any_pieces(cuts: list[int]) -> None:
    seen: list[str] = []
    event = sessions.EndpointEvent("/fn", on_id=seen.append)
    marks = [0, *sorted(cuts), len(STREAM)]
    out = b"".join(event.feed(STREAM[a:b]) for a, b in pairwise(marks)) + event.finish()
    assert out == STREAM.replace(b"data: /m?sessionId=a1", b"data: /fn/m?sessionId=a1")
    assert seen == ["a1"]


@pytest.mark.parametrize(
    "url", [b"https://h/m?sessionId=a1", b"//h/m?sessionId=a1", b"m?sessionId=a1", b"/fn/m?sessionId=a1"]
)
def test_only_an_absolute_path_gets_the_prefix(url: bytes) -> None:
    event = sessions.EndpointEvent("/fn", on_id=lambda _: None)
    block = b"event: endpoint\ndata: %b\n\n" % url
    assert event.feed(block) == block


@given(st.binary(max_size=20_000))
def test_other_streams_pass_unchanged(data: bytes) -> None:
    event = sessions.EndpointEvent("/fn", on_id=lambda _: None)
    if b"event" not in data:
        assert event.feed(data) + event.finish() == data


def test_an_error_that_can_not_be_read_is_shown_as_it_came() -> None:
    assert tasks._said(b'{"errorType": "Gone", "errorMessage": "no"}') == ("Gone", "no")
    assert tasks._said(b"[" * 100_000) == ("", "[" * 500)
