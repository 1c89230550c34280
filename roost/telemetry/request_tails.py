"""The last bytes of output of recent requests, in memory: what `x-fc-log-type: Tail` returns."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque

#: Function Compute returns at most this much of a request's log with the reply.
TAIL_BYTES = 4096

Key = tuple[str, str, str]  # account, function, request id: a guest can't reach another function's tails
_Function = tuple[str, str]


class _Tail:
    __slots__ = ("done", "lines", "size", "waiting")

    def __init__(self) -> None:
        self.lines: deque[str] = deque()
        self.size = 0  # characters; at least as many bytes
        self.done = False
        self.waiting: asyncio.Event | None = None

    def read(self, limit_bytes: int) -> bytes:
        """The last bytes, in UTF-8."""
        data = "".join(f"{line}\n" for line in self.lines).encode("utf-8", "replace")
        return data[-limit_bytes:] if limit_bytes > 0 else b""


class RequestTails:
    """Bounded: at most `requests` tails of at most `limit_bytes` each, `per_function` of any one function.

    A function that invents request ids loses its own first; else the function that has printed nothing for longest.
    """

    def __init__(self, *, requests: int = 4096, per_function: int = 512, limit_bytes: int = TAIL_BYTES) -> None:
        self._requests = requests
        self._per_function = per_function
        self._limit = limit_bytes
        self._count = 0
        self._functions: OrderedDict[_Function, OrderedDict[str, _Tail]] = OrderedDict()

    def add(self, key: Key, line: str, *, ends: bool = False) -> None:
        """Append a line to the request's tail; `ends` tells that it is the last one between its markers."""
        tail = self._touch(key)
        tail.lines.append(line if len(line) < self._limit else line[-self._limit :])
        tail.size += len(tail.lines[-1]) + 1
        while tail.size - len(tail.lines[0]) - 1 >= self._limit:
            tail.size -= len(tail.lines.popleft()) + 1
        if ends:
            tail.done = True
            if tail.waiting is not None:
                tail.waiting.set()

    def read(self, key: Key, limit_bytes: int = TAIL_BYTES) -> bytes:
        """The last `limit_bytes` of the request's output so far; empty if nothing is known of it."""
        tails = self._functions.get(key[:2])
        tail = tails.get(key[2]) if tails is not None else None
        return tail.read(min(limit_bytes, self._limit)) if tail is not None else b""

    def find(self, request_id: str, limit_bytes: int = TAIL_BYTES) -> bytes:
        """The tail of the one function that printed this id. A guest that forges another's id gets nothing by it."""
        functions = [function for function, tails in self._functions.items() if request_id in tails]
        return self.read((*functions[0], request_id), limit_bytes) if len(functions) == 1 else b""

    async def read_when_ended(self, key: Key, limit_bytes: int, timeout_s: float) -> bytes:
        """As `read`, after the request's end marker has come, or `timeout_s` later.

        A reply and the output travel on different sockets; the reply may be here first.
        """
        tail = self._touch(key)
        if not tail.done:
            tail.waiting = tail.waiting or asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(tail.waiting.wait(), timeout_s)
        return tail.read(min(limit_bytes, self._limit))

    def forget(self, account: str, function: str) -> None:
        """Drop all tails of one function."""
        self._count -= len(self._functions.pop((account, function), ()))

    def _touch(self, key: Key) -> _Tail:
        function = key[:2]
        tails = self._functions.get(function)
        if tails is None:
            tails = self._functions[function] = OrderedDict()
        else:
            self._functions.move_to_end(function)
        tail = tails.get(key[2])
        if tail is not None:
            tails.move_to_end(key[2])
            return tail
        tail = tails[key[2]] = _Tail()
        self._count += 1
        if len(tails) > self._per_function:
            tails.popitem(last=False)
            self._count -= 1
        elif self._count > self._requests:
            self._evict()
        return tail

    def _evict(self) -> None:
        function, tails = next(iter(self._functions.items()))
        tails.popitem(last=False)
        self._count -= 1
        if not tails:
            del self._functions[function]
