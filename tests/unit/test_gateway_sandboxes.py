"""Which requests are for a sandbox, who may send them, and what the room gets to see of them."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given as given_
from hypothesis import strategies as st

from roost.gateway.browsers import check_function_caller, check_host, check_sandbox_caller
from roost.gateway.faults import Answer
from roost.gateway.head import RequestHead, parse_request
from roost.gateway.sandbox_access import refusal, signer
from roost.gateway.sandbox_cors import cors_lines, preflight
from roost.gateway.sandbox_head import room_head
from roost.gateway.sandbox_routes import SandboxTarget, target_of
from roost.model.errors import AccessDenied, InvalidArgument
from tests.support.sandboxes import record

ID = "iabcdefghij012345678"
BOX = record(ID)
OTHER = record("i0000000000000000002", envd_token="another")
NOW = 1_000_000.0


def head(target: str = "/x", method: str = "GET", host: str = "127.0.0.1:8700", **fields: str) -> RequestHead:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return parse_request(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


@pytest.mark.parametrize(
    ("host", "port"),
    [
        (f"8000-{ID}.localhost:8700", 8000),
        (f"8000-{ID}.localhost", 8000),
        (f"65535-{ID.upper()}.Example.COM:80", 65535),
        (f"49983-{ID}.sandbox.test", 49983),
    ],
)
def test_a_host_names_a_port_of_a_sandbox(host: str, port: int) -> None:
    target = target_of(head(host=host))
    assert target is not None
    assert (target.id, target.port) == (ID, port)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "127.0.0.1", f"{ID}.localhost", f"0-{ID}.localhost", f"65536-{ID}.localhost", f"8000-{ID}",
        f"8000-{ID}x.localhost", "8000-abc.localhost", f"-{ID}.localhost", f"99999999-{ID}.localhost",
    ],
)  # fmt: skip
def test_other_hosts_name_none(host: str) -> None:
    assert target_of(head(host=host)) is None


def test_fields_count_only_where_the_host_can_not_tell() -> None:
    fields = {"E2b_Sandbox_Id": ID, "E2b_Sandbox_Port": "49983"}
    for host in ("localhost:8700", "127.0.0.1", "[::1]:8700", "10.0.0.1", "sandbox.example.com"):
        assert target_of(head(host=host, **fields)) == SandboxTarget(id=ID, port=49983)
    assert target_of(head(host="example.com", **fields)) is None
    named = target_of(head(host="1-i0000000000000000002.example.com", **fields))
    assert named is not None
    assert named.id == OTHER.id


@pytest.mark.parametrize(
    "fields",
    [
        {"E2b_Sandbox_Id": ID},
        {"E2b_Sandbox_Port": "1"},
        {"E2b_Sandbox_Id": ID, "E2b_Sandbox_Port": "0"},
        {"E2b_Sandbox_Id": ID, "E2b_Sandbox_Port": "65536"},
        {"E2b_Sandbox_Id": ID, "E2b_Sandbox_Port": "+1"},
        {"E2b_Sandbox_Id": ID, "E2b_Sandbox_Port": "1, 2"},
        {"E2b_Sandbox_Id": "../x", "E2b_Sandbox_Port": "1"},
    ],
)
def test_fields_that_name_none_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        target_of(head(**fields))


@given_(st.binary(max_size=400), st.binary(max_size=80), st.binary(max_size=20), st.binary(min_size=1, max_size=80))
def test_no_field_breaks_the_routing(host: bytes, id: bytes, port: bytes, target: bytes) -> None:
    given = replace(head(), target=b"/" + target)
    given.values = {b"host": host, b"e2b-sandbox-id": id, b"e2b-sandbox-port": port}
    try:
        found = target_of(given)
    except InvalidArgument:
        return
    if found is not None:
        assert 1 <= found.port <= 65535
    signer([BOX], given)
    refusal(BOX, 49983, given, NOW)


def refused(target: str, port: int = 49983, method: str = "GET", box: object = BOX, **fields: str) -> tuple[int, str]:
    answer = refusal(box, port, head(target, method, **fields), NOW)  # type: ignore[arg-type]
    if answer is None:
        return 0, ""
    assert isinstance(answer, Answer)
    return answer.status, json.loads(answer.body)["message"]


def test_the_daemon_wants_its_token() -> None:
    unauthorized = "unauthorized access, please provide a valid access token or method signing if supported"
    assert refused("/process.Process/List", method="POST") == (401, unauthorized)
    assert refused("/process.Process/List", method="POST", X_Access_Token="wrong") == (401, unauthorized)
    assert refused("/process.Process/List", method="POST", X_Access_Token="traffic-token") == (401, unauthorized)
    assert refused("/process.Process/List", method="POST", X_Access_Token="envd-token") == (0, "")
    assert refused("/process.Process/List", X_Access_Token="envd-token, envd-token")[0] == 401
    assert refused("/health") == (0, "")
    assert refused("/health", method="POST")[0] == 401
    assert refused("/health/../process.Process/List")[0] == 401


def sign(path: str, operation: str = "read", user: str = "", token: str = "envd-token", expiration: str = "") -> str:
    raw = f"{path}:{operation}:{user}:{token}" + (f":{expiration}" if expiration else "")
    return "v1_" + base64.b64encode(hashlib.sha256(raw.encode()).digest()).rstrip(b"=").decode()


def link(path: str, signature: str, **fields: str) -> str:
    from urllib.parse import quote, urlencode

    return "/files?" + urlencode({"path": path, **fields, "signature": signature}, quote_via=quote)


def test_links_are_good_for_what_was_signed() -> None:
    assert refused("/files?path=/a") == (401, "missing signature query parameter")
    assert refused(link("/a b+ü", sign("/a b+ü"))) == (0, "")
    assert refused(link("/a", sign("/a", user="root"), username="root")) == (0, "")
    invalid = (401, "invalid signature")
    assert refused(link("/b", sign("/a"))) == invalid
    assert refused(link("/a", sign("/a", user="root"))) == invalid
    assert refused(link("/a", sign("/a")), method="POST") == invalid
    assert refused(link("/a", sign("/a", "write")), method="POST") == (0, "")
    assert refused(link("/a", sign("/a", token="another"))) == invalid
    assert refused(link("/a", sign("/a")), method="DELETE")[0] == 401
    assert refused(link("/a", sign("/a")).replace("/files", "/files/compose"))[0] == 401


def test_links_expire() -> None:
    later, before = str(int(NOW) + 10), str(int(NOW) - 10)
    assert refused(link("/a", sign("/a", expiration=later), signature_expiration=later)) == (0, "")
    expired = refused(link("/a", sign("/a", expiration=before), signature_expiration=before))
    assert expired == (401, "signature is already expired")
    # Another time than the signed one, and one that is no number.
    assert refused(link("/a", sign("/a", expiration=before), signature_expiration=later))[0] == 401
    assert refused(link("/a", sign("/a", expiration="x"), signature_expiration="x"))[0] == 401


def test_a_link_without_a_sandbox_finds_its_own() -> None:
    assert signer([OTHER, BOX], head(link("/a", sign("/a")))) == BOX
    assert signer([OTHER], head(link("/a", sign("/a")))) is None
    assert signer([OTHER, BOX], head("/files?" + "&".join(f"a{n}=1" for n in range(100)))) is None
    assert target_of(head(link("/a", sign("/a")))) == SandboxTarget(id="", port=49983)
    assert target_of(head("/files?path=/a")) is None
    assert target_of(head("/files/x?signature=v1_")) is None


def test_ports_are_private_unless_the_sandbox_is_public() -> None:
    name = "e2b-traffic-access-token"
    missing = f"Sandbox is secured with traffic access token. Token header '{name}' is missing"
    invalid = f"Sandbox is secured with traffic access token. Provided token in header '{name}' is invalid"
    assert refused("/", 8000) == (403, missing)
    assert refused("/", 8000, X_Access_Token="envd-token") == (403, missing)
    assert refused("/", 8000, E2b_Traffic_Access_Token="wrong") == (403, invalid)
    assert refused("/", 8000, E2b_Traffic_Access_Token="traffic-token") == (0, "")
    public = record(ID, public=True)
    assert refused("/", 8000, box=public) == (0, "")
    assert refused("/execute", 49999, box=public)[0] == 403
    assert refused("/execute", 49999, X_Access_Token="envd-token") == (0, "")
    assert refused("/execute", 49999, E2b_Traffic_Access_Token="traffic-token") == (0, "")


def test_the_room_sees_no_token_and_no_field_of_ours_that_a_client_made() -> None:
    fields = {
        "X_Access_Token": "secret", "E2b_Traffic_Access_Token": "secret", "E2b_Sandbox_Id": ID, "E2b_Sandbox_Port": "1",
        "x_roost_port": "49999", "Authorization": "Basic dXNlcjo=", "Connection": "close, x-hop", "x_hop": "1",
    }  # fmt: skip
    raw = b"GET /a?b HTTP/1.1\r\nhost: h\r\nX_Roost_Port: 49999\r\n"
    raw += b"".join(f"{name.replace('_', '-')}: {value}\r\n".encode() for name, value in fields.items()) + b"\r\n"
    sent = room_head(parse_request(raw), host=b"h", peer=b"127.0.0.1", daemon_port=49983)
    assert sent == b"GET /a?b HTTP/1.1\r\nHost: h\r\nAuthorization: Basic dXNlcjo=\r\nx-roost-port: 49983\r\n\r\n"
    sent = room_head(parse_request(raw), host=b"masked", peer=b"10.0.0.1", daemon_port=None)
    assert b"x-roost" not in sent.lower()
    assert b"secret" not in sent
    assert b"Host: masked\r\n" in sent
    assert b"x-forwarded-for: 10.0.0.1\r\n" in sent


def test_pages_of_sandboxes_are_strangers_to_everything_but_themselves() -> None:
    own = f"8000-{ID}.localhost:8700"
    check_host(head(host=own))
    check_sandbox_caller(head(host=own))
    check_sandbox_caller(head(host=own, Origin=f"http://{own}", method="POST"))
    check_sandbox_caller(head(host=own, Origin="http://localhost:3000"))
    for origin in (
        f"http://8001-{ID}.localhost:8700",
        "http://8000-i0000000000000000002.localhost",
        "http://evil.test",
    ):
        with pytest.raises(AccessDenied):
            check_sandbox_caller(head(host=own, Origin=origin, method="POST"))
        with pytest.raises(AccessDenied):
            check_function_caller(head(host="localhost:8700", Origin=origin, method="POST"))
    with pytest.raises(AccessDenied):
        check_host(head(host=f"8000-{ID}.evil.test"))


def test_a_browser_s_question_before_is_answered_for_every_page() -> None:
    asked = head(
        "/files",
        "OPTIONS",
        Origin="https://app.example",
        Access_Control_Request_Method="post",
        Access_Control_Request_Headers="x-access-token, e2b-sandbox-id",
    )
    assert target_of(asked) == SandboxTarget(id="", port=49983)
    answer = preflight(asked)
    assert answer is not None
    assert (answer.status, answer.body) == (204, b"")
    assert answer.fields.decode().split("\r\n") == [
        "vary: origin, access-control-request-method, access-control-request-headers",
        "access-control-allow-origin: *",
        "access-control-allow-methods: POST",
        "access-control-allow-headers: x-access-token, e2b-sandbox-id",
        "access-control-max-age: 7200",
        "",
    ]


@pytest.mark.parametrize("fields", [{}, {"Origin": "https://app.example", "Access_Control_Request_Method": "TRACE"}])
def test_what_is_not_allowed_before_is_not_named(fields: dict[str, str]) -> None:
    answer = preflight(head(method="OPTIONS", **{"Access_Control_Request_Method": "GET"} | fields))
    assert answer is not None
    assert b"allow" not in answer.fields


def test_other_requests_are_no_questions_before() -> None:
    assert preflight(head(method="OPTIONS", Origin="https://app.example")) is None
    assert preflight(head(Access_Control_Request_Method="GET")) is None
    assert target_of(head(method="OPTIONS", Access_Control_Request_Headers="x-access-token")) is None


def test_a_page_may_read_the_answers_it_gets() -> None:
    assert b"access-control-allow-origin: *\r\n" in cors_lines(head(Origin="https://app.example"))
    assert cors_lines(head()) == b"vary: origin\r\n"
