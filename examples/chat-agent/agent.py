"""The agent: a model, instructions and tools in a loop, until the model answers without asking for a tool."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from history import History
from model import Model, ModelError
from tools import Toolbox

INSTRUCTIONS = """\
You are a helpful agent with a computer of your own: a Python interpreter whose variables live on between calls, a
folder of files, and pip. Use the tools whenever running something beats guessing; look at what they print, and correct
yourself when something fails. Then answer the user briefly, with the results."""

MAX_STEPS = 25
CONTEXT_CHARACTERS = 200_000

Event = dict[str, Any]


async def run(message: str, *, model: Model, tools: Toolbox, history: History) -> AsyncGenerator[Event, None]:
    """Answer one message of the user. Yields events; the last one is of type `done` or `error`.

    {"type": "text", "text"}, {"type": "tool", "name", "arguments"}, {"type": "result", "name", "output"},
    {"type": "done"}, {"type": "error", "message"}
    """
    history.append({"role": "user", "content": message})
    try:
        for _ in range(MAX_STEPS):
            calls = []
            messages = [{"role": "system", "content": INSTRUCTIONS}, *history.recent(CONTEXT_CHARACTERS)]
            async with aclosing(model.reply(messages, tools.schemas)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield {"type": "text", "text": piece}
                    else:
                        reply, calls = piece, piece.get("tool_calls", [])
            if not calls:
                history.append(reply)
                yield {"type": "done"}
                return
            for call in calls:
                yield {"type": "tool", "name": name_of(call), "arguments": arguments_of(call)}
            outputs = await asyncio.gather(*(tools.call(**call["function"]) for call in calls))
            history.append(reply, *map(tool_message, calls, outputs))
            for call, output in zip(calls, outputs, strict=True):
                yield {"type": "result", "name": name_of(call), "output": output}
        yield {"type": "error", "message": f"The agent stopped after {MAX_STEPS} steps without an answer."}
    except ModelError as error:
        yield {"type": "error", "message": str(error)}


def name_of(call: dict[str, Any]) -> str:
    return str(call["function"]["name"])


def arguments_of(call: dict[str, Any]) -> Any:
    """The arguments for display: parsed when they can be."""
    text = call["function"]["arguments"]
    try:
        return json.loads(text or "{}")
    except ValueError:
        return text


def tool_message(call: dict[str, Any], output: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call["id"], "content": output}
