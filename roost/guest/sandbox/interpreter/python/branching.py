"""How a context stands still while its process is copied, and what the copy does first.

To Python it is a fork: what libraries have registered for one is called before and after, and only the thread that
stands still is in the copy. The interpreter's lock is held all the time, so that no other thread has it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from roost.guest.at_fork import at_fork
from roost.guest.descriptors import Open, remember, renew
from roost.guest.fork import after_fork_in_child, wait_for_input
from roost.guest.renewal import handle_signals, prepare, reseed, undisturbed
from roost.guest.sandbox.interpreter import frames

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.recv.restype = ctypes.c_ssize_t


class Channel(Protocol):
    """What is needed of `channel.Channel`."""

    moving: bool
    on_born: Callable[[], None]

    def send(self, kind: bytes, payload: bytes) -> None: ...
    def rest(self, said: bytes = b"") -> frames.Frame: ...
    def renew(self) -> None: ...


def wait_for(fd: int, most: int, said: bytes = b"") -> bytes:
    """Bytes from a socket, waited for with the interpreter's lock held; ends the process where none will come. Just
    before the wait, `said` is sent.

    In a copy the interpreter has been made that of a fork's child, and its own first bytes are waited for.
    """
    wait_for_input(fd, after_fork_in_child, said)
    buffer = ctypes.create_string_buffer(most)
    while (count := _libc.recv(fd, buffer, ctypes.c_size_t(most), 0)) < 0 and ctypes.get_errno() == errno.EINTR:
        pass  # by a signal
    if count <= 0:
        os._exit(0)
    return buffer.raw[:count]


def stand_still(channel: Channel, number: bytes) -> None:
    """Answer the hold of that number, and wait until the daemon says that the copy is made, or says in the copy what it
    is. `on_born` is called in a copy of the process alone, as soon as it is sure to take cells."""
    with undisturbed():
        _stand_still(channel, number)


def _stand_still(channel: Channel, number: bytes) -> None:
    prepare()
    try:
        opened = remember()
    except Exception as error:  # user code may have made anything of what that takes
        channel.send(frames.STAYS, number + f" what it has open can't be made anew: {error}".encode())
        return
    channel.moving = True
    at_fork.before()
    kind, payload = channel.rest(frames.frame(frames.HELD, number))
    while kind not in (frames.GO, frames.BORN, frames.RENEW):
        kind, payload = channel.rest()
    try:
        if kind == frames.BORN:
            _be_copy(channel, opened, payload)
        else:
            at_fork.after_in_original()
            if kind == frames.RENEW:
                _begin(json.loads(payload))
    finally:
        channel.moving = False


def _be_copy(channel: Channel, opened: Mapping[int, Open], told: bytes) -> None:
    channel.renew()
    renew(opened, {})
    channel.on_born()  # what is left is done before the first cell, which this thread takes, and nobody waits for it
    handle_signals()
    _begin(json.loads(told), forked=True)


def rehearse(channel: Channel) -> None:
    """In the zygote: all of that but the wait. See `roost.guest.rehearsal`."""
    channel.moving = True
    with undisturbed(), open(os.devnull) as file:
        prepare()
        opened = {fd: one for fd, one in remember().items() if fd == file.fileno()}  # the rest is not to be made anew
        at_fork.before()
        after_fork_in_child()
        _be_copy(channel, opened, b'{"env": {}}')
    channel.moving = False


def _begin(told: Mapping[str, Any], *, forked: bool = False) -> None:
    """What must be its own: variables, random numbers."""
    reseed(forked=forked)
    os.environ.update(told["env"])
