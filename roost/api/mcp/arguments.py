"""The tools' arguments: their JSON schemas, and what is wrong with those that came. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from roost.model.errors import InvalidArgument

_MOST_S = 3600


class Arguments(BaseModel):
    """Of one tool. A number that comes as a string is taken: models write such."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, title="")


Path = Annotated[str, Field(min_length=1, max_length=4096, description="Absolute, or relative to the home directory.")]
Seconds = Annotated[float, Field(gt=0, le=_MOST_S, description="Seconds until it is stopped.")]


class RunCode(Arguments):
    code: Annotated[str, Field(max_length=4 << 20, description="What was defined before is still there.")]
    language: Literal["python", "javascript", "typescript", "bash", "r", "java"] = "python"
    timeout: Seconds = 60


class RunCommand(Arguments):
    command: Annotated[str, Field(min_length=1, max_length=128 << 10, description="For bash.")]
    cwd: Annotated[str, Field(max_length=4096, description="The directory it runs in.")] = ""
    user: Annotated[str, Field(max_length=64, description="'root', or a user of the sandbox.")] = "user"
    timeout: Seconds = 60


class ReadFile(Arguments):
    path: Path
    offset: Annotated[int, Field(ge=0, description="The first byte to read.")] = 0


class WriteFile(Arguments):
    path: Path
    content: Annotated[str, Field(description="All of the file; what was in it is replaced.")]


class ListFiles(Arguments):
    path: Annotated[str, Field(max_length=4096)] = "."
    depth: Annotated[int, Field(ge=1, le=20, description="Levels of directories.")] = 1


class CreateSandbox(Arguments):
    template: Annotated[str, Field(min_length=1, max_length=256)] = "code-interpreter-v1"
    timeout: Annotated[int | None, Field(ge=0, description="Seconds that it lives.")] = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=100)] = {}


class ListSandboxes(Arguments):
    pass


class KillSandbox(Arguments):
    pass


#: All tools that there are.
TOOLS = (
    "run_code", "run_command", "read_file", "write_file", "list_files",
    "create_sandbox", "list_sandboxes", "kill_sandbox",
)  # fmt: skip

A = TypeVar("A", bound=Arguments)


def parse(shape: type[A], given: object) -> A:
    """Raises InvalidArgument that names the argument."""
    try:
        return shape.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "arguments"
        raise InvalidArgument(f"{where[:200]}: {first['msg']}.") from error


def schema(shape: type[Arguments], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON schema; `more` are arguments that come first, all of them required."""
    whole = shape.model_json_schema()
    properties = {**(more or {}), **whole.get("properties", {})}
    for each in properties.values():
        each.pop("title", None)
    required = [*(more or {}), *whole.get("required", [])]
    said: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**said, "required": required} if required else said
