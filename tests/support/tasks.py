"""Tasks of a real server: submitted over HTTP, their effects counted in a file, their records read from the store."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.server import Server

FINISHED = {"Succeeded", "Failed", "Stopped", "Expired"}

#: Appends its event's first word to a file of the host, then does what the rest says.
EFFECTS = """
import os, time
def handler(event, context):
    id, verb, *rest = event.decode().split()
    fd = os.open("/mnt/effects/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{id} {context.request_id}\\n".encode())
    os.close(fd)
    if verb == "sleep":
        time.sleep(float(rest[0]))
    if verb == "raise":
        raise ValueError(rest[0])
    return f"done {id}"
"""
MOUNT = {"nasConfig": {"mountPoints": [{"serverAddr": "effects:/", "mountDir": "/mnt/effects"}]}}


@dataclass(frozen=True)
class Record:
    id: str
    state: str
    attempts: int
    spared: int
    error_type: str
    error: str
    instance_id: str
    result: bytes | None
    events: list[tuple[str, float, str]]

    @property
    def states(self) -> list[str]:
        return [event[0] for event in self.events]


def submit(server: Server, function: str, event: str, *, id: str = "", **headers: str) -> httpx.Response:
    if id:
        headers["x_fc_async_task_id"] = id
    return server.invoke(function, event, x_fc_invocation_type="Async", **headers)


def records(data_dir: Path, function: str) -> dict[str, Record]:
    """By id, as they are on the disk now."""
    with contextlib.closing(sqlite3.connect(f"file:{data_dir}/roost.db?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT id, state, attempts, spared, error_type, error, instance_id, result, events FROM tasks"
            " WHERE function=?",
            (function,),
        )
        return {row[0]: Record(*row[:-1], [tuple(event) for event in json.loads(row[-1])]) for row in rows}


def finished(data_dir: Path, function: str, ids: Iterable[str], *, timeout: float = 60) -> dict[str, Record]:
    """The records, once those of `ids` are all finished."""
    wanted, deadline = set(ids), time.monotonic() + timeout
    while True:
        found = records(data_dir, function)
        missing = {id: found[id].state if id in found else "?" for id in wanted if id not in found
                   or found[id].state not in FINISHED}  # fmt: skip
        if not missing:
            return found
        assert time.monotonic() < deadline, f"not finished: {missing}"
        time.sleep(0.05)


def effects(data_dir: Path) -> Counter[str]:
    """How often each id's handler ran."""
    log = data_dir / "volumes/default/effects/log"
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


def configure(server: Server, function: str, **config: Any) -> httpx.Response:
    with server.client() as client:
        return client.put(f"/2023-03-30/functions/{function}/async-invoke-config", json=config)
