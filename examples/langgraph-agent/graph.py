"""The agent as a LangGraph graph: the model and its tools, in a loop."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import SecretStr

INSTRUCTIONS = SystemMessage(
    "You are a helpful agent. Run Python whenever computing beats guessing; then answer briefly."
)
TOOL_TIMEOUT_S = 60


@tool
async def run_python(code: str, config: RunnableConfig) -> str:
    """Run a Python program and return what it prints. Files in its working directory are kept."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        cwd=config["configurable"]["directory"],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(TOOL_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return f"error: not finished within {TOOL_TIMEOUT_S} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output[-20_000:].decode(errors="replace")


async def call_model(state: MessagesState) -> dict[str, list[BaseMessage]]:
    key = SecretStr(os.environ.get("OPENAI_API_KEY") or "none")  # in a room Roost's proxy adds the real one
    model = ChatOpenAI(model=os.environ.get("OPENAI_MODEL") or "default", api_key=key, timeout=120, max_retries=1)
    return {"messages": [await model.bind_tools([run_python]).ainvoke([INSTRUCTIONS, *state["messages"]])]}


def build() -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(MessagesState)
    graph.add_node("model", call_model)
    graph.add_node("tools", ToolNode([run_python]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph


def session_directory(header: str | None) -> Path:
    """Where this session's files are: named by Roost in a header, so that they outlive the instance."""
    directory = Path(header or os.environ.get("ROOST_SESSION_DIR") or Path.home() / "session")
    directory.mkdir(parents=True, exist_ok=True)
    return directory
