"""The program `sudo` of a sandbox: hands its command line and descriptors to the daemon, and stands for the command
until that ends. See `sudo_broker` for what is said.

Where all three descriptors are the terminal and this is its foreground, the command gets a terminal of its own, so that
it has job control; what is typed and printed goes through here. Otherwise it gets the descriptors as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

SOCKET = "/run/roost-sudo.sock"
_FORWARDED = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "ALRM", "CONT")
_CHUNK = 64 << 10
_MAX_REPLY = 1 << 20
_FAILED = 1


def main() -> int:
    """The exit code. Ends by the same signal as the command."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, _signals() as wakened, _terminal() as ends:
            sock.connect(SOCKET)
            master, slave = ends
            _ask(sock, sys.argv[1:], slave)
            reply = _accompany(sock, wakened, master)
    except (OSError, ValueError) as error:
        return _complain(f"the sandbox does not answer: {getattr(error, 'strerror', None) or error}")
    return _end(reply)


def _ask(sock: socket.socket, arguments: Sequence[str], slave: int | None) -> None:
    """`slave`, the command's own terminal, is closed here: it is the command's from now on."""
    request = {
        "arguments": list(arguments),
        "env": dict(os.environ),
        "cwd": _working_directory(),
        "terminal": slave is not None,
    }
    data = json.dumps(request).encode()
    message = memoryview(struct.pack(">I", len(data)) + data)
    given = [0, 1, 2] if slave is None else [slave] * 3
    sent = socket.send_fds(sock, [message[:_CHUNK]], given)
    if slave is not None:
        os.close(slave)
    if sent < len(message):  # otherwise it may have answered and closed already
        sock.sendall(message[sent:])


def _accompany(sock: socket.socket, wakened: int, master: int | None) -> bytes:
    """Pass on what is typed, printed and signalled, until the reply has come."""
    reply = b""
    watched = [sock.fileno(), wakened]
    if master is not None:
        watched += [0, master]
    while not reply.endswith(b"\n") and len(reply) < _MAX_REPLY:
        ready, _, _ = select.select(watched, (), ())
        if wakened in ready:
            _forward(sock, os.read(wakened, 64), master)
        if master is not None and master in ready and not _copy(master, 1):
            watched.remove(master)
        if master is not None and 0 in ready and not _copy(0, master):
            watched.remove(0)
        if sock.fileno() in ready:
            part = sock.recv(_CHUNK)
            if not part:
                raise ValueError("it closed the connection")
            reply += part
    while master is not None and select.select([master], (), (), 0)[0] and _copy(master, 1):
        pass  # what the command printed last
    return reply


def _forward(sock: socket.socket, numbers: bytes, master: int | None) -> None:
    for number in numbers:
        if number == signal.SIGWINCH and master is not None:
            _copy_size(master)
        else:
            sock.sendall(json.dumps({"signal": number}).encode() + b"\n")


def _copy(source: int, target: int) -> bool:
    """False at the end of `source`."""
    try:
        data = memoryview(os.read(source, _CHUNK))
    except OSError:  # EIO: nobody has the terminal open any more
        return False
    while data:
        data = data[os.write(target, data) :]
        if not data:
            return True
    return False


def _end(reply: bytes) -> int:
    told = json.loads(reply)
    if told.get("text"):
        print(told["text"])
    if "error" in told:
        return _complain(told["error"])
    number = told.get("signal")
    if number is not None:
        with contextlib.suppress(OSError):  # of SIGKILL nothing can be set
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return 128 + int(number)
    return int(told.get("exit", _FAILED))


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which the numbers of signals are read."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for name in (*_FORWARDED, "WINCH"):
        signal.signal(getattr(signal, f"SIG{name}"), lambda *_: None)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def _terminal() -> Iterator[tuple[int | None, int | None]]:
    """(master, slave) of a terminal for the command, while the caller's own passes everything on as it is typed."""
    if not all(os.isatty(fd) for fd in (0, 1, 2)) or os.tcgetpgrp(0) != os.getpgrp():
        yield None, None
        return
    before = termios.tcgetattr(0)
    master, slave = os.openpty()
    try:
        termios.tcsetattr(slave, termios.TCSANOW, before)
        _copy_size(master)
        tty.setraw(0)
        yield master, slave
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(master)


def _copy_size(master: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "/"


def _complain(text: str) -> int:
    print(f"sudo: {text}", file=sys.stderr)
    return _FAILED
