"""A scripted OpenAI-compatible chat completions server: it answers what a test wrote down, and knows no language.

    with ScriptedOpenAI([Calls(Call("run_python", {"code": "6 * 7"})), Text("It is 42.")]) as server:
        ...  # point a client at server.base_url; one step is used up per request
    assert server.requests[1]["messages"][-1]["content"] == "42"

It speaks `POST /v1/chat/completions` (streamed and not; tools, forced tool choice, usage) and `GET /v1/models`, on a
free loopback port, from threads of its own, so that sync and async tests and other processes can all use it. A step may
`check` the request it answers: an AssertionError there, a request without a step, or a step without a request fails the
test when the `with` block ends.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Request = dict[str, Any]
Check = Callable[[Request], None]


def accept_all(request: Request) -> None:
    """The check of a step that has none."""


@dataclass(frozen=True)
class Call:
    """One tool call. `arguments` as text are sent as they are, so that they may be malformed."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)

    def text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True)
class Text:
    """Answer with text, streamed in pieces of `piece` characters with `pause_s` between them."""

    text: str
    piece: int = 4
    pause_s: float = 0.0
    delay_s: float = 0.0
    check: Check = accept_all


@dataclass(frozen=True, init=False)
class Calls:
    """Answer with tool calls, in one reply; `text` comes before them."""

    calls: tuple[Call, ...]
    text: str = ""
    delay_s: float = 0.0
    check: Check = accept_all

    def __init__(self, *calls: Call, text: str = "", delay_s: float = 0.0, check: Check = accept_all) -> None:
        for name, value in (("calls", calls), ("text", text), ("delay_s", delay_s), ("check", check)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Failure:
    """Answer with an HTTP error in OpenAI's shape."""

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    check: Check = accept_all


@dataclass(frozen=True)
class HangUp:
    """Stream `text`, then close the connection in the middle of the reply."""

    text: str = ""
    delay_s: float = 0.0
    check: Check = accept_all


Step = Text | Calls | Failure | HangUp


class ScriptedOpenAI:
    """The server, as a context manager. `requests` holds the bodies it was sent, in order."""

    def __init__(self, script: Sequence[Step] = (), *, model: str = "scripted", api_key: str = "") -> None:
        self.model = model
        self.api_key = api_key
        self.requests: list[Request] = []
        self.problems: list[str] = []
        #: Set when a client went away before its reply was complete.
        self.abandoned = threading.Event()
        self._script = list(script)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def base_url(self) -> str:
        """What goes into OPENAI_BASE_URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ScriptedOpenAI:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        if kind is None:
            self.verify()

    def verify(self) -> None:
        """Raise AssertionError if the script was not followed to its end."""
        left = [f"step never asked for: {step}" for step in self._script]
        assert not self.problems + left, "\n".join(self.problems + left)

    def clear(self) -> None:
        """Forget the script and what was recorded, for the next test that shares this server."""
        with self._lock:
            for record in (self._script, self.requests, self.problems):
                record.clear()
            self.abandoned.clear()

    def add(self, *steps: Step) -> None:
        """Lengthen the script."""
        with self._lock:
            self._script.extend(steps)

    def take(self, request: Request) -> Step:
        """Record the request and return the step that answers it."""
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
            step = self._script.pop(0) if self._script else None
        if step is None:
            return self._problem(f"request {number} has no step in the script")
        try:
            step.check(request)
            _honour_tool_choice(request, step)
        except AssertionError as error:
            return self._problem(f"request {number}: {error}")
        return step

    def pause(self, seconds: float) -> None:
        """Sleep, but not past the end of the server."""
        self._stopping.wait(seconds)

    def _problem(self, sentence: str) -> Failure:
        self.problems.append(sentence)
        return Failure(500, f"script: {sentence}")


def _honour_tool_choice(request: Request, step: Step) -> None:
    """A real server obeys `tool_choice`, so a script that does not is wrong."""
    choice = request.get("tool_choice", "auto")
    offered = {tool["function"]["name"] for tool in request.get("tools", ())}
    called = {call.name for call in step.calls} if isinstance(step, Calls) else set()
    if isinstance(step, Failure | HangUp) or choice == "auto":
        return
    if choice == "none":
        assert not called, "tool_choice is none, but the step calls a tool"
    elif choice == "required":
        assert called, "tool_choice is required, but the step calls no tool"
    else:
        name = choice["function"]["name"]
        assert name in offered, f"tool_choice names {name}, which is not among the tools"
        assert called == {name}, f"tool_choice forces {name}, but the step calls {called or 'nothing'}"


def _message(step: Text | Calls, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": step.text or None}
    if isinstance(step, Calls):
        message["tool_calls"] = [
            {
                "id": f"call_{number}_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.text()},
            }
            for index, call in enumerate(step.calls)
        ]
    return message


def _deltas(message: dict[str, Any], piece: int) -> Iterator[dict[str, Any]]:
    """The message in the pieces of a stream: text first, then every call as a head and its arguments in two parts."""
    yield {"role": "assistant", "content": ""}
    text = message["content"] or ""
    for start in range(0, len(text), piece):
        yield {"content": text[start : start + piece]}
    for index, call in enumerate(message.get("tool_calls", ())):
        arguments = call["function"]["arguments"]
        head = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        yield {"tool_calls": [head]}
        half = len(arguments) // 2
        for part in filter(None, (arguments[:half], arguments[half:])):
            yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}


def _usage(request: Request, message: dict[str, Any]) -> dict[str, int]:
    """Words stand for tokens."""
    asked = len(json.dumps(request["messages"]).split())
    answered = len(json.dumps(message).split())
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: ScriptedOpenAI) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `requests`, not a log."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            models = [{"id": self.server.script.model, "object": "model", "owned_by": "test"}]
            self._json(200, {"object": "list", "data": models})
        else:
            self._error(404, f"no such path: {self.path}")

    def do_POST(self) -> None:
        script = self.server.script
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/v1/chat/completions":
            return self._error(404, f"no such path: {self.path}")
        if script.api_key and self.headers.get("authorization") != f"Bearer {script.api_key}":
            return self._error(401, "Incorrect API key provided")
        request = json.loads(body)
        step = script.take(request)
        script.pause(step.delay_s)
        try:
            self._answer(request, step)
        except OSError:
            script.abandoned.set()
            self.close_connection = True

    def _answer(self, request: Request, step: Step) -> None:
        if isinstance(step, Failure):
            self._error(step.status, step.message, step.headers)
        elif isinstance(step, HangUp):
            self._begin_stream()
            self._chunk(request, {"content": step.text})
            self.close_connection = True
        elif request.get("stream"):
            self._stream(request, step)
        else:
            message = _message(step, len(self.server.script.requests))
            choice = {"index": 0, "message": message, "finish_reason": _finish_reason(message)}
            head = self._head(request, "chat.completion")
            self._json(200, {**head, "choices": [choice], "usage": _usage(request, message)})

    def _stream(self, request: Request, step: Text | Calls) -> None:
        message = _message(step, len(self.server.script.requests))
        self._begin_stream()
        for delta in _deltas(message, step.piece if isinstance(step, Text) else 4):
            self._chunk(request, delta)
            if isinstance(step, Text) and step.pause_s:
                self.server.script.pause(step.pause_s)
        self._chunk(request, {}, _finish_reason(message))
        if (request.get("stream_options") or {}).get("include_usage"):
            head = self._head(request, "chat.completion.chunk")
            self._event(json.dumps({**head, "choices": [], "usage": _usage(request, message)}))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _chunk(self, request: Request, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self._event(json.dumps({**self._head(request, "chat.completion.chunk"), "choices": [choice]}))

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.wfile.flush()

    def _head(self, request: Request, kind: str) -> dict[str, Any]:
        number = len(self.server.script.requests)
        model = request.get("model", self.server.script.model)
        return {"id": f"chatcmpl-{number}", "object": kind, "created": int(time.time()), "model": model}

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._json(status, {"error": error}, headers)

    def _json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _finish_reason(message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"
