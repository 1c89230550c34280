"""arq; the worker is its own command."""

from __future__ import annotations

import os
from typing import Any

from arq import ArqRedis, create_pool
from arq.connections import RedisSettings

from bench.task_peers import effects

REDIS = RedisSettings.from_dsn(os.environ["BENCH_ADDRESS"])


async def empty(ctx: dict[str, Any], payload: str) -> None:
    effects.take(payload)


class WorkerSettings:
    functions = [empty]
    redis_settings = REDIS
    max_jobs = 64
    job_timeout = 5  # what a killed worker had is run again 10 s after that
    poll_delay = 0.02


class Producer:
    _redis: ArqRedis

    async def open(self) -> None:
        self._redis = await create_pool(REDIS)

    async def submit(self, payload: str) -> None:
        if await self._redis.enqueue_job("empty", payload, _job_id=payload.partition(" ")[0]) is None:
            raise RuntimeError("the id is known")
