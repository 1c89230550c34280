"""The agent on the web: an ASGI application without dependencies.

GET /          a page to talk to it
POST /chat     {"message": ..., "model"?: ...}: the answer as server-sent events; with `Accept: application/json`, whole
GET /history   the conversation so far
POST /invoke   the same as a JSON /chat, for `roost invoke`
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import agent
from history import History
from model import Model, ModelError
from tools import Toolbox

PAGE = Path(__file__).with_name("page.html")
MAX_BODY_BYTES = 1 << 20
MAX_SESSIONS = 32

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Events = AsyncGenerator[agent.Event, None]


class HTTPError(Exception):
    """The request can't be served: a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Session:
    """One conversation: its history and its tools, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.history = History(directory / "history.jsonl")
        self.tools = Toolbox(directory)
        self.busy = False


class App:
    """Serves the sessions. In a room there is one; elsewhere the least recently used ones make place for new ones."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._sessions: dict[Path, Session] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            try:
                await self._serve(scope, receive, send)
            except HTTPError as error:
                await respond_json(send, {"error": str(error)}, error.status)

    async def _live(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        for session in self._sessions.values():
            await session.tools.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        match scope["method"], scope["path"]:
            case "GET", "/":
                await respond(send, PAGE.read_bytes(), "text/html; charset=utf-8")
            case "GET", "/history":
                await respond_json(send, (await self._session(headers)).history.messages)
            case "POST", "/chat" | "/invoke":
                message, model = request_of(await read_body(receive))
                session = await self._session(headers)
                streamed = scope["path"] == "/chat" and "application/json" not in headers.get("accept", "")
                work = (stream if streamed else collect)(send, self._answer(session, message, model))
                await until_gone(receive, work)
            case _, "/" | "/history" | "/chat" | "/invoke":
                raise HTTPError(405, f"{scope['path']} does not take {scope['method']}.")
            case _:
                raise HTTPError(404, "There are /, /chat and /history.")

    async def _session(self, headers: Mapping[str, str]) -> Session:
        default = self._environment.get("ROOST_SESSION_DIR") or Path.home() / "session"
        directory = Path(headers.get("x-roost-session-dir") or default)
        session = self._sessions.pop(directory, None) or Session(directory)
        self._sessions[directory] = session  # last: most recently used
        idle = [key for key, other in self._sessions.items() if not other.busy and other is not session]
        for key in idle[: max(0, len(self._sessions) - MAX_SESSIONS)]:
            await self._sessions.pop(key).tools.close()
        return session

    async def _answer(self, session: Session, message: str, model_name: str) -> Events:
        if session.busy:
            yield {"type": "error", "message": "This session is still answering the message before."}
            return
        session.busy = True
        try:
            model = Model.from_environment(self._environment, model_name)
            events = agent.run(message, model=model, tools=session.tools, history=session.history)
            async with aclosing(events):
                async for event in events:
                    yield event
        except ModelError as error:
            yield {"type": "error", "message": str(error)}
        finally:
            session.busy = False


async def stream(send: Send, events: Events) -> None:
    """Send events as they come, as server-sent events."""
    async with aclosing(events):
        await send_head(send, 200, "text/event-stream")
        async for event in events:
            data = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body"})


async def collect(send: Send, events: Events) -> None:
    """Wait for the end and send the answer as one JSON object: `reply`, `steps`, and `error` if there was one."""
    answer: dict[str, Any] = {"reply": "", "steps": []}
    async for event in events:
        match event["type"]:
            case "text":
                answer["reply"] += event["text"]
            case "tool" | "result":
                answer["reply"] = ""  # what was said before a tool call is not the answer
                answer["steps"].append(event)
            case "error":
                answer["error"] = event["message"]
    await respond_json(send, answer, 502 if "error" in answer else 200)


async def until_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Do the work, but cancel it when the client goes away."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        part = await receive()
        body += part.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise HTTPError(413, f"A message has at most {MAX_BODY_BYTES} bytes.")
        if not part.get("more_body"):
            return bytes(body)


def request_of(body: bytes) -> tuple[str, str]:
    """The user's message, and the name of the model if one is asked for. Raises HTTPError (400)."""
    try:
        request = json.loads(body)
        message, model = request["message"], request.get("model", "")
    except (ValueError, KeyError, TypeError) as error:
        raise HTTPError(400, 'The body has to be JSON like {"message": "Hello"}.') from error
    if not isinstance(message, str) or not message.strip():
        raise HTTPError(400, "The message has to be text, and not empty.")
    if not isinstance(model, str):
        raise HTTPError(400, "The model has to be the name of one.")
    return message, model


async def send_head(send: Send, status: int, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def respond(send: Send, body: bytes, content_type: str, status: int = 200) -> None:
    await send_head(send, status, content_type)
    await send({"type": "http.response.body", "body": body})


async def respond_json(send: Send, value: object, status: int = 200) -> None:
    await respond(send, json.dumps(value, ensure_ascii=False).encode(), "application/json", status)


app = App(os.environ)
