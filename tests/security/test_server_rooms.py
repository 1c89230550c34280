"""Hostile code in real rooms of a real server: what it leaves on its disk, and what it holds that others share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server, running

RUN = """
import contextlib, io, os
def handler(event, context):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(event.decode(), {"os": os})
    return out.getvalue()
"""
SESSIONS = {
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": json.dumps(
        {"affinityHeaderFieldName": "x-talk", "sessionTTLInSeconds": 600, "sessionIdleTimeoutInSeconds": 600}
    ),
    "instanceIsolationMode": "SESSION_EXCLUSIVE",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("hostile") / "data") as made:
        made.deploy("evil", {"index.py": RUN}, timeout=30)
        made.deploy("victim", {"index.py": RUN}, timeout=30)
        made.deploy("talk", {"index.py": RUN}, timeout=60, **SESSIONS)
        made.deploy("commons", {"index.py": RUN}, timeout=60, **{**SESSIONS, "instanceIsolationMode": "SHARE"})
        yield made


def run(server: Server, source: str, *, function: str = "talk", talk: str = "") -> str:
    reply = server.invoke(function, source, **({"x-talk": talk} if talk else {}))
    assert reply.status_code == 200, reply.text
    assert "x-fc-error-type" not in reply.headers, reply.text
    return str(json.loads(reply.text)) if reply.text.startswith('"') else reply.text


def asleep_and_awake(server: Server, talk: str) -> httpx.Response:
    """A new room over what the old one left."""
    path = f"/2023-03-30/functions/talk/sessions/{talk}"
    with server.client() as client:
        assert client.put(f"{path}/pause?fileSystemOnly=true", json={}).status_code == 200
        return client.put(f"{path}/resume", json={})


def test_files_that_rooms_share_can_not_be_leased(server: Server) -> None:
    """A lease on the guest's files would hold up, for 45 s each, every room that starts afterwards."""
    source = """
import fcntl
refused = 0
for folder, _, names in os.walk("/.roost/bin"):
    for name in names:
        fd = os.open(os.path.join(folder, name), os.O_RDONLY)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except PermissionError:
            refused += 1
        assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC  # the rest of the call works
print("refused", refused)
"""
    said, _, count = run(server, source, function="evil").partition(" ")
    assert said == "refused"
    assert int(count) > 0
    assert run(server, "print('here')", function="victim").strip() == "here"


def test_neighbours_leave_no_counters(server: Server) -> None:
    names = ("diskstats", "interrupts", "softirqs", "partitions")
    said = run(server, f"print([open('/proc/' + n).read() for n in {names!r}])", function="evil")
    assert said.strip() == str([""] * len(names))
    assert all(Path(f"/proc/{name}").read_text() for name in names)  # the host has something to hide


FILL_BLOCKS = """
fd = os.open("/root/big", os.O_WRONLY | os.O_CREAT)
for size in (1 << 20, 1 << 12, 1):
    try:
        end = os.fstat(fd).st_size
        while True:
            os.posix_fallocate(fd, end, size) if size > 1 else os.pwrite(fd, b"x", end)
            end += size
    except OSError as error:
        print(error.errno)
"""
FILL_INODES = """
try:
    for number in range(1 << 20):
        os.mknod(f"/root/{number}")
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("fill", [FILL_BLOCKS, FILL_INODES], ids=["blocks", "inodes"])
def test_a_session_that_filled_its_disk_wakes_again(server: Server, fill: str) -> None:
    """And again, as it comes to nobody's mind to tidy up the first time."""
    talk = "blocks" if fill is FILL_BLOCKS else "inodes"
    assert "28" in run(server, fill, talk=talk)
    for _ in range(2):
        woken = asleep_and_awake(server, talk)
        assert woken.status_code == 200, woken.text
        run(server, fill.replace('f"/root/', 'f"/root/again').replace("/root/big", "/root/again"), talk=talk)
    tidy = "[os.unlink('/root/' + n) for n in os.listdir('/root') if n[0] in 'ab0123456789']"
    assert run(server, f"{tidy}; open('/root/new', 'w').write('x' * 100000); print('ok')", talk=talk).strip() == "ok"


def test_links_where_the_next_room_is_put_together(server: Server) -> None:
    source = """
for name, target in (("etc", "/proc/self/root/code"), ("root", "/.roost"), ("tmp", "/proc/1/root"), ("opt", "/dev")):
    os.rename(f"/{name}", f"/old-{name}")
    os.symlink(target, f"/{name}")
os.rename("/var", "/old-var")
os.mkfifo("/var")
"""
    run(server, source, talk="links")
    assert asleep_and_awake(server, "links").status_code == 200
    said = run(server, "print(os.path.islink('/etc'), os.path.islink('/tmp'), os.listdir('/etc'))", talk="links")
    assert said.startswith("False False")
    assert "hosts" in said
    assert not list((server.data_dir / "code").glob("*/hosts"))


LITTER = r"""
os.chdir("/mnt/session")
for name in (b"\xff\xfe", b"new\nline", b"-rf", b"\x1b[2J", b"x" * 255):
    os.close(os.open(name, os.O_CREAT))
os.mkfifo("pipe")
os.symlink("/etc/passwd", "link")
os.symlink("..", "up")
os.mkdir("shut", 0)
os.chmod("-rf", 0o6755)
os.mkdir("links")
for number in range(100):
    os.link("-rf", f"links/{number}")
os.mkdir("deep")
os.chdir("deep")
for _ in range(1200):
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
print("made")
"""


def test_what_a_room_leaves_in_its_volume_is_deleted(server: Server) -> None:
    """Deep, many, oddly named, special and hard-linked; the server goes on, and nothing of it stays."""
    assert run(server, LITTER, talk="litter").strip() == "made"
    volumes = server.data_dir / "volumes"
    left = volumes / "default" / ".disks" / "sessions" / "d-talk" / "d-default" / "d-litter"
    assert [file.name for file in left.iterdir()] == ["disk.img"]
    assert volumes.stat().st_mode & 0o077 == 0
    with server.client() as client:
        assert client.delete("/2023-03-30/functions/talk/sessions/litter").status_code in (200, 204)
    server.until(lambda: not left.exists())
    server.until(lambda: not list(volumes.glob(".*/*")))
    assert run(server, "print('here')", function="victim").strip() == "here"


def test_what_a_session_leaves_beside_those_of_others_is_deleted(server: Server) -> None:
    """There the host deletes file by file, in a folder that rooms still have."""
    source = LITTER.replace("/mnt/session", "/mnt/sessions/default/litter")
    assert run(server, source, function="commons", talk="litter").strip() == "made"

    def beside() -> list[str]:
        return run(server, "print(*os.listdir('/mnt/sessions/default'))", function="commons", talk="other").split()

    assert sorted(beside()) == ["litter", "other"]
    with server.client() as client:
        assert client.delete("/2023-03-30/functions/commons/sessions/litter").status_code in (200, 204)
    server.until(lambda: beside() == ["other"])
    assert run(server, "print('here')", function="victim").strip() == "here"


@pytest.mark.parametrize(
    "fields", [{"host": "evil.example:8700"}, {"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}]
)
def test_a_web_page_can_not_deploy(server: Server, fields: dict[str, str]) -> None:
    body = {"functionName": "planted", "runtime": "python3.12", "handler": "index.handler", "code": {"zipFile": "UEs="}}
    with server.client() as client:
        reply = client.post("/2023-03-30/functions", json=body, headers=fields)
        assert reply.status_code == 403
        assert client.post("/2023-03-30/functions/victim/invocations", headers=fields).status_code == 403
        assert client.get("/2023-03-30/functions/planted").status_code == 404
