"""Code for a sandbox's interpreter: what it prints and results in, as it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from roost.sdk.client import Client, json_object
from roost.sdk.errors import Failed, Unreachable
from roost.sdk.sandbox_api import CODE_PORT, Sandbox, judge

#: A line has one result; a picture may be large.
MAX_LINE = 128 << 20
#: The interpreter says something every five seconds.
_SILENCE_S = 120.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LANGUAGES = {
    ".py": "python", ".js": "javascript", ".mjs": "javascript", ".ts": "typescript", ".sh": "bash", ".r": "r",
    ".java": "java",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """In the context that belongs to the language, unless `context` names another."""

    code: str
    language: str = ""
    context: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        said = {"code": self.code, "language": self.language, "context_id": self.context, "env_vars": dict(self.env)}
        return json.dumps({name: value for name, value in said.items() if value}).encode()


@dataclass(frozen=True, kw_only=True)
class Said:
    """`kind`: stdout, stderr, result (its text), other (kinds of a result without text), error (with its traceback)."""

    kind: str
    text: str


def language_of(file: Path | None) -> str:
    """By the file's name; "" for the interpreter's usual one."""
    return LANGUAGES.get(file.suffix.lower(), "") if file else ""


def execute(client: Client, sandbox: Sandbox, cell: Cell) -> Iterator[Said]:
    """Run it. Who stops reading interrupts it. Raises Failed, Unreachable."""
    headers = {**sandbox.headers(client.server.url, CODE_PORT), "content-type": "application/json"}
    with client.unsigned(
        "POST", "/execute", content=cell.body(), headers=headers, streaming=True, silence_s=_SILENCE_S, judge=_judge
    ) as response:
        for line in lines(response.iter_bytes()):
            message = _object(line)
            kind = message.get("type")
            if kind == "end_of_execution":
                return
            if kind == "unexpected_end_of_execution":
                raise Failed("The code's process has ended before the code has.")
            if (said := _said(kind, message)) is not None:
                yield said
    raise Unreachable("The connection to the sandbox broke.")


def _judge(response: httpx.Response) -> None:
    """As `judge` does. A port that nobody listens on is one of a template without an interpreter."""
    try:
        judge(response)
    except Failed as error:
        if error.status == 502 and "port" in json_object(response):
            raise Failed(
                "This sandbox has no code interpreter; `roost sandbox create --template code-interpreter-v1` makes one "
                "that has."
            ) from error
        raise


def _said(kind: object, message: Mapping[str, Any]) -> Said | None:
    match kind:
        case "stdout" | "stderr":
            return Said(kind=str(kind), text=str(message.get("text") or ""))
        case "result":
            text = message.get("text")
            if isinstance(text, str):
                return Said(kind="result", text=text)
            known = ("type", "text", "is_main_result", "extra")
            kinds = ", ".join(sorted(name for name, value in message.items() if value and name not in known))
            return Said(kind="other", text=kinds) if kinds else None
        case "error":
            trace = str(message.get("traceback") or f"{message.get('name')}: {message.get('value')}")
            return Said(kind="error", text=_COLOUR.sub("", trace))
        case _:  # how many have run, and that it is still there
            return None


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a stream. Raises Failed for one that has no end."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        for index, part in enumerate(chunk.split(b"\n")):
            if index:
                if line := b"".join(held).strip():
                    yield line
                held, size = [], 0
            held.append(part)
            size += len(part)
        if size > MAX_LINE:
            raise Failed("The sandbox sent a result that is too large.")
    if line := b"".join(held).strip():
        yield line


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Failed("The sandbox answered with a line that is not JSON.") from error
    if not isinstance(value, dict):
        raise Failed("The sandbox answered with a line that is no object.")
    return value
