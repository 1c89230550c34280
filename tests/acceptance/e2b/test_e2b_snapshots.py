"""Snapshots and forks, as the official SDK takes them, of rooms with their daemon."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from e2b import Sandbox
from e2b.exceptions import InvalidArgumentException, SandboxException, SandboxNotFoundException

from tests.support.forks import forks_of
from tests.support.server import NOTHING, Remains, Server, running

SNAPSHOTS = "max_snapshots = 6\nsandbox_memory_mb = 256\nsandbox_disk_mb = 256\n"


@pytest.fixture(scope="module")
def roost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("roost") / "data"
    with running(data_dir, config=SNAPSHOTS) as server:
        yield server
    assert Remains.of(data_dir) == NOTHING


@pytest.fixture(autouse=True)
def no_image_is_left(roost: Server, sandbox: Sandbox) -> Iterator[None]:
    """What a test took and made is removed by it; then no image is there but those that `sandbox` stands on."""
    yield
    assert list((roost.data_dir / "snapshots").iterdir()) == []


def test_a_fork_has_the_files_and_goes_its_own_way(sandbox: Sandbox) -> None:
    sandbox.files.write("state.txt", "before")
    sandbox.commands.run("sudo mkdir /srv/deep && echo rooted | sudo tee /srv/deep/file && rm -f .bashrc")
    forks = forks_of(sandbox, 3)
    assert len({fork.sandbox_id for fork in forks} | {sandbox.sandbox_id}) == 4
    for number, fork in enumerate(forks):
        assert fork.is_running()
        assert fork.files.read("state.txt") == "before"
        assert fork.commands.run("cat /srv/deep/file; ls -A").stdout.startswith("rooted\n")
        fork.files.write("state.txt", f"fork {number}")
        assert fork.get_info().metadata == {"of": "test"}
    assert sandbox.files.read("state.txt") == "before"
    sandbox.files.write("state.txt", "after")
    assert [fork.files.read("state.txt") for fork in forks] == ["fork 0", "fork 1", "fork 2"]
    tokens = {box._envd_access_token for box in (sandbox, *forks)}
    assert len(tokens) == 4
    for fork in forks:
        fork.kill()


def test_each_fork_is_a_machine_of_its_own(sandbox: Sandbox) -> None:
    forks = forks_of(sandbox, 2)
    boots = {box.files.read("/proc/sys/kernel/random/boot_id") for box in (sandbox, *forks)}
    assert len(boots) == 3
    dice = {
        box.commands.run("python3 -c 'import random; print(random.random())'; echo $RANDOM").stdout for box in forks
    }
    assert len(dice) == 2
    for fork in forks:
        assert fork.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == fork.sandbox_id
        fork.kill()


def test_the_busy_original_is_not_disturbed(sandbox: Sandbox) -> None:
    writer = sandbox.commands.run("for i in $(seq 1 100000); do echo $i >> log; done; sleep 30", background=True)
    connection = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.run("until test -s log; do sleep 0.01; done")
    forks = forks_of(sandbox, 2)
    for fork in forks:
        lines = fork.files.read("log").split()
        assert lines == [str(number) for number in range(1, len(lines) + 1)]
        assert "seq" not in fork.commands.run("ps ax -o args || true").stdout
        fork.kill()
    connection.send_stdin("still here\n")
    connection.close_stdin()
    assert connection.wait().stdout == "still here\n"
    writer.kill()


def test_forks_of_forks_without_end(sandbox: Sandbox) -> None:
    box, passed = sandbox, []
    for generation in range(20):  # more than a room can stand on images
        box.files.write(f"generation-{generation}", "x" * 1000)
        (box,) = forks_of(box)
        passed.append(box)
    assert len(box.commands.run("ls generation-*").stdout.split()) == 20
    for fork in passed[:-1]:
        fork.kill()
    assert len(box.commands.run("cat generation-*").stdout) == 20_000
    box.kill()


def test_paused_sandboxes_are_forked_as_they_stand(sandbox: Sandbox, roost: Server) -> None:
    sandbox.files.write("kept", "with memory")
    sandbox.pause()
    (fork,) = forks_of(sandbox)
    assert fork.files.read("kept") == "with memory"
    assert not sandbox.is_running()  # as it was
    fork.kill()
    sandbox.connect()
    sandbox.files.write("kept", "files alone")
    sandbox.pause(mode="filesystem")
    (fork,) = forks_of(sandbox)
    assert fork.files.read("kept") == "files alone"
    fork.kill()
    sandbox.connect()
    assert sandbox.files.read("kept") == "files alone"


def test_what_did_not_come_along_is_told(sandbox: Sandbox, roost: Server) -> None:
    with httpx.Client(base_url=roost.url, headers={"x-api-key": "any"}, trust_env=False, timeout=30) as client:
        reply = client.post(f"/sandboxes/{sandbox.sandbox_id}/fork", json={"timeout": 60})
        assert reply.status_code == 201
        assert reply.headers["x-roost-left-behind"] == "memory, processes"
        (made,) = reply.json()
        assert made["sandbox"]["leftBehind"] == ["memory", "processes"]
        client.delete(f"/sandboxes/{made['sandbox']['sandboxID']}")
        sandbox.pause(mode="filesystem")
        taken = client.post(f"/sandboxes/{sandbox.sandbox_id}/snapshots", json={})
        assert (taken.status_code, taken.json()["leftBehind"]) == (201, [])  # it had nothing else
        assert "x-roost-left-behind" not in taken.headers
        assert client.delete(f"/templates/{taken.json()['snapshotID']}").status_code == 204
        for body in ({"count": 0}, {"count": 101}, {"count": "x"}, {"timeout": -1}):
            assert client.post(f"/sandboxes/{sandbox.sandbox_id}/fork", json=body).status_code == 400


def test_snapshots_make_sandboxes_when_the_original_is_gone(roost: Server) -> None:
    box = Sandbox.create(timeout=60, envs={"KIND": "original"})
    box.files.write("data.txt", "kept")
    snapshot = box.create_snapshot()
    box.kill()
    first, second = Sandbox.create(snapshot.snapshot_id, timeout=60), Sandbox.create(snapshot.snapshot_id, timeout=60)
    assert first.files.read("data.txt") == second.files.read("data.txt") == "kept"
    assert first.commands.run("echo $KIND").stdout == "original\n"
    first.files.write("data.txt", "changed")
    assert second.files.read("data.txt") == "kept"
    name = f"sandbox:{snapshot.snapshot_id.partition(':')[0]}"
    counted = f'roost_invocations_total{{account="default",function="{name}"'
    with roost.client() as client:
        assert counted in client.get("/metrics").text
        assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
        assert counted not in client.get("/metrics").text
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    with pytest.raises(SandboxException, match="404"):
        Sandbox.create(snapshot.snapshot_id)
    first.pause(mode="filesystem")  # it outlives its snapshot, also where it needs the image anew
    assert first.connect().files.read("data.txt") == "changed"
    assert len(list((roost.data_dir / "snapshots").iterdir())) == 1
    first.kill()
    second.kill()


def test_names_and_tags(sandbox: Sandbox) -> None:
    name = f"snap-{uuid4().hex[:8]}"
    sandbox.files.write("version", "1")
    first = sandbox.create_snapshot(name=name)
    assert (first.snapshot_id, first.names) == (f"{name}:default", [f"{name}:default"])
    sandbox.files.write("version", "2")
    second = sandbox.create_snapshot(name=f"{name}:v2")
    for of, version in ((name, "1"), (first.snapshot_id, "1"), (second.snapshot_id, "2")):
        box = Sandbox.create(of, timeout=60)
        assert box.files.read("version") == version
        box.kill()
    listed = {snapshot.snapshot_id for snapshot in Sandbox.list_snapshots(name=name).next_items()}
    assert listed == {first.snapshot_id, second.snapshot_id}
    sandbox.files.write("version", "3")
    sandbox.create_snapshot(name=name)  # the name means this one now
    box = Sandbox.create(name, timeout=60)
    assert box.files.read("version") == "3"
    box.kill()
    assert Sandbox.delete_snapshot(f"{name}:v2")
    assert [found.snapshot_id for found in Sandbox.list_snapshots(name=name).next_items()] == [first.snapshot_id]
    assert Sandbox.delete_snapshot(name)
    assert Sandbox.list_snapshots(name=name).next_items() == []
    for wrong in ("Not A Name", "base", "x:", "x:y z"):
        with pytest.raises(SandboxException):
            sandbox.create_snapshot(name=wrong)


def test_pages_and_filters(sandbox: Sandbox) -> None:
    taken = [sandbox.create_snapshot().snapshot_id for _ in range(3)]
    other = Sandbox.create(timeout=60)
    others = other.create_snapshot().snapshot_id
    pages = Sandbox.list_snapshots(limit=2)
    found: list[str] = []
    while pages.has_next:
        page = pages.next_items()
        assert len(page) <= 2
        found += [snapshot.snapshot_id for snapshot in page]
    assert found == [others, *reversed(taken)]
    mine = Sandbox.list_snapshots(sandbox_id=other.sandbox_id).next_items()
    assert [snapshot.snapshot_id for snapshot in mine] == [others]
    other.kill()
    for snapshot in (*taken, others):
        Sandbox.delete_snapshot(snapshot)


def test_quotas(sandbox: Sandbox) -> None:
    taken = [sandbox.create_snapshot().snapshot_id for _ in range(6)]
    with pytest.raises(SandboxException, match="max_snapshots"):
        sandbox.create_snapshot()
    forks_of(sandbox)[0].kill()  # that is none
    for snapshot in taken:
        Sandbox.delete_snapshot(snapshot)


def test_what_is_gone_or_was_never_there() -> None:
    box = Sandbox.create(timeout=60)
    box.kill()
    for take in (box.fork, box.create_snapshot):
        with pytest.raises(SandboxNotFoundException):
            take()
    assert Sandbox.delete_snapshot("nothing") is False
    with pytest.raises(InvalidArgumentException):
        box.fork(count=0)


def test_a_kill_in_the_middle_leaves_nothing(sandbox: Sandbox, roost: Server) -> None:
    box = Sandbox.create(timeout=60)
    box.commands.run("head -c 60M /dev/urandom > big")
    failures: list[Exception] = []

    def take() -> None:
        try:
            for fork in box.fork(count=4, timeout=60):
                if isinstance(fork, Sandbox):
                    fork.kill()
        except SandboxException as error:
            failures.append(error)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    box.kill()
    for thread in threads:
        thread.join()
    assert sandbox.commands.run("echo fine").stdout == "fine\n"
