"""Forks of sandboxes on gVisor, as the official SDK asks for them: all of the room comes along."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b_code_interpreter import Sandbox

from roost.isolation.gvisor.runsc import look
from tests.acceptance.e2b.test_e2b_branches import DICE
from tests.support.forks import forks_of, value
from tests.support.gvisor import copying_runsc, need_runsc
from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, running, share_packages

CONFIG = 'sandbox_isolation = "gvisor"\nsandbox_disk_mb = 256\n'
STATE = """
import random, socket, tempfile, threading, time, uuid
import numpy as np
x = {"answer": 41}
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
near, far = socket.socketpair()
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()
kept = open("kept.txt", "w+")
kept.write("line"); kept.flush()
shared = open("/dev/shm/there", "w"); shared.write("in memory"); shared.flush()
"""
COUNT = "i=0; while :; do i=$((i+1)); echo $i > count.new; mv count.new count; sleep 0.05; done"


@pytest.fixture(scope="module")
def outside() -> Iterator[int]:
    """The port of a web server that sandboxes may reach."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def roost(tmp_path_factory: pytest.TempPathFactory, outside: int) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    config = f'{CONFIG}runsc = "{copying_runsc()}"\n'
    config += f'egress_private = ["127.0.0.0/8"]\nsandbox_allow_out = ["localhost:{outside}"]\n'
    with running(data_dir, config=config) as server:
        share_packages(data_dir, data_packages())
        yield server
    assert Remains.of(data_dir) == NOTHING


def forked(server: Server, box: Sandbox, **asked: Any) -> dict[str, Any]:
    """What the server says of one fork; the fork is removed."""
    with httpx.Client(base_url=server.url, headers={"x-api-key": "any"}, trust_env=False, timeout=120) as client:
        (made,) = client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"timeout": 60, **asked}).json()
        told: dict[str, Any] = made["sandbox"]
        client.delete(f"/sandboxes/{told['sandboxID']}")
    return told


def test_threads_processes_and_connections_within_the_room_come_along(box: Sandbox) -> None:
    box.commands.run(COUNT, background=True, cwd="/home/user")
    forks = forks_of(box, 2)
    try:
        for number, room in enumerate((box, *forks)):
            before = int(value(room, "ticks"))
            assert int(value(room, "time.sleep(0.2); ticks")) > before > 0
            assert value(room, "near.send(b'a'), far.recv(1), client.send(b'b'), served.recv(1)") == (
                "(1, b'a', 1, b'b')"
            )
            counted = room.files.read("count")
            room.commands.run("c=$(cat count); while [ $c = $(cat count) ]; do sleep 0.02; done", cwd="/home/user")
            assert int(room.files.read("count")) > int(counted)
            assert value(room, "open('/dev/shm/there').read()") == "in memory"
            assert value(room, f"kept.write(' {number}'); kept.flush(); x['answer'] += {number}; x") == (
                f"{{'answer': {41 + number}}}"
            )
            assert value(room, "__import__('os').environ['E2B_SANDBOX_ID']") == room.sandbox_id
            assert room.commands.run("echo $E2B_SANDBOX_ID; sudo id -un").stdout.split() == [room.sandbox_id, "root"]
        # Each has files of its own.
        assert [room.files.read("kept.txt") for room in (box, *forks)] == ["line 0", "line 1", "line 2"]
        # Positive control of the next: what is not made anew is the same in all of them.
        assert len({value(room, "hash('seed')") for room in (box, *forks)}) == 1
        dice = [eval(value(room, DICE)) for room in (box, *forks)]
        assert all(len({str(throw[index]) for throw in dice}) == 3 for index in range(4))
    finally:
        for room in forks:
            room.kill()


def test_a_fork_of_a_fork_when_the_first_is_gone(box: Sandbox) -> None:
    current = box
    for generation in range(3):
        (room,) = forks_of(current)
        assert value(room, f"x['answer'] += {generation}; x['answer']") == ("41", "42", "44")[generation]
        if current is not box:
            current.kill()
        current = room
    current.kill()
    assert value(box, "x['answer']") == "41"


def test_a_fork_is_paused_with_memory_interrupted_and_has_contexts_of_its_own(box: Sandbox) -> None:
    (room,) = forks_of(box)
    try:
        room.pause()
        room = Sandbox.connect(room.sandbox_id)
        assert value(room, "x['answer']") == "41"
        error = room.run_code("1 / 0").error
        assert error is not None and error.name == "ZeroDivisionError"
        second = room.create_code_context()
        assert room.run_code("1 + 1", context=second).text == "2"
        (first,) = [one for one in room.list_code_contexts() if one.language == "python" and one.id != second.id]
        room.restart_code_context(first)
        error = room.run_code("x").error
        assert error is not None and error.name == "NameError"
    finally:
        room.kill()


def test_the_reply_says_in_what_way_memory_came_along(box: Sandbox, roost: Server) -> None:
    told = forked(roost, box)
    assert (told["memory"], told["leftBehind"], told["notCopied"]) == ("room", ["connections"], [])


def test_what_a_checkpoint_takes_is_on_disk_and_told(box: Sandbox, roost: Server) -> None:
    box.run_code("import os; big = os.urandom(32 << 20)")
    with httpx.Client(base_url=roost.url, headers={"x-api-key": "any"}, trust_env=False, timeout=120) as client:
        made = client.post(f"/sandboxes/{box.sandbox_id}/checkpoints", json={}).json()
        assert (made["memory"], made["memoryBytes"], made["notCopied"]) == ("on disk", 0, [])
        assert made["diskBytes"] > 32 << 20
        assert client.post(
            f"/sandboxes/{box.sandbox_id}/rollback", json={"checkpointID": made["checkpointID"]}
        ).is_success
        (shown,) = client.get(f"/sandboxes/{box.sandbox_id}/checkpoints").json()
    assert shown["memory"] == "on disk"
    assert value(Sandbox.connect(box.sandbox_id), "len(big)") == str(32 << 20)


def test_what_serves_and_what_reaches_out_goes_on_in_the_fork(box: Sandbox, roost: Server, outside: int) -> None:
    assert value(box, "import http.client, http.server") == ""
    box.run_code(
        "web = http.server.ThreadingHTTPServer(('127.0.0.1', 8000), http.server.SimpleHTTPRequestHandler)\n"
        "threading.Thread(target=web.serve_forever, daemon=True).start()\n"
        "def status(url):\n"
        "    proxy = http.client.HTTPConnection('127.0.0.1', 3129)\n"
        "    proxy.request('GET', url)\n"
        "    return proxy.getresponse().status\n"
    )
    (room,) = forks_of(box)
    try:
        for one in (box, room):
            one.files.write("whose", one.sandbox_id)
            headers = {"e2b-sandbox-id": one.sandbox_id, "e2b-sandbox-port": "8000"}
            headers["e2b-traffic-access-token"] = one.traffic_access_token or ""
            with roost.client() as client:
                assert client.get("/whose", headers=headers).text == one.sandbox_id
            assert value(one, f"status('http://localhost:{outside}/')") == "501"  # it has no answer to GET
            assert value(one, f"status('http://localhost:{outside + 1}/')") == "403"
    finally:
        room.kill()


def test_a_cell_that_runs_is_waited_for(box: Sandbox, roost: Server) -> None:
    began = threading.Event()
    said: list[str] = []

    def run() -> None:
        execution = box.run_code("print('on'); time.sleep(2); x['answer'] = 43", on_stdout=lambda _: began.set())
        said.append("" if execution.error is None else execution.error.name)

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(30)
    (room,) = forks_of(box)
    thread.join()
    try:
        assert said == [""]  # its connection lived to its end
        assert value(room, "x['answer']") == "43"
    finally:
        room.kill()


def test_what_can_t_be_written_down_is_told_and_the_room_goes_on(box: Sandbox, roost: Server) -> None:
    """A file that is open and has no name: the kernel can't find it again."""
    assert value(box, "gone = open('gone.txt', 'w+'); __import__('os').unlink('gone.txt'); gone.write('here')") == "4"
    for _ in range(2):
        told = forked(roost, box)
        assert (told["memory"], told["leftBehind"]) == ("none", ["memory", "processes"])
        assert len(told["notCopied"]) == 1 and told["notCopied"][0].startswith("runsc checkpoint: "), told
    assert value(box, "gone.seek(0), gone.read(), x['answer']") == "(0, 'here', 41)"
    assert value(box, "gone.close(); x['answer']") == "41"
    assert forked(roost, box)["memory"] == "room"


def test_of_a_paused_one_only_files_are_copied(box: Sandbox, roost: Server) -> None:
    box.pause()
    told = forked(roost, box)
    assert (told["memory"], told["notCopied"]) == ("none", ["it stands still, and can't get ready to be copied"])
    assert value(Sandbox.connect(box.sandbox_id), "x['answer']") == "41"


def test_the_copy_is_another_room_of_the_host_s(box: Sandbox) -> None:
    (room,) = forks_of(box)
    try:
        first, second = (kernel_of(one.sandbox_id) for one in (box, room))
        owners = [Path(f"/proc/{pid}").stat().st_uid for pid in (first, second)]
        assert abs(owners[0] - owners[1]) >= 65536  # ranges that have no id in common
        for kind in ("net", "mnt", "pid", "ipc", "uts", "user", "cgroup"):
            assert os.readlink(f"/proc/{first}/ns/{kind}") != os.readlink(f"/proc/{second}/ns/{kind}"), kind
        ours, theirs = (sockets_of(one) for one in (box, room))
        assert ours and theirs and not ours & theirs
    finally:
        room.kill()


def test_a_context_that_does_not_stand_still_is_told_and_lives_on(box: Sandbox, roost: Server) -> None:
    box.commands.run("kill -STOP $(pgrep -f 'interpreter[.]python')")
    told = forked(roost, box)
    assert told["memory"] == "room"
    assert len(told["notCopied"]) == 1 and "it did not stand still" in told["notCopied"][0]
    box.commands.run("kill -CONT $(pgrep -f 'interpreter[.]python')")
    assert value(box, "x['answer']") == "41"


def test_a_killed_server_s_successor_copies_the_room_too_and_nothing_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    config = f'{CONFIG}runsc = "{copying_runsc()}"\n'
    server = Server(data_dir, config=config).start()
    try:
        share_packages(data_dir, data_packages())
        tell(monkeypatch, server)
        box = Sandbox.create(timeout=300)
        assert value(box, "big = b'1' * (64 << 20); x = 41; x") == "41"

        def fork() -> None:
            with contextlib.suppress(httpx.HTTPError):
                forked(server, box)

        before = Remains.of(data_dir).loops
        thread = threading.Thread(target=fork)
        thread.start()
        server.until(lambda: Remains.of(data_dir).loops > before)  # its memory is being written
        server.kill()
        thread.join()
        server = Server(data_dir, config=config).start()
        tell(monkeypatch, server)
        assert value(Sandbox.connect(box.sandbox_id), "x, len(big)") == f"(41, {64 << 20})"
        assert forked(server, box)["memory"] == "room"
        assert server.stop() == 0
    finally:
        if not server.ended:
            server.kill()
    assert Remains.of(data_dir) == NOTHING


def test_a_kernel_that_is_killed_meanwhile_leaves_nothing(roost: Server, environment: None) -> None:
    box = Sandbox.create(timeout=300)
    assert value(box, "big = b'1' * (128 << 20); x = 41; x") == "41"
    before = Remains.of(roost.data_dir).loops
    replies: list[int] = []

    def fork() -> None:
        with httpx.Client(base_url=roost.url, headers={"x-api-key": "any"}, trust_env=False, timeout=120) as client:
            replies.append(client.post(f"/sandboxes/{box.sandbox_id}/fork", json={"timeout": 60}).status_code)

    thread = threading.Thread(target=fork)
    thread.start()
    roost.until(lambda: Remains.of(roost.data_dir).loops > before)
    os.kill(kernel_of(box.sandbox_id), signal.SIGKILL)
    thread.join()
    assert replies and replies[0] in (201, 503)
    for one in [made for page in [Sandbox.list()] for made in page.next_items()]:
        Sandbox.kill(one.sandbox_id)
    roost.until(lambda: Remains.of(roost.data_dir).loops < before)


def test_an_old_runsc_copies_files_and_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the distribution's is."""
    need_runsc()
    is_old = asyncio.run(look()).lack_of_copies
    data_dir = tmp_path / "data"
    with running(data_dir, config=CONFIG) as server:
        share_packages(data_dir, data_packages())
        tell(monkeypatch, server)
        box = Sandbox.create(timeout=300)
        assert value(box, "x = 41; x") == "41"
        told = forked(server, box)
        assert told["memory"] == ("none" if is_old else "room")
        assert told["notCopied"] == ([is_old] if is_old else [])
        assert value(box, "x") == "41"
        box.kill()
    assert Remains.of(data_dir) == NOTHING


def tell(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        monkeypatch.setenv(name, server.url)


def kernel_of(sandbox: str) -> int:
    """The number of the process that is gVisor's kernel for it."""
    for handle in glob.glob(f"/run/roost/*/{sandbox}/handle.json"):
        name = Path(handle).read_text().partition('"cgroup": "')[2].partition('"')[0]
        for group in glob.glob(f"/sys/fs/cgroup/**/{name}/in/cgroup.procs", recursive=True):
            for pid in Path(group).read_text().split():
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"runsc-sandbox"):
                    return int(pid)
    raise AssertionError(f"{sandbox} has no kernel")


def sockets_of(box: Sandbox) -> set[str]:
    """Of the host's, that its kernel has open."""
    found = set()
    for descriptor in Path(f"/proc/{kernel_of(box.sandbox_id)}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(descriptor)
            if target.startswith("socket:"):
                found.add(target)
    return found
