"""Pages in a browser against a server without keys: none runs code on it, by requests across sites or by rebinding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gateway_world import mirror, on_both_loops, reply, server, world

DEPLOY = "POST /2023-03-30/functions"
INVOKE = "POST /2023-03-30/functions/echo/invocations"
CALL = "POST /echo/run"
LOOK = "GET /echo/page"
OWN = "Host: 127.0.0.1:8700"
control = server(lambda head, body: reply(b"control"))


async def status(folder: Path, request: str, *fields: str, keyless: bool = True) -> int:
    async with world(folder, mirror, control=control, keyless=keyless) as w:
        lines = [f"{request} HTTP/1.1", *fields, "Content-Length: 0", "Connection: close"]
        return int((await w.raw("\r\n".join(lines).encode() + b"\r\n\r\n")).split()[1])


@pytest.mark.parametrize("request_line", [DEPLOY, INVOKE, CALL, LOOK, "GET /healthz"])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8700", "127.0.0.1.evil.example", "localhost.evil", "[::2]:80", "10.0.0.1", ""],
)
@on_both_loops
async def test_a_name_that_was_rebound_to_this_machine(tmp_path: Path, request_line: str, host: str) -> None:
    assert await status(tmp_path, request_line, f"Host: {host}") == 403


@pytest.mark.parametrize("request_line", [DEPLOY, INVOKE, CALL, "GET /healthz"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1:8700", "localhost", "LOCALHOST:1", "[::1]:8700", "127.1.2.3", "a.localhost:1"]
)
@on_both_loops
async def test_programs_reach_it_by_every_name_of_this_machine(tmp_path: Path, request_line: str, host: str) -> None:
    assert await status(tmp_path, request_line, f"Host: {host}") == 200


@pytest.mark.parametrize("request_line", [DEPLOY, INVOKE, "GET /roost/instances"])
@pytest.mark.parametrize(
    "fields",
    [
        ["Origin: https://evil.example"],
        ["Origin: null"],
        ["Origin: http://127.0.0.1:8700"],  # a page that a function serves
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site"],
        ["Sec-Fetch-Site: same-origin"],
        ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"],
    ],
)
@on_both_loops
async def test_no_page_uses_the_api(tmp_path: Path, request_line: str, fields: list[str]) -> None:
    assert await status(tmp_path, request_line, OWN, *fields) == 403


@pytest.mark.parametrize(
    ("request_line", "fields", "expected"),
    [
        (CALL, ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"], 403),
        (CALL, ["Origin: https://evil.example"], 403),
        (CALL, ["Origin: null", "Sec-Fetch-Site: cross-site"], 403),
        (CALL, ["Origin: null"], 403),
        (CALL, ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"], 403),
        (LOOK, ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], 403),
        ("OPTIONS /echo/run", ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"], 403),
        (LOOK, ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: websocket"], 403),
        # A function's own page, a link to it, an address typed, a page under development on this machine.
        (CALL, ["Origin: http://127.0.0.1:8700", "Sec-Fetch-Site: same-origin"], 200),
        (CALL, ["Origin: null", "Sec-Fetch-Site: same-origin"], 200),
        (LOOK, ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"], 200),
        (LOOK, ["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"], 200),
        (CALL, ["Origin: http://localhost:3000", "Sec-Fetch-Site: cross-site"], 200),
        (CALL, ["Origin: http://127.0.0.1:3000"], 200),
    ],
)
@on_both_loops
async def test_a_function_is_called_by_pages_of_this_machine_alone(
    tmp_path: Path, request_line: str, fields: list[str], expected: int
) -> None:
    assert await status(tmp_path, request_line, OWN, *fields) == expected


@pytest.mark.parametrize("request_line", [DEPLOY, INVOKE, CALL])
@on_both_loops
async def test_with_keys_the_keys_decide(tmp_path: Path, request_line: str) -> None:
    fields = ["Host: roost.example", "Origin: https://app.example", "Sec-Fetch-Site: cross-site"]
    assert await status(tmp_path, request_line, *fields, keyless=False) == 200
