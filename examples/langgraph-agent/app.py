"""POST /chat {"message": "..."}: the graph's answer as server-sent events.

The graph's state is checkpointed to a file of the session, so a conversation goes on in a new instance.
"""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from graph import build, session_directory
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import GraphRecursionError
from openai import OpenAIError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

GRAPH = build()
NOT_CONFIGURED = (
    "No model is configured: start Roost with OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL set, "
    "or with `--model local`."
)


async def answer(message: str, directory: Path) -> AsyncIterator[dict[str, Any]]:
    """Run the graph. Yields events of type text, tool, result, and at the end done or error."""
    if not os.environ.get("OPENAI_BASE_URL"):
        yield {"type": "error", "message": NOT_CONFIGURED}
        return
    config: RunnableConfig = {
        "configurable": {"thread_id": "session", "directory": str(directory)},
        "recursion_limit": 50,
    }
    state = {"messages": [("user", message)]}
    try:
        async with AsyncSqliteSaver.from_conn_string(str(directory / "checkpoints.sqlite")) as saver:
            graph = GRAPH.compile(checkpointer=saver)
            async for mode, value in graph.astream(state, config, stream_mode=["messages", "updates"]):
                for event in events_of(mode, value):
                    yield event
        yield {"type": "done"}
    except (OpenAIError, GraphRecursionError) as error:
        yield {"type": "error", "message": f"The agent could not answer: {error}"}


def events_of(mode: str, value: Any) -> list[dict[str, Any]]:
    """Tokens come in the mode `messages`; tool calls and results when their node has finished."""
    if mode == "messages":
        chunk = value[0]
        text = chunk.text if isinstance(chunk, AIMessageChunk) else ""
        return [{"type": "text", "text": str(text)}] if text else []
    if "tools" in value:
        return [{"type": "result", "name": m.name, "output": m.content} for m in value["tools"]["messages"]]
    calls = value["model"]["messages"][-1].tool_calls
    return [{"type": "tool", "name": call["name"], "arguments": call["args"]} for call in calls]


async def chat(request: Request) -> Response:
    try:
        message = str((await request.json())["message"])
    except (ValueError, KeyError, TypeError):
        return JSONResponse({"error": 'The body has to be JSON like {"message": "Hello"}.'}, 400)
    directory = session_directory(request.headers.get("x-roost-session-dir"))

    async def lines() -> AsyncIterator[str]:
        async for event in answer(message, directory):
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


app = Starlette(routes=[Route("/chat", chat, methods=["POST"])])
