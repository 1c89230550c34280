"""The life of sandboxes, as the official SDK asks for it."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from e2b import (
    AsyncSandbox,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
)


def until_paused(sandbox: Sandbox) -> None:
    deadline = time.monotonic() + 15
    while sandbox.get_info().state is not SandboxState.PAUSED:
        assert time.monotonic() < deadline, "it was not paused"
        time.sleep(0.05)


def test_a_sandbox_is_made_found_and_killed() -> None:
    sandbox = Sandbox.create(metadata={"who": "me"}, envs={"A": "1"}, timeout=30)
    assert sandbox.is_running()
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.state is SandboxState.RUNNING
    assert info.metadata == {"who": "me"}
    assert info.template_id == "base"
    assert timedelta(0) < info.end_at - datetime.now(UTC) <= timedelta(seconds=30)
    assert sandbox.kill()
    assert not sandbox.is_running()
    assert not sandbox.kill()
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


def test_listings_have_pages_filters_and_an_order() -> None:
    mark = {"mark": f"{uuid4()} a&b=c"}
    made = [Sandbox.create(metadata=mark, timeout=60) for _ in range(3)]
    try:
        made[0].pause()
        newest_first = [sandbox.sandbox_id for sandbox in reversed(made)]
        assert listed(SandboxQuery(metadata=mark)) == newest_first
        assert listed(SandboxQuery(metadata=mark), order="asc") == newest_first[::-1]
        assert listed(SandboxQuery(metadata=mark), limit=1) == newest_first
        assert listed(SandboxQuery(metadata=mark, state=[SandboxState.RUNNING])) == newest_first[:2]
        assert listed(SandboxQuery(metadata=mark, state=[SandboxState.PAUSED])) == newest_first[2:]
        assert listed(SandboxQuery(metadata=mark, template="base")) == newest_first
        assert listed(SandboxQuery(metadata=mark, template="other")) == []
        started = made[1].get_info().started_at
        assert listed(SandboxQuery(metadata=mark, started_after=started)) == newest_first[:2]
        assert listed(SandboxQuery(metadata={**mark, "no": "such"})) == []
    finally:
        for sandbox in made:
            sandbox.kill()


def listed(query: SandboxQuery, **more: object) -> list[str]:
    pages = Sandbox.list(query=query, **more)  # type: ignore[arg-type]
    found = []
    while pages.has_next:
        found += [info.sandbox_id for info in pages.next_items()]
    return found


def test_a_paused_sandbox_keeps_its_memory_and_a_rebooted_one_its_files(sandbox: Sandbox) -> None:
    run(
        sandbox,
        "echo kept > /kept; nohup sleep 1000 >/dev/null 2>&1 & echo $! > /pid; cat /proc/sys/kernel/random/boot_id",
    )
    boot_id = read(sandbox, "/proc/sys/kernel/random/boot_id")
    assert sandbox.pause()
    assert not sandbox.pause(), "it was paused already"
    assert not sandbox.is_running()
    assert sandbox.connect().is_running()
    assert read(sandbox, "/proc/sys/kernel/random/boot_id") == boot_id
    assert run(sandbox, "kill -0 $(cat /pid) && echo alive") == "alive\n"

    assert sandbox.pause(keep_memory=False)
    assert sandbox.get_info().state is SandboxState.PAUSED
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.sandbox_id == sandbox.sandbox_id
    assert read(sandbox, "/kept") == "kept\n"
    assert read(sandbox, "/proc/sys/kernel/random/boot_id") != boot_id

    assert sandbox.pause()
    sandbox.connect(on_resume="reboot")
    assert read(sandbox, "/kept") == "kept\n"


def test_connecting_extends_the_time_and_never_shortens_it(sandbox: Sandbox) -> None:
    before = sandbox.get_info().end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=5)
    assert sandbox.get_info().end_at == before
    Sandbox.connect(sandbox.sandbox_id, timeout=600)
    assert sandbox.get_info().end_at > before
    sandbox.set_timeout(30)
    assert sandbox.get_info().end_at < before


def test_time_that_is_up_kills_or_pauses() -> None:
    killed = Sandbox.create(timeout=60)
    killed.set_timeout(0)
    wait(lambda: not killed.is_running())
    with pytest.raises(NotFoundException):
        killed.connect()

    paused = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause"})
    run(paused, "echo kept > /kept")
    boot_id = read(paused, "/proc/sys/kernel/random/boot_id")
    paused.set_timeout(0)
    until_paused(paused)
    assert not paused.is_running()
    paused.connect()
    assert read(paused, "/kept") == "kept\n"
    assert read(paused, "/proc/sys/kernel/random/boot_id") == boot_id
    paused.kill()

    files = Sandbox.create(timeout=60, lifecycle={"on_timeout": {"action": "pause", "keep_memory": False}})
    run(files, "echo kept > /kept")
    boot_id = read(files, "/proc/sys/kernel/random/boot_id")
    files.set_timeout(0)
    until_paused(files)
    files.connect()
    assert read(files, "/kept") == "kept\n"
    assert read(files, "/proc/sys/kernel/random/boot_id") != boot_id
    files.kill()


def test_traffic_wakes_a_sandbox_that_asked_for_it() -> None:
    sandbox = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.set_timeout(0)
    until_paused(sandbox)
    sandbox.set_timeout(60)
    assert read(sandbox, "/proc/self/comm")
    assert sandbox.get_info().state is SandboxState.RUNNING
    sandbox.kill()


def test_an_idempotency_key_makes_one_sandbox() -> None:
    key = str(uuid4())
    first = Sandbox.create(timeout=60, idempotency_key=key)
    second = Sandbox.create(timeout=60, idempotency_key=key)
    assert second.sandbox_id == first.sandbox_id
    with pytest.raises(SandboxException, match="409"):
        Sandbox.create(timeout=61, idempotency_key=key)
    first.kill()
    with pytest.raises(SandboxException, match="ended"):
        Sandbox.create(timeout=60, idempotency_key=key)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(SandboxException, match=r"404: template 'no-such' not found"):
        Sandbox.create("no-such")
    with pytest.raises(SandboxException, match="400: timeout"):
        Sandbox.create(timeout=10**9)
    with pytest.raises(SandboxException, match="400: envVars"):
        Sandbox.create(envs={"A=B": "x"})
    with pytest.raises(SandboxException, match="400: iam"):
        Sandbox.create(iam={"tokens": {"aws": {"audience": "a", "token_type": "JWT-SVID"}}})


def test_links_to_files_are_signed(sandbox: Sandbox) -> None:
    run(sandbox, "echo signed > /tmp/file")
    link = sandbox.download_url("/tmp/file")
    assert fetch(link) == b"signed\n"
    assert fetch(sandbox.download_url("/tmp/file", "user", use_signature_expiration=60)) == b"signed\n"
    for wrong in (
        sandbox.download_url("/tmp/file", use_signature_expiration=-60),
        link.replace("tmp", "etc"),
        link + "x",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(wrong)
        assert refused.value.code == 401


def test_metrics_and_network(sandbox: Sandbox) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    wait(lambda: bool(sandbox.get_metrics(start=began)))
    [metric, *_] = sandbox.get_metrics()
    assert metric.cpu_count == 2
    assert 0 < metric.mem_used < metric.mem_total
    assert 0 < metric.disk_used < metric.disk_total
    assert sandbox.get_metrics(start=began - timedelta(hours=2), end=began - timedelta(hours=1)) == []
    sandbox.update_network({"deny_out": ["8.8.8.8"]})
    info = sandbox.get_info()
    assert info.network is not None
    assert info.network["deny_out"] == ["8.8.8.8"]
    assert info.allow_internet_access is False


async def test_the_async_client_makes_many_at_once(environment: None) -> None:
    made = await asyncio.gather(*(AsyncSandbox.create(timeout=60) for _ in range(8)))
    assert len({sandbox.sandbox_id for sandbox in made}) == 8
    assert all(await asyncio.gather(*(sandbox.is_running() for sandbox in made)))
    assert all(await asyncio.gather(*(sandbox.kill() for sandbox in made)))


def test_other_arguments_that_the_client_refuses_itself() -> None:
    with pytest.raises(InvalidArgumentException):
        Sandbox.create(lifecycle={"on_timeout": {"action": "pause", "keep_memory": False}, "auto_resume": True})


def run(sandbox: Sandbox, command: str) -> str:
    return str(sandbox.commands.run(command, user="root").stdout)


def read(sandbox: Sandbox, path: str) -> str:
    return str(sandbox.files.read(path))


def fetch(link: str) -> bytes:
    with urllib.request.urlopen(link, timeout=10) as reply:
        data: bytes = reply.read()
        return data


def wait(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
