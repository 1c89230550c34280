"""What a process had open is made anew in a copy: here, in a fork that closes all of it first."""

from __future__ import annotations

import os
import select
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.guest.descriptors import KEPT, remember, renew


def in_copy(check: Callable[[], None], given: Callable[[], dict[int, int]] = dict) -> None:
    """Run `check` in a copy that has what is open now, made anew."""
    reader, writer = os.pipe()
    opened = remember()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            out = os.dup2(writer, KEPT + 4000)
            os.closerange(KEPT, KEPT + 4000)
            renew(opened, given())
            check()
            code = 0
        except BaseException:
            os.write(out, traceback.format_exc().encode())
        os._exit(code)
    os.close(writer)
    said = b""
    while part := os.read(reader, 4096):
        said += part
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said.decode()


@pytest.fixture(autouse=True)
def _a_channel() -> object:
    """Descriptors below KEPT are the copy's own: with them taken, nothing of a test is there."""
    low = [fd for fd in (os.open(os.devnull, os.O_RDONLY) for _ in range(KEPT)) if fd >= KEPT]
    for fd in low:
        os.close(fd)
    return None


def test_files_are_open_where_they_were(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b", buffering=0) as file, (tmp_path / "gone").open("wb", buffering=0) as gone:
        file.write(b"0123456789")
        file.seek(4)
        (tmp_path / "gone").unlink()

        def check() -> None:
            assert file.read(3) == b"456"
            assert not os.get_inheritable(file.fileno())
            with pytest.raises(OSError, match="Bad file"):
                gone.write(b"x")
            gone.close()

        in_copy(check)
        assert file.tell() == 4


def test_connections_are_at_their_end_and_epolls_tell() -> None:
    left, right = socket.socketpair()
    epoll = select.epoll()
    outer = select.epoll()
    epoll.register(left, select.EPOLLIN | select.EPOLLRDHUP)
    outer.register(epoll.fileno(), select.EPOLLIN)

    def check() -> None:
        assert [fd for fd, _ in outer.poll(5)] == [epoll.fileno()]
        assert [fd for fd, _ in epoll.poll(5)] == [left.fileno()]
        assert left.recv(1) == b""
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            right.send(b"x")
        epoll.unregister(left)
        assert outer.poll(0) == []

    in_copy(check)
    right.send(b"y")
    assert left.recv(1) == b"y"
    for one in (left, right, epoll, outer):
        one.close()


def test_what_is_given_takes_the_place_of_what_was_there() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    epoll.register(event, select.EPOLLIN)
    client: list[socket.socket] = []

    def given() -> dict[int, int]:
        new = socket.create_server(("127.0.0.1", 0))
        client.append(socket.create_connection(new.getsockname()))
        return {listener.fileno(): new.detach()}

    def check() -> None:
        assert [fd for fd, _ in epoll.poll(5)] == [listener.fileno()]
        listener.accept()[0].close()
        os.eventfd_write(event, 3)
        assert [fd for fd, _ in epoll.poll(5)] == [event]
        assert os.eventfd_read(event) == 3

    in_copy(check, given)
    listener.close()
    epoll.close()
    os.close(event)
