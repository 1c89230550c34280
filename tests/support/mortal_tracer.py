"""The tracer, of whose tasks one is killed at a certain step, or late to stop.

Run with a socket's descriptor, a moment, and which of those it is, counted from 1: `making`, when it has just made
another, and before it could tell which; `branching`, while it is made to copy a branch, and both its parents know;
`reading`, when it is to stop for its registers: the time is up before it has, and it does when the request is over.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roost.isolation.namespaces import tracer
from roost.isolation.tracing import ptrace
from roost.isolation.tracing.tracee import Refused

counts = itertools.count(1)


def counted() -> bool:
    return next(counts) == int(sys.argv[3])


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def kill(pid: int, until: str) -> None:
    os.kill(pid, signal.SIGKILL)
    while state(pid) not in until:
        time.sleep(0.001)


def mortal_making() -> None:
    tell = ptrace.event_message

    def event_message(pid: int) -> int:
        if counted():
            kill(pid, "ZX")
        return tell(pid)

    ptrace.event_message = event_message


def mortal_branching() -> None:
    step, do, killed = ptrace.step, tracer.Tracer._do, []
    branches = False

    def one_step(pid: int) -> None:
        step(pid)
        if branches and counted():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    def work(self: Any, message: dict[str, Any], *more: Any) -> Any:
        nonlocal branches
        branches = message["op"] in ("branch", "fork")
        try:
            return do(self, message, *more)
        finally:
            while killed and state(killed[0]):
                time.sleep(0.001)
            killed.clear()

    ptrace.step, tracer.Tracer._do = one_step, work  # type: ignore[method-assign]


def late_reading() -> None:
    interrupt, do, answer, late = ptrace.interrupt, tracer.Tracer._do, tracer.Tracer._answer, []
    reads = False

    def interrupt_late(pid: int) -> None:
        if reads and not late and counted():
            late.append(pid)
            raise Refused("it took too long")
        if pid not in late:
            interrupt(pid)

    def work(self: Any, message: dict[str, Any], *more: Any) -> Any:
        nonlocal reads
        reads = message["op"] in ("branch", "fork")
        return do(self, message, *more)

    def one(self: Any) -> bool:
        goes_on = answer(self)
        while late:
            interrupt(late.pop())
        return goes_on

    ptrace.interrupt = interrupt_late
    tracer.Tracer._do, tracer.Tracer._answer = work, one  # type: ignore[method-assign]


MORTAL: dict[str, Callable[[], None]] = {
    "making": mortal_making,
    "branching": mortal_branching,
    "reading": late_reading,
}

if __name__ == "__main__":
    MORTAL[sys.argv[2]]()
    tracer.main()
