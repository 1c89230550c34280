"""A server that says what E2B's clients want to hear and does nothing: what is left is their own time.

python bench/_nothing.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys

SANDBOX = {
    "templateID": "code-interpreter-v1",
    "sandboxID": "inothing000000000000",
    "clientID": "nothing",
    "envdVersion": "0.6.13",
    "envdAccessToken": "0" * 64,
}
CONTEXT = {"id": "00000000-0000-0000-0000-000000000000", "language": "python", "cwd": "/home/user"}
CELL = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"type": "number_of_executions", "execution_count": 1},
        {"type": "result", "text": "2", "extra": {}, "is_main_result": True},
        {"type": "end_of_execution"},
    )
)


def reply(method: bytes, path: bytes) -> bytes:
    if method == b"DELETE":
        return b"HTTP/1.1 204 No Content\r\n\r\n"
    if path.startswith(b"/execute"):
        body, status = CELL, b"200 OK"
    elif path.startswith(b"/contexts"):
        body, status = json.dumps(CONTEXT).encode(), b"200 OK"
    else:
        body, status = json.dumps(SANDBOX).encode(), b"201 Created"
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


class Nothing(asyncio.Protocol):
    """Whole requests, with bodies of a known length."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        if end and len(rest) >= length:
            method, path, _ = head.split(b" ", 2)
            self._data = rest[length:]
            self._transport.write(reply(method, path))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Nothing, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
