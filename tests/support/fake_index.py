"""A fake package index on a loopback port: it serves the paths a test put into it and counts what is asked.

with FakeIndex() as index:
    index.put("/simple/six/", page, "text/html")
assert index.requests == [...]
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass
class Reply:
    """`hold`, if given, is waited for after the head and half of the body; `cut` ends the connection there."""

    body: bytes = b""
    content_type: str = "application/octet-stream"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    cut: bool = False


class FakeIndex:
    """Paths are matched without the query. What is not there is answered with 404."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.replies: dict[str, Reply] = {}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.requests.append((self.command, self.path))
                fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                reply = fake.replies.get(self.path.partition("?")[0], Reply(status=404))
                self.send_response(reply.status)
                self.send_header("content-type", reply.content_type)
                self.send_header("content-length", str(len(reply.body)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                half = len(reply.body) // 2
                self.wfile.write(reply.body[:half])
                self.wfile.flush()
                if reply.hold is not None:
                    reply.hold.wait(30)
                if reply.cut:
                    self.close_connection = True
                    return
                self.wfile.write(reply.body[half:])

            do_POST = do_PUT = do_CONNECT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def put(
        self, path: str, body: bytes | str, content_type: str = "application/octet-stream", **more: object
    ) -> Reply:
        content = body.encode() if isinstance(body, str) else body
        reply = self.replies[path] = Reply(body=content, content_type=content_type, **more)
        return reply

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(asked == path for _, asked in self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for reply in self.replies.values():
            if reply.hold is not None:
                reply.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
