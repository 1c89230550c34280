"""What runsc is asked for and told, and how connections go into a room. Without runsc."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from roost.guest.passed import PassedConnections
from roost.isolation.drivers import Drivers
from roost.isolation.gvisor import driver as gvisor
from roost.isolation.gvisor import runsc
from roost.isolation.gvisor.keeper import Passage
from roost.isolation.gvisor.oci import ROOM, Kernel, command_line, configuration
from roost.isolation.gvisor.preflight import preflight
from roost.model.errors import InvalidArgument, Unavailable
from roost.model.function import GVISOR
from tests.support.fake_driver import FakeDriver

OLD = "  -platform string\n\tspecifies which platform to use: ptrace (default), kvm.\n  -overlay2 value\n"
NEW = "  -directfs\n\tdirectly access files.\n  -platform string\n\tspecifies which platform: systrap (default), kvm.\n"


@pytest.mark.parametrize(
    ("known", "platform", "more"), [(OLD, "ptrace", False), (NEW, "systrap", True)], ids=["2022", "present"]
)
def test_an_old_version_and_a_present_one(known: str, platform: str, more: bool) -> None:
    found = runsc.describe(Path("/x/runsc"), "runsc version release-20250101.0\nspec: 1.1.0\n", known)
    assert (found.version, found.platform) == ("release-20250101.0", platform)
    assert f"--platform={platform}" in found.flags and "--network=none" in found.flags
    assert ("--directfs=false" in found.flags) is more


def test_whether_rooms_can_be_copied_is_seen_from_what_a_checkpoint_takes() -> None:
    old, new = (
        runsc.describe(Path("/x/runsc"), "runsc version 1\n", NEW, f"checkpoint [flags]\n  -leave-running\n{more}")
        for more in ("", "  -exclude-committed-zero-pages\n")
    )
    assert "ends a room that it copies" in old.lack_of_copies and "apt-get install" in old.lack_of_copies
    assert new.lack_of_copies == ""


def test_what_runsc_is_told_to_do() -> None:
    kernel = Kernel(flags=("--flag",), command=("/bin/true",))
    assert command_line(kernel, "run") == ["/runsc", "--root=/state", "--flag", "run", "--bundle=/bundle", "room"]
    assert command_line(kernel, "pause") == ["/runsc", "--root=/state", "--flag", "pause", "room"]
    assert command_line(kernel, "checkpoint", 10)[3:] == [
        *("checkpoint", "--leave-running", "--compression=none"),
        *("--image-path=/proc/self/fd/10", "room"),
    ]
    assert "--detach" in command_line(kernel, "restore", 10)


def test_what_is_not_asked_for_is_not_given() -> None:
    kernel = Kernel(flags=(), command=("/bin/true",))
    told = configuration(
        kernel,
        hostname="room",
        capabilities=("CHOWN",),
        open_files=64,
        shm_mb=1,
        run_mb=2,
        mounts=[("/code", True), ("/run/roost", False)],
    )
    process = told["process"]
    assert process["noNewPrivileges"] is True
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}
    assert all(held == ["CAP_CHOWN"] for held in process["capabilities"].values())
    mounts = {mount["destination"]: mount for mount in told["mounts"]}
    assert mounts["/code"]["source"] == f"{ROOM}/code" and "ro" in mounts["/code"]["options"]
    assert "rw" in mounts["/run/roost"]["options"]
    assert list(mounts).index("/run") < list(mounts).index("/run/roost")
    assert "/tmp" not in mounts and "annotations" not in told  # it is the root's


def test_connections_go_in_one_by_one_and_wait_where_nobody_takes_them(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "app.sock"))
    listener.listen(512)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    passage = Passage(listener, ours)
    room = PassedConnections(fileno=theirs.detach())
    room.setblocking(False)
    with pytest.raises(BlockingIOError):
        room.accept()
    clients = []
    for number in range(200):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "app.sock"))
        client.send(b"%03d" % number)
        clients.append(client)
    passage.pass_on()
    assert passage.full  # a few are on their way, the others wait
    for number in range(200):
        accepted, _ = room.accept()
        with accepted:
            assert accepted.recv(3) == b"%03d" % number
        passage.pass_on()
    assert not passage.full
    room.close()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "app.sock"))
    with pytest.raises(BrokenPipeError):
        passage.pass_on()
    for one in (*clients, client, listener, ours):
        one.close()


def test_a_host_that_has_gone_passes_nothing() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with PassedConnections(fileno=theirs.detach()) as room, pytest.raises(ConnectionAbortedError):
        room.accept()


def test_a_word_is_no_connection() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said: list[bytes] = []
    with ours, PassedConnections(fileno=theirs.detach()) as room:
        ours.send(b"h1")
        with pytest.raises(ConnectionAbortedError):  # of a guest that knows no words
            room.accept()
        room.on_word = said.append
        ours.send(b"h2")
        with pytest.raises(BlockingIOError):
            room.accept()
        assert said == [b"h2"]
        given, kept = socket.socketpair()
        with given, kept:
            socket.send_fds(ours, [b"c"], [given.fileno()])
            accepted, _ = room.accept()
            with accepted:
                assert not accepted.get_inheritable()


async def test_without_runsc_it_is_refused_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runsc, "_PATH", "/nonexistent")
    driver = gvisor.GvisorDriver(None)  # type: ignore[arg-type]
    assert driver.lack() == "gVisor's runsc is not installed: apt-get install runsc."
    with pytest.raises(Unavailable, match="apt-get install runsc"):
        await runsc.look()
    with pytest.raises(Unavailable, match="There is no runsc at /nonexistent/runsc"):
        await runsc.look(Path("/nonexistent/runsc"))


def test_the_preflight_without_runsc_says_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runsc, "_PATH", "/nonexistent")
    found = preflight()
    assert not found.usable and found.problems == ("gVisor's runsc is not installed: apt-get install runsc.",)


class _Lacking(FakeDriver):
    name = "gvisor"

    def lack(self) -> str:
        return "There is none: install it."


async def test_the_isolation_says_which_driver(tmp_path: Path) -> None:
    usual, other = FakeDriver(), _Lacking()
    drivers = Drivers(usual, {GVISOR: other})
    assert drivers.present() == {"namespaces": "fake", "strict": "fake"}
    drivers.admit("strict")
    with pytest.raises(InvalidArgument, match="can't give the isolation 'gvisor': There is none: install it"):
        drivers.admit(GVISOR)
    with pytest.raises(InvalidArgument, match="only namespaces, strict and gvisor"):
        drivers.admit("magic")
    assert await drivers.recover({"driver": "unknown"}) is None
