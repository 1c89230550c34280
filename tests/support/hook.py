"""A real web server that takes events about tasks."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hook:
    """What came, and with which statuses it answers the next ones."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # its sender was killed meanwhile: that was no event
                hook.came.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = hook.statuses.pop(0) if hook.statuses else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ids(self, task: str) -> set[str]:
        """Of the events about it."""
        return {headers["webhook-id"] for headers, _ in self.of(task)}

    def of(self, task: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        parsed = [(headers, json.loads(body)) for headers, body in self.came]
        return [one for one in parsed if one[1]["requestContext"]["taskId"] == task]
