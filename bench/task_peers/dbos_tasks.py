"""DBOS; a worker is a program that has its workflows."""

from __future__ import annotations

import os
import threading

from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions

from bench.task_peers import effects

URL = os.environ["BENCH_ADDRESS"]
QUEUE = "bench"
WORKER_CONCURRENCY = 64
POLLING_S = 0.05


@DBOS.workflow()
def empty(payload: str) -> None:
    effects.take(payload)


class Producer:
    def __init__(self) -> None:
        self._client = DBOSClient(system_database_url=URL, system_database_pool_size=32)

    def submit(self, payload: str) -> None:
        options: EnqueueOptions = {
            "workflow_name": empty.__qualname__,
            "queue_name": QUEUE,
            "workflow_id": payload.partition(" ")[0],
        }
        self._client.enqueue(options, payload)


def main() -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": URL,
        "application_version": "1",
        "log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=WORKER_CONCURRENCY, polling_interval_sec=POLLING_S)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
