"""What a context has as its standard streams."""

from __future__ import annotations

import builtins
import getpass
import io
import sys
from typing import Any, NoReturn

from IPython.core.error import StdinNotImplementedError

from roost.guest.sandbox.interpreter import linux


class Output(io.TextIOWrapper):
    """Everything that is written goes out at once, between what subprocesses write to the same descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        raw = io.FileIO(fd, "wb", closefd=False)
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", newline="\n")
        self._name = f"<{name}>"

    @property
    def name(self) -> str:
        return self._name

    def write(self, text: str) -> int:
        written = super().write(text)
        self.flush()
        return written

    def close(self) -> None:
        """Not closed: the next cells need it."""


def take_streams() -> None:
    """Give this process its standard streams over the descriptors 0, 1 and 2."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = Output(1, "stdout")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = Output(2, "stderr")  # type: ignore[misc]
    builtins.input = _no_input
    getpass.getpass = _no_input


def flush() -> None:
    """Also what libraries in C hold back."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # the cell put something else there
            continue
    linux.flush_c_streams()


def _no_input(*arguments: Any, **options: Any) -> NoReturn:
    raise StdinNotImplementedError("raw_input was called, but this frontend does not support input requests.")
