"""Does what `sudo` asks for: setuid programs gain nothing in a room, so its client asks the daemon to run the command.

A request is the length of a JSON object, the object, and the descriptors 0 to 2 of the caller. Then the client may
send `{"signal": n}` lines, and gets one line: `{"exit": n}`, `{"signal": n}` or `{"error": text}`. Who calls is what
the kernel says. A client that goes away takes the command with it, unless it was to run in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import struct
from dataclasses import replace

from roost.guest.control import LineReader, ProtocolError, parse_message
from roost.guest.reaping import wait
from roost.guest.sandbox import spawn, sudo_options
from roost.guest.sandbox.identities import Identities, UnknownUser, User
from roost.guest.sandbox.messages import BadField, Message, parse
from roost.guest.sandbox.pipes import readable
from roost.guest.sandbox.spawn import Program, StartError
from roost.guest.sandbox.sudo_options import BadUsage

MAX_REQUEST = 4 << 20
MAX_CALLS = 256
PATIENCE_S = 10.0  # of the request
GROUPS = frozenset({"sudo", "wheel", "admin"})
_CREDENTIALS = struct.Struct("3i")
_LENGTH = struct.Struct(">I")


class SudoBroker:
    """Root and the default user may do anything, and so may members of the usual groups; others nothing."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._calls: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    def serve(self, path: str) -> None:
        """A room without a place for the socket has no sudo."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            listener.bind(path)
            os.chmod(path, 0o666)  # noqa: S103 - who calls is asked of the kernel, not of the file
            listener.listen(64)
        except OSError:
            listener.close()
            return
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: the backlog holds until some are free
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            loop.call_later(0.1, loop.add_reader, self._listener, self._accept)
            return
        if len(self._calls) >= MAX_CALLS:
            sock.close()
            return
        sock.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _serve(self, sock: socket.socket) -> None:
        fds: list[int] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                request = await _receive(sock, fds)
            reply = await self._run(sock, request, fds)
        except (BadField, BadUsage, UnknownUser) as error:
            reply = {"error": str(error)}
        except StartError as error:
            missing = error.step == "exec" and error.errno == errno.ENOENT
            reply = {"error": f"{error.filename}: command not found" if missing else str(error)}
        except (OSError, TimeoutError):
            reply = None
        finally:
            for fd in fds:
                os.close(fd)
        if reply is not None:
            with contextlib.suppress(OSError):
                sock.send(json.dumps(reply).encode() + b"\n")
        sock.close()

    async def _run(self, sock: socket.socket, request: Message, fds: list[int]) -> dict[str, object]:
        caller = self._caller(sock)
        options = sudo_options.parse(request.texts("arguments"))
        if (said := self._answer(options.flags, caller)) is not None:
            return {"exit": 0, "text": said}
        program = self._program(request, options, caller)
        if len(fds) != 3:
            raise BadField("not three descriptors")
        child = spawn.start(program, (fds[0], fds[1], fds[2]), fds[0] if request.flag("terminal") else None)
        while fds:
            os.close(fds.pop())
        try:
            if "background" in options.flags:
                sock.shutdown(socket.SHUT_RDWR)
            return await _accompany(sock, child, detached="background" in options.flags)
        finally:
            os.close(child.ended)

    def _answer(self, flags: set[str], caller: User) -> str | None:
        """What is said without running anything."""
        if "version" in flags:
            return sudo_options.VERSION
        if "help" in flags:
            return sudo_options.USAGE
        if "list" in flags:
            return f"User {caller.name} may run the following commands:\n    (ALL : ALL) NOPASSWD: ALL"
        return "" if flags & {"forget", "validate"} else None

    def _caller(self, sock: socket.socket) -> User:
        _, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        try:
            user = self._identities.by_uid(uid)
        except UnknownUser:
            user = User(name=str(uid), uid=uid, gid=gid, home="/", shell="/bin/sh")  # noqa: S604 - no call of a shell
        names = self._identities.names()
        groups = {names.group(gid) for gid in user.groups}
        if uid != 0 and user.name != self._identities.default and not groups & GROUPS:
            raise BadUsage(f"{user.name} is not allowed to run sudo in this sandbox")
        return user

    def _program(self, request: Message, options: sudo_options.Options, caller: User) -> Program:
        user = self._target(options)
        env = sudo_options.environment(
            options,
            request.text_map("env"),
            self._identities.environment(user),
            (caller.name, caller.uid, caller.gid),
        )
        file, argv = sudo_options.command_line(options, user.shell)
        cwd = options.directory or (user.home if "login" in options.flags else request.text("cwd", "/"))
        return Program(argv=argv, file=file, env=env, cwd=cwd, user=user)

    def _target(self, options: sudo_options.Options) -> User:
        name = options.user
        if name.startswith("#") and name[1:].isascii() and name[1:].isdigit():
            user = self._identities.by_uid(int(name[1:]))
        else:
            user = self._identities.lookup(name)
        if options.group is None:
            return user
        gid = self._identities.group_id(options.group)
        if gid is None:
            raise BadUsage(f"unknown group {options.group}")
        return replace(user, gid=gid, groups=(gid, *user.groups))


async def _receive(sock: socket.socket, fds: list[int]) -> Message:
    """The request; the descriptors that came with it are the caller's from here on."""
    data = b""
    size: int | None = None
    while size is None or len(data) < size:
        await readable(sock.fileno())
        try:
            part, more, _, _ = socket.recv_fds(sock, 64 << 10, 3 - len(fds))
        except BlockingIOError:
            continue
        fds += more
        for fd in more:  # recv_fds does not pass on the flag that would do it
            os.set_inheritable(fd, False)
        if not part:
            raise BadField("the request is cut off")
        data += part
        if size is None and len(data) >= _LENGTH.size:
            size = _LENGTH.unpack_from(data)[0] + _LENGTH.size
            if size > MAX_REQUEST:
                raise BadField("the request is too large")
    return parse(data[_LENGTH.size : size])


async def _accompany(sock: socket.socket, child: spawn.Child, *, detached: bool) -> dict[str, object]:
    """Pass signals on until the command has ended."""
    loop = asyncio.get_running_loop()
    lines = LineReader(4096)

    def on_readable() -> None:
        try:
            data = sock.recv(4096)
            numbers = [parse_message(line).get("signal") for line in lines.feed(data)]
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            data, numbers = b"", []
        for number in numbers:
            if isinstance(number, int) and 0 < number < signal.NSIG:
                spawn.signal_group(child.pid, number)
        if not data:
            loop.remove_reader(sock)
            if not detached:
                spawn.signal_group(child.pid, signal.SIGKILL)

    loop.add_reader(sock, on_readable)
    try:
        await readable(child.ended)
    finally:
        loop.remove_reader(sock)
    status = wait(child.pid)
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    return {"exit": os.WEXITSTATUS(status)}
