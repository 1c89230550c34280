"""Runs `async def` event handlers and asynchronous generators."""

from __future__ import annotations

import asyncio
import contextlib
import threading
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
    is_fault,
    reply_of,
    stream_head,
    to_piece,
)
from roost.guest.task import END, FAULT, FIELDS, OUTPUT, RESULT, Frames, is_task


class LoopFrames(Frames):
    """All of them go out in the loop's thread, wherever they were reported."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange.head, lambda: exchange.framer.start(200, FIELDS), exchange.write_soon)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def report(self, data: bytes) -> None:
        if threading.get_ident() == self._thread:
            super().report(data)
        else:
            self._loop.call_soon_threadsafe(self._late, data)

    def _late(self, data: bytes) -> None:
        with contextlib.suppress(Disconnected):
            super().report(data)


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
        frames: Frames | None = None
        if is_task(head):
            frames = LoopFrames(exchange)
            context.task = frames.task
        request_id.set(head.request_id)
        self._output.begin(head)
        try:
            outcome = await self._call(exchange, body, context)
            if not isinstance(outcome, Reply):
                if frames is not None:
                    await self._framed(exchange, frames, outcome)
                else:
                    await self._stream(exchange, outcome)
                return
        finally:
            self._output.end_soon(head, exchange.later)
        if frames is not None and frames.close():
            frames.put(FAULT if is_fault(outcome) else RESULT, outcome.body)
            await exchange.end()
        else:
            await exchange.whole(outcome.status, outcome.headers, outcome.body)

    async def _framed(self, exchange: Exchange, frames: Frames, items: AsyncGenerator[Any, None]) -> None:
        """A task's stream."""
        try:
            async for item in items:
                frames.put(OUTPUT, to_piece(item))
                await exchange.drained()
            frames.put(END)
        except BaseException as error:
            frames.put(FAULT, self._fault(exchange, exchange.head, error).body)
        finally:
            await self._close(items)
        await exchange.end()

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
            await self._close(items)

    async def _close(self, items: AsyncGenerator[Any, None]) -> None:
        try:
            await items.aclose()
        except Exception as error:
            self._output.fault(error)
