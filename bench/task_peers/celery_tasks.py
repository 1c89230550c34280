"""Celery on Redis; the worker is its own command."""

from __future__ import annotations

import os

from celery import Celery

from bench.task_peers import effects

#: Longer than any task, as it has to be; what a killed worker had is delivered again after that.
VISIBILITY_TIMEOUT_S = 10

app = Celery("bench", broker=os.environ["BENCH_ADDRESS"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,  # what its guide advises for short tasks
    broker_transport_options={
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_restore_interval": 1,  # looks for those each second; by default every 100 seconds
        "unacked_restore_throttle": 1,
    },
    broker_pool_limit=64,
    broker_connection_retry_on_startup=True,
)


@app.task
def empty(payload: str) -> None:
    effects.take(payload)


class Producer:
    def submit(self, payload: str) -> None:
        empty.delay(payload)
