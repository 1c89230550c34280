"""What has changed below one watched directory."""

from __future__ import annotations

import asyncio
import json
import posixpath
from collections import deque
from collections.abc import Callable
from types import TracebackType

from roost.guest.sandbox import inotify
from roost.guest.sandbox.entries import Entry, readable

MAX_EVENTS = 65_536  # that wait to be fetched
_KINDS = (
    (inotify.CREATE | inotify.MOVED_TO, "EVENT_TYPE_CREATE"),
    (inotify.MOVED_FROM | inotify.MOVE_SELF, "EVENT_TYPE_RENAME"),
    (inotify.ATTRIB, "EVENT_TYPE_CHMOD"),
    (inotify.MODIFY, "EVENT_TYPE_WRITE"),
    (inotify.DELETE | inotify.DELETE_SELF, "EVENT_TYPE_REMOVE"),
)
#: The only kinds whose path still names what changed.
_WITH_ENTRY = ("EVENT_TYPE_CREATE", "EVENT_TYPE_CHMOD", "EVENT_TYPE_WRITE")


class WatchFailed(Exception):
    """The watch can't go on; `code` is a code of the Connect protocol."""

    def __init__(self, message: str, code: str = "internal") -> None:
        super().__init__(message)
        self.code = code


class Watch:
    """What has changed below one directory since it was opened or asked last."""

    def __init__(
        self,
        top: str,
        *,
        recursive: bool,
        entry: Callable[[str], Entry | None] | None,
        close: Callable[[Watch], None],
    ) -> None:
        self.top = top
        self.recursive = recursive
        self._entry = entry
        self._close = close
        self._events: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._failed: WatchFailed | None = None

    def take(self) -> list[bytes]:
        """The events, each a FilesystemEvent in JSON. Raises WatchFailed once some were lost."""
        if self._failed is not None:
            raise self._failed
        taken = list(self._events)
        self._events.clear()
        self._arrived.clear()
        return taken

    async def wait(self, patience_s: float) -> list[bytes]:
        """As `take`, but waits for something; empty when nothing came in time."""
        try:
            async with asyncio.timeout(patience_s):
                await self._arrived.wait()
        except TimeoutError:
            return []
        return self.take()

    def tell(self, directory: str, name: str, mask: int) -> None:
        if self._failed is not None:
            return
        path = posixpath.join(directory, name) if name else directory
        for bits, kind in _KINDS:
            if not mask & bits:
                continue
            if len(self._events) >= MAX_EVENTS:
                self.fail(WatchFailed(f"watcher error: more than {MAX_EVENTS} events were not fetched"))
                return
            below = path[len(self.top) :].lstrip("/") or "."
            event: dict[str, object] = {"name": readable(below), "type": kind}
            if self._entry is not None and kind in _WITH_ENTRY and (entry := self._entry(path)) is not None:
                event["entry"] = entry
            self._events.append(json.dumps(event).encode())
            self._arrived.set()

    def fail(self, error: WatchFailed) -> None:
        self._failed = error
        self._events.clear()
        self._arrived.set()

    def close(self) -> None:
        self._close(self)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
