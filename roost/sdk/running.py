"""A program of a sandbox from its start to its end: output as it comes, input from another thread, Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

from roost.sdk.envd import Envd
from roost.sdk.errors import CliError, Failed, Unreachable
from roost.sdk.programs import Ended, Event, Output, Program, Size, Started

CHUNK = 64 << 10
_JOIN_S = 5.0
_RESIZE, _STOP = b"w", b"q"


class Interrupted(BaseException):
    """Ctrl-C, or a signal that ends this program; no Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class InputClosed(Exception):
    """The program reads no input any more, or has ended."""


class Input:
    """The input of a running program."""

    def __init__(self, envd: Envd, pid: int, terminal: bool) -> None:
        self._envd = envd
        self._pid = pid
        self._terminal = terminal

    def write(self, data: bytes) -> int:
        """Returns when the program's pipe has taken it. Raises InputClosed."""
        with self._judged():
            self._envd.send_input(self._pid, data, terminal=self._terminal)
        return len(data)

    def close(self) -> None:
        with contextlib.suppress(InputClosed), self._judged():
            self._envd.close_stdin(self._pid)

    def resize(self, size: Size) -> None:
        with self._judged():
            self._envd.resize(self._pid, size)

    @contextlib.contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            yield
        except Failed as error:
            if error.status in (404, 500):  # no such process, or an error of its pipe
                raise InputClosed from error
            raise


#: Writes a program's input to its end; `Wake` says when to stop before it.
Feed = Callable[[Input, "Wake"], None]
Show = Callable[[Output], None]


class Wake:
    """Wakes who waits for a descriptor, from another thread or a signal's handler."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def __enter__(self) -> Wake:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def resized(self) -> None:
        self._tell(_RESIZE)

    def stop(self) -> None:
        self._tell(_STOP)

    def _tell(self, what: bytes) -> None:
        with contextlib.suppress(BlockingIOError):  # so many are there already that one more says nothing
            os.write(self._writer, what)

    def read(self, fd: int, on_resize: Callable[[], None] | None = None) -> bytes:
        """What can be read of `fd` next; b"" at its end, and when it is time to stop."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._reader, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            if self._reader in ready:
                told = os.read(self._reader, 4096)
                if _STOP in told:
                    return b""
                if on_resize is not None:
                    on_resize()
            if fd in ready:
                return os.read(fd, CHUNK)


def run(envd: Envd, program: Program, feed: Feed | None, show: Show, wake: Wake) -> Ended:
    """Run a program to its end. It is killed when this is interrupted, or when its output can't be shown.

    Raises Interrupted, what the feed or `show` raise, and Unreachable when the connection breaks.
    """
    with interruptible(), envd.start(program) as events:
        first = next(events, None)
        if not isinstance(first, Started):
            raise Failed("The sandbox did not say that the command has started.")
        feeder = _Feeder(envd, first.pid, program, feed, wake) if feed is not None else contextlib.nullcontext()
        with feeder:
            try:
                return _to_the_end(events, show)
            except BaseException:
                _kill(envd, first.pid)  # before the feeder is waited for: it may be stuck in a pipe that nobody reads
                raise


def _to_the_end(events: Iterator[Event], show: Show) -> Ended:
    for event in events:
        if isinstance(event, Output):
            show(event)
        elif isinstance(event, Ended):
            return event
    raise Unreachable("The connection to the sandbox broke.")


class _Feeder:
    """Runs the feed in a thread of its own. What fails in it kills the program, and is raised at the end."""

    def __init__(self, envd: Envd, pid: int, program: Program, feed: Feed, wake: Wake) -> None:
        self._envd = envd
        self._pid = pid
        self._terminal = program.terminal is not None
        self._feed = feed
        self._wake = wake
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._wake.stop()
        self._thread.join(_JOIN_S)
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        with self._envd.twin() as envd:
            given = Input(envd, self._pid, self._terminal)
            try:
                self._feed(given, self._wake)
                if not self._terminal:
                    given.close()
            except InputClosed:
                pass
            except Exception as error:
                self._error = error
                _kill(envd, self._pid)


def _kill(envd: Envd, pid: int) -> None:
    with contextlib.suppress(CliError), envd.twin() as twin:
        twin.kill(pid)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and the signals that end a program are Interrupted; what was ignored, as under nohup, stays so."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
