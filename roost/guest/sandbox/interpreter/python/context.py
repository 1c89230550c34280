"""The life of a Python context: it rests in `Channel.receive`, runs the cell that comes, and rests again."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from roost.guest.loading import prepare_path
from roost.guest.sandbox.interpreter import frames
from roost.guest.sandbox.interpreter.python import streams
from roost.guest.sandbox.interpreter.python.channel import Channel
from roost.guest.sandbox.interpreter.python.variables import replaced
from roost.guest.sandbox.interpreter.python.warm import SHELL


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
    """Run a cell as `run` does, in the zygote: see `roost.guest.rehearsal`. Afterwards it is as if it had not run."""
    main, handler = sys.modules["__main__"], signal.getsignal(signal.SIGINT)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        SHELL.channel = channel = Channel(theirs)
        sys.modules["__main__"] = SHELL.user_module
        ours.sendall(frames.frame(frames.RUN, json.dumps({"code": "1+1", "env": {}}).encode()))
        _run_cell(channel, channel.receive() or {})
    SHELL.channel = None
    SHELL.forget_cells()
    sys.modules["__main__"] = main
    signal.signal(signal.SIGINT, handler)


def _reseed() -> None:
    """Random numbers of its own: `random`, `uuid` and `ssl` see to that after a fork themselves, NumPy does not.

    A plain integer: with anything longer, NumPy converts arrays first, which costs each context half a megabyte.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4)))


def _next() -> bytes:
    return json.dumps({"next": SHELL.execution_count}).encode()
