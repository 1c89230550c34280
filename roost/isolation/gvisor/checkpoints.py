"""Copies of whole rooms, on the server's side: asked of a room's first process, kept on a disk without a name.

Such a disk has a size, is nobody's file, and goes with the last mount of it, also after a SIGKILL: there is nothing to
sweep. What the room's process says is hostile.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.isolation import linux
from roost.isolation.disks import Disk, Disks
from roost.isolation.driver import WholeCopy
from roost.isolation.namespaces import wire
from roost.isolation.said import reason, reasons
from roost.model.errors import Unavailable

_REPLY_S = 180.0  # more than the room's process takes for all its steps
_DONE_S = 45.0  # until it has let the room go on
_SPARE_MB = 64  # for what the kernel writes of itself
_LEAST_MB = 128
_MOST_ERROR = 400
_SAFE = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`driver.WholeCopy.held` of this driver's."""

    disk: Disk

    def mount(self) -> int:
        """A detached mount for one more room, the caller's to close. Raises Unavailable."""
        try:
            return self.disk.clone()
        except OSError as error:
            raise Unavailable(f"A copy of a room can't be mounted: {error.strerror}.") from error

    async def drop(self) -> None:
        self.disk.close()


class Checkpoints:
    """Of one room, whose first process listens at `address`. `lack`: why none can be made."""

    def __init__(self, address: Path, disks: Disks, disks_at: Path, *, lack: str = "") -> None:
        self._address = address
        self._disks = disks
        self._disks_at = disks_at
        self.lack = lack

    @asynccontextmanager
    async def taken(self, pid: int, memory_bytes: int) -> AsyncIterator[tuple[WholeCopy, tuple[str, ...]]]:
        """The room's memory as it is, and what is not in it; within, all its processes are stopped.

        `pid` is of its init, `memory_bytes` what it uses. Raises Unavailable with why there is none; the room goes on.
        """
        if self.lack:
            raise Unavailable(self.lack)
        size_mb = size_of(memory_bytes)
        if shutil.disk_usage(self._disks_at).free < size_mb << 20:
            raise Unavailable(f"the disk has no {size_mb} MB for its memory")
        disk = await self._disks.scratch(size_mb)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                reply = await self._ask(sock, disk, pid)
                held = Checkpoint(disk=disk)
                yield WholeCopy(held=held, drop=held.drop, disk_bytes=disk.used_bytes), parse_reply(reply)
                await _done(sock)
        except BaseException:
            disk.close()
            raise

    async def _ask(self, sock: socket.socket, disk: Disk, pid: int) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        try:
            with ExitStack() as opened:
                mount = disk.clone()
                opened.callback(os.close, mount)
                userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, userns)
                linux.set_mount_attributes(mount, _SAFE, userns)
                place = os.open(self._address.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, place)
                sock.connect(f"/proc/self/fd/{place}/{self._address.name}")
                wire.send(sock, {"op": "copy"}, [mount])
            async with asyncio.timeout(_REPLY_S):
                data = await loop.sock_recv(sock, wire.MAX_MESSAGE)
            reply = json.loads(data) if data else None
        except TimeoutError:
            raise Unavailable("its first process does not answer") from None
        except OSError as error:
            raise Unavailable(f"its first process can't be asked: {error.strerror}") from None
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise Unavailable("the room has ended")
        if "error" in reply:
            raise Unavailable(reason(reply["error"], _MOST_ERROR) or "its first process does not say why")
        return reply


async def _done(sock: socket.socket) -> None:
    """The room may go on; return when it does. Raises Unavailable if it went on before."""
    try:
        sock.send(b"done")
        async with asyncio.timeout(_DONE_S):
            before = await asyncio.get_running_loop().sock_recv(sock, 16)
    except TimeoutError:
        return  # it was told, and stood still until then
    except OSError:
        before = b"it closed its end"
    if before:
        raise Unavailable("The room went on before its files were copied.")


def size_of(memory_bytes: int) -> int:
    """How many MB a disk has that so much memory is written to: a few sizes, since each takes a blank image. Pure."""
    size = _LEAST_MB
    while size < (memory_bytes >> 20) + _SPARE_MB:
        size *= 2
    return size


def parse_reply(reply: dict[str, Any]) -> tuple[str, ...]:
    """What a room says that its copy lacks: hostile. Pure."""
    try:
        lost = json.loads(str(reply.get("lost")))
    except (ValueError, RecursionError):
        lost = None
    if not isinstance(lost, list):
        return ()
    return tuple(reasons(lost))
