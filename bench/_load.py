"""A load generator: raw HTTP/1.1 over kept-alive connections on uvloop, in a process of its own.

    python bench/_load.py PORT PATH --connections 16 --seconds 2 [--header 'name: value'] [--vary]
    python bench/_load.py PORT PATH --burst 200 --session-header x-session-id

Prints one JSON object: `seconds`, `cpu` (seconds of its own), `answered`, `failed` (other statuses, broken
connections, no answer in time), `latencies` in seconds, in the order of completion, and with --burst the `bodies`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools  # type: ignore[import-untyped, unused-ignore]
import uvloop


@dataclass
class Result:
    latencies: list[float] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    failed: int = 0


class Client(asyncio.Protocol):
    """One connection: sends the request, and again after each answer until `until` or `count` is reached."""

    def __init__(
        self, request: bytes, result: Result, *, until: float, count: int, keep_bodies: bool = False, vary: bool = False
    ) -> None:
        self._request = request
        self._vary = vary
        self._result = result
        self._until = until
        self._left = count
        self._keep = keep_bodies
        self._body = bytearray()
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        request = self._request
        if self._vary:
            request = b"%b\r\nx-request: %d-%d\r\n\r\n" % (request[:-4], id(self), self._left)
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self._keep:
            self._body += body

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if self._parser.get_status_code() == 200:
            self._result.latencies.append(now - self._sent)
        else:
            self._result.failed += 1
        if self._keep:
            self._result.bodies.append(self._body.decode("utf-8", "replace"))
            self._body.clear()
        self._left -= 1
        assert self._transport is not None
        if self._left == 0 or now >= self._until:
            self._finish()
        elif not self._parser.should_keep_alive():
            self._result.failed += 1
            self._finish()
        else:
            self._parser = httptools.HttpResponseParser(self)
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._result.failed += 1
            self.done.set_result(None)

    def _finish(self) -> None:
        self.done.set_result(None)
        assert self._transport is not None
        self._transport.close()


def request(path: str, headers: list[str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "host: 127.0.0.1", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    result = Result()
    burst = options.burst > 0
    connections = options.burst or options.connections
    clients: list[Client] = []

    def client(number: int) -> Client:
        headers = list(options.header)
        if options.session_header:
            headers.append(f"{options.session_header}: {options.session_prefix}{number}")
        one = Client(
            request(options.path, headers),
            result,
            until=time.perf_counter() + options.seconds,
            count=1 if burst else options.requests,
            keep_bodies=burst,
            vary=options.vary,
        )
        clients.append(one)
        return one

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(
        *(
            loop.create_connection(lambda number=number: client(number), "127.0.0.1", options.port)  # type: ignore[misc]
            for number in range(connections)
        )
    )
    _, waiting = await asyncio.wait([one.done for one in clients], timeout=options.give_up)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "answered": len(result.latencies),
        "failed": result.failed + len(waiting),
        "latencies": result.latencies,
        "bodies": result.bodies,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no request is begun after that")
    parser.add_argument("--requests", type=int, default=0, help="per connection; 0: as many as the time allows")
    parser.add_argument("--burst", type=int, default=0, help="this many connections with one request each")
    parser.add_argument("--session-header", default="")
    parser.add_argument("--session-prefix", default="s")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--vary", action="store_true", help="no two requests have the same head")
    parser.add_argument("--give-up", type=float, default=120.0, help="seconds to wait for all answers")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(runner.run(run(options)), sys.stdout)


def command(*arguments: str | int | float) -> list[str]:
    """The command line that runs this file with the interpreter at hand."""
    return [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]


if __name__ == "__main__":
    main()
