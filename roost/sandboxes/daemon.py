"""Commands in a room by its daemon's own protocol (`process.Process` over Connect with JSON), as clients run them.

The room is hostile: what its daemon answers is parsed as such, and bounded.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx

from roost.model.errors import InvalidArgument, Unavailable

SHELL = "/bin/bash"
_PORT = "49983"
_HEADER = 5
_END = 2
_MOST_MESSAGE = 1 << 20
_MOST_LINE = 4096
_CANCEL_S = 2.0
_CODES = frozenset({"invalid_argument", "not_found", "unauthenticated", "resource_exhausted", "permission_denied"})


class CommandRefused(InvalidArgument):
    """The room does not run it: no such user or folder."""


class Lines:
    """Cuts output into lines. What goes over `_MOST_LINE` characters is a line of its own."""

    def __init__(self, on_line: Callable[[str, str], None]) -> None:
        self._on_line = on_line
        self._partial: dict[str, str] = {}

    def add(self, stream: str, data: bytes) -> None:
        text = self._partial.pop(stream, "") + data.decode(errors="replace")
        *lines, rest = text.replace("\r\n", "\n").split("\n")
        while len(rest) > _MOST_LINE:
            lines.append(rest[:_MOST_LINE])
            rest = rest[_MOST_LINE:]
        for line in lines:
            self._on_line(stream, line)
        self._partial[stream] = rest

    def end(self) -> None:
        for stream, rest in self._partial.items():
            if rest:
                self._on_line(stream, rest)


class DaemonRunner:
    """Runs commands in rooms, given as the path of their app.sock."""

    async def run(
        self,
        room: str,
        command: str,
        *,
        user: str,
        cwd: str,
        env: Mapping[str, str],
        on_line: Callable[[str, str], None],
    ) -> int:
        """As `builder.Runner`. Raises CommandRefused, or Unavailable when the room is gone."""
        process = {"cmd": SHELL, "args": ["-l", "-c", command], "cwd": cwd, "envs": dict(env)}
        lines = Lines(on_line)
        pid = 0
        try:
            async with _client(room, user) as client:
                try:
                    async for event in _events(client, {"process": process, "stdin": False}):
                        if "start" in event:
                            pid = _number(event["start"].get("pid"))
                        elif "data" in event:
                            for stream in ("stdout", "stderr"):
                                if stream in event["data"]:
                                    lines.add(stream, base64.b64decode(event["data"][stream], validate=True))
                        elif "end" in event:
                            lines.end()
                            return _exit_code(event["end"])
                except asyncio.CancelledError:
                    await _kill(client, pid)
                    raise
        except _Refused as error:
            shown = command if len(command) <= 200 else f"{command[:200]}..."
            raise CommandRefused(f"failed to run command '{shown}': command failed: {error}") from error
        except (httpx.HTTPError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Unavailable(f"The room's daemon does not answer as it should: {error}.") from error
        raise Unavailable("The room's daemon ended a command without its exit code.")


class _Refused(Exception):
    """What the daemon says instead of running it."""


def _client(room: str, user: str) -> httpx.AsyncClient:
    authority = base64.b64encode(f"{user}:".encode()).decode()
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=room),
        base_url="http://room",
        timeout=httpx.Timeout(None, connect=10.0),
        headers={"x-roost-port": _PORT, "authorization": f"Basic {authority}", "keepalive-ping-interval": "50"},
    )


async def _events(client: httpx.AsyncClient, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of one command. Raises _Refused, ValueError for what is no answer."""
    message = json.dumps(body).encode()
    async with client.stream(
        "POST",
        "/process.Process/Start",
        content=b"\0" + len(message).to_bytes(4, "big") + message,
        headers={"content-type": "application/connect+json"},
    ) as response:
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}")
        buffer = bytearray()
        async for data in response.aiter_raw():
            buffer += data
            while len(buffer) >= _HEADER:
                flags, length = buffer[0], int.from_bytes(buffer[1:_HEADER], "big")
                if length > _MOST_MESSAGE:
                    raise ValueError("a message is too long")
                if len(buffer) < _HEADER + length:
                    break
                value = json.loads(buffer[_HEADER : _HEADER + length])
                del buffer[: _HEADER + length]
                if flags & _END:
                    if error := value.get("error"):
                        raise _Refused(_told(error))
                    return
                event = value["event"] if isinstance(value.get("event"), dict) else {}
                if all(isinstance(part, dict) for part in event.values()):
                    yield event


def _told(error: Mapping[str, Any]) -> str:
    code = str(error.get("code"))
    return f"{code if code in _CODES else 'unknown'}: {str(error.get('message'))[:500]}"


def _exit_code(end: Mapping[str, Any]) -> int:
    """128 + n for a signal; which one is told in words alone, and SIGKILL is taken for the others."""
    if end.get("exited") is True:
        return _number(end.get("exitCode")) & 0xFF
    return 128 + 9


def _number(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else 0


async def _kill(client: httpx.AsyncClient, pid: int) -> None:
    """The command is wanted no more; if the room does not take that in time, its end will do."""
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(_CANCEL_S):
            body = {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}
            await client.post("/process.Process/SendSignal", json=body)
