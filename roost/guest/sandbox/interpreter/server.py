"""The code interpreter's HTTP interface, as E2B's clients expect it on port 49999."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from roost.guest.async_server import Disconnected, Exchange
from roost.guest.config import StartConfig
from roost.guest.environment import PATH
from roost.guest.framing import Fields
from roost.guest.http1 import BadMessage
from roost.guest.sandbox.interpreter.branches import Branches, NoCheckpoint
from roost.guest.sandbox.interpreter.contexts import CannotStart, Context, Contexts, describe
from roost.guest.sandbox.interpreter.languages import installed
from roost.guest.sandbox.interpreter.launch import Accounts, Launcher
from roost.guest.sandbox.interpreter.lifeline import Lifeline, NotCopied
from roost.guest.sandbox.interpreter.processes import Child, Descriptors, Launch, Order, spawn
from roost.guest.sandbox.interpreter.requests import (
    PYTHON,
    Invalid,
    normalize,
    parse_create,
    parse_execute,
    parse_label,
    parse_rollback,
    parse_when,
)
from roost.guest.sandbox.interpreter.spare import Spare

MAX_BODY = 16 << 20
_MAX_BODIES = 128 << 20  # of all requests that wait for their turn


#: Variables that tell a sandbox from its copies.
_OWN = ("E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID")


class Refusal(Exception):
    """A reply that is not what was asked for."""

    def __init__(self, status: int, text: str = "", **detail: Any) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.detail = detail


class Interpreter:
    """Serves requests of one sandbox, after `begin`. Needs no event loop when it is made."""

    def __init__(
        self,
        config: StartConfig,
        identities: Accounts,
        *,
        spare: Spare | None = None,
        live: Lifeline | None = None,
        launch: Launch | None = None,
    ) -> None:
        """`spare` becomes the first context, if none comes by the lifeline `live`; `launch` is what the others' forks
        do, if not what contexts do."""
        self._accounts = identities
        self._spares = [spare] if spare is not None else []
        self._launch = launch or Launcher(identities)
        self._contexts = Contexts(self._spawn, installed(config.env.get("PATH", PATH)), self._home, self._prepare)
        self._branches = Branches(self._contexts, live)
        self._bodies = 0
        self._live = live
        self._asking: asyncio.Task[None] | None = None
        self._told = _own(config)

    async def __call__(self, exchange: Exchange) -> None:
        fields = _cross_origin(exchange)
        try:
            await self._answer(exchange, fields)
        except Disconnected:
            raise
        except Invalid as error:
            await _reply(exchange, 422, {"detail": [error.detail]}, fields)
        except CannotStart as error:
            await _reply_text(exchange, 500, f"Failed to create context: {error}", fields)
        except NotCopied as error:
            await _reply_text(exchange, 409, f"The context was not copied: {error}", fields)
        except NoCheckpoint as error:
            await _reply_text(exchange, 404, f"Checkpoint {error} not found", fields)
        except Refusal as refusal:
            if refusal.detail:
                await _reply(exchange, refusal.status, refusal.detail, fields)
            else:
                await _reply_text(exchange, refusal.status, refusal.text, fields)
        except BadMessage as error:
            await _reply_text(exchange, error.status, str(error), fields)

    def begin(self) -> None:
        """In the event loop: have the contexts that are there from the start, those that the host makes meanwhile too;
        waits for these. From now on contexts are copied when the host asks for that."""
        if self._live is not None:
            spare, copies = self._live.take()
            if spare is not None:
                self._spares.append(spare)
            self._contexts.adopt(copies, self._told)
            self._live.serve(self._contexts)
        self._contexts.prepare()

    async def stand(self, wait_s: float) -> list[str]:
        """For a copy of the whole room: have contexts stand still until `go_on`; why one does not."""
        while self._spares:  # they would begin with the same random numbers there
            self._spares.pop().close()
        return await self._contexts.stand(wait_s)

    def go_on(self, config: StartConfig | None) -> None:
        """After `stand`; with what the copy is told of itself, in the copy."""
        self._contexts.go_on(None if config is None else _own(config))

    async def close(self) -> None:
        """End all contexts, and return when their processes are gone."""
        if self._asking is not None:
            self._asking.cancel()
        while self._spares:
            self._spares.pop().close()
        await self._contexts.close()

    async def _answer(self, exchange: Exchange, fields: Fields) -> None:
        method = exchange.head.method
        parts = [part for part in exchange.head.target.partition("?")[0].split("/") if part]
        match method, parts:
            case "OPTIONS", _ if fields:
                await _reply_text(exchange, 200, "OK", [*fields, *_preflight(exchange)])
            case "POST", ["execute"]:
                await self._execute(exchange, fields)
            case "GET" | "HEAD", ["health"]:
                await _reply(exchange, 200, "OK", fields)
            case "GET", ["contexts"]:
                await _reply(exchange, 200, self._contexts.describe(), fields)
            case "POST", ["contexts"]:
                request = parse_create(await _read(exchange))
                context = await self._contexts.create(request.language, request.cwd)
                await _reply(exchange, 200, describe(context), fields)
            case _, ["contexts", context_id, *rest]:
                await self._answer_of(self._find(context_id), [method, *rest], exchange, fields)
            case _, ["execute" | "health" | "contexts"]:
                raise Refusal(405, detail="Method Not Allowed")
            case _:
                raise Refusal(404, detail="Not Found")

    async def _answer_of(self, context: Context, asked: list[str], exchange: Exchange, fields: Fields) -> None:
        """What is asked of one context: the method, and the path below it."""
        branches, now = self._branches, parse_when(exchange.head.target)
        match asked:
            case ["DELETE"]:
                self._contexts.remove(context)
                await branches.forget(context)
                await _reply(exchange, 200, None, fields)
            case ["POST", "restart"]:
                await self._restart(context)
                await _reply(exchange, 200, None, fields)
            case ["POST", "fork"]:
                await _reply(exchange, 201, describe(await branches.fork(context, now=now)), fields)
            case ["GET", "checkpoints"]:
                await _reply(exchange, 200, [one.describe() for one in branches.of(context)], fields)
            case ["POST", "checkpoints"]:
                kept = await branches.checkpoint(context, parse_label(await _read(exchange)), now=now)
                await _reply(exchange, 201, kept.describe(), fields)
            case ["DELETE", "checkpoints", checkpoint_id]:
                await branches.remove(context, checkpoint_id)
                await _reply(exchange, 200, None, fields)
            case ["POST", "rollback"]:
                kept = await branches.rollback(context, parse_rollback(await _read(exchange)), now=now)
                await _reply(exchange, 200, kept.describe(), fields)
            case [_] | [_, "restart" | "fork" | "checkpoints" | "rollback"] | [_, "checkpoints", _]:
                raise Refusal(405, detail="Method Not Allowed")
            case _:
                raise Refusal(404, detail="Not Found")

    async def _execute(self, exchange: Exchange, fields: Fields) -> None:
        body = await _read(exchange)
        cell = parse_execute(body)
        if cell.context_id and cell.language:
            raise Refusal(400, "Only one of context_id or language can be provided")
        named = cell.context_id
        context = self._find(named) if named else self._contexts.default(normalize(cell.language))
        size = len(body)
        if self._bodies + size > _MAX_BODIES:
            raise Refusal(503, "Too much code waits for its turn")
        self._bodies += size
        try:
            await context.execute(cell, exchange, fields)
        finally:
            self._bodies -= size

    async def _restart(self, context: Context) -> None:
        try:
            await context.restart()
        except CannotStart as error:
            raise Refusal(500, f"Failed to restart context {context.id}: {error}") from error

    def _find(self, context_id: str) -> Context:
        context = self._contexts.get(context_id)
        if context is None:
            raise Refusal(404, f"Context {context_id} not found")
        return context

    async def _prepare(self) -> None:
        """For the next Python context, ask for a process that can be copied. Without one, it is a fork. Who makes
        one context more than there is from the start may make others: the next one is made meanwhile."""
        await self._ask()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())  # begins when this one is taken

    async def _ask(self) -> None:
        if self._live is not None and not self._spares and (spare := await self._live.another()):
            self._spares.append(spare)

    def _spawn(self, order: Order, fds: Descriptors) -> Child:
        if self._spares and order["language"] == PYTHON:
            spare = self._spares.pop()
            if child := spare.take(self._accounts, order, fds):
                return child
        return spawn(self._launch, order, fds)

    def _home(self) -> str:
        """Where contexts are that name no place."""
        try:
            return self._accounts.workdir or str(self._accounts.lookup(self._accounts.default).home)
        except LookupError:
            return "/"


def _own(config: StartConfig) -> dict[str, str]:
    return {name: config.env[name] for name in _OWN if name in config.env}


async def _read(exchange: Exchange) -> bytes:
    """The body. What says that it is too large is refused before it comes."""
    if (exchange.head.length or 0) > MAX_BODY:
        raise BadMessage(f"the body is larger than {MAX_BODY >> 20} MB", 413)
    return await exchange.read_all(MAX_BODY)


async def _reply(exchange: Exchange, status: int, item: Any, fields: Fields) -> None:
    await exchange.whole(status, [("content-type", "application/json"), *fields], json.dumps(item).encode())


async def _reply_text(exchange: Exchange, status: int, text: str, fields: Fields) -> None:
    kind = ("content-type", "text/plain; charset=utf-8")
    await exchange.whole(status, [kind, *fields], text.encode(errors="replace"))


def _cross_origin(exchange: Exchange) -> Fields:
    """Pages of any origin may use a sandbox: what protects it is its address and its token."""
    return [("access-control-allow-origin", "*")] if exchange.head.get("origin") else []


def _preflight(exchange: Exchange) -> Fields:
    asked = exchange.head.get("access-control-request-headers") or ""
    return [
        ("access-control-allow-methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
        ("access-control-max-age", "600"),
        *([("access-control-allow-headers", asked)] if asked else []),
    ]
