"""What code in a sandbox, or a careless client, does to it: the offender ends, the sandbox and the server serve on, and
what has ended says why. Real rooms, small enough to be filled quickly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import CommandExitException, NotEnoughSpaceException, SandboxException
from e2b_code_interpreter import Sandbox

from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, running

SMALL = "sandbox_memory_mb = 256\nsandbox_disk_mb = 64\n"


@pytest.fixture(scope="module")
def roost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    data_dir.mkdir()
    (data_dir / "packages").symlink_to(data_packages().parent)
    with running(data_dir, config=SMALL) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture
def sandbox(environment: None) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=120)
    yield made
    made.kill()


def check(sandbox: Sandbox) -> None:
    """It does all that one that nobody harmed does."""
    assert sandbox.is_running()
    assert sandbox.commands.run("echo fine").stdout == "fine\n"
    sandbox.files.write("checked", "fine")
    assert sandbox.files.read("checked") == "fine"
    assert sandbox.run_code("1 + 1").text == "2"


def until(condition: Callable[[], object], patience_s: float = 20) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def raw(roost: Server, sandbox: Sandbox, method: str, path: str, port: int = 49983, **more: Any) -> httpx.Response:
    """A request of a client that is no SDK."""
    fields = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": str(port)}
    fields["x-access-token"] = str(sandbox._envd_access_token)
    with roost.client() as client:
        return client.request(method, path, headers=fields, **more)


# --- memory, processes, disk ---------------------------------------------------------------------------------------

EATER = "eaten = []\nwhile True: eaten.append(b'x' * (8 << 20))"


def test_memory_that_runs_out_ends_who_eats_it(sandbox: Sandbox) -> None:
    daemon = sandbox.commands.run("pgrep -o -f . || true").stdout
    sandbox.run_code("kept = 1")
    other = sandbox.create_code_context()
    sandbox.run_code("kept = 2", context=other)
    eaten = sandbox.run_code(EATER)
    assert eaten.error is not None
    assert "memory" in f"{eaten.error.name}: {eaten.error.value}"
    assert sandbox.run_code("kept", context=other).text == "2", "other contexts keep their variables"
    for user in ("user", "root"):
        with pytest.raises(CommandExitException) as ended:
            sandbox.commands.run(f'exec python3 -c "{EATER}"', user=user)
        assert ended.value.exit_code in (-1, 137)
        assert "killed" in (ended.value.error or "")
    refused = sandbox.commands.run("echo -1000 > /proc/self/oom_score_adj", user="root", background=True)
    with pytest.raises(CommandExitException, match="Read-only file system"):
        refused.wait()
    assert sandbox.commands.run("pgrep -o -f . || true").stdout == daemon
    check(sandbox)


def test_a_fork_bomb_stays_in_its_room(sandbox: Sandbox) -> None:
    with contextlib.suppress(SandboxException):
        sandbox.commands.run("bomb() { bomb | bomb & }; bomb; sleep 0.5", background=True)
    time.sleep(0.5)
    sandbox.files.write("during", "the daemon needs no process for this")
    assert sandbox.files.read("during")
    assert sandbox.get_info().state.value == "running"
    neighbour = Sandbox.create(timeout=60)
    check(neighbour)
    neighbour.kill()


def test_a_full_disk_is_told_and_can_be_emptied(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException, match="No space left"):
        sandbox.commands.run("head -c 1G /dev/zero > big")
    with pytest.raises(NotEnoughSpaceException):
        sandbox.files.write("more", b"x" * (1 << 20))
    full = sandbox.run_code("open('other', 'wb').write(b'x' * (1 << 20))")
    assert full.error is not None
    assert full.error.name == "OSError"
    assert sandbox.run_code("1 + 1").text == "2"
    sandbox.commands.run("rm big")
    with pytest.raises(NotEnoughSpaceException):
        sandbox.files.write("oversized", b"x" * (80 << 20))
    sandbox.files.remove("oversized")
    check(sandbox)


def test_a_disk_without_inodes_is_told_and_can_be_emptied(sandbox: Sandbox) -> None:
    made = sandbox.run_code(
        "import os\nos.mkdir('many')\nn = 0\ntry:\n  while True:\n    open(f'many/{n}', 'x').close(); n += 1\n"
        "except OSError as error:\n  print(error.strerror, n > 1000)"
    )
    assert made.logs.stdout == ["No space left on device True\n"]
    with pytest.raises(NotEnoughSpaceException):
        sandbox.files.write("one-more", "")
    assert sandbox.commands.run("ls many | wc -l").stdout
    sandbox.files.remove("many")
    check(sandbox)


# --- clients that vanish, floods -----------------------------------------------------------------------------------


def test_a_flood_that_nobody_reads_costs_the_server_nothing(roost: Server, sandbox: Sandbox) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{roost.pid}/statm").read_text().split()[1]) * 4096

    before = resident()
    body = {"code": "kept = 5\nwhile True: print('x' * 100_000)"}
    fields = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "49999"}
    fields["x-access-token"] = str(sandbox._envd_access_token)
    with roost.client() as client, client.stream("POST", "/execute", json=body, headers=fields) as reply:
        next(reply.iter_bytes(1000))
        time.sleep(0.5)
        assert resident() - before < 16 << 20
    assert sandbox.run_code("kept").text == "5", "the cell was interrupted, its context lives on"
    check(sandbox)


def test_a_client_that_vanishes_leaves_nothing_behind_but_its_command(roost: Server, sandbox: Sandbox) -> None:
    """As with E2B: a command goes on, for who connects to it again; a cell is interrupted."""
    handle = sandbox.commands.run("sleep 1000", background=True)
    handle.disconnect()
    assert [process.pid for process in sandbox.commands.list()] == [handle.pid]
    assert sandbox.commands.kill(handle.pid)
    fields = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "49999"}
    fields["x-access-token"] = str(sandbox._envd_access_token)
    for _ in range(20):
        with (
            roost.client() as client,
            client.stream(
                "POST", "/execute", json={"code": "print(1, flush=True)\nimport time; time.sleep(100)"}, headers=fields
            ) as reply,
        ):
            next(reply.iter_bytes(10))
    started = time.monotonic()
    assert sandbox.run_code("'free'").text == "free"
    assert time.monotonic() - started < 15
    until(lambda: not sandbox.commands.list())


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(7)", "exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("import ctypes; ctypes.string_at(0)", "signal 11"),
        ("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", ""),
    ],
)
def test_a_context_that_ends_its_own_interpreter(sandbox: Sandbox, code: str, how: str) -> None:
    ended = sandbox.run_code(code)
    assert ended.error is not None
    assert how in ended.error.value
    check(sandbox)


def test_root_that_kills_everything_does_not_reach_the_daemon(sandbox: Sandbox) -> None:
    sandbox.files.write("kept", "still here")
    other = sandbox.commands.run("sleep 1000", background=True)
    sandbox.commands.run("kill -9 -1; kill -9 1; kill -TERM 1; sleep 0.5", user="root")
    with pytest.raises(CommandExitException):
        other.wait()
    assert sandbox.get_info().state.value == "running"
    assert sandbox.files.read("kept") == "still here"
    check(sandbox)


def test_a_sandbox_that_is_gone_says_why(roost: Server) -> None:
    killed, over = Sandbox.create(timeout=60), Sandbox.create(timeout=60)
    killed.kill()
    over.set_timeout(0)
    until(lambda: not over.is_running())
    for sandbox, reason in ((killed, "killed"), (over, "timeout")):
        by_traffic = raw(roost, sandbox, "GET", "/files?path=x")
        assert (by_traffic.status_code, by_traffic.json()["reason"]) == (502, reason)
        with roost.client() as client:
            by_api = client.get(f"/sandboxes/{sandbox.sandbox_id}")
        assert (by_api.status_code, by_api.json()["code"], by_api.json()["reason"]) == (404, 404, reason)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"templateID": "no-such"}, 404, "no-such"),
        ({"templateID": 1}, 400, "templateID"),
        ({}, 400, "templateID"),
        ({"templateID": "base", "timeout": "soon"}, 400, "timeout"),
        ({"templateID": "base", "timeout": -1}, 400, "timeout"),
        ({"templateID": "base", "timeout": 1e300}, 400, "timeout"),
        ({"templateID": "base", "metadata": {"a": 1}}, 400, "metadata.a"),
        ({"templateID": "base", "envVars": {"A=B": "1"}}, 400, "envVars"),
        ({"templateID": "base", "volumeMounts": [{"name": "v", "path": "/a/../etc"}]}, 400, "volumeMounts[0].path"),
        ({"templateID": "base", "network": {"allowOut": "all"}}, 400, "network.allowOut"),
        ([], 400, "JSON object"),
    ],
)
def test_orders_that_are_refused_name_the_field(roost: Server, body: Any, status: int, named: str) -> None:
    with roost.client() as client:
        reply = client.post("/v2/sandboxes", json=body)
    assert (reply.status_code, reply.json()["code"]) == (status, status)
    assert named in reply.json()["message"]
    assert reply.json().keys() == {"code", "message"}


def test_paths_lead_nowhere_but_into_the_room(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    for path in (str(secret), f"../../../../../../..{secret}", f"/proc/1/root{secret}", f"/proc/self/root/..{secret}"):
        assert not sandbox.files.exists(path)
        with pytest.raises(SandboxException):
            sandbox.files.read(path)
    sandbox.files.write(f"../../../../../../..{tmp_path}/written", "in the room")
    assert not (tmp_path / "written").exists()
    sandbox.commands.run(f"ln -s {secret} link && ln -s /proc/1/root up")
    with pytest.raises(SandboxException):
        sandbox.files.read("link")
    sandbox.files.write("up/tmp/through", "in the room")
    assert not Path("/tmp/through").exists()
    check(sandbox)
