"""A Python process at a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping

#: The first terminal that a session leader opens becomes its own, so that Ctrl-C is a signal.
TAKE_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """A Python process with a terminal of its own."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], *, rows: int = 24, columns: int = 80
    ) -> None:
        self._master, self._slave = pty.openpty()
        self.seen = ""
        self.resize(rows, columns)
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment,
            start_new_session=True,
        )

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[object]:
        """As `termios.tcgetattr` tells them."""
        return termios.tcgetattr(self._slave)

    def expect(self, text: str) -> None:
        """Read on until `text` has come; what came before it is forgotten."""
        assert self._comes(text, 30), f"no {text!r} in {self.seen!r}"

    def interrupt_prompt(self, text: str) -> None:
        """Ctrl-C at a prompt, until `text` has come. One that meets Python's `input` between its prompt and its read is
        noticed with the next key only."""
        for _ in range(30):
            self.type("\x03")
            if self._comes(text, 1):
                return
        raise AssertionError(f"no {text!r} in {self.seen!r}")

    def _comes(self, text: str, pause_s: float) -> bool:
        """Whether `text` comes, with no pause longer than that before it."""
        while text not in self.seen:
            if not select.select([self._master], [], [], pause_s)[0]:
                return False
            self.seen += os.read(self._master, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)
