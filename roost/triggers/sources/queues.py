"""What the sources of all queues share."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any

from roost.functions.triggers.queues import QueueSettings
from roost.model.errors import RoostError, Unavailable
from roost.store.triggers import TriggerRecord
from roost.triggers.batches import Address, BatchSettings
from roost.triggers.messages import Message

_CLOSE_S = 3.0


def address_of(record: TriggerRecord) -> Address:
    return Address(source=record.type, function=record.function, trigger=record.name)


def batch_settings(settings: QueueSettings) -> BatchSettings:
    batch, retry = settings.batch, settings.retry
    return BatchSettings(
        size=batch.size,
        bytes=batch.bytes,
        window_s=batch.window_seconds,
        concurrency=settings.concurrency,
        max_attempts=retry.max_attempts,
        first_delay_s=retry.initial_delay_seconds,
        longest_delay_s=retry.max_delay_seconds,
    )


def said_of(error: BaseException) -> str:
    """One line without its full stop."""
    said = " ".join(str(error).split())[:500].rstrip(".")
    return said or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


@contextlib.contextmanager
def foreign(place: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of a client library, and of sockets, become Unavailable with the place in front."""
    theirs: tuple[type[Exception], ...] = (OSError, TimeoutError, *kinds)
    try:
        yield
    except RoostError:
        raise
    except theirs as error:
        raise Unavailable(f"{place}: {said_of(error)}.") from error


async def let_go(closing: Coroutine[Any, Any, object]) -> None:
    """Close a connection, within a bound: its other end may be gone without a word."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_S):
            await closing


class Inbox:
    """Messages that a broker pushes. It pushes no more than may be held, so this needs no bound of its own."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Nothing comes any more; what is here can't be settled."""
        self._error = self._error or error
        self._changed.set()

    async def receive(self, most: int, wait_s: float) -> list[Message]:
        """As Broker.receive. Raises what the inbox failed with."""
        if not self._messages and self._error is None:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)
        if self._error is not None:
            raise self._error
        return [self._messages.popleft() for _ in range(min(most, len(self._messages)))]
