"""Runs WSGI applications (PEP 3333)."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import unquote_to_bytes

from roost.guest.connection import Connection, ReplyWriter
from roost.guest.context import request_id
from roost.guest.faults import Cancelled
from roost.guest.http1 import BadMessage, Head, Shape
from roost.guest.invocation import Output, fault_reply

Headers = list[tuple[str, str]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class WsgiRunner:
    """Serves one request with a WSGI application."""

    def __init__(self, application: Application, output: Output, *, threads: bool) -> None:
        self._application = application
        self._output = output
        self._threads = threads

    def __call__(self, connection: Connection, head: Head) -> bool:
        response = _Response(ReplyWriter(connection, head))
        request_id.set(head.request_id)
        self._output.begin(head)
        try:
            keep = self._run(connection, head, response)
        finally:
            self._output.end(head)
        try:
            return keep and connection.finish_body()
        except BadMessage:
            return False

    def _run(self, connection: Connection, head: Head, response: _Response) -> bool:
        parts: Iterable[bytes] = ()
        try:
            try:
                parts = self._application(self._environ(connection, head), response.start)
                for part in parts:
                    response.write(part)
                response.end()
            finally:
                close = getattr(parts, "close", None)
                if close is not None:
                    close()
        except Cancelled:
            raise
        except BaseException as error:
            self._output.fault(error)
            if response.started:
                return False
            reply = fault_reply(head, error)
            response.writer.whole(reply.status, reply.headers, reply.body)
        return response.writer.framer.keep_alive

    def _environ(self, connection: Connection, head: Head) -> dict[str, Any]:
        path, _, query = head.target.partition("?")
        environ = _common_environ(head.shape).copy()
        environ |= {
            "REQUEST_METHOD": head.method,
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": f"HTTP/{head.version}",
            "wsgi.input": io.BufferedReader(_Input(connection)),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": self._threads,
        }
        if head.request_id:
            environ["HTTP_X_FC_REQUEST_ID"] = head.request_id
        return environ


@lru_cache(64)
def _common_environ(shape: Shape) -> dict[str, Any]:
    """What the requests of this shape have in common; to be copied."""
    headers = shape.all()
    host, _, port = headers.get("host", "localhost").partition(":")
    scheme = headers.get("x-forwarded-proto", "http")
    environ: dict[str, Any] = {
        "SCRIPT_NAME": "",
        "SERVER_NAME": host,
        "SERVER_PORT": port or ("443" if scheme == "https" else "80"),
        "REMOTE_ADDR": headers.get("x-forwarded-for", "").partition(",")[0].strip(),
        "CONTENT_TYPE": headers.get("content-type", ""),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input_terminated": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
    }
    if shape.length is not None and "content-length" in headers:
        environ["CONTENT_LENGTH"] = headers["content-length"]
    for name, value in headers.items():
        # A name with an underscore would be mistaken for one with a dash.
        if name not in ("content-type", "content-length") and "_" not in name:
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    return environ


class _Input(io.RawIOBase):
    """The request's body as a raw stream, for io.BufferedReader to serve read, readline and iteration."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._rest or self._connection.read()
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        self._rest = data[size:]
        return size


class FileWrapper:
    """`wsgi.file_wrapper`: a file in blocks."""

    def __init__(self, file: Any, block_size: int = 64 << 10) -> None:
        self._file = file
        self._block_size = block_size

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        data: bytes = self._file.read(self._block_size)
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        close = getattr(self._file, "close", None)
        if close is not None:
            close()


class _Response:
    """start_response and what follows. The head waits for the first bytes, as the specification asks."""

    def __init__(self, writer: ReplyWriter) -> None:
        self.writer = writer
        self.started = False  # something may have been sent
        self._status = 0
        self._headers: Headers = []

    def start(self, status: str, headers: Headers, exc_info: ExcInfo | None = None) -> Callable[[bytes], None]:
        if exc_info is not None:
            if self.started:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._status:
            raise AssertionError("start_response was called twice")
        self._status = int(status.split(None, 1)[0])
        self._headers = list(headers)
        return self.write

    def write(self, data: bytes) -> None:
        if not self._status:
            raise AssertionError("write before start_response")
        if not data:
            return
        if not self.started:
            self._begin()
        self.writer.write(data)

    def end(self) -> None:
        if not self._status:
            raise AssertionError("the application did not call start_response")
        if not self.started:
            self._begin()
        self.writer.end()

    def _begin(self) -> None:
        self.writer.start(self._status, self._headers)
        self.started = True
