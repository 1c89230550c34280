"""What the agent can do. A tool is a method: its docstring is what the model reads, its parameters are strings.

To add one, write a method and name it in `TOOLS`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interpreter import Interpreter

MAX_OUTPUT = 20_000  # characters that the model gets to read of one result
MAX_FILES = 500
INSTALL_TIMEOUT_S = 300.0
REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]+\])?([=<>!~]=?[\w.*+!,=<>~-]+)?")


class Toolbox:
    """The tools of one session. Everything they make is in the session's directory: `files/` and `packages/`."""

    TOOLS = ("run_python", "install_package", "read_file", "write_file", "list_files")

    def __init__(self, directory: Path) -> None:
        self._files = directory / "files"
        self._packages = directory / "packages"
        self._interpreter = Interpreter(directory=self._files, packages=self._packages)
        self.schemas = [schema(getattr(self, name)) for name in self.TOOLS]

    async def close(self) -> None:
        await self._interpreter.close()

    async def call(self, name: str, arguments: str) -> str:
        """Call a tool as the model asked. Whatever is wrong comes back as text that the model can act upon."""
        if name not in self.TOOLS:
            return f"error: there is no tool {name!r}, only {', '.join(self.TOOLS)}"
        try:
            values = json.loads(arguments or "{}")
        except ValueError as error:
            return f"error: the arguments of {name} are not valid JSON: {error}"
        if problem := mismatch(parameters_of(getattr(self, name)), values):
            return f"error: {name}: {problem}"
        try:
            return shorten(await getattr(self, name)(**values))
        except (OSError, ValueError) as error:
            return f"error: {error}"

    async def run_python(self, code: str) -> str:
        """Run Python code and return what it prints and the value of its last expression. Variables, imports and
        functions live on until the next call. The working directory is the folder of files."""
        return await self._interpreter.run(code)

    async def install_package(self, name: str) -> str:
        """Install a package from PyPI for run_python, like `pandas` or `numpy==2.1.0`."""
        if not REQUIREMENT.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a package")
        self._packages.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        process = await asyncio.create_subprocess_exec(
            *command, "--target", str(self._packages), name,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PIP_USER": "0"},
        )  # fmt: skip
        try:
            async with asyncio.timeout(INSTALL_TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            return f"error: pip did not finish within {INSTALL_TIMEOUT_S:g} s"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        text = output.decode(errors="replace").strip()
        return f"installed {name}" if process.returncode == 0 else f"error: pip failed: {text}"

    async def read_file(self, path: str) -> str:
        """Read a text file."""
        with self._inside(path).open(errors="replace") as file:
            return file.read(2 * MAX_OUTPUT)

    async def write_file(self, path: str, content: str) -> str:
        """Write a text file, replacing what was there. Missing folders are made."""
        target = self._inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        return f"wrote {len(content.encode())} bytes to {path}"

    async def list_files(self, path: str = ".") -> str:
        """List the files below a folder, with their sizes in bytes."""
        root = self._inside(path)
        files = sorted(file for file in root.rglob("*") if not file.is_dir())
        lines = [f"{file.relative_to(root)}  {file.lstat().st_size}" for file in files[:MAX_FILES]]
        if len(files) > MAX_FILES:
            lines.append(f"... and {len(files) - MAX_FILES} more")
        return "\n".join(lines) or "no files"

    def _inside(self, path: str) -> Path:
        """The path below the folder of files. Raises ValueError when it leads out of it, by `..` or by a link."""
        target = (self._files / path).resolve()
        if not target.is_relative_to(self._files.resolve()):
            raise ValueError(f"{path} is outside the session's folder")
        return target


def parameters_of(tool: Callable[..., object]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(tool).parameters)


def schema(tool: Callable[..., object]) -> dict[str, Any]:
    """How the model is told of a tool: its name, docstring and parameters."""
    parameters = parameters_of(tool)
    description = " ".join((inspect.getdoc(tool) or "").split())
    required = [key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    properties = {key: {"type": "string"} for key in parameters}
    arguments = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    function = {"name": tool.__name__, "description": description, "parameters": arguments}
    return {"type": "function", "function": function}


def mismatch(parameters: dict[str, inspect.Parameter], values: Any) -> str:
    """What is wrong with the arguments, or an empty string."""
    if not isinstance(values, dict):
        return "the arguments have to be a JSON object"
    if unknown := values.keys() - parameters.keys():
        return f"unknown arguments {sorted(unknown)}; it takes {list(parameters)}"
    for key, parameter in parameters.items():
        if key not in values and parameter.default is inspect.Parameter.empty:
            return f"the argument {key!r} is missing"
        if not isinstance(values.get(key, ""), str):
            return f"the argument {key!r} has to be a string"
    return ""


def shorten(text: str) -> str:
    """Keep beginning and end of a long result."""
    if len(text) <= MAX_OUTPUT:
        return text
    half = MAX_OUTPUT // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
