"""The effect of a task: a line in a file, written at once. Tasks do nothing else.

A payload is `<id> <when it was submitted> <padding>`; a line is `<id> <when it was submitted> <when it ran>`.
"""

from __future__ import annotations

import os
import time

_FILE = (
    os.open(os.environ["BENCH_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    if "BENCH_EFFECTS" in os.environ
    else -1
)


def take(payload: str) -> None:
    name, submitted, _ = payload.split(" ", 2)
    os.write(_FILE, f"{name} {submitted} {time.time()}\n".encode())
