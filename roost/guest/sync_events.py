"""Runs blocking event handlers and generators."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import GeneratorType
from typing import Any

from roost.guest.connection import Connection, ReplyWriter
from roost.guest.context import ContextFactory, request_id
from roost.guest.events import Reply
from roost.guest.faults import Cancelled
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


class EventRunner:
    """Serves one request with `function(event, context)`."""

    def __init__(self, function: Callable[[bytes, Any], Any], contexts: ContextFactory, output: Output) -> None:
        self._function = function
        self._contexts = contexts
        self._output = output

    def __call__(self, connection: Connection, head: Head) -> bool:
        writer = ReplyWriter(connection, head)
        try:
            body = connection.read_all(MAX_EVENT)
        except BadMessage as error:
            writer.framer.keep_alive = False
            writer.whole(error.status, [("content-type", "text/plain")], str(error).encode())
            return False
        context = self._contexts.make(head)
        frames: Frames | None = None
        if is_task(head):
            frames = Frames(head, lambda: writer.start(200, FIELDS), writer.write)
            context.task = frames.task
        request_id.set(head.request_id)
        self._output.begin(head)
        try:
            outcome = self._call(head, body, context)
            if not isinstance(outcome, Reply):
                if frames is not None:
                    self._framed(frames, head, outcome)
                    writer.end()
                    return writer.framer.keep_alive
                return self._stream(writer, head, outcome)
        finally:
            self._output.end(head)
        if frames is not None and frames.close():
            frames.put(FAULT if is_fault(outcome) else RESULT, outcome.body)
            writer.end()
        else:
            writer.whole(outcome.status, outcome.headers, outcome.body)
        return writer.framer.keep_alive

    def _framed(self, frames: Frames, head: Head, items: Generator[Any, None, None]) -> None:
        """A task's stream."""
        try:
            for item in items:
                frames.put(OUTPUT, to_piece(item))
            frames.put(END)
        except Cancelled:
            raise
        except BaseException as error:
            frames.put(FAULT, self._fault(head, error).body)
        finally:
            self._close(items)

    def _call(self, head: Head, body: bytes, context: Any) -> Reply | Generator[Any, None, None]:
        try:
            result = self._function(event_of(head, body, context.account_id), context)
            return result if isinstance(result, GeneratorType) else reply_of(head, result)
        except Cancelled:
            raise
        except BaseException as error:
            # sys.exit() and Ctrl-C in a handler end its request, not the worker.
            return self._fault(head, error)

    def _fault(self, head: Head, error: BaseException) -> Reply:
        self._output.fault(error)
        return fault_reply(head, error)

    def _stream(self, writer: ReplyWriter, head: Head, items: Generator[Any, None, None]) -> bool:
        """False when the stream broke off: the missing end of the body tells the caller."""
        started = False
        try:
            for item in items:
                if started:
                    writer.write(to_piece(item))
                    continue
                reply, data, head_first = stream_head(head, item)
                writer.start(reply.status, reply.headers)
                started = True
                if head_first:
                    writer.flush_head()
                writer.write(data)
            if not started:
                writer.start(200, [("content-type", "application/octet-stream")])
            writer.end()
        except Cancelled:
            raise
        except BaseException as error:
            reply = self._fault(head, error)
            if started:
                return False
            writer.whole(reply.status, reply.headers, reply.body)
        finally:
            self._close(items)
        return writer.framer.keep_alive

    def _close(self, items: Generator[Any, None, None]) -> None:
        try:
            items.close()
        except Exception as error:
            self._output.fault(error)
