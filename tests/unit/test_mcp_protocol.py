"""Messages of the Model Context Protocol, and what tools make of arguments and outputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.api.mcp import arguments as args
from roost.api.mcp import protocol
from roost.api.mcp.code_run import CodeRun
from roost.api.mcp.protocol import Refused
from roost.api.mcp.sandbox_tools import file_reply
from roost.api.mcp.text import Output, Reply
from roost.model.errors import InvalidArgument

NEW = "2026-07-28"
META = {"io.modelcontextprotocol/protocolVersion": NEW, "io.modelcontextprotocol/clientCapabilities": {}}


def message(method: str = "tools/list", *, id: Any = 1, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


def headers(method: str = "tools/list", version: str = NEW, **more: str) -> dict[str, str]:
    return {"mcp-protocol-version": version, "mcp-method": method, **{k.replace("_", "-"): v for k, v in more.items()}}


def refused(body: bytes, given: dict[str, str] | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        protocol.parse(body, given or {})
    return caught.value


def test_a_request_of_the_handshakes_kind() -> None:
    for version in (None, *protocol.HANDSHAKE_VERSIONS):
        call = protocol.parse(message(a=1), {} if version is None else {"mcp-protocol-version": version})
        assert (call.method, call.params, call.stateless, call.notification) == ("tools/list", {"a": 1}, False, False)
    note = protocol.parse(b'{"jsonrpc":"2.0","method":"notifications/initialized"}', {})
    assert note.notification
    assert protocol.success(call, {"x": 1}, {}) == {"jsonrpc": "2.0", "id": 1, "result": {"x": 1}}


def test_a_request_that_says_all_by_itself() -> None:
    call = protocol.parse(message(_meta=META), headers())
    assert call.stateless
    result = protocol.success(call, {"x": 1}, {"name": "roost"})["result"]
    assert result == {
        "resultType": "complete",
        "x": 1,
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "roost"}},
    }
    named = protocol.parse(
        message("tools/call", _meta=META, name="grüß"), headers("tools/call", mcp_name="=?base64?Z3LDvMOf?=")
    )
    assert named.params["name"] == "grüß"


@pytest.mark.parametrize(
    ("body", "given", "code"),
    [
        (message(), headers(), protocol.INVALID_PARAMS),
        (message(_meta={}), headers(), protocol.INVALID_PARAMS),
        (message(_meta=META), {}, protocol.HEADER_MISMATCH),
        (message(_meta=META), headers(version="2025-11-25"), protocol.HEADER_MISMATCH),
        (message(_meta=META), headers("tools/call"), protocol.HEADER_MISMATCH),
        (message("tools/call", _meta=META, name="a"), headers("tools/call"), protocol.HEADER_MISMATCH),
        (message("tools/call", _meta=META, name="a"), headers("tools/call", mcp_name="b"), protocol.HEADER_MISMATCH),
        (
            message("tools/call", _meta=META, name="a"),
            headers("tools/call", mcp_name="=?base64?!?="),
            protocol.HEADER_MISMATCH,
        ),
    ],
)
def test_headers_and_body_must_agree(body: bytes, given: dict[str, str], code: int) -> None:
    assert refused(body, given).code == code


def test_versions_that_nobody_speaks() -> None:
    error = refused(message(), {"mcp-protocol-version": "2027-01-01"})
    assert error.code == protocol.UNSUPPORTED_VERSION
    assert error.data == {"supported": [NEW, *protocol.HANDSHAKE_VERSIONS], "requested": "2027-01-01"}
    strange = {**META, "io.modelcontextprotocol/protocolVersion": "2027-01-01"}
    assert refused(message(_meta=strange), headers(version="2027-01-01")).code == protocol.UNSUPPORTED_VERSION
    for asked, spoken in (("2025-06-18", "2025-06-18"), ("2027-01-01", "2025-11-25"), (NEW, "2025-11-25")):
        assert protocol.initialized({"protocolVersion": asked}, {}, "")["protocolVersion"] == spoken
    with pytest.raises(Refused):
        protocol.initialized({}, {}, "")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", protocol.PARSE_ERROR),
        (b"\xff", protocol.PARSE_ERROR),
        (b"[" * 100_000, protocol.PARSE_ERROR),
        (b"[]", protocol.INVALID_REQUEST),
        (b"1", protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"1.0","id":1,"method":"x"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":null,"method":"x"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":true,"method":"x"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"x"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":[]}', protocol.INVALID_PARAMS),
    ],
)
def test_what_is_no_message(body: bytes, code: int) -> None:
    error = refused(body)
    assert error.code == code
    assert protocol.status_of(error, stateless=True) == 400
    assert protocol.failure(protocol.id_of(body), error)["id"] in (None, 1)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,jsonrpcidmethodparams2.01 ', max_size=200).map(str.encode))
def test_nothing_that_comes_is_a_surprise(body: bytes) -> None:
    try:
        protocol.parse(body, {})
    except Refused:
        protocol.id_of(body)


def test_statuses_are_those_of_the_clients_kind() -> None:
    unknown = Refused(protocol.METHOD_NOT_FOUND, "")
    assert (protocol.status_of(unknown, stateless=True), protocol.status_of(unknown, stateless=False)) == (404, 200)


@pytest.mark.parametrize(
    ("header", "json", "events"),
    [
        ("application/json, text/event-stream", True, True),
        ("application/json;q=0.9", True, False),
        ("*/*", True, True),
        ("application/*", True, False),
        ("text/html", False, False),
        ("", False, False),
    ],
)
def test_what_a_client_accepts(header: str, json: bool, events: bool) -> None:
    assert protocol.accepts(header) == (json, events)


# --- arguments and outputs -------------------------------------------------------------------------------------------


def test_arguments_are_named_in_what_is_wrong_with_them() -> None:
    assert args.parse(args.RunCommand, {"command": "true", "timeout": "5"}).timeout == 5
    for given_, said in (
        ({}, "command: "),
        ({"command": 1}, "command: "),
        ({"command": "a", "timeout": 0}, "timeout: "),
        ({"command": "a", "timeout": float("nan")}, "timeout: "),
        ({"command": "a", "x": 1}, "x: "),
    ):
        with pytest.raises(InvalidArgument, match=said):
            args.parse(args.RunCommand, given_)


def test_schemas_say_what_is_required() -> None:
    plain = args.schema(args.ReadFile)
    assert (plain["required"], plain["additionalProperties"]) == (["path"], False)
    more = args.schema(args.ReadFile, {"sandbox": {"type": "string"}})
    assert (more["required"], list(more["properties"])) == (["sandbox", "path"], ["sandbox", "path", "offset"])
    assert "title" not in json.dumps(plain)
    assert "required" not in args.schema(args.ListSandboxes)


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(2, 64))
def test_an_output_keeps_its_ends(parts: list[bytes], most: int) -> None:
    output, whole = Output(most), b"".join(parts)
    for part in parts:
        output.add(part)
    half = most // 2
    if len(whole) <= 2 * half:
        assert output.text() == whole.decode("utf-8", "replace")
    else:
        text = output.text()
        assert f"{len(whole) - 2 * half} of {len(whole)} bytes were cut here" in text
        assert text.startswith(whole[:half].decode("utf-8", "replace"))
        assert text.endswith(whole[-half:].decode("utf-8", "replace"))


def test_a_run_of_code_in_one_reply() -> None:
    run = CodeRun()
    for said in (
        {"type": "number_of_executions", "execution_count": 1},
        {"type": "stdout", "text": "out\n"},
        {"type": "stderr", "text": "err\n"},
        {"type": "result", "text": "<Figure>", "png": "aGk="},
        {"type": "result", "text": "7"},
        {"type": "error", "name": "E", "value": "v", "traceback": "\x1b[31mE\x1b[0m: v"},
    ):
        run.take(said)
    reply = run.reply().to_json()
    assert reply["isError"]
    assert reply["content"] == [
        {"type": "text", "text": "out\n[stderr]\nerr\n7\nE: v"},
        {"type": "image", "data": "aGk=", "mimeType": "image/png"},
    ]
    assert CodeRun().reply() == Reply(content=[{"type": "text", "text": "(no output)"}])


def test_half_a_character_is_replaced() -> None:
    assert Reply.of("a\ud800b").content[0]["text"] == "a?b"


def test_images_are_bounded() -> None:
    run = CodeRun()
    for _ in range(9):
        run.take({"type": "result", "png": "aGk="})
    run.take({"type": "result", "jpeg": "A" * (6 << 20)})
    reply = run.reply()
    assert len(reply.content) == 9
    assert reply.content[0]["text"] == "[2 images were left out: too many, or too large]"


def test_parts_of_a_file_end_between_characters() -> None:
    whole = "aü".encode()
    assert file_reply(whole, 0, 3).content[0]["text"] == "aü"
    assert file_reply(whole[:2], 0, 3).content[0]["text"] == "a\n[bytes 0 to 1 of 3; read on with offset 1]"
    assert file_reply(b"", 0, 0).content[0]["text"] == "(empty)"
    assert file_reply(b"\xff\xfe", 0, 2).error
