"""Restate: a service's handler, sent one-way through the ingress; the worker is the service behind Hypercorn."""

from __future__ import annotations

import os

import restate

from bench.task_peers import effects
from bench.task_peers.http_client import HttpClient, delay_s

bench = restate.Service("Bench")


@bench.handler()
async def empty(ctx: restate.Context, payload: str) -> None:
    effects.take(payload)


app = restate.app([bench])


class Producer:
    def __init__(self) -> None:
        self._client = HttpClient(os.environ["BENCH_ADDRESS"])

    async def submit(self, payload: str) -> None:
        delay = delay_s()
        path = f"/Bench/empty/send?delay={delay}s" if delay else "/Bench/empty/send"
        body = f'"{payload}"'.encode()
        await self._client.post(path, "content-type: application/json\r\n", body, status=202)
