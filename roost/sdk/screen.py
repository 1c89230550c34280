"""The terminal of the person at the keyboard, lent to a shell in a sandbox and given back as it was."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType

from roost.sdk.envd import Envd
from roost.sdk.errors import UsageError
from roost.sdk.programs import Ended, Output, Program, Size
from roost.sdk.running import Input, Wake, run

#: What a program that was cut off may have left on: other screen, hidden cursor, mouse, bracketed paste, colours.
_CALM = b"\x1b[?1047l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[0m\r\n"


def shell(envd: Envd, argv: tuple[str, ...], cwd: str) -> Ended:
    """Run a program at this terminal. Raises UsageError without one, and as `run` does."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("A shell needs a terminal; `roost sandbox exec` runs a command without one.")
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()

    def feed(given: Input, wake: Wake) -> None:
        while data := wake.read(keyboard, lambda: given.resize(_size(screen))):
            given.write(data)

    def show(output: Output) -> None:
        left = memoryview(output.data)
        while left:
            left = left[os.write(screen, left) :]

    env = {"TERM": os.environ.get("TERM") or "xterm-256color", "LANG": "C.UTF-8"}
    program = Program(argv=argv, env=env, cwd=cwd, terminal=_size(screen))
    with Wake() as wake, _raw(keyboard, screen), _resizes(wake):
        return run(envd, program, feed, show, wake)


def _size(screen: int) -> Size:
    try:
        size = os.get_terminal_size(screen)
    except OSError:
        return Size(columns=80, rows=24)
    return Size(columns=size.columns or 80, rows=size.lines or 24)


@contextlib.contextmanager
def _raw(keyboard: int, screen: int) -> Iterator[None]:
    """Every key goes to the sandbox, Ctrl-C too."""
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard, termios.TCSADRAIN)  # what was typed ahead is the shell's
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(screen, b"\r\n" if os.environ.get("TERM") in (None, "", "dumb") else _CALM)
        raise
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizes(wake: Wake) -> Iterator[None]:
    def resized(number: int, frame: FrameType | None) -> None:
        wake.resized()

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
