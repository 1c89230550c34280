"""The server's side of copies of whole rooms, with a first process that does what the test says."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.isolation import linux
from roost.isolation.disks import Disks
from roost.isolation.gvisor import checkpoints
from roost.isolation.gvisor.checkpoints import Checkpoint, Checkpoints
from roost.isolation.namespaces import wire
from roost.isolation.usernamespaces import IDS
from roost.model.errors import Unavailable

BASE = 1 << 24
Answer = Callable[[socket.socket, int], object]


@pytest.fixture
def room() -> Iterator[int]:
    """A process with ids of its own."""
    pid = linux.start_sleeper(linux.CLONE_NEWUSER, 600)
    for table in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{table}").write_text(f"0 {BASE} {IDS}")
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    made = Disks(tmp_path / "disks")
    made.sweep()
    yield made
    made.close()
    linux_loops = [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if str(tmp_path) in _read(path)]
    assert linux_loops == []  # with the last mount, the disk has gone


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def first_process(address: Path, answer: Answer) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(address))
    listener.listen()

    def serve() -> None:
        with listener:
            sock, _ = listener.accept()
            with sock:
                received = wire.receive(sock)
                assert received is not None and received[0] == {"op": "copy"}
                (mount,) = received[1]
                try:
                    answer(sock, mount)
                finally:
                    os.close(mount)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


async def test_a_copy_is_written_by_the_room_and_read_by_others(tmp_path: Path, disks: Disks, room: int) -> None:
    def answer(sock: socket.socket, mount: int) -> None:
        with pytest.raises(OSError, match="too large"):  # root of the host has no id of the room's
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=mount)
        write = f"cd /proc/self/fd/{mount}; head -c 5000000 /dev/urandom > pages; printf written > checkpoint.img"
        subprocess.run(["/bin/sh", "-c", write], check=True, user=BASE, group=BASE, pass_fds=[mount])
        wire.send(sock, {"lost": '["this"]'})
        assert sock.recv(16) == b"done"

    process = first_process(tmp_path / "copies.sock", answer)
    copies = Checkpoints(tmp_path / "copies.sock", disks, tmp_path)
    async with copies.taken(room, 1 << 20) as (whole, lost):
        assert lost == ("this",)
        assert 5_000_000 < whole.disk_bytes() < 7_000_000  # at once, wherever it is by then
    process.join()
    assert isinstance(whole.held, Checkpoint)
    mounts = [whole.held.mount() for _ in range(2)]
    await whole.drop()
    assert whole.disk_bytes() == 0
    for mount in mounts:
        fd = os.open("checkpoint.img", os.O_RDONLY, dir_fd=mount)
        assert os.read(fd, 100) == b"written" and os.fstat(fd).st_uid == 0
        os.close(fd)
        os.close(mount)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "the room has ended"),
        (b"[]", "the room has ended"),
        (b"{", "the room has ended"),
        (b"[" * 100_000, "the room has ended"),
        (b'{"error":"no"}', "no"),
    ],
)
async def test_what_a_first_process_must_not_say(
    tmp_path: Path, disks: Disks, room: int, said: bytes, reason: str
) -> None:
    process = first_process(tmp_path / "copies.sock", lambda sock, _: said and sock.send(said))
    with pytest.raises(Unavailable, match=reason):
        async with Checkpoints(tmp_path / "copies.sock", disks, tmp_path).taken(room, 1 << 20):
            raise AssertionError("there is a copy")
    process.join()


async def test_one_that_says_nothing_is_waited_for_no_longer_than_it_may(
    tmp_path: Path, disks: Disks, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_REPLY_S", 0.05)
    process = first_process(tmp_path / "copies.sock", lambda sock, _: sock.recv(16))
    with pytest.raises(Unavailable, match="does not answer"):
        async with Checkpoints(tmp_path / "copies.sock", disks, tmp_path).taken(room, 1 << 20):
            raise AssertionError("there is a copy")
    process.join()  # the end of the connection tells it


async def test_what_fails_meanwhile_drops_the_copy(tmp_path: Path, disks: Disks, room: int) -> None:
    heard: list[bytes] = []

    def answer(sock: socket.socket, _: int) -> None:
        wire.send(sock, {"lost": "[]"})
        heard.append(sock.recv(16))

    process = first_process(tmp_path / "copies.sock", answer)
    with pytest.raises(asyncio.CancelledError):
        async with Checkpoints(tmp_path / "copies.sock", disks, tmp_path).taken(room, 1 << 20):
            raise asyncio.CancelledError
    process.join()
    assert heard == [b""]


@pytest.mark.parametrize("said", [b"", b'{"error":"it took too long"}'])
async def test_one_that_goes_on_before_its_files_are_copied_is_no_copy(
    tmp_path: Path, disks: Disks, room: int, said: bytes
) -> None:
    def answer(sock: socket.socket, _: int) -> None:
        wire.send(sock, {"lost": "[]"})
        if said:
            sock.send(said)

    process = first_process(tmp_path / "copies.sock", answer)
    with pytest.raises(Unavailable, match="went on before its files were copied"):
        async with Checkpoints(tmp_path / "copies.sock", disks, tmp_path).taken(room, 1 << 20):
            process.join()


async def test_without_a_room_or_place_there_is_no_copy(
    tmp_path: Path, disks: Disks, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def why(copies: Checkpoints) -> str:
        with pytest.raises(Unavailable) as refused:
            async with copies.taken(room, 1 << 20):
                raise AssertionError("there is a copy")
        return refused.value.message

    assert "No such file" in await why(Checkpoints(tmp_path / "nobody.sock", disks, tmp_path))
    assert await why(Checkpoints(tmp_path / "nobody.sock", disks, tmp_path, lack="too old")) == "too old"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(128 << 20) - 1))
    assert "the disk has no 128 MB" in await why(Checkpoints(tmp_path / "nobody.sock", disks, tmp_path))
