"""Runs `async def` event handlers and asynchronous generators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import AsyncGeneratorType
from typing import Any

from roost.guest.async_server import Disconnected, Exchange
from roost.guest.context import ContextFactory, request_id
from roost.guest.events import Reply
from roost.guest.http1 import BadMessage, Head
from roost.guest.invocation import (
    MAX_EVENT,
    Output,
    event_of,
    fault_reply,
    reply_of,
    stream_head,
    to_piece,
)


class AsyncEventRunner:
    """Serves one exchange with `await function(event, context)`, or with what the generator function yields."""

    def __init__(self, function: Callable[[bytes, Any], Any], contexts: ContextFactory, output: Output) -> None:
        self._function = function
        self._contexts = contexts
        self._output = output

    async def __call__(self, exchange: Exchange) -> None:
        head = exchange.head
        try:
            body = await exchange.read_all(MAX_EVENT)
        except BadMessage as error:
            exchange.framer.keep_alive = False
            await exchange.whole(error.status, [("content-type", "text/plain")], str(error).encode())
            return
        context = self._contexts.make(head)
        request_id.set(head.request_id)
        self._output.begin(head)
        try:
            outcome = await self._call(exchange, body, context)
            if not isinstance(outcome, Reply):
                await self._stream(exchange, outcome)
                return
        finally:
            self._output.end_soon(head, exchange.later)
        await exchange.whole(outcome.status, outcome.headers, outcome.body)

    async def _call(self, exchange: Exchange, body: bytes, context: Any) -> Reply | AsyncGenerator[Any, None]:
        head = exchange.head
        try:
            result = self._function(event_of(head, body, context.account_id), context)
            if isinstance(result, AsyncGeneratorType):
                return result
            result = await result
            return result if isinstance(result, AsyncGeneratorType) else reply_of(head, result)
        except BaseException as error:
            # sys.exit() and Ctrl-C in a handler end its request, not the worker.
            return self._fault(exchange, head, error)

    def _fault(self, exchange: Exchange, head: Head, error: BaseException) -> Reply:
        """Re-raises a cancellation that the host asked for, and what follows from its going."""
        if exchange.gone and isinstance(error, asyncio.CancelledError | Disconnected):
            raise error
        self._output.fault(error)
        return fault_reply(head, error)

    async def _stream(self, exchange: Exchange, items: AsyncGenerator[Any, None]) -> None:
        """When the stream breaks off, the missing end of the body tells the caller."""
        started = False
        try:
            async for item in items:
                if started:
                    await exchange.write(to_piece(item))
                    continue
                reply, data, _ = stream_head(exchange.head, item)
                exchange.start(reply.status, reply.headers)
                started = True
                await exchange.write(data)
            if not started:
                exchange.start(200, [("content-type", "application/octet-stream")])
            await exchange.end()
        except BaseException as error:
            reply = self._fault(exchange, exchange.head, error)
            if not started:
                await exchange.whole(reply.status, reply.headers, reply.body)
        finally:
            try:
                await items.aclose()
            except Exception as error:
                self._output.fault(error)
