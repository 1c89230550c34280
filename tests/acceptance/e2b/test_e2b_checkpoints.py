"""Checkpoints of a whole sandbox, and going back to them: made by plain HTTP, seen with the official SDK."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b_code_interpreter import Sandbox

from roost.sandboxes.checkpoints import DISK_FULL, LOST
from tests.support.forks import value
from tests.support.interpreter import data_packages
from tests.support.server import NOTHING, Remains, Server, share_packages

LIMITS = "sandbox_memory_mb = 768\nsandbox_disk_mb = 256\n"
STATE = "import numpy as np\nx = 41\nbig = np.arange(1_000_000)\nopen('kept.txt', 'w').write('first')"


def begun(data_dir: Path, monkeypatch: pytest.MonkeyPatch, config: str) -> Server:
    """A server of one's own, which the SDK speaks to from now on."""
    server = Server(data_dir, config=config).start()
    share_packages(data_dir, data_packages())
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        monkeypatch.setenv(name, server.url)
    monkeypatch.setenv("E2B_API_KEY", "any")
    return server


@pytest.fixture
def api(roost: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=roost.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as client:
        yield client


def take(api: httpx.Client, box: Sandbox, label: str = "", **query: str) -> dict[str, Any]:
    reply = api.post(f"/sandboxes/{box.sandbox_id}/checkpoints", json={"label": label}, params=query)
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


def back(api: httpx.Client, box: Sandbox, checkpoint: dict[str, Any], **query: str) -> dict[str, Any]:
    body = {"checkpointID": checkpoint["checkpointID"]}
    reply = api.post(f"/sandboxes/{box.sandbox_id}/rollback", json=body, params=query)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def tree(api: httpx.Client, box: Sandbox) -> list[dict[str, Any]]:
    return list(api.get(f"/sandboxes/{box.sandbox_id}/checkpoints").raise_for_status().json())


def test_variables_files_and_contexts_are_as_they_were(box: Sandbox, api: httpx.Client) -> None:
    removed = box.create_code_context(cwd="/tmp")
    assert box.run_code("y = 1", context=removed).error is None
    first = take(api, box, "first")
    assert (first["label"], first["parentID"], first["memory"], first["current"]) == ("first", None, "held", True)
    assert removed.id in first["contexts"] and first["memoryBytes"] > 0 and first["diskBytes"] > 0
    box.remove_code_context(removed)
    made = box.create_code_context()
    assert value(box, "x += 1; del big; open('kept.txt', 'w').write('second'); x") == "42"
    box.files.write("new.txt", "new")
    running = box.commands.run("sleep 1000", background=True)
    second = take(api, box, "second")
    assert second["parentID"] == first["checkpointID"]
    for _ in range(2):  # it stays, and is gone back to again
        reply = back(api, box, first)
        assert (reply["sandboxID"], reply["leftBehind"], reply["notCopied"]) == (box.sandbox_id, ["processes"], [])
        assert reply["envdAccessToken"] == box._envd_access_token
        assert value(box, "x, int(big.sum())") == "(41, 499999500000)"
        assert box.files.read("kept.txt") == "first"
        assert not box.files.exists("new.txt")
        assert box.run_code("y", context=removed).text == "1"
        assert made.id not in {context.id for context in box.list_code_contexts()}
        assert running.pid not in {process.pid for process in box.commands.list()}
        assert value(box, "x = 7; open('kept.txt', 'w').write('other'); x") == "7"
    back(api, box, second)
    assert value(box, "x, 'big' in globals()") == "(42, False)"
    assert (box.files.read("kept.txt"), box.files.read("new.txt")) == ("second", "new")
    third = take(api, box, "third")
    back(api, box, first)
    fourth = take(api, box, "fourth")
    nodes = {node["label"]: node for node in tree(api, box)}
    ids = {label: node["checkpointID"] for label, node in nodes.items()}
    assert {label: node["parentID"] for label, node in nodes.items()} == {
        "first": None,
        "second": ids["first"],
        "third": ids["second"],
        "fourth": ids["first"],
    }
    assert [label for label, node in nodes.items() if node["current"]] == ["fourth"]
    assert {node["memory"] for node in nodes.values()} == {"held"}
    path = f"/sandboxes/{box.sandbox_id}/checkpoints"
    assert api.delete(f"{path}/{ids['second']}").status_code == 204
    assert {node["label"]: node["parentID"] for node in tree(api, box)}["third"] == ids["first"]
    assert api.delete(f"{path}/{ids['second']}").status_code == 404
    back(api, box, third)
    assert value(box, "x") == "42"
    assert third["checkpointID"] != fourth["checkpointID"]


LOOP = """
import numpy as np, os, random, ssl, uuid
told = []
os.register_at_fork(after_in_child=lambda: told.append(len(told)))
x = 41; big = np.arange(1_000_000)
open('kept.txt', 'w').write('first')
"""
DRAW = "x += 1; [random.random(), float(np.random.random()), ssl.RAND_bytes(8).hex(), uuid.uuid4().hex], told, x"


def test_who_goes_back_again_and_again_finds_the_room_made_and_is_somebody_else_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    server = begun(data_dir, monkeypatch, LIMITS)
    box, other = Sandbox.create(timeout=300), Sandbox.create(timeout=300)
    assert box.run_code(LOOP).error is None

    def rooms() -> list[tuple[str, int]]:
        """The images of those that it has: with the number of the rollback, and one that no other has."""
        with os.scandir(data_dir / "sandboxes") as found:
            mine = [one for one in found if one.name.startswith(box.sandbox_id)]
        return sorted((one.name.removeprefix(box.sandbox_id).removesuffix(".img"), one.inode()) for one in mine)

    with httpx.Client(base_url=server.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as api:
        checkpoint = take(api, box)
        drawn: list[str] = []
        for turn in range(1, 6):
            *_, ready = rooms()
            reply = back(api, box, checkpoint)
            assert (reply["leftBehind"], reply["notCopied"]) == (["processes"], [])
            draws, told, x = eval(value(box, DRAW))
            assert (told, x) == ([0], 42)
            drawn += draws
            assert box.files.read("kept.txt") == "first"
            box.files.write("kept.txt", f"turn {turn}")
            assert "root" in box.commands.run("id; hostname; env", user="root").stdout
            # The one before has gone, and the next one is there.
            until(lambda turn=turn: [number for number, _ in rooms()] == [f"-{turn}", f"-{turn + 1}"])  # type: ignore[misc]
            assert (rooms()[0] == ready) is (turn > 1)
        assert len(set(drawn)) == len(drawn) == 20
        server.until(lambda: len(rooms()) == 1)  # it is wanted no more
        back(api, box, checkpoint)
        until(lambda: [number for number, _ in rooms()] == ["-7", "-8"])
        box.kill()
        assert rooms() == []
        box = other
        checkpoint = take(api, box)
        back(api, box, checkpoint)
        until(lambda: [number for number, _ in rooms()] == ["-1", "-2"])
        server.kill()
    server = begun(data_dir, monkeypatch, LIMITS)
    assert len(rooms()) == 1
    assert value(Sandbox.connect(box.sandbox_id), "1") == "1"
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING


def test_forks_of_a_checkpoint_many_at_once(box: Sandbox, api: httpx.Client) -> None:
    checkpoint = take(api, box)
    assert value(box, "x = 1; del big; open('kept.txt', 'w').write('gone on'); x") == "1"
    body = {"checkpointID": checkpoint["checkpointID"], "count": 8, "timeout": 120}
    replies: list[httpx.Response] = []

    def fork() -> None:
        replies.append(api.post(f"/sandboxes/{box.sandbox_id}/fork", json=body))

    threads = [threading.Thread(target=fork) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [one["sandbox"]["sandboxID"] for reply in replies for one in reply.json() if "sandbox" in one]
    assert len(set(made)) == 64
    for id in made[::21]:
        fork_ = Sandbox.connect(id)
        assert value(fork_, "x, int(big.sum()), open('kept.txt').read()") == "(41, 499999500000, 'first')"
    for id in made:
        assert api.delete(f"/sandboxes/{id}").status_code == 204
    assert value(box, "x") == "1"
    back(api, box, checkpoint)
    assert value(box, "x") == "41"


def test_a_cell_that_runs_is_interrupted_if_it_is_to_be_now(box: Sandbox, api: httpx.Client) -> None:
    checkpoint = take(api, box)
    busy = "import time\nx = 5\nopen('runs', 'w').close()\nwhile True: time.sleep(0.01)"
    for verb in ("checkpoints", "fork", "rollback"):
        ended: list[Any] = []
        cell = threading.Thread(target=lambda found=ended: found.append(caught(box, busy)))
        cell.start()
        until(lambda: box.files.exists("runs"))
        box.files.remove("runs")
        body = {"checkpointID": checkpoint["checkpointID"]} if verb == "rollback" else {}
        reply = api.post(f"/sandboxes/{box.sandbox_id}/{verb}", json=body, params={"when": "now"})
        assert reply.status_code in (200, 201), reply.text
        cell.join()
        if verb == "rollback":
            assert isinstance(ended[0], Exception)  # with the room that it ran in
            assert value(box, "x") == "41"
        else:
            assert ended[0].error.name == "KeyboardInterrupt"
            assert value(box, "x") == "5"
        if verb == "fork":
            assert reply.json()[0]["sandbox"]["notCopied"] == []
            api.delete(f"/sandboxes/{reply.json()[0]['sandbox']['sandboxID']}")
    refused = api.post(f"/sandboxes/{box.sandbox_id}/checkpoints", params={"when": "later"})
    assert (refused.status_code, refused.json()["message"]) == (400, "when: 'now' is expected, not 'later'.")


def test_a_cell_that_does_not_end_is_told(box: Sandbox, api: httpx.Client) -> None:
    checkpoint = take(api, box)
    cell = threading.Thread(target=caught, args=(box, "import time; open('runs', 'w').close(); time.sleep(120)"))
    cell.start()
    until(lambda: box.files.exists("runs"))
    before = {node["checkpointID"] for node in tree(api, box)}
    taken = api.post(f"/sandboxes/{box.sandbox_id}/checkpoints", json={})
    assert (taken.status_code, taken.json()["code"]) == (409, 409)
    assert "when=now" in taken.json()["message"]
    assert {node["checkpointID"] for node in tree(api, box)} == before
    back(api, box, checkpoint, when="now")
    cell.join()


def test_threads_and_processes_are_told_and_what_is_paused_has_files_alone(box: Sandbox, api: httpx.Client) -> None:
    code = "import threading, time; t = threading.Thread(target=time.sleep, args=(300,), daemon=True); t.start()"
    assert box.run_code(code).error is None
    with_thread = take(api, box)
    assert with_thread["leftBehind"] == ["processes", "threads"]
    assert with_thread["memory"] == "held"
    assert back(api, box, with_thread)["leftBehind"] == ["processes", "threads"]
    assert value(box, "x, threading.active_count()") == "(41, 1)"
    assert api.post(f"/sandboxes/{box.sandbox_id}/pause").status_code == 204
    files = take(api, box)
    assert files["memory"].startswith("dropped: ")
    assert "memory" in files["leftBehind"]
    reply = back(api, box, files)  # it runs again
    assert "memory" in reply["leftBehind"]
    assert len(reply["notCopied"]) >= 1
    assert box.files.read("kept.txt") == "first"
    error = box.run_code("x").error
    assert error is not None and error.name == "NameError"
    back(api, box, with_thread)
    assert value(box, "x") == "41"


def test_requests_that_are_refused(box: Sandbox, api: httpx.Client) -> None:
    path = f"/sandboxes/{box.sandbox_id}"
    assert api.post(f"{path}/rollback", json={}).status_code == 400
    assert api.post(f"{path}/rollback", json={"checkpointID": "c0"}).json() == {
        "code": 404,
        "message": f"Sandbox {box.sandbox_id} has no checkpoint c0",
    }
    assert api.post(f"{path}/fork", json={"checkpointID": "c0"}).status_code == 404
    assert api.post(f"{path}/checkpoints", json={"label": "x" * 201}).status_code == 400
    assert api.get("/sandboxes/i0000000000000000000/checkpoints").status_code == 404
    assert api.post("/sandboxes/i0000000000000000000/checkpoints").status_code == 404


def test_a_program_that_used_the_whole_memory_is_gone_back_from(box: Sandbox, api: httpx.Client) -> None:
    checkpoint = take(api, box)
    caught(box, "y = bytearray(900 << 20)")
    reply = back(api, box, checkpoint)
    assert reply["notCopied"] == []
    assert value(box, "x, int(big.sum())") == "(41, 499999500000)"


def test_the_tracer_is_killed_and_the_server_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = tmp_path / "data"
    server = begun(data_dir, monkeypatch, LIMITS)
    box = Sandbox.create(timeout=300)
    headers = {"x-api-key": "any"}
    assert box.run_code(STATE).error is None
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as api:
        first = take(api, box)
        tracer, before = held_of(server)
        assert before
        os.kill(tracer, signal.SIGKILL)
        until(lambda: not before & shadows())
        (node,) = tree(api, box)
        assert node["memory"] == f"dropped: {LOST}"
        assert value(box, "x += 1; open('kept.txt', 'w').write('later'); x") == "42"  # the original lives on
        lost = take(api, box)
        assert lost["memory"].startswith("dropped: ")
        reply = back(api, box, first)
        assert "memory" in reply["leftBehind"]
        assert box.files.read("kept.txt") == "first"
        assert value(box, "x = 43; x") == "43"
        third = take(api, box, "third")
        assert third["memory"] == "held"

        def turn() -> None:
            try:
                while True:
                    api.post(f"/sandboxes/{box.sandbox_id}/rollback", json={"checkpointID": third["checkpointID"]})
                    api.post(f"/sandboxes/{box.sandbox_id}/checkpoints", json={})
            except httpx.HTTPError:
                return

        threads = [threading.Thread(target=turn) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: len(tree(api, box)) > 5)
        _, held = held_of(server)
        server.kill()
        for thread in threads:
            thread.join()
    server.until(lambda: not held & shadows())
    server = begun(data_dir, monkeypatch, LIMITS)
    box = Sandbox.connect(box.sandbox_id)
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as api:
        assert value(box, "x") == "43"  # whichever of its rooms is in the record has lived on
        nodes = tree(api, box)
        assert {node["memory"] for node in nodes if node["contexts"]} == {f"dropped: {LOST}"}
        assert third["checkpointID"] in {node["checkpointID"] for node in nodes}
        assert len(list((data_dir / "sandboxes").glob("*.img"))) == 1
        assert len(list((data_dir / "snapshots").glob("*.img"))) == len(nodes)
        reply = back(api, box, first)
        assert "memory" in reply["leftBehind"]
        assert box.files.read("kept.txt") == "first"
        assert value(box, "x = 1; x") == "1"
        fresh = take(api, box)
        assert fresh["memory"] == "held"
        back(api, box, fresh)
        assert value(box, "x") == "1"
        box.kill()
    assert list((data_dir / "snapshots").iterdir()) == list((data_dir / "sandboxes").iterdir()) == []
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING


RANDOM = "import hashlib, os; heap = os.urandom(50 << 20); hashlib.sha256(heap).hexdigest()"


def test_memory_goes_to_disk_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = tmp_path / "data"
    bounds = "checkpoints_memory_mb = 50\ncheckpoints_disk_mb = 130\n"
    server = begun(data_dir, monkeypatch, LIMITS + bounds)
    box = Sandbox.create(timeout=300)
    with httpx.Client(base_url=server.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as api:

        def memory() -> list[str]:
            return [node["memory"] for node in tree(api, box)]

        sums, taken = [], []
        for _ in range(3):
            sums.append(value(box, RANDOM))
            taken.append(take(api, box))
        assert value(box, "heap = b''; 1") == "1"
        until(lambda: memory() == ["on disk", "on disk", "held"])  # what the sandbox does not share any more is counted
        on_disk = tree(api, box)[0]
        assert on_disk["memoryBytes"] == 0 and on_disk["diskBytes"] > 50 << 20
        reply = back(api, box, taken[0])
        assert (reply["notCopied"], reply["leftBehind"]) == ([], ["processes"])
        assert value(box, "hashlib.sha256(heap).hexdigest()") == sums[0]
        assert memory()[0] == "held"
        until(lambda: memory().count("on disk") == 2)
        (fork,) = api.post(f"/sandboxes/{box.sandbox_id}/fork", json={"checkpointID": taken[1]["checkpointID"]}).json()
        other = Sandbox.connect(fork["sandbox"]["sandboxID"])
        assert value(other, "hashlib.sha256(heap).hexdigest()") == sums[1]
        other.kill()
        assert value(box, RANDOM) not in sums
        take(api, box)
        until(lambda: f"dropped: {DISK_FULL}" in memory() and memory().count("on disk") == 2)
        box.kill()
        assert list((data_dir / "spills").iterdir()) == []
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING


def test_what_is_paused_for_long_goes_to_disk_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = tmp_path / "data"
    settings = LIMITS + "sandbox_pause_spill_s = 1\n"
    server = begun(data_dir, monkeypatch, settings)
    box, other, third = (Sandbox.create(timeout=300) for _ in range(3))
    with httpx.Client(base_url=server.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as api:

        def mode(of: Sandbox) -> str:
            return str(api.get(f"/sandboxes/{of.sandbox_id}").raise_for_status().json().get("pauseMode"))

        assert mode(box) == "None"
        before = value(box, RANDOM)
        made = box.create_code_context(cwd="/tmp")
        assert box.run_code("y = 1", context=made).error is None
        box.files.write("kept.txt", "kept")
        assert value(other, "x = 1; x") == value(third, "x = 1; x") == "1"
        other.commands.run("sleep 1000", background=True)
        for one in (box, other, third):
            one.pause()
        assert mode(box) == "full"
        until(lambda: mode(box) == mode(third) == "disk")
        for _ in range(2):
            Sandbox.connect(box.sandbox_id, timeout=300)
            assert mode(box) == "None"
            assert value(box, "hashlib.sha256(heap).hexdigest()") == before
            assert box.run_code("y", context=made).text == "1"
            assert box.files.read("kept.txt") == "kept"
            checkpoint = take(api, box)
            assert checkpoint["memory"] == "held"
            box.pause()
            until(lambda: mode(box) == "disk")
        assert mode(other) == "full"  # something else runs in it
        back(api, box, checkpoint)
        assert value(box, "hashlib.sha256(heap).hexdigest()") == before
        third = Sandbox.connect(third.sandbox_id)
        assert value(third, "x") == "1"
        third.pause()
        until(lambda: mode(third) == "disk")
        box.kill()
        assert server.stop() == 0
    server = begun(data_dir, monkeypatch, settings)
    with httpx.Client(base_url=server.url, headers={"x-api-key": "any"}, trust_env=False, timeout=60) as api:
        assert api.get(f"/sandboxes/{third.sandbox_id}").json()["pauseMode"] == "filesystem"
    for id in (third.sandbox_id, other.sandbox_id):
        Sandbox.connect(id).kill()
    assert server.stop() == 0
    assert Remains.of(data_dir) == NOTHING


def caught(box: Sandbox, code: str) -> Any:
    """What a cell gives, or what prevented that."""
    try:
        return box.run_code(code)
    except Exception as error:
        return error


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def shadows() -> set[int]:
    return {pid for pid in processes() if field(pid, "Name") == "roost-shadow"}


def held_of(server: Server) -> tuple[int, set[int]]:
    """The tracer of a server, and what it holds."""
    (tracer,) = [
        pid for pid in processes() if field(pid, "Name") == "roost-tracer" and field(pid, "PPid") == str(server.pid)
    ]
    return tracer, {pid for pid in shadows() if field(pid, "TracerPid") == str(tracer)}


def field(pid: int, name: str) -> str:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return text.partition(f"{name}:")[2].partition("\n")[0].strip()
