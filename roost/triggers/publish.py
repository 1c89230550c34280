"""Sends events about ended tasks to queues. Implements `functions.tasks.ports.Publisher`."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from roost.functions.triggers.queues import queue_destination
from roost.model.errors import InvalidArgument, RoostError, Unavailable
from roost.triggers.adapters import Sender, adapter
from roost.triggers.sources.queues import said_of

#: Connections are kept while they are used, at most so many, each for one destination.
MAX_CONNECTIONS = 32
IDLE_S = 60.0
#: One event, from the making of its connection to the queue's confirmation.
PUBLISH_S = 20.0


@dataclass(eq=False)
class _Connection:
    """One destination's. Its lock is held while it is made."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    send: Sender | None = None
    users: int = 0
    used: float = 0.0  # last, on the event loop's clock


class QueuePublisher:
    """`close` it before the loop ends."""

    def __init__(self, *, most: int = MAX_CONNECTIONS, idle_s: float = IDLE_S) -> None:
        self._most = most
        self._idle_s = idle_s
        self._connections: OrderedDict[str, _Connection] = OrderedDict()  # by destination, least recently used first
        self._closing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def publish(self, destination: str, event_id: str, body: bytes) -> None:
        """Returns when the queue has confirmed it. Raises InvalidArgument (not a queue's URL), Unavailable."""
        connection = self._connection(destination)
        connection.users += 1
        try:
            async with asyncio.timeout(PUBLISH_S):
                send = await self._sender(destination, connection)
                await send(event_id, body)
        except Exception as error:
            self._drop(destination, connection)
            if isinstance(error, RoostError):
                raise
            raise Unavailable(f"The queue did not take the event: {said_of(error)}.") from error
        finally:
            connection.users -= 1
            connection.used = asyncio.get_running_loop().time()
            self._tidy()

    async def close(self) -> None:
        """Ends all connections."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for destination, connection in list(self._connections.items()):
            self._drop(destination, connection)
        while self._closing:
            await asyncio.wait(self._closing)

    def _connection(self, destination: str) -> _Connection:
        found = self._connections.get(destination)
        if found is None:
            if len(self._connections) >= self._most and not self._evict():
                raise Unavailable(f"Events are being sent to {self._most} queues, the most that is possible at a time.")
            found = self._connections[destination] = _Connection()
        self._connections.move_to_end(destination)
        return found

    async def _sender(self, destination: str, connection: _Connection) -> Sender:
        async with connection.lock:
            if connection.send is None:
                try:
                    target = queue_destination(destination)
                except ValueError as error:
                    raise InvalidArgument(f"The destination is no queue's: {error}.") from error
                connection.send = await connection.stack.enter_async_context(
                    adapter(target.endpoint.kind).sender(target)
                )
            return connection.send

    # --- letting go --------------------------------------------------------------------------------------------

    def _evict(self) -> bool:
        """Drop the one that nobody has used for longest."""
        for destination, connection in self._connections.items():
            if connection.users == 0:
                self._drop(destination, connection)
                return True
        return False

    def _drop(self, destination: str, connection: _Connection) -> None:
        if self._connections.get(destination) is connection:
            del self._connections[destination]
            task = asyncio.get_running_loop().create_task(_end(connection))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _tidy(self) -> None:
        """One timer, while there are connections: it drops those that are idle."""
        if self._timer is None and self._connections:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._drop_idle)

    def _drop_idle(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for destination, connection in list(self._connections.items()):
            if connection.users == 0 and connection.used + self._idle_s <= now:
                self._drop(destination, connection)
        self._tidy()


async def _end(connection: _Connection) -> None:
    """Others may still be sending by it: what is broken for one is broken for them."""
    async with connection.lock:
        connection.send = None
        await connection.stack.aclose()
