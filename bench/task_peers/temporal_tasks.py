"""Temporal: an activity without a workflow, its form of a job."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from bench.task_peers import effects

ADDRESS = os.environ["BENCH_ADDRESS"]
QUEUE = "bench"
#: What a killed worker had is run again after that.
START_TO_CLOSE = timedelta(seconds=5)


@activity.defn
async def empty(payload: str) -> None:
    effects.take(payload)


class Producer:
    _client: Client

    async def open(self) -> None:
        self._client = await Client.connect(ADDRESS)

    async def submit(self, payload: str) -> None:
        await self._client.start_activity(
            empty, payload, id=payload.partition(" ")[0], task_queue=QUEUE, start_to_close_timeout=START_TO_CLOSE
        )


async def main() -> None:
    client = await Client.connect(ADDRESS)
    await Worker(client, task_queue=QUEUE, activities=[empty], max_concurrent_activities=64).run()


if __name__ == "__main__":
    asyncio.run(main())
