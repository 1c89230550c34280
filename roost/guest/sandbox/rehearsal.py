"""What a sandbox's daemon does first, done in the zygote. See `roost.guest.rehearsal`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import NoReturn

from roost.guest.async_server import AsyncServer
from roost.guest.config import SandboxConfig, StartConfig
from roost.guest.sandbox.daemon import CONCURRENCY, INTERPRETER_PORT, handler
from roost.guest.sandbox.identities import Identities
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.processes import Descriptors, Order
from roost.guest.sandbox.interpreter.server import Interpreter

_LIMIT_S = 10.0
_RESULT = b'{"type": "result", "text": "2", "extra": {}, "is_main_result": true}'


def rehearse_daemon(listener: socket.socket) -> None:
    """Serve some requests, with a context that only says what contexts say."""
    config = StartConfig(runtime="sandbox", sandbox=SandboxConfig(user="root", workdir="/", interpreter=True))
    with asyncio.Runner() as runner:
        runner.run(_rehearse(config, listener))


async def _rehearse(config: StartConfig, listener: socket.socket) -> None:
    identities = Identities(default="root", env={}, workdir="/", own_python=True)
    interpreter = Interpreter(config, identities, launch=_answer)
    server = AsyncServer(listener, handler(config, identities, interpreter), concurrency=CONCURRENCY, grace_s=0.0)
    await server.serve()
    try:
        async with asyncio.timeout(_LIMIT_S):
            await _ask(listener, b"GET", b"/health", b"")
            await _ask(listener, b"POST", b"/execute", b'{"code": "1+1", "env_vars": {"A": "b"}}')
    finally:
        await interpreter.close()


async def _ask(listener: socket.socket, method: bytes, target: bytes, body: bytes) -> None:
    """One request, over a connection of its own, as a gateway sends it."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, listener.getsockname())
        head = b"%s %s HTTP/1.1\r\nhost: rehearsal\r\nconnection: close\r\nx-roost-port: %s\r\n" % (
            method,
            target,
            INTERPRETER_PORT.encode(),
        )
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) if body else b"\r\n"
        await loop.sock_sendall(sock, head + fields + body)
        while await loop.sock_recv(sock, 1 << 16):
            pass


def _answer(order: Order, fds: Descriptors) -> NoReturn:
    """In the fork that stands for a context."""
    try:
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(True)
        number = 1
        sock.sendall(frames.frame(frames.READY, json.dumps({"next": number}).encode()))
        reader = frames.FrameReader()
        while data := sock.recv(1 << 16):
            for _ in reader.feed(data):
                number += 1
                done = frames.frame(frames.DONE, json.dumps({"next": number}).encode())
                sock.sendall(frames.frame(frames.RESULT, _RESULT) + done)
    finally:
        os._exit(0)
