"""The rooms of a server that was killed: adopted by the next one, or ended when none comes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from roost.isolation.namespaces.orphans import OrphanWatch
from tests.integration.test_server_sessions import EXCLUSIVE, NOTES
from tests.support.server import NOTHING, Remains, Server

#: More than a start takes.
GRACE_S = 8.0


def asleep(data_dir: Path, grace_s: float) -> Server:
    """A server with one session, whose instance is frozen."""
    server = Server(data_dir, config=f"orphan_grace = {grace_s}\n").start()
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    assert server.invoke("notes", "add 1", x_chat_id="s").status_code == 200
    server.until(lambda: [i["state"] for i in server.instances()] == ["frozen"])
    return server


def test_frozen_rooms_of_a_server_that_does_not_come_back_are_ended(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = asleep(data_dir, 1.0)
    server.kill()
    assert Remains.of(data_dir).cgroups > 0, "without the watch, it would stay"
    deadline = time.monotonic() + 20
    while Remains.of(data_dir) != NOTHING:
        assert time.monotonic() < deadline, Remains.of(data_dir)
        time.sleep(0.1)
    again = Server(data_dir).start()
    reply = again.invoke("notes", "read", x_chat_id="s")
    assert reply.text == "|1;|1;", "the files of the session are kept"
    assert again.stop() == 0


def test_rooms_of_a_server_that_comes_back_are_left_to_it(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = asleep(data_dir, GRACE_S)
    server.kill()
    over = time.monotonic() + GRACE_S + 1
    again = Server(data_dir, config=f"orphan_grace = {GRACE_S}\n").start()
    assert again.invoke("notes", "read", x_chat_id="s").text == "1|1;|1;", "memory and files"
    time.sleep(max(0.0, over - time.monotonic()))
    assert again.invoke("notes", "read", x_chat_id="s").text == "1|1;|1;", "still, when the grace is over"
    assert again.stop() == 0
    assert Remains.of(data_dir) == NOTHING


async def test_an_orderly_end_touches_nothing(tmp_path: Path) -> None:
    group = tmp_path / "cgroup"
    (group / "i-1").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    watch = OrphanWatch(lock=tmp_path / "lock", run_dir=tmp_path / "run", groups=[group], grace_s=0.0)
    await watch.start()
    await asyncio.wait_for(watch.close(), 10)
    await watch.close()
    assert (group / "i-1").exists()
    assert (tmp_path / "run").exists()
