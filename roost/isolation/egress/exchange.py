"""One request of a room and its reply, on their way through its proxy: bodies go by as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11

from roost.isolation.egress.ends import End
from roost.isolation.egress.guard import Guard
from roost.isolation.egress.messages import HEAD, next_event_of, shown
from roost.isolation.egress.redaction import Redactor
from roost.isolation.egress.refusal import Refused
from roost.isolation.egress.rules import Target
from roost.model.errors import RoostError


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """`near` is the room, which `server` speaks to; `far` is whom it asked. `spend` is told of bytes either way, and
    may raise Refused or Throttled; `redactor` takes out of the reply what the room must not see."""

    near: End
    server: h11.Connection
    far: End
    target: Target
    guard: Guard
    redactor: Redactor | None
    spend: Callable[[int], None]
    idle_s: float

    async def run(self, head: h11.Request) -> None:
        """Until the reply has ended; then nobody waits for the rest of the body. Raises Refused, OSError,
        h11.ProtocolError, TimeoutError."""
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD)
        await self._ask(client, head)
        upload = asyncio.create_task(self._upload(client))
        upload.add_done_callback(
            lambda task: None if task.cancelled() or task.exception() is None else self.far.abort()
        )
        try:
            await self._reply(client)
        except (OSError, h11.ProtocolError):
            if upload.done() and isinstance(failed := upload.exception(), Refused | RoostError):
                raise failed from None
            raise
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    async def _upload(self, client: h11.Connection) -> None:
        if self.server.they_are_waiting_for_100_continue:
            await self.near.send(self.server.send(h11.InformationalResponse(status_code=100, headers=[])))
        while True:
            event = await next_event_of(self.server, self.near, self.idle_s)
            if isinstance(event, h11.EndOfMessage):
                await self._ask(client, h11.EndOfMessage())
                break
            if not isinstance(event, h11.Data):
                raise ConnectionResetError
            await self._ask(client, event)
        if not await self.near.read():
            raise ConnectionResetError  # the client has gone

    async def _reply(self, client: h11.Connection) -> None:
        while True:
            event = await next_event_of(client, self.far, self.idle_s)
            if isinstance(event, h11.InformationalResponse):
                continue
            await self.guard.heard(self.target)
            if isinstance(event, h11.Response):
                event = shown(event, self.redactor)
            elif isinstance(event, h11.EndOfMessage):
                if self.redactor is not None and (rest := self.redactor.end()):
                    await self._answer(h11.Data(data=rest))
                event = h11.EndOfMessage()
            elif not isinstance(event, h11.Data):
                raise ConnectionResetError
            elif self.redactor is not None:
                event = h11.Data(data=self.redactor.feed(bytes(event.data)))
            await self._answer(event)
            if isinstance(event, h11.EndOfMessage):
                return

    async def _ask(self, client: h11.Connection, event: Any) -> None:
        if data := client.send(event):
            self.spend(len(data))
            self.guard.go_on(self.target)
            await self.far.send(data)

    async def _answer(self, event: Any) -> None:
        if data := self.server.send(event):
            self.spend(len(data))
            await self.near.send(data)
