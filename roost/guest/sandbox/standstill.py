"""How a sandbox's daemon lets its whole room be copied, by a kernel that can do that, and begins anew in the copy.

A room can be copied while no process of it holds a connection of the host's. So the daemon waits until cells have
ended, lets go of every connection, and does nothing at all until it is told whether it is the original or the copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from typing import Protocol

from roost.guest.async_server import AsyncServer
from roost.guest.config import StartConfig
from roost.guest.loading import reseed_random
from roost.guest.passed import GO, HOLD, NEW, READY, STILL, STOP, UP, WORD, PassedConnections
from roost.guest.sandbox.identities import Identities

_WAIT_S = 20.0  # for cells that run
_MOST_SAID = 2000


class Stands(Protocol):
    """The code interpreter."""

    async def stand(self, wait_s: float) -> list[str]: ...

    def go_on(self, config: StartConfig | None) -> None: ...


class Around(Protocol):
    """What serves guest.sock."""

    def let_go(self) -> None:
        """Close all connections, and take no other until `go_on`."""
        ...

    def go_on(self, renew: Callable[[StartConfig], None] | None) -> None:
        """`renew`: this is the copy; it is called with the configuration that the host starts the copy with."""
        ...


class Standstill:
    """Does what the host asks for on the channel of app.sock."""

    def __init__(
        self,
        app: PassedConnections,
        server: AsyncServer,
        identities: Identities,
        around: Around,
        interpreter: Stands | None,
    ) -> None:
        self._app = app
        self._server = server
        self._identities = identities
        self._around = around
        self._interpreter = interpreter
        self._number = b""  # of the copy that is being made
        self._waiting: asyncio.Task[None] | None = None

    def serve(self) -> None:
        """On the running loop."""
        self._app.on_word = self._heed

    def _heed(self, word: bytes) -> None:
        kind, number = word[:1], word[1:2]
        loop = asyncio.get_running_loop()
        if kind == HOLD:
            self._give_up()
            self._number = number
            self._waiting = loop.create_task(self._get_ready(number))
        elif number != self._number:
            return
        elif kind == STOP:
            loop.call_soon(self._stand, number)  # not in the middle of what accepts
        elif kind == GO:
            self._give_up()

    async def _get_ready(self, number: bytes) -> None:
        lost = [] if self._interpreter is None else await self._interpreter.stand(_WAIT_S)
        while len(told := json.dumps(lost).encode()) > _MOST_SAID:
            lost.pop()
        self._app.send(READY + number + told)

    def _give_up(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        waiting.cancel()
        if self._interpreter is not None:
            self._interpreter.go_on(None)

    def _stand(self, number: bytes) -> None:
        """Nothing happens in this process, until the host says that it may go on."""
        self._around.let_go()
        self._server.break_off()
        self._app.setblocking(True)
        self._app.send(STILL + number)
        kind = self._next_word(number)
        self._app.setblocking(False)
        self._waiting = None
        if kind == NEW:
            self._app.send(UP)
            self._around.go_on(self._renew)
            return
        self._around.go_on(None)
        if self._interpreter is not None:
            self._interpreter.go_on(None)

    def _next_word(self, number: bytes) -> bytes:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._app, WORD, 1)
            for descriptor in descriptors:
                os.close(descriptor)
            if not data:
                os._exit(0)  # so the room has ended
            if data[:1] == NEW or data == GO + number:
                return data[:1]

    def _renew(self, config: StartConfig) -> None:
        """In the copy: be what the host says that it is."""
        self._identities.env = {"E2B_SANDBOX": "true", **config.env}
        if config.time_zone:
            self._identities.env.setdefault("TZ", config.time_zone)
        reseed_random(config.entropy)
        if self._interpreter is not None:
            with contextlib.suppress(OSError):
                self._interpreter.go_on(config)
