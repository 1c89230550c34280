"""A sandbox's daemon and interpreter, as its tools use them: over the room's own socket, under a lease.

The room is hostile: what it says is parsed, bounded, and never more than text to anybody.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import httpx

from roost.api.mcp.streams import CODE, check, ending, envelope, lines, messages, output_of, paced, parsed, whole
from roost.model.errors import RoostError, Throttled, Unavailable
from roost.model.sandbox import explain
from roost.sandboxes.entry import SandboxLease
from roost.sandboxes.fleet import Gone

ENVD = "49983"
#: One sandbox's agents must not take all connections of the control plane.
MOST_AT_ONCE = 64
_MOST_REPLY = 8 << 20
#: A call that has nothing to wait for; a stream says something at least every half minute.
_UNARY_S, _SILENCE_S, _KEEPALIVE_S = 60.0, 90.0, "30"
_KILL_S = 2.0
#: The daemon kills a command itself this long after its time, if nobody came to do it.
_GRACE_S = 5.0

T = TypeVar("T")


class Traffic(Protocol):
    """Of the sandboxes: a place in one, and what became of it."""

    async def lease(self, id: str) -> SandboxLease: ...

    async def mourn(self, lease: SandboxLease) -> None: ...

    def why_gone(self, id: str) -> Gone: ...


class Rooms:
    """`use` does one thing in a sandbox; everything of it is over when that returns."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._users: Counter[str] = Counter()

    async def use(self, id: str, work: Callable[[Room], Awaitable[T]]) -> T:
        """Raises Gone when the sandbox is paused or ends, also in the middle; RoostError otherwise."""
        if self._users[id] >= MOST_AT_ONCE:
            raise Throttled(f"Sandbox {id} serves {MOST_AT_ONCE} tools already.", retry_after=1)
        self._users[id] += 1
        try:
            return await self._leased(id, work)
        finally:
            self._users[id] -= 1
            if not self._users[id]:
                del self._users[id]

    async def _leased(self, id: str, work: Callable[[Room], Awaitable[T]]) -> T:
        lease = await self._traffic.lease(id)
        try:
            transport = httpx.AsyncHTTPTransport(uds=lease.app_socket, verify=False)
            async with httpx.AsyncClient(
                transport=transport,
                base_url="http://sandbox",
                headers={"accept-encoding": "identity"},
                trust_env=False,
            ) as http:
                return await self._under(lease, asyncio.ensure_future(work(Room(http))))
        finally:
            lease.release()

    async def _under(self, lease: SandboxLease, task: asyncio.Future[T]) -> T:
        def revoked() -> None:
            task.cancel()

        lease.on_revoked = revoked
        try:
            return await task
        except asyncio.CancelledError:
            if lease.held:  # it is our caller that has gone
                raise
            if lease.why:
                raise Unavailable(f"The request was broken off: {explain(lease.why)}.") from None
            raise self._traffic.why_gone(lease.sandbox.id) from None
        except httpx.HTTPError as error:
            if await lease.ended(wait=True):
                await self._traffic.mourn(lease)
                raise self._traffic.why_gone(lease.sandbox.id) from None
            raise Unavailable(f"The sandbox did not answer: {str(error) or type(error).__name__}.") from error
        finally:
            lease.on_revoked = None


class Room:
    """One sandbox's two services."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def run(
        self, command: str, *, cwd: str, user: str, timeout_s: float, output: Callable[[str, bytes], None]
    ) -> str:
        """Run it with bash; how it ended, "" for exit code 0. Whoever stops waiting kills it."""
        process: dict[str, Any] = {"cmd": "/bin/bash", "args": ["-l", "-c", command]}
        if cwd:
            process["cwd"] = cwd
        message = json.dumps({"process": process, "stdin": False}).encode()
        headers = {
            **_daemon(user),
            "content-type": "application/connect+json",
            "connect-timeout-ms": str(int((timeout_s + _GRACE_S) * 1000)),
            "keepalive-ping-interval": _KEEPALIVE_S,
        }
        pid: int | None = None
        ended = False
        try:
            async with asyncio.timeout(timeout_s):
                async with self._stream("/process.Process/Start", envelope(message), headers) as chunks:
                    async for said in messages(chunks):
                        match said.get("event"):
                            case {"start": {"pid": int(number)}}:
                                pid = number
                            case {"data": {**streams}}:
                                for name, text in streams.items():
                                    output(str(name), output_of(text))
                            case {"end": dict(end)}:
                                ended = True
                                return ending(end)
        except TimeoutError:
            return f"stopped after {timeout_s:g} s"
        finally:
            if pid is not None and not ended:
                await self._kill(pid, user)
        raise Unavailable("The sandbox did not say how the command ended.")

    async def execute(self, code: str, language: str) -> AsyncGenerator[dict[str, Any], None]:
        """What running it yields, message by message. Whoever stops reading interrupts it."""
        body = json.dumps({"code": code, "language": language}).encode()
        headers = {"x-roost-port": CODE, "content-type": "application/json"}
        async with self._stream("/execute", body, headers) as chunks:
            async for line in lines(chunks):
                message = parsed(line)
                if message.get("type") in ("end_of_execution", "unexpected_end_of_execution"):
                    if message["type"] != "end_of_execution":
                        raise Unavailable("The code's process has ended before the code has.")
                    return
                yield message

    async def read(self, path: str, offset: int, most: int) -> tuple[bytes, int]:
        """At most `most` bytes of a file from `offset` on, and how many the file has (or are known of)."""
        headers = {**_daemon("user"), "range": f"bytes={offset}-{offset + most - 1}"}
        query = {"path": path, "username": "user"}
        async with self._http.stream("GET", "/files", params=query, headers=headers, timeout=_UNARY_S) as response:
            if response.status_code == 416:  # nothing is there any more
                size = response.headers.get("content-range", "").rpartition("/")[2]
                return b"", int(size) if size.isdigit() else 0
            await check(response)
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) >= most:
                    break
            total = response.headers.get("content-range", "").rpartition("/")[2]
            return bytes(data[:most]), int(total) if total.isdigit() else max(len(data), offset + len(data))

    async def write(self, path: str, data: bytes) -> str:
        """Where it is now."""
        headers = {**_daemon("user"), "content-type": "application/octet-stream"}
        query = {"path": path, "username": "user"}
        taken = await self._post("/files", data, headers, query)
        try:
            return str(json.loads(taken)[0]["path"])[:4096]
        except (ValueError, LookupError, TypeError, RecursionError):
            return path

    async def list(self, path: str, depth: int) -> list[dict[str, Any]]:
        found = await self._unary("filesystem.Filesystem/ListDir", {"path": path, "depth": depth}, "user")
        entries = found.get("entries")
        return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []

    async def _kill(self, pid: int, user: str) -> None:
        message = {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}
        with contextlib.suppress(TimeoutError, RoostError, httpx.HTTPError):
            async with asyncio.timeout(_KILL_S):
                await self._unary("process.Process/SendSignal", message, user)

    async def _unary(self, method: str, message: dict[str, Any], user: str) -> dict[str, Any]:
        headers = {**_daemon(user), "content-type": "application/json"}
        return parsed(await self._post(f"/{method}", json.dumps(message).encode(), headers, {}))

    async def _post(self, path: str, body: bytes, headers: dict[str, str], query: dict[str, str]) -> bytes:
        async with self._http.stream(
            "POST", path, params=query, content=body, headers=headers, timeout=_UNARY_S
        ) as response:
            await check(response)
            return await whole(response, _MOST_REPLY)

    @contextlib.asynccontextmanager
    async def _stream(self, path: str, body: bytes, headers: dict[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._http.stream("POST", path, content=body, headers=headers, timeout=_SILENCE_S) as response:
            await check(response)
            yield paced(response.aiter_raw())


def _daemon(user: str) -> dict[str, str]:
    named = "Basic " + base64.b64encode(f"{user}:".encode()).decode()
    return {"x-roost-port": ENVD, "authorization": named}
