"""A network namespace of its own for a test, with a thread in it that does what programs of a room would do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from roost.isolation import linux


class NetworkRoom:
    """`netns` is a descriptor of the namespace."""

    def __init__(self) -> None:
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="network-room")
        self._thread.start()
        self.netns: int = self.do(os.open, "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _run(self) -> None:
        linux.unshare(linux.CLONE_NEWNET)
        linux.bring_loopback_up()
        while (work := self._work.get()) is not None:
            work()

    def do(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """What it returns, in the namespace; an OSError that it raises is returned."""
        done: queue.Queue[Any] = queue.Queue()

        def work() -> None:
            try:
                done.put(act(*arguments))
            except BaseException as error:
                done.put(error)

        self._work.put(work)
        found = done.get(timeout=30)
        if isinstance(found, BaseException) and not isinstance(found, OSError):
            raise found
        return found

    async def run(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """The same, while the loop turns."""
        return await asyncio.to_thread(self.do, act, *arguments)

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()
        os.close(self.netns)


@contextlib.contextmanager
def network_room() -> Iterator[NetworkRoom]:
    room = NetworkRoom()
    try:
        yield room
    finally:
        room.close()
