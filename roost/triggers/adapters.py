"""The adapters of message brokers, loaded when they are first needed.

Their client libraries are the extra `triggers`, and cost a server that has no such triggers nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, cast

from roost.functions.triggers.queues import QueueDestination
from roost.model.errors import Unavailable
from roost.store.triggers import TriggerRecord
from roost.triggers.ports import Source

#: Sends an event (its id and body) to the place that its connection is for, and returns when that has it for sure.
Sender = Callable[[str, bytes], Awaitable[None]]

#: The module below `sources` for a type of trigger, and for a destination of that kind.
ADAPTERS: Mapping[str, str] = {
    "redis": "redis_streams",
    "rabbitmq": "rabbitmq",
    "nats": "nats",
    "mqtt": "mqtt",
}


class Adapter(Protocol):
    """What each of those modules has."""

    @property
    def source(self) -> Callable[[TriggerRecord], Source]: ...

    @property
    def sender(self) -> Callable[[QueueDestination], AbstractAsyncContextManager[Sender]]: ...


def adapter(kind: str) -> Adapter:
    """Raises Unavailable when its library is not installed."""
    try:
        return cast(Adapter, importlib.import_module(f"roost.triggers.sources.{ADAPTERS[kind]}"))
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"For {kind} the server needs the Python package {error.name}, which is not installed: "
            "pip install 'roost[triggers]'."
        ) from error


def queue_source(record: TriggerRecord) -> Source:
    """A `Factory`. Raises Unavailable."""
    return adapter(record.type).source(record)
