"""E2B's envd: which of its services a request is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from roost.guest.async_server import Exchange
from roost.guest.sandbox.connect import serve_input, serve_stream, serve_unary
from roost.guest.sandbox.files import Files
from roost.guest.sandbox.filesystem_service import FilesystemService
from roost.guest.sandbox.identities import Identities
from roost.guest.sandbox.metrics import Metrics
from roost.guest.sandbox.process_service import ProcessService
from roost.guest.sandbox.replies import refuse, reply_json

Route = Callable[[Exchange], Awaitable[None]]
#: envd's doors for the machine it runs on. There is no such caller here: the host uses none of them.
INTERNAL = frozenset({"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"})


class Envd:
    """The handler of port 49983."""

    def __init__(
        self,
        *,
        identities: Identities,
        processes: ProcessService,
        filesystem: FilesystemService,
        files: Files,
        metrics: Metrics,
    ) -> None:
        self._identities = identities
        self._metrics = metrics
        self._routes: dict[tuple[str, str], Route] = {
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._measure,
            ("GET", "/envs"): self._envs,
            ("GET", "/files"): files.download,
            ("HEAD", "/files"): files.download,
            ("POST", "/files"): files.upload,
            ("POST", "/files/compose"): files.compose,
        }
        for package, service in (("process.Process", processes), ("filesystem.Filesystem", filesystem)):
            for name, unary in service.unary.items():
                self._routes["POST", f"/{package}/{name}"] = partial(serve_unary, method=unary)
            for name, stream in service.streams.items():
                self._routes["POST", f"/{package}/{name}"] = partial(serve_stream, method=stream)
        for name, taker in processes.inputs.items():
            self._routes["POST", f"/process.Process/{name}"] = partial(serve_input, method=taker)
        self._paths = {path for _, path in self._routes}

    async def __call__(self, exchange: Exchange) -> None:
        path = exchange.head.target.partition("?")[0]
        route = self._routes.get((exchange.head.method, path))
        if route is not None:
            await route(exchange)
        elif path in INTERNAL:
            await refuse(exchange, 403, f"{path} is internal to the sandbox")
        elif path in self._paths:
            await refuse(exchange, 405, f"{exchange.head.method} is not a method of {path}")
        else:
            await refuse(exchange, 404, f"there is nothing at {path[:200]}")

    async def _health(self, exchange: Exchange) -> None:
        await exchange.whole(204, [("cache-control", "no-store")], b"")

    async def _measure(self, exchange: Exchange) -> None:
        await reply_json(exchange, self._metrics.read())

    async def _envs(self, exchange: Exchange) -> None:
        await reply_json(exchange, self._identities.env)
