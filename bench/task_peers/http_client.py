"""POSTs over kept connections, a connection for each request under way: the client of what is called over HTTP."""

from __future__ import annotations

import asyncio
import math
import os
import time


def delay_s() -> int:
    """By how many whole seconds a task is to be delayed, so that all become due when the benchmark wants them to."""
    return max(0, math.ceil(float(os.environ["BENCH_RELEASE"]) - time.time()))


class HttpClient:
    def __init__(self, address: str) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, headers: str, body: bytes, *, status: int) -> None:
        """Raises RuntimeError with another answer."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        _, _, rest = answer.partition("content-length:")
        content = await reader.readexactly(int(rest.partition("\r")[0] or 0))
        if not answer.startswith(f"http/1.1 {status}"):
            writer.close()
            raise RuntimeError(f"{answer.partition(chr(13))[0]} {content.decode(errors='replace')[:300]}")
        self._idle.append((reader, writer))
