"""E2B's official SDK works on the files of a sandbox's guest."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path

import httpx
import pytest
from e2b import (
    AuthenticationException,
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
)
from e2b.sandbox.filesystem.filesystem import WriteEntry

from tests.support.sandbox import SandboxGuest, async_sdk, sdk


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxGuest]:
    with SandboxGuest(tmp_path_factory.mktemp("guest")) as guest:
        yield guest.ready_sandbox()


@pytest.fixture(scope="module")
def port(guest: SandboxGuest) -> Iterator[int]:
    with guest.tcp() as port:
        yield port


@pytest.fixture
def sandbox(port: int) -> Sandbox:
    return sdk(port)


@pytest.mark.parametrize("options", [{}, {"gzip": True}, {"use_octet_stream": True}])
def test_files_are_written_and_read(sandbox: Sandbox, guest: SandboxGuest, options: dict[str, bool]) -> None:
    written = sandbox.files.write("deep/er/ü file.txt", "Grüße\n" * 1000, **options)
    assert (written.path, written.name) == ("/home/user/deep/er/ü file.txt", "ü file.txt")
    assert sandbox.files.read("/home/user/deep/er/ü file.txt") == "Grüße\n" * 1000
    assert sandbox.files.read("~/deep/er/ü file.txt", gzip=True) == "Grüße\n" * 1000
    made = guest.home / "deep" / "er" / "ü file.txt"
    for path in (made, made.parent, made.parent.parent):
        assert (path.stat().st_uid, path.stat().st_gid) == (1000, 1000)
    assert made.stat().st_mode & 0o777 == 0o644
    sandbox.files.write(written.path, "short", user="root")
    assert made.read_text() == "short"
    assert made.stat().st_uid == 0


def test_large_files_are_streams_both_ways(sandbox: Sandbox) -> None:
    block = os.urandom(1 << 20)
    sandbox.files.write("large", (block for _ in range(40)))
    for options in ({}, {"gzip": True}):
        with sandbox.files.read("large", format="stream", **options) as stream:
            assert sum(len(chunk) for chunk in stream) == 40 << 20
    sandbox.files.write("large", io.BytesIO(block * 3), gzip=True)
    assert sandbox.files.read("large", format="bytes") == block * 3


def test_several_files_in_one_request(sandbox: Sandbox) -> None:
    entries = [WriteEntry(path=f"many/{i}/f.bin", data=bytes([i]) * i * 1000) for i in range(30)]
    assert [entry.path for entry in sandbox.files.write_files(entries)] == [
        f"/home/user/many/{i}/f.bin" for i in range(30)
    ]
    for i in range(30):
        assert sandbox.files.read(f"many/{i}/f.bin", format="bytes") == bytes([i]) * i * 1000
    with pytest.raises(InvalidArgumentException, match="multiple files to the same path"):
        sandbox.files.write_files([WriteEntry(path="twice", data="1"), WriteEntry(path="./twice", data="2")])


def test_what_cannot_be_read_or_written(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundException, match="path '/home/user/missing' does not exist"):
        sandbox.files.read("missing")
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        sandbox.files.read("/home")
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        sandbox.files.write("/home", "x")
    with pytest.raises(SandboxException, match="file"):
        sandbox.files.write("/etc/passwd/x", "x")
    with pytest.raises(InvalidArgumentException, match="not a regular file"):
        sandbox.files.read("/dev/zero")
    with pytest.raises(AuthenticationException, match="unknown user nobody-here"):
        sandbox.files.read("/etc/passwd", user="nobody-here")


def test_files_without_a_size(sandbox: Sandbox) -> None:
    assert len(sandbox.files.read("/proc/sys/kernel/random/boot_id").strip()) == 36
    assert "MemTotal" in sandbox.files.read("/proc/meminfo", gzip=True)
    sandbox.files.write("empty", "")
    assert sandbox.files.read("empty") == ""


def test_the_user_of_a_request_owns_but_is_not_limited(sandbox: Sandbox, tmp_path: Path) -> None:
    """As with E2B: files are written anywhere by default, and belong to the user."""
    tmp_path.chmod(0o700)
    entry = sandbox.files.write(str(tmp_path / "made" / "file"), "x")
    assert sandbox.files.get_info(entry.path).owner == "user"
    assert sandbox.files.get_info(str(tmp_path / "made")).group == "user"


def test_information_about_a_file(sandbox: Sandbox) -> None:
    sandbox.files.write("info.txt", "12345", metadata={"Kind": "test", "n": "1"})
    info = sandbox.files.get_info("info.txt")
    assert (info.name, info.path, info.type, info.size) == ("info.txt", "/home/user/info.txt", FileType.FILE, 5)
    assert (info.mode, info.permissions, info.owner, info.group) == (0o644, "-rw-r--r--", "user", "user")
    assert abs(info.modified_time.timestamp() - time.time()) < 3600
    assert info.symlink_target is None
    assert info.metadata == {"kind": "test", "n": "1"}
    sandbox.files.write("info.txt", "12345")
    assert sandbox.files.get_info("info.txt").metadata is None
    sandbox.commands.run("ln -sf info.txt link; ln -sf nowhere dangling; ln -sf loop loop")
    link = sandbox.files.get_info("link")
    assert (link.type, link.symlink_target, link.permissions) == (
        FileType.FILE,
        "/home/user/info.txt",
        "Lrwxrwxrwx",
    )
    assert sandbox.files.get_info("dangling").symlink_target == "/home/user/dangling"
    assert sandbox.files.exists("dangling")
    assert not sandbox.files.exists("not-there")
    assert sandbox.files.get_info("/tmp").permissions == "dtrwxrwxrwx"


def test_directories(sandbox: Sandbox) -> None:
    assert sandbox.files.make_dir("tree/a/b")
    assert not sandbox.files.make_dir("tree/a/b")
    sandbox.files.write("tree/a/file", "x")
    sandbox.files.write("tree/z", "x")
    assert [entry.path for entry in sandbox.files.list("tree")] == ["/home/user/tree/a", "/home/user/tree/z"]
    assert [entry.name for entry in sandbox.files.list("tree", depth=2)] == ["a", "b", "file", "z"]
    assert [entry.type for entry in sandbox.files.list("tree", depth=2)] == [
        FileType.DIR,
        FileType.DIR,
        FileType.FILE,
        FileType.FILE,
    ]
    sandbox.commands.run("ln -sfn tree elsewhere")
    assert [entry.path for entry in sandbox.files.list("elsewhere")] == [
        "/home/user/elsewhere/a",
        "/home/user/elsewhere/z",
    ]
    moved = sandbox.files.rename("tree/a", "tree/new/place")
    assert (moved.path, moved.type) == ("/home/user/tree/new/place", FileType.DIR)
    assert sandbox.files.read("tree/new/place/file") == "x"
    sandbox.files.remove("tree")
    assert not sandbox.files.exists("tree")
    sandbox.files.remove("tree")
    for call in (lambda: sandbox.files.list("tree"), lambda: sandbox.files.rename("tree", "b")):
        with pytest.raises(FileNotFoundException):
            call()
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        sandbox.files.list("/etc/passwd")


def test_a_deep_and_a_wide_tree_are_listed_and_removed(sandbox: Sandbox, guest: SandboxGuest) -> None:
    deep = "d/" * 900
    sandbox.commands.run(f"mkdir -p wide/{deep}; cd wide; seq 1 10000 | xargs touch; ln -s /etc etc")
    assert len(sandbox.files.list("wide")) == 10_002
    assert len(sandbox.files.list("wide", depth=300)) == 10_301
    sandbox.files.remove("wide")
    assert not (guest.home / "wide").exists()
    assert Path("/etc/hostname").exists()


def test_a_directory_is_watched(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("watched/below")
    watch = sandbox.files.watch_dir("watched", include_entry=True)
    assert watch.get_new_events() == []
    sandbox.files.write("watched/file", "hello")
    sandbox.files.write("watched/below/unseen", "hello")
    events = _events(watch, lambda events: ("file", FilesystemEventType.WRITE) in events)
    assert next(iter(events)) == ("file", FilesystemEventType.CREATE)
    assert not any("unseen" in name for name, _ in events)
    entry = events["file", FilesystemEventType.WRITE]
    assert (entry.path, entry.owner) == ("/home/user/watched/file", "user")
    sandbox.files.rename("watched/file", "watched/other")
    sandbox.files.remove("watched/other")
    sandbox.commands.run("chmod 700 watched/below")
    wanted = {
        ("file", FilesystemEventType.RENAME),
        ("other", FilesystemEventType.CREATE),
        ("other", FilesystemEventType.REMOVE),
        ("below", FilesystemEventType.CHMOD),
    }
    events = _events(watch, lambda events: wanted <= set(events))
    assert events["other", FilesystemEventType.REMOVE] is None
    watch.stop()
    with pytest.raises(SandboxException):
        watch.get_new_events()
    with pytest.raises(FileNotFoundException):
        sandbox.files.watch_dir("not-there")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        sandbox.files.watch_dir("/etc/passwd")


def test_a_tree_is_watched_while_it_grows_and_moves(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("grow/old")
    watch = sandbox.files.watch_dir("grow", recursive=True)
    sandbox.commands.run("mkdir -p grow/a/b/c && echo 1 > grow/a/b/c/f")
    sandbox.commands.run("mv grow/old grow/a/new && echo 2 > grow/a/new/g")
    wanted = {
        *((name, FilesystemEventType.CREATE) for name in ("a", "a/b", "a/b/c", "a/b/c/f", "a/new", "a/new/g")),
        ("a/new/g", FilesystemEventType.WRITE),
        ("old", FilesystemEventType.RENAME),
    }
    events = _events(watch, lambda events: wanted <= set(events))
    assert not any(name.startswith("old/") for name, _ in events)
    sandbox.commands.run("mv grow/a gone && echo 3 > gone/h")
    time.sleep(0.2)
    sandbox.files.write("grow/last", "")
    events = _events(watch, lambda events: ("last", FilesystemEventType.CREATE) in events)
    assert not any(name.endswith("/h") for name, _ in events)
    watch.stop()


def test_ten_thousand_files_in_a_watch(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("crowd")
    watch = sandbox.files.watch_dir("crowd", recursive=True)
    sandbox.commands.run("cd crowd; for i in $(seq 100); do mkdir $i; (cd $i; seq 100 | xargs touch); done")
    wanted = {(f"{i}/{j}", FilesystemEventType.CREATE) for i in range(1, 101) for j in range(1, 101)}
    _events(watch, lambda events: wanted <= set(events))
    watch.stop()


def test_more_events_than_are_kept_are_told_as_lost(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("lost")
    watch = sandbox.files.watch_dir("lost")
    sandbox.commands.run("cd lost; exec 3>a 4>b; for ((i = 0; i < 50000; i++)); do echo >&3; echo >&4; done", timeout=0)
    # A daemon that did not keep up has the kernel's word that some were lost still before it.
    with pytest.raises(SandboxException, match="watcher error"):
        _events(watch, lambda events: False)
    watch.stop()
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


async def test_a_watch_streams_its_events(port: int) -> None:
    sandbox = async_sdk(port)
    await sandbox.files.make_dir("streamed")
    seen: asyncio.Queue[str] = asyncio.Queue()
    handle = await sandbox.files.watch_dir("streamed", on_event=lambda event: seen.put_nowait(event.name))
    await sandbox.files.write("streamed/one", "1")
    assert await asyncio.wait_for(seen.get(), 15) == "one"
    await handle.stop()


def test_parts_of_a_file_and_states_of_it(sandbox: Sandbox, port: int) -> None:
    sandbox.files.write("range.txt", "0123456789")
    url = f"http://127.0.0.1:{port}/files"
    plain = {"accept-encoding": "identity"}

    def get(**headers: str) -> httpx.Response:
        return httpx.get(url, params={"path": "range.txt"}, headers=plain | headers)

    whole = get()
    assert (whole.status_code, whole.text, whole.headers["accept-ranges"]) == (200, "0123456789", "bytes")
    part = get(range="bytes=2-4")
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "234", "bytes 2-4/10")
    assert get(range="bytes=-3").text == "789"
    assert get(range="bytes=7-").text == "789"
    beyond = get(range="bytes=10-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */10")
    assert get(range="bytes=5-2").status_code == 416
    several = get(range="bytes=0-1,-2")
    parts = message_from_bytes(f"content-type: {several.headers['content-type']}\n\n".encode() + several.content)
    assert several.status_code == 206
    assert [(part["content-range"], part.get_payload()) for part in parts.get_payload()] == [
        ("bytes 0-1/10", "01"),
        ("bytes 8-9/10", "89"),
    ]
    assert len(several.content) == int(several.headers["content-length"])
    assert get(**{"if-modified-since": whole.headers["last-modified"]}).status_code == 304
    assert get(**{"accept-encoding": "identity;q=0, br"}).status_code == 406
    assert httpx.head(url, params={"path": "range.txt"}, headers=plain).headers["content-length"] == "10"


def test_files_are_composed(sandbox: Sandbox, port: int) -> None:
    for i in range(3):
        sandbox.files.write(f"part{i}", f"{i}" * 100_000)
    url = f"http://127.0.0.1:{port}/files/compose"
    request = {"source_paths": [f"part{i}" for i in range(3)], "destination": "made/whole"}
    reply = httpx.post(url, json=request)
    assert reply.json() == {"path": "/home/user/made/whole", "name": "whole", "type": "file"}
    assert sandbox.files.read("made/whole") == "0" * 100_000 + "1" * 100_000 + "2" * 100_000
    assert sandbox.files.get_info("made/whole").owner == "user"
    assert not sandbox.files.exists("part1")
    assert httpx.post(url, json=request).status_code == 404
    assert httpx.post(url, json={"source_paths": ["/etc"], "destination": "x"}).status_code == 400
    assert httpx.post(url, json={"source_paths": ["a"], "destination": "a"}).status_code == 400
    assert httpx.post(url, content=b"nonsense").status_code == 400


Events = dict[tuple[str, FilesystemEventType], object]


def _events(watch, enough: Callable[[Events], bool]) -> Events:
    """Events by name and kind, until there are enough of them."""
    events: Events = {}
    deadline = time.monotonic() + 15
    while not enough(events):
        assert time.monotonic() < deadline, events
        for event in watch.get_new_events():
            events[event.name, event.type] = event.entry
        time.sleep(0.01)
    return events
