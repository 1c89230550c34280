"""Real rooms with the code interpreter in them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from roost.isolation import seccomp
from roost.isolation.bundle import Bundle, build_bundle
from roost.isolation.driver import Template
from roost.isolation.namespaces.driver import NamespacesDriver
from roost.isolation.namespaces.policy import RoomPolicy
from roost.isolation.templates import Templates
from roost.isolation.templates.data import build_data, code_interpreter
from tests.support.interpreter import Execution

GUEST = "fake_daemon"
#: What the root of a sandbox's room keeps: to be another user of the room, and to end what that started.
_CAPABILITIES = frozenset({5, 6, 7})  # CAP_KILL, CAP_SETGID, CAP_SETUID


def interpreter_bundle(directory: Path) -> Bundle:
    """A bundle whose rooms can run `fake_daemon`."""
    bundle = build_bundle(directory)
    for package in bundle.root.glob("**/roost/__init__.py"):
        site = package.parents[1]
        copying = site / f"{GUEST}.{os.getpid()}"
        shutil.copy(Path(__file__).with_name(f"{GUEST}.py"), copying)
        copying.rename(site / f"{GUEST}.py")
    return bundle


@asynccontextmanager
async def interpreter_driver(data_dir: Path, packages: Path) -> AsyncIterator[tuple[NamespacesDriver, Template]]:
    """A driver with the template `code-interpreter-v1`; `packages` is the data directory where that is built."""
    policy = RoomPolicy(seccomp=seccomp.program(), capabilities=_CAPABILITIES)
    driver = NamespacesDriver(data_dir, interpreter_bundle(packages), guest=GUEST, policy=policy)
    await driver.start()
    try:
        yield driver, code_interpreter(Templates(data_dir).get("host"), build_data(packages))
    finally:
        await driver.close()


async def request(run_dir: Path, method: str, target: str, body: Any = None) -> tuple[int, bytes]:
    """One request to a room; a socket's path may have 107 bytes only, so it is reached through its directory."""
    directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/app.sock", limit=1 << 26)
    finally:
        os.close(directory)
    try:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nhost: room\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        reply = await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
        await writer.wait_closed()
    first, _, rest = reply.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in first.lower():
        rest = _unchunked(rest)
    return int(first.split(b" ", 2)[1]), rest


async def run_code(run_dir: Path, code: str, **fields: Any) -> Execution:
    status, body = await request(run_dir, "POST", "/execute", {"code": code, **fields})
    assert status == 200, body
    return Execution([json.loads(line) for line in body.splitlines()])


def _unchunked(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        parts.append(data[:length])
        data = data[length + 2 :]
    return b"".join(parts)
