"""Roost over HTTP; its server is the worker."""

from __future__ import annotations

import os

from bench.task_peers.http_client import HttpClient, delay_s

_EFFECT = """
import os, time

FILE = os.open("/mnt/effects/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

{define} handler(event, context):
    name, submitted, _ = event.decode().split(" ", 2)
    os.write(FILE, f"{{name}} {{submitted}} {{time.time()}}\\n".encode())
"""
ONE_AT_A_TIME = _EFFECT.format(define="def")
MANY_AT_ONCE = _EFFECT.format(define="async def")


class Producer:
    def __init__(self) -> None:
        self._client = HttpClient(os.environ["BENCH_ADDRESS"])

    async def submit(self, payload: str) -> None:
        path = "/2023-03-30/functions/empty/invocations"
        headers = f"x-fc-invocation-type: Async\r\nx-fc-async-delay: {delay_s()}\r\n"
        await self._client.post(path, headers, payload.encode(), status=202)
