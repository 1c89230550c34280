"""The audit log on a real disk: restarts, kills, damage, a full disk, old records that go."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.isolation.disks import Disks
from roost.model.audit import AuditEvent
from roost.model.errors import Unavailable
from roost.telemetry.audit import folder as files
from roost.telemetry.audit import log as audit_log
from roost.telemetry.audit.chain import Broken, Verified, decode, verify
from roost.telemetry.audit.log import AuditLog


def event(number: int) -> AuditEvent:
    return AuditEvent(
        action="file.write", account="acme", actor="RK1", target=f"object/{number}", outcome="allowed", detail={}
    )


def made(folder: Path, **settings: int) -> AuditLog:
    return AuditLog(folder, clock=lambda: 1000.0, most_bytes=settings.pop("most_bytes", 1 << 30), **settings)


async def written(folder: Path, numbers: range, **settings: int) -> None:
    """By a server that starts and ends."""
    log = made(folder, **settings)
    await log.start()
    for number in numbers:
        log.record(event(number))
    await log.close()
    await log.close()


def verified(folder: Path) -> Verified:
    key = files.public_key(folder / files.PUBLIC)
    return verify(files.records(folder), files.head_of(folder, key))


def decoded(folder: Path) -> list[dict[str, Any]]:
    found = []
    for _, line in files.records(folder):
        with contextlib.suppress(Broken):
            found.append(decode(line))
    return found


def targets(folder: Path) -> list[str]:
    return [one["target"] for one in decoded(folder) if one["action"] == "file.write"]


def of_action(folder: Path, action: str) -> list[dict[str, Any]]:
    return [one["detail"] for one in decoded(folder) if one["action"] == action]


async def test_one_chain_through_restarts(tmp_path: Path) -> None:
    for start in (0, 10, 20):
        await written(tmp_path / "audit", range(start, start + 10))
    assert targets(tmp_path / "audit") == [f"object/{number}" for number in range(30)]
    assert verified(tmp_path / "audit") == Verified(first=1, last=33, unsigned=0)
    assert of_action(tmp_path / "audit", "audit.start") == [{}, {}, {}]
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "audit").iterdir()}
    assert modes == {0o600}


async def test_what_a_killed_server_left_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    await written(folder, range(10))
    head = (folder / files.HEAD).read_bytes()
    await written(folder, range(10, 13))
    (folder / files.HEAD).write_bytes(head)  # it was killed before it signed, and within a line
    [file] = files.record_files(folder)
    file.write_bytes(file.read_bytes() + b'{"seq":99')
    assert verified(folder).unsigned == 4
    await written(folder, range(13, 15))
    assert targets(folder) == [f"object/{number}" for number in range(15)]
    assert verified(folder).unsigned == 0
    assert of_action(folder, "audit.start")[-1] == {"unsigned": 4}


def cut(folder: Path) -> None:
    [file] = files.record_files(folder)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-3]))


def swap_the_last(folder: Path) -> None:
    [file] = files.record_files(folder)
    file.write_bytes(file.read_bytes().replace(b"object/9", b"object/8"))


def remove(folder: Path) -> None:
    [file] = files.record_files(folder)
    file.unlink()


def spoil_the_last(folder: Path) -> None:
    [file] = files.record_files(folder)
    file.write_bytes(file.read_bytes()[:-20] + b"\n")


@pytest.mark.parametrize("damage", [cut, swap_the_last, remove, spoil_the_last])
async def test_damage_while_the_server_is_down_stays_to_be_seen(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "audit"
    await written(folder, range(10))
    damage(folder)
    with pytest.raises(Broken):
        verified(folder)
    for start in (10, 20):
        await written(folder, range(start, start + 5))
        with pytest.raises(Broken):
            verified(folder)
    assert "object/24" in targets(folder)  # it is gone on with all the same
    assert len([detail for detail in of_action(folder, "audit.start") if "problem" in detail]) == 1


async def test_a_head_that_is_missing_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    await written(folder, range(3))
    (folder / files.HEAD).unlink()
    with pytest.raises(Broken, match="missing"):
        verified(folder)
    await written(folder, range(3, 5))
    assert verified(folder).last == 7
    assert "missing" in str(of_action(folder, "audit.start")[-1]["problem"])


async def test_the_oldest_records_go_and_the_rest_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    for start in range(0, 1000, 20):
        await written(folder, range(start, start + 20), file_bytes=4000, most_bytes=20_000)
        assert sum(file.stat().st_size for file in files.record_files(folder)) < 40_000
    result = verified(folder)
    assert result.first > 100
    assert result.last == 1050
    assert targets(folder)[-1] == "object/999"


async def test_a_full_disk_is_waited_for_and_what_is_too_much_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "QUEUE_LIMIT", 50)
    monkeypatch.setattr(audit_log, "_RETRY_S", 0.02)
    disks = Disks(tmp_path / "disks")
    with await disks.scratch(4) as small:
        disk = Path(f"/proc/self/fd/{small.mount_fd}")
        log = made(disk / "audit")
        await log.start()
        await asyncio.to_thread(fill, disk / "rest")
        for number in range(200):  # some 250 bytes each: more than the last block has room for
            log.record(event(number))
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        (disk / "rest").unlink()
        await asyncio.sleep(0.2)
        log.record(event(1000))
        await log.close()
        kept = targets(disk / "audit")
        lost = sum(int(str(detail["records"])) for detail in of_action(disk / "audit", "audit.lost"))
        assert lost > 0
        assert len(kept) + lost == 201
        assert kept[-1] == "object/1000"
        assert kept[:-1] == [f"object/{number}" for number in range(len(kept) - 1)]
        assert verified(disk / "audit").unsigned == 0
    disks.close()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
                    os.fsync(file.fileno())
            except OSError:
                continue


async def test_a_server_that_ends_on_a_full_disk_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = made(tmp_path / "audit")
    await log.start()
    await asyncio.sleep(0.1)

    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if descriptor == log._file:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    log.record(event(1))
    async with asyncio.timeout(5):
        await log.close()
    assert targets(tmp_path / "audit") == []
    assert verified(tmp_path / "audit").last == 1


async def test_what_is_no_folder_or_no_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="can't be used: File exists"):
        await made(tmp_path / "file").start()
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "key").write_bytes(b"short")
    with pytest.raises(Unavailable, match="has 5 bytes, not 32"):
        await made(tmp_path / "audit").start()


async def test_before_the_start_and_after_the_end_nothing_waits(tmp_path: Path) -> None:
    log = made(tmp_path / "audit")
    log.record(event(1))
    await log.start()
    log.record(event(2))
    await log.close()
    log.record(event(3))
    assert targets(tmp_path / "audit") == ["object/2"]
    assert of_action(tmp_path / "audit", "audit.lost") == [{"records": 1}]
