"""A Pydantic AI agent that keeps a notebook. POST /chat {"message": "..."}: its answer as server-sent events."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic_ai import (
    Agent,
    AgentRunError,
    AgentRunResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    PartDeltaEvent,
    PartStartEvent,
    RunContext,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

NOT_CONFIGURED = (
    "No model is configured: start Roost with OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL set, "
    "or with `--model local`."
)

agent = Agent(
    deps_type=Path,
    instructions="You are a helpful assistant with a notebook: note what the user wants remembered, look it up later.",
)


@agent.tool
def write_note(context: RunContext[Path], title: str, text: str) -> str:
    """Write a note into the notebook, replacing one of the same title."""
    notes = read_json(context.deps / "notes.json", {})
    write_json(context.deps / "notes.json", {**notes, title: text})
    return f"noted {title}"


@agent.tool
def read_notes(context: RunContext[Path]) -> dict[str, str]:
    """Read all notes, by title."""
    notes: dict[str, str] = read_json(context.deps / "notes.json", {})
    return notes


def read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def write_json(path: Path, value: Any) -> None:
    """Replace the file at once: a crash leaves the old value or the new one."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.replace(path)


async def answer(message: str, directory: Path) -> AsyncIterator[dict[str, Any]]:
    """Run the agent. Yields events of type text, tool, result, and at the end done or error."""
    if not (base_url := os.environ.get("OPENAI_BASE_URL")):
        yield {"type": "error", "message": NOT_CONFIGURED}
        return
    provider = OpenAIProvider(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY") or "none")
    model = OpenAIChatModel(os.environ.get("OPENAI_MODEL") or "default", provider=provider)
    history = load(directory)
    try:
        run = agent.run_stream_events(message, message_history=history, deps=directory, model=model)
        async with run as events:
            async for event in events:
                match event:
                    case PartStartEvent(part=TextPart(content=text)) if text:
                        yield {"type": "text", "text": text}
                    case PartDeltaEvent(delta=TextPartDelta(content_delta=text)) if text:
                        yield {"type": "text", "text": text}
                    case FunctionToolCallEvent(part=call):
                        yield {"type": "tool", "name": call.tool_name, "arguments": call.args}
                    case FunctionToolResultEvent(part=part):
                        yield {"type": "result", "name": part.tool_name, "output": str(part.content)}
                    case AgentRunResultEvent(result=result):
                        save(directory, result.all_messages())
        yield {"type": "done"}
    except AgentRunError as error:
        yield {"type": "error", "message": f"The agent could not answer: {error}"}


def load(directory: Path) -> list[ModelMessage]:
    """The conversation so far, from a file of the session."""
    return ModelMessagesTypeAdapter.validate_python(read_json(directory / "history.json", []))


def save(directory: Path, messages: list[ModelMessage]) -> None:
    write_json(directory / "history.json", ModelMessagesTypeAdapter.dump_python(messages, mode="json"))


async def chat(request: Request) -> Response:
    try:
        message = str((await request.json())["message"])
    except (ValueError, KeyError, TypeError):
        return JSONResponse({"error": 'The body has to be JSON like {"message": "Hello"}.'}, 400)
    header = request.headers.get("x-roost-session-dir")
    directory = Path(header or os.environ.get("ROOST_SESSION_DIR") or Path.home() / "session")
    directory.mkdir(parents=True, exist_ok=True)

    async def lines() -> AsyncIterator[str]:
        async for event in answer(message, directory):
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


app = Starlette(routes=[Route("/chat", chat, methods=["POST"])])
