"""A client for OpenAI-compatible chat completions, streamed, on nothing but asyncio.

The standard library is enough here, and it keeps the agent's cold start short: the usual SDK takes a second to import.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

NOT_CONFIGURED = (
    "No model is configured: start Roost with OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL set, or with "
    "`--model local` for a real but very small model on this machine."
)
MAX_REPLY_BYTES = 8 << 20
MAX_HEAD_BYTES = 64 << 10

Message = dict[str, Any]


class ModelError(Exception):
    """Why the model did not answer, as one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model at one endpoint. `timeout_s` bounds every single wait: for the connection and for the next bytes."""

    base_url: str
    name: str = "default"
    api_key: str = ""
    timeout_s: float = 120.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], name: str = "") -> Model:
        """Read OPENAI_BASE_URL, OPENAI_API_KEY and, unless a `name` is given, OPENAI_MODEL.

        Raises ModelError when there is no endpoint. In a room the endpoint is Roost's own proxy, which adds the key.
        """
        base_url = environment.get("OPENAI_BASE_URL", "").rstrip("/")
        if not base_url:
            raise ModelError(NOT_CONFIGURED)
        name = name or environment.get("OPENAI_MODEL") or "default"
        return cls(base_url=base_url, name=name, api_key=environment.get("OPENAI_API_KEY", ""))

    async def reply(self, messages: list[Message], tools: list[Message]) -> AsyncGenerator[str | Message, None]:
        """Yield the reply's text piece by piece as `str`, and at the end the whole assistant message.

        Raises ModelError.
        """
        request: Message = {"model": self.name, "messages": messages, "stream": True}
        if tools:
            request["tools"] = tools
        text: list[str] = []
        calls: dict[int, Message] = {}
        async with aclosing(self._events(request)) as events:
            async for event in events:
                for choice in event.get("choices", ())[:1]:
                    delta = choice.get("delta") or {}
                    if piece := delta.get("content"):
                        text.append(piece)
                        yield piece
                    for part in delta.get("tool_calls") or ():
                        add_call(calls, part)
        message: Message = {"role": "assistant", "content": "".join(text) or None}
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        yield message

    async def _events(self, request: Message) -> AsyncGenerator[Message, None]:
        """The `data:` events of the streamed response, up to `[DONE]`."""
        buffer = b""
        async with aclosing(self._post("/chat/completions", request)) as blocks:
            async for block in blocks:
                *lines, buffer = (buffer + block).split(b"\n")
                for line in lines:
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        return
                    if line.startswith(b"data:"):
                        yield parse_event(data)
        raise ModelError("The model's reply broke off before its end.")

    async def _post(self, path: str, request: Message) -> AsyncGenerator[bytes, None]:
        """POST JSON and yield the body of the 200 reply as it arrives."""
        url = urlsplit(self.base_url + path)
        secure = url.scheme == "https"
        body = json.dumps(request).encode()
        head = [f"POST {url.path} HTTP/1.1", f"host: {url.netloc}", f"content-length: {len(body)}"]
        head += ["content-type: application/json", "accept: text/event-stream", "connection: close"]
        if self.api_key:
            head.append(f"authorization: Bearer {self.api_key}")
        writer = None
        try:
            async with asyncio.timeout(self.timeout_s):
                port = url.port or (443 if secure else 80)
                reader, writer = await asyncio.open_connection(url.hostname, port, ssl=secure or None)
                writer.write("\r\n".join([*head, "", ""]).encode() + body)
                await writer.drain()
                status, headers = await read_head(reader)
            blocks = read_body(reader, headers, self.timeout_s)
            if status != 200:
                raise ModelError(refusal(status, b"".join([block async for block in blocks])))
            async for block in blocks:
                yield block
        except TimeoutError as error:
            raise ModelError(f"The model at {self.base_url} sent nothing for {self.timeout_s:g} s.") from error
        except (OSError, EOFError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ModelError(f"The connection to the model at {self.base_url} failed: {reason}.") from error
        finally:
            if writer is not None:
                writer.close()


def add_call(calls: dict[int, Message], part: Message) -> None:
    """Put one piece of a streamed tool call where it belongs."""
    index = part.get("index", len(calls))
    empty = {"id": f"call_{index}", "type": "function", "function": {"name": "", "arguments": ""}}
    call = calls.setdefault(index, empty)
    function = part.get("function") or {}
    call["id"] = part.get("id") or call["id"]
    # Only the arguments come in pieces: some servers repeat the name with every one of them.
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += function.get("arguments") or ""


def parse_event(data: bytes) -> Message:
    """One event of the stream. Raises ModelError for an error that the endpoint reports in mid-stream."""
    event: Message = json.loads(data)
    if error := event.get("error"):
        sentence = error.get("message") if isinstance(error, dict) else error
        raise ModelError(f"The model failed while it answered: {sentence}")
    return event


def refusal(status: int, body: bytes) -> str:
    """One sentence for an HTTP error, with the endpoint's own words when it has some."""
    try:
        reason = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        reason = body[:200].decode(errors="replace").strip() or "no reason given"
    hint = {401: " Check OPENAI_API_KEY.", 404: " Check OPENAI_BASE_URL and OPENAI_MODEL."}.get(status, "")
    return f"The model endpoint answered {status}: {reason.rstrip('.')}.{hint}"


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of an HTTP/1.1 response. Raises ValueError if it is not one."""
    head = await reader.readuntil(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    if not status_line.startswith("HTTP/1."):
        raise ValueError("it does not speak HTTP")
    pairs = (line.partition(":") for line in lines if line)
    return int(status_line.split()[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def read_body(
    reader: asyncio.StreamReader, headers: Mapping[str, str], timeout_s: float
) -> AsyncGenerator[bytes, None]:
    """The body in blocks as they arrive, whether chunked, of a known length, or up to the end of the connection."""
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    left = int(headers.get("content-length", MAX_REPLY_BYTES))
    total = 0
    while left:
        async with asyncio.timeout(timeout_s):
            if chunked:
                size = int(await reader.readline(), 16)
                block = await reader.readexactly(size + 2)
                block = block[:-2]
            else:
                block = await reader.read(min(left, MAX_HEAD_BYTES))
                left -= len(block)
        if not block:
            return
        total += len(block)
        if total > MAX_REPLY_BYTES:
            raise ValueError("its reply is too long")
        yield block
