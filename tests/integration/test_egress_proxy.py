"""The package proxy on a unix socket, before fake indexes, with real clients where it matters."""

import asyncio
import base64
import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from io import BytesIO
from pathlib import Path
from unittest.mock import AsyncMock

import httpx
import pytest

from roost.isolation.egress import cache
from roost.isolation.egress.cache import CacheLimits
from roost.isolation.egress.embedded import EmbeddedServer
from roost.isolation.egress.index_proxy import IndexLimits, IndexProxy
from roost.isolation.egress.outward import RoomProxy
from roost.isolation.egress.routes import room_environment
from roost.isolation.egress.rules import Policy, Reach
from roost.isolation.egress.upstreams import Upstreams, read_upstreams, upstream
from roost.tenants.quotas import Quota, Quotas
from tests.support.fake_index import FakeIndex

WHEEL = b"a wheel" * 10_000
SHA = hashlib.sha256(WHEEL).hexdigest()
NAME = "tiny-1-py3-none-any.whl"
FILE = f"/pypi/files/tiny/{NAME}"


@pytest.fixture
def index():
    with FakeIndex() as fake:
        yield fake


class World:
    """A proxy before a fake index, and rooms on it."""

    def __init__(self, place: Path, index: FakeIndex) -> None:
        self.place = place
        self.index = index
        self.limits = IndexLimits(cache=CacheLimits(min_free=0))
        self.credentials = ""
        self.file_hosts: frozenset[str] = frozenset()
        self._stack = contextlib.AsyncExitStack()
        self._proxy: IndexProxy | None = None
        self._rooms = 0

    @property
    def proxy(self) -> IndexProxy:
        if self._proxy is None:
            address = self.index.url.replace("http://", f"http://{self.credentials}")
            pypi = upstream(f"{address}/simple/", file_hosts=self.file_hosts)
            upstreams = Upstreams(pypi=pypi, npm=upstream(f"{address}/npm/"))
            self._proxy = IndexProxy(upstreams, self.place / "cache", self.limits)
            self._stack.push_async_callback(self._proxy.close)
        return self._proxy

    async def room(self, packages=("pypi", "npm"), on_bytes=lambda _: None) -> httpx.AsyncClient:
        self._rooms += 1
        path = self.place / f"{self._rooms}.sock"
        server = EmbeddedServer(self.proxy.room(packages, on_bytes), path)
        await server.start()
        self._stack.push_async_callback(server.close)
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:3128", timeout=30)
        return await self._stack.enter_async_context(client)

    async def close(self) -> None:
        await self._stack.aclose()

    def offer(self, *, sha: str = SHA, content: bytes = WHEEL, link: str = f"/packages/{NAME}") -> None:
        self.index.put("/simple/tiny/", f'<a href="{link}#sha256={sha}">{NAME}</a>', "text/html")
        self.index.put(f"/packages/{NAME}", content)

    def stored(self) -> list[str]:
        return sorted(p.name for p in (self.place / "cache").rglob("*") if p.is_file())


@pytest.fixture
async def world(tmp_path, index):
    made = World(tmp_path, index)
    yield made
    await made.close()


async def test_a_file_is_found_by_the_index_and_fetched_once_for_all_rooms(world):
    world.offer()
    sent: list[int] = []
    one, other = await world.room(on_bytes=sent.append), await world.room()
    page = await one.get("/pypi/simple/Tiny/", headers={"accept": "text/html"})
    assert f'href="{FILE}#sha256={SHA}"' in page.text
    for room in (one, other, one):
        answer = await room.get(FILE)
        assert (answer.status_code, answer.content) == (200, WHEEL)
    assert world.index.count(f"/packages/{NAME}") == 1
    assert world.index.count("/simple/tiny/") == 1
    assert world.stored() == [SHA]
    assert sum(sent) == len(page.content) + 2 * len(WHEEL)


async def test_the_page_is_html_or_json_as_asked_for(world):
    world.offer()
    room = await world.room()
    asked = {"accept": "application/vnd.pypi.simple.v1+json, text/html;q=0.1"}
    page = await room.get("/pypi/simple/tiny/", headers=asked)
    assert page.headers["content-type"] == "application/vnd.pypi.simple.v1+json"
    assert page.json()["files"][0]["hashes"] == {"sha256": SHA}
    assert (await room.head("/pypi/simple/tiny/")).headers["content-type"].startswith("text/html")


async def test_a_file_that_is_not_what_the_index_says_reaches_no_room(world):
    world.offer(content=b"poison" * 10_000)
    room, other = await world.room(), await world.room()
    answer = await room.get(FILE)
    assert answer.status_code == 502
    assert SHA in answer.text
    assert b"poison" not in answer.content
    assert world.stored() == []
    world.offer()
    assert (await other.get(FILE)).content == WHEEL


async def test_a_cached_file_that_was_changed_on_the_disk_is_fetched_again(world):
    world.offer()
    room = await world.room()
    await room.get(FILE)
    stored = world.place / "cache/sha256" / SHA[:2] / SHA
    stored.chmod(0o600)
    stored.write_bytes(b"poison")
    answer = await room.get(FILE)
    assert (answer.status_code, answer.content) == (200, WHEEL)
    assert world.index.count(f"/packages/{NAME}") == 2


async def test_requests_for_one_file_share_a_download(world):
    world.offer()
    hold = threading.Event()
    world.index.replies[f"/packages/{NAME}"].hold = hold
    rooms = [await world.room() for _ in range(4)]
    await rooms[0].get("/pypi/simple/tiny/")
    waiting = [asyncio.create_task(room.get(FILE)) for room in rooms]
    while not world.index.count(f"/packages/{NAME}"):
        await asyncio.sleep(0.01)
    # A download in progress has no name in the cache.
    assert SHA not in world.stored()
    hold.set()
    assert [answer.content for answer in await asyncio.gather(*waiting)] == [WHEEL] * 4
    assert world.index.count(f"/packages/{NAME}") == 1


async def test_a_download_ends_when_the_last_room_has_gone(world):
    world.offer()
    hold = threading.Event()
    world.index.replies[f"/packages/{NAME}"].hold = hold
    room = await world.room()
    asked = asyncio.create_task(room.get(FILE))
    while not world.index.count(f"/packages/{NAME}"):
        await asyncio.sleep(0.01)
    asked.cancel()
    partial = world.place / "cache/partial"
    async with asyncio.timeout(10):
        while any(partial.iterdir()) or not asked.done():
            await asyncio.sleep(0.01)
    hold.set()
    assert world.stored() == []
    assert (await (await world.room()).get(FILE)).content == WHEEL


async def test_a_broken_download_leaves_nothing(world):
    world.offer()
    world.index.replies[f"/packages/{NAME}"].cut = True
    room = await world.room()
    answer = await room.get(FILE)
    assert answer.status_code == 502
    assert world.stored() == []


async def test_redirects_stay_with_the_index(world, index):
    with FakeIndex() as elsewhere:
        elsewhere.put("/secret", WHEEL)
        world.offer()
        index.put(f"/packages/{NAME}", b"", status=302, headers={"location": "/moved"})
        index.put("/moved", WHEEL)
        room = await world.room()
        assert (await room.get(FILE)).content == WHEEL
        world.offer(sha=hashlib.sha256(b"other").hexdigest(), link=f"/out/{NAME}")
        index.put(f"/out/{NAME}", b"", status=302, headers={"location": f"{elsewhere.url}/secret"})
        fresh = World(world.place / "fresh", index)
        (world.place / "fresh").mkdir()
        try:
            answer = await (await fresh.room()).get(FILE)
            assert answer.status_code == 502
            assert "none of its own" in answer.text
            index.put(f"/out/{NAME}", b"", status=302, headers={"location": f"/out/{NAME}"})
            assert "without end" in (await (await fresh.room()).get(FILE)).text
        finally:
            await fresh.close()
        assert elsewhere.requests == []


async def test_links_to_other_hosts_are_not_offered(world, index):
    with FakeIndex() as elsewhere:
        world.offer(link=f"{elsewhere.url}/{NAME}")
        room = await world.room()
        assert NAME not in (await room.get("/pypi/simple/tiny/")).text
        assert (await room.get(FILE)).status_code == 404
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/pypi/simple/../../secret",
        "/pypi/simple/..%2f..%2fsecret/",
        "/pypi/files/tiny/..%2f..%2fsecret",
        "/secret",
        "/npm/-/v1/search?text=x",
        "http://127.0.0.1:{port}/secret",
        "http://127.0.0.1:{port}/pypi/files/../secret",
    ],
)
async def test_nothing_but_packages_is_reachable(world, index, target):
    index.put("/secret", "secret")
    await world.room()
    port = index.url.rpartition(":")[2]
    reader, writer = await asyncio.open_unix_connection(str(world.place / "1.sock"))
    writer.write(
        f"GET {target.format(port=port)} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    assert answer.split()[1] in (b"404", b"400")
    assert b"secret" not in answer.partition(b"\r\n\r\n")[2]
    assert index.requests == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed_at_the_index(world, method):
    room = await world.room()
    assert (await room.request(method, "/pypi/simple/tiny/", content=b"x")).status_code == 405
    assert world.index.requests == []


async def test_a_room_has_the_indexes_of_its_function_only(world):
    world.offer()
    room = await world.room(packages=("npm",))
    assert (await room.get("/pypi/simple/tiny/")).status_code == 404
    assert world.index.requests == []


async def test_credentials_go_to_the_index_and_no_further(world, index):
    with FakeIndex() as elsewhere:
        world.credentials = "user:password@"
        world.offer()
        room = await world.room()
        answer = await room.get(FILE, headers={"authorization": "Basic cm9vbTpyb29t", "cookie": "a=b"})
        assert answer.content == WHEEL
        expected = "Basic " + base64.b64encode(b"user:password").decode()
        assert [headers["authorization"] for headers in index.headers] == [expected] * 2
        assert not any("cookie" in headers for headers in index.headers)
        assert "password" not in (await room.get("/pypi/simple/tiny/")).text
        assert elsewhere.requests == []


async def test_a_rooms_budget_is_its_own(world):
    world.limits = IndexLimits(cache=CacheLimits(min_free=0), room_bytes=len(WHEEL) + 100)
    world.offer()
    room, other = await world.room(), await world.room()
    assert (await room.get(FILE)).status_code == 200
    refused = await room.get(FILE)
    assert refused.status_code == 429
    assert "used up" in refused.text
    assert (await other.get(FILE)).status_code == 200


async def test_an_account_that_has_used_up_its_day_is_sent_nothing_more(world):
    def on_bytes(count: int) -> None:
        quotas.egress("acme", count)

    quotas = Quotas(
        Quota(egress_mb_per_day=1),
        AsyncMock(),
        clock=lambda: 1000.0,
        monotonic=lambda: 0.0,
        holdings=lambda account: (0, 0, 0),
    )
    world.offer()
    room, same, other = await world.room(on_bytes=on_bytes), await world.room(on_bytes=on_bytes), await world.room()
    assert (await room.get(FILE)).status_code == 200
    quotas.egress("acme", 1 << 20)
    for refused in (await room.get(FILE), await same.get("/pypi/simple/tiny/")):
        assert refused.status_code == 429
        assert "1 MB a day" in refused.text
    assert quotas.egress_of("acme") == len(WHEEL) + (1 << 20)
    assert (await other.get(FILE)).status_code == 200


async def test_the_cache_is_bounded_and_the_least_recently_used_go_first(world):
    world.limits = IndexLimits(cache=CacheLimits(total=250_000, min_free=0))
    contents = {f"f{number}-1.whl": bytes([number]) * 100_000 for number in range(3)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    world.index.put(
        "/simple/p/", "".join(f'<a href="/f/{n}#sha256={d}">x</a>' for n, d in digests.items()), "text/html"
    )
    for name, content in contents.items():
        world.index.put(f"/f/{name}", content)
    room = await world.room()
    for name in ("f0-1.whl", "f1-1.whl", "f0-1.whl", "f2-1.whl"):
        assert (await room.get(f"/pypi/files/p/{name}")).content == contents[name]
    assert world.stored() == sorted([digests["f0-1.whl"], digests["f2-1.whl"]])


async def test_a_file_over_the_limit_and_a_full_disk_are_told(world, monkeypatch):
    world.limits = IndexLimits(cache=CacheLimits(file=1000, min_free=0))
    world.offer()
    room = await world.room()
    assert (await room.get(FILE)).status_code == 413

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    small = b"small"
    world.index.put(
        "/simple/small/", f'<a href="/s-1.whl#sha256={hashlib.sha256(small).hexdigest()}">x</a>', "text/html"
    )
    world.index.put("/s-1.whl", small)
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "write", full)
        answer = await room.get("/pypi/files/small/s-1.whl")
    assert answer.status_code == 507
    assert "full" in answer.text
    assert (await room.get("/pypi/files/small/s-1.whl")).content == small


async def test_downloads_leave_the_disk_some_room(world, monkeypatch):
    world.limits = IndexLimits(cache=CacheLimits(min_free=10))
    world.offer()
    room = await world.room()
    usage = shutil.disk_usage(world.place)
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=5))
        assert (await room.get(FILE)).status_code == 507
    assert world.stored() == []
    assert (await room.get(FILE)).status_code == 200


async def test_a_file_without_a_digest_is_passed_on_but_not_kept(world):
    world.index.put("/simple/old/", '<a href="/old-1.tar.gz">x</a>', "text/html")
    world.index.put("/old-1.tar.gz", b"old")
    room = await world.room()
    for _ in range(2):
        assert (await room.get("/pypi/files/old/old-1.tar.gz")).content == b"old"
    assert world.index.count("/old-1.tar.gz") == 2
    assert world.stored() == []


@pytest.mark.parametrize(("status", "seen"), [(404, 404), (401, 502), (500, 502), (206, 502)])
async def test_the_indexs_failures_are_told(world, status, seen):
    world.index.put("/simple/tiny/", b"", status=status)
    room = await world.room()
    assert (await room.get("/pypi/simple/tiny/")).status_code == seen
    world.offer()
    assert (await room.get("/pypi/simple/tiny/")).status_code == 200


async def test_what_a_killed_server_left_of_downloads_is_removed(world):
    left = world.place / "cache/partial/left"
    left.parent.mkdir(parents=True)
    left.touch()
    world.offer()
    assert (await (await world.room()).get(FILE)).content == WHEEL
    assert not left.exists()


@contextlib.asynccontextmanager
async def forwarder(socket_path: Path):
    """What the guest does in a room: a loopback port whose bytes go to the room's socket."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(str(socket_path))

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(1 << 16):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(copy(reader, upstream_writer), copy(upstream_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def run(*argv: str, env: dict[str, str], cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize(
    "made", [lambda path: EmbeddedServer(None, path), lambda path: RoomProxy(path, Policy(), Reach(), AsyncMock())]
)
async def test_a_server_that_was_broken_off_as_it_started_leaves_no_socket(made, tmp_path):
    path = tmp_path / "index.sock"
    before = os.listdir("/proc/self/fd")
    starting = asyncio.ensure_future(made(path).start())
    await asyncio.sleep(0)
    assert path.exists()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.sleep(0)
    assert not path.exists()
    assert os.listdir("/proc/self/fd") == before


async def test_pip_downloads_from_this_machines_own_index(tmp_path):
    proxy = IndexProxy(read_upstreams(os.environ), tmp_path / "cache")
    server = EmbeddedServer(proxy.room(("pypi",)), tmp_path / "index.sock")
    await server.start()
    try:
        async with forwarder(tmp_path / "index.sock") as port:
            variables = {
                name: value.replace("127.0.0.1:3128", f"127.0.0.1:{port}")
                for name, value in room_environment(("pypi",)).items()
            }
            env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", **variables}
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-d", "got", "six==1.17.0"]
            await run(*pip, env=env, cwd=tmp_path)
    finally:
        await server.close()
        await proxy.close()
    wheel = next((tmp_path / "got").iterdir())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert wheel.name == "six-1.17.0-py2.py3-none-any.whl"
    assert (tmp_path / "cache/sha256" / digest[:2] / digest).exists()


def npm_package(name: str) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        content = json.dumps({"name": name, "version": "1.0.0"}).encode()
        member = tarfile.TarInfo("package/package.json")
        member.size = len(content)
        archive.addfile(member, BytesIO(content))
    return out.getvalue()


def offer_npm(index: FakeIndex, name: str, content: bytes, *, honest: bool = True) -> None:
    file = f"{name.rpartition('/')[2]}-1.0.0.tgz"
    digest = hashlib.sha512(content if honest else b"something else").digest()
    dist = {
        "tarball": f"{index.url}/npm/{name}/-/{file}",
        "integrity": "sha512-" + base64.b64encode(digest).decode(),
    }
    version = {"name": name, "version": "1.0.0", "dist": dist}
    document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    index.put(f"/npm/{name}", json.dumps(document), "application/json")
    index.put(f"/npm/{name.replace('/', '%2F')}", json.dumps(document), "application/json")
    index.put(f"/npm/{name}/-/{file}", content)


@pytest.mark.parametrize("name", ["tiny", "@scope/tiny"])
async def test_npm_packages_with_and_without_a_scope(world, name):
    content = npm_package(name)
    offer_npm(world.index, name, content)
    room = await world.room()
    document = (await room.get(f"/npm/{name.replace('/', '%2f')}")).json()
    tarball = document["versions"]["1.0.0"]["dist"]["tarball"]
    assert tarball == f"http://127.0.0.1:3128/npm/{name}/-/tiny-1.0.0.tgz"
    for _ in range(2):
        assert (await room.get(tarball)).content == content
    assert world.index.count(f"/npm/{name}/-/tiny-1.0.0.tgz") == 1
    assert world.stored() == [hashlib.sha512(content).hexdigest()]


async def test_a_poisoned_tarball_is_refused(world):
    offer_npm(world.index, "tiny", npm_package("tiny"), honest=False)
    room = await world.room()
    assert (await room.get("/npm/tiny/-/tiny-1.0.0.tgz")).status_code == 502
    assert world.stored() == []
