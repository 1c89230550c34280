"""Roost over HTTP with httpx, a client that people have."""

from __future__ import annotations

import os

import httpx

from bench.task_peers.http_client import delay_s


class Producer:
    def __init__(self) -> None:
        self._client = httpx.AsyncClient(base_url=f"http://{os.environ['BENCH_ADDRESS']}", timeout=60)

    async def submit(self, payload: str) -> None:
        headers = {"x-fc-invocation-type": "Async", "x-fc-async-delay": str(delay_s())}
        path = "/2023-03-30/functions/empty/invocations"
        answer = await self._client.post(path, content=payload.encode(), headers=headers)
        if answer.status_code != 202:
            raise RuntimeError(f"{answer.status_code} {answer.text[:300]}")
