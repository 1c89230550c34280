"""Pipes and terminals between the daemon and a program."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
from dataclasses import dataclass

from roost.guest.sandbox.spawn import StartError


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Of a terminal, in characters."""

    columns: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """Descriptors of the program (`stdio`, `slave`) and of the daemon."""

    stdio: tuple[int, int, int]
    outputs: dict[str, int]
    stdin: int | None
    terminal: int | None = None
    slave: int | None = None


def open_ends(name: str, size: Size | None, stdin: bool, undo: contextlib.ExitStack) -> Ends:
    """A terminal of `size`, or pipes. `undo` closes what was opened. Raises StartError that names `name`."""
    try:
        if size is not None:
            master, slave = os.openpty()
            undo.callback(os.close, master)
            undo.callback(os.close, slave)
            set_size(master, size)
            writer = fcntl.fcntl(master, fcntl.F_DUPFD_CLOEXEC, 3)
            undo.callback(os.close, writer)
            terminal = fcntl.fcntl(master, fcntl.F_DUPFD_CLOEXEC, 3)
            undo.callback(os.close, terminal)
            stdio = (slave, slave, slave)
            return Ends(stdio=stdio, outputs={"pty": master}, stdin=writer, terminal=terminal, slave=slave)
        ours_in: int | None = None
        if stdin:
            theirs_in, ours_in = _pipe(undo)
        else:
            theirs_in = os.open(os.devnull, os.O_RDONLY)
            undo.callback(os.close, theirs_in)
        out, theirs_out = _pipe(undo)
        err, theirs_err = _pipe(undo)
    except OSError as error:
        raise StartError("open", error.errno or 0, name) from error
    stdio = (theirs_in, theirs_out, theirs_err)
    return Ends(stdio=stdio, outputs={"stdout": out, "stderr": err}, stdin=ours_in)


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    undo.callback(os.close, reader)
    undo.callback(os.close, writer)
    return reader, writer


def set_size(terminal: int, size: Size) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows & 0xFFFF, size.columns & 0xFFFF, 0, 0))
