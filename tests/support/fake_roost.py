"""A fake Roost server for tests of the command line: it keeps functions in a dictionary and answers from tables.

with FakeRoost() as server:
    ...  # ROOST_URL=server.url; what came is in server.requests, what is known in server.functions
"""

from __future__ import annotations

import json
import threading
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = "/2023-03-30/functions"


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FakeRoost:
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    instances: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    chat_events: list[Any] = field(default_factory=list)  # str: sent as it is; else as JSON
    refusals: dict[str, tuple[int, str, str]] = field(default_factory=dict)  # "METHOD path" -> status, Code, Message
    chat_hangs: bool = False  # the first chat sends its events and then nothing, until the client leaves
    chat_left: threading.Event = field(default_factory=threading.Event)  # a client has left a chat that hung
    python: str = "3.11.2"
    requests: list[Seen] = field(default_factory=list)
    page_size: int = 100

    def __enter__(self) -> FakeRoost:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"fake": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def last(self, method: str, path: str) -> Seen:
        """The latest request of that method and path."""
        return next(seen for seen in reversed(self.requests) if (seen.method, seen.path) == (method, path))


class _Handler(BaseHTTPRequestHandler):
    fake: FakeRoost
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        seen = Seen(
            method=self.command,
            path=unquote(url.path),
            query={key: values[0] for key, values in parse_qs(url.query).items()},
            headers={key.lower(): value for key, value in self.headers.items()},
            body=self.rfile.read(int(self.headers.get("content-length") or 0)),
        )
        self.fake.requests.append(seen)
        refusal = self.fake.refusals.get(f"{seen.method} {seen.path}")
        if refusal:
            status, code, message = refusal
            self._json({"Code": code, "Message": message, "RequestId": "r-1"}, status)
        elif seen.path.startswith(API):
            self._functions(seen)
        else:
            self._other(seen)

    def _functions(self, seen: Seen) -> None:
        name, _, rest = seen.path.removeprefix(API).lstrip("/").partition("/")
        if not name and seen.method == "POST":
            function = self._checked(seen.json())
            self.fake.functions[function["functionName"]] = function
            self._json(function)
        elif not name:
            self._page(list(self.fake.functions.values()), "functions", seen)
        elif name not in self.fake.functions:
            self._json({"Code": "FunctionNotFound", "Message": f"no function '{name}'", "RequestId": "r-1"}, 404)
        elif rest == "invocations":
            self._invoke(seen)
        elif rest == "sessions":
            self._page(self.fake.sessions, "sessions", seen)
        elif seen.method == "DELETE":
            del self.fake.functions[name]
            self._send(b"", 204)
        else:
            if seen.method == "PUT" and not rest:
                kept = {key: self.fake.functions[name].get(key) for key in ("code", "codeChecksum", "codeSize")}
                self.fake.functions[name] = {"functionName": name, **kept, **self._checked(seen.json())}
            self._json(self.fake.functions[name])

    def _checked(self, function: dict[str, Any]) -> dict[str, Any]:
        if "code" not in function:
            return function
        sent = function["code"]["zipFile"].encode()
        return {**function, "codeChecksum": str(zlib.crc32(sent)), "codeSize": len(sent)}

    def _page(self, items: list[dict[str, Any]], field: str, seen: Seen) -> None:
        start = int(seen.query.get("nextToken", "0"))
        end = start + self.fake.page_size
        more = {"nextToken": str(end)} if end < len(items) else {}
        self._json({field: items[start:end], **more})

    def _invoke(self, seen: Seen) -> None:
        headers = {"x-fc-request-id": "r-7"}
        if seen.headers.get("x-fc-invocation-type") == "Async":
            self._send(b"", 202, {**headers, "x-fc-async-task-id": seen.headers.get("x-fc-async-task-id", "t-7")})
        elif seen.body == b"fail":
            fault = {"errorType": "ValueError", "errorMessage": "no such city", "stackTrace": ["  File 'a.py'", "x"]}
            self._json(fault, 200, {**headers, "x-fc-error-type": "UnhandledInvocationError"})
        else:
            session = seen.headers.get("x-roost-session", "made-by-server")
            headers["x-roost-session"] = session
            if session == "restored":
                headers["x-roost-session-restored"] = "files"
            self._send(b"echo: " + seen.body, 200, headers)

    def _other(self, seen: Seen) -> None:
        if seen.path == "/roost/instances":
            self._json({"instances": self.fake.instances})
        elif seen.path == "/roost/info":
            self._json({"version": "0.1.0", "python": self.fake.python})
        elif seen.path.endswith("/logs"):
            self._send("".join(json.dumps(one) + "\n" for one in self.fake.logs).encode())
        elif seen.path.endswith("/chat") and self.fake.chat_hangs:
            self.fake.chat_hangs = False
            self._hang()
        elif seen.path.endswith("/chat"):
            parts = (one if isinstance(one, str) else f"data: {json.dumps(one)}\n\n" for one in self.fake.chat_events)
            self._send("".join(parts).encode(), 200, {"content-type": "text/event-stream"})
        else:
            self._send(b"ok")

    def _hang(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in self.fake.chat_events:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.rfile.read(1)  # returns when the client has gone
        self.fake.chat_left.set()
        self.close_connection = True

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"content-type": "application/json", **(headers or {})})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
