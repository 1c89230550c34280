"""Sandboxes by the official SDK: made, used, paused, copied with what their contexts have in memory, rolled back,
killed, over and over; what is left is printed, and none.

ROOST_SOAK_MINUTES (default 10) is the time.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b.exceptions import SandboxException
from e2b_code_interpreter import Sandbox

from tests.acceptance.e2b.test_e2b_branches import interpreter
from tests.soak.load import Held
from tests.soak.test_soak import FDS_OF_HELPER, HELPERS, MEMORY_SLACK_KB, MINUTES
from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, running, share_packages

pytestmark = pytest.mark.soak

CLIENTS = 4
#: After that the connections that the SDK keeps are closed.
IDLE_S = 95.0
BOMB = "x = []\nwhile True:\n    x.append(bytearray(1 << 24))"


class Clients:
    """Threads that each make a sandbox, do one thing with it and end it, until told to stop."""

    def __init__(self, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(seed * 100 + n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, seed: int) -> None:
        dice = random.Random(seed)
        verbs = (_code, _commands, _files, _pause, _snapshot, _fork, _rollback, _back, _leave, _exhaust)
        while not self._stop.is_set():
            verb = dice.choice(verbs)
            try:
                verb()
            except Exception as error:
                self.wrong.append(f"{verb.__name__}: {type(error).__name__}: {error}")
            self.done[verb.__name__] += 1


def _code() -> None:
    with made() as box:
        box.run_code("x = 20")
        assert box.run_code("x + 1").text == "21"


def _commands() -> None:
    with made() as box:
        box.commands.run("sleep 600", background=True)
        assert box.commands.run("echo hello && sudo id -u").stdout == "hello\n0\n"


def _files() -> None:
    with made() as box:
        watch = box.files.watch_dir("/home/user")
        box.files.write("/home/user/a", "b" * 100_000)
        assert len(box.files.read("/home/user/a")) == 100_000
        watch.stop()


def _pause() -> None:
    with made() as box:
        box.run_code("x = 1")
        box.pause()
        assert Sandbox.connect(box.sandbox_id).commands.run("echo back").stdout == "back\n"


def _snapshot() -> None:
    with made() as box:
        box.files.write("/home/user/a", "1")
        snapshot = box.create_snapshot()
        other = Sandbox.create(snapshot.snapshot_id, timeout=60)
        assert other.files.read("/home/user/a") == "1"
        other.kill()
        Sandbox.delete_snapshot(snapshot.snapshot_id)


def _fork() -> None:
    """One of the two is ended; the other, and the fork of it, by its time or by the end of all."""
    with made() as box:
        box.run_code("x = 20")
        first, second = _live(box.fork(count=2, timeout=15))
        assert first.run_code("x += 1; x").text == "21"
        (third,) = _live(first.fork(timeout=15))
        first.kill()
        assert [one.run_code("x").text for one in (third, second, box)] == ["21", "20", "20"]


def _live(forks: list[Any]) -> list[Sandbox]:
    failed = [one for one in forks if not isinstance(one, Sandbox)]
    assert not failed, failed
    return forks


def _rollback() -> None:
    """Checkpoints are deleted, gone back to, and left to the sandbox's end; so is a fork within it."""
    with made() as box:
        box.run_code("x = 1")
        (context,) = [one for one in box.list_code_contexts() if one.language == "python"]
        with interpreter(box, context.id) as client:

            def post(verb: str, **said: str) -> dict[str, Any]:
                reply = client.post(verb, json=said)
                assert reply.is_success, reply.text
                found: dict[str, Any] = reply.json()
                return found

            kept = [post("checkpoints")["id"]]
            box.run_code("x = 2")
            kept.append(post("checkpoints")["id"])
            post("fork")
            for number in (0, 1, 0):
                post("rollback", checkpoint=kept[number])
                assert box.run_code("x").text == str(number + 1)
            assert client.delete(f"checkpoints/{kept[0]}").is_success


def _back() -> None:
    """To a checkpoint of all of it, again and again, at once or after a while; a room that is ready then goes too."""
    with made() as box, httpx.Client(trust_env=False, timeout=60, headers={"x-api-key": "any"}) as client:
        url = f"{os.environ['E2B_API_URL']}/sandboxes/{box.sandbox_id}"
        box.run_code("x = 1")
        first = client.post(f"{url}/checkpoints").raise_for_status().json()["checkpointID"]
        box.run_code("x = 2")
        second = client.post(f"{url}/checkpoints").raise_for_status().json()["checkpointID"]
        for pause_s, checkpoint in ((0, first), (0.2, first), (0.01, first), (0.2, second), (0.2, second)):
            time.sleep(pause_s)
            client.post(f"{url}/rollback", json={"checkpointID": checkpoint}).raise_for_status()
            assert box.run_code("x += 2; x").text == ("3" if checkpoint == first else "4")
        time.sleep(random.uniform(0, 0.2))


def _leave() -> None:
    """Nobody ends it: its time does."""
    Sandbox.create("code-interpreter-v1", timeout=2)


def _exhaust() -> None:
    with made() as box, contextlib.suppress(SandboxException):
        box.run_code(BOMB)


@contextlib.contextmanager
def made() -> Iterator[Sandbox]:
    box = Sandbox.create("code-interpreter-v1", timeout=120)
    try:
        yield box
    finally:
        box.kill()


def test_sandboxes_are_made_used_and_killed_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("E2B_")]:
        monkeypatch.delenv(name)
    with running(tmp_path / "data") as server:
        share_packages(server.data_dir, data_packages())
        for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("E2B_API_KEY", "anything")
        storm(server, MINUTES * 20, seed=0)  # what is kept of thousands (heads, ends, usage) is full then
        before = at_rest(server)
        done, killed = storm(server, MINUTES * 40, seed=1)
        after = at_rest(server)
        print(f"{done.total()} sandboxes {dict(done)}, {killed} rooms killed; before {before}, after {after}")
        more = max(0, after.children - before.children)
        assert after.children <= HELPERS + 2  # contexts have a zygote of their own, and a tracer
        assert after.fds - before.fds <= more * FDS_OF_HELPER
        assert after.namespaces <= before.namespaces
        assert after.memory_kb - before.memory_kb < MEMORY_SLACK_KB
    remains = Remains.of(tmp_path / "data")
    print(f"left: {remains}")
    assert remains == NOTHING


def storm(server: Server, seconds: float, *, seed: int) -> tuple[Counter[str], int]:
    """What was done, and how many rooms were killed from outside meanwhile."""
    dice = random.Random(seed)
    until = time.monotonic() + seconds
    killed = 0
    with Clients(seed) as clients:
        while time.monotonic() < until:
            time.sleep(dice.uniform(2.0, 6.0))
            pids = [one["pid"] for one in server.instances() if one.get("pid")]
            for pid in dice.sample(pids, min(len(pids), 1)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
    assert len(clients.wrong) <= killed, clients.wrong[:10]  # of a room that is killed, its client hears
    return clients.done, killed


def at_rest(server: Server) -> Held:
    """With no sandbox and no connection left."""
    with server.client() as client:
        listed = client.get("/v2/sandboxes", params={"state": ["running", "paused"], "limit": 100}).json()
        for one in listed:
            client.delete(f"/sandboxes/{one['sandboxID']}")
    server.until(lambda: server.instances() == [], timeout=60)
    time.sleep(IDLE_S)
    return Held.of(server.pid)
