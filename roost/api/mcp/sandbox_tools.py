"""The tools of one sandbox: code, commands, files."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from roost.api.mcp import arguments as args
from roost.api.mcp.code_run import CodeRun
from roost.api.mcp.rooms import Room, Rooms
from roost.api.mcp.text import MOST_IMAGE, Output, Reply, image
from roost.api.mcp.toolbox import Tool
from roost.sandboxes.fleet import SandboxFleet

MOST_READ = 128 << 10
MOST_LISTED = 1000
_PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
_KINDS = {"FILE_TYPE_FILE": "file", "FILE_TYPE_DIRECTORY": "directory"}


class SandboxTools:
    """What is done in a sandbox. `account` has to own it."""

    def __init__(self, rooms: Rooms, fleet: SandboxFleet) -> None:
        self._rooms = rooms
        self._fleet = fleet

    def tools(self) -> list[Tool[Any]]:
        return [
            Tool(
                name="run_code",
                description="Run code in the sandbox's interpreter and return what it prints and results in. The "
                "interpreter remembers variables, functions and imports from one call to the next. Pictures that the "
                "code displays come back as images.",
                shape=args.RunCode,
                run=self._run_code,
                action="process.start",
            ),
            Tool(
                name="run_command",
                description="Run a shell command in the sandbox and return its output and exit code. Each command is a "
                "new shell; files stay. User root may install packages and change everything in the sandbox.",
                shape=args.RunCommand,
                run=self._run_command,
                action="process.start",
            ),
            Tool(
                name="read_file",
                description="Read a text file of the sandbox, or look at a picture. A long file is read in parts.",
                shape=args.ReadFile,
                run=self._read_file,
                action="file.read",
            ),
            Tool(
                name="write_file",
                description="Write a text file in the sandbox; directories that are missing are made.",
                shape=args.WriteFile,
                run=self._write_file,
                action="file.write",
            ),
            Tool(
                name="list_files",
                description="List a directory of the sandbox: kind, size and path of each entry.",
                shape=args.ListFiles,
                run=self._list_files,
            ),
        ]

    async def _use(self, account: str, sandbox: str, work: Callable[[Room], Awaitable[Reply]]) -> Reply:
        return await self._rooms.use(self._fleet.get(account, sandbox).id, work)

    async def _run_command(self, account: str, sandbox: str, given: args.RunCommand) -> Reply:
        out, err = Output(), Output()

        async def work(room: Room) -> Reply:
            ending = await room.run(
                given.command,
                cwd=given.cwd,
                user=given.user,
                timeout_s=given.timeout,
                output=lambda name, data: (err if name == "stderr" else out).add(data),
            )
            parts = [out.text(), f"[stderr]\n{err.text()}" if err.size else "", f"[{ending}]" if ending else ""]
            return Reply.of(*parts, error=bool(ending) and not ending.startswith("exit code"))

        return await self._use(account, sandbox, work)

    async def _run_code(self, account: str, sandbox: str, given: args.RunCode) -> Reply:
        run = CodeRun()

        async def work(room: Room) -> Reply:
            try:
                async with asyncio.timeout(given.timeout), aclosing(room.execute(given.code, given.language)) as said:
                    async for message in said:
                        run.take(message)
            except TimeoutError:
                run.stopped(given.timeout)
            return run.reply()

        return await self._use(account, sandbox, work)

    async def _read_file(self, account: str, sandbox: str, given: args.ReadFile) -> Reply:
        async def work(room: Room) -> Reply:
            data, size = await room.read(given.path, given.offset, MOST_READ)
            kind = next((kind for magic, kind in _PICTURES.items() if data.startswith(magic)), "")
            if kind and not given.offset and size <= MOST_IMAGE:
                whole, _ = await room.read(given.path, 0, MOST_IMAGE)
                return Reply(content=[image(base64.b64encode(whole).decode(), kind)])
            return file_reply(data, given.offset, size)

        return await self._use(account, sandbox, work)

    async def _write_file(self, account: str, sandbox: str, given: args.WriteFile) -> Reply:
        data = given.content.encode("utf-8", "replace")

        async def work(room: Room) -> Reply:
            return Reply.of(f"Wrote {len(data)} bytes to {await room.write(given.path, data)}.")

        return await self._use(account, sandbox, work)

    async def _list_files(self, account: str, sandbox: str, given: args.ListFiles) -> Reply:
        async def work(room: Room) -> Reply:
            entries = await room.list(given.path, given.depth)
            lines = [_entry(entry) for entry in entries[:MOST_LISTED]]
            if len(entries) > MOST_LISTED:
                lines.append(f"[{len(entries) - MOST_LISTED} of {len(entries)} entries were cut here]")
            return Reply.of("\n".join(lines) or "(empty)")

        return await self._use(account, sandbox, work)


def file_reply(data: bytes, offset: int, size: int) -> Reply:
    """A part of a file as text, and where it goes on."""
    end = offset + len(data)
    if end < size:
        # Not in the middle of a character.
        for back in range(1, min(4, len(data)) + 1):
            if data[-back] & 0xC0 != 0x80:
                if data[-back] >= 0xC0 and len(data) > back:
                    data, end = data[:-back], end - back
                break
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return Reply.of(f"The file is not text in UTF-8; it has {size} bytes. Look at it with run_command.", error=True)
    more = f"[bytes {offset} to {end} of {size}; read on with offset {end}]" if end < size else ""
    return Reply.of(text, more) if text or more else Reply.of("(empty)")


def _entry(entry: Mapping[str, Any]) -> str:
    kind = _KINDS.get(str(entry.get("type")), "other")
    link = f" -> {entry['symlinkTarget']}" if entry.get("symlinkTarget") else ""
    return f"{kind:9} {entry.get('size', '')!s:>10} {entry.get('path', '')}{link}"
