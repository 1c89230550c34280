"""The life of a Python context: it rests in `Channel.receive`, runs the cell that comes, and rests again."""

from __future__ import annotations

import builtins
import gc
import getpass
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from roost.guest.loading import prepare_path
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.python import branching, streams
from roost.guest.sandbox.interpreter.python.channel import Channel
from roost.guest.sandbox.interpreter.python.variables import replaced
from roost.guest.sandbox.interpreter.python.warm import SHELL

_STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")


def run(sock: socket.socket, env: Mapping[str, str]) -> None:
    """Serve cells until the daemon has gone. `env` becomes this process's environment."""
    gc.enable()  # what was there before is frozen
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as every Python interpreter has it
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(env)
    prepare_path("", env["PYTHONUSERBASE"])
    sys.argv = [""]
    sys.modules["__main__"] = SHELL.user_module
    _reseed()
    streams.take_streams()
    channel = Channel(sock)
    SHELL.channel = channel
    channel.on_born = _on_born
    channel.take_interrupts()
    channel.send(frames.READY, _next())
    while (cell := channel.receive()) is not None:
        _run_cell(channel, cell)
        if not channel.is_open:  # a fork that user code made, at the end of its cell
            return


def _run_cell(channel: Channel, cell: Mapping[str, Any]) -> None:
    channel.take_interrupts()
    with replaced(os.environ, cell.get("env") or {}):
        try:
            channel.interruptible = True
            SHELL.run(cell["code"])
            channel.interruptible = False
        except KeyboardInterrupt:  # came at the very end
            channel.interruptible = False
    streams.flush()
    channel.send(frames.DONE, _next())


def rehearse() -> None:
    """Be a context for one cell, in the zygote: see `roost.guest.rehearsal`. Afterwards it is as if it had not been."""
    main, argv, path, environ = sys.modules["__main__"], sys.argv, list(sys.path), dict(os.environ)
    asks = builtins.input, getpass.getpass
    standard = {name: getattr(sys, name) for name in _STREAMS}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)}
    ours, theirs = socket.socketpair()
    try:
        with ours, theirs:
            ours.sendall(frames.frame(frames.RUN, json.dumps({"code": "1+1", "env": {}}).encode()))
            ours.shutdown(socket.SHUT_WR)
            run(theirs, {"PYTHONUSERBASE": "/nonexistent", **environ})
            if Channel.own is not None:
                branching.rehearse(Channel.own)
    finally:
        SHELL.channel = Channel.own = None
        SHELL.forget_cells()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, stream in standard.items():
            setattr(sys, name, stream)
        builtins.input, getpass.getpass = asks
        os.environ.clear()
        os.environ.update(environ)
        sys.modules["__main__"], sys.argv, sys.path[:] = main, argv, path


def _on_born() -> None:
    """In a copy of this process."""
    SHELL.leave_loop()
    if SHELL.channel is not None:
        SHELL.channel.send(frames.READY, _next())


def _reseed() -> None:
    """Random numbers of its own: `random`, `uuid` and `ssl` see to that after a fork themselves, NumPy does not.

    A plain integer: with anything longer, NumPy converts arrays first, which costs each context half a megabyte.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4)))


def _next() -> bytes:
    return json.dumps({"next": SHELL.execution_count}).encode()
