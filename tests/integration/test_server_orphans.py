"""The rooms of a server that was killed: adopted by the next one, or ended when none comes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from roost.config import Config
from roost.isolation.cgroups import parse_mounts
from roost.isolation.namespaces.orphans import OrphanWatch
from tests.integration.test_server_sessions import EXCLUSIVE, NOTES
from tests.support.server import NOTHING, Remains, Server

#: A process that starts a watch, says so, and is then killed as a server would be.
DOOMED = """
import asyncio, sys
from pathlib import Path
from roost.isolation.namespaces.orphans import OrphanWatch
async def main():
    lock, run_dir, grace, *groups = sys.argv[1:]
    watch = OrphanWatch(lock=Path(lock), run_dir=Path(run_dir), groups=[Path(g) for g in groups], grace_s=float(grace))
    await watch.start()
    print(watch._process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def groups(data_dir: Path) -> list[Path]:
    tag = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]
    return [tree / f"roost-{tag}" for tree in parse_mounts(Path("/proc/self/mounts").read_text()).trees]


def doomed(data_dir: Path, grace_s: float) -> tuple[subprocess.Popen[str], int]:
    """A process to be killed with the server, and the pid of its undertaker."""
    places = [data_dir / "roost.db.lock", Config(data_dir=data_dir).run_dir]
    command = [sys.executable, "-c", DOOMED, *map(str, places), str(grace_s), *map(str, groups(data_dir))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def asleep(data_dir: Path) -> Server:
    """A server with one session, whose instance is frozen."""
    server = Server(data_dir).start()
    server.deploy("notes", {"index.py": NOTES}, **EXCLUSIVE)
    assert server.invoke("notes", "add 1", x_chat_id="s").status_code == 200
    server.until(lambda: [i["state"] for i in server.instances()] == ["frozen"])
    return server


def gone(pid: int) -> None:
    deadline = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < deadline, "the undertaker does not end"
        time.sleep(0.02)


def test_frozen_rooms_of_a_server_that_does_not_come_back_are_ended(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = asleep(data_dir)
    process, undertaker = doomed(data_dir, grace_s=0.5)
    server.kill()
    assert Remains.of(data_dir).cgroups > 0, "without the watch, it would stay"
    process.kill()
    process.wait()
    gone(undertaker)
    assert Remains.of(data_dir) == NOTHING
    again = Server(data_dir).start()
    reply = again.invoke("notes", "read", x_chat_id="s")
    assert reply.text == "|1;|1;", "the files of the session are kept"
    assert again.stop() == 0


def test_rooms_of_a_server_that_comes_back_are_left_to_it(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = asleep(data_dir)
    process, undertaker = doomed(data_dir, grace_s=60)
    server.kill()
    again = Server(data_dir).start()
    process.kill()
    process.wait()
    gone(undertaker)
    assert again.invoke("notes", "read", x_chat_id="s").text == "1|1;|1;", "memory and files"
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
